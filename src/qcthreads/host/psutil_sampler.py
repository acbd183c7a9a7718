"""A sampler of threads for anywhere, through psutil, and the choice between the samplers in plain Python."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from ..errors import BindingError, MachineError
from .interface import Host
from .python_sampler import PythonSampler, SeenProcess, SeenThread
from .sampling import TimesSource


def open_python_sampler(
    host: Host, pids: Iterable[int], children: bool, source: TimesSource | None = None
) -> PythonSampler:
    """The one for ``source``, or for the best that there is here."""
    if sys.platform == "linux":
        from .proc_sampler import ProcSampler, times_source

        source = source or times_source()
        return PsutilSampler(host, pids, children) if source == "psutil" else ProcSampler(pids, children, source)
    if source in ("schedstat", "stat"):
        raise MachineError(f"{source} was asked for, but there is no /proc on {sys.platform}; ask for psutil")
    return PsutilSampler(host, pids, children)


class PsutilSampler(PythonSampler):
    """Anywhere: what psutil and the host tell; neither run-queue delay nor CPUs."""

    source: TimesSource = "psutil"

    def __init__(self, host: Host, pids: Iterable[int], children: bool) -> None:
        self._host = host
        super().__init__(pids, children)

    def parents(self) -> dict[int, int]:
        """The parent of every process that there is; of those below the roots."""
        import psutil

        found: dict[int, int] = {}
        for pid in {process.root for process in self._known.values()}:
            try:
                found |= {child.pid: child.ppid() for child in psutil.Process(pid).children(recursive=True)}
            except psutil.Error:
                continue
        return found

    def read_threads(self, process: SeenProcess, detail: bool) -> dict[int, SeenThread]:  # noqa: ARG002 - it has none
        """The threads of a process now, by number; empty when it has ended. None has a time where none is told."""
        import psutil

        seen = self._process(process)
        if seen is None:
            return {}
        try:
            times = self._host.thread_times(process.pid)
        except ProcessLookupError:
            return {}
        except BindingError:  # not permitted: the process counts as one thread
            times = {process.pid: self.read_clock(process.pid)}
        try:
            state = b"Z" if seen.status() == psutil.STATUS_ZOMBIE else b"?"
        except psutil.Error:
            return {}
        return {tid: SeenThread(process.started_ticks, cpu_ns, state=state) for tid, cpu_ns in times.items()}

    def read_clock(self, pid: int) -> int:
        """CPU time of a process, its ended threads included; 0: not told."""
        import psutil

        try:
            return int(sum(psutil.Process(pid).cpu_times()[:2]) * 1e9)
        except psutil.Error:
            return 0

    def read_process(self, process: SeenProcess) -> None:
        """Its memory and what it has waited for."""
        import psutil

        try:
            seen = psutil.Process(process.pid)
            memory, times = seen.memory_info(), seen.cpu_times()
        except psutil.Error:
            return
        process.memory_bytes = memory.rss
        peak = getattr(memory, "peak_wset", memory.rss)  # only Windows keeps the peak
        process.memory_peak_bytes = max(process.memory_peak_bytes, peak)
        process.waited_for_ns = int(sum(times[2:4]) * 1e9)

    def _process(self, process: SeenProcess) -> Any:
        """``None`` when it has ended, even where another has its number now."""
        import psutil

        try:
            seen = psutil.Process(process.pid)
            started = int(seen.create_time() * 100)  # ticks of the same length as Linux's, but since 1970
        except psutil.Error:
            return None
        process.started_ticks = process.started_ticks or started
        return seen if process.started_ticks == started else None
