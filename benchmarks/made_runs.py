"""Records of runs that nobody made, of any size: calculations packed onto CPUs as an engine would pack them.

Tests and benchmarks share it; the same arguments give the same record.
"""

from __future__ import annotations

import heapq
import random

from qcthreads.cpuset import CpuSet
from qcthreads.machine import Machine
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.monitoring.record import Calculated, RunRecord
from qcthreads.monitoring.statistics import Finding, Moment, UsablePUs

GIB = 2**30


def made_run(calculations: int, *, width: int = 2, machine: Machine | None = None, title: str = "made up") -> RunRecord:
    """So many calculations of ``width`` threads, one after another on every ``width`` CPUs; some wait, some fail."""
    machine = machine or synthetic_machine(packages=2, llcs=2, cores=4)
    chance = random.Random(7)
    cpus = list(machine.cpus_online)
    places = [(0.0, at, CpuSet(cpus[at : at + width])) for at in range(0, len(cpus) - width + 1, width)]
    heapq.heapify(places)
    made = []
    for number in range(calculations):
        start_s, at, place = heapq.heappop(places)
        one = _made(number, start_s + 0.02, 5000 + at, place, chance)
        made.append(one)
        heapq.heappush(places, (one.end_s, at, place))
    wall_s = max(one.end_s for one in made) + 0.5
    return RunRecord(
        title=title,
        began_at=1_790_000_000.0,
        wall_s=wall_s,
        machine=machine,
        usable=machine.allowed_cpus,
        pus_usable=UsablePUs(((0.0, len(machine.allowed_cpus)),)),
        limits=(f"affinity mask: CPUs {machine.allowed_cpus}", "cgroup memory.max: 32 GiB"),
        decision={"strategy": "balanced", "workers": len(places), "threads_per_worker": width, "reasons": ["as asked"]},
        statistics={"wall_s": wall_s, "peak_memory_bytes": 3 * GIB, "thread_efficiency": 0.83, "lease_wait_s": None},
        calculations=tuple(sorted(made, key=lambda one: one.start_s)),
        moments=_moments(made, wall_s, chance),
        findings=(Finding(kind="contended", message="worker 3 (process 5004) waited for a CPU 31% of the time"),),
    )


def _made(number: int, start_s: float, pid: int, place: CpuSet, chance: random.Random) -> Calculated:
    bodies = 1 if number % 10 == 0 else 2
    threads = len(place)
    wall_s = (0.6 if bodies == 1 else 2.0) * chance.lognormvariate(0, 0.25)
    efficiency, queue = chance.choice([(0.97, 0.0), (0.93, 0.01), (0.82, 0.04), (0.6, 0.3), (0.4, 0.05), (0.2, 0.0)])
    failed = number % 97 == 13
    return Calculated(
        label=f'["hf", [{number + 1}], [{number + 1}]]' if bodies == 1 else f"{number + 1}+{number + 2}",
        group=str(bodies),
        attempt=1,
        status="failed" if failed else "finished",
        error="SCF did not converge in 50 iterations" if failed else "",
        pid=pid,
        threads=threads,
        threads_working=threads if efficiency > 0.3 else 1,
        cpus=place,
        cpus_seen=place,
        start_s=start_s,
        end_s=start_s + wall_s,
        waited_s=0.015,
        cpu_s=efficiency * threads * wall_s,
        run_queue_s=queue * threads * wall_s,
        memory_granted_bytes=2 * GIB,
        memory_peak_bytes=round(chance.uniform(0.2, 1.6) * GIB),
        planned_start_s=start_s,
        planned_end_s=start_s + (0.6 if bodies == 1 else 2.0),
    )


def _moments(made: list[Calculated], wall_s: float, chance: random.Random) -> tuple[Moment, ...]:
    peaks = [one.memory_peak_bytes for one in made[:64]]
    return tuple(
        Moment(
            at_s=min(wall_s, second + 1.0),
            cpus_busy=11 + 3 * chance.random(),
            cpus_waited_for=2 * chance.random() ** 4,
            memory_bytes=sum(chance.sample(peaks, min(8, len(peaks)))),
        )
        for second in range(int(wall_s) + 1)
    )
