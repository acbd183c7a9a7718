"""The macOS and Windows back ends: on their own systems against psutil, elsewhere over mocked system calls."""

import errno
import os
import struct
import sys
import threading
import time

import psutil
import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import (
    BindingNotEnforcedError,
    BindingNotPermittedError,
    BindingNotSupportedError,
    MachineError,
    ProcessGoneError,
)
from qcthreads.host import get_host, limits
from qcthreads.host.darwin import DarwinHost
from qcthreads.host.select import _say_what_is_missing
from qcthreads.host.windows import WindowsHost

on_macos = pytest.mark.skipif(sys.platform != "darwin", reason="this is not macOS")
on_windows = pytest.mark.skipif(sys.platform != "win32", reason="this is not Windows")
elsewhere = pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="here the calls exist")


class MockedMac:
    """Two kinds of cores; the threads of other processes are not told."""

    def read_sysctl(self, name):
        values = {"hw.logicalcpu": 6, "hw.physicalcpu": 6, "hw.memsize": 8 << 30, "hw.nperflevels": 2}
        for level, cores in enumerate((4, 2)):
            values |= {f"hw.perflevel{level}.{kind}": cores for kind in ("logicalcpu", "physicalcpu", "cpusperl2")}
            values[f"hw.perflevel{level}.l2cachesize"] = 4 << 20
        if name not in values:
            raise OSError(errno.ENOENT, "no such value")
        return struct.pack("<q", values[name])

    def thread_times(self, pid):
        if pid != os.getpid():
            raise OSError(errno.EPERM, "not permitted")
        return {1: 5_000_000}


class MockedWindows:
    """Two groups of four CPUs; thread 7 is in the second. Refuses what Windows refuses."""

    def __init__(self):
        self.masks = {0: 0b1111, 7: 0b1111 << 64}

    def read_topology(self):
        def record(kind, body):
            return struct.pack("<II", kind, 8 + len(body)) + body

        group = struct.pack("<BB38xQ", 64, 4, 0b1111)
        raw = record(4, struct.pack("<HH20x", 2, 2) + 2 * group)
        for cpu in (0, 1, 2, 3, 64, 65, 66, 67):
            raw += record(0, struct.pack("<BB20xHQH6x", 0, 0, 1, 1 << cpu % 64, cpu // 64))
        return raw + record(3, struct.pack("<BB20xHQH6xQH6x", 0, 0, 2, 0b1111, 0, 0b1111, 1))

    def get_affinity(self, tid):
        if tid not in self.masks:
            raise OSError(errno.ESRCH, "gone")
        return self.masks[tid]

    def set_affinity(self, tid, asked):
        self.get_affinity(tid)
        if asked & (2**64 - 1) and asked >> 64:
            raise OSError(errno.EXDEV, "several groups")
        if not asked:
            raise OSError(errno.EINVAL, "none")
        self.masks[tid] = asked
        return asked

    def set_process_affinity(self, pid, asked):
        assert pid == os.getpid()
        for tid in list(self.masks):
            self.set_affinity(tid, asked)
        return asked

    def thread_times(self, pid):
        if pid != os.getpid():
            raise OSError(errno.ESRCH, "gone")
        return {7: 5_000_000}


# --- mocked ---


def test_mocked_macos_has_kinds_of_cores():
    machine = DarwinHost(MockedMac()).read_machine()
    assert [str(kind.cpus) for kind in machine.cpu_kinds] == ["0-1", "2-5"]
    assert [str(domain.cpus) for domain in machine.llc_domains] == ["0-1", "2-5"]
    assert machine.allowed_cpus == machine.cpus_online


def test_mocked_macos_tells_thread_times_or_why_not():
    host = DarwinHost(MockedMac())
    assert host.capabilities.thread_times
    assert host.thread_times(os.getpid()) == {1: 5_000_000}
    with pytest.raises(BindingNotPermittedError, match="ask as the user"):
        host.thread_times(1)


@elsewhere
def test_macos_without_any_of_its_calls_counts_cpus_and_memory():
    machine = DarwinHost().read_machine()
    assert len(machine.cpus_online) == len(machine.cores) == psutil.cpu_count()
    assert machine.numa_nodes[0].memory_bytes == psutil.virtual_memory().total
    assert machine.allowed_cpus == machine.cpus_online


def test_macos_says_in_one_line_what_it_cannot_do(caplog):
    host = DarwinHost()
    capabilities = host.capabilities
    assert not any([capabilities.bind_thread, capabilities.bind_process, capabilities.read_binding])
    for bind in (host.set_affinity, host.set_process_affinity):
        with pytest.raises(BindingNotSupportedError, match="affinity turned off"):
            bind(CpuSet([0]), os.getpid())
    _say_what_is_missing(host)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "leases still count CPUs" in caplog.text
    assert "times of other processes' threads" in caplog.text


def test_mocked_windows_of_two_groups_may_use_both_until_it_is_bound():
    host = WindowsHost(MockedWindows())
    machine = host.read_machine()
    assert str(machine.cpus_online) == str(machine.allowed_cpus) == "0-3,64-67"
    assert str(host.get_affinity(7)) == "64-67"
    binding = host.set_affinity(CpuSet([65, 66, 99]), 7)
    assert (str(binding.got), str(binding.lost)) == ("65-66", "99")
    assert str(host.get_affinity(7)) == "65-66"
    assert str(host.set_process_affinity(CpuSet([64, 65, 66, 67]), 0).got) == "64-67"
    assert str(host.set_process_affinity(CpuSet([1]), os.getpid()).got) == "1"
    assert str(host.read_machine().allowed_cpus) == "1"


def test_mocked_windows_bound_to_a_whole_group_is_not_said_to_have_escaped(monkeypatch):
    host = WindowsHost(MockedWindows())
    monkeypatch.setattr(limits, "get_host", lambda: host)
    mask = limits._live_mask
    assert [str(rule.cpus) for rule in mask()] == ["0-3,64-67"]
    group = CpuSet([0, 1, 2, 3])
    host.set_affinity(CpuSet([64, 65, 66, 67]), 7)  # another thread's binding leaves us free
    assert str(host.read_machine().allowed_cpus) == "0-3,64-67"
    assert host.set_affinity(group).got == host.get_affinity() == group
    assert host.read_machine().allowed_cpus == group
    assert [rule.cpus for rule in mask()] == [group]


@pytest.mark.parametrize("host", [DarwinHost(MockedMac()), WindowsHost(MockedWindows())], ids=["macos", "windows"])
def test_mocked_platforms_that_describe_nonsense_count_cpus(host, monkeypatch, caplog):
    monkeypatch.setattr(MockedMac, "read_sysctl", lambda *_: b"")
    monkeypatch.setattr(MockedWindows, "read_topology", lambda _: b"\0\0\0")
    assert len(host.read_machine().cores) == os.cpu_count()
    (line,) = caplog.messages
    assert "cannot be understood" in line
    if host.capabilities.bind_process:
        assert host.get_affinity()
        assert host.set_affinity(CpuSet([0])).got == CpuSet([0])


def test_windows_without_the_extension_never_asks_a_mocked_psutil_for_no_cpu(monkeypatch):
    monkeypatch.setattr(psutil, "Process", lambda _: pytest.fail("psutil takes no CPU for all of them"))
    host = WindowsHost()
    with pytest.raises(BindingNotEnforcedError, match="none of these CPUs is online"):
        host.set_process_affinity(CpuSet([100_000]), os.getpid())


def test_mocked_windows_says_why_it_cannot_bind():
    host = WindowsHost(MockedWindows())
    for bind in (host.set_affinity, host.set_process_affinity):
        with pytest.raises(BindingNotEnforcedError, match=r"within one processor group .* name CPUs of one group"):
            bind(CpuSet([0, 64]), 0)
        with pytest.raises(BindingNotEnforcedError, match="none of these CPUs is online"):
            bind(CpuSet([5]), 0)
    with pytest.raises(ProcessGoneError, match="thread 99"):
        host.get_affinity(99)
    with pytest.raises(ProcessGoneError, match="ended"):
        host.thread_times(1)


def test_mocked_windows_has_nothing_to_say(caplog):
    _say_what_is_missing(WindowsHost(MockedWindows()))
    assert not caplog.records


def test_windows_without_the_extension_says_that_it_binds_whole_processes_only(caplog):
    host = WindowsHost()
    assert host.capabilities.bind_process
    assert not host.capabilities.bind_thread
    for ask in (lambda: host.set_affinity(CpuSet([0])), lambda: host.get_affinity(1)):
        with pytest.raises(BindingNotSupportedError):
            ask()
    caplog.clear()
    _say_what_is_missing(host)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "only whole processes" in caplog.text


@elsewhere
def test_windows_without_any_of_its_calls_counts_cpus_and_refuses():
    host = WindowsHost()
    assert len(host.read_machine().cores) == os.cpu_count()
    for ask in (host.get_affinity, lambda: host.set_process_affinity(CpuSet([0]), os.getpid())):
        with pytest.raises(BindingNotSupportedError):
            ask()


@pytest.mark.parametrize("host", [DarwinHost(), WindowsHost()], ids=["macos", "windows"])
def test_every_platform_reads_recorded_linux_machines(host, tmp_path):
    online = tmp_path / "sys/devices/system/cpu/online"
    online.parent.mkdir(parents=True)
    online.write_text("0-3\n")
    status = tmp_path / "proc/self/status"
    status.parent.mkdir(parents=True)
    status.write_text("Cpus_allowed_list:\t1-2\n")
    machine = host.read_machine(str(tmp_path))
    assert (str(machine.cpus_online), str(machine.allowed_cpus)) == ("0-3", "1-2")


# --- on the system itself ---


@pytest.fixture(params=["native", "portable"])
def back_end(request, monkeypatch):
    monkeypatch.setenv("QCTHREADS_BACKEND", request.param)
    try:
        return get_host()
    except MachineError as error:
        pytest.skip(str(error))


def busy_thread_is_told(back_end):
    """A thread that works has used CPU time, by the number that Python knows it by."""
    done, numbers = threading.Event(), []

    def work():
        numbers.append(threading.get_native_id())
        while not done.is_set():
            time.perf_counter_ns()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while not numbers or back_end.thread_times(os.getpid()).get(numbers[0], 0) < 30_000_000:
            pass
    finally:
        done.set()
        thread.join()


@on_macos
def test_macos_agrees_with_psutil(back_end):
    machine = back_end.read_machine()
    assert len(machine.cpus_online) == psutil.cpu_count()
    assert len(machine.cores) == psutil.cpu_count(logical=False)
    assert machine.numa_nodes[0].memory_bytes == psutil.virtual_memory().total
    if back_end.capabilities.thread_times:
        busy_thread_is_told(back_end)
        with psutil.Popen([sys.executable, "-c", "input()"], stdin=-1) as child:
            assert back_end.thread_times(child.pid)
            child.kill()


@on_windows
def test_windows_agrees_with_psutil(back_end):
    machine = back_end.read_machine()
    assert len(machine.cpus_online) == psutil.cpu_count()
    assert len(machine.cores) == psutil.cpu_count(logical=False)
    busy_thread_is_told(back_end)
    one = CpuSet([machine.allowed_cpus.first])
    assert back_end.set_process_affinity(one, os.getpid()).got == one
    try:
        assert psutil.Process().cpu_affinity() == list(one)
        assert back_end.get_affinity() == one
    finally:
        back_end.set_process_affinity(machine.allowed_cpus, os.getpid())
    assert back_end.get_affinity() == machine.allowed_cpus
