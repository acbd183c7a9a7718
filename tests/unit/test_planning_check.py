"""What is said of wrong plans, and of strategies of other packages that cannot be used: a package that is made here."""

from __future__ import annotations

import math
import random
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from families import bimodal, disk_tight, memory_tight, odd_widths
from test_planning import check

from qcthreads.cli import main
from qcthreads.cpuset import CpuSet
from qcthreads.errors import InputError
from qcthreads.planning import Placement, Plan, Task, plan, strategy_names
from qcthreads.planning.batch import Batch
from qcthreads.planning.check import fault_of
from qcthreads.planning.model import capacity_of

TASKS = [Task("a", {1: 10.0, 2: 6.0}, 80, 4.0), Task("b", {1: 10.0}, 80, 4.0, disk_bytes=3)]
LIMITS: dict[str, Any] = {"memory_bytes": 150, "bandwidth_bytes_per_s": 7.0, "disk_bytes": 3}
ALL_OF = "def place(tasks, machine, usable, *, width=None, **limits):\n    "
PROPOSE = "from qcthreads.planning import Proposal\n    return Proposal("


def placed(number: int, start_s: float, end_s: float, cpus: str, threads: int = 1) -> Placement:
    return Placement(TASKS[number].id, start_s, end_s, threads, CpuSet.parse(cpus))


def fault(placements: list[Any], **limits: Any) -> str:
    usable = CpuSet(range(4))
    return fault_of(placements, Batch(TASKS, capacity_of(usable, **limits)), usable)


A, B = placed(0, 0.0, 10.0, "0"), placed(1, 0.0, 10.0, "1")


@pytest.mark.parametrize(
    ("placements", "limits", "said"),
    [
        ([A], {}, "'b' of 2 tasks not placed"),
        ([A, B, B], {}, "task 'b' is placed 2 times"),
        ([A, B, A._replace(id="c")], {}, "task 'c' is placed, but was not given"),
        ([A, "b"], {}, "'b' is among the placements"),
        ([A, placed(1, 0.0, 10.0, "1-3", 3)], {}, "task 'b' has 3 threads; it may have 1"),
        ([A, placed(1, 0.0, 10.0, "1-2")], {}, "task 'b' has the CPUs 1-2 for 1 thread"),
        ([A, placed(1, 0.0, 10.0, "999")], {}, "task 'b' has the CPUs 999, of which none may be used; those are 0-3"),
        ([A, placed(1, 0.0, 0.001, "1")], {}, "task 'b' runs for 0.001 s; with 1 thread it takes 10 s"),
        ([placed(0, 0.0, 10.0, "0-1", 2), B], {}, "task 'a' runs for 10 s; with 2 threads it takes 6 s"),
        ([A, placed(1, -1.0, 9.0, "1")], {}, "task 'b' runs from -1.0 s to 9.0 s"),
        ([A, placed(1, float("nan"), 10.0, "1")], {}, "task 'b' runs from nan s to 10.0 s"),
        ([A, placed(1, 9.9, 19.9, "0")], {}, "task 'b' has the CPUs 0 at 9.9 s, which another has then"),
        ([A, B], {"memory_bytes": 150}, "task 'b' makes it 160 of bytes of memory at 0 s, of 150 that there are"),
        ([A, B], {"bandwidth_bytes_per_s": 7.0}, "task 'b' makes it 8 of bytes per second at 0 s, of 7"),
        ([A, B], {"memory_bytes": 160, "disk_bytes": 3}, ""),
        ([A, placed(1, 10.0, 20.0, "0")], LIMITS, ""),
    ],
)
def test_what_is_wrong_with_a_plan_is_said_of_the_task(placements: list[Any], limits: Any, said: str) -> None:
    found = fault(placements, **limits)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_a_shared_disk_is_not_filled_twice() -> None:
    tasks = [replace(task, disk_bytes=2) for task in TASKS]
    usable = CpuSet(range(4))
    found = fault_of([A, B], Batch(tasks, capacity_of(usable, disk_bytes=3)), usable)
    assert found == "task 'b' makes it 4 of bytes of disk at 0 s, of 3 that there are"


def test_less_than_rounding_leaves_of_the_makespan_may_take_no_time() -> None:
    tasks, usable = [Task("long", {1: 1.0}), Task("moment", {1: 1e-15})], CpuSet([0])
    placements = [Placement("moment", 0.0, 0.0, 1, usable), Placement("long", 0.0, 1.0, 1, usable)]
    assert not fault_of(placements, Batch(tasks, capacity_of(usable)), usable)


@pytest.mark.parametrize("family", [bimodal, odd_widths, memory_tight, disk_tight])
@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_the_check_of_the_property_tests(family: Any, seed: int) -> None:
    """Of plans in which one task was moved, to another time or to other CPUs as well."""
    problem = family(8, 12, seed)
    tasks = [
        replace(task, times_s={width: whole(time_s) for width, time_s in task.times_s.items()})
        for task in problem.tasks
    ]
    usable, limits = CpuSet(range(8)), {name: one for name, one in problem.limits.items() if one}
    made = plan(tasks, 8, "adaptive", **limits)
    batch = Batch(tasks, capacity_of(usable, **limits))
    rng = random.Random(seed)
    assert not fault_of(made.placements, batch, usable)
    for moved, one in enumerate(made.placements):
        start_s = rng.choice(made.placements).start_s
        cpus = one.cpus if rng.random() < 0.5 else CpuSet(rng.sample(range(8), one.threads))
        other = one._replace(start_s=start_s, end_s=start_s + one.end_s - one.start_s, cpus=cpus)
        placements = (*made.placements[:moved], other, *made.placements[moved + 1 :])
        changed = replace(made, placements=placements, lower_bound_s=0.0)
        assert bool(fault_of(placements, batch, usable)) == fails(changed, tasks, usable, **limits)


def whole(time_s: float) -> float:
    """So many sixty-fourths of a second, which add up without rounding."""
    return math.ceil(64 * time_s) / 64


def fails(
    made: Plan, tasks: list[Task], usable: CpuSet, memory_bytes: float = math.inf, disk_bytes: float = math.inf
) -> bool:
    try:
        check(made, tasks, usable, memory_bytes, disk_bytes=disk_bytes)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ALL_OF + "return None", r"wrong plan: it answered None, which is no qcthreads.planning.Proposal"),
        (ALL_OF + "return tasks[99]", r"failed \(IndexError: .*"),
        (ALL_OF + PROPOSE + "())", "wrong plan: 'a', 'b' of 2 tasks not"),
        (ALL_OF + PROPOSE + "7)", r"failed \(TypeError: .*"),
        ("import no_such_module_at_all", r"cannot be loaded \(ModuleNotFoundError: .*no_such_module_at_all"),
        ("place = 7", "is a int, and no function"),
    ],
)
def test_a_strategy_of_another_package_that_errs_is_named(others_strategy: Path, text: str, said: str) -> None:
    others_strategy.write_text(text)
    whose = rf"the strategy 'of_theirs' \({others_strategy.stem}:place of the package theirs-of-strategies\) "
    with pytest.raises(InputError, match=whose + rf"(made a )?{said}"):
        plan(TASKS, 4, "of-theirs")


@pytest.mark.usefixtures("others_strategy")
def test_the_example_in_contributing_is_a_strategy_like_ours(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Add a strategy")[2].partition("\n## ")[0]
    (module,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (registered,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    ((name, value),) = tomllib.loads(registered)["project"]["entry-points"]["qcthreads.strategies"].items()
    (tmp_path / f"{value.partition(':')[0]}.py").write_text(module)
    (tmp_path / "theirs-1.dist-info" / "entry_points.txt").write_text(f"[qcthreads.strategies]\n{name} = {value}\n")
    made = plan(TASKS, 4, name)
    assert [(one.id, one.start_s, one.end_s, str(one.cpus)) for one in made.placements] == [
        ("a", 0.0, 6.0, "0-1"),
        ("b", 6.0, 16.0, "0"),
    ]
    wide = replace(TASKS[0], memory_more_bytes={2: 100})  # two threads need more memory than there is
    assert [one.end_s for one in plan([wide, TASKS[1]], 4, name, **LIMITS).placements] == [10.0, 20.0]
    with pytest.raises(InputError, match="one-by-one gives each task a width of its own"):
        plan(TASKS, 4, name, width=1)


def test_a_strategy_that_cannot_be_loaded_is_named_by_doctor(
    others_strategy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert others_strategy.exists()
    assert main(["doctor"]) == 0
    said = (
        f"the strategy 'absent' ({others_strategy.stem}:nothing of the package theirs-of-strategies) cannot be loaded"
    )
    shown = capsys.readouterr().out
    assert f"strategies: {said} (AttributeError: " in shown
    assert "'of_theirs'" not in shown


@pytest.mark.usefixtures("others_strategy")
def test_no_other_package_takes_a_name_of_ours() -> None:
    """Not even unseen: theirs, which gives one task at a time all CPUs, is registered as Adaptive and memory-aware."""
    narrow = [Task(name, {1: 1.0, 4: 1.0}) for name in "abcd"]
    assert plan(narrow, 4, "of-theirs").makespan_s == 4.0
    for name in ("adaptive", "memory_aware", "memory-aware", "auto"):
        assert plan(narrow, 4, name).makespan_s == 1.0
    assert strategy_names() == ("absent", "adaptive", "auto", "balanced", "memory_aware", "of_theirs")


def test_one_that_plans_well_is_followed_and_one_that_is_not_there_is_told(
    others_strategy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others_strategy.write_text("from qcthreads.planning.strategies.adaptive import adaptive as place\n")
    assert plan(TASKS, 4, "of_theirs", **LIMITS).placements == plan(TASKS, 4, "adaptive", **LIMITS).placements
    with pytest.raises(InputError, match="asked of the strategy adaptive, which gives"):
        plan(TASKS, 4, "of_theirs", width=1)  # its own refusal
    tasks = tmp_path / "tasks.json"
    tasks.write_text('{"cpus": 2, "tasks": [{"id": "a", "times_s": {"1": 1.0}}]}')
    assert main(["plan", str(tasks), "--strategy", "absent"]) == 2
    assert "the strategy 'absent'" in capsys.readouterr().err
