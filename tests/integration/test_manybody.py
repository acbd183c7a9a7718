"""ParallelManyBodyExecutor against QCManyBody's own serial driver, with PySCF and xtb, and against a closed form."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from qcelemental.models.v2 import AtomicResult, Molecule
from qcmanybody import ManyBodyCore
from qcmanybody.v2 import ManyBodyComputer

import qcthreads.programs.harnesses.pyscf  # noqa: F401 (QCManyBody's own driver finds PySCF by it)
from qcthreads import HybridParallelConfig, ParallelConfig, ParallelManyBodyExecutor
from qcthreads.errors import InputError, OversubscriptionError, ProgramNotFoundError
from qcthreads.host.limits import read_limits
from qcthreads.manybody.executor import FragmentsFailedError
from qcthreads.manybody.inputs import build_input

TIGHT = {"conv_tol": 1e-12}

TRIMER = """
0 1
He 0 0 0
--
0 1
Ne 0 0 2.6
--
0 1
O 0 2.9 1.3
H 0 2.2 1.9
H 0 3.7 1.9
units angstrom
"""

# An ion, a radical and a neutral molecule.
CHARGED = """
1 1
N 0 0 0
H 0.6 0.6 0.6
H -0.6 -0.6 0.6
H -0.6 0.6 -0.6
H 0.6 -0.6 -0.6
--
0 2
O 0 0 3.2
H 0 0.6 3.96
--
0 1
He 0 3.0 0.3
units angstrom
"""


def molecule(block: str) -> Molecule:
    return Molecule.from_data(block, dtype="psi4", fix_com=True, fix_orientation=True)


def core_of(block: str, level: str, bsse=("nocp",), max_nbody=3) -> ManyBodyCore:
    return ManyBodyCore(
        molecule(block),
        list(bsse),
        dict.fromkeys(range(1, max_nbody + 1), level),
        return_total_data=True,
        supersystem_ie_only=False,
        embedding_charges={},
    )


@pytest.mark.parametrize(
    ("block", "options"),
    [
        (TRIMER, {"method": "mp2", "basis": "6-31g", "bsse": ["nocp", "cp"], "max_nbody": 3, "keywords": TIGHT}),
        (TRIMER, {"method": "hf", "basis": "sto-3g", "bsse": ["cp"], "max_nbody": 2, "keywords": TIGHT}),
        (CHARGED, {"method": "hf", "basis": "6-31g", "bsse": ["nocp", "cp"], "max_nbody": 3, "keywords": TIGHT}),
        (CHARGED, {"program": "xtb", "bsse": ["nocp"], "max_nbody": 3}),
    ],
    ids=["nocp+cp mp2", "cp hf", "ion and radical", "xtb"],
)
def test_equal_to_qcmanybody_serial(block, options, monkeypatch):
    # As many threads as ours: the order in which several add up numbers differs from run to run, by more than 1e-10.
    monkeypatch.setenv("QCENGINE_NCORES", "1")
    given = build_input(molecule(block), **options)
    result = ParallelManyBodyExecutor.from_manybodyinput(given, ParallelConfig(max_workers=2))
    serial = ManyBodyComputer.from_manybodyinput(given)
    assert result.cluster_properties.keys() == serial.cluster_properties.keys()
    assert result.return_result == pytest.approx(serial.return_result, abs=1e-10)
    ours, theirs = result.properties.model_dump(), serial.properties.model_dump()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == (pytest.approx(value, abs=1e-10) if isinstance(value, float) else value), name
    assert result.extras["qcthreads"]["total_fragments"] == len(serial.cluster_properties)


def test_a_bare_core_with_the_method_as_its_level():
    core = core_of(TRIMER, "hf/6-31g", ["cp"], 2)
    with ParallelManyBodyExecutor(core, ParallelConfig(qc_program="pyscf", max_workers=2)) as executor:
        results = executor.execute_full_calculation()
        assert set(results) == {label for _, label, _ in core.iterate_molecules()}
        assert all(isinstance(result, AtomicResult) for result in results.values())
        assert {result.input_data.specification.model.basis for result in results.values()} == {"6-31g"}

        by_level: dict[int, list] = {}
        for spec in core.iterate_molecules():
            by_level.setdefault(len(json.loads(spec[1])[1]), []).append(spec)
        levelled: dict[str, AtomicResult] = {}
        for level, fragments in by_level.items():
            levelled |= executor.execute_level_parallel(level, fragments)
        assert executor.validate_parallel_correctness(levelled, results, tolerance=1e-10)
        with pytest.raises(InputError, match="1 real fragments, but level 2"):
            executor.execute_level_parallel(2, by_level[1])

        label, result = executor.execute_fragment(by_level[2][0])
        assert label == by_level[2][0][1]
        assert result.return_result == pytest.approx(results[label].return_result, abs=1e-10)

        statistics = executor.get_execution_statistics()
        assert statistics["total_fragments"] == len(results)
        assert statistics["levels_executed"] == 2
        assert statistics["oversubscription"] <= 1
        assert 0 < statistics["thread_efficiency"] < 1.5
        assert statistics["speedup_factor"] == pytest.approx(
            statistics["sequential_time_estimate"] / statistics["parallel_time"]
        )


def test_the_example_of_a_core_in_the_how_to_computes_what_qcmanybody_does(capsys):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "python.md"
    (example,) = re.findall(r"```python\n([^`]*iterate_molecules[^`]*)```", page.read_text(encoding="utf-8"))
    names = {}
    exec(example, names)
    first, total = capsys.readouterr().out.splitlines()
    options = {"method": "mp2", "basis": "cc-pvdz", "bsse": ["nocp"], "max_nbody": 2, "keywords": TIGHT}
    serial = ManyBodyComputer.from_manybodyinput(build_input(names["neon"], **options))
    assert float(total) == pytest.approx(serial.properties.nocp_corrected_total_energy, abs=1e-7)
    alone = serial.properties.nocp_corrected_total_energy_through_1_body / 3
    assert float(first.split("]] ")[1]) == pytest.approx(alone, abs=1e-7)


def test_wrong_energies_are_found():
    executor = ParallelManyBodyExecutor(core_of(TRIMER, "hf"), ParallelConfig(qc_program="pyscf"))
    one = {"a": {"properties": {"return_energy": 1.0}}, "b": {"properties": {"return_energy": 2.0}}}
    other = {"a": {"properties": {"return_energy": 1.0}}, "b": {"properties": {"return_energy": 2.0 + 1e-9}}}
    assert executor.validate_parallel_correctness(one, one)
    assert executor.validate_parallel_correctness(one, other, tolerance=1e-8)
    with pytest.raises(ValueError, match=r"1 of 2 energies differ .* most b: .* by 1.000e-09"):
        executor.validate_parallel_correctness(one, other)
    with pytest.raises(ValueError, match=r"missing in parallel \['b'\]"):
        executor.validate_parallel_correctness({"a": one["a"]}, one)


# A pair potential: the two-body expansion of its energy is exact, so the sum over pairs is known in closed form.
PAIRS = """
import math

def energy(given):
    molecule = given["molecule"]
    points = [molecule["geometry"][3 * i : 3 * i + 3] for i in range(len(molecule["symbols"]))]
    value = sum(math.dist(a, b) ** -6 for i, a in enumerate(points) for b in points[i + 1 :])
    if len(points) == 2 and "Ar" in molecule["symbols"]:
        raise RuntimeError("no argon here")
    return {
        "schema_name": "qcschema_atomic_result", "schema_version": 2, "input_data": given, "molecule": molecule,
        "properties": {"return_energy": value}, "return_result": value, "success": True,
        "provenance": {"creator": "pairs", "version": "1"},
    }
"""


@pytest.mark.parametrize("mode", ["multiprocessing", "threading", "serial"])
def test_a_function_in_place_of_qcengine(tmp_path, monkeypatch, mode):
    (tmp_path / "pairs_potential.py").write_text(PAIRS)
    monkeypatch.syspath_prepend(str(tmp_path))
    core = core_of("He 0 0 0\n--\nHe 0 0 3\n--\nHe 0 4 0\nunits bohr", "pairs", max_nbody=2)
    config = ParallelConfig(
        execution_mode=mode, use_qcengine=False, compute="pairs_potential:energy", max_workers=2, memory_limit_mb=400
    )
    executor = ParallelManyBodyExecutor(core, config)
    results = executor.execute_full_calculation()
    analysis = core.analyze({label: {"energy": result.return_result} for label, result in results.items()})
    assert analysis["ret_energy"] == pytest.approx(3**-6 + 4**-6 + 5**-6, rel=1e-12)
    if mode == "serial":
        assert executor.get_execution_statistics()["peak_workers"] == 1


@pytest.mark.parametrize("kept", [True, False], ids=["workers kept", "workers ended"])
def test_a_pause_between_calls_is_nobodys_idleness(tmp_path, monkeypatch, kept):
    burns = "\ndef energy(given, really=energy):\n    end = time.time() + 1.2\n    while time.time() < end: pass\n"
    (tmp_path / "burning_pairs.py").write_text(f"import time\n{PAIRS}{burns}    return really(given)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    core = core_of("He 0 0 0\n--\nHe 0 0 3\nunits bohr", "pairs", max_nbody=1)
    config = ParallelConfig(use_qcengine=False, compute="burning_pairs:energy", max_workers=1, memory_limit_mb=400)
    executor = ParallelManyBodyExecutor(core, config)
    with executor if kept else contextlib.nullcontext():
        for number, fragment in enumerate(core.iterate_molecules()):
            time.sleep(4.0 * number)
            executor.execute_fragment(fragment)
    statistics = executor.get_execution_statistics()
    told = statistics["idle_over_time"]
    assert len(told) >= 2
    assert told[-1]["at_s"] <= statistics["parallel_time"]
    assert [one["at_s"] for one in told] == sorted(one["at_s"] for one in told)


@pytest.mark.skipif(len(read_limits().cpus) < 2, reason="needs two CPUs")
def test_a_call_that_ends_ends_the_sampling_of_no_other(tmp_path, monkeypatch):
    waits = f"""
import pathlib, time

def energy(given, really=energy):
    here = pathlib.Path({str(tmp_path)!r})
    if "Ar" in given["molecule"]["symbols"]:
        (here / "began").touch()
        while not (here / "over").exists():
            time.sleep(0.05)
    return really(given)
"""
    (tmp_path / "waiting_pairs.py").write_text(PAIRS + waits)
    monkeypatch.syspath_prepend(str(tmp_path))
    core = core_of("Ar 0 0 0\n--\nHe 0 0 3\nunits bohr", "pairs", max_nbody=1)
    config = ParallelConfig(
        use_qcengine=False, compute="waiting_pairs:energy", memory_limit_mb=400, timeout_seconds=120
    )
    executor = ParallelManyBodyExecutor(core, config)
    waiting, short = core.iterate_molecules()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(executor.execute_fragment, waiting)
        while not (tmp_path / "began").exists() and not call.done():
            time.sleep(0.05)
        executor.execute_fragment(short)
        (tmp_path / "over").touch()
        call.result()
    statistics = executor.get_execution_statistics()
    assert statistics["watched"] == 2
    assert statistics["sampling"]["detailed"] > 0
    executor.execute_fragment(short)
    assert executor.get_execution_statistics()["sampling"]["detailed"] > statistics["sampling"]["detailed"]


def test_a_failing_fragment_does_not_stop_the_others(tmp_path, monkeypatch):
    (tmp_path / "failing_pairs.py").write_text(PAIRS)
    monkeypatch.syspath_prepend(str(tmp_path))
    core = core_of("He 0 0 0\n--\nHe 0 0 3\n--\nAr 0 4 0\nunits bohr", "pairs", max_nbody=2)
    config = ParallelConfig(use_qcengine=False, compute="failing_pairs:energy", max_workers=2, memory_limit_mb=400)
    executor = ParallelManyBodyExecutor(core, config)
    with pytest.raises(FragmentsFailedError, match=r"2 of 6 calculations failed.*no argon here") as caught:
        executor.execute_full_calculation()
    assert set(caught.value.failures) == {'["pairs", [1, 3], [1, 3]]', '["pairs", [2, 3], [2, 3]]'}
    assert len(caught.value.results) == 4
    assert executor.get_execution_statistics()["failed_fragments"] == 2


def test_ceilings_are_lowered_with_the_reason(caplog):
    core = core_of(TRIMER, "hf", max_nbody=1)
    config = HybridParallelConfig(
        qc_program="pyscf", max_workers=4096, max_total_threads=1, enable_thread_affinity=True
    )
    executor = ParallelManyBodyExecutor(core, config)
    with caplog.at_level(logging.WARNING, logger="qcthreads"):
        executor.execute_full_calculation()
    statistics = executor.get_execution_statistics()
    assert statistics["workers"] == 1
    assert statistics["peak_threads"] == 1
    assert "max_workers is 4096" in caplog.text
    assert any("max_total_threads" in reason for reason in statistics["reasons"])


def test_a_width_that_the_machine_lacks_is_refused_with_the_numbers():
    config = HybridParallelConfig(qc_program="pyscf", qc_threads_per_fragment=100_000)
    executor = ParallelManyBodyExecutor(core_of(TRIMER, "hf"), config)
    with pytest.raises(OversubscriptionError, match=r"100000 threads.*may be used.*ask for at most"):
        executor.execute_full_calculation()


def test_a_program_that_is_not_there_is_refused_before_anything_starts():
    with pytest.raises(ProgramNotFoundError, match="cfour"):
        ParallelManyBodyExecutor(core_of(TRIMER, "hf"), ParallelConfig(qc_program="cfour"))


@pytest.mark.parametrize(
    ("level", "bsse", "program", "said"),
    [
        ("(auto)", ["nocp"], "pyscf", "which is no method; name them"),
        ("hf", ["vmfc"], "pyscf", "vmfc"),
        ("GFN2-xTB/sto-3g", ["nocp"], "xtb", "no basis sets"),
        ("GFN2-xTB", ["cp"], "xtb", "ghosts"),
    ],
)
def test_cores_that_are_not_computed_here_are_refused(level, bsse, program, said):
    with pytest.raises(InputError, match=said):
        ParallelManyBodyExecutor(core_of(TRIMER, level, bsse), ParallelConfig(qc_program=program))


def test_levels_of_a_core_may_have_methods_of_their_own(monkeypatch):
    """The two-body energy of the one from its own calculations, the third order from the other's."""
    monkeypatch.setenv("QCENGINE_NCORES", "1")
    core = ManyBodyCore(
        molecule(TRIMER),
        ["nocp"],
        {1: "mp2/6-31g", 2: "mp2/6-31g", 3: "hf/sto-3g"},
        return_total_data=True,
        supersystem_ie_only=False,
        embedding_charges={},
    )
    config = ParallelConfig(max_workers=2, qc_program="pyscf")
    results = ParallelManyBodyExecutor(core, config).execute_full_calculation()
    assert results.keys() == {label for _, label, _ in core.iterate_molecules()}
    through = [
        ManyBodyComputer.from_manybodyinput(
            build_input(molecule(TRIMER), method=method, basis=basis, max_nbody=order)
        ).return_result
        for method, basis, order in (("mp2", "6-31g", 2), ("hf", "sto-3g", 3), ("hf", "sto-3g", 2))
    ]
    whole = core.analyze({label: {"energy": result.return_result} for label, result in results.items()})
    assert whole["ret_energy"] == pytest.approx(through[0] + through[1] - through[2], abs=1e-9)
