"""The pools of threads of libraries that this process has loaded: given a width, and taken apart; starts no thread.

OpenMP runtimes keep a pool for every thread that has called them, with the masks that it had then; libgomp gives the
pool of the calling thread up when it is asked to pause. A BLAS with threads of its own has one pool for the process,
whose threads keep their masks: it is held at one thread, the caller's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SET_BY_IMPORT = "KMP_DUPLICATE_LIB_OK"  # by threadpoolctl 3.8, and read by Intel's runtime when it meets itself
_PAUSE_SOFT = 1  # omp_pause_soft of OpenMP 5.0


@contextlib.contextmanager
def of_this_thread(width: int) -> Iterator[dict[str, int]]:
    """Give the OpenMP runtimes ``width`` threads, for regions of the calling thread, as long as ``with`` goes on.

    Yields the runtimes that cannot give as many, by file name, and how many they can. Teams begin anew, inside the mask
    that the thread has then, and so they do afterwards.
    """
    before = [(runtime, runtime.num_threads) for runtime in _runtimes()]
    for runtime, _ in before:
        runtime.set_num_threads(width)
    _give_up_teams()
    try:
        limits = {Path(runtime.filepath).name: _limit(runtime) for runtime, _ in before}
        yield {name: limit for name, limit in limits.items() if limit < width}
    finally:
        _give_up_teams()
        for runtime, threads in before:
            runtime.set_num_threads(threads)


@contextlib.contextmanager
def blas_of_this_process(threads: int) -> Iterator[None]:
    """Hold every BLAS that is loaded at ``threads`` as long as ``with`` goes on."""
    with _controllers("blas").limit(limits=threads):
        yield


def _runtimes() -> list[Any]:
    return list(_controllers("openmp").lib_controllers)


def _controllers(user_api: str) -> Any:
    before = os.environ.get(_SET_BY_IMPORT)
    from threadpoolctl import ThreadpoolController

    if before is None:
        os.environ.pop(_SET_BY_IMPORT, None)
    return ThreadpoolController().select(user_api=user_api)


def _give_up_teams() -> None:
    for runtime in _runtimes():
        pause = getattr(ctypes.CDLL(runtime.filepath), "omp_pause_resource_all", None)
        if pause is not None and runtime.prefix == "libgomp":  # others end the teams of all threads
            pause(_PAUSE_SOFT)


def _limit(runtime: Any) -> int:
    """OMP_THREAD_LIMIT as it was when ``runtime`` was loaded."""
    return int(ctypes.CDLL(runtime.filepath).omp_get_thread_limit())
