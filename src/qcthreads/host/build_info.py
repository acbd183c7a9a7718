"""Whether the native extension can be used in this installation, and if not, why; changes nothing."""

from __future__ import annotations

import sys
from functools import cache


@cache
def native_status() -> tuple[bool, str]:
    """(available, reason): ``"in use"``, or why the installation is pure Python, as the build wrote it down."""
    if sys.platform not in ("linux", "darwin", "win32"):
        return False, f"there is none for {sys.platform}"
    try:
        from . import _native  # noqa: F401
    except ImportError as error:
        return False, _written_reason() or f"not built: {error}"
    return True, "in use"


def _written_reason() -> str:
    """``setup.py`` leaves one line beside this file when it makes no extension."""
    from pathlib import Path

    try:
        return Path(__file__).with_name("_build.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
