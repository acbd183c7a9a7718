"""A run as a text file that Prometheus' node exporter reads, kept up to date; knows nothing of what it counts."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .statistics import Moment

# Prometheus asks every 15 to 60 s as a rule.
_WRITE_EVERY_S = 5.0

# Labels of everything.
_OF_RUN = ("pid", "input")


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
    """All workers, over the last second or so."""
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
            write_to_textfile(str(self._path), RunMetrics(self._live(), self._labels, self._began_at))
        except OSError:
            return


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """A run at one moment, as prometheus_client collects it: what only grows is a counter, the rest are gauges.

    ``labels`` tell it from other runs whose files lie beside it.
    """

    live: RunNow
    labels: Mapping[str, str]
    began_at: float

    def collect(self) -> Iterator[Any]:
        """Metric families; none of what is not known."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        live, now = self.live, self.live.moment
        busy, waited_for, memory_bytes = (
            (now.cpus_busy, now.cpus_waited_for, now.memory_bytes) if now else (None, None, None)
        )
        about = {name: value for name, value in self.labels.items() if name not in _OF_RUN}
        yield self._family(GaugeMetricFamily, "info", "What is run.", [(1, about)])
        states = [(count, {"state": state}) for state, count in self._states()]
        yield self._family(GaugeMetricFamily, "calculations", "Calculations by state.", states)
        for kind, name, what, value in (
            (GaugeMetricFamily, "start_time_seconds", "When it began, since 1970.", self.began_at),
            (GaugeMetricFamily, "pus_usable", "PUs that the run may use.", live.pus_usable),
            (GaugeMetricFamily, "pus_leased", "PUs that it holds.", live.pus_leased),
            (GaugeMetricFamily, "cpus_busy", "CPUs that its workers kept busy over the last second or so.", busy),
            (GaugeMetricFamily, "cpus_waited_for", "Threads of its workers that waited for a CPU.", waited_for),
            (GaugeMetricFamily, "memory_bytes", "Resident memory of its workers.", memory_bytes),
            (CounterMetricFamily, "cpu_seconds_total", "CPU time of calculations that have ended.", live.cpu_s),
            (
                CounterMetricFamily,
                "run_queue_seconds_total",
                "Run-queue delay of calculations that have ended.",
                live.run_queue_s,
            ),
            (
                CounterMetricFamily,
                "sampler_cpu_seconds_total",
                "CPU time that sampling has cost.",
                live.sampler_cpu_s,
            ),
        ):
            if value is not None:
                yield self._family(kind, name, what, [(value, {})])

    def _states(self) -> Iterator[tuple[str, int]]:
        live = self.live
        yield "finished", live.finished
        yield "failed", live.failed
        yield "reused", live.reused
        yield "running", live.running
        yield "waiting", max(0, live.total - live.finished - live.failed - live.reused - live.running)

    def _family(
        self, kind: Callable[..., Any], name: str, what: str, values: Sequence[tuple[float, Mapping[str, str]]]
    ) -> Any:
        """Of values with the labels that each has beside those of the run."""
        of_run = {name: self.labels[name] for name in _OF_RUN}
        family = kind(f"qcthreads_run_{name}", what, labels=[*of_run, *values[0][1]])
        for value, more in values:
            family.add_metric([*of_run.values(), *more.values()], value)
        return family
