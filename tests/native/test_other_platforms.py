"""The macOS and Windows back ends as far as they can be held to their word on another system."""

import os
import sys

import psutil
import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import BindingNotSupportedError
from qcthreads.host.darwin import DarwinHost
from qcthreads.host.select import _say_what_is_missing
from qcthreads.host.windows import WindowsHost


def test_macos_counts_cpus_and_memory():
    machine = DarwinHost().read_machine()
    assert len(machine.cpus_online) == len(machine.cores) == psutil.cpu_count()
    assert machine.numa_nodes[0].memory_bytes == psutil.virtual_memory().total
    assert machine.allowed_cpus == machine.cpus_online


def test_macos_says_that_it_cannot_bind(caplog):
    host = DarwinHost()
    capabilities = host.capabilities
    assert not any([capabilities.bind_thread, capabilities.bind_process, capabilities.read_binding])
    for bind in (host.set_affinity, host.set_process_affinity):
        with pytest.raises(BindingNotSupportedError, match="affinity turned off"):
            bind(CpuSet([0]), os.getpid())
    _say_what_is_missing(host)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "leases still count CPUs" in caplog.text


def test_windows_says_that_it_binds_whole_processes_only():
    host = WindowsHost()
    assert host.capabilities.bind_process
    assert not host.capabilities.bind_thread
    with pytest.raises(BindingNotSupportedError, match="bind the process"):
        host.set_affinity(CpuSet([0]))
    with pytest.raises(BindingNotSupportedError, match="whole processes"):
        host.get_affinity(1)


@pytest.mark.skipif(sys.platform == "win32", reason="here the calls exist")
def test_windows_calls_are_refused_elsewhere():
    host = WindowsHost()
    for ask in (host.get_affinity, lambda: host.set_process_affinity(CpuSet([0]), os.getpid())):
        with pytest.raises(BindingNotSupportedError, match="not Windows"):
            ask()


def test_every_platform_reads_recorded_linux_machines(tmp_path):
    online = tmp_path / "sys/devices/system/cpu/online"
    online.parent.mkdir(parents=True)
    online.write_text("0-3\n")
    for host in (DarwinHost(), WindowsHost()):
        assert str(host.read_machine(str(tmp_path)).cpus_online) == "0-3"
