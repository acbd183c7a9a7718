"""Busy CPUs: recorded /proc trees, and this machine with a process of ours that really spins on one CPU."""

import contextlib
import getpass
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.host import BusyWatch, Load
from qcthreads.host.busy import proc_times, psutil_times

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and taskset are Linux's")

# user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice of one CPU, in hundredths of a second
IDLE = (100, 0, 50, 90000, 700, 0, 5, 3, 0, 0)


def record(root: Path, *, gone=(), **by_cpu) -> Path:
    """A /proc/stat of four CPUs with so many ticks more than IDLE's: ``cpu2=(user, ...)``."""
    rows = {cpu: IDLE for cpu in range(4) if cpu not in gone}
    for name, more in by_cpu.items():
        rows[int(name[3:])] = tuple(map(sum, zip(IDLE, (*more, *[0] * (10 - len(more))), strict=True)))
    lines = [f"cpu{cpu} {' '.join(map(str, row))}" for cpu, row in rows.items()]
    total = "cpu  " + " ".join(str(sum(column)) for column in zip(*rows.values(), strict=True))
    interrupts = "intr 217055" + " 0" * 40000
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/stat").write_text("\n".join([total, *lines, interrupts, "ctxt 1", "cpu9 1 1 1 1 1 1 1 1", ""]))
    return root


def process(root: Path, pid: int, name="burner", *, threads=((0, "R", 3, "3"),), uid=0) -> None:
    """A process in the tree; each thread: its number less the process's, state, CPU and mask."""
    for offset, state, cpu, mask in threads:
        stat = f"{pid + offset} ({name}) {state} 1" + " 0" * 15 + f" {len(threads)}" + " 0" * 18 + f" {cpu}" + " 0" * 13
        status = f"Name:\t{name}\nUmask:\t0022\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nCpus_allowed_list:\t{mask}\n"
        for directory in (f"proc/{pid}/task/{pid + offset}", *([] if offset else [f"proc/{pid}"])):
            (root / directory).mkdir(parents=True, exist_ok=True)
            (root / directory / "stat").write_text(stat, "utf-8", newline="\n")
            (root / directory / "status").write_text(status, "utf-8", newline="\n")


def looked(root: Path, *, seconds=1.0, **ticks) -> BusyWatch:
    watch = BusyWatch(record(root))
    watch.look(100.0)
    record(root, **ticks)
    watch.look(100.0 + seconds)
    return watch


def test_shares_are_of_the_time_between_two_looks(tmp_path):
    watch = BusyWatch(record(tmp_path))
    assert watch.look(100.0) == Load()
    assert not watch.look(100.0).known
    record(tmp_path, cpu0=(20, 30, 40, 0, 0, 10, 5), cpu1=(0, 0, 0, 50, 150), cpu2=(0, 0, 0, 0, 0, 0, 0, 80))
    load = watch.look(102.0)
    assert load.known
    assert load.interval_s == 2.0
    assert load.busy == pytest.approx({0: 0.525, 1: 0, 2: 0, 3: 0}), "idle, waiting for disks and stolen is not busy"
    assert load.steal == pytest.approx({0: 0, 1: 0, 2: 0.4, 3: 0})
    assert (load.above(0.5), load.above(0.6)) == (CpuSet([0]), CpuSet())
    record(tmp_path, cpu0=(220, 30, 40, 0, 0, 10, 5))
    assert watch.look(104.0).busy[0] == 1.0
    assert watch.look(106.0).busy[0] == 0.0


def test_a_look_too_soon_gives_the_previous_answer_and_keeps_the_interval(tmp_path):
    watch = looked(tmp_path, cpu0=(50,))
    record(tmp_path, cpu0=(60,))
    assert watch.look(101.09).busy[0] == 0.5
    assert watch.look(101.2).busy[0] == pytest.approx(0.1 / 0.2), "since 101.0, not since 101.09"


def test_cpus_come_and_go(tmp_path):
    watch = BusyWatch(record(tmp_path, gone=[3]))
    watch.look(0.0)
    record(tmp_path, gone=[1], cpu0=(100,))
    assert watch.look(1.0).busy == {0: 1.0, 2: 0.0}, "one that comes has no share yet"
    record(tmp_path, cpu3=(100,))
    assert watch.look(2.0).busy == {0: 0.0, 2: 0.0, 3: 1.0}, "counters that went back are no work"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cpu",
        "cpu0",
        "cpu0 1 2 3\n",
        "cpu0 -1 0 0 0 0 0 0 0\n",
        "cpux 1 1 1 1 1 1 1 1\n",
        "\0" * 999,
        "cpu9999999 " * 9,
    ],
)
def test_nonsense_is_not_known(tmp_path, text):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(text)
    watch = BusyWatch(tmp_path)
    assert [watch.look(now).known for now in (0.0, 1.0)] == [False, False]
    assert watch.explain(0).startswith("how busy CPU 0 is, is not known: ")


def test_no_proc_is_not_known(tmp_path):
    watch = BusyWatch(str(tmp_path))
    assert [watch.look(now).known for now in (0.0, 1.0)] == [False, False]
    assert watch.pinned(CpuSet([0])) == ()
    assert "/proc/stat cannot be read" in watch.explain(0)


def test_proc_that_vanishes_is_not_known_again(tmp_path):
    watch = looked(tmp_path, cpu0=(97,))
    (tmp_path / "proc/stat").unlink()
    assert not watch.look(102.0).known


def test_a_pinned_process_explains_a_busy_cpu(tmp_path):
    watch = looked(tmp_path, cpu3=(97,))
    process(tmp_path, 123, "stress) R 1 (ng", uid=54321)
    process(tmp_path, 124, "free", threads=[(0, "R", 3, "0-3")])
    process(tmp_path, 125, "asleep", threads=[(0, "S", 3, "3")])
    process(tmp_path, 126, "elsewhere", threads=[(0, "R", 2, "2-3")])
    assert watch.explain(3) == (
        "CPU 3 is 97 % busy with the work of others: pid 123 (stress) R 1 (ng, user 54321), pinned to 3"
    )
    (found,) = watch.pinned(CpuSet([1, 3]))
    assert (found.pid, found.user, found.mask, found.cpus) == (123, "54321", CpuSet([3]), CpuSet([3]))


def test_pinned_threads_of_a_process_whose_first_one_sleeps(tmp_path):
    watch = looked(tmp_path)
    process(tmp_path, 70, threads=[(0, "S", 0, "0-3"), (1, "R", 2, "2"), (2, "R", 3, "3"), (5, "R", 1, "0-3")])
    (found,) = watch.pinned(CpuSet([1, 2, 3]))
    assert (found.pid, found.mask, found.cpus) == (70, CpuSet([2, 3]), CpuSet([2, 3]))


def test_many_are_counted_and_what_the_hypervisor_takes_is_said(tmp_path):
    watch = looked(tmp_path, cpu1=(60, 0, 0, 0, 0, 0, 0, 30))
    for pid in (5, 10, 11, 100, 40):
        process(tmp_path, pid, f"p{pid}", threads=[(0, "R", 1, "0-1")], uid=54321)
    said = watch.explain(1)
    assert said.startswith("CPU 1 is 60 % busy with the work of others, the hypervisor takes 30 %: pid 5 (p5, user ")
    assert said.endswith("; pid 11 (p11, user 54321), pinned to 0-1; and 2 more")
    assert watch.explain(0).endswith("no process that is pinned to it can be seen running there")


def test_the_name_of_a_process_cannot_write_on_the_terminal(tmp_path):
    watch = looked(tmp_path)
    process(tmp_path, 9, "\x1b[2J über")
    assert watch.pinned(CpuSet([3]))[0].command == "[2J über"


def test_a_process_that_ends_meanwhile_is_none(tmp_path):
    watch = looked(tmp_path)
    process(tmp_path, 9)
    (tmp_path / "proc/9/status").unlink()
    (tmp_path / "proc/8").mkdir()
    assert watch.pinned(CpuSet([3])) == ()


@contextlib.contextmanager
def burner(cpu: int):
    command = ["taskset", "-c", str(cpu), sys.executable, "-c", "print(flush=True)\nwhile 1: pass"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        try:
            yield child.pid
        finally:
            child.kill()


@linux
def test_a_real_burner_is_found_and_named():
    cpu = max(os.sched_getaffinity(0))
    if len(psutil.cpu_times(percpu=True)) == 1:
        pytest.skip("on a machine with one CPU nobody is pinned")
    watch = BusyWatch()
    with burner(cpu) as pid:
        watch.look(time.monotonic())
        before_s = psutil.Process(pid).cpu_times().user
        while psutil.Process(pid).cpu_times().user < before_s + 0.5:
            time.sleep(0.1)
        its_s = psutil.Process(pid).cpu_times().user - before_s
        load = watch.look(time.monotonic())
        found = {process.pid: process for process in watch.pinned(CpuSet([cpu]))}
        said = watch.explain(cpu)
        command = Path(f"/proc/{pid}/comm").read_text().strip()
    assert load.busy[cpu] * load.interval_s > its_s / 2, "the CPU worked for the burner at least; ticks are samples"
    assert (found[pid].user, found[pid].mask, found[pid].cpus) == (getpass.getuser(), CpuSet([cpu]), CpuSet([cpu]))
    assert found[pid].command == command
    assert said.startswith(f"CPU {cpu} is ")
    assert pid not in {process.pid for process in watch.pinned(CpuSet([cpu]))}, "it has ended"


@linux
def test_without_a_descriptor_left_nothing_is_known_and_nothing_raised():
    code = "import resource, time\nfrom qcthreads.host import BusyWatch\nfrom qcthreads.cpuset import CpuSet\n"
    code += "watch = BusyWatch(); watch.look(0.0); known = watch.look(1.0).known\n"
    code += "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
    code += "print(known, watch.look(2.0).known, watch.pinned(CpuSet([0])), watch.explain(0)[:14])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False () how busy CPU 0\n"


@linux
def test_the_counters_are_those_of_psutil():
    """Read between two readings of psutil's, which parses the same file by itself."""

    def of_psutil():
        found = psutil.cpu_times(percpu=True)
        return [(one.user + one.nice + one.system + one.irq + one.softirq, one.steal) for one in found]

    before, ours, after = of_psutil(), proc_times("/"), of_psutil()
    assert list(ours) == list(range(len(before)))
    for cpu, ticks in ours.items():
        for low, mine, high in zip(before[cpu], ticks, after[cpu], strict=True):
            assert low - 1e-6 <= mine / 100 <= high + 1e-6


def test_where_there_is_no_proc_psutil_tells():
    """What macOS and Windows use, between two of psutil's sums over all CPUs."""
    before, found, after = psutil.cpu_times(), psutil_times(), psutil.cpu_times()
    assert sorted(found) == list(range(os.cpu_count()))
    busy_s = sum(ticks for ticks, _ in found.values()) / 100
    assert before.user + before.system - 1 <= busy_s <= after.user + after.system + getattr(after, "nice", 0.0) + 1
