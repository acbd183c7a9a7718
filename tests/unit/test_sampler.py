"""Samples of threads over both back ends and every source, beside clocks, wait4, psutil and /proc/self/fd."""

from __future__ import annotations

import collections
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from qcthreads import ThreadSampler
from qcthreads.errors import InputError, MachineError, ProcessGoneError
from qcthreads.host import get_host, native_status
from qcthreads.host.sampling import Sample, TimesSource
from qcthreads.monitoring.sampler import BackgroundSampler

if sys.platform != "linux":
    pytest.skip("what the other systems tell is tested with the monitor", allow_module_level=True)

SOURCES: list[TimesSource] = ["schedstat", "stat", "psutil"]
over_both = pytest.mark.usefixtures("back_end")
TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")

# A program that does what it is told, line by line, and says how much CPU time its threads have used, by their clocks.
WORKER = """
import os, sys, threading, time
def burn(cpu_s):
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass
def member(cpu_s, name, began_ns):
    if name:
        open("/proc/thread-self/comm", "w").write(name)
    burn(cpu_s)
    used_ns = time.thread_time_ns()
    print(threading.get_native_id(), used_ns, time.monotonic_ns() - began_ns - used_ns, flush=True)
    end.wait()
end = threading.Event()
for line in sys.stdin:
    exec(line)
"""


@pytest.fixture(params=["native", "portable"])
def back_end(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    available, reason = native_status()
    if name == "native" and not available:
        pytest.skip(f"the native extension cannot be used: {reason}")
    monkeypatch.setenv("QCTHREADS_BACKEND", name)
    return name


class Worker:
    """The program above."""

    def __init__(self, *prefix: str) -> None:
        command = [*prefix, sys.executable, "-c", WORKER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.say("print(os.getpid())")
        self.pid = int(self.answer()[0])

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")

    def answer(self) -> list[int]:
        assert self.process.stdout is not None
        return [int(word) for word in self.process.stdout.readline().split()]

    def start(self, cpu_s: float, name: str = "") -> tuple[int, int]:
        """A thread that uses so much CPU time, and sleeps: its number, and its own clock."""
        tid, cpu_ns, _ = self.start_and_wait(cpu_s, name)
        return tid, cpu_ns

    def start_and_wait(self, cpu_s: float, name: str = "") -> tuple[int, int, int]:
        """And how long it neither ran nor slept."""
        arguments = f"{cpu_s}, {name!r}, time.monotonic_ns()"
        self.say(f"threading.Thread(target=member, args=({arguments}), daemon=True).start()")
        tid, cpu_ns, waited_ns = self.answer()
        self.fall_asleep()
        return tid, cpu_ns, waited_ns

    def fall_asleep(self) -> None:
        """Until all of its threads have slept for a moment: what they use to say something is used by then."""
        for tid in (tasks := Path(f"/proc/{self.pid}/task")).iterdir():
            while (tasks / tid / "stat").read_bytes().rpartition(b")")[2].split()[0] != b"S":
                time.sleep(0.01)
        time.sleep(0.02)


@contextmanager
def worker(*prefix: str) -> Iterator[Worker]:
    made = Worker(*prefix)
    with made.process:
        try:
            yield made
        finally:
            made.process.kill()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def row(rows: np.ndarray, tid: int) -> np.void:
    (found,) = rows[rows["tid"] == tid]
    return found


@pytest.mark.parametrize("source", SOURCES)
@over_both
def test_the_time_of_a_thread_is_that_of_its_own_clock(source: TimesSource) -> None:
    with worker() as made, ThreadSampler([made.pid], source=source) as sampler:
        tid, cpu_ns = made.start(0.3)
        rows = sampler.sample()
        assert rows.dtype.names == ("pid", "tid", "cpu_ns", "wait_ns", "slices")
        seen = row(rows, tid)
        assert sampler.source == source
        # A thread that sleeps does not lag; stat rounds down, and splits its ticks between user and system.
        tolerance_ns = 2e6 if source == "schedstat" else 2 * TICK_NS
        assert seen["cpu_ns"] == pytest.approx(cpu_ns, abs=tolerance_ns, rel=0.0)
        assert seen["pid"] == made.pid
        assert (seen["slices"] > 0) == (seen["wait_ns"] >= 0) == (source == "schedstat")


@over_both
def test_threads_that_share_a_cpu_have_waited_for_it() -> None:
    cpu = str(min(os.sched_getaffinity(0)))
    with worker("taskset", "-c", cpu) as made, ThreadSampler([made.pid]) as sampler:
        others = [subprocess.Popen(["taskset", "-c", cpu, sys.executable, "-c", "while True: pass"]) for _ in range(2)]
        try:
            tid, cpu_ns, waited_ns = made.start_and_wait(0.4)
            seen = row(sampler.sample(), tid)
        finally:
            for other in others:
                other.kill()
                other.wait()
    assert seen["wait_ns"] >= cpu_ns  # of three
    assert seen["cpu_ns"] == pytest.approx(cpu_ns, rel=0.02, abs=TICK_NS)
    assert seen["wait_ns"] == pytest.approx(waited_ns, rel=0.02, abs=TICK_NS)


@over_both
def test_a_thread_that_runs_lags_by_no_more_than_is_said() -> None:
    with worker() as made, ThreadSampler([made.pid]) as sampler:
        made.say("burn(600)")
        beyond_ns = []
        for _ in range(40):
            time.sleep(0.005)
            begin_ns = time.monotonic_ns()
            seen_ns = sampler.sample()["cpu_ns"].sum()
            lag_ns = sampler.processes()["cpu_ns"][0] - seen_ns  # of a clock that does not lag
            beyond_ns.append(lag_ns - sampler.error_ns - (time.monotonic_ns() - begin_ns))
    assert np.median(beyond_ns) <= 0  # a guest whose host gives its CPU to another lags by what that lasts


@pytest.mark.parametrize("source", SOURCES)
@over_both
def test_details_agree_with_psutil(source: TimesSource) -> None:
    with worker() as made, ThreadSampler([made.pid], source=source) as sampler:
        tid, _ = made.start(0.05)
        known = psutil.Process(made.pid)
        rows = sampler.sample(detail=True)
        assert sorted(rows["tid"]) == sorted(thread.id for thread in known.threads())
        (process,) = sampler.processes()
        assert process["memory_bytes"] == pytest.approx(known.memory_info().rss, rel=0.02)
        assert process["memory_peak_bytes"] >= process["memory_bytes"]
        assert process["cpu_ns"] == pytest.approx(sum(known.cpu_times()[:2]) * 1e9, abs=2 * TICK_NS)
        if source == "psutil":
            assert set(rows["last_cpu"]) == {-1}
            return
        switches = known.num_ctx_switches()  # of the main thread, whatever its name says
        main = row(rows, made.pid)
        assert (main["voluntary_switches"], main["involuntary_switches"]) == (switches.voluntary, switches.involuntary)
        assert main["last_cpu"] == known.cpu_num()
        assert main["state"] == row(rows, tid)["state"] == b"S"
        assert main["minor_faults"] > 1000
        assert main["started_ticks"] / os.sysconf("SC_CLK_TCK") + psutil.boot_time() == pytest.approx(
            known.create_time(), abs=1.5
        )


@over_both
def test_switches_are_told_also_of_threads_that_slept_while_others_looked_without_them() -> None:
    with worker() as made:
        for _ in range(3):
            made.start(0.02)
        host_sampler = get_host().open_sampler([made.pid])
        for _ in range(3):
            host_sampler.look(made.pid)
        seen = host_sampler.sample(True)
        told = dict(zip(seen.threads["tid"].tolist(), _switches(seen), strict=True))
        assert told == {tid: _switches_in_proc(made.pid, tid) for tid in told}
        assert len(told) == 4
        host_sampler.close()


def _switches(sample: Sample) -> list[tuple[int, int]]:
    assert sample.details is not None
    return list(
        zip(sample.details["voluntary_switches"].tolist(), sample.details["involuntary_switches"].tolist(), strict=True)
    )


def _switches_in_proc(pid: int, tid: int) -> tuple[int, int]:
    lines = Path(f"/proc/{pid}/task/{tid}/status").read_text().splitlines()
    voluntary, involuntary = (int(line.split()[1]) for line in lines if "ctxt_switches:" in line)
    return voluntary, involuntary


@over_both
def test_names_that_look_like_fields_parse() -> None:
    with worker() as made, ThreadSampler([made.pid]) as sampler:
        for name in ("a) (b c", ") R 1\n2 3", "\n", "))))"):
            tid, cpu_ns = made.start(0.02, name)
            seen = row(sampler.sample(detail=True), tid)
            assert seen["state"] == b"S"
            assert seen["cpu_ns"] == pytest.approx(cpu_ns, abs=3e6, rel=0)
            assert 0 < seen["voluntary_switches"] < 100


@pytest.mark.parametrize("source", SOURCES)
@over_both
def test_threads_that_ended_stay_counted(source: TimesSource) -> None:
    with worker() as made, ThreadSampler([made.pid], source=source) as sampler:
        used = [made.start(0.05) for _ in range(3)]
        assert len(sampler.sample()) == 4
        made.say("end.set(); [one.join() for one in threading.enumerate()[1:]]; print(1, flush=True)")
        made.answer()
        while psutil.Process(made.pid).num_threads() > 1:
            time.sleep(0.01)
        rows = sampler.sample()
        (process,) = sampler.processes()
    assert len(rows) == 1
    assert process["threads"] == 1
    assert process["ended_threads"] == 3
    assert process["ended_cpu_ns"] == pytest.approx(sum(cpu_ns for _, cpu_ns in used), abs=6 * TICK_NS)
    assert process["cpu_ns"] >= process["ended_cpu_ns"] - 6 * TICK_NS


@pytest.mark.parametrize("source", SOURCES)
@over_both
def test_descendants_are_found_and_their_end_is_counted(source: TimesSource) -> None:
    burn = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORKER!r}])"
    with worker() as made, ThreadSampler([made.pid], source=source) as sampler:
        own = ThreadSampler([made.pid], children=False, source=source)
        made.say("import subprocess")
        made.say(f"child = subprocess.Popen([sys.executable, '-c', {burn!r}], stdin=subprocess.PIPE, text=True)")
        made.say("child.stdin.write('burn(0.2); print(1, flush=True)\\n'); child.stdin.flush()")
        made.answer()
        pids = {child.pid for child in psutil.Process(made.pid).children(recursive=True)}
        assert len(pids) == 2
        assert set(sampler.sample()["pid"]) == {made.pid, *pids}
        assert set(sampler.processes()["root"]) == {made.pid}
        made.say("child.stdin.close(); print(child.wait(), flush=True)")
        made.answer()
        assert set(sampler.sample(detail=True)["pid"]) == set(own.sample()["pid"]) == {made.pid}
        (root,) = sampler.processes()
        own.close()
    assert root["gone_processes"] == 2
    assert root["gone_cpu_ns"] >= 0.2e9 - 2 * TICK_NS
    assert root["waited_for_ns"] >= 0.2e9 - 2 * TICK_NS


@over_both
def test_a_process_that_ended_has_used_what_wait4_says() -> None:
    code = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    with ThreadSampler([process.pid]) as sampler:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        sampler.sample(detail=True)
        (zombie,) = sampler.processes()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        assert len(sampler.sample()) == 0
        (gone,) = sampler.processes()
    used_ns = (usage.ru_utime + usage.ru_stime) * 1e9
    assert zombie["cpu_ns"] == pytest.approx(used_ns, rel=0.01)
    assert gone["cpu_ns"] == zombie["cpu_ns"]
    assert gone["ended"]
    assert gone["memory_peak_bytes"] <= usage.ru_maxrss * 1024


@over_both
def test_threads_that_come_and_go_while_it_looks_lose_nothing() -> None:
    churn = """
import threading
for _ in range(400):
    thread = threading.Thread(target=sum, args=[range(20000)])
    thread.start()
    thread.join()
"""
    process = subprocess.Popen([sys.executable, "-c", churn])
    with ThreadSampler([process.pid]) as sampler:
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            rows = sampler.sample(detail=True)
            assert len(set(rows["tid"])) == len(rows)
        sampler.sample(detail=True)
        (seen,) = sampler.processes()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        assert sampler.unread == 0
    assert seen["cpu_ns"] == pytest.approx((usage.ru_utime + usage.ru_stime) * 1e9, rel=0.01, abs=TICK_NS)
    assert seen["ended_cpu_ns"] <= seen["cpu_ns"]


@over_both
def test_few_descriptors_are_enough_and_all_are_given_back() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = descriptors()
    with worker() as made:
        tids = [made.start(0.001)[0] for _ in range(50)]
        few = descriptors() + 40
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        try:
            with ThreadSampler([made.pid]) as sampler:
                for detail in (False, True):
                    rows = sampler.sample(detail)
                    assert {made.pid, *tids} == set(rows["tid"])
                    assert (rows["cpu_ns"] > 0).all()
                assert sampler.unread == 0
                assert descriptors() < few
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert descriptors() == before


@over_both
def test_what_is_no_process_is_refused() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(ProcessGoneError, match=f"there is no process {gone.pid}"):
        ThreadSampler([os.getpid(), gone.pid])
    for pids in ([], [0], [-1], ["1"]):
        with pytest.raises(InputError, match="give the numbers of one or more"):
            ThreadSampler(pids)


def test_both_back_ends_see_the_same() -> None:
    if not native_status()[0]:
        pytest.skip("the native extension cannot be used")
    from qcthreads.host.linux import LinuxHost
    from qcthreads.host.portable import PortableHost

    with worker() as made:
        for _ in range(3):
            made.start(0.02)
        seen = [host.open_sampler([made.pid]).sample(True) for host in (LinuxHost(), PortableHost())]
    for name in ("threads", "details", "processes"):
        native, pure = (getattr(sample, name) for sample in seen)
        np.testing.assert_array_equal(native, pure)


@pytest.mark.parametrize("source", ["schedstat", "psutil"])
@over_both
def test_the_background_sampler_keeps_its_times(source: TimesSource) -> None:
    before = threading.active_count()
    with BackgroundSampler([os.getpid()], source=source, fast_hz=100, detail_hz=20) as background:
        time.sleep(0.5)
        before_its_end_ns = time.monotonic_ns()
    counts = background.counts
    samples = list(background.take())
    at_ns = np.array([sample.at_ns for sample in samples])
    assert len(samples) == counts.samples
    assert counts.detailed == sum(sample.details is not None for sample in samples)
    assert counts.dropped == 0
    # Every deadline that came was taken or counted, so that a sample that came late moved none of them.
    assert counts.samples + counts.overruns >= (before_its_end_ns - at_ns[0]) // 10_000_000
    assert counts.detailed >= 2
    assert samples[-1].details is not None
    assert 0 < counts.own_cpu_ns < 0.5e9
    assert (np.diff(at_ns) > 0).all()
    assert threading.active_count() == before


@over_both
def test_deadlines_that_cannot_be_kept_are_counted() -> None:
    began_ns = time.monotonic_ns()
    with BackgroundSampler([os.getpid()], fast_hz=1e6) as background:  # no look takes less than that
        time.sleep(0.05)
        before_its_end_ns = time.monotonic_ns()
    ended_ns = time.monotonic_ns()
    counts = background.counts
    first = next(background.take())
    assert counts.overruns > counts.samples
    told = counts.samples + counts.overruns
    assert (before_its_end_ns - first.at_ns) // 1000 <= told <= (ended_ns - began_ns) // 1000 + 3


def test_samples_are_taken_while_the_interpreter_is_held() -> None:
    if not native_status()[0]:
        pytest.skip("the native extension cannot be used")
    with BackgroundSampler([os.getpid()], fast_hz=1000) as background:
        during = 0
        for _ in range(20):  # on a busy machine the sampler, too, has to wait for a CPU
            collections.deque(background.take(), maxlen=0)
            begin_ns = time.monotonic_ns()
            pow(3, 2_000_000)  # in C, which lets no other thread in
            end_ns = time.monotonic_ns()
            during = sum(begin_ns < sample.at_ns < end_ns for sample in background.take())
            if during > 1:
                break
    assert during > 1


@over_both
def test_the_ring_forgets_the_oldest() -> None:
    with BackgroundSampler([os.getpid()], fast_hz=200, detail_hz=50, ring_bytes=4000) as background:
        while not background.counts.dropped:
            time.sleep(0.01)
    kept = list(background.take())
    assert 0 < len(kept) < background.counts.samples
    assert background.counts.dropped == background.counts.samples - len(kept)
    assert kept[-1].details is not None  # the newest is there
    assert sum(sample.size_bytes for sample in kept) <= 4000


def test_rates_that_are_none_are_refused() -> None:
    for wrong in ({"fast_hz": 0.0}, {"detail_hz": -1.0}, {"ring_bytes": 0}):
        with pytest.raises(InputError, match="each must be above 0"):
            BackgroundSampler([os.getpid()], **wrong)  # type: ignore[arg-type]


def test_what_ended_the_background_sampler_is_told(back_end: str) -> None:
    background = BackgroundSampler([os.getpid()])
    background._sampler.close()
    if back_end == "portable":
        background.stop()
        return
    with pytest.raises(ValueError, match="closed"), background:
        background.wait(60)


def test_a_source_of_linux_is_refused_elsewhere_with_the_platform_set_by_the_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from qcthreads.host.portable import PortableHost

    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(MachineError, match="there is no /proc on darwin"):
        PortableHost().open_sampler([os.getpid()], source="stat")


@pytest.mark.parametrize("source", SOURCES)
def test_processes_come_and_go_while_it_samples(source: TimesSource) -> None:
    sleeper = "import time; print(flush=True); time.sleep(600)"
    processes = [subprocess.Popen([sys.executable, "-c", sleeper], stdout=subprocess.PIPE) for _ in range(2)]
    stays, goes = (process.pid for process in processes)
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        with BackgroundSampler([], source=source, fast_hz=100, detail_hz=20) as background:
            background.attach(stays)
            background.attach(goes)
            background.attach(goes)  # once more is no harm
            deadline = time.monotonic() + 30
            seen: set[int] = set()
            while seen != {stays, goes} and time.monotonic() < deadline:
                seen = {pid for sample in background.take() for pid in sample.threads["pid"].tolist()} or seen
            assert seen == {stays, goes}
            looked = background.look(goes)
            assert looked.processes is not None
            assert set(looked.threads["pid"].tolist()) == set(looked.processes["pid"].tolist()) == {goes}
            used_s = sum(psutil.Process(goes).cpu_times()[:2])
            assert looked.processes["cpu_ns"][0] / 1e9 == pytest.approx(used_s, abs=0.03)
            background.detach(goes)
            after_ns = time.monotonic_ns()
            later: set[int] = set()
            while not later and time.monotonic() < deadline:
                later = {
                    pid
                    for sample in background.take()
                    if sample.at_ns > after_ns
                    for pid in sample.threads["pid"].tolist()
                }
            assert later == {stays}
            processes[0].kill()
            processes[0].wait()
            gone = background.look(stays).processes
            assert gone is not None
            assert gone["ended"].tolist() == [1]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_process_whose_clock_stands_still_is_seen_when_it_runs_again() -> None:
    code = """
import threading, sys, time
asleep = [threading.Thread(target=threading.Event().wait, daemon=True) for _ in range(6)]
for thread in asleep:
    thread.start()
print(flush=True)
for line in sys.stdin:
    end = time.thread_time() + float(line)
    while time.thread_time() < end:
        pass
    print(flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        with ThreadSampler([process.pid]) as sampler:
            for burn_s in (0.1, 0.02):
                clock_ns = _clock_asleep_ns(process.pid)
                assert {int(sampler.sample()["cpu_ns"].sum()) for _ in range(4)} == {clock_ns}
                process.stdin.write(f"{burn_s}\n")
                process.stdin.flush()
                process.stdout.readline()
                assert _clock_asleep_ns(process.pid) >= clock_ns + burn_s * 1e9
                assert sampler.sample()["cpu_ns"].sum() == _clock_asleep_ns(process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def _clock_asleep_ns(pid: int) -> int:
    """The process's own clock when all its threads sleep; exact then, and that of all of them if none has ended."""
    deadline = time.monotonic() + 30
    while True:
        before = time.clock_gettime_ns(~pid << 3 | 2)  # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of the kernel
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        asleep = all(stat.rpartition(")")[2].split()[0] == "S" for stat in stats)
        if asleep and time.clock_gettime_ns(~pid << 3 | 2) == before:
            return before
        assert time.monotonic() < deadline
        time.sleep(0.001)
