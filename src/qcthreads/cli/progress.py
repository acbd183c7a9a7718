"""Progress of a run on standard error: rich's bar on a terminal, else a line now and then; it steers nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from ..execution.calculation import Progress
from ..execution.labels import short_label
from ..manybody.report import FragmentRow, common, headline
from .render import seconds

_LINE_EVERY_S = 5.0


class Prepared(Protocol):
    """What progress needs of a run."""

    @property
    def fragments(self) -> Sequence[FragmentRow]:
        """The calculations to come."""


@contextmanager
def show_progress(run: Prepared, stream: TextIO = sys.stderr) -> Iterator[Callable[[Progress], None]]:
    """A function that takes the events of ``run`` and shows them while the ``with`` lasts."""
    pace = Pace(run.fragments)
    if stream.isatty():
        try:
            import rich  # noqa: F401
        except ImportError:
            pass
        else:
            with _live(pace, stream) as on_progress:
                yield on_progress
            return
    yield _lines(pace, stream)


class Pace:
    """How many calculations are done, how fast, how long the rest takes: by cost, as the large ones go first."""

    def __init__(self, rows: Sequence[FragmentRow], now: Callable[[], float] = time.monotonic) -> None:
        self._costs = {row.label: _cost(row) for row in rows}
        self._left_cost = sum(self._costs.values())
        self._done_cost = 0.0
        self._now = now
        self._began = now()
        self.total = len(rows)
        self.finished = 0
        self.failed = 0

    def count(self, progress: Progress) -> None:
        """Take one event into account. What is reused is not part of the work, so that rate and time to go are true."""
        if progress.event == "reused":
            self._left_cost -= self._costs.pop(progress.label, 0.0)
            self.total -= 1
        if progress.event in ("finished", "failed"):
            cost = self._costs.pop(progress.label, 0.0)
            self._left_cost -= cost
            self._done_cost += cost
            self.finished += progress.event == "finished"
            self.failed += progress.event == "failed"

    @property
    def done(self) -> int:
        """Calculations that have ended, well or not."""
        return self.finished + self.failed

    @property
    def elapsed_s(self) -> float:
        """Since the run began."""
        return self._now() - self._began

    @property
    def rate_per_s(self) -> float:
        """Calculations ended per second."""
        return self.done / max(self.elapsed_s, 1e-9)

    @property
    def remaining_s(self) -> float | None:
        """Expected time to the end; ``None`` before the first calculation has ended."""
        if not self._done_cost:
            return None
        return self.elapsed_s * self._left_cost / self._done_cost

    def __str__(self) -> str:
        text = f"{self.done}/{self.total} done"
        if self.failed:
            text += f", {self.failed} failed"
        if self.done:
            text += f", {self.rate_per_s:.2g}/s"
        if self.done < self.total and self.remaining_s is not None:
            text += f", {seconds(self.remaining_s)} to go"
        return text


def _cost(row: FragmentRow) -> float:
    """Relative: the third power of the size with ghosts, about what Hartree-Fock and MP2 of small molecules take."""
    return (max(row.electrons, 1) * (1 + len(row.ghosts) / len(row.fragments))) ** 3


def _lines(pace: Pace, stream: TextIO) -> Callable[[Progress], None]:
    """Plain lines: failures and notes at once, the count at most every few seconds."""
    shown_at = -_LINE_EVERY_S
    messages = _Messages()

    def on_progress(progress: Progress) -> None:
        nonlocal shown_at
        pace.count(progress)
        told = messages.of(progress)
        if told:
            print(told, file=stream, flush=True)
        ended = pace.done == pace.total and progress.event in ("finished", "failed")
        if progress.event not in ("note", "reused") and (ended or pace.elapsed_s - shown_at >= _LINE_EVERY_S):
            shown_at = pace.elapsed_s
            print(f"{pace}", file=stream, flush=True)

    return on_progress


@contextmanager
def _live(pace: Pace, stream: TextIO) -> Iterator[Callable[[Progress], None]]:
    """A bar with counts, rate and the time to go; failures and notes scroll above it."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(file=stream, highlight=False, markup=False)
    columns = BarColumn(bar_width=20), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(str(pace), total=pace.total)
        messages = _Messages()

        def on_progress(progress: Progress) -> None:
            pace.count(progress)
            told = messages.of(progress)
            if told:
                console.print(told)
            bar.update(task, completed=pace.done, total=pace.total, description=str(pace))

        yield on_progress


class _Messages:
    """What is worth a line of its own; an error that many calculations end with is told once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def of(self, progress: Progress) -> str | None:
        """The line for this event, if it deserves one."""
        if progress.event == "note":
            return f"note: {progress.message}"
        if progress.event not in ("failed", "retried"):
            return None
        error = headline(progress.message)
        if common(error) in self._told:
            return None
        self._told.add(common(error))
        return f"{progress.event}: {short_label(progress.label)}: {error}"
