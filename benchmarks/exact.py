"""Planning problems for OR-tools' CP-SAT, which proves optima of small ones; independent of our planner."""

from __future__ import annotations

import math

from families import Problem
from ortools.sat.python import cp_model

_STEPS = 100_000  # CP-SAT counts in whole numbers: so many for the longest of the shortest times
_PARTS = 1_000_000  # of the bandwidth; what each task has of it is rounded down


def best_known_s(problem: Problem, limit_s: float, hint_s: float | None = None) -> tuple[float, bool]:
    """The shortest makespan that CP-SAT finds within ``limit_s``, and whether it proved that there is none shorter.

    ``hint_s``: a makespan that is known to be possible, so that longer ones need not be looked at; infinite is what is
    found where CP-SAT finds none within it.
    """
    shortest = [
        min(problem.bandwidth(task, width)[0] for width in task.times_s if width <= problem.cpus)
        for task in problem.tasks
    ]
    scale = _STEPS / max(shortest)
    model = cp_model.CpModel()
    horizon_s = sum(shortest) if hint_s is None else min(hint_s, sum(shortest))
    horizon = round(horizon_s * scale) + len(problem.tasks)
    makespan = model.new_int_var(0, horizon, "makespan")
    intervals, widths, memories, disks, rates, lengths = [], [], [], [], [], []
    for task in problem.tasks:
        start = model.new_int_var(0, horizon, "")
        chosen = []
        for width in task.times_s:
            if width > problem.cpus:
                continue
            used = model.new_bool_var("")
            time_s, rate = problem.bandwidth(task, width)
            length = round(time_s * scale)
            intervals.append(model.new_optional_fixed_size_interval_var(start, length, used, ""))
            widths.append(width)
            lengths.append(length * used)
            memories.append(task.memory_bytes)
            disks.append(task.disk_bytes)
            rates.append(int(rate / problem.bandwidth_bytes_per_s * _PARTS) if problem.bandwidth_bytes_per_s else 0)
            chosen.append(used)
            model.add(start + length <= makespan).only_enforce_if(used)
        model.add_exactly_one(chosen)
    _limit(model, makespan, intervals, lengths, widths, problem.cpus)
    for bytes_, whole in ((memories, problem.memory_bytes), (disks, problem.disk_bytes)):
        if whole is not None:
            unit = math.gcd(whole, *bytes_)
            _limit(model, makespan, intervals, lengths, [need // unit for need in bytes_], whole // unit)
    if any(rates):
        _limit(model, makespan, intervals, lengths, rates, _PARTS)
    model.minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.num_workers = 2
    solver.parameters.random_seed = 0
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return float("inf"), False
    return solver.objective_value / scale, status == cp_model.OPTIMAL


def _limit(
    model: cp_model.CpModel,
    makespan: cp_model.IntVar,
    intervals: list[cp_model.IntervalVar],
    lengths: list[cp_model.LinearExpr],
    needs: list[int],
    capacity: int,
) -> None:
    """Never more than there is; the second, which the first implies, is what CP-SAT proves bounds with."""
    model.add_cumulative(intervals, needs, capacity)
    model.add(sum(need * length for need, length in zip(needs, lengths, strict=True)) <= capacity * makespan)
