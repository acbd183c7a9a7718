"""The engine with a dispatcher or a list for its source: real workers, leases and limits that change."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from control_groups import limited

from qcthreads.cpuset import CpuSet
from qcthreads.errors import LeaseError, StopRequestedError
from qcthreads.execution import engine as engine_module
from qcthreads.execution.calculation import Calculation, Outcome
from qcthreads.execution.engine import LocalEngine
from qcthreads.execution.observing import Observer
from qcthreads.execution.source import NO_STARTS, Dispatched, InOrder, Starts
from qcthreads.execution.supervisor import Worker
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.leases import Lease, LeaseBook
from qcthreads.planning import Task
from qcthreads.planning.correction import Known
from qcthreads.planning.dispatch import Dispatcher

TASKS = """
    import os, time
    from pathlib import Path

    def look(input):
        held = b"x" * input["bytes"] if os.path.exists(input.get("hold", "")) else b""
        time.sleep(input["s"])
        return {"threads": os.environ["OMP_NUM_THREADS"], "mask": sorted(os.sched_getaffinity(0)), "pid": os.getpid()}

    def linger(input):
        hold, first = Path(input["hold"]), sorted(os.sched_getaffinity(0))
        (hold / f"began {first}").touch()
        if not (hold / "moved").exists():
            until(hold / "began [0]")
            until(hold / "began [1]")
            if first == [1]:
                Path(input["limit"]).write_text("0")
            until(hold / ("moved" if first == [1] else "shares"))
            if first == [1]:
                moved = sorted(os.sched_getaffinity(0))
                Path(input["limit"]).write_text("0-1")
                until(hold / "beside")
                return {"mask": moved, "back": sorted(os.sched_getaffinity(0))}
        elif first == [0]:
            (hold / "beside").touch()
        return {"mask": sorted(os.sched_getaffinity(0))}

    def lose(input):
        hold, (first,) = Path(input["hold"]), os.sched_getaffinity(0)
        if not (hold / "moved").exists():
            Path(input["limit"]).write_text(str(1 - first))
            until(hold / "moved")
            raise ValueError("at first")
        return {"mask": [first]}

    def until(there):
        deadline = time.time() + 60
        while not there.exists() and time.time() < deadline:
            time.sleep(0.02)

    def fail(input):
        raise ValueError("not this one")

    def leave(input):
        os._exit(3)

    def fill(input):
        return {"last": bytearray(b"x") * input["bytes"] and 1}
"""
CPUSET = Path(f"/sys/fs/cgroup/cpuset/qcthreads-test-{os.getpid()}")
MEMORY = Path(f"/sys/fs/cgroup/memory/qcthreads-changing-{os.getpid()}")
MIB = 2**20

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="masks are read in the workers"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two widths need two PUs"),
]


@pytest.fixture(autouse=True)
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "module"
    folder.mkdir()
    (folder / "tasks.py").write_text(textwrap.dedent(TASKS))
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def book() -> LeaseBook:
    return LeaseBook(read_machine(), read_limits(), cpus=CpuSet(list(read_limits().cpus)[:2]))


@pytest.fixture
def engine(book: LeaseBook) -> Iterator[LocalEngine]:
    with LocalEngine(book) as engine:
        yield engine
    assert book.held() == ()


class Counting(Dispatched):
    """Counts what follows another."""

    followed = 0

    def following(self, calculation: Calculation, within_s: float) -> Calculation | None:
        found = super().following(calculation, within_s)
        self.followed += found is not None
        return found


def source_of(
    tasks: Sequence[Task],
    book: LeaseBook,
    sleep_s: float = 0.0,
    fails: Sequence[str] = (),
    *,
    known: Known = "sizes",
    function: str = "fail",
    hold: str = "",
    compute: str = "tasks:look",
    limit: str = "",
) -> Counting:
    """``function``: what those in ``fails`` call. ``hold``: as soon as there is such a file, each uses the memory that
    it needs, its worker included.
    """
    needs = {task.id: task.memory_bytes for task in tasks}

    def made(label: str, threads: int, memory_bytes: int) -> Calculation:
        return Calculation(
            label=label,
            program="none",
            input={"s": sleep_s, "bytes": needs[label] * 7 // 8, "hold": hold, "limit": limit},
            threads=threads,
            memory_bytes=memory_bytes,
            compute=f"tasks:{function}" if label in fails else compute,
            timeout_s=60,
        )

    dispatcher = Dispatcher(tasks, book.machine.cpus_online, known=known, memory_bytes=book.memory_bytes)
    return Counting(dispatcher, [made(task.id, min(task.times_s), task.memory_bytes) for task in tasks], made)


def list_of(tasks: Sequence[Task], book: LeaseBook, **options: Any) -> Sequence[Calculation]:
    """The same as they need least, in the order given."""
    return source_of(tasks, book, **options).calculations()


SOURCES = {"dispatched": source_of, "list": list_of}


def is_worker(process: psutil.Process) -> bool:
    """A worker that has not ended meanwhile."""
    try:
        return "qcthreads.execution.worker" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def never_on_one_pu(outcomes: Sequence[Outcome]) -> None:
    for one, other in itertools.combinations(outcomes, 2):
        if (
            one.started_at < other.started_at + other.wall_s - 0.01
            and other.started_at < one.started_at + one.wall_s - 0.01
        ):
            assert one.cpus.isdisjoint(other.cpus)


def test_a_large_calculation_is_really_given_two_threads_and_small_ones_one(
    engine: LocalEngine, book: LeaseBook
) -> None:
    small = [Task(f"s{number}", {1: 1.0, 2: 0.9}) for number in range(6)]
    source = source_of([*small, Task("large", {1: 100.0, 2: 55.0})], book, sleep_s=0.05)
    outcomes = {outcome.label: outcome for outcome in engine.run(source)}
    assert len(outcomes) == 7
    for outcome in outcomes.values():
        assert outcome.result is not None
        assert outcome.result["threads"] == str(outcome.threads) == str(len(outcome.cpus))
        assert CpuSet(outcome.result["mask"]) == outcome.cpus == outcome.bound
    assert outcomes["large"].threads == 2
    assert min(outcomes.values(), key=lambda one: one.started_at).label == "large"
    assert source.widths[2] >= 1
    assert source.planned.keys() == outcomes.keys()
    never_on_one_pu(list(outcomes.values()))


def test_what_really_took_more_memory_than_it_was_granted_raises_what_is_granted_to_the_next(
    engine: LocalEngine, book: LeaseBook
) -> None:
    told_bytes, taken_bytes = 2**20, 100 * 2**20
    tasks = [Task(f"f{number}", {1: 1.0}, told_bytes, memory_measured=True) for number in range(5)]

    def made(label: str, threads: int, memory_bytes: int) -> Calculation:
        return Calculation(
            label=label,
            program="none",
            input={"bytes": taken_bytes},
            threads=threads,
            compute="tasks:fill",
            memory_bytes=memory_bytes,
            timeout_s=60,
        )

    dispatcher = Dispatcher(tasks, book.machine.cpus_online, memory_bytes=2**30)
    granted: list[int] = []

    def noted(label: str, threads: int, memory_bytes: int) -> Calculation:
        granted.append(memory_bytes)
        return made(label, threads, memory_bytes)

    source = Dispatched(dispatcher, [made(task.id, 1, told_bytes) for task in tasks], noted)
    outcomes = list(engine.run(source))
    assert [outcome.status for outcome in outcomes] == ["finished"] * 5
    assert granted[:2] == [told_bytes] * 2
    assert all(taken_bytes < one < 2 * taken_bytes for one in granted[2:]), granted


def test_a_worker_that_is_starting_is_waited_for_and_no_other_started(tasks: Path, book: LeaseBook) -> None:
    """It imports what it needs only when all that others can compute has ended."""
    gate = tasks / "gate"
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(gate)!r}).exists():\n    time.sleep(0.01)\n"
    (tasks / "slow.py").write_text(f"{wait}from tasks import look\n")
    started: list[int] = []

    class Counting(Observer):
        def starts(self, worker: Worker) -> None:
            started.append(worker.pid)

    def made(label: str, threads: int, memory_bytes: int) -> Calculation:
        return Calculation(
            label=label,
            program=label[:4],
            input={"s": 0},
            threads=threads,
            memory_bytes=memory_bytes,
            compute="slow:look" if label == "slow" else "tasks:look",
            timeout_s=60,
        )

    given = [Task(label, {1: 0.001}, kind=label[:4]) for label in ("slow", "fast1", "fast2", "fast3")]
    with LocalEngine(book, observer=Counting()) as engine:
        engine.warm(made("slow", 1, 0), 1)
        dispatcher = Dispatcher(
            given, book.machine.cpus_online, start_up_s=60.0, worker_of=lambda *kind: kind, workers=engine.workers()
        )
        source = Dispatched(dispatcher, [made(task.id, 1, 0) for task in given], made)
        pids: dict[str, object] = {}
        for outcome in engine.run(source):
            assert outcome.result is not None
            pids[outcome.label] = outcome.result["pid"]
            if len(pids) == 3:
                gate.touch()
    assert list(pids) == ["fast1", "fast2", "fast3", "slow"]
    assert set(pids.values()) == set(started)
    assert len(started) == 2


def test_what_a_start_took_is_told_of_each_kind_by_itself(tasks: Path, engine: LocalEngine, book: LeaseBook) -> None:
    (tasks / "slow.py").write_text("import time\ntime.sleep(0.5)\nfrom tasks import look\n")
    seen: list[dict[tuple[str, int], float]] = []

    class Noting(InOrder):
        def next(self, free: CpuSet, memory_bytes: int, starts: Starts = NO_STARTS) -> Calculation | None:
            seen.append(dict(starts.took_s))
            return super().next(free, memory_bytes, starts)

    given = [
        Calculation(label=label, program=label[:4], input={"s": 0}, threads=1, compute=f"{module}:look")
        for label, module in [("fast1", "tasks"), ("slow1", "slow"), ("fast2", "tasks"), ("slow2", "slow")]
    ]
    pids: dict[str, set[object]] = {"fast": set(), "slow": set()}
    for outcome in engine.run(Noting([*given, replace(given[0], label="fast3")], book, most_threads=1)):
        assert outcome.result is not None
        pids[outcome.label[:4]].add(outcome.result["pid"])
    assert [len(same) for same in pids.values()] == [1, 1]
    for kind in seen[-1]:
        assert len({took_s[kind] for took_s in seen if kind in took_s}) == 1
    assert seen[-1].keys() == {("fast", 1), ("slow", 1)}
    assert seen[-1]["slow", 1] > 0.5


def test_no_more_idle_workers_are_kept_than_have_the_pus_twice_over(engine: LocalEngine, book: LeaseBook) -> None:
    programs = ["psi4", "nwchem", "xtb", "mopac", "orca"]  # each needs workers of its own
    tasks = [Task(program, {2: float(10 - number)}) for number, program in enumerate(programs)]

    def made(label: str, threads: int, memory_bytes: int) -> Calculation:
        return Calculation(
            label=label,
            program=label,
            input={"s": 0.0},
            threads=threads,
            compute="tasks:look",
            memory_bytes=memory_bytes,
        )

    dispatcher = Dispatcher(tasks, book.machine.cpus_online, known="sizes", memory_bytes=book.memory_bytes)
    source = Dispatched(dispatcher, [made(task.id, 2, 0) for task in tasks], made)
    there = []
    for outcome in engine.run(source):
        assert outcome.status == "finished", outcome.error
        there.append(sum(is_worker(child) for child in psutil.Process().children()))
    assert len(there) == len(programs)
    assert max(there) <= 2


def test_what_fails_is_said_and_the_rest_goes_on(engine: LocalEngine, book: LeaseBook) -> None:
    source = source_of([Task(f"f{number}", {1: 1.0}) for number in range(5)], book, fails=["f3"])
    status = {outcome.label: outcome.status for outcome in engine.run(source)}
    assert status == {"f0": "finished", "f1": "finished", "f2": "finished", "f3": "failed", "f4": "finished"}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(("function", "retries"), [("look", 0), ("fail", 0), ("fail", 1), ("leave", 0), ("leave", 1)])
def test_short_ones_follow_each_other_whatever_becomes_of_those_before(
    book: LeaseBook, kind: str, function: str, retries: int
) -> None:
    tasks = [Task(f"f{number}", {1: 0.01}) for number in range(40)]
    source = SOURCES[kind](tasks, book, fails=["f10", "f20"], known="seconds", function=function)
    leases: list[int] = []
    begun: list[str] = []

    class Noting(Observer):
        def begins(self, calculation: Calculation, worker: Worker, lease: Lease) -> None:  # noqa: ARG002
            assert lease.hold in book.held()
            leases.append(lease.lease_id)
            begun.append(calculation.label)

    with LocalEngine(book, retries=retries, observer=Noting()) as engine:
        outcomes = {outcome.label: outcome for outcome in engine.run(source)}
    assert outcomes.keys() == {task.id for task in tasks}
    wrong = {label: outcome.attempts for label, outcome in outcomes.items() if outcome.status != "finished"}
    assert wrong == ({} if function == "look" else dict.fromkeys(["f10", "f20"], 1 + retries))
    assert len(begun) == len(tasks) + sum(attempts - 1 for attempts in wrong.values())
    assert len(set(leases)) < len(tasks)
    if isinstance(source, Counting):
        assert source.followed > 0
        assert source.planned.keys() == outcomes.keys()
    assert book.held() == ()
    never_on_one_pu(list(outcomes.values()))


@pytest.fixture
def others(book: LeaseBook, monkeypatch: pytest.MonkeyPatch) -> LeaseBook:
    """Who shares the node with a run whose short calculations follow each other for however long."""
    monkeypatch.setattr(engine_module, "_TURN_S", 600.0)
    return LeaseBook(book.machine, book.limits, cpus=book.usable, ledger=book.ledger)


@pytest.mark.parametrize("kind", SOURCES)
def test_nothing_follows_while_others_wait_for_a_lease(book: LeaseBook, others: LeaseBook, kind: str) -> None:
    tasks = [Task(f"f{number}", {1: 0.01}) for number in range(200)]
    source = SOURCES[kind](tasks, book, sleep_s=0.01, known="seconds")
    waited_s, begun = list[float](), list[bool]()

    def wait() -> None:
        with others.acquire(len(others.usable)) as lease:
            waited_s.append(lease.waited_s)

    waits = threading.Thread(target=wait)

    class Noting(Observer):
        def begins(self, calculation: Calculation, worker: Worker, lease: Lease) -> None:  # noqa: ARG002
            begun.append(book.anybody_waits())
            if len(begun) == 50:
                waits.start()

    with LocalEngine(book, observer=Noting()) as engine:
        assert sum(1 for _ in engine.run(source)) == 200
    waits.join()
    assert waited_s[0] > 0
    assert sum(begun) <= 2 * len(book.usable)  # each driver has sent one ahead, and may be sending another


@pytest.mark.parametrize("kind", SOURCES)
def test_short_ones_follow_each_other_where_others_hold_a_pu(book: LeaseBook, others: LeaseBook, kind: str) -> None:
    source = SOURCES[kind]([Task(f"f{number}", {1: 0.01}) for number in range(50)], book, known="seconds")
    leases, waited = set[int](), list[bool]()

    class Noting(Observer):
        def begins(self, calculation: Calculation, worker: Worker, lease: Lease) -> None:  # noqa: ARG002
            leases.add(lease.lease_id)
            waited.append(book.anybody_waits())

    with others.acquire(1), LocalEngine(book, observer=Noting()) as engine:
        assert sum(1 for _ in engine.run(source)) == 50
    assert not any(waited)
    assert len(leases) <= 3  # the first, of a list, tells what the next takes, and the last is for who is free first


def test_what_can_never_fit_is_refused_before_anything_starts(engine: LocalEngine, book: LeaseBook) -> None:
    needy = Task("f0", {1: 1.0}, memory_bytes=book.memory_bytes)
    source = source_of([needy], book)
    source._narrowest = [Calculation(label="f0", program="none", input={}, threads=64, compute="tasks:look")]
    with pytest.raises(LeaseError, match="64 threads were asked for"):
        engine.run(source)


def test_memory_for_one_at_a_time_is_kept_to(engine: LocalEngine, book: LeaseBook) -> None:
    need = book.memory_bytes * 2 // 3
    source = source_of([Task(f"f{number}", {1: 1.0, 2: 0.9}, need) for number in range(4)], book, sleep_s=0.2)
    outcomes = sorted(engine.run(source), key=lambda one: one.started_at)
    assert len(outcomes) == 4
    for one, later in itertools.pairwise(outcomes):
        assert later.started_at >= one.started_at + one.wall_s - 0.05


def test_a_run_that_is_stopped_while_drivers_wait_for_the_source_ends(book: LeaseBook) -> None:
    need = book.memory_bytes * 2 // 3
    source = source_of([Task(f"f{number}", {1: 1.0}, need) for number in range(4)], book, sleep_s=30)
    with (
        LocalEngine(book, on_progress=lambda _: threading.Timer(0.5, engine.stop).start()) as engine,
        pytest.raises(StopRequestedError),
    ):
        list(engine.run(source))


@pytest.mark.parametrize("kind", SOURCES)
def test_pus_that_others_give_back_are_used(engine: LocalEngine, book: LeaseBook, kind: str) -> None:
    held = book.acquire(1)
    source = SOURCES[kind]([Task(f"f{number}", {1: 1.0}) for number in range(200)], book, sleep_s=0.4)
    outcomes: list[Outcome] = []
    run = engine.run(source)
    while not outcomes or outcomes[-1].cpus.isdisjoint(held.cpus):  # however long a worker takes to start there
        outcomes.append(next(run))
        if len(outcomes) == 2:
            held.release()
    assert len(outcomes) > 2
    never_on_one_pu(outcomes)


# Told the file of a limit, what it says for a while and afterwards, what each calculation needs, the kind of source and
# what to make when it may be used up. However long a second worker takes to start: there is less when two have run side
# by side, and more until two have again. What starts when there has been less for long enough uses what it needs.
DRIVER = """
import json, os, sys, time
from pathlib import Path
from test_engine_source import SOURCES, overlapping
from qcthreads.execution import engine as engine_module
from qcthreads.execution.engine import LocalEngine
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.leases import LeaseBook
from qcthreads.planning import Task

limit, less, more, need_bytes, kind, hold = Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4]), *sys.argv[5:]
(limit.parent / "cgroup.procs").write_text(str(os.getpid()))
book = LeaseBook(read_machine(), read_limits())
tasks = [Task(f"f{number}", {1: 1.0}, need_bytes) for number in range(200)]
# What follows is to end as soon as the change is seen, and not with its turn.
engine_module._AHEAD_S = engine_module._TURN_S = 600.0
source = SOURCES[kind](tasks, book, sleep_s=0.3, hold=hold)
told, shrunk_at, seen_at, grown_at = [], 0.0, 0.0, 0.0
with LocalEngine(book) as engine:
    for outcome in engine.run(source):
        assert outcome.error is None
        told.append((outcome.started_at, outcome.wall_s, list(outcome.cpus)))
        if not shrunk_at and overlapping(told):
            limit.write_text(less)
            shrunk_at = time.time()
        if shrunk_at and not seen_at and time.time() > shrunk_at + 3:
            Path(hold).touch()
            seen_at = time.time()
        if seen_at and not grown_at and sum(at > seen_at for at, *_ in told) == 4:
            limit.write_text(more)
            grown_at = time.time()
        if grown_at and overlapping([one for one in told if one[0] > grown_at]):
            break
print(json.dumps([told, shrunk_at, seen_at, grown_at]))
"""
Told = list[tuple[float, float, list[int]]]

# Of four calculations two run side by side, until that on CPU 1 takes its CPU out of the cpuset. As it shares CPU 0 the
# other one ends; when it has been moved, it has CPU 1 be there again, and ends when another runs on CPU 0.
LOSES = """
import json, os, sys
from pathlib import Path
from test_engine_source import source_of
from qcthreads.execution.engine import LocalEngine
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.leases import LeaseBook
from qcthreads.planning import Task

limit, hold = map(Path, sys.argv[1:])
(limit.parent / "cgroup.procs").write_text(str(os.getpid()))
book = LeaseBook(read_machine(), read_limits())
tasks = [Task(f"f{number}", {1: 1.0}) for number in range(4)]
source = source_of(tasks, book, hold=str(hold), compute="tasks:linger", limit=str(limit))
said = []

def watch(progress):
    if progress.event == "note" and "may be used no longer" in progress.message:
        said.append([progress.message, [str(hold.cpus) for hold in book.held()]])
        (hold / "shares").touch()
        if "goes on on CPUs 0" in progress.message:
            (hold / "moved").touch()

with LocalEngine(book, on_progress=watch) as engine:
    told = [(list(one.cpus), one.result["mask"], one.result.get("back")) for one in engine.run(source)]
print(json.dumps([told, said]))
"""

# A calculation takes its CPU away, and fails when it has been moved to the other one.
FAILS_THERE = """
import json, os, sys
from pathlib import Path
from test_engine_source import source_of
from qcthreads.execution.engine import LocalEngine
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.leases import LeaseBook
from qcthreads.planning import Task

limit, hold = map(Path, sys.argv[1:])
(limit.parent / "cgroup.procs").write_text(str(os.getpid()))
book = LeaseBook(read_machine(), read_limits())
source = source_of([Task("f", {1: 1.0})], book, hold=str(hold), compute="tasks:lose", limit=str(limit))

def watch(progress):
    if "goes on on CPUs" in progress.message:
        (hold / "moved").touch()

with LocalEngine(book, retries=1, on_progress=watch) as engine:
    (one,) = engine.run(source)
print(json.dumps([one.status, one.attempts, list(one.cpus), list(one.bound or [])]))
"""

# A whole run that begins with CPU 0, is allowed CPU 1, too, and then that one alone, as soon as it uses it.
RUN = """
import json, os, sys
from pathlib import Path
from qcthreads.manybody.run import Run, RunRequest

limit, given = Path(sys.argv[1]), Path(sys.argv[2])
limit.write_text("0")
(limit.parent / "cgroup.procs").write_text(str(os.getpid()))
run = Run(RunRequest(input=given, method="mp2", basis="6-31g", max_nbody=2, strategy=sys.argv[3], learn=False))
ended = 0

def change(progress):
    global ended
    ended += progress.event == "finished"
    if ended == 3 and progress.event == "finished":
        limit.write_text("0-1")
    if progress.event == "started" and progress.message == "CPUs 1":
        limit.write_text("1")

report = run.execute(change)
ran = sorted((one.start_s, list(one.cpus)) for one in report.record.calculations)
said = {kind: [one["message"] for one in report.findings if one["kind"] == kind] for kind in ("escaped", "note")}
usable = report.record.pus_usable.counts
print(json.dumps([ran, said, report.decision["changes"], report.statistics["oversubscription"], usable]))
"""


@pytest.fixture
def cpuset() -> Iterator[None]:
    root = CPUSET.parent
    if not os.access(root / "cgroup.procs", os.W_OK) or (root / "cpuset.cpus").read_text().strip() != "0-1":
        pytest.skip("needs the right to make a cpuset (cgroup v1) with CPUs 0-1")
    CPUSET.mkdir(exist_ok=True)  # left by a killed run that had the same pid
    for name in ("cpuset.cpus", "cpuset.mems"):
        (CPUSET / name).write_text((root / name).read_text())
    yield
    CPUSET.rmdir()


@pytest.fixture
def memory_group() -> Iterator[None]:
    with limited(MEMORY, 900 * MIB):
        yield


def driven(script: str, tasks: Path, *args: object) -> Any:
    """What ``script`` prints as JSON, run by a process of its own that finds the modules ``tasks`` and this one."""
    path = os.pathsep.join([str(tasks), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ran_while_it_changed(
    tasks: Path, kind: str, limit: Path, less: str, more: str, need_bytes: int = 0
) -> tuple[Told, Told, Told]:
    """Start, seconds and CPUs of what started before, while there was less, and after.

    A second passes until limits are read again, at the next start; what ran by then goes on.
    """
    told, shrunk_at, seen_at, grown_at = driven(DRIVER, tasks, limit, less, more, need_bytes, kind, tasks / "hold")
    assert grown_at
    return (
        [one for one in told if one[0] < shrunk_at],
        [one for one in told if seen_at < one[0] < grown_at],
        [one for one in told if one[0] > grown_at],
    )


def cpus_of(told: Told) -> set[tuple[int, ...]]:
    return {tuple(cpus) for *_, cpus in told}


def overlapping(told: Told) -> int:
    """How many started while another was running."""
    ordered = sorted(told)
    return sum(at < before + wall_s - 0.01 for (before, wall_s, _), (at, *_) in itertools.pairwise(ordered))


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.usefixtures("cpuset")
def test_a_cpuset_that_shrinks_and_grows_is_followed(tasks: Path, kind: str) -> None:
    before, meanwhile, after = ran_while_it_changed(tasks, kind, CPUSET / "cpuset.cpus", "0", "0-1")
    assert cpus_of(before) == {(0,), (1,)}
    assert cpus_of(meanwhile) == {(0,)}
    assert cpus_of(after) == {(0,), (1,)}


@pytest.mark.usefixtures("cpuset")
def test_what_runs_on_a_cpu_that_is_taken_away_has_the_first_that_comes_free(tasks: Path) -> None:
    hold = tasks / "hold"
    hold.mkdir()
    told, said = driven(LOSES, tasks, CPUSET / "cpuset.cpus", hold)
    assert [held for _, held in said] == [["0", "1"], ["1", "0"]]
    (moved,) = (one for one in told if one[2] is not None)
    assert moved == [[1], [0], [1]]
    assert all(cpus == mask for cpus, mask, back in told if back is None)


@pytest.mark.usefixtures("cpuset")
def test_what_is_tried_again_runs_where_it_was_moved_to(tasks: Path) -> None:
    hold = tasks / "hold"
    hold.mkdir()
    status, attempts, cpus, bound = driven(FAILS_THERE, tasks, CPUSET / "cpuset.cpus", hold)
    assert (status, attempts, bound) == ("finished", 2, cpus)
    assert [str(cpus[0])] == (CPUSET / "cpuset.cpus").read_text().split()


@pytest.mark.parametrize("strategy", ["auto", "balanced"])
@pytest.mark.usefixtures("cpuset")
def test_a_run_that_begins_with_one_pu_follows_its_cpuset_to_another(strategy: str) -> None:
    given = Path(__file__).parents[2] / "examples" / "water16.xyz"
    command = [sys.executable, "-c", RUN, str(CPUSET / "cpuset.cpus"), str(given), strategy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    ran, said, changes, oversubscription, usable = json.loads(done.stdout)
    assert all("the CPUs that may be used changed during the run" in message for message in said["escaped"])
    cpus = [one for _, one in ran]
    assert cpus[:4] == [[0]] * 4
    assert cpus[-4:] == [[1]] * 4
    assert [change["cpus_usable"] for change in changes] == [[0, 1], [1]]
    assert 0 < changes[0]["at_s"] < min(start_s for start_s, one in ran if one == [1])
    assert changes[0]["at_s"] < changes[1]["at_s"]
    assert [change["workers"] for change in changes] == ([2, 1] if strategy == "balanced" else [None, None])
    assert [change["threads"] for change in changes] == ([1, 1] if strategy == "balanced" else [None, None])
    for change, why in zip(changes, ("2 CPUs may be used: ", "1 CPU may be used: "), strict=True):
        assert change["why"].startswith(why)
        assert any(note.startswith("since ") and note.endswith(change["why"]) for note in said["note"])
    assert oversubscription == 1.0
    assert usable == [[0.0, 1], *([change["at_s"], len(change["cpus_usable"])] for change in changes)]


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.usefixtures("memory_group")
def test_a_memory_group_that_shrinks_and_grows_is_followed(tasks: Path, kind: str) -> None:
    """Of 900 MiB there is room for two, of 550 for one: two would be ended by the kernel."""
    limit, sizes = MEMORY / "memory.limit_in_bytes", (str(550 * MIB), str(900 * MIB))
    _, meanwhile, after = ran_while_it_changed(tasks, kind, limit, *sizes, need_bytes=300 * MIB)
    assert len(meanwhile) >= 4
    assert overlapping(meanwhile) == 0
    assert overlapping(after) > 0
