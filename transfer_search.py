"""What the command `transfer-search` imports first: a name that is nobody else's.

The packages are called `search` and `trainables`, and a folder on PYTHONPATH may hold other modules of these
names. Here they are taken from where this file lies, before anybody can ask for them.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import NoReturn

__all__ = ["entry"]


def entry() -> NoReturn:
    """Entry point of the console script."""
    try:
        for name in ("search", "trainables"):
            _take(name, Path(__file__).resolve().parent / name)
        from search.cli.main import entry as run
    except KeyboardInterrupt:  # Ctrl-C while it imports
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    run()


def _take(name: str, folder: Path) -> None:
    spec = spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is not whole; install transfer-search again")
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
