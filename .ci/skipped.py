"""Lists the tests of a JUnit file that were skipped, by reason: `skipped.py tests.xml`."""

from __future__ import annotations

import sys
from collections import defaultdict
from xml.etree import ElementTree


def main() -> None:
    skipped = defaultdict(list)
    for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
        for mark in case.iter("skipped"):
            skipped[mark.get("message", "no reason given")].append(
                f"{case.get('classname')}::{case.get('name')}"
            )
    print(f"skipped tests: {sum(map(len, skipped.values())) or 'none'}")
    for reason, tests in sorted(skipped.items()):
        print(f"- {reason}", *(f"    {test}" for test in tests), sep="\n")


if __name__ == "__main__":
    main()
