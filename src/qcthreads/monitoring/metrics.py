"""A run as a text file that Prometheus' node exporter reads, kept up to date; knows nothing of what it counts."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .statistics import Moment

# Prometheus asks every 15 to 60 s as a rule.
_WRITE_EVERY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNow:
    """A run at this moment; what is not known yet, or not told here, is ``None``."""

    finished: int
    failed: int
    reused: int
    running: int
    total: int
    pus_usable: int
    pus_leased: int
    moment: Moment | None
    """The last second or so of all workers."""
    cpu_s: float
    """Of calculations that have ended."""
    run_queue_s: float | None
    sampler_cpu_s: float | None


class MetricsFile:
    """Writes what ``live`` says into ``path`` every few seconds, until the end of the ``with``; whole or not at all.

    A file that cannot be written any more ends no run: it goes stale, which the node exporter tells by its age.
    """

    def __init__(self, path: Path, live: Callable[[], RunNow], facts: Mapping[str, Any]) -> None:
        self._path, self._live, self._began_at = path, live, time.time()
        names = ("input", "program", "program_version", "method", "basis")
        self._labels = {name: str(facts.get(name) or "") for name in names} | {"pid": str(os.getpid())}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_often, name="qcthreads-metrics", daemon=True)

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._write()

    def _write_often(self) -> None:
        while not self._ended.wait(_WRITE_EVERY_S):
            self._write()

    def _write(self) -> None:
        from prometheus_client import write_to_textfile

        try:
            write_to_textfile(str(self._path), registry_of(self._live(), self._labels, self._began_at))
        except OSError:
            return


def registry_of(live: RunNow, labels: Mapping[str, str], began_at: float) -> Any:
    """A prometheus_client registry; ``labels`` tell this run from others whose files lie beside it."""
    from prometheus_client import CollectorRegistry, Gauge

    registry = CollectorRegistry()
    of_run = {"pid": labels["pid"], "input": labels["input"]}

    def gauge(name: str, text: str, value: float | None, **more: str) -> None:
        known = gauges.get(name)
        if known is None:
            known = gauges[name] = Gauge(f"qcthreads_run_{name}", text, [*of_run, *more], registry=registry)
        if value is not None:
            known.labels(**of_run, **more).set(value)

    gauges: dict[str, Gauge] = {}
    about = {name: value for name, value in labels.items() if name not in of_run}
    gauge("info", "What is run.", 1, **about)
    ended = {"finished": live.finished, "failed": live.failed, "reused": live.reused, "running": live.running}
    for state, count in {**ended, "waiting": max(0, live.total - sum(ended.values()))}.items():
        gauge("calculations", "Calculations by state.", count, state=state)
    gauge("start_time_seconds", "When it began, since 1970.", began_at)
    gauge("pus_usable", "PUs that the run may use.", live.pus_usable)
    gauge("pus_leased", "PUs that it holds.", live.pus_leased)
    if live.moment is not None:
        gauge("cpus_busy", "CPUs that its workers kept busy over the last second or so.", live.moment.cpus_busy)
        gauge("cpus_waited_for", "Threads of its workers that waited for a CPU.", live.moment.cpus_waited_for)
        gauge("memory_bytes", "Resident memory of its workers.", live.moment.memory_bytes)
    gauge("cpu_seconds", "CPU time of calculations that have ended.", live.cpu_s)
    gauge("run_queue_seconds", "Run-queue delay of calculations that have ended.", live.run_queue_s)
    gauge("sampler_cpu_seconds", "CPU time that sampling has cost.", live.sampler_cpu_s)
    return registry
