"""The triad over both back ends, against the kernel's own account of masks and memory while it measures."""

import re
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import BindingError, MachineError
from qcthreads.host import read_machine
from qcthreads.host.bandwidth import measure_triad, triad_method, working_set_bytes
from qcthreads.machine.synthetic import synthetic_machine

MIB = 1024**2
SIZE_BYTES = 24 * MIB
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells of masks and memory")


@contextmanager
def measuring(cpus, node):
    """Measures again and again while ``with`` goes on."""
    over, errors = threading.Event(), []

    def measure():
        try:
            while not over.is_set():
                measure_triad(cpus, node, SIZE_BYTES, 20)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        yield thread
    finally:
        over.set()
        thread.join()
    assert not errors


def masks() -> set[str]:
    found = set()
    for status in Path("/proc/self/task").glob("*/status"):
        try:
            found.add(re.search(r"Cpus_allowed_list:\s*(\S+)", status.read_text()).group(1))
        except OSError:  # it has ended
            continue
    return found


@LINUX
def test_each_thread_is_bound_to_its_cpu_and_the_memory_to_the_node(host):
    cpus = list(host.get_affinity())[:2]
    if len(cpus) < 2:
        pytest.skip("with one CPU every thread is bound to it")
    node = next(node.node_id for node in read_machine().numa_nodes if cpus[0] in node.cpus)
    bound, on_node = set(), not host.capabilities.bind_memory
    with measuring(cpus, node) as thread:
        while thread.is_alive() and not (bound == set(map(str, cpus)) and on_node):
            bound |= masks() & set(map(str, cpus))
            on_node = on_node or f" bind:{node} " in Path("/proc/self/numa_maps").read_text()
        assert thread.is_alive()
    assert host.get_affinity() >= CpuSet(cpus)


@LINUX
def test_no_repetition_is_faster_than_the_best(host):
    """What all of them took is what the clock of whoever asked says: at least so many times the best."""
    began_s = time.perf_counter()
    found = measure_triad(list(host.get_affinity())[:1], None, SIZE_BYTES, 30)
    wall_s = time.perf_counter() - began_s
    assert found.bytes_per_s * wall_s >= 30 * SIZE_BYTES
    assert not found.node_bound


@LINUX
def test_cpus_and_nodes_that_are_not_there_are_named(host):
    with pytest.raises(BindingError, match="9999"):
        measure_triad([9999], None, SIZE_BYTES)
    if host.capabilities.bind_memory:
        with pytest.raises(BindingError, match="900"):
            measure_triad([0], 900, SIZE_BYTES)


@LINUX
def test_the_method_is_told(host):
    assert triad_method() == {"native": "native", "portable": "numpy"}[host.capabilities.back_end]


def test_the_arrays_are_larger_than_the_caches_of_the_cores_that_take_part():
    machine = synthetic_machine(llcs=4, cores=8)  # of 32 MiB
    assert working_set_bytes(machine, CpuSet(range(8)), 2**40) == 3 * 4 * 32 * MIB
    assert working_set_bytes(machine, CpuSet([0, 8, 16]), 2**40) == 3 * 3 * 4 * 32 * MIB
    assert working_set_bytes(machine, CpuSet([0]), 1000 * MIB) == 250 * MIB
    with pytest.raises(MachineError, match=r"too near to their caches' 128 MiB; allow 3 GiB"):
        working_set_bytes(machine, machine.cpus_online, 3000 * MIB)
