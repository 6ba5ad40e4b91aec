"""Runs commands one after another on one Ray, in a process that finds the packages under PYTHONPATH.

The commands come as JSON on the standard input; what each printed goes as JSON to the standard output.
"""

from __future__ import annotations

import json
import sys

from search.run.ray_session import local_ray
from tests.search.commands import transfer_search

if __name__ == "__main__":
    with local_ray():
        said = [transfer_search(*words) for words in json.load(sys.stdin)]
    print(json.dumps(said))
