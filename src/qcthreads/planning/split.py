"""Workers x threads for a batch whose times are not known, with the reasons in words; never more than may be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapreplace

from ..errors import InputError, OversubscriptionError
from ..units import format_count, format_size, format_split, smaller_split
from .cost import assumed_speedup
from .model import Split

# A wider split must beat the narrower by this factor: the speedup is an assumption, and further threads of a small
# fragment bring nothing (PySCF MP2/DZ, 4 waters, 2 cores: 1 x 2 took 5.4-5.9 s, 2 x 1 3.0-3.2 s).
_WORTH_WIDENING = 1.10
_NOTHING = 1e-3


def choose_split(
    n_tasks: int,
    costs: Sequence[float],
    usable: int,
    memory_bytes: int,
    memory_per_task_bytes: int = 0,
    *,
    workers: int | None = None,
    threads: int | None = None,
    max_total_threads: int | None = None,
    max_workers: int | None = None,
    max_workers_why: str = "",
    useful_width: int | None = None,
    memory_per_process_bytes: int = 0,
    memory_per_worker_bytes: int = 0,
    memory_why: str = "as asked",
    explain: str | None = None,
) -> Split:
    """Divide the usable PUs into workers of one width.

    Parameters
    ----------
    n_tasks
        Calculations to be run.
    costs
        Their relative costs at width 1; an empty sequence: all alike.
    usable
        PUs that may be used.
    memory_bytes, memory_per_task_bytes, memory_per_process_bytes
        Memory for all workers together, what one calculation needs at least, 0: not known; and how much more for each
        thread but the first, where these are processes.
    workers, threads
        What the user asks for explicitly: kept, or refused.
    max_total_threads, max_workers
        Ceilings: fewer are used where there is less.
    max_workers_why
        What keeps it to so many workers, where nobody asked for that number.
    useful_width
        Beyond this width the program gets no faster; 1: it does not thread.
    memory_per_worker_bytes, memory_why
        What each worker is to have, and who says so; 0: its share of ``memory_bytes``.
    explain
        One clause that says what may be used and why, for messages: ``"2 CPUs may be used: mask 0-1"``.

    Raises
    ------
    OversubscriptionError
        When what is asked for explicitly, or the memory of one calculation, does not fit.
    InputError
        For numbers below 1, or an explicit number above its own ceiling.
    """
    _check(workers=workers, threads=threads, max_total_threads=max_total_threads, max_workers=max_workers)
    if n_tasks < 0 or usable < 1 or (costs and len(costs) != n_tasks):
        raise InputError(
            f"{n_tasks} calculations with {len(costs)} costs on {usable} CPUs: nothing can be divided like that"
        )
    if workers is not None and max_workers is not None and workers > max_workers:
        why = max_workers_why or f"max_workers is {max_workers}; give one of the two"
        raise InputError(f"{workers} workers were asked for, but {why}")
    explain = explain or f"{format_count(usable, 'CPU')} may be used"
    reasons: list[str] = []
    cpus = usable
    if max_total_threads is not None:
        cpus = min(usable, max_total_threads)
        if usable < max_total_threads:
            reasons.append(f"fewer than max_total_threads={max_total_threads}: {explain}")
        elif max_total_threads < usable:
            explain = f"max_total_threads allows {max_total_threads} of {usable} CPUs"
            reasons.append(explain)
    if useful_width == 1 and threads not in (None, 1):
        reasons.append(f"the program does not thread: 1 thread each, not {threads}")
        threads = 1
    if (workers or 1) * (threads or 1) > cpus:
        raise oversubscription(workers or 1, threads or 1, cpus, explain)
    narrow_bytes = memory_per_task_bytes + ((threads or 1) - 1) * memory_per_process_bytes
    by_memory = _workers_by_memory(workers, memory_bytes, narrow_bytes)
    ceiling = min(cpus, max(n_tasks, 1), max_workers or cpus, by_memory or cpus)

    def widest(workers: int) -> int:
        width = min(cpus // workers, useful_width or cpus)
        if memory_bytes and memory_per_process_bytes:
            spare_bytes = memory_bytes // workers - memory_per_task_bytes
            width = min(width, 1 + spare_bytes // memory_per_process_bytes)
        return width

    if workers is None and threads is None:
        chosen_workers, chosen_threads = _sweep(costs or [1.0] * max(n_tasks, 1), ceiling, widest)
        reasons += _why(n_tasks, cpus, ceiling, chosen_workers, chosen_threads)
    else:
        chosen_workers = workers or min(ceiling, cpus // (threads or 1))
        chosen_threads = threads or widest(chosen_workers)
        asked = [format_count(count, what) for count, what in ((workers, "worker"), (threads, "thread")) if count]
        reasons.append(f"as asked: {' x '.join(asked)}")
    short_of_memory = by_memory is not None and chosen_workers == by_memory < min(n_tasks, cpus)
    if short_of_memory:
        reasons.append(f"memory for {by_memory} at a time: each needs up to {format_size(narrow_bytes)}")
    if max_workers is not None and chosen_workers < max_workers and not short_of_memory and not max_workers_why:
        few = f"there are {format_count(n_tasks, 'calculation')}" if chosen_workers == n_tasks else explain
        reasons.append(f"fewer than max_workers={max_workers}: {few}")
    elif max_workers is not None and max_workers < min(n_tasks, cpus):
        reasons.append(max_workers_why or f"max_workers={max_workers}")
    if useful_width is not None and chosen_threads == useful_width < cpus // chosen_workers:
        reasons.append(f"the program gets no faster beyond {format_count(useful_width, 'thread')}")
    spare = cpus - chosen_workers * chosen_threads
    if spare:
        reasons.append(f"{format_count(spare, 'PU')} left over")
    split = format_split(chosen_workers, chosen_threads)
    headline = f"{format_count(usable, 'PU')}, {format_count(n_tasks, 'calculation')}: {split}"
    share = memory_per_worker_bytes or memory_bytes // chosen_workers
    if memory_per_worker_bytes:
        reasons.append(f"{format_size(share)} for each worker, {memory_why}")
    elif memory_bytes and chosen_workers > 1:
        reasons.append(f"{format_size(memory_bytes)} for all: {format_size(share)} for each worker")
    elif memory_bytes:
        reasons.append(f"{format_size(share)} for the worker")
    return Split(chosen_workers, chosen_threads, share, (headline, *reasons))


def makespan(times_s: Sequence[float], workers: int) -> float:
    """When the last of ``workers`` ends under the LPT rule."""
    ends = [0.0] * workers
    for time_s in sorted(times_s, reverse=True):
        heapreplace(ends, ends[0] + time_s)
    return max(ends)


def oversubscription(workers: int, threads: int, cpus: int, explain: str) -> OversubscriptionError:
    """The refusal of ``workers x threads`` on ``cpus``, with what to ask for instead."""
    asked = f"{format_split(workers, threads)} = {workers * threads} threads"
    return OversubscriptionError(f"{asked}, but {explain}; {smaller_split(workers, threads, cpus)}")


def _check(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; ask for 1 at least")


def _workers_by_memory(workers: int | None, memory_bytes: int, need_bytes: int) -> int | None:
    """Calculations that fit into the memory side by side; ``None`` when nothing is known."""
    if not memory_bytes or not need_bytes:
        return None
    fit = memory_bytes // need_bytes
    if fit < (workers or 1):
        all_need = format_size((workers or 1) * need_bytes)
        many = f"{format_count(workers or 1, 'worker')} x {format_size(need_bytes)} = {all_need}"
        advice = "allow more memory, or use a machine that has it"
        if fit:
            advice = f"ask for at most {format_count(fit, 'worker')}"
        raise OversubscriptionError(f"{many}, but {format_size(memory_bytes)} may be used; {advice}")
    return fit


def _sweep(costs: Sequence[float], ceiling: int, widest: Callable[[int], int]) -> tuple[int, int]:
    """The narrowest split that no wider one beats clearly, under the assumed speedup. ``widest``: by workers."""
    splits: dict[int, int] = {}
    for workers in range(ceiling, 0, -1):
        splits.setdefault(widest(workers), workers)  # at the same width more workers are better
    narrowest = min(splits)
    total, longest = sum(costs), max(costs)

    def ends(workers: int) -> float:
        # So many that the longest is nothing: they pack to within it of the perfect.
        return total / workers if longest * workers < _NOTHING * total else makespan(costs, workers)

    best, best_s = (splits[narrowest], narrowest), ends(splits[narrowest]) / assumed_speedup(narrowest)
    for width, workers in sorted(splits.items()):
        speedup = assumed_speedup(width)
        if max(longest, total / workers) / speedup * _WORTH_WIDENING < best_s:
            ends_s = ends(workers) / speedup
            if ends_s * _WORTH_WIDENING < best_s:
                best, best_s = (workers, width), ends_s
    return best


def _why(n_tasks: int, cpus: int, ceiling: int, workers: int, threads: int) -> list[str]:
    if threads == 1:
        enough = workers == cpus > 1
        return (
            ["there are calculations for every PU, and small ones gain little from a second thread"] if enough else []
        )
    if workers == n_tasks:
        return ["fewer calculations than PUs: each gets several threads"]
    return ["wider workers end the longest calculations sooner"] if workers < ceiling else []
