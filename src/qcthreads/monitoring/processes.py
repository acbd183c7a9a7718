"""Which processes descend from one, as psutil sees it; changes nothing."""

from __future__ import annotations


def descendants(pid: int) -> list[int]:
    """``pid`` and every process below it, parents first; empty when it has ended."""
    import psutil

    try:
        root = psutil.Process(pid)
        return [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.Error:
        return []
