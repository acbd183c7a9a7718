"""What goes on in an engine: its runs, what their workers compute, and under which leases; decides nothing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..leases import Lease
from .calculation import Outcome, Progress
from .changing import Change
from .job import Job, Key
from .source import Source
from .supervisor import Worker

LOOK_AGAIN_S = 1.0


@dataclass(slots=True, eq=False)
class Run:
    """One call of :meth:`LocalEngine.run`. A driver that ends puts ``None`` among the events."""

    width: int
    """How many drivers there are, or have been."""
    source: Source
    """What says what is next."""
    turn: threading.Condition = field(default_factory=threading.Condition)
    """One driver at a time asks the source."""
    looks: bool = False
    """One of those that wait for the source looks every second what others have given back, and at the limits."""
    in_line: int = 0
    """How many drivers stand in line for a lease."""
    prepared: dict[Key, Job] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)
    events: queue.SimpleQueue[Progress | Outcome | BaseException | None] = field(default_factory=queue.SimpleQueue)
    busy: dict[Worker, Running] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)
    _said: set[str] = field(default_factory=set)
    """Kinds of notes, or notes without one."""
    _saying: threading.Lock = field(default_factory=threading.Lock)

    def wait_for_turn(self) -> None:
        """With the turn: until another driver has started something, or for a second."""
        mine, self.looks = not self.looks, True
        self.turn.wait(LOOK_AGAIN_S if mine else None)
        if mine:
            self.looks = False

    def wake(self) -> None:
        """Let drivers that wait for the source see that the run has been stopped."""
        with self.turn:
            self.turn.notify_all()

    def note(self, label: str, note: str, kind: str = "") -> None:
        """Each kind of thing is said once in a run, however many calculations it is true of."""
        with self._saying:
            new = (kind or note) not in self._said
            self._said.add(kind or note)
        if new:
            self.events.put(Progress(event="note", label=label, message=note, kind=kind))


@dataclass(slots=True)
class Place:
    """Where one calculation after another runs under one lease."""

    seat: Seat
    job: Job
    """What runs there."""
    until_s: float
    """By the monotonic clock: when nothing more is to follow."""
    changes: Sequence[Change]
    """Of limits until the lease was given: nothing more is to follow, either, where there are others."""
    attempt: int = 1
    began_at: float = 0.0
    waited: bool = True
    """It is the one that the lease was asked for."""

    def outcome(self, worker: Worker | None, reply: Mapping[str, Any]) -> Outcome:
        """Of what runs there, by what its worker replied."""
        lease = self.seat.lease
        return Outcome(
            label=self.job.calculation.label,
            status=reply["status"],
            result=reply["result"],
            error=reply["error"],
            threads=self.job.settings.threads,
            cpus=self.seat.current.cpus,
            bound=worker.bound if worker else None,
            worker_pid=worker.pid if worker else 0,
            started_at=reply["started_at"],
            wall_s=reply["wall_s"],
            cpu_s=reply["cpu_s"],
            peak_memory_bytes=reply["peak_memory_bytes"],
            attempts=self.attempt,
            waited_s=lease.waited_s if self.waited else 0.0,
            waited_for=lease.waited_for if self.waited else "",
        )


@dataclass(slots=True, eq=False)
class Running:
    """What a busy worker computes, and on what."""

    job: Job
    seat: Seat
    moved: bool = False
    """It is to be bound again."""


@dataclass(slots=True, eq=False)
class Seat:
    """What something runs under: a lease and, while the PUs of that may not be used, others."""

    lease: Lease
    instead: Lease | None = None
    left: list[Lease] = field(default_factory=list)
    """Where it may still run, until it has been bound again."""

    @property
    def current(self) -> Lease:
        """The one whose PUs it is to run on."""
        return self.instead or self.lease

    @property
    def leases(self) -> tuple[Lease, ...]:
        """All that it holds."""
        return self.lease, *self.left, *([] if self.instead is None else [self.instead])

    def move(self, instead: Lease | None) -> None:
        """To the PUs of ``instead``, or back to those of its lease; what it has had is kept until it has left."""
        self.left += [] if self.instead is None else [self.instead]
        self.instead = instead

    def leave(self) -> None:
        """Give back what it runs on no longer."""
        while self.left:
            self.left.pop().release()

    def close(self) -> None:
        """Give back all but the lease."""
        self.move(None)
        self.leave()
