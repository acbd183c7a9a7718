"""Memory and temporary files as they were measured: grants near to peaks, a limit that kills, refusals by name."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_groups import limited

pytest.importorskip("pyscf", reason="it computes")

from qcthreads.errors import OversubscriptionError
from qcthreads.execution.cost_store import CostStore, Kind
from qcthreads.host import read_machine
from qcthreads.host.disks import FileSystem, file_system
from qcthreads.host.limits import read_limits
from qcthreads.manybody.config import HybridParallelConfig
from qcthreads.manybody.executor import ParallelManyBodyExecutor
from qcthreads.manybody.head_start import HeadStart
from qcthreads.manybody.inputs import read_input
from qcthreads.manybody.run import Run, RunReport, RunRequest
from qcthreads.planning.costs import Estimate, Observation, Size, memory_grant
from qcthreads.programs.registry import find, get

EXAMPLES = Path(__file__).parents[2] / "examples"
GROUP = Path(f"/sys/fs/cgroup/memory/qcthreads-test-{os.getpid()}")
MIB = 1024**2

pytestmark = pytest.mark.skipif(len(read_limits().cpus) < 2, reason="with one CPU there is no width to choose")


@pytest.fixture(autouse=True)
def own_book(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others on the node have leased is not there to be granted, so that nothing could be said of grants."""
    monkeypatch.setenv("QCTHREADS_LEASES", str(tmp_path_factory.mktemp("leases")))


def run(**options: Any) -> RunReport:
    return Run(RunRequest(input=EXAMPLES / "water4.xyz", busy="ignore", **options)).execute()


def test_after_a_run_grants_are_near_to_peaks_where_no_setting_held_them_back() -> None:
    if find(get("xtb")) is None:
        assert os.environ.get("CI") != "true", "xtb must be installed in CI"
        pytest.skip("xtb is not installed here")
    first = run(program="xtb", max_nbody=3).record.calculations
    known = CostStore(read_machine()).model(Kind("xtb", "energy", "GFN2-xTB", "")).observations
    then = run(program="xtb", max_nbody=3).record.calculations
    assert len(first) == len(then) == 14
    # Of calculations of some milliseconds, the worker and the program are not always seen together.
    most_seen = max(one.memory_peak_bytes for one in (*first, *then))
    assert min(one.memory_granted_bytes for one in then) > min(seen.peak_memory_bytes for seen in known)
    assert (
        max(one.memory_granted_bytes for one in then) < 1.2 * most_seen < min(one.memory_granted_bytes for one in first)
    )


@pytest.mark.nwchem
def test_of_two_processes_more_is_planned_than_of_one_and_they_take_it(tmp_path: Path) -> None:
    """By what real NWChem took with one alone: here 459 MiB, of which 481 are granted; two took 545 to 567 of 609."""
    if find(get("nwchem")) is None or shutil.which("mpirun") is None:
        assert os.environ.get("CI") != "true", "NWChem and Open MPI must be installed in CI"
        pytest.skip("NWChem or Open MPI is not installed here")
    three_waters = tmp_path / "waters.xyz"
    three_waters.write_text("\n".join(["9", "", *(EXAMPLES / "water4.xyz").read_text().splitlines()[2:11]]))
    request = RunRequest(
        input=three_waters,
        program="nwchem",
        method="hf",
        basis="cc-pvtz",  # for some seconds: what is over sooner is not seen whole
        max_nbody=1,
        fragments="1-6;7-9",
        busy="ignore",
        workers=1,
        memory_bytes=2048 * MIB,
    )

    def peak_bytes(threads: int) -> int:
        made = Run(replace(request, threads=threads, learn=threads == 1)).execute()
        return max(one.memory_peak_bytes for one in made.record.calculations)

    one_bytes, two_bytes = peak_bytes(1), peak_bytes(2)
    model = CostStore(read_machine()).model(Kind("nwchem", "energy", "hf", "cc-pvtz"))
    largest = max((seen.size for seen in model.observations), key=lambda size: size.electrons)
    peak = model.memory_bytes(largest)
    assert peak is not None
    assert peak.value == one_bytes
    assert memory_grant(peak) < two_bytes <= memory_grant(peak) + get("nwchem").memory_per_process_bytes


def test_what_little_memory_held_back_is_granted_its_share_afterwards() -> None:
    """PySCF without room for its integrals takes less, and longer."""
    options = {"method": "hf", "basis": "cc-pvdz", "max_nbody": 2, "workers": 2, "threads": 1}
    held_back = run(**options, memory_bytes=512 * MIB).record.calculations
    del options["workers"], options["threads"]
    calculations = run(**options, memory_bytes=2048 * MIB).record.calculations
    assert max(one.memory_granted_bytes for one in held_back) <= 256 * MIB
    assert min(one.memory_granted_bytes / one.threads for one in calculations) > 0.9 * 2048 * MIB / len(
        read_limits().cpus
    )


# Two of six waters each, which take some 550 MiB, and one of four.
LARGE = ("--method", "hf", "--basis", "cc-pvdz", "--max-nbody", "1", "--busy", "ignore", "--json")
WATER16 = EXAMPLES / "water16.xyz"
DRIVER_BYTES = 64 * MIB


def first_atoms(of: Path, count: int, path: Path) -> Path:
    """A file of them alone."""
    lines = of.read_text().splitlines()
    path.write_text("\n".join([str(count), *lines[1 : 2 + count], ""]))
    return path


class Occupancy:
    """The most that the processes of a group held at any time, of memory of their own: files are not counted."""

    def __init__(self, group: Path) -> None:
        self._group, self._over = group, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.bytes = 0

    def __enter__(self) -> Occupancy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            told = dict(line.split() for line in (self._group / "memory.stat").read_text().splitlines())
            self.bytes = max(self.bytes, int(told["total_rss"]))


def test_nothing_is_killed_where_two_that_compute_hold_four_fifths_of_a_limit_that_kills(tmp_path: Path) -> None:
    """Of PySCF, in a group that has room for two by what one was measured to take, and not for three."""
    command = [sys.executable, "-m", "qcthreads", "run", *LARGE]
    with limited(GROUP, read_limits().memory_bytes):
        one_of_each = [first_atoms(WATER16, 21, tmp_path / "two.xyz"), "--fragments", "1-18;19-21", "--threads", "1"]
        subprocess.run([*command, *one_of_each], capture_output=True, check=True, timeout=600)
        model = CostStore(read_machine()).model(Kind("pyscf", "energy", "hf", "cc-pvdz"))
        peak_bytes = max(seen.peak_memory_bytes for seen in model.observations)
        limit_bytes = 2 * memory_grant(Estimate(peak_bytes, 1.0, "seen")) + DRIVER_BYTES
        (GROUP / "memory.limit_in_bytes").write_text(str(limit_bytes))
        inside = ["sh", "-c", f'echo $$ > {GROUP}/cgroup.procs && exec "$@"', "sh"]
        all_of_them = [WATER16, "--fragments", "1-18;19-36;37-48"]
        with Occupancy(GROUP) as occupied:
            done = subprocess.run(
                [*inside, *command, *all_of_them], capture_output=True, text=True, timeout=600, check=False
            )
        assert done.returncode == 0, done.stderr
        told = dict(line.split() for line in (GROUP / "memory.oom_control").read_text().splitlines())
        assert told["oom_kill"] == "0"
    document = json.loads(done.stdout)
    assert document["statistics"]["peak_workers"] == 2
    assert 2 * document["decision"]["memory_bytes_per_worker"] < limit_bytes
    print(f"{occupied.bytes / limit_bytes:.1%} of {limit_bytes / MIB:.0f} MiB")
    assert occupied.bytes >= 0.8 * limit_bytes


def test_what_alone_takes_more_than_there_is_is_refused_by_name_before_anything_starts() -> None:
    if find(get("xtb")) is None:
        assert os.environ.get("CI") != "true", "xtb must be installed in CI"
        pytest.skip("xtb is not installed here")
    kind = Kind("xtb", "energy", "GFN2-xTB", "")
    CostStore(read_machine()).add(kind, [Observation(Size(10 * n, 10 * n), 1, 0.1, n * 800 * MIB) for n in (1, 2)])
    request = RunRequest(input=EXAMPLES / "water4.xyz", program="xtb", method="GFN2-xTB", memory_bytes=1000 * MIB)
    with pytest.raises(OversubscriptionError, match=r"calculation 1\+2 takes .* measured here, but 1000 MiB"):
        Run(request)


def measured(scratch_bytes: int, *, width: int = 1) -> None:
    """As if earlier runs had seen temporary files: 20 MiB of a monomer, so much of a dimer."""
    seen = [
        Observation(Size(24, 10), width, 0.1, 130 * MIB, 20 * MIB),
        Observation(Size(48, 20), width, 0.3, 140 * MIB, scratch_bytes),
    ]
    CostStore(read_machine()).add(Kind("pyscf", "energy", "hf", "cc-pvdz"), seen)


def request(scratch: Path) -> RunRequest:
    return RunRequest(input=EXAMPLES / "water4.xyz", method="hf", basis="cc-pvdz", max_nbody=2, scratch=scratch)


def test_temporary_files_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    measured(2**60)
    said = rf"calculation 1\+2 writes 1048576 TiB of temporary files .* are left in {re.escape(str(tmp_path))} \("
    with pytest.raises(OversubscriptionError, match=said):
        Run(request(tmp_path))


def decided_with_room_for_one(folder: Path, strategy: str) -> dict[str, Any]:
    """What a run decides whose calculations each fill more than half of the disk."""
    measured(round(0.6 * shutil.disk_usage(folder).free))
    if file_system(folder).in_memory:
        pytest.skip("temporary files are in memory here")
    decision = Run(replace(request(folder), strategy=strategy)).decision
    assert decision["scratch_bytes"] > 0.6 * 0.9 * shutil.disk_usage(folder).free
    return decision


def test_few_run_side_by_side_where_the_disk_has_room_for_few(tmp_path: Path) -> None:
    one_width = decided_with_room_for_one(tmp_path, "balanced")
    assert one_width["workers"] == 1
    assert "there is room for the temporary files of 1 at a time" in one_width["reasons"]
    said = " of disk are free: as many run side by side as have room for their temporary files"
    assert any(reason.endswith(said) for reason in decided_with_room_for_one(tmp_path, "auto")["reasons"])


def test_what_others_have_filled_of_the_disk_keeps_calculations_from_running_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if file_system(tmp_path).in_memory:
        pytest.skip("temporary files are in memory here")
    free_bytes = shutil.disk_usage(tmp_path).free
    for width in (1, 2):  # no faster with two threads
        measured(round(0.3 * free_bytes), width=width)
    asked = replace(request(tmp_path), strategy="adaptive", learn=False, busy="ignore")
    prepared = Run(asked, HeadStart(asked, warm=True))  # both workers are there from the beginning
    filled = shutil.disk_usage(tmp_path)._replace(free=round(0.4 * free_bytes))
    monkeypatch.setattr("qcthreads.manybody.measured.shutil.disk_usage", lambda _: filled)
    report = prepared.execute()
    dimers = [one for one in report.record.calculations if "+" in one.label]
    assert len(dimers) == 6
    ordered = sorted((one.start_s, one.wall_s) for one in dimers)
    assert all(later >= start_s + wall_s for (start_s, wall_s), (later, _) in itertools.pairwise(ordered))


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("balanced", "there is room for the temporary files of 1 at a time"),
        ("adaptive", "as many run side by side as have room for their temporary files"),
    ],
)
def test_an_executor_runs_as_many_side_by_side_as_its_scratch_directory_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, said: str
) -> None:
    for width in (1, 2):  # no faster with two threads
        measured(20 * MIB, width=width)
    disk = file_system(tmp_path)
    looked_at = []

    def almost_full(folder: Path) -> FileSystem:
        looked_at.append(folder)
        return replace(disk, kind="ext4", free_bytes=30 * MIB)

    monkeypatch.setattr("qcthreads.manybody.measured.file_system", almost_full)
    config = HybridParallelConfig(
        max_workers=2,
        thread_allocation_strategy=strategy,
        learn=False,
        qcengine_config={"scratch_directory": str(tmp_path / "made later")},
    )
    given = read_input(EXAMPLES / "water4.xyz", replace(request(tmp_path), max_nbody=1))
    figures = ParallelManyBodyExecutor.from_manybodyinput(given, config).extras["qcthreads"]
    assert set(looked_at) == {tmp_path}
    assert figures["peak_workers"] == 1
    assert any(reason.endswith(said) for reason in figures["reasons"])


def test_of_very_many_few_run_side_by_side_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcthreads.manybody.run._PLANNED", 1)
    assert decided_with_room_for_one(tmp_path, "auto")["workers"] == 1


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no tmpfs to write to")
def test_temporary_files_in_memory_count_as_memory() -> None:
    measured(300 * MIB)
    two = {"memory_bytes": 500 * MIB, "workers": 2}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        decision = Run(request(Path(folder))).decision
        assert decision["scratch_bytes"] is None
        with pytest.raises(OversubscriptionError, match="2 workers x 428 MiB"):
            Run(replace(request(Path(folder)), **two))
    if not file_system(EXAMPLES).in_memory:
        assert Run(replace(request(EXAMPLES), **two)).decision["workers"] == 2


@pytest.mark.psi4
def test_what_a_program_writes_is_seen(tmp_path: Path) -> None:
    if find(get("psi4")) is None:
        assert os.environ.get("CI") != "true", "psi4 must be installed in CI"
        pytest.skip("psi4 is not installed here")
    given = RunRequest(
        input=first_atoms(WATER16, 9, tmp_path / "three.xyz"),
        fragments="1-6;7-9",  # two waters together take longer than the time between some looks
        program="psi4",
        method="mp2",
        basis="aug-cc-pvtz",
        max_nbody=1,
        scratch=tmp_path,
    )
    Run(given).execute()
    seen = CostStore(read_machine()).model(Kind("psi4", "energy", "mp2", "aug-cc-pvtz")).observations
    assert max(one.peak_scratch_bytes for one in seen) > 100_000
