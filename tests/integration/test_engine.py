"""The engine with real worker processes: where they run, what they see, how they fail and what they leave behind."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import platform
import queue
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from others import until

from qcthreads.cpuset import CpuSet
from qcthreads.errors import InputError, LeaseError, ProgramNotFoundError, StopRequestedError
from qcthreads.execution import supervisor
from qcthreads.execution.calculation import Calculation, Outcome, Progress
from qcthreads.execution.deadlines import Deadlines
from qcthreads.execution.engine import LocalEngine
from qcthreads.execution.observing import Observer
from qcthreads.execution.supervisor import Worker, WorkerEndedError
from qcthreads.host import read_machine
from qcthreads.host.build_info import native_status
from qcthreads.host.limits import Limits, read_limits
from qcthreads.host.trees import MARK
from qcthreads.leases import Lease, LeaseBook
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.programs import registry
from qcthreads.programs.settings import settings_for

TASKS = """
    import os, signal, subprocess, sys, tempfile, time

    def look(input):
        return {
            "pid": os.getpid(), "ppid": os.getppid(), "session": os.getsid(0), "input": input,
            "mask": sorted(os.sched_getaffinity(0)), "environment": dict(os.environ), "path": sys.path,
            "modules": sorted(sys.modules), "cwd": os.getcwd(), "temporary": tempfile.gettempdir(), "argv": sys.argv,
        }

    def meet(input):
        began = time.time()
        deadline = began + 30
        open(input["mine"], "w").close()
        while not os.path.exists(input["other"]) and time.time() < deadline:
            time.sleep(0.005)
        return {"mask": sorted(os.sched_getaffinity(0)), "met": os.path.exists(input["other"])}

    def raise_it(input):
        raise ValueError("this molecule is not to my taste")

    def refuse(input):
        message = "\\n".join(map(str, range(99)))
        return {"success": False, "error": {"error_type": "random_error", "error_message": message}}

    def talk(input):
        print("w" * 999_999)
        return {}

    def leave(input):
        sys.exit("I leave")

    def crash(input):
        print("last words")
        os.kill(os.getpid(), signal.SIGSEGV)

    def tidy(input):
        import shutil
        shutil.rmtree(os.path.dirname(tempfile.gettempdir()))
        return crash(input) if input.get("then") == "crash" else {}

    def shout(input):
        subprocess.run(["echo", input["text"][:99_999]], check=True)
        print(input["text"])
        return crash(input) if input.get("then") == "crash" else input

    def abandon(input):
        # A tree that hides: another session, no parent, no environment, deaf to SIGTERM.
        script = "trap '' TERM; setsid sleep $0 & env -i sleep $0 & sleep $0"
        subprocess.Popen(["sh", "-c", script, str(input["sleep"])])
        subprocess.Popen(["setsid", "sh", "-c", "(sleep $0 &) ; sleep $0", str(input["sleep"])])
        time.sleep(0.3)
        if input.get("how") == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if input.get("how") == "stay":
            open(input["ready"], "w").close()
            time.sleep(600)
        return {}

    def second_time(input):
        tries = len(os.listdir(input["folder"]))
        open(os.path.join(input["folder"], str(tries)), "w").close()
        if tries < input["fails"]:
            raise RuntimeError(f"try {tries}")
        return {"pid": os.getpid()}

    def fork(input):
        child = os.fork()
        if not child:
            time.sleep(600)
        os._exit(7)

    def numbers(input):
        import numpy
        return {"array": numpy.arange(3.0), "scalar": numpy.float64(1.5), "nan": float("nan"), "text": "\\udcff\\u00e9"}

    def nonsense(input):
        return {"it": object()}

    def nothing(input):
        return 1.5

    KEPT = []

    def litter(input):
        blocks = [b"x" * 65_536 for _ in range(3000)]
        KEPT.append(blocks.pop())  # the heap's last: what lies before it does not go back by itself
        resident = int(open("/proc/self/statm").read().split()[1])
        del blocks
        time.sleep(0.05)
        return {"pages": resident}

    def resident(input):
        return {"pages": int(open("/proc/self/statm").read().split()[1])}

    def work(input):
        burn = "import time\\nwhile time.process_time() < 0.3: pass\\nb = bytearray(150_000_000)"
        subprocess.run([sys.executable, "-c", burn], check=True)
        return {}
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the functions look into /proc and set sessions")


@pytest.fixture
def book() -> LeaseBook:
    return LeaseBook(read_machine(), read_limits())


@pytest.fixture(autouse=True)
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's, importable in this process through its sys.path alone."""
    folder = tmp_path / "module"
    folder.mkdir()
    (folder / "tasks.py").write_text(textwrap.dedent(TASKS))
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def engine(book: LeaseBook, tmp_path: Path) -> Iterator[LocalEngine]:
    scratch = tmp_path / "scratch"
    with LocalEngine(book, scratch=scratch) as engine:
        yield engine
    assert list(scratch.glob("*")) == []
    assert book.held() == ()


def calculation(
    function: str, label: str = "a", threads: int = 1, timeout_s: float | None = 60, **input_: object
) -> Calculation:
    return Calculation(
        label=label, program="none", input=input_, threads=threads, compute=f"tasks:{function}", timeout_s=timeout_s
    )


def only(outcomes: Iterator[Outcome]) -> Outcome:
    (outcome,) = outcomes
    return outcome


def sleepers(seconds: int) -> list[psutil.Process]:
    """Whatever still runs of a tree, found by its argument."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if str(seconds) in (process.info["cmdline"] or ()) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_a_worker_is_bound_configured_and_reused(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_CPU_AFFINITY", "0")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    before = dict(os.environ)
    outcomes = list(engine.run((calculation("look", str(n), number=n) for n in range(5)), max_workers=1))
    assert os.environ == before
    assert [outcome.status for outcome in outcomes] == ["finished"] * 5
    assert {outcome.worker_pid for outcome in outcomes} == {outcomes[0].result["pid"]}  # type: ignore[index]
    for number, outcome in enumerate(outcomes):
        seen = outcome.result
        assert seen is not None
        assert seen["input"] == {"number": number}
        assert CpuSet(seen["mask"]) == outcome.cpus == outcome.bound
        assert len(outcome.cpus) == 1
        assert seen["session"] == seen["pid"]
        assert seen["ppid"] == os.getpid()
        assert seen["cwd"] == str(Path.cwd())
        environment = seen["environment"]
        assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == "1"
        assert environment["PYTHONHASHSEED"] == "7"
        assert environment.keys() & {"GOMP_CPU_AFFINITY", "PYTHONPATH"} == set()
        assert seen["temporary"].startswith(str(engine._pool._folder))
        assert environment[MARK]


def test_an_idle_worker_has_imported_nothing_heavy(engine: LocalEngine) -> None:
    seen = only(engine.run([calculation("look")])).result
    assert seen is not None
    heavy = {
        "numpy",
        "pydantic",
        "qcengine",
        "qcelemental",
        "qcmanybody",
        "psutil",
        "rich",
        "sqlite3",
        "multiprocessing",
    }
    bare = subprocess.run(  # a measurement of coverage, say, imports things into every interpreter
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert heavy.isdisjoint(set(seen["modules"]) - set(bare.stdout.split()))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give nothing back when asked")
def test_an_idle_worker_gives_back_what_its_calculation_has_freed(engine: LocalEngine) -> None:
    first = only(engine.run([calculation("litter")]))
    second = only(engine.run([calculation("resident")]))
    assert first.worker_pid == second.worker_pid
    assert first.result is not None
    assert second.result is not None
    assert second.result["pages"] < first.result["pages"] - 2900 * 65_536 // os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no peak can be forgotten")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give nothing back when asked")
def test_what_a_calculation_has_freed_is_no_memory_of_the_one_that_follows_it(tmp_path: Path) -> None:
    worker = Worker(settings_for(registry.get("none"), 1, None), tmp_path / "w", None)
    try:
        for function in ("litter", "resident"):
            worker.send(
                {"input": {}, "compute": f"tasks:{function}", "program": "none", "harness_module": None}, timeout_s=60
            )
        first, second = worker.reply(), worker.reply()
    finally:
        worker.end()
    assert [first["status"], second["status"]] == ["finished", "finished"]
    assert second["peak_memory_bytes"] < first["peak_memory_bytes"] - 2900 * 65_536


@pytest.mark.skipif(not native_status()[0], reason="without the extension, a worker cannot do without ctypes")
def test_a_worker_that_cannot_give_memory_back_goes_on(engine: LocalEngine, tmp_path: Path) -> None:
    (tmp_path / "module" / "ctypes.py").write_text("raise ImportError('this Python was built without it')")
    outcomes = list(engine.run([calculation("litter", "long"), calculation("look", "next")], max_workers=1))
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert outcomes[0].worker_pid == outcomes[1].worker_pid


def test_warm_workers_take_the_first_calculations(engine: LocalEngine, book: LeaseBook) -> None:
    workers = len(book.usable)
    engine.warm(calculation("look"), workers)
    assert len(book.held()) == workers  # so that nothing else comes between
    outcome = only(engine.run([calculation("look")]))
    assert outcome.worker_pid in {child.pid for child in psutil.Process().children()}
    assert len(psutil.Process().children()) == workers
    assert outcome.bound == outcome.cpus


@pytest.mark.parametrize("known", [True, False])
def test_a_question_waits_for_a_worker_that_is_starting(
    engine: LocalEngine, book: LeaseBook, tmp_path: Path, known: bool
) -> None:
    if len(book.usable) < 2:
        pytest.skip("needs 2 cores")
    (tmp_path / "module" / "slow.py").write_text("import time\ntime.sleep(1)\ndef f(input): pass")
    engine.warm(replace(calculation("look"), compute=f"{'slow' if known else 'nowhere_at_all'}:f"), 1)
    outcome = only(engine.run([calculation("look")]))
    assert [outcome.worker_pid] == [child.pid for child in psutil.Process().children()]


def test_a_question_waits_for_no_worker_that_it_could_not_use(engine: LocalEngine, book: LeaseBook) -> None:
    engine.warm(replace(calculation("look"), threads=len(book.usable)), 1)
    assert only(engine.run([calculation("look")])).error is None


def test_a_worker_that_cannot_get_ready_leaves_the_reason_to_its_calculation(engine: LocalEngine) -> None:
    lost = Calculation(label="a", program="none", input={}, compute="nowhere_at_all:function")
    engine.warm(lost, 1)
    assert "nowhere_at_all" in (only(engine.run([lost])).error or "")


def test_a_module_that_leaves_when_it_is_imported_takes_no_worker_along(engine: LocalEngine, tmp_path: Path) -> None:
    (tmp_path / "module" / "leaving.py").write_text("raise SystemExit('not on this machine')")
    lost = [replace(calculation("look", label), compute="leaving:look") for label in "ab"]
    outcomes = list(engine.run(lost, max_workers=1))
    assert all("SystemExit: not on this machine" in (outcome.error or "") for outcome in outcomes)
    assert outcomes[0].worker_pid == outcomes[1].worker_pid


def test_a_label_that_is_no_text_is_computed_all_the_same(engine: LocalEngine) -> None:
    assert only(engine.run([calculation("look", "\udcff")])).error is None


def test_an_interrupt_while_workers_are_started_leaves_no_lease(
    engine: LocalEngine, book: LeaseBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(book.usable) < 2:
        pytest.skip("needs 2 cores")
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if started and thread.name == started[0].name:
            raise KeyboardInterrupt
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.warm(calculation("look"), 2)
    monkeypatch.undo()
    engine.stop()
    assert psutil.Process().children() == []
    assert book.held() == ()


def test_a_worker_that_the_observer_fails_to_take_note_of_is_ended(book: LeaseBook) -> None:
    class Failing(Observer):
        def starts(self, worker: Worker) -> None:
            raise ValueError(f"I do not know {worker.pid}")

    with LocalEngine(book, observer=Failing()) as engine, pytest.raises(ValueError, match="I do not know"):
        list(engine.run([calculation("look")]))
    assert psutil.Process().children() == []


def test_stop_while_workers_get_ready(engine: LocalEngine, book: LeaseBook) -> None:
    engine.warm(calculation("look"), len(book.usable))
    engine.stop()
    assert psutil.Process().children() == []
    assert book.held() == ()


def test_the_callers_pythonpath_is_kept(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere/of/mine")
    seen = only(engine.run([calculation("look")])).result
    assert seen is not None
    assert seen["environment"]["PYTHONPATH"] == "/nowhere/of/mine"
    assert seen["path"][: len(sys.path)] == [os.path.abspath(path) for path in sys.path]  # noqa: PTH100


def test_side_by_side_on_disjoint_cpus(engine: LocalEngine, book: LeaseBook, tmp_path: Path) -> None:
    if len(book.usable) < 2:
        pytest.skip("needs 2 cores")
    ready = [str(tmp_path / name) for name in ("one", "two")]
    pair = [
        calculation("meet", "1", mine=ready[0], other=ready[1]),
        calculation("meet", "2", mine=ready[1], other=ready[0]),
    ]
    first, second = (outcome.result for outcome in engine.run(pair))
    assert first is not None
    assert second is not None
    assert first["met"]
    assert second["met"]
    assert set(first["mask"]).isdisjoint(second["mask"])


def test_a_wide_calculation_gets_its_width_and_its_own_worker(engine: LocalEngine, book: LeaseBook) -> None:
    width = len(book.usable)
    if width < 2:
        pytest.skip("needs 2 cores")
    jobs = [calculation("look", "narrow"), calculation("look", "wide", threads=width), calculation("look", "narrow 2")]
    found = {outcome.label: outcome for outcome in engine.run(jobs, max_workers=1)}
    wide = found["wide"].result
    assert wide is not None
    assert CpuSet(wide["mask"]) == book.usable
    assert wide["environment"]["OMP_NUM_THREADS"] == str(width)
    assert found["wide"].worker_pid != found["narrow"].worker_pid


def hyperthreads(cores: int) -> LeaseBook:
    """Of a machine with two PUs per core, which is not this one: nothing may be bound to them."""
    machine = synthetic_machine(cores=cores, threads=2)
    pus = len(machine.cpus_online)
    return LeaseBook(machine, Limits(machine.cpus_online, pus, None, 2**32, ()), smt=True)


def test_two_calculations_share_a_core_where_hyperthreads_are_given(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in "ab"]
    pairs = [("a", names), ("b", names[::-1])]
    with LocalEngine(hyperthreads(1), affinity=False) as made:
        jobs = [calculation("meet", label, mine=mine, other=other) for label, (mine, other) in pairs]
        outcomes = list(made.run(jobs, max_workers=2))
    assert all(outcome.result and outcome.result["met"] for outcome in outcomes)
    assert {str(outcome.cpus) for outcome in outcomes} == {"0", "1"}


def test_ranks_that_spin_have_their_cores_for_themselves() -> None:
    """By what the worker is told, and by when each of two ran."""
    job = replace(calculation("look", threads=2), program="nwchem")
    with LocalEngine(hyperthreads(2), affinity=False) as made:
        one, other = sorted(
            made.run([job, replace(job, label="b")], max_workers=2), key=lambda outcome: outcome.started_at
        )
    assert one.started_at + one.wall_s <= other.started_at
    for outcome in (one, other):
        assert outcome.result is not None
        assert outcome.result["environment"]["OMPI_MCA_orte_set_default_slots"] == "2"
        assert outcome.result["environment"]["OMP_NUM_THREADS"] == "1"
        assert str(outcome.cpus) == "0-1"  # one of each core
    notes: list[str] = []
    listen = notes.append
    with LocalEngine(
        hyperthreads(1),
        affinity=False,
        on_progress=lambda event: listen(event.message) if event.event == "note" else None,
    ) as made:
        outcome = only(made.run([job]))
    assert outcome.result is not None
    assert outcome.result["environment"]["OMPI_MCA_orte_set_default_slots"] == "1"
    assert outcome.result["environment"]["OMP_NUM_THREADS"] == "2"
    assert "NWChem spins while it waits: a process per core, 1 on 2 PUs" in notes


def test_a_reused_worker_follows_its_lease(engine: LocalEngine, book: LeaseBook) -> None:
    if len(book.usable) < 2:
        pytest.skip("needs 2 cores")
    first = only(engine.run([calculation("look")]))
    with book.acquire(1, near=first.cpus) as other:
        assert other.cpus == first.cpus
        second = only(engine.run([calculation("look")]))
    assert second.worker_pid == first.worker_pid
    assert second.result is not None
    assert CpuSet(second.result["mask"]) == second.cpus == second.bound
    assert second.cpus != first.cpus


def test_without_affinity_the_mask_is_left_alone(book: LeaseBook) -> None:
    with LocalEngine(book, affinity=False) as engine:
        outcome = only(engine.run([calculation("look")]))
    assert outcome.bound is None
    assert outcome.result is not None
    assert set(outcome.result["mask"]) == os.sched_getaffinity(0)


def test_a_system_that_refuses_to_bind_is_noted_once_in_a_run(
    book: LeaseBook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EPERM comes from a sitecustomize in the worker, which also prints, as some do."""
    customize = (
        "import os, sys\ndef no(*_): raise PermissionError(1, 'no')\nos.sched_setaffinity = no\nprint('hello' * 99)"
    )
    (tmp_path / "sitecustomize.py").write_text(customize)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("QCTHREADS_BACKEND", "portable")
    events: list[Progress] = []
    with LocalEngine(book, on_progress=events.append) as engine:
        for _ in range(2):
            outcomes = list(engine.run(calculation("look", str(n)) for n in range(6)))
            assert [(outcome.status, outcome.bound) for outcome in outcomes] == [("finished", None)] * 6
            notes = [event.message for event in events if event.event == "note"]
            events.clear()
            assert len(notes) == 1
            assert "unbound" in notes[0]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("raise_it", "this molecule is not to my taste"),
        ("refuse", "random_error: 69\n70"),
        ("leave", "SystemExit: I leave"),
        ("nonsense", "not plain data: builtins.object"),
        ("nothing", "returned float"),
        ("missing", "no attribute 'missing'"),
    ],
)
def test_a_failure_says_why_and_the_worker_goes_on(engine: LocalEngine, function: str, said: str) -> None:
    failed, after = engine.run([calculation(function), calculation("look", "b")], max_workers=1)
    assert failed.status == "failed"
    assert failed.result is None
    assert said in (failed.error or "")
    assert len((failed.error or "").splitlines()) <= 31
    assert after.status == "finished"
    assert after.worker_pid == failed.worker_pid


def test_an_input_that_cannot_be_made_says_why_and_the_rest_goes_on(engine: LocalEngine) -> None:
    def bad() -> dict[str, Any]:
        raise ValueError("no such molecule")

    inputs: list[Any] = [{}, bad, {}]
    jobs = [
        Calculation(label=str(number), program="none", input=given, compute="tasks:look")
        for number, given in enumerate(inputs)
    ]
    outcomes = {outcome.label: outcome for outcome in engine.run(jobs)}
    assert [outcomes[label].status for label in "012"] == ["finished", "failed", "finished"]
    assert "could not be made: ValueError: no such molecule" in (outcomes["1"].error or "")


def test_a_crash_says_how_and_the_rest_goes_on(engine: LocalEngine) -> None:
    failed, after = engine.run([calculation("crash"), calculation("look", "b")], max_workers=1)
    assert failed.status == "failed"
    assert "signal 11 (SIGSEGV)" in (failed.error or "")
    assert "last words" in (failed.error or "")
    assert after.status == "finished"
    assert after.worker_pid != failed.worker_pid


def test_a_forked_child_does_not_hide_the_workers_end(engine: LocalEngine) -> None:
    outcome = only(engine.run([calculation("fork")]))
    assert "exit code 7" in (outcome.error or "")


def test_a_worker_whose_scratch_directory_was_tidied_away_is_not_used_again(engine: LocalEngine) -> None:
    first, second = engine.run([calculation("tidy"), calculation("look", "b")], max_workers=1)
    assert (first.status, second.status) == ("finished", "finished")
    assert second.worker_pid != first.worker_pid
    (crashed,) = engine.run([calculation("tidy", then="crash")])
    assert "signal 11 (SIGSEGV)" in (crashed.error or "")
    assert "left no log" in (crashed.error or "")


def test_much_output_and_large_data_do_no_harm(engine: LocalEngine) -> None:
    big = "x" * 5_000_000
    outcome = only(engine.run([calculation("shout", text=big)]))
    assert outcome.result == {"text": big}
    assert outcome.error is None
    failed = only(engine.run([calculation("shout", text=big, then="crash")]))
    assert "last words" in (failed.error or "")
    assert len(failed.error or "") < 10_000


def test_the_log_of_a_worker_does_not_grow_without_end(engine: LocalEngine, tmp_path: Path) -> None:
    sizes = []
    for number in range(6):
        assert only(engine.run([calculation("talk", str(number))])).status == "finished"
        sizes.append(sum(log.stat().st_size for log in tmp_path.rglob("log")))
    assert max(sizes) < 3 * 10**6
    assert min(sizes) > 10**5  # it is the log that was looked at


def test_a_timeout_ends_the_tree(engine: LocalEngine, tmp_path: Path) -> None:
    ready = str(tmp_path / "ready")
    job = calculation("abandon", timeout_s=2, sleep=918273, how="stay", ready=ready)
    failed, after = engine.run([job, calculation("look", "b")], max_workers=1)
    assert failed.error == "timed out after 2 s"
    assert sleepers(918273) == []
    assert after.status == "finished"


def test_the_time_limit_of_what_a_worker_is_sent_ahead_counts_from_its_begin(tmp_path: Path) -> None:
    def sleep(seconds: float) -> dict[str, Any]:
        return {"input": seconds, "compute": "time:sleep", "program": "none", "harness_module": None}

    worker = Worker(settings_for(registry.get("none"), 1, None), tmp_path / "w", None)
    try:
        worker.send(sleep(2.5), None)
        worker.send(sleep(0), 2)
        worker.send(sleep(600), 0.3)
        for least_s in (2.5, 0):
            reply = worker.reply()
            assert reply["error_type"] == "InputError"  # what it returns is no result
            assert reply["wall_s"] >= least_s
        with pytest.raises(WorkerEndedError, match=r"timed out after 0\.3 s"):
            worker.reply()
        assert not worker.healthy
    finally:
        worker.end()


def test_a_time_limit_that_is_over_as_the_answer_comes_does_not_end_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Callable[[], object]] = []

    class Held(Deadlines):
        """Whoever calls is as late as can be."""

        @contextlib.contextmanager
        def within(self, seconds: float | None, late: Callable[[], object]) -> Iterator[None]:  # noqa: ARG002
            calls.append(late)
            yield

    monkeypatch.setattr(supervisor, "_deadlines", Held())
    worker = Worker(settings_for(registry.get("none"), 1, None), tmp_path / "w", None)
    try:
        for seconds in (0, 600):
            worker.send({"input": seconds, "compute": "time:sleep", "program": "none", "harness_module": None}, 60)
        worker.reply()
        first, second = calls
        first()
        assert worker.lives
        second()
        with pytest.raises(WorkerEndedError, match="timed out after 60 s"):
            worker.reply()
    finally:
        worker.end()


def test_nothing_that_a_calculation_started_outlives_it(engine: LocalEngine) -> None:
    for outcome in engine.run([calculation("abandon", sleep=827364), calculation("look", "b")], max_workers=1):
        assert outcome.status == "finished"
        assert sleepers(827364) == []


def test_nothing_outlives_a_killed_worker(engine: LocalEngine) -> None:
    outcome = only(engine.run([calculation("abandon", sleep=736455, how="kill")]))
    assert "signal 9 (SIGKILL)" in (outcome.error or "")
    assert sleepers(736455) == []


def test_retries_take_a_fresh_worker(book: LeaseBook, tmp_path: Path) -> None:
    events: list[Progress] = []
    folder = tmp_path / "tries"
    folder.mkdir()
    with LocalEngine(book, retries=2, on_progress=events.append) as engine:
        outcome = only(engine.run([calculation("second_time", folder=str(folder), fails=2)]))
    assert outcome.status == "finished"
    assert outcome.attempts == 3
    assert [event.event for event in events] == ["started", "retried", "retried", "finished"]
    assert "try 0" in events[1].message


def test_retries_end(book: LeaseBook, tmp_path: Path) -> None:
    (tmp_path / "tries").mkdir()
    with LocalEngine(book, retries=1) as engine:
        outcome = only(engine.run([calculation("second_time", folder=str(tmp_path / "tries"), fails=9)]))
    assert (outcome.status, outcome.attempts) == ("failed", 2)


def test_numbers_arrive_whole(engine: LocalEngine) -> None:
    result = only(engine.run([calculation("numbers")])).result
    assert result is not None
    assert result["array"] == [0.0, 1.0, 2.0]
    assert result["scalar"] == 1.5
    assert math.isnan(result["nan"])
    assert result["text"] == "\udcff\u00e9"


def test_what_programs_below_use_is_counted(engine: LocalEngine) -> None:
    small, large = engine.run([calculation("look"), calculation("work", "b")], max_workers=1)
    assert large.cpu_s >= 0.3
    assert large.peak_memory_bytes > 150_000_000
    assert small.peak_memory_bytes < 60_000_000


def test_leaving_the_loop_ends_what_runs(engine: LocalEngine, book: LeaseBook, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    jobs = [
        calculation("look"),
        *(calculation("abandon", str(n), sleep=645566, how="stay", ready=str(ready)) for n in range(4)),
    ]
    outcomes = engine.run(jobs)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert sleepers(645566) == []
    assert book.held() == ()
    assert only(engine.run([calculation("look")])).status == "finished"


def test_stop_from_another_thread(engine: LocalEngine, book: LeaseBook, tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    def stop_when_ready() -> None:
        while not ready.exists():
            stopping.wait(0.01)
        engine.stop()

    stopping = threading.Event()
    stopper = threading.Thread(target=stop_when_ready)
    stopper.start()
    with pytest.raises(StopRequestedError):
        list(engine.run(calculation("abandon", str(n), sleep=554433, how="stay", ready=str(ready)) for n in range(4)))
    stopper.join()
    assert sleepers(554433) == []
    assert book.held() == ()


def test_stop_in_the_middle_of_anything(engine: LocalEngine) -> None:
    for _ in range(5):
        outcomes = engine.run(calculation("look", str(n)) for n in range(9))
        next(outcomes)
        engine.stop()
        with pytest.raises(StopRequestedError):
            list(outcomes)


def test_an_iterator_that_is_collected_in_a_driver_ends_its_run(
    engine: LocalEngine, book: LeaseBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: queue.SimpleQueue[Any] = queue.SimpleQueue()
    calls = itertools.count()
    acquire = book.acquire

    def collect_and_acquire(*what: Any, **how: Any) -> Lease:
        if next(calls) == 1:
            collected.get().close()
        return acquire(*what, **how)

    monkeypatch.setattr(book, "acquire", collect_and_acquire)
    outcomes = engine.run([calculation("look", str(n)) for n in range(3)], max_workers=1)
    next(outcomes)
    collected.put(outcomes)
    engine.stop()
    assert list(outcomes) == []


def test_stop_reaches_those_who_wait_for_a_lease(book: LeaseBook) -> None:
    def stop_once_it_waits() -> None:
        until(lambda: book.ledger._waiting)
        engine.stop()

    with book.acquire(len(book.usable)), LocalEngine(book) as engine:
        stopper = threading.Thread(target=stop_once_it_waits)
        stopper.start()
        with pytest.raises(StopRequestedError):
            list(engine.run([calculation("look")]))
        stopper.join()


def test_an_error_of_the_listener_ends_the_run(book: LeaseBook) -> None:
    def listen(event: Progress) -> None:
        raise KeyError(event.label)

    with LocalEngine(book, on_progress=listen) as engine:
        with pytest.raises(KeyError, match="a"):
            list(engine.run([calculation("look")]))
        assert book.held() == ()


def test_what_cannot_run_is_refused_before_anything_starts(engine: LocalEngine, book: LeaseBook) -> None:
    good = calculation("look", "good")
    too_wide = calculation("look", "bad", threads=len(book.usable) + 1)
    too_large = replace(calculation("look", '["(auto)", [1, 2], [1, 2]]'), memory_bytes=book.limits.total_bytes + 1)
    for error, bad, said in [
        (ProgramNotFoundError, Calculation(label="bad", program="cfour", input={}), "CFOUR is not installed"),
        (LeaseError, too_wide, "calculation bad can never run here: .* threads were asked for"),
        (LeaseError, too_large, "calculation 1[+]2 can never run here: .* of memory were asked for"),
        (InputError, good, "two calculations have the label 'good'"),
        (InputError, Calculation(label="bad", program="x", input={}, compute="__main__:f"), "a module beside it"),
        (InputError, Calculation(label="bad", program="x", input={}, compute="f"), "module:function"),
    ]:
        with pytest.raises(error, match=said):
            engine.run([good, bad])
    with pytest.raises(InputError, match="number of workers is 0"):
        engine.run([good], max_workers=0)
    with pytest.raises(InputError, match="retries"):
        LocalEngine(book, retries=-1)
    assert engine._pool._folder is None


def test_nothing_to_do(engine: LocalEngine) -> None:
    assert list(engine.run([])) == []


def test_qcengine_computes_and_its_errors_arrive(engine: LocalEngine) -> None:
    molecule = {"symbols": ["He"], "geometry": [0.0, 0.0, 0.0]}

    def job(label: str, basis: str) -> Calculation:
        model = {"method": "hf", "basis": basis}
        specification = {"program": "pyscf", "driver": "energy", "model": model}
        schema = {"schema_name": "qcschema_atomic_input", "schema_version": 2}
        return Calculation(
            label=label, program="pyscf", input={**schema, "molecule": molecule, "specification": specification}
        )

    bad, good = engine.run([job("bad", "no-such-basis"), job("good", "sto-3g")], max_workers=1)
    assert bad.status == "failed"
    assert "no-such-basis" in (bad.error or "")
    assert good.worker_pid == bad.worker_pid
    assert good.result is not None
    # Szabo and Ostlund, Modern Quantum Chemistry: E(He, STO-3G) = -2.807784 hartree.
    assert good.result["return_result"] == pytest.approx(-2.807784, abs=1e-6)
    assert good.result["schema_version"] == 2
