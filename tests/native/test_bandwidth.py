"""The triad over both back ends, against the kernel's own account of masks and memory while it measures."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import BindingError, MachineError
from qcthreads.host import bandwidth, read_machine
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
def test_as_many_bytes_are_moved_as_are_counted(tmp_path):
    """By valgrind's account of every load and store in the arrays: what five repetitions have beyond two is three."""
    elements = 1001
    program = traced_program(tmp_path)
    traced = [traced_bytes(program, 24 * elements + 23, repetitions) for repetitions in (2, 5)]
    (few, counted), (many, again) = traced
    assert counted == again == 24 * elements
    assert {kind: (many[kind] - few[kind]) / 3 for kind in many} == {"L": 16 * elements, "S": 8 * elements}


def traced_program(folder: Path) -> Path:
    compiler, valgrind = shutil.which(os.environ.get("CC", "cc")), shutil.which("valgrind")
    if compiler is None or valgrind is None:
        assert os.environ.get("CI") != "true", "a C compiler and valgrind must be installed in CI"
        pytest.skip("needs a C compiler and valgrind")
    program, csrc = folder / "program", Path(__file__).parents[2] / "csrc"
    parts = ("bandwidth.c", "linux_affinity.c", "linux_mempolicy.c", "tests/traced_bandwidth.c")
    flags = ["-std=c11", "-O3", "-pthread", "-Wl,--wrap=mmap", "-Wl,--wrap=clock_gettime"]
    subprocess.run([compiler, *flags, *(str(csrc / part) for part in parts), "-o", str(program)], check=True)
    return program


def traced_bytes(program: Path, size_bytes: int, repetitions: int) -> tuple[Counter[str], int]:
    """What is loaded and stored in the arrays, and what the triad counts of each repetition."""
    trace = program.with_name("trace")
    command = ["valgrind", "--tool=lackey", "--trace-mem=yes", f"--log-file={trace}", program, size_bytes, repetitions]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    first, end, counted = done.stdout.split()
    moved: Counter[str] = Counter()
    with trace.open() as lines:
        for kind, address, size in re.findall(r"^ ([LSM]) (\w+),(\d+)$", lines.read(), re.MULTILINE):
            if int(first, 16) <= int(address, 16) < int(end, 16):
                moved[kind] += int(size)
    return moved, int(counted)


def test_numpy_counts_the_three_arrays_that_it_goes_through_once(monkeypatch):
    looks = itertools.count()
    monkeypatch.setattr(bandwidth, "time", SimpleNamespace(perf_counter=lambda: float(next(looks))))
    triad = bandwidth._NumpyTriad([0], None, 24 * 100_001 + 23, 3)
    monkeypatch.setattr(triad, "_bind", lambda _: None)
    assert triad.bytes_per_s() == triad._arrays.nbytes == 24 * 100_001
    assert (triad._arrays[0] == 4.0).all()


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
