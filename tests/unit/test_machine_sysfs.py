"""Topology from /sys: recorded machines against hwloc's answers, this machine against lscpu, trees that lack files."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import MachineError
from qcthreads.host import get_host
from qcthreads.host.sysfs import read_machine
from qcthreads.machine import Machine

CORPUS = Path(os.environ.get("QCTHREADS_TOPOLOGY_CORPUS") or Path(__file__).parents[3] / "shared" / "topologies")
TRUTHS = sorted(CORPUS.glob("truth/*.json"))

# What no reader of ours opens; leaving it packed halves the time.
UNREAD = re.compile(
    "/(cpufreq|cpuidle|hugepages|ways_of_associativity|coherency_line_size|physical_line_partition|number_of_sets)(/|$)"
)

# (recording, key): why our answer differs from hwloc's on purpose.
DIFFERENCES = {
    ("2s390-2c", "cores"): "no topology files: hwloc lists no cores, a Machine's cores always cover its CPUs",
    ("nvidiagpunumanodes", "numa"): "hwloc hides the memory of GPUs, we list it as nodes of kind GPU",
    ("nvidiagpunumanodes", "distances"): "with the nodes of the GPUs",
    ("nvidiagpunumanodes", "allowed_mems"): "with the nodes of the GPUs",
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A function that unpacks a recording once."""
    base = tmp_path_factory.mktemp("corpus")

    def unpack(name: str) -> str:
        if not (base / name).exists():
            with tarfile.open(CORPUS / f"{name}.tar.xz") as archive:
                for member in archive:  # extractall() takes three times as long, for owners and dates
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is not None and not UNREAD.search(member.name):
                        path = base / member.name
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(file.read())
        return str(base / name)

    return unpack


def answers(machine: Machine) -> dict[str, object]:
    distances = machine.distances
    return {
        "cpus_online": list(machine.cpus_online),
        "packages": [list(package.cpus) for package in machine.packages],
        "dies": [list(die.cpus) for die in machine.dies],
        "cores": [list(core.cpus) for core in machine.cores],
        "numa": [(node.node_id, node.memory_bytes, list(node.cpus)) for node in machine.numa_nodes],
        "caches": sorted(
            (c.level, c.kind, c.size_bytes, list(c.cpus)) for c in machine.caches if c.kind != "instruction"
        ),
        "allowed_cpus": list(machine.allowed_cpus),
        "allowed_mems": list(machine.allowed_mems),
        "distances": distances and {"nodes": list(distances.nodes), "matrix": [list(row) for row in distances.matrix]},
    }


def truth_answers(truth: dict, ours: dict) -> dict[str, object]:
    """hwloc's; a node's CPUs may be its locality or those of its own file: firmware lists none for some memory."""
    mine = {node: cpus for node, _, cpus in ours["numa"]}
    numa = []
    for node in truth["numa"]:
        cpus = node["sysfs_cpus"] if mine.get(node["id"]) == node["sysfs_cpus"] else node["cpus"]
        numa.append((node["id"], node["memory_bytes"], cpus))
    shared = [cache for cache in truth["caches"] if cache["type"] != "instruction"]
    same = ("cpus_online", "packages", "dies", "cores", "distances", "allowed_cpus", "allowed_mems")
    return {key: truth[key] for key in same} | {
        "numa": numa,
        "caches": sorted((cache["level"], cache["type"], cache["size"], cache["cpus"]) for cache in shared),
    }


@pytest.mark.skipif(not TRUTHS, reason="no recorded machines here; name their folder in QCTHREADS_TOPOLOGY_CORPUS")
@pytest.mark.parametrize("path", TRUTHS, ids=lambda path: path.stem)
def test_recorded_machine(path, unpacked):
    truth = json.loads(path.read_text())
    ours = answers(get_host().read_machine(unpacked(path.stem)))
    theirs = truth_answers(truth, ours)
    differing = {key for key in ours if ours[key] != theirs[key]}
    expected = {key for name, key in DIFFERENCES if name == path.stem}
    assert differing == expected, {key: (ours[key], theirs[key]) for key in differing}


def test_gpu_memory_is_known_as_such(unpacked):
    if not (CORPUS / "nvidiagpunumanodes.tar.xz").exists():
        pytest.skip("the recorded machines are not there; name their folder in QCTHREADS_TOPOLOGY_CORPUS")
    kinds = {node.node_id: node.kind for node in read_machine(unpacked("nvidiagpunumanodes")).numa_nodes}
    assert [node for node, kind in kinds.items() if kind == "GPU"] == [250, 251, 252, 253, 254, 255]


@pytest.mark.skipif(sys.platform != "linux", reason="lscpu and /sys are Linux's")
def test_this_machine_agrees_with_lscpu():
    machine = read_machine("/")
    told = subprocess.run(["lscpu", "-p=CPU,CORE,SOCKET,NODE"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(",") for line in told.splitlines() if not line.startswith("#")]
    assert machine.cpus_online == CpuSet(int(cpu) for cpu, *_ in rows)
    for column, groups in ((1, machine.cores), (2, machine.packages)):
        by_number: dict[str, list[int]] = {}
        for row in rows:
            by_number.setdefault(row[column], []).append(int(row[0]))
        assert sorted(by_number.values()) == [list(group.cpus) for group in groups]


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def test_cpuinfo_alone_gives_cores(tmp_path):
    machine = read_machine(tree(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel: x\n\nprocessor\t: 1\n"}))
    assert [str(core.cpus) for core in machine.cores] == ["0", "1"]
    assert [str(package.cpus) for package in machine.packages] == ["0", "1"]
    assert [(node.node_id, str(node.cpus), node.memory_bytes) for node in machine.numa_nodes] == [(0, "0-1", 0)]
    assert machine.allowed_cpus == machine.cpus_online


def test_no_file_at_all_says_what_was_looked_for(tmp_path):
    with pytest.raises(MachineError, match=r"no CPUs found below .*cpu/online.*proc/cpuinfo"):
        read_machine(str(tmp_path))


def test_nonsense_names_the_file(tmp_path):
    files = {"sys/devices/system/cpu/online": "0-1", "sys/devices/system/cpu/cpu0/topology/core_cpus": "zebra"}
    with pytest.raises(MachineError, match=r"cpu0/topology/core_cpus cannot be understood.*zebra"):
        read_machine(tree(tmp_path, files))


def test_hybrid_kinds_by_device_and_by_capacity(tmp_path):
    online = {"sys/devices/system/cpu/online": "0-3"}
    x86 = {"sys/devices/cpu_core/cpus": "0-1", "sys/devices/cpu_atom/cpus": "2-3"}
    arm = {f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": "1024" if cpu < 2 else "446" for cpu in range(4)}
    for name, files in (("x86", x86), ("arm", arm)):
        machine = read_machine(tree(tmp_path / name, online | files))
        assert [(str(kind.cpus), kind.efficiency) for kind in machine.cpu_kinds] == [("2-3", 0), ("0-1", 1)]
    assert read_machine(tree(tmp_path / "plain", online)).cpu_kinds == ()
