"""Binding, checked against taskset, psutil and /proc, which know nothing of qcthreads; over both Linux back ends."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import psutil
import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import (
    BindingError,
    BindingNotEnforcedError,
    BindingNotPermittedError,
    InputError,
    MachineError,
    ProcessGoneError,
)
from qcthreads.host import get_host

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these back ends are Linux's")


@pytest.fixture(autouse=True)
def _restore_affinity():
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def child():
    """A process that does nothing, and how to end it."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate(b"\n")


def status_cpus(tid: int | str) -> CpuSet:
    lines = Path(f"/proc/{tid}/status").read_text().splitlines()
    return CpuSet.parse(next(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list:")))


def taskset(pid: int) -> CpuSet:
    told = subprocess.run(["taskset", "-cp", str(pid)], capture_output=True, text=True, check=True).stdout
    return CpuSet.parse(told.rpartition(":")[2])


def one_of(host) -> CpuSet:
    return CpuSet([max(host.get_affinity())])


def test_reads_what_the_kernel_says(host):
    assert host.get_affinity() == status_cpus("thread-self") == taskset(os.getpid())
    assert set(host.get_affinity()) == set(psutil.Process().cpu_affinity())


def test_binds_the_calling_thread_alone(host):
    others = []
    done = threading.Event()
    ready = threading.Event()

    def other():
        others.append(threading.get_native_id())
        ready.set()
        done.wait()

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    before = host.get_affinity()
    bound = host.set_affinity(one_of(host))
    try:
        assert bound.asked == bound.got == status_cpus("thread-self")
        assert not bound.lost
        assert status_cpus(others[0]) == before
        assert host.set_affinity(bound.got, others[0]).got == status_cpus(others[0]) == bound.got
    finally:
        done.set()
        thread.join()


def test_children_inherit(host):
    bound = host.set_affinity(one_of(host)).got
    code = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('Cpus_allowed_list')))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert CpuSet.parse(told) == bound


def test_says_which_cpus_the_kernel_dropped(host, child):
    """Linux accepts CPUs that are not there and drops them without a word."""
    one = one_of(host)
    absent = CpuSet([8191, 100_000])
    for bound in (host.set_affinity(one | absent, child.pid), host.set_process_affinity(one | absent, child.pid)):
        assert bound.got == one == taskset(child.pid)
        assert bound.lost == absent
        with pytest.raises(BindingNotEnforcedError, match=f"left out {absent}.*bound to {one}"):
            bound.enforced()
    complete = host.set_affinity(one, child.pid)
    assert complete.enforced() is complete


def test_a_set_that_cannot_be_is_not_enforced(host, child):
    before = taskset(child.pid)
    for bind in (host.set_affinity, host.set_process_affinity):
        with pytest.raises(BindingNotEnforcedError, match="8191"):
            bind(CpuSet([8191]), child.pid)
        with pytest.raises(InputError, match="empty"):
            bind(CpuSet(), child.pid)
    assert taskset(child.pid) == before


def test_a_process_that_has_ended_is_gone(host):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for ask in (host.get_affinity, lambda pid: host.set_affinity(one_of(host), pid)):
        with pytest.raises(ProcessGoneError, match=str(ended.pid)):
            ask(ended.pid)
    with pytest.raises(ProcessGoneError, match=f"process {ended.pid}"):
        host.set_process_affinity(one_of(host), ended.pid)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_another_users_process_is_not_permitted(host, child):
    """In a forked child that gives its rights away; the outcome comes back as its exit status."""
    pid = os.fork()
    if pid == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            host.set_affinity(one_of(host), child.pid)
            status = 1
        except BindingNotPermittedError:
            status = 0
        except BindingError:
            status = 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


THREADS_COME_AND_GO = textwrap.dedent("""
    import threading, time
    stop = time.monotonic() + 20
    def live(depth):
        if depth:
            threading.Thread(target=live, args=(depth - 1,)).start()
        time.sleep(0.05)
    def starter():
        while time.monotonic() < stop:
            live(3)
    for _ in range(4):
        threading.Thread(target=starter, daemon=True).start()
    print("ready", flush=True)
    input()
""")


def test_binds_all_threads_of_a_process_that_keeps_starting_some(host):
    process = subprocess.Popen(
        [sys.executable, "-c", THREADS_COME_AND_GO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        one = one_of(host)
        assert host.set_process_affinity(one, process.pid).got == one
        seen = 0
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            try:
                assert status_cpus(task.name) == one
                seen += 1
            except (FileNotFoundError, ProcessLookupError):
                continue
        assert seen >= 5
    finally:
        process.kill()
        process.communicate()


def test_both_back_ends_agree(monkeypatch, host):
    monkeypatch.setenv("QCTHREADS_BACKEND", "portable")
    portable = get_host()
    assert host.get_affinity() == portable.get_affinity()
    assert host.read_machine() == portable.read_machine()
    mine, theirs = host.capabilities, portable.capabilities
    assert (mine.bind_thread, mine.bind_process, mine.read_binding) == (
        theirs.bind_thread,
        theirs.bind_process,
        theirs.read_binding,
    )


def test_a_back_end_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("QCTHREADS_BACKEND", "fast")
    with pytest.raises(InputError, match="native or portable"):
        get_host()


def test_native_asked_for_where_it_is_not_says_why(tmp_path):
    """A copy of the package without its extension, as a pure wheel has it."""
    import qcthreads

    code = "from qcthreads.host import get_host; get_host()"
    source = Path(qcthreads.__file__).parent
    target = tmp_path / "qcthreads"
    for path in source.rglob("*.py"):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    target.joinpath("host", "_build.txt").write_text("built pure (QCTHREADS_PURE=1)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "QCTHREADS_BACKEND": "native"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert told.returncode == 1
    assert MachineError.__name__ in told.stderr
    assert "built pure (QCTHREADS_PURE=1)" in told.stderr
