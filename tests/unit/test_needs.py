"""Memory and temporary files that calculations are planned with: what was measured helps, and is never in the way."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("qcmanybody", reason="the expansion is QCManyBody's")

from qcthreads.cpuset import CpuSet
from qcthreads.errors import OversubscriptionError
from qcthreads.execution.calculation import Outcome
from qcthreads.execution.cost_store import CostStore, shipped
from qcthreads.execution.observing import WORKING_MEMORY_BYTES, Attempt
from qcthreads.host.disks import file_system
from qcthreads.host.limits import Limits
from qcthreads.leases import LeaseBook
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.manybody.expansion import Expansion, Term
from qcthreads.manybody.inputs import build_input, molecule_from_xyz
from qcthreads.manybody.measured import Measured, Need, kind_of
from qcthreads.manybody.moldable import mold
from qcthreads.monitoring.statistics import Grant
from qcthreads.planning import Task, plan
from qcthreads.planning.costs import Observation, Origin, Size
from qcthreads.programs import registry

WATER = Path(__file__).parents[2] / "examples" / "water16.xyz"
MIB, GIB = 1024**2, 1024**3
MONOMER, DIMER = Size(24, 10), Size(48, 20)
MACHINE = synthetic_machine(nodes=1, cores=16)
MODELS = {"pyscf": ("hf", "cc-pvdz"), "nwchem": ("hf", "cc-pvdz"), "psi4": ("hf", "cc-pvdz"), "xtb": ("gfn2-xtb", None)}
SCRATCH = Path("/dev/shm")
in_memory = pytest.mark.skipif(
    not SCRATCH.is_dir() or not file_system(SCRATCH).in_memory, reason="there is no tmpfs to write to"
)


def expansion(program: str, keywords: dict[str, object] | None = None) -> Expansion:
    """Of 16 waters and their pairs."""
    method, basis = MODELS[program]
    molecule = molecule_from_xyz(WATER.read_text(), name=str(WATER))
    made = build_input(molecule, program=program, method=method, basis=basis, max_nbody=2, keywords=keywords)
    return Expansion.from_input(made)


def book(memory_bytes: int) -> LeaseBook:
    return LeaseBook(MACHINE, Limits(MACHINE.cpus_online, len(MACHINE.cpus_online), None, memory_bytes, ()))


def learnt(whole: Expansion, seen: Sequence[Observation]) -> None:
    kind = kind_of(whole.chemistries[0])
    assert kind is not None
    CostStore(MACHINE).add(kind, seen)


def attempt(whole: Expansion, term: Term, wall_s: float) -> Attempt:
    """One that has finished, with one thread."""
    one = CpuSet([0])
    outcome = Outcome(
        label=term.label,
        status="finished",
        result={},
        error=None,
        threads=1,
        cpus=one,
        bound=one,
        worker_pid=1,
        started_at=0.0,
        wall_s=wall_s,
        cpu_s=wall_s,
        peak_memory_bytes=140 * MIB,
    )
    made = whole.calculation(term, threads=1, memory_bytes=GIB)
    grant = Grant(worker_id=1, threads_asked=1, leased=one)
    return Attempt(calculation=made, outcome=outcome, grant=grant, usage=None)


def any_size(program: str) -> int:
    """What calculations of which nothing is known are planned with."""
    return registry.get(program).memory_overhead_bytes + WORKING_MEMORY_BYTES


def planned(whole: Expansion, memory_bytes: int, scratch: Path) -> dict[Size, Need]:
    """By size."""
    measured = Measured(whole, book(memory_bytes), scratch)
    return {whole.size(term): measured.need(term) for term in whole.terms()}


@pytest.mark.parametrize("program", MODELS)
def test_what_comes_with_it_neither_refuses_nor_takes_more_than_a_share(program: str, tmp_path: Path) -> None:
    whole = expansion(program)
    assert Measured(whole, book(GIB)).origin() == Origin(shipped(program).measured_on)
    assert set(planned(whole, GIB, tmp_path).values()) == {Need(any_size(program), any_size(program))}


@pytest.mark.parametrize("program", ["xtb", "pyscf"])
def test_peaks_whose_times_others_disturbed_are_planned_with(program: str, tmp_path: Path) -> None:
    """Times are those of elsewhere until one was measured here that nobody disturbed."""
    whole = expansion(program)
    sizes = {whole.size(term) for term in whole.terms()}
    learnt(whole, [Observation(size, 1, None, 140 * MIB) for size in sizes])
    assert {need.memory_bytes for need in planned(whole, GIB, tmp_path).values()} == {round(1.05 * 140 * MIB)}
    assert Measured(whole, book(GIB)).origin() == Origin(shipped(program).measured_on)


def test_what_other_keywords_took_neither_refuses_nor_takes_more_than_a_share(tmp_path: Path) -> None:
    learnt(expansion("pyscf"), [Observation(MONOMER, 1, 1.0, 10**15, 10**15)])
    whole = expansion("pyscf", {"conv_tol": 1e-6})
    assert set(planned(whole, GIB, tmp_path).values()) == {Need(any_size("pyscf"), any_size("pyscf"))}


@pytest.mark.parametrize("seen", [Size(5, 5), Size(40, 40)], ids=["smaller", "larger"])
def test_a_size_beyond_those_seen_is_planned_as_if_nothing_was_measured(seen: Size, tmp_path: Path) -> None:
    whole = expansion("xtb")
    learnt(whole, [Observation(seen, 1, 1.0, 800 * MIB, 1)])
    assert set(planned(whole, GIB, tmp_path).values()) == {Need(any_size("xtb"), any_size("xtb"))}


def test_between_sizes_seen_no_more_is_planned_than_the_larger_took(tmp_path: Path) -> None:
    whole = expansion("xtb")
    learnt(whole, [Observation(Size(n, n), 1, 1.0, peak * MIB) for n, peak in ((10, 300), (40, 700))])
    needs = planned(whole, 8 * GIB, tmp_path)
    assert needs[Size(10, 10)].memory_bytes == pytest.approx(315 * MIB, rel=0.01)
    assert any_size("xtb") <= needs[Size(20, 20)].memory_bytes <= 1.1 * 700 * MIB
    assert needs[Size(20, 20)].least_bytes == any_size("xtb")


def test_a_size_that_was_seen_not_to_fit_is_refused(tmp_path: Path) -> None:
    whole = expansion("xtb")
    learnt(whole, [Observation(Size(20, 20), 1, 1.0, 3 * GIB)])
    with pytest.raises(OversubscriptionError, match=r"measured here, but 2\.0 GiB|measured here, but 2 GiB"):
        planned(whole, 2 * GIB, tmp_path)


@pytest.mark.parametrize(("measured", "least"), [(False, "256 MiB"), (True, "128 MiB")])
def test_less_than_a_program_with_a_memory_setting_takes_at_least_is_refused_by_name(
    measured: bool, least: str, tmp_path: Path
) -> None:
    whole = expansion("pyscf")
    if measured:
        learnt(whole, [Observation(size, 1, 1.0, 130 * MIB) for size in (MONOMER, DIMER)])
        assert planned(whole, 128 * MIB, tmp_path)[DIMER].memory_bytes == 128 * MIB
    with pytest.raises(OversubscriptionError, match=rf"^calculation 1\+2 needs {least} of .* but 50 MiB may be"):
        planned(whole, 50 * MIB, tmp_path)


def test_the_peak_of_a_run_that_had_little_memory_is_not_all_that_the_next_is_granted(tmp_path: Path) -> None:
    """PySCF that is told of little computes without its integrals in memory: less, and three times as slowly."""
    whole, node = expansion("pyscf"), book(64 * GIB)
    learnt(whole, [Observation(size, 1, 1.0, 140 * MIB) for size in (MONOMER, DIMER)])
    measured = Measured(whole, node, tmp_path)
    moldable = mold(whole.terms(), whole, "adaptive", node, measured, need=measured.need)
    assert moldable is not None
    source = moldable.source(
        lambda term, threads, memory: whole.calculation(term, threads=threads, memory_bytes=memory)
    )
    first = source.next(node.usable, node.memory_bytes)
    assert first is not None
    assert first.memory_bytes >= node.memory_bytes * first.threads // len(node.usable)
    learnt(whole, [Observation(MONOMER, 1, 0.3, 400 * MIB), Observation(MONOMER, 1, 1.0, 140 * MIB)])
    assert planned(whole, 64 * GIB, tmp_path)[MONOMER].memory_bytes == pytest.approx(420 * MIB, rel=0.01)


def test_wide_calculations_are_planned_with_what_wide_ones_took(tmp_path: Path) -> None:
    whole = expansion("xtb")
    seen = {1: 96, 2: 281, 4: 100}
    learnt(whole, [Observation(Size(10, 10), width, 1.0, peak * MIB) for width, peak in seen.items()])
    assert planned(whole, 8 * GIB, tmp_path)[Size(10, 10)].memory_bytes == pytest.approx(1.05 * 281 * MIB, rel=0.01)


def test_each_further_process_of_a_width_adds_to_what_is_planned(tmp_path: Path) -> None:
    whole, spec = expansion("nwchem"), registry.get("nwchem")
    each = spec.memory_per_process_bytes
    monomer = next(term for term in whole.terms() if whole.size(term) == MONOMER)
    measured = Measured(whole, book(8 * GIB), tmp_path)
    one, four = measured.need(monomer), measured.need(monomer, 4)
    assert four == Need(one.memory_bytes + 3 * each, one.least_bytes + 3 * each)
    learnt(whole, [Observation(MONOMER, 2, 1.0, 800 * MIB + each), Observation(MONOMER, 4, 1.0, 700 * MIB + 3 * each)])
    measured = Measured(whole, book(8 * GIB), tmp_path)
    for width in (1, 2, 4):
        need = measured.need(monomer, width)
        assert need.memory_bytes == pytest.approx(1.05 * 800 * MIB + (width - 1) * each, rel=0.01)
        assert need.least_bytes == spec.memory_overhead_bytes + spec.memory_least_bytes + (width - 1) * each


@in_memory
def test_what_is_too_wide_for_the_memory_refuses_nothing() -> None:
    """Temporary files in memory are refused by what one process leaves of it."""
    whole = expansion("nwchem")
    learnt(whole, [Observation(MONOMER, 1, 1.0, 300 * MIB, 20 * MIB)])
    node = book(GIB)
    measured = Measured(whole, node, SCRATCH)
    monomers = [term for term in whole.terms() if whole.size(term) == MONOMER]
    moldable = mold(monomers, whole, "adaptive", node, measured, need=measured.need)
    assert moldable is not None
    assert moldable.foresee().side_by_side >= 1


def test_no_more_processes_are_planned_than_there_is_memory_for(tmp_path: Path) -> None:
    """Of 1 GiB one calculation of NWChem has 5 processes; by its first process alone it would have 16."""
    whole, node = expansion("nwchem"), book(GIB)
    measured = Measured(whole, node, tmp_path)
    moldable = mold(whole.terms()[:1], whole, "adaptive", node, measured, need=measured.need)
    assert moldable is not None
    (width,) = moldable.foresee().widths
    spec = registry.get("nwchem")
    assert width > 1
    assert any_size("nwchem") + (width - 1) * spec.memory_per_process_bytes <= GIB
    source = moldable.source(
        lambda term, threads, memory: whole.calculation(term, threads=threads, memory_bytes=memory)
    )
    started = source.next(node.usable, node.memory_bytes)
    assert started is not None
    assert started.memory_bytes >= any_size("nwchem") + (started.threads - 1) * spec.memory_per_process_bytes


def test_a_small_one_runs_beside_a_large_one_where_the_disk_has_no_room_for_two_large_ones(tmp_path: Path) -> None:
    if file_system(tmp_path).in_memory:
        pytest.skip("temporary files are in memory here")
    whole, node = expansion("pyscf"), book(64 * GIB)
    free_bytes = shutil.disk_usage(tmp_path).free
    files = {MONOMER: 0, DIMER: round(0.6 * free_bytes)}
    learnt(whole, [Observation(size, 1, 1.0, 100 * MIB, held) for size, held in files.items()])
    measured = Measured(whole, node, tmp_path)
    by_size = {size: [term for term in whole.terms() if whole.size(term) == size] for size in files}
    terms = [*by_size[MONOMER], *by_size[DIMER][:2]]
    moldable = mold(terms, whole, "auto", node, measured, need=measured.need)
    assert moldable is not None
    assert " of disk are free: " in " ".join(moldable.foresee().reasons())
    source = moldable.source(lambda term, threads, _: whole.calculation(term, threads=threads, memory_bytes=GIB))
    started = []
    while one := source.next(CpuSet(range(sum(one.threads for one in started), 16)), node.memory_bytes):
        started.append(one)
    sizes = {term.label: whole.size(term) for term in terms}
    assert [sizes[one.label] for one in started].count(DIMER) == 1
    assert [sizes[one.label] for one in started].count(MONOMER) > 1


def test_what_took_less_than_was_thought_runs_with_more_beside_it_the_next_time(tmp_path: Path) -> None:
    whole, node = expansion("xtb"), book(4 * any_size("xtb"))

    def side_by_side() -> int:
        measured = Measured(whole, node, tmp_path)
        moldable = mold(whole.terms(), whole, "auto", node, measured, need=measured.need)
        assert moldable is not None
        return moldable.foresee().side_by_side

    assert side_by_side() == 4
    learnt(whole, [Observation(Size(n, n), 1, 1.0, peak * MIB) for n, peak in ((10, 90), (20, 96))])
    assert side_by_side() == len(node.usable) == 16


def test_a_full_disk_is_a_limit_that_can_be_planned_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=GIB, used=GIB, free=0))
    whole = expansion("pyscf")
    learnt(whole, [Observation(MONOMER, 1, 1.0, 140 * MIB, 300 * MIB)])
    free_bytes = Measured(whole, book(8 * GIB), tmp_path).disk_bytes
    assert plan([Task("a", {1: 1.0})], 2, disk_bytes=free_bytes).makespan_s == 1.0


@in_memory
def test_a_file_system_that_counts_nothing_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel tells of ramfs, and of a tmpfs without limit: 0 blocks, 0 of them free."""
    uncounted = SimpleNamespace(total=0, used=0, free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: uncounted)
    assert file_system(SCRATCH).free_bytes is None
    whole = expansion("pyscf")
    learnt(whole, [Observation(size, 1, 1.0, 140 * MIB, 300 * MIB) for size in (MONOMER, DIMER)])
    assert planned(whole, 8 * GIB, SCRATCH)[MONOMER].memory_bytes == pytest.approx(1.05 * 440 * MIB, rel=0.01)
    with pytest.raises(OversubscriptionError, match="in memory"):
        planned(whole, 256 * MIB, SCRATCH)


@in_memory
def test_the_memory_of_temporary_files_is_not_the_programs() -> None:
    whole = expansion("pyscf")
    learnt(whole, [Observation(MONOMER, 1, 1.0, 140 * MIB, 100 * MIB)])
    need = planned(whole, 8 * GIB, SCRATCH)[MONOMER]
    term = next(term for term in whole.terms() if whole.size(term) == MONOMER)
    for granted, told in ((need.memory_bytes, 147 * MIB), (GIB, GIB - 105 * MIB), (100 * MIB, 100 * MIB)):
        files = need.files_bytes_of(granted)
        made = whole.calculation(term, threads=1, memory_bytes=granted, files_bytes=files)
        assert made.told_bytes == pytest.approx(told, rel=0.01)


def test_few_large_ones_are_wide_by_what_comes_with_it(tmp_path: Path) -> None:
    """The speedups of the machine it was measured on, where other CPUs were busy, would have all at one thread."""
    whole = expansion("pyscf")
    node = book(64 * GIB)
    measured = Measured(whole, node, tmp_path)
    few = [term for term in whole.terms() if whole.size(term) == DIMER][:4]
    moldable = mold(few, whole, "auto", node, measured, need=measured.need)
    assert moldable is not None
    large = replace(moldable, times_s=lambda term, widths: thousandfold(measured.times_s(term, widths)))
    assert min(large.foresee().widths) > 1


def thousandfold(times_s: Mapping[int, float] | None) -> dict[int, float]:
    """As of molecules beside which the start of a worker is nothing."""
    assert times_s is not None
    return {width: 1000 * time_s for width, time_s in times_s.items()}


def test_what_another_thread_keeps_meanwhile_is_in_nobodys_way(
    before_instruction: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it does so: between any two instructions of who asks."""
    whole = expansion("xtb")
    term = whole.terms()[0]
    done, model = attempt(whole, term, 2.0), Measured(whole, book(GIB), tmp_path)._model(whole.chemistries[0])
    monkeypatch.setattr(CostStore, "model", lambda *_: model)
    monkeypatch.setattr(CostStore, "add", lambda *_: None)

    def asked(number: int) -> tuple[list[int], object]:
        measured = Measured(whole, book(GIB), tmp_path)
        with before_instruction(number, "manybody/measured.py", lambda: measured.keep([done], [term])) as reached:
            told = measured.times_s(term, (1, 2)), measured.need(term)
        return reached, told

    _, undisturbed = asked(0)
    for number in itertools.count(1):
        reached, told = asked(number)
        assert told == undisturbed
        if not reached:
            break
    assert number > 50


def test_what_is_kept_while_a_plan_is_made_is_for_the_next(tmp_path: Path) -> None:
    whole, node = expansion("xtb"), book(GIB)
    terms = whole.terms()
    by_size = {whole.size(term): term for term in terms}
    first, other = by_size.values()
    measured = Measured(whole, node, tmp_path)
    now, alone = measured.as_now(), Measured(whole, node, tmp_path)
    before = alone.times_s(first, (1,)), alone.times_s(other, (1,)), alone.origin()
    assert now.times_s(first, (1,)) == before[0]
    measured.keep([attempt(whole, term, 1000.0) for term in (first, other)], terms)
    assert (now.times_s(first, (1,)), now.times_s(other, (1,)), now.origin()) == before
    later = measured.times_s(other, (1,))
    assert later is not None
    assert later[1] == pytest.approx(1000.0, rel=0.1)
