"""Whether the native extension can be used in this installation, and if not, why; changes nothing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace

# The seven numbers of `inspect` that Cython puts into the code objects of an extension for many versions of Python.
CODE_FLAGS = {
    "CO_OPTIMIZED": 0x1,
    "CO_NEWLOCALS": 0x2,
    "CO_VARARGS": 0x4,
    "CO_VARKEYWORDS": 0x8,
    "CO_GENERATOR": 0x20,
    "CO_COROUTINE": 0x80,
    "CO_ASYNC_GENERATOR": 0x200,
}


@cache
def native_status() -> tuple[bool, str]:
    """(available, reason): ``"in use"``, or why the installation is pure Python, as the build wrote it down."""
    if sys.platform not in ("linux", "darwin", "win32"):
        return False, f"there is none for {sys.platform}"
    try:
        try:
            with _light_inspect():
                from . import _native
        except AttributeError:  # made by a Cython that asks for more of `inspect`
            from . import _native  # noqa: F401
    except ImportError as error:
        return False, _written_reason() or f"not built: {error}"
    return True, "in use"


@contextmanager
def _light_inspect() -> Iterator[None]:
    """Spare a command that is about to start the import of ``inspect``, a tenth of its wait.

    Not where another thread could take what stands in for it.
    """
    if "inspect" in sys.modules or threading.active_count() > 1:
        yield
        return
    sys.modules["inspect"] = SimpleNamespace(**CODE_FLAGS)  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["inspect"]


def _written_reason() -> str:
    """``setup.py`` leaves one line beside this file when it makes no extension."""
    from pathlib import Path

    try:
        return Path(__file__).with_name("_build.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
