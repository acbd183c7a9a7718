"""What the pages of the programs tell of a run: a real program, measured and written as ``make measured`` does."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MEET = """
import os, pathlib, time
pathlib.Path(f"{os.getpid()}.here").touch()
give_up = time.monotonic() + 60
while len(list(pathlib.Path().glob("*.here"))) < 2:
    assert time.monotonic() < give_up, "the other never came"
    time.sleep(0.05)
print(1.0)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="masks are Linux's")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("ours", [False, True])
def test_two_calculations_at_once_are_there_at_the_same_time(ours, monkeypatch):
    """Each ends when it has seen the other; no program computes."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = load(ROOT / "benchmarks" / "bench_programs.py")
    monkeypatch.setattr(benchmark, "COMPUTE", MEET)
    assert benchmark.start("s-dftd3", ours=ours, number=2) == [1.0, 1.0]


def test_a_program_is_measured_and_its_page_says_what_was_seen(needs, monkeypatch, tmp_path):
    needs("s-dftd3")
    command = [sys.executable, DOCS / "measure_programs.py", "s-dftd3", "--rounds", "1", "--into", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    verified = json.loads((tmp_path / "s-dftd3.json").read_text())
    compared = json.loads((tmp_path / "s-dftd3.defaults.json").read_text())
    write_programs = load(DOCS / "write_programs.py")
    monkeypatch.setattr(write_programs, "MEASURED", tmp_path)
    page = write_programs.pages()[DOCS / "programs" / "s-dftd3.md"]
    assert f"**{verified['verdict']}.**" in page
    assert f"of {compared['date']}, version {verified['version']}, on two CPUs: {compared['job']}; 1 rounds" in page
    for what in ("two at once", "one alone"):
        theirs, ours = compared["compared"][what]["defaults"], compared["compared"][what]["qcthreads"]
        for clock, name in (("wall_s", "wall"), ("cpu_s", "CPU")):
            assert len(theirs[clock]) == len(ours[clock]) == 1
            row = f"| {what} | {name} | {median(theirs[clock]):.2f} | {median(ours[clock]):.2f} | "
            ratio = median(one / other for one, other in zip(theirs[clock], ours[clock], strict=True))
            assert f"{row}{ratio:.2f} [" in page
        assert compared["compared"][what]["energies_differ_hartree"] < 1e-9
