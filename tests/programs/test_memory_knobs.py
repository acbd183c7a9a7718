"""The memory that real programs are told: told by the input that QCEngine or the user writes, and held, or marked."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from qcthreads.programs.registry import BUILT_IN, get
from qcthreads.programs.settings import settings_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the programs are Debian's")

GIB = 1024**3
UNTOLD = ("cp2k", "dftd4", "mopac", "s-dftd3", "tblite", "xtb")
WATER = {"symbols": ["O", "H", "H"], "geometry": [0, 0, 0.22, 0, 1.43, -0.9, 0, -1.43, -0.9]}


def atomic_input(method, basis=None):
    model = {"method": method} if basis is None else {"method": method, "basis": basis}
    return {"molecule": WATER, "specification": {"driver": "energy", "model": model}}


def told(name, lease_bytes, ranks=1):
    """What the program's own setting is to be."""
    return lease_bytes - get(name).memory_overhead_bytes - (ranks - 1) * get(name).memory_per_process_bytes


@pytest.mark.psi4
def test_psi4_says_the_memory_that_it_was_told(needs, calculate, tmp_path):
    needs("psi4")
    lease_bytes = 3 * GIB
    said = calculate(settings_for(get("psi4"), 1, lease_bytes, str(tmp_path)), atomic_input("hf", "sto-3g")).stdout
    mib = [float(number) for number in re.findall(r"Memory(?: \[MiB\]:|\s+=)\s+([\d.]+)", said)]
    assert mib, said[:2000]
    assert max(mib) * 1024**2 <= told("psi4", lease_bytes) * 1.001


@pytest.mark.nwchem
@pytest.mark.parametrize("width", [1, 2])
def test_nwchem_divides_the_memory_by_its_ranks(width, needs, calculate, tmp_path):
    needs("nwchem")
    lease_bytes = 2 * GIB
    said = calculate(
        settings_for(get("nwchem"), width, lease_bytes, str(tmp_path)), atomic_input("hf", "sto-3g")
    ).stdout
    words = re.search(r"total\s+=\s+(\d+) doubles", said)
    assert int(words[1]) * 8 * width == pytest.approx(told("nwchem", lease_bytes, width), rel=0.02)


def test_pyscf_says_the_memory_that_it_was_told(needs, calculate, tmp_path):
    needs("pyscf")
    lease_bytes = GIB + GIB // 2
    settings = settings_for(get("pyscf"), 1, lease_bytes, str(tmp_path))
    said = calculate(settings, atomic_input("mp2", "cc-pvdz")).stdout
    limit = re.search(r"max_memory (\d+) MB \(current use (\d+) MB\)", said)
    assert int(limit[1]) == pytest.approx(told("pyscf", lease_bytes) / 1e6, abs=1)


def test_cp2k_reports_the_memory_that_it_took_and_has_no_setting_to_hold_it(needs, run_in, tmp_path):
    """MAX_MEMORY is of exact exchange alone; the record says so and has no memory setting."""
    needs("cp2k")
    spec = get("cp2k")
    (tmp_path / "input.inp").write_text(spec.sample.input_text.replace("CUTOFF 280", "CUTOFF 120"))
    assert spec.memory is None
    said = run_in("cp2k.psmp -i input.inp", settings_for(spec, 1, GIB), tmp_path).stdout
    peak = float(re.search(r"max memory usage/rank\s+([\d.E+]+)", said)[1])
    assert 50e6 < peak < GIB


def test_every_program_that_was_run_here_is_told_its_memory_or_has_no_setting_for_it():
    """The tests above are of those that are told."""
    run = {name for name in BUILT_IN if get(name).measured_with}
    assert {name for name in run if get(name).memory is not None} == {"nwchem", "psi4", "pyscf"}
    assert {name for name in run if get(name).memory is None} == set(UNTOLD)


@pytest.mark.parametrize("name", UNTOLD)
def test_a_program_without_a_setting_of_its_memory_is_marked_on_its_page(name):
    assert get(name).memory is None
    page = Path(__file__).parents[2] / "docs" / "programs" / f"{name}.md"
    assert "Memory: it has no setting for all of it" in page.read_text(encoding="utf-8")
