"""Says what failed, from pytest's reports: each test's name, and the last lines of why; and what had to be repeated.

Usage: failures.py FILE.xml ...; a log of CI may show its end only, so this is printed there, and no more than fits.
"""

import sys
from collections import Counter
from xml.etree import ElementTree

CHARACTERS = 9_000


def main() -> None:
    """Print what was repeated, and every failure with as much of each as there is room for."""
    for name in (one for path in sys.argv[1:] for one in repeated(path)):
        print(f"REPEATED {name}")
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
        (_name(case), why.text or why.get("message") or "")
        for case in cases
        for why in case
        if why.tag in ("failure", "error")
    ]


def repeated(path: str) -> list[str]:
    """The names of a report's tests that are in it more than once; of one that cannot be read, none."""
    try:
        times = Counter(map(_name, ElementTree.parse(path).iter("testcase")))
    except (OSError, ElementTree.ParseError):
        return []
    return [name for name, count in times.items() if count > 1]


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname')}.{case.get('name')}"


if __name__ == "__main__":
    main()
