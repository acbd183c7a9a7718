"""What an executor calls once per calculation, beside its peers: ``python -m pytest benchmarks --benchmark-only``."""

from __future__ import annotations

import os
from collections.abc import Callable

import psutil
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from qcthreads import CpuSet
from qcthreads.host import get_host
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import LeaseBook
from qcthreads.machine.placement import split
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.programs.registry import get
from qcthreads.programs.settings import settings_for

MACHINE = synthetic_machine(packages=2, nodes=4, llcs=4, cores=8)  # 256 PUs
ALL = MACHINE.allowed_cpus


@pytest.mark.benchmark(group="read the caller's mask")
@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda: get_host().get_affinity(), id="qcthreads"),
        pytest.param(lambda: os.sched_getaffinity(0), id="os.sched_getaffinity"),
        pytest.param(lambda: psutil.Process().cpu_affinity(), id="psutil"),
    ],
)
def test_read_mask(benchmark: BenchmarkFixture, read: Callable[[], object]) -> None:
    assert len(benchmark(read)) == len(os.sched_getaffinity(0))


@pytest.mark.benchmark(group="bind the caller")
@pytest.mark.parametrize(
    "bind",
    [
        pytest.param(lambda cpus: get_host().set_affinity(CpuSet(cpus)), id="qcthreads, read back"),
        pytest.param(lambda cpus: os.sched_setaffinity(0, cpus), id="os.sched_setaffinity"),
        pytest.param(lambda cpus: psutil.Process().cpu_affinity(cpus), id="psutil"),
    ],
)
def test_bind(benchmark: BenchmarkFixture, bind: Callable[[list[int]], object]) -> None:
    before = sorted(os.sched_getaffinity(0))
    benchmark(bind, before)
    assert sorted(os.sched_getaffinity(0)) == before


@pytest.mark.benchmark(group="lease and release 4 of 256 PUs")
def test_lease(benchmark: BenchmarkFixture) -> None:
    rule = Rule("mask", "sched_getaffinity", cpus=ALL, tightest=True)
    book = LeaseBook(MACHINE, Limits(ALL, len(ALL), None, 2**39, (rule,)))
    benchmark(lambda: book.acquire(4).release())
    assert book.held() == ()


@pytest.mark.benchmark(group="cut 256 PUs into 64 places of 4")
def test_split(benchmark: BenchmarkFixture) -> None:
    places = benchmark(split, MACHINE, ALL, 64, 4)
    assert sum(len(place) for place in places) == 256


@pytest.mark.benchmark(group="settings of one calculation")
@pytest.mark.parametrize("program", ["psi4", "nwchem", "pyscf"])
def test_settings(benchmark: BenchmarkFixture, program: str) -> None:
    assert benchmark(settings_for, get(program), 4, 2**32).threads == 4
