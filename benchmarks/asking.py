"""How the benchmarks in this folder are asked: each by its own description, all alike; it measures nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def parser(description: str | None, *, rounds: int | None = None, least: int = 1) -> argparse.ArgumentParser:
    """With ``--rounds``, of that default and at least so many, where ``rounds`` are given."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    if rounds is not None:
        made.add_argument("--rounds", type=at_least(least), default=rounds, metavar="N", help=f"default: {rounds}")
    return made


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from ``least`` on."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is too few; give at least {least}")
        return int(text)

    return number
