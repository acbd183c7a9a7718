"""The published families of planning problems, which tests and benchmarks share; made from a seed, solves nothing.

Times follow Amdahl's law, with what real programs add: a width beyond which nothing is gained, an overhead that grows
with the width, widths that cannot be used. Costs at width 1 are in seconds, memory in bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from qcthreads.planning import Task

_UNIT = 256 * 1024**2  # of memory


@dataclass(frozen=True)
class Problem:
    """Tasks for a node of so many CPUs and so much memory, disk and bandwidth (``None``: as much as they like)."""

    family: str
    cpus: int
    tasks: tuple[Task, ...]
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    bandwidth_bytes_per_s: int | None = None

    @property
    def limits(self) -> dict[str, int | None]:
        """By the names that planning has for them."""
        return {
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "bandwidth_bytes_per_s": self.bandwidth_bytes_per_s,
        }

    def bandwidth(self, task: Task, width: int) -> tuple[float, float]:
        """Seconds that the task takes at that width, no less than its bytes do, and bytes per second meanwhile."""
        moved = task.bandwidth_bytes_per_s * task.times_s[min(task.times_s)]
        time_s = task.times_s[width]
        if self.bandwidth_bytes_per_s:
            time_s = max(time_s, moved / self.bandwidth_bytes_per_s)
        return time_s, moved / time_s if time_s else 0.0


Family = Callable[[int, int, int], Problem]
"""CPUs, tasks, seed."""


def many_body(cpus: int, count: int, seed: int) -> Problem:
    """Monomers, dimers and trimers of one kind of molecule with MP2's fifth power of the size: 1, 32 and 243."""
    rng = random.Random(seed)
    orders = rng.choices((1, 2, 3), (1, 4, 10), k=count)
    return _problem("many-body", cpus, [_amdahl(order**5 * rng.uniform(0.9, 1.1), cpus, 0.6) for order in orders])


def mixed_clusters(cpus: int, count: int, seed: int) -> Problem:
    """Dimers of molecules of all sizes: costs over two orders of magnitude, a parallel share that grows with them."""
    rng = random.Random(seed)
    sizes = [rng.uniform(10, 60) for _ in range(count)]
    return _problem("mixed clusters", cpus, [_amdahl((size / 20) ** 5, cpus, min(0.98, size / 50)) for size in sizes])


def equal(cpus: int, count: int, seed: int) -> Problem:
    """All alike."""
    fraction = random.Random(seed).choice((0.57, 0.9, 0.98))
    return _problem("equal", cpus, [_amdahl(10.0, cpus, fraction)] * count)


def heavy_tail(cpus: int, count: int, seed: int) -> Problem:
    """Pareto with exponent 1.1: a few tasks have most of the work."""
    rng = random.Random(seed)
    costs = [min(rng.paretovariate(1.1), 1e4) for _ in range(count)]
    return _problem("heavy tail", cpus, [_amdahl(cost, cpus, rng.uniform(0.8, 0.99)) for cost in costs])


def saturating(cpus: int, count: int, seed: int) -> Problem:
    """Nothing is gained beyond 2 to 8 threads: the memory's bandwidth is used up."""
    rng = random.Random(seed)
    tasks = [_amdahl(rng.lognormvariate(2, 1), cpus, 0.9, most=rng.choice((2, 4, 8))) for _ in range(count)]
    return _problem("saturating", cpus, tasks)


def non_monotone(cpus: int, count: int, seed: int) -> Problem:
    """Every further thread costs something: the widest is not the fastest, and 2 threads may lose to 1."""
    rng = random.Random(seed)
    tasks = [
        _amdahl(rng.lognormvariate(2, 1), cpus, rng.uniform(0.4, 0.95), overhead=rng.uniform(0.005, 0.1))
        for _ in range(count)
    ]
    return _problem("non-monotone", cpus, tasks)


def odd_widths(cpus: int, count: int, seed: int) -> Problem:
    """Each allows widths of its own, rarely all, not always 1."""
    rng = random.Random(seed)
    tasks = []
    for _ in range(count):
        widths = rng.sample(range(1, min(cpus, 16) + 1), rng.randint(1, 4))
        whole = _amdahl(rng.lognormvariate(2, 1), cpus, rng.uniform(0.5, 0.98), widths=widths)
        tasks.append(whole)
    return _problem("odd widths", cpus, tasks)


def memory_tight(cpus: int, count: int, seed: int) -> Problem:
    """Memory for a third of what would run side by side at width 1; the large tasks need more of it."""
    rng = random.Random(seed)
    tasks = []
    for _ in range(count):
        size = rng.uniform(0.5, 2)
        tasks.append((_amdahl(10 * size**5, cpus, 0.9), round(16 * size**4) * _UNIT))
    needs = sorted((need for _, need in tasks), reverse=True)
    memory = max(needs[0], sum(needs[:cpus]) // _UNIT // 3 * _UNIT)
    return _problem("memory-tight", cpus, [times for times, _ in tasks], [need for _, need in tasks], memory)


def bimodal(cpus: int, count: int, seed: int) -> Problem:
    """Nine small ones that gain nothing from threads for each that costs a hundred times as much, and scales."""
    rng = random.Random(seed)
    tasks = []
    for _ in range(count):
        large = rng.random() < 0.1
        cost_s = (100.0 if large else 1.0) * rng.uniform(0.8, 1.25)
        tasks.append(_amdahl(cost_s, cpus, 0.97 if large else 0.1))
    return _problem("bimodal", cpus, tasks)


def one_giant(cpus: int, count: int, seed: int) -> Problem:
    """One that costs as much as a fifth of all others together."""
    rng = random.Random(seed)
    costs = [rng.uniform(1, 3) for _ in range(count - 1)]
    costs.append(max(3.0, sum(costs) / 5))
    return _problem("one giant", cpus, [_amdahl(cost, cpus, 0.95) for cost in costs])


def one_thread(cpus: int, count: int, seed: int) -> Problem:
    """A program that does not thread."""
    rng = random.Random(seed)
    return _problem("one thread", cpus, [{1: rng.lognormvariate(1, 0.7)} for _ in range(count)])


def whole_node(cpus: int, count: int, seed: int) -> Problem:
    """A tenth can only have the whole node, all others any width up to 16."""
    rng = random.Random(seed)
    tasks = []
    for _ in range(count):
        widths = [cpus] if rng.random() < 0.1 else list(range(1, min(cpus, 16) + 1))
        tasks.append(_amdahl(rng.lognormvariate(2, 1), cpus, rng.uniform(0.8, 0.99), widths=widths))
    return _problem("whole node", cpus, tasks)


def memory_bimodal(cpus: int, count: int, seed: int) -> Problem:
    """One in four needs a fifth of the memory, all others next to nothing; who needs more does not take longer."""
    rng = random.Random(seed)
    times = [_amdahl(rng.lognormvariate(2, 0.7), cpus, rng.uniform(0.5, 0.98)) for _ in range(count)]
    needs = [(20 if rng.random() < 0.25 else 1) * _UNIT for _ in range(count)]
    return _problem("memory-bimodal", cpus, times, needs, max(100, cpus) * _UNIT)


def disk_tight(cpus: int, count: int, seed: int) -> Problem:
    """Half of them need much memory, half much disk, and both grow with what they cost; either for a third of them."""
    rng = random.Random(seed)
    times, needs = [], []
    for _ in range(count):
        size = rng.uniform(0.5, 2)
        times.append(_amdahl(10 * size**5, cpus, 0.9))
        much, little = round(16 * size**4) * _UNIT, round(4 * size) * _UNIT
        needs.append((much, little) if rng.random() < 0.5 else (little, much))
    memory, disk = ([need[which] for need in needs] for which in (0, 1))
    most = [max(*of, sum(sorted(of)[-cpus:]) // _UNIT // 3 * _UNIT) for of in (memory, disk)]
    made = _problem("disk-tight", cpus, times, memory, most[0])
    tasks = (replace(task, disk_bytes=need) for task, need in zip(made.tasks, disk, strict=True))
    return replace(made, tasks=tuple(tasks), disk_bytes=most[1])


def disk_bimodal(cpus: int, count: int, seed: int) -> Problem:
    """As memory-bimodal, and one in four, whichever, needs a fifth of the disk: some both, most neither."""
    made = memory_bimodal(cpus, count, seed)
    rng = random.Random(seed + 1)
    tasks = (replace(task, disk_bytes=(20 if rng.random() < 0.25 else 1) * _UNIT) for task in made.tasks)
    return replace(made, family="disk-bimodal", tasks=tuple(tasks), disk_bytes=made.memory_bytes)


def bandwidth_bound(cpus: int, count: int, seed: int) -> Problem:
    """Half of them use the memory's bandwidth up if they run on a third of the CPUs; all others compute."""
    rng = random.Random(seed)
    made = _problem(
        "bandwidth-bound", cpus, [_amdahl(rng.lognormvariate(2, 1), cpus, rng.uniform(0.8, 0.99)) for _ in range(count)]
    )
    rates = [3e9 * rng.uniform(0.7, 1.3) if rng.random() < 0.5 else 1e7 for _ in range(count)]
    tasks = (replace(task, bandwidth_bytes_per_s=rate) for task, rate in zip(made.tasks, rates, strict=True))
    return replace(made, tasks=tuple(tasks), bandwidth_bytes_per_s=max(4, cpus) * 10**9)


def mixed_rates(cpus: int, count: int, seed: int) -> Problem:
    """A third moves nothing, a third little, a third so much that at one thread two of a few CPUs leave a quarter."""
    rng = random.Random(seed)
    widths = [1, 2, 4, 8][: min(4, cpus.bit_length())]
    made = _problem(
        "mixed rates", cpus, [_amdahl(rng.lognormvariate(1, 1), cpus, 0.9, widths=widths) for _ in range(count)]
    )
    tasks = (replace(task, bandwidth_bytes_per_s=rng.choice((0.0, 1e9, 8e9))) for task in made.tasks)
    return replace(made, tasks=tuple(tasks), bandwidth_bytes_per_s=10**10 + cpus * 5 * 10**8)


def two_widths(cpus: int, count: int, seed: int) -> Problem:
    """Two threads or two thirds of the node, nothing between; two of the wide ones never run side by side."""
    rng = random.Random(seed)
    widths = [min(2, cpus), max(1, 2 * cpus // 3)]
    times = [_amdahl(rng.lognormvariate(2, 1), cpus, rng.uniform(0.8, 0.99), widths=widths) for _ in range(count)]
    return _problem("two widths", cpus, times)


def plateaus(cpus: int, count: int, seed: int) -> Problem:
    """Faster at every fourfold width only, as where work is cut into equal blocks: all between is waste."""
    rng = random.Random(seed)
    times = []
    for _ in range(count):
        cost_s = rng.lognormvariate(2, 1)
        times.append({width: cost_s / 3 ** ((width.bit_length() - 1) // 2) for width in range(1, min(cpus, 32) + 1)})
    return _problem("plateaus", cpus, times)


def half_the_memory(cpus: int, count: int, seed: int) -> Problem:
    """A few need a little more than half of the memory, the first of them the whole; all others next to nothing."""
    rng = random.Random(seed)
    times = [_amdahl(rng.lognormvariate(2, 1), cpus, 0.95) for _ in range(count)]
    needs = [1000 * _UNIT] + [(501 if rng.random() < 0.1 else 1) * _UNIT for _ in range(count - 1)]
    return _problem("half the memory", cpus, times, needs, 1000 * _UNIT)


def moments(cpus: int, count: int, seed: int) -> Problem:
    """Half of them take no time, or less than the rounding of the others' times."""
    rng = random.Random(seed)
    costs = [rng.choice((0.0, 1e-15, rng.uniform(1, 10), rng.uniform(1, 10))) for _ in range(count)]
    return _problem("moments", cpus, [_amdahl(cost_s, cpus, 0.9) for cost_s in costs])


def rigid(cpus: int, count: int, seed: int) -> Problem:
    """Each has one width only, and all take the same time: what counts is which stand side by side."""
    rng = random.Random(seed)
    return _problem("rigid", cpus, [{rng.randint(1, cpus): 10.0} for _ in range(count)])


def all_magnitudes(cpus: int, count: int, seed: int) -> Problem:
    """From a microsecond to twelve days."""
    rng = random.Random(seed)
    costs = [10 ** rng.uniform(-6, 6) for _ in range(count)]
    return _problem("all magnitudes", cpus, [_amdahl(cost_s, cpus, rng.uniform(0.5, 0.999)) for cost_s in costs])


def perfect(cpus: int, count: int, seed: int) -> Problem:
    """No width loses anything: one after the other on all CPUs is as good as it gets."""
    rng = random.Random(seed)
    return _problem("perfect", cpus, [_amdahl(rng.uniform(5, 10), cpus, 1.0) for _ in range(count)])


def superlinear(cpus: int, count: int, seed: int) -> Problem:
    """What fits into the caches of eight CPUs is more than eight times as fast there, and gains little beyond."""
    rng = random.Random(seed)
    times = []
    for _ in range(count):
        whole = _amdahl(rng.lognormvariate(2, 1), cpus, 0.97)
        times.append({width: time_s * (0.6 if width >= 8 else 1.0) for width, time_s in whole.items()})
    return _problem("superlinear", cpus, times)


# Goals are for these.
FAMILIES: tuple[Family, ...] = (
    many_body, mixed_clusters, equal, heavy_tail, saturating, non_monotone, odd_widths,
    bimodal, one_giant, one_thread, whole_node, memory_tight, memory_bimodal,
)  # fmt: skip
MEMORY_TIGHT = (memory_tight, memory_bimodal)
UNUSUAL: tuple[Family, ...] = (
    two_widths, plateaus, half_the_memory, disk_tight, disk_bimodal, bandwidth_bound, mixed_rates, moments, rigid,
    all_magnitudes, perfect, superlinear,
)  # fmt: skip


def _amdahl(
    cost_s: float,
    cpus: int,
    fraction: float,
    *,
    most: int | None = None,
    overhead: float = 0.0,
    widths: list[int] | None = None,
) -> dict[int, float]:
    """Seconds by width: Amdahl's law, constant beyond ``most``, plus ``overhead`` of the cost per further thread."""
    if widths is None:
        widths = [1 << power for power in range(cpus.bit_length()) if 1 << power <= cpus]
    useful = {width: min(width, most or width) for width in widths}
    return {
        width: cost_s * (1 - fraction + fraction / useful[width] + overhead * (width - 1)) for width in sorted(widths)
    }


def _problem(
    family: str,
    cpus: int,
    times: list[dict[int, float]],
    needs: list[int] | None = None,
    memory_bytes: int | None = None,
) -> Problem:
    needs = needs or [0] * len(times)
    tasks = [Task(f"f{number}", *entry) for number, entry in enumerate(zip(times, needs, strict=True))]
    return Problem(family, cpus, tuple(tasks), memory_bytes)
