"""Says what failed, from pytest's reports: each test's name, and the last lines of why.

Usage: failures.py FILE.xml ...; a log of CI may show its end only, so this is printed there, and no more than fits.
"""

import sys
from xml.etree import ElementTree

CHARACTERS = 9_000


def main() -> None:
    """Print every failure, with as much of each as there is room for."""
    failed = [
        (case.get("classname", "") + "." + case.get("name", ""), why.text or why.get("message") or "")
        for path in sys.argv[1:]
        for case in ElementTree.parse(path).iter("testcase")
        for why in case
        if why.tag in ("failure", "error")
    ]
    for name, why in failed:
        print(f"FAILED {name}\n{why[-CHARACTERS // len(failed) :]}")


if __name__ == "__main__":
    main()
