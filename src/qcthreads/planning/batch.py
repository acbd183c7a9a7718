"""Checked tasks, and their widths, times and costs as arrays; refuses what makes no sense, and chooses nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from numbers import Real
from operator import attrgetter, methodcaller
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from ..errors import InputError, OversubscriptionError
from ..units import format_count, format_size, format_some
from .model import ROUNDING, Capacity, Placement, Task
from .space import Space

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_SORTED = 10_000  # at once
_MOST = 1e100  # seconds or bytes: sums and products of so many are still numbers
_FIELDS: tuple[tuple[str, type, str], ...] = (
    ("id", str, "a text"),
    ("times_s", Mapping, "seconds by width: {1: 10.0, 2: 5.6}"),
    ("memory_bytes", Real, "a number of bytes"),
    ("bandwidth_bytes_per_s", Real, "a number of bytes per second"),
)
_OF_DISK = ("disk_bytes", Real, "a number of bytes")  # asked of where it is limited: to ask 100,000 tasks takes 20 ms
_NARROWER_FIRST = 1e-12  # above rounding, below any measured difference


@dataclass(frozen=True)
class Choices:
    """The widths worth having: a row for each task, the cheapest first, each further one wider, dearer and faster.

    Rows are filled up by repeating some of them.
    """

    widths: Integers
    times_s: Floats
    costs_s: Floats
    """Seconds for which the task takes up the whole node, or would, if the node were nothing but what is weighed."""

    def cheapest(self, deadline_s: float) -> Integers:
        """Per task the column of the cheapest width that meets the deadline; of the fastest where none does."""
        late = self.times_s[:, :-1] > deadline_s
        columns: Integers = late.sum(axis=1)
        return columns

    def at(self, deadline_s: float) -> tuple[Integers, Floats]:
        """Per task the :meth:`cheapest` width, and its time."""
        chosen = np.arange(len(self.widths)), self.cheapest(deadline_s)
        return self.widths[chosen], self.times_s[chosen]

    def of(self, rows: Integers) -> Choices:
        """Of some of the tasks."""
        return Choices(self.widths[rows], self.times_s[rows], self.costs_s[rows])

    def within(self, deadline_s: float) -> Choices:
        """Without those that end later, where a faster one is there."""
        columns = np.maximum(self.cheapest(deadline_s)[:, None], np.arange(self.widths.shape[1]))
        rows = np.arange(len(columns))[:, None]
        return Choices(self.widths[rows, columns], self.times_s[rows, columns], self.costs_s[rows, columns])

    @cached_property
    def bound_s(self) -> float:
        """:meth:`bound` of these tasks alone."""
        return self.bound()

    def bound(self, already_s: float = 0.0) -> float:
        """The smallest T for which the costs of the cheapest widths that meet T, and ``already_s``, come to T at most.

        ``already_s``: seconds for which others that go on running take up the whole node.
        """
        if not len(self.widths):
            return already_s
        longest_s = float(self.times_s[:, -1].max())
        total_s = already_s + float(self.costs_s[np.arange(len(self.widths)), self.cheapest(longest_s)].sum())
        if total_s <= longest_s:
            return longest_s
        # Between the two, each cheaper width opens up once T reaches its time.
        times_s, costs_s = self.times_s.T, self.costs_s.T
        opens = (times_s[:-1] > longest_s) & (times_s[:-1] <= total_s) & (times_s[1:] < times_s[:-1])
        times_s, saved_s = times_s[:-1][opens], costs_s[1:][opens] - costs_s[:-1][opens]
        while len(times_s) > _SORTED:  # to sort so many takes longer than to look in which part of them T lies
            middle_s = float(np.median(times_s[:: len(times_s) // 100]))
            before = times_s <= middle_s
            until_s = total_s - float(saved_s[before].sum())
            if until_s > middle_s:
                longest_s, total_s, before = middle_s, until_s, ~before
            if before.all():
                break
            times_s, saved_s = times_s[before], saved_s[before]
        order = np.argsort(times_s, kind="stable")
        starts_s = np.concatenate(([longest_s], times_s[order]))
        totals_s = total_s - np.concatenate(([0.0], np.cumsum(saved_s[order])))
        bounds_s = np.maximum(starts_s, totals_s)
        within = bounds_s <= np.append(starts_s[1:], np.inf)
        return float(bounds_s[np.argmax(within)])


class Batch(Sequence[Task]):
    """Tasks that make sense, each of which fits within ``capacity`` by itself.

    Raises
    ------
    InputError
        For ids that are not unique, and for widths, times and needs that cannot be.
    OversubscriptionError
        For a task that can never run.
    """

    def __init__(self, tasks: Sequence[Task], capacity: Capacity) -> None:
        if not isinstance(tasks, Iterable):
            raise InputError(f"{tasks!r:.60} was given for the tasks; give a list of them")
        self.tasks = tuple(tasks)
        self.capacity = capacity
        self.bounds: list[tuple[float, Choices]] | None = None
        """As bounds.py found them, which may be asked for them again."""
        self._choices: dict[tuple[Any, ...], Choices] = {}
        self._check()

    @classmethod
    def of(cls, tasks: Sequence[Task], capacity: Capacity) -> Batch:
        """``tasks`` itself where it is such a batch already."""
        return tasks if isinstance(tasks, Batch) and tasks.capacity == capacity else cls(tasks, capacity)

    def retimed(self, rows: Integers, times_s: Floats, capacity: Capacity) -> Batch:
        """The tasks of ``rows`` with ``times_s`` at the widths they list, within another capacity.

        Unchecked: each of them has to fit.
        """
        made = copy(self)
        made.__dict__ = {
            "tasks": tuple(self.tasks[row] for row in rows.tolist()),
            "capacity": capacity,
            "memory_bytes": self.memory_bytes[rows],
            "disk_bytes": self.disk_bytes[rows],
            "traffic_bytes": self.traffic_bytes[rows],
            "_table": (
                np.asfortranarray(self.widths[rows]),
                np.asfortranarray(times_s),
                None if self.more_bytes is None else self.more_bytes[rows],
            ),
            "bounds": None,
            "_choices": {},
        }
        return made

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        return self.tasks[index]

    @cached_property
    def memory_bytes(self) -> Floats:
        """Of each task, without what it needs at some widths beyond that."""
        return np.array(list(map(attrgetter("memory_bytes"), self.tasks)), dtype=np.float64)

    @cached_property
    def disk_bytes(self) -> Floats:
        """Of each task; 0 where it is not limited."""
        if math.isinf(self.capacity.disk_bytes):
            return np.zeros(len(self.tasks))
        return np.array(list(map(attrgetter("disk_bytes"), self.tasks)), dtype=np.float64)

    @cached_property
    def memory(self) -> Space:
        """Who needs how much of it."""
        more = None if self.more_bytes is None else (self.widths, self.more_bytes)
        whole = self.capacity.memory_bytes
        return Space("memory", whole, self.memory_bytes, self.most_bytes, more)

    @cached_property
    def disk(self) -> Space:
        """Who needs how much of it."""
        return Space("disk", self.capacity.disk_bytes, self.disk_bytes, self.disk_bytes)

    @cached_property
    def spaces(self) -> tuple[Space, ...]:
        """What may run short beside CPUs and bandwidth: it is limited, and somebody needs some."""
        return tuple(one for one in (self.memory, self.disk) if math.isfinite(one.whole) and one.most.any())

    @cached_property
    def traffic_bytes(self) -> Floats:
        """What each task moves to and from memory while it runs."""
        if not any(map(attrgetter("bandwidth_bytes_per_s"), self.tasks)):
            return np.zeros(len(self.tasks))
        moved = [task.bandwidth_bytes_per_s * task.times_s[min(task.times_s)] for task in self.tasks]
        return np.array(moved, dtype=np.float64)

    @cached_property
    def moved_s(self) -> Floats:
        """Seconds in which all of the bandwidth would move the bytes of every task; 0 where it is not limited."""
        with np.errstate(over="ignore"):  # then it is refused
            moved_s: Floats = self.traffic_bytes / self.capacity.bandwidth_bytes_per_s
        return moved_s

    def rates(self, times_s: Floats) -> Floats:
        """The share of the bandwidth that each task uses."""
        rates: Floats = np.divide(self.moved_s, times_s, out=np.zeros(len(self)), where=times_s > 0)
        return rates

    def slowed(self, placements: Sequence[Placement]) -> int:
        """How many run for longer than their tasks tell, since their bytes take longer at all of the bandwidth."""
        if not self.moved_s.any():
            return 0
        threads = {one.id: one.threads for one in placements}
        widths = [threads[task.id] for task in self.tasks]
        no_sooner = self.times_s[np.arange(len(self)), self.columns(widths)] == self.moved_s
        rows = np.flatnonzero(no_sooner).tolist()
        return sum(self.tasks[row].times_s[widths[row]] < self.moved_s[row] for row in rows)

    @property
    def widths(self) -> Integers:
        """As listed, a row for each task; 1 where it lists fewer than others. Columns are contiguous."""
        return self._table[0]

    @property
    def times_s(self) -> Floats:
        """At each of the ``widths``; infinite where it may not be used, or the node is narrower or has less memory.

        No time is shorter than the whole bandwidth takes to move the task's bytes.
        """
        return self._table[1]

    @property
    def more_bytes(self) -> Floats | None:
        """What each task needs at each of the ``widths`` beyond its ``memory_bytes``; ``None``: nothing."""
        return self._table[2]

    @cached_property
    def most_bytes(self) -> Floats:
        """The memory of each task at the width that needs most."""
        if self.more_bytes is None:
            return self.memory_bytes
        most: Floats = self.memory_bytes + np.where(np.isfinite(self.times_s), self.more_bytes, 0.0).max(axis=1)
        return most

    @cached_property
    def alike(self) -> bool:
        """Whether all list the same widths, and may use each of them."""
        return bool((self.widths == self.widths[:1]).all() and np.isfinite(self.times_s).all())

    @cached_property
    def shortest_s(self) -> Floats:
        """Each task's time at its best width."""
        shortest_s: Floats = self.times_s.min(axis=1)
        return shortest_s

    @cached_property
    def narrowest(self) -> Integers:
        """The narrowest width of each task."""
        narrowest: Integers = np.where(np.isfinite(self.times_s), self.widths, self.capacity.cpus).min(axis=1)
        return narrowest

    def columns(self, widths: npt.ArrayLike, rows: Integers | slice = slice(None)) -> Integers:
        """In which column of :attr:`widths` each of ``rows`` lists the width that it has."""
        columns: Integers = (self.widths[rows] == np.asarray(widths)[:, np.newaxis]).argmax(axis=1)
        return columns

    def choices(
        self, cpus: float = 1.0, bandwidth: float = 0.0, bandwidth_of_equals: float = 0.0, **spaces: float
    ) -> Choices:
        """The widths worth having where shares of CPUs, bandwidth and :attr:`spaces` have these weights (of 1).

        ``bandwidth_of_equals``: what a task has of it beside as many like it as fit: a half, where three do not.
        """
        weights = cpus, bandwidth, bandwidth_of_equals, *spaces.items()
        if weights not in self._choices:
            self._choices[weights] = self._weighed(cpus, bandwidth, bandwidth_of_equals, spaces)
        return self._choices[weights]

    def _weighed(self, cpus: float, bandwidth: float, of_equals: float, spaces: Mapping[str, float]) -> Choices:
        listed, spent_s = self._spent_s
        widths, times_s = self._fastest_last[0].copy(order="F"), spent_s.copy(order="F")
        costs_s: Floats = np.multiply(widths, cpus / self.capacity.cpus, dtype=np.float64)
        for space in self.spaces:
            if weight := spaces.get(space.name):
                costs_s += weight * space.at(widths) / space.whole
        costs_s *= spent_s
        if bandwidth:
            costs_s += bandwidth * self.moved_s[:, None]
        if of_equals:
            moved_s = np.broadcast_to(self.moved_s[:, None], spent_s.shape)
            with np.errstate(over="ignore"):  # of next to nothing any number fits
                equals = np.divide(spent_s, moved_s, out=np.full(spent_s.shape, np.inf), where=moved_s > 0)
            costs_s += of_equals * spent_s / np.maximum(np.floor(equals * (1 + ROUNDING)), 1)
        # Where the speedup is perfect all widths cost the same, but for rounding: the narrower fits in more places.
        least = costs_s[:, -1] * (1 + _NARROWER_FIRST * widths[:, -1])
        for column in range(widths.shape[1] - 2, -1, -1):
            dearness = costs_s[:, column] * (1 + _NARROWER_FIRST * widths[:, column])
            worth = listed[:, column] & (dearness < least)
            if worth.all():
                least = dearness
                continue
            np.copyto(least, dearness, where=worth)
            for table in (widths, times_s, costs_s):  # what is faster and no dearer takes its place
                np.copyto(table[:, column], table[:, column + 1], where=~worth)
        return Choices(widths, times_s, costs_s)

    @cached_property
    def _fastest_last(self) -> tuple[Integers, Floats]:
        """Widths and times with each row sorted by time; of equally fast ones the narrowest last."""
        if (self.times_s[:, 1:] < self.times_s[:, :-1]).all():
            return self.widths, self.times_s
        widths, times_s = (np.ascontiguousarray(table[:, ::-1]) for table in (self.widths, self.times_s))
        if ((widths[:, 1:] < widths[:, :-1]) | np.isinf(times_s[:, :-1])).all():  # as most list them: takes a quarter
            order = np.argsort(-times_s, axis=1, kind="stable")
        else:
            order = np.lexsort((-widths, -times_s), axis=1)
        widths, times_s = (np.take_along_axis(table, order, axis=1) for table in (widths, times_s))
        return np.asfortranarray(widths), np.asfortranarray(times_s)

    @cached_property
    def _spent_s(self) -> tuple[npt.NDArray[np.bool_], Floats]:
        """Of :attr:`_fastest_last` which widths are listed, and times with 0 where they are not."""
        listed = np.isfinite(self._fastest_last[1])
        return listed, np.where(listed, self._fastest_last[1], 0.0)

    @cached_property
    def _table(self) -> tuple[Integers, Floats, Floats | None]:
        lengths, width, time_s = self._listed
        shape = len(lengths), int(lengths.max(initial=1))
        listed = np.arange(shape[1]) < lengths[:, None]
        widths, times_s = np.ones(shape, dtype=np.int64, order="F"), np.full(shape, np.inf, order="F")
        widths[listed] = width
        times_s[listed] = np.where(width <= self.capacity.cpus, time_s, np.inf)
        np.maximum(times_s, self.moved_s[:, None], out=times_s)
        if not any(map(attrgetter("memory_more_bytes"), self.tasks)):
            return widths, times_s, None
        more = ((task.memory_more_bytes or {}).get(one, 0) for task in self.tasks for one in task.times_s)
        more_bytes = np.zeros(shape)
        more_bytes[listed] = np.fromiter(more, dtype=np.float64)
        times_s[self.memory_bytes[:, None] + more_bytes > self.capacity.memory_bytes] = np.inf
        return widths, times_s, more_bytes

    @cached_property
    def _listed(self) -> tuple[Integers, Integers, Floats]:
        """How many widths each task lists; all of them, one task after the other; and their times."""
        listed = [task.times_s for task in self.tasks]
        lengths = np.fromiter(map(len, listed), dtype=np.int64, count=len(listed))
        widths = np.array(list(chain.from_iterable(listed)))
        times_s = np.array(list(chain.from_iterable(map(methodcaller("values"), listed))))
        if not _are_times(widths, times_s):
            for task in self.tasks:
                if not _are_times(np.array(list(task.times_s)), np.array(list(task.times_s.values()))):
                    raise InputError(
                        f"task {task.id!r}: times_s is {dict(task.times_s)!r:.60}; give seconds by width, a whole "
                        "number: {1: 10.0, 2: 5.6}"
                    )
        return lengths, widths.astype(np.int64, copy=False), times_s.astype(np.float64, copy=False)

    def _check(self) -> None:
        self._check_types()
        if len({task.id for task in self.tasks}) < len(self.tasks):
            seen: set[str] = set()
            twice = next(task.id for task in self.tasks if task.id in seen or seen.add(task.id))  # type: ignore[func-returns-value]
            raise InputError(f"two tasks are called {twice!r}; give every task its own id")
        lengths, width, time_s = self._listed
        if not lengths.all():
            task = self.tasks[int(np.argmin(lengths))]
            raise InputError(f"task {task.id!r} lists no width; give its time at one width at least")
        wrong = (width < 1) | ~(time_s <= _MOST) | (time_s < 0)
        if wrong.any():
            at = int(np.argmax(wrong))
            task = self.tasks[int(np.searchsorted(np.cumsum(lengths), at, side="right"))]
            raise InputError(
                f"task {task.id!r}: {time_s[at]} s at width {width[at]}; widths start at 1, times go from 0 to "
                f"{_MOST} s"
            )
        try:
            self._check_needs(self.memory_bytes, "memory_bytes")
            self._check_needs(self.disk_bytes, "disk_bytes")
            self._check_needs(self.traffic_bytes, "bandwidth_bytes_per_s")
            self._check_needs(self.moved_s, "bandwidth_bytes_per_s")
        except OverflowError:  # a whole number that no float can hold
            what, task = next(
                (what, task)
                for what in ("memory_bytes", "disk_bytes", "bandwidth_bytes_per_s")
                for task in self.tasks
                if getattr(task, what) > _MOST
            )
            raise _no_need(task, what) from None
        self._round_up(self._check_more())
        self._check_fit()

    def _check_types(self) -> None:
        """Asked of all values of a kind at once: who is to blame is looked for only where one is wrong."""
        if _strange(self.tasks, Task):
            wrong = next(task for task in self.tasks if not isinstance(task, Task))
            raise InputError(f"{wrong!r:.60} is among the tasks; give qcthreads.Task(id, seconds by width)")
        for name, types, asked in _FIELDS if math.isinf(self.capacity.disk_bytes) else (*_FIELDS, _OF_DISK):
            if kind := _strange(map(attrgetter(name), self.tasks), types):
                task = next(task for task in self.tasks if type(getattr(task, name)) is kind)
                raise InputError(f"task {task.id!r}: {name} is {getattr(task, name)!r:.60}; give {asked}")

    def _check_needs(self, needs: Floats, what: str) -> None:
        wrong = ~((needs >= 0) & (needs <= _MOST))
        if wrong.any():
            raise _no_need(self.tasks[int(np.argmax(wrong))], what)

    def _check_more(self) -> bool:
        """Whether all that tasks need by width beyond ``memory_bytes`` are whole numbers of bytes."""
        with_more = list(filter(attrgetter("memory_more_bytes"), self.tasks))
        more = list(map(attrgetter("memory_more_bytes"), with_more))
        if not _strange(more, Mapping):
            values = np.array(list(chain.from_iterable(map(methodcaller("values"), more))))
            if values.dtype.kind in "iuf" and ((values >= 0) & (values <= _MOST)).all():
                return bool((values % 1 == 0).all())
        for task in with_more:
            if not _are_needs(task.memory_more_bytes):
                raise InputError(
                    f"task {task.id!r}: memory_more_bytes is {task.memory_more_bytes!r:.60}; give 0 or more bytes by "
                    f"width, below {_MOST}: {{1: 0, 2: 4096}}"
                )
        return False

    def _round_up(self, whole: bool) -> None:
        """Begun bytes are taken whole: sums of whole numbers are exact, so that what is given back is what was taken.

        ``whole``: whether those by width are that already.
        """
        parted = (self.memory_bytes % 1 != 0) | (self.disk_bytes % 1 != 0)
        if whole and not parted.any():
            return
        self.tasks = tuple(map(self._rounded_up, self.tasks))
        self.memory_bytes, self.disk_bytes = np.ceil(self.memory_bytes), np.ceil(self.disk_bytes)

    def _rounded_up(self, task: Task) -> Task:
        more, disk_bytes = task.memory_more_bytes, task.disk_bytes
        return replace(
            task,
            memory_bytes=math.ceil(task.memory_bytes),
            memory_more_bytes=more and {width: math.ceil(need) for width, need in more.items()},
            disk_bytes=disk_bytes if math.isinf(self.capacity.disk_bytes) else math.ceil(disk_bytes),
        )

    def _check_fit(self) -> None:
        cpus, never = self.capacity.cpus, np.isinf(self.shortest_s)
        spaces = self.memory, self.disk  # also where only widths that do not fit need any
        for space in spaces:
            never |= space.least > space.whole
        if not never.any():
            return
        row, *others = np.flatnonzero(never).tolist()
        task = self.tasks[row]
        if min(task.times_s) > cpus:
            lacks = f"{min(task.times_s)} threads at least, but may have {format_count(cpus, 'CPU')}"
            remedy = "give its time with fewer threads, or plan for a larger machine"
        else:
            fitting = [width for width in task.times_s if width <= cpus]
            needed = ((space, min(space.of(row, width) for width in fitting)) for space in spaces)
            space, need = next((space, need) for space, need in needed if need > space.whole)
            lacks = f"{format_size(need)} of {space.name}, but {format_size(space.whole)} may be used"
            remedy = f"raise the limit where the machine has more, or plan for a machine with more {space.name}"
        also = f"; nor do {format_some([repr(self.tasks[other].id) for other in others])} fit" if others else ""
        raise OversubscriptionError(f"task {task.id!r} needs {lacks}{also}; {remedy}")


def _no_need(task: Task, what: str) -> InputError:
    return InputError(f"task {task.id!r}: {what} is {getattr(task, what)!r:.60}; give 0 or more, below {_MOST}")


def _are_needs(more: object) -> bool:
    """Whether they are bytes by width."""
    if not isinstance(more, Mapping) or _strange(more.values(), Real):
        return False
    return all(0 <= need <= _MOST for need in more.values())


def _are_times(widths: npt.NDArray[Any], times_s: npt.NDArray[Any]) -> bool:
    """Whether what was given are numbers, by the types that numpy found for them."""
    return not widths.size or (widths.dtype.kind in "iu" and times_s.dtype.kind in "iuf")


def _strange(values: Iterable[object], types: type) -> type | None:
    """A type among those of the values that is none of ``types``. Truth is no number here."""
    return next((kind for kind in set(map(type, values)) if kind is bool or not issubclass(kind, types)), None)
