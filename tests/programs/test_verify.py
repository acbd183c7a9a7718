"""``qcthreads verify`` on real programs, and on a stand-in that disobeys, as no program that is installed here does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from qcthreads.errors import InputError
from qcthreads.execution import sample
from qcthreads.programs.registry import BUILT_IN, get
from qcthreads.programs.settings import settings_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="masks, and taskset, are Linux's")

WATER = "3\n\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n"
BURN = "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done"  # CPU time of the shell itself: some tenths of a second


@pytest.fixture
def verify(tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Exit status, document and messages of ``qcthreads verify``; programs in the test's own directory come first."""
    path = f"{tmp_path}:{os.environ['PATH']}"

    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        done = subprocess.run(
            [sys.executable, "-m", "qcthreads", "verify", "--json", *arguments],
            env={**os.environ, "PATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr

    return run


def usable() -> int:
    return len(os.sched_getaffinity(0))


def check(document: dict[str, Any], widths: list[int]) -> None:
    assert document["obeys"] is True
    assert document["problems"] == []
    assert [one["threads"] for one in document["widths"]] == widths
    for one in [*document["widths"], *document["two_at_once"]]:
        assert one["threads_working"] == one["threads"] == len(one["cpus_leased"])
        assert set(one["cpus_allowed"]) <= set(one["cpus_leased"])
        # libpsm2, which Open MPI loads, puts a rank on CPU 0 for some ms and back, and a note says so.
        went_back = any("went back by itself" in note for note in document["notes"])
        assert set(one["cpus_seen"]) <= set(one["cpus_leased"]) or (went_back and document["program"] == "nwchem")
        assert 0 < one["memory_peak_bytes"] < one["memory_granted_bytes"]
    first, second = document["two_at_once"]
    assert not set(first["cpus_leased"]) & set(second["cpus_leased"])


@pytest.mark.skipif(usable() < 2, reason="two at the same time need two CPUs")
def test_pyscf_obeys_at_every_width_and_its_energy_is_that_of_a_run_by_hand(needs, verify, calculate):
    needs("pyscf")
    status, document, said = verify("pyscf", "--basis", "6-31g", "--repeats", "2", "--threads", "2")
    assert status == 0, said
    check(document, [1, 2])
    assert document["version"] == __import__("pyscf").__version__
    by_hand = calculate(settings_for(get("pyscf"), 1), sample.built_in(get("pyscf"), None, "6-31g").atomic_input)
    assert document["widths"][1]["energy_hartree"] == pytest.approx(by_hand.energy, abs=1e-7, rel=0)


@pytest.mark.skipif(usable() < 2, reason="two at the same time need two CPUs")
@pytest.mark.parametrize(
    ("program", "asked", "widths"),  # CP2K, whose sample takes ten times as long, is test_cp2k's
    [
        ("dftd4", 2, [1]),
        ("mopac", 2, [1]),
        # Two ranks that wait for each other are test_widths'. On a smaller basis NWChem is done before enough is seen.
        pytest.param("nwchem", 1, [1], marks=pytest.mark.nwchem),
        pytest.param("psi4", 2, [1, 2], marks=pytest.mark.psi4),
        ("s-dftd3", 2, [1]),
        ("tblite", 2, [1, 2]),
        ("xtb", 2, [1, 2]),
    ],
)
def test_every_program_obeys_or_says_that_it_does_not_thread(program, asked, widths, needs, verify):
    """Its threads, inside its lease, two at once apart, below its memory, and with the same energy."""
    needs(program)
    status, document, said = verify(program, "--repeats", "1", "--threads", str(asked))
    assert status == 0, said
    check(document, widths)
    energies = [one["energy_hartree"] for one in (*document["widths"], *document["two_at_once"])]
    assert energies == pytest.approx([energies[0]] * len(energies), abs=1e-7, rel=0)
    assert asked in widths or f"1 is used instead of {asked}" in document["notes"][0]


@pytest.mark.skipif(usable() < 2, reason="the width that is disobeyed is 2")
def test_a_stand_in_that_ignores_its_width_does_not_obey(verify, tmp_path):
    (tmp_path / "g16").write_text(f"#!/bin/bash\n{BURN}\n")
    (tmp_path / "g16").chmod(0o755)
    (tmp_path / "job.gjf").write_text("%NProcShared={threads}\n")
    status, document, said = verify("gaussian", "--input", "job.gjf", "--repeats", "1", "--threads", "2")
    assert status == 1, said
    assert document["problems"] == ["at a width of 2 1 thread worked"]
    assert "does NOT obey" in document["verdict"]
    assert document["tolerance_hartree"] is None


def test_a_stand_in_that_leaves_its_mask_is_found(verify, tmp_path):
    cpus = sorted(os.sched_getaffinity(0))
    everywhere = ",".join(map(str, cpus))
    (tmp_path / "g16").write_text(f"#!/bin/bash\ntaskset -pc {everywhere} $$ >/dev/null\n{BURN}\n")
    (tmp_path / "g16").chmod(0o755)
    (tmp_path / "job.gjf").write_text("\n")
    status, document, said = verify("gaussian", "--input", "job.gjf", "--repeats", "1", "--threads", "1")
    assert (status == 1) == (len(cpus) > 1), said
    assert len(cpus) == 1 or f"free to run on {cpus[0]}" in document["verdict"]


@pytest.mark.parametrize(
    ("arguments", "expected", "said"),
    [
        (("orca", "--input", "job.xyz"), 3, "is not installed here"),
        (("no-such-program",), 2, "there is no program"),
        (("pyscf", "--input", "job.xyz"), 2, "give --method"),
        (("pyscf", "--input", "nothing.xyz"), 2, "--input nothing.xyz cannot be read: No such file or directory; give"),
        (("xtb", "--basis", "sto-3g"), 2, "--basis 'sto-3g' with xtb, which has no basis sets"),
        (("xtb", "--input", "job.xyz", "--basis", "sto-3g"), 2, "which has no basis sets"),
        (("pyscf", "--threads", "100000"), 3, "100000 threads were asked for, but"),
        (("pyscf", "--repeats", "0"), 2, "--repeats 0"),
    ],
)
def test_what_cannot_be_verified_says_why(arguments, expected, said, verify, needs, tmp_path):
    needs("pyscf")
    if arguments[0] == "xtb":
        needs("xtb")
    (tmp_path / "job.xyz").write_text(WATER)
    status, _, words = verify(*arguments)
    assert (status, said in words) == (expected, True), words


def test_a_failing_program_is_status_1(needs, verify, tmp_path):
    needs("pyscf")
    (tmp_path / "job.xyz").write_text(WATER)
    status, _, said = verify("pyscf", "--input", "job.xyz", "--method", "hf", "--basis", "no-such-basis")
    assert status == 1
    assert "no basis set 'no-such-basis'" in said


def test_an_xyz_file_is_read_as_qcelemental_reads_it(tmp_path):
    qcelemental = pytest.importorskip("qcelemental")
    path = tmp_path / "water.xyz"
    path.write_text(WATER)
    made = sample.from_file(get("pyscf"), path, "hf", "sto-3g").atomic_input
    theirs = qcelemental.models.v2.Molecule.from_data(WATER, dtype="xyz", fix_com=True, fix_orientation=True)
    assert made["molecule"]["symbols"] == list(theirs.symbols)
    assert made["molecule"]["geometry"] == pytest.approx(theirs.geometry.ravel().tolist(), abs=1e-7)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_command_is_filled_in(name):
    """Whatever braces an input has of its own, nothing that is for us to fill in is left."""
    spec = get(name)
    if spec.qcengine or not spec.command:
        with pytest.raises(InputError) if spec.sample is None else nullcontext():
            sample.built_in(spec)
        return
    job = sample._by_command(spec, {"input": "{threads} {ranks} {width} {own}"}, "a test")
    given = job.request(settings_for(spec, 4))["input"]
    assert "{" not in given["command"]
    assert given["files"]["input"].endswith("{own}")
    assert "{threads}" not in given["files"]["input"]
