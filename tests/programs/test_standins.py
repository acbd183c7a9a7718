"""Stand-ins for programs that cannot be installed here, called by QCEngine's real harnesses; they compute nothing.

Each is an executable of the program's name that writes down its arguments, its environment, its mask, the input files,
and how many threads an OpenMP team in its place really has.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qcthreads.programs.precedence import environment_under, settle
from qcthreads.programs.registry import get
from qcthreads.programs.settings import settings_for
from qcthreads.programs.spec import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="masks, and taskset, are Linux's")

GIB = 1024**3
WATER = {"symbols": ["O", "H", "H"], "geometry": [0, 0, 0.22, 0, 1.43, -0.9, 0, -1.43, -0.9]}
SAID = {  # what the harnesses look for before they go on
    "qchem": "Q-Chem 6.2 for Intel X86",
    "terachem": "TeraChem v1.9",
    "define": "TURBOMOLE rev. V7.5 (1) define ended normally",
}
WRITES = {  # files without which they do not go on
    "define": {"control": "$maxcor    500 MiB  per_core\n$end\n"},
    "molpro": {
        "version.xml": '<molpro xmlns="http://www.molpro.net/schema/molpro-output"><job><platform>'
        '<version major="2024" minor="1"/></platform></job></molpro>'
    },
}
TEAM = """
#include <omp.h>
#include <stdio.h>
int main(void) {
  int team = 0;
#pragma omp parallel
#pragma omp atomic
  team++;
  printf("%d", team);
}
"""
STAND_IN = """#!{python} -IS
import json, os, subprocess, sys
from pathlib import Path
files = dict()
for path in Path().iterdir():
    if path.is_file() and path.stat().st_size < 100_000:
        files[path.name] = path.read_text(errors="replace")
me = Path(sys.argv[0])
for name, content in {writes!r}.items():
    Path(name).write_text(content)
call = dict(name=me.name, arguments=sys.argv[1:], environment=dict(os.environ), files=files,
            mask=sorted(os.sched_getaffinity(0)), team=int(subprocess.check_output([str(me.parent / "team")])))
with open({log!r}, "a") as log:
    log.write(json.dumps(call) + "\\n")
print({said!r})
"""
COMPUTE = """
import json, sys
import qcengine
job = json.load(sys.stdin)
qcengine.compute(job["input"], job["program"], task_config=job["task_config"], raise_error=False, return_version=2)
"""


@dataclass(frozen=True)
class Call:
    """One call of a stand-in."""

    name: str
    arguments: list[str]
    environment: Mapping[str, str]
    files: Mapping[str, str]
    mask: list[int]
    team: int

    @property
    def command(self) -> str:
        return shlex.join([self.name, *self.arguments])


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., None]:
    """Builds an executable of that name, first on the child's PATH."""
    if shutil.which("gcc") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("gcc must be installed in CI")
        pytest.skip("gcc is not installed here, and the stand-in's OpenMP team is built by it")
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "basis").mkdir()
    (tmp_path / "basis" / "GENBAS").write_text("no basis sets\n")
    (tmp_path / "team.c").write_text(TEAM)
    subprocess.run(["gcc", "-fopenmp", "-o", folder / "team", tmp_path / "team.c"], check=True)

    def build(name: str) -> None:
        path = folder / name
        path.write_text(
            STAND_IN.format(
                python=sys.executable,
                log=str(tmp_path / "log"),
                said=SAID.get(name, f"stand-in of {name}"),
                writes=WRITES.get(name, {}),
            )
        )
        path.chmod(0o755)

    return build


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[Settings, list[str]], list[Call]]:
    """Runs a command under settings, bound to one CPU, and reads what the stand-ins below it wrote."""

    def run(settings: Settings, command: list[str], given: str = "") -> list[Call]:
        callers = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        environment = environment_under(settle(settings, callers, counts=False), callers)
        subprocess.run(
            ["taskset", "-c", str(last_cpu()), *command],
            input=given,
            env=environment,
            cwd=tmp_path,
            check=True,
            text=True,
            stdout=subprocess.DEVNULL,
        )
        return [Call(**json.loads(line)) for line in (tmp_path / "log").read_text().splitlines()]

    return run


def last_cpu() -> int:
    return max(os.sched_getaffinity(0))


def by_qcengine(settings: Settings, model: Mapping[str, str]) -> tuple[list[str], str]:
    """The command that has QCEngine's own harness compute, and what it is given."""
    job: dict[str, Any] = {
        "program": settings.program,
        "task_config": dict(settings.task_config),
        "input": {"molecule": WATER, "specification": {"driver": "energy", "model": dict(model), "keywords": {}}},
    }
    return [sys.executable, "-c", COMPUTE], json.dumps(job)


# Program, its executables, the call that computes, the threads of a team in each of its processes at a width of 2, and
# what says its memory: 4 GiB less 256 MiB of overhead are 3840 MiB, 503316480 words of 8 bytes, 4026 MB.
HARNESSES = (
    ("cfour", ("xcfour",), "xcfour", 2, ("ZMAT", "MEMORY_SIZE=503316480")),
    ("gamess", ("rungms",), "rungms gamess 00 2", 1, ("gamess.inp", "mwords=251")),
    ("molpro", ("molpro",), "molpro dispatch.mol -d . -W . -n 2", 1, ("dispatch.mol", "memory,251,M")),
    (
        "qchem",
        ("qchem",),
        "qchem -nt 2 dispatch.in dispatch.out savepath",
        2,
        ("dispatch.in", "MEM_TOTAL             3840"),
    ),
    ("turbomole", ("define", "dscf"), "dscf", 2, ("control", "$maxcor 2013 MiB per_core")),  # MB, though it says MiB
    ("terachem", ("terachem",), "terachem tc.in", 2, ("tc.in", "method hf")),  # it is told no memory
)


@pytest.mark.parametrize(
    ("program", "executables", "command", "team", "memory"), HARNESSES, ids=lambda value: str(value)[:9]
)
def test_qcengine_tells_a_stand_in_its_width_and_memory_and_it_stays_in_the_mask(
    program, executables, command, team, memory, stand_in, calls, tmp_path
):
    pytest.importorskip("qcengine", reason="it is QCEngine's harnesses that call")
    for name in executables:
        stand_in(name)
    settings = settings_for(get(program), 2, 4 * GIB, str(tmp_path))
    made = calls(settings, *by_qcengine(settings, {"method": "hf", "basis": "sto-3g"}))[-1]
    assert made.command == command
    assert made.mask == [last_cpu()]
    assert made.team == team  # though QCEngine gave each process OMP_NUM_THREADS=2
    assert made.environment["OMP_NUM_THREADS"] == "2"
    assert settings.ranks * made.team == settings.threads == 2
    for name in ("OMP_THREAD_LIMIT", "OPENBLAS_NUM_THREADS", "OMP_PROC_BIND", *get(program).environment):
        assert made.environment[name] == settings.environment[name]
    file, said = memory
    assert said in made.files[file]


@pytest.mark.parametrize(("program", "executable", "team"), [("orca", "orca", 1), ("gaussian", "g16", 2)])
def test_the_command_of_a_stand_in_without_a_harness(program, executable, team, stand_in, calls, monkeypatch):
    monkeypatch.setenv("GAUSS_CDEF", "0-63")  # would pin to the machine's CPUs
    monkeypatch.setenv("SLURM_JOBID", "1")
    stand_in(executable)
    settings = settings_for(get(program), 2)
    command = get(program).command.format(threads=settings.threads // settings.ranks, ranks=settings.ranks)
    (made,) = calls(settings, ["sh", "-c", command])
    assert made.team == team
    assert made.mask == [last_cpu()]
    if program == "orca":
        assert made.arguments == ["input.inp", "--bind-to none"]
        assert "SLURM_JOBID" not in made.environment
        assert made.environment["OMPI_MCA_hwloc_base_binding_policy"] == "none"
    else:
        assert "GAUSS_CDEF" not in made.environment
        assert made.arguments == ["-p=2", "input.gjf"]
        assert made.environment["GAUSS_PDEF"] == "2"
