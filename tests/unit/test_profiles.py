"""Profiles of machines: what is told of a measurement, and what a file may hold; measures nothing."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import MachineError
from qcthreads.execution.bandwidth import steps
from qcthreads.host import read_machine
from qcthreads.host.profiles import cpu_model, data_directory, fingerprint, read_profile, write_profile
from qcthreads.machine.bandwidth import DomainBandwidth, MachineProfile
from qcthreads.machine.synthetic import synthetic_machine

GB = 1e9


def halves(*, whole: float = 70.0) -> MachineProfile:
    """Two nodes of two LLC domains of four cores: 10 GB/s a core, 25 a domain, 40 a node."""
    llc = tuple((cores, min(10.0 * cores, 25.0) * GB) for cores in (1, 2, 3, 4))
    node = tuple((cores, min(10.0 * cores, 40.0) * GB) for cores in (1, 2, 4, 8))
    domains = [DomainBandwidth("llc", CpuSet(range(at, at + 4)), at // 8, llc) for at in (0, 4, 8, 12)]
    domains += [DomainBandwidth("node", CpuSet(range(at, at + 8)), at // 8, node) for at in (0, 8)]
    domains.append(DomainBandwidth("machine", CpuSet(range(16)), None, ((1, 10 * GB), (16, whole * GB))))
    return MachineProfile("", "a CPU", "2026-01-01T00:00:00+00:00", "native", tuple(domains))


def test_saturation_is_the_fewest_cores_that_get_the_most() -> None:
    profile = halves()
    assert [domain.saturation_cores for domain in profile.of("llc")] == [3] * 4
    assert [domain.saturation_cores for domain in profile.of("node")] == [4, 4]
    falls = DomainBandwidth("llc", CpuSet([0]), 0, ((1, 9 * GB), (2, 10 * GB), (3, 8 * GB)))
    assert (falls.saturation_cores, falls.peak_bytes_per_s) == (2, 10 * GB)
    assert falls.bytes_per_s(3) == 10 * GB  # two of the three could have it


@pytest.mark.parametrize(
    ("cpus", "gigabytes"),
    [
        ([0], 10),
        ([0, 1, 2, 3], 25),  # one domain takes no more, though the node has 40
        ([0, 1, 4, 5], 40),
        (range(6), 40),  # between 4 and 8 cores
        ([0, 8], 20),
        ([0, 1, 2, 8], 35),
        (range(16), 70),  # the nodes have 80, but not together
    ],
)
def test_what_cpus_can_have_together(cpus: list[int], gigabytes: float) -> None:
    assert halves().bandwidth_bytes_per_s(CpuSet(cpus)) == pytest.approx(gigabytes * GB)


def test_where_no_nodes_are_known_the_machine_is_one() -> None:
    profile = halves()
    profile = replace(profile, domains=profile.of("llc")[:1] + profile.of("machine"))
    assert profile.bandwidth_bytes_per_s(CpuSet([0, 1, 2])) == pytest.approx(18 * GB)


def test_nothing_is_said_of_cpus_that_were_not_measured() -> None:
    assert halves().bandwidth_bytes_per_s(CpuSet([0, 16])) is None
    assert halves().bandwidth_bytes_per_s(CpuSet()) is None


@pytest.mark.parametrize("most", [*range(1, 40), 64, 96, 128])
def test_few_numbers_of_cores_are_measured_and_all_of_them(most: int) -> None:
    found = steps(most)
    assert (found[0], found[-1]) == (1, most)
    assert found == sorted(set(found))
    assert all(after <= 1.5 * before or after - before == 1 for before, after in pairwise(found))
    assert len(found) <= 15


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    return {"XDG_DATA_HOME": str(tmp_path)}


def test_what_was_written_is_read(own: dict[str, str]) -> None:
    machine = read_machine()
    assert read_profile(machine, environ=own).missing == "not measured: `qcthreads calibrate --machine` measures it"
    profile = replace(halves(), fingerprint=fingerprint(machine, cpu_model()))
    path = write_profile(profile, own)
    assert read_profile(machine, environ=own).profile == profile
    assert write_profile(replace(profile, method="numpy"), own) == path
    assert [file.name for file in path.parent.iterdir()] == [f"{profile.fingerprint}.json"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "",
        lambda _: "[]",
        lambda _: "[" * 100_000,
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"llc"', '"moon"'),
        lambda text: text.replace('"0-3"', '"0-x"'),
        lambda text: text.replace("10000000000.0", "-1"),
        lambda text: text.replace("10000000000.0", "NaN"),
        lambda text: text.replace('"rates"', '"rate"'),
        lambda text: text.replace('"a CPU"', "3"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named_and_counts_as_none(spoil: object, own: dict[str, str]) -> None:
    machine = read_machine()
    path = write_profile(replace(halves(), fingerprint=fingerprint(machine, cpu_model())), own)
    spoilt = spoil(path.read_text())  # type: ignore[operator]
    assert spoilt != path.read_text()
    path.write_text(spoilt)
    found = read_profile(machine, environ=own)
    assert found.profile is None
    assert str(path) in found.missing
    assert "measures it anew" in found.missing


def test_a_file_of_another_machine_is_not_believed(own: dict[str, str]) -> None:
    machine = read_machine()
    path = write_profile(replace(halves(), fingerprint="0123"), own)
    mine = path.with_name(f"{fingerprint(machine, cpu_model())}.json")
    path.rename(mine)
    assert "it is of another machine" in read_profile(machine, environ=own).missing


def test_where_nothing_can_be_written_it_is_said(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(MachineError, match="XDG_DATA_HOME"):
        write_profile(halves(), {"XDG_DATA_HOME": str(blocked)})


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_write_that_fails_leaves_the_old_file(own: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk being full is made up: fsync says so."""
    path = write_profile(halves(), own)
    before = path.read_text()

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="No space left"):
        write_profile(replace(halves(), method="numpy"), own)
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_fingerprint_is_of_topology_and_cpu() -> None:
    shapes = [synthetic_machine(cores=4), synthetic_machine(llcs=2, cores=2), synthetic_machine(cores=2, threads=2)]
    shapes.append(synthetic_machine(nodes=2, cores=2))
    marks = {fingerprint(machine, "one") for machine in shapes} | {fingerprint(shapes[0], "other")}
    assert len(marks) == 5
    more_memory = synthetic_machine(cores=4, memory_bytes=2**40)
    assert fingerprint(more_memory, "one") == fingerprint(shapes[0], "one")


def test_cpu_models_of_recorded_machines(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    info = tmp_path / "proc" / "cpuinfo"
    assert cpu_model(str(tmp_path)) == ""
    info.write_text("processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC  9654 96-Core\n")
    assert cpu_model(str(tmp_path)) == "AMD EPYC 9654 96-Core"
    info.write_text("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n\nCPU part\t: 0xd4f\n")
    assert cpu_model(str(tmp_path)) == "0x41 0xd4f"
    info.write_text("processor\t: 0\ncpu\t\t: POWER9 (architected), altivec supported\n")
    assert cpu_model(str(tmp_path)) == "POWER9 (architected), altivec supported"


def test_where_data_is_kept() -> None:
    assert data_directory({"XDG_DATA_HOME": "/data", "HOME": "/home/me"}) == Path("/data/qcthreads")
    if sys.platform != "win32":
        assert data_directory({"HOME": "/home/me"}) == Path("/home/me/.local/share/qcthreads")


@pytest.mark.skipif(sys.platform != "linux", reason="cores are told by Linux's files")
def test_the_plan_keeps_to_what_was_measured(tmp_path: Path) -> None:
    """Two tasks of which each takes more than half of it, on a machine recorded by hand, with a profile by hand."""
    import subprocess

    cpus = tmp_path / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (cpus / "online").write_text("0-1\n")
    machine = read_machine(str(tmp_path))
    rates = ((1, 20 * GB), (2, 24 * GB))
    domains = [DomainBandwidth("node", CpuSet([0, 1]), 0, rates), DomainBandwidth("machine", CpuSet([0, 1]), 0, rates)]
    profile = replace(halves(), fingerprint=fingerprint(machine, ""), domains=tuple(domains))
    own = {"XDG_DATA_HOME": str(tmp_path / "data")}
    write_profile(profile, own)
    task = {"times_s": {"1": 10.0}, "bandwidth_bytes_per_s": 15 * GB}
    made = {"sysroot": ".", "tasks": [{"id": "a", **task}, {"id": "b", **task}]}

    def plan(more: dict[str, object]) -> dict[str, object]:
        (tmp_path / "tasks.json").write_text(json.dumps({**made, **more}))
        command = [sys.executable, "-m", "qcthreads", "plan", str(tmp_path / "tasks.json"), "--json"]
        done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, **own})
        return dict(json.loads(done.stdout))

    one_by_one = plan({})
    assert one_by_one["makespan_s"] == 20.0
    assert "memory bandwidth: 24 GB/s, measured 2026-01-01T00:00:00+00:00" in str(one_by_one["reasons"])
    assert plan({"bandwidth_bytes_per_s": None})["makespan_s"] == 10.0
    assert plan({"bandwidth_bytes_per_s": 30 * GB})["makespan_s"] == 10.0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody is without a home")
def test_who_has_no_home_has_nothing_measured_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")  # as pathlib's for a user without passwd entry

    monkeypatch.setattr(Path, "home", no_home)
    assert data_directory({}).is_relative_to("/nonexistent")
    assert read_profile(read_machine(), environ={}).profile is None
