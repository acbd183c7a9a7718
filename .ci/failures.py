"""Says what failed, from pytest's reports: each test's name, and the last lines of why.

Usage: failures.py FILE.xml ...; a log of CI may show its end only, so this is printed there, and no more than fits.
"""

import sys
from xml.etree import ElementTree

CHARACTERS = 9_000


def main() -> None:
    """Print every failure, with as much of each as there is room for."""
    failed = [one for path in sys.argv[1:] for one in failures(path)]
    for name, why in failed:
        print(f"FAILED {name}\n{why[-CHARACTERS // len(failed) :]}")


def failures(path: str) -> list[tuple[str, str]]:
    """The names of a report's failed tests, and why they failed; of one that cannot be read, that."""
    try:
        cases = ElementTree.parse(path).iter("testcase")
    except (OSError, ElementTree.ParseError) as error:
        return [(path, f"no report of tests: {error}")]
    return [
        (f"{case.get('classname')}.{case.get('name')}", why.text or why.get("message") or "")
        for case in cases
        for why in case
        if why.tag in ("failure", "error")
    ]


if __name__ == "__main__":
    main()
