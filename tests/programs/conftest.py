"""What the tests on real programs share: when they may be skipped, and how threads that really worked are counted."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from watched import Run, threads_below

from qcthreads.programs.precedence import environment_under, settle
from qcthreads.programs.registry import find, get
from qcthreads.programs.spec import Settings

INSTALLABLE = ("cp2k", "dftd4", "mopac", "nwchem", "psi4", "pyscf", "s-dftd3", "tblite", "xtb")

_COMPUTE = """
import importlib, json, sys
import qcengine
job = json.load(sys.stdin)
if job["harness_module"]:
    importlib.import_module(job["harness_module"])
result = qcengine.compute(
    job["input"], job["program"], task_config=job["task_config"], return_version=2, return_dict=True
)
if not result["success"]:
    sys.exit(result["error"]["error_message"])
energy = result["return_result"] if "return_result" in result else result["properties"]["return_energy"]
json.dump({"energy": energy, "stdout": result["stdout"]}, sys.stdout)
"""


@pytest.fixture
def needs() -> Callable[..., None]:
    """Skips where a program is not installed; in CI, where everything installable is, fails instead."""

    def _needs(*programs: str) -> None:
        for program in programs:
            installation = find(get(program))
            if installation is not None and not installation.missing:
                continue
            if os.environ.get("CI") == "true" and program in INSTALLABLE:
                pytest.fail(f"{program} must be installed in CI")
            pytest.skip(f"{program} is not installed here")

    return _needs


@pytest.fixture
def calculate(tmp_path: Path) -> Callable[..., Run]:
    """Runs one calculation by QCEngine in a process under its settings, and watches the threads below."""

    def _calculate(settings: Settings, atomic_input: Mapping[str, Any]) -> Run:
        job = {
            "program": settings.program,
            "harness_module": settings.harness_module,
            "task_config": dict(settings.task_config),
            "input": atomic_input,
        }
        said, cpu_s = _watch([sys.executable, "-c", _COMPUTE], settings, tmp_path, json.dumps(job))
        result = json.loads(said)
        return Run(energy=result["energy"], stdout=result["stdout"], cpu_s=cpu_s)

    return _calculate


@pytest.fixture
def run_command(tmp_path: Path) -> Callable[..., Run]:
    """Runs a program's own command, as its record writes it, under its settings, and watches the threads below."""

    def _run(settings: Settings, files: Mapping[str, str]) -> Run:
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        threads = settings.threads // settings.ranks
        command = get(settings.program).command.format(threads=threads, ranks=settings.ranks, width=settings.threads)
        said, cpu_s = _watch(shlex.split(command), settings, tmp_path)
        return Run(energy=float("nan"), stdout=said, cpu_s=cpu_s)

    return _run


@pytest.fixture
def run_in() -> Callable[..., Run]:
    """Runs any command in a folder, under settings, bound to ``cpus``; may be used from several threads at once."""

    def _run(command: str, settings: Settings, folder: Path, cpus: Sequence[int] = ()) -> Run:
        said, cpu_s = _watch(shlex.split(command), settings, folder, cpus=cpus)
        return Run(energy=float("nan"), stdout=said, cpu_s=cpu_s)

    return _run


def _watch(
    command: Sequence[str], settings: Settings, folder: Path, given: str = "", cpus: Sequence[int] = ()
) -> tuple[str, dict[tuple[str, int, int], float]]:
    """What ``command`` said, bound to as many CPUs as its settings are for, and the CPU seconds of every thread."""
    mask = cpus or sorted(os.sched_getaffinity(0))[-settings.threads :]
    (folder / "in").write_text(given)
    with (folder / "in").open() as stdin, (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, mask)), *command],
            stdin=stdin,
            stdout=out,
            stderr=err,
            cwd=folder,
            env=environment_under(settle(settings, os.environ, counts=False), os.environ),
        )
        cpu_s: dict[tuple[str, int, int], float] = {}
        masks: dict[tuple[str, int, int], set[int]] = {}
        while process.poll() is None:
            for thread, (seconds, allowed) in threads_below(process.pid).items():
                cpu_s[thread] = seconds
                # As last seen: libpsm2, which Open MPI loads, puts itself on CPU 0 for some ms and back.
                masks[thread] = allowed
            time.sleep(0.02)
    assert process.returncode == 0, (folder / "err").read_text()
    escaped = {thread: allowed for thread, allowed in masks.items() if not allowed <= set(mask)}
    assert not escaped, f"bound to {mask}"
    return (folder / "out").read_text(), cpu_s
