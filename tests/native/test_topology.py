"""Topology from /sys by both readers: recordings against hwloc, this machine against lscpu, trees that lack files.

And plans for the recorded machines, whose memory nodes may overlap, be forbidden, or leave CPUs out.
"""

import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcthreads.cpuset import CpuSet, NodeSet
from qcthreads.errors import InputError, MachineError
from qcthreads.host import sysfs
from qcthreads.host.topology import read_machine
from qcthreads.machine import Machine
from qcthreads.planning import Plan, Task, plan, strategy_names
from qcthreads.planning.batch import Batch
from qcthreads.planning.check import fault_of
from qcthreads.planning.memory import Node, memory_nodes, memory_within
from qcthreads.planning.model import capacity_of, usable_of

CORPUS = Path(os.environ.get("QCTHREADS_TOPOLOGY_CORPUS") or Path(__file__).parents[3] / "shared" / "topologies")
TRUTHS = sorted(CORPUS.glob("truth/*.json"))

# What no reader of ours opens; leaving it packed halves the time.
UNREAD = re.compile(
    "/(cpuidle|hugepages|ways_of_associativity|coherency_line_size|physical_line_partition|number_of_sets)(/|$)"
    "|/cpu[0-9]+/node[0-9]+$|/node[0-9]+/cpu[0-9]+$"
)

# (recording, key): why our answer differs from hwloc's on purpose.
DIFFERENCES = {
    ("nvidiagpunumanodes", "numa"): "hwloc hides the memory of GPUs, we list it as nodes of kind GPU",
    ("nvidiagpunumanodes", "distances"): "with the nodes of the GPUs",
    ("20em64t-hybrid-1p6c2t+2ca4co1t", "numa"): "its only node has all the machine's memory, 16 KiB more than it tells",
    (
        "nvidiagpunumanodes",
        "allowed_mems",
    ): "we read a v1 cpuset's effective_mems, hwloc its mems",
    (
        "nvidiagpunumanodes",
        "allowed_cpus",
    ): "we read a v1 cpuset's effective_cpus, hwloc its cpus",
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A function that unpacks a recording once."""
    base = tmp_path_factory.mktemp("corpus")

    def unpack(name: str) -> str:
        if not (base / name).exists():
            with tarfile.open(CORPUS / f"{name}.tar.xz") as archive:
                for member in archive:  # extractall() takes three times as long, for owners and dates
                    if UNREAD.search(member.name) or member.isdir():
                        continue
                    path = base / member.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if member.issym():
                        path.symlink_to(member.linkname)
                    elif (file := archive.extractfile(member)) is not None:
                        path.write_bytes(file.read())
        return str(base / name)

    return unpack


def both_facts(root: str) -> tuple[sysfs.Facts, sysfs.Facts]:
    """What the two readers say, the native one without its way out to the other."""
    native = pytest.importorskip("qcthreads.host._native", reason="the native extension is not there")
    online = sysfs.online_cpus(root)
    directory = os.open(root, os.O_RDONLY)
    try:
        return sysfs.Facts(*native.read_topology(directory, online.bits)), sysfs.read_facts(root, online)
    finally:
        os.close(directory)


def answers(machine: Machine) -> dict[str, object]:
    distances = machine.distances
    return {
        "cpus_online": list(machine.cpus_online),
        "packages": [list(package.cpus) for package in machine.packages if not package.assumed],
        "dies": [list(die.cpus) for die in machine.dies],
        "clusters": [list(cluster.cpus) for cluster in machine.clusters],
        "cores": [list(core.cpus) for core in machine.cores if not core.assumed],
        "cpu_kinds": [(kind.efficiency, list(kind.cpus)) for kind in machine.cpu_kinds],
        "numa": [(node.node_id, node.memory_bytes, list(node.cpus)) for node in machine.numa_nodes],
        "caches": sorted(
            (c.level, c.kind, c.size_bytes, list(c.cpus)) for c in machine.caches if c.kind != "instruction"
        ),
        "allowed_cpus": list(machine.allowed_cpus),
        "allowed_mems": list(machine.allowed_mems),
        "distances": distances and {"nodes": list(distances.nodes), "matrix": [list(row) for row in distances.matrix]},
    }


def truth_answers(truth: dict) -> dict[str, object]:
    """hwloc's; the CPUs of a node are those of its own file, or hwloc's locality where the file lists none."""
    numa = [(node["id"], node["memory_bytes"], node["sysfs_cpus"] or node["cpus"]) for node in truth["numa"]]
    shared = [cache for cache in truth["caches"] if cache["type"] != "instruction"]
    same = ("cpus_online", "packages", "dies", "cores", "distances", "allowed_cpus", "allowed_mems")
    kinds = [(kind["efficiency"], kind["cpus"]) for kind in truth["cpu_kinds"]]
    return {key: truth[key] for key in same} | {
        "numa": numa,
        "cpu_kinds": kinds if len(kinds) > 1 else [],
        "clusters": [cpus for cpus in truth["clusters"] if cpus not in truth["cores"]],
        "caches": sorted((cache["level"], cache["type"], cache["size"], cache["cpus"]) for cache in shared),
    }


@pytest.mark.skipif(not TRUTHS, reason="no recorded machines here; name their folder in QCTHREADS_TOPOLOGY_CORPUS")
@pytest.mark.parametrize("path", TRUTHS, ids=lambda path: path.stem)
def test_recorded_machine(path, unpacked, host):
    truth = json.loads(path.read_text())
    ours = answers(host.read_machine(unpacked(path.stem)))
    theirs = truth_answers(truth)
    differing = {key for key in ours if ours[key] != theirs[key]}
    expected = {key for name, key in DIFFERENCES if name == path.stem}
    assert differing == expected, {key: (ours[key], theirs[key]) for key in differing}


@pytest.mark.skipif(not TRUTHS, reason="no recorded machines here; name their folder in QCTHREADS_TOPOLOGY_CORPUS")
@pytest.mark.parametrize("path", TRUTHS, ids=lambda path: path.stem)
def test_both_readers_say_the_same(path, unpacked):
    native, pure = both_facts(unpacked(path.stem))
    assert native == pure


@pytest.mark.skipif(not TRUTHS, reason="no recorded machines here; name their folder in QCTHREADS_TOPOLOGY_CORPUS")
@pytest.mark.parametrize("path", TRUTHS, ids=lambda path: path.stem)
def test_plans_for_a_recorded_machine_keep_every_promise(path, unpacked, host):
    machine, usable = usable_of(host.read_machine(unpacked(path.stem)))
    nodes = memory_nodes(machine, usable)
    if nodes:
        assert sorted(cpu for node in nodes for cpu in node.cpus) == list(usable)
        assert NodeSet(node.node_id for node in nodes) <= machine.allowed_mems
    rng = random.Random(path.stem)
    least = min((node.memory_bytes for node in nodes), default=1 << 30)
    widths = sorted({1, 2, max(1, len(usable) // 2), len(usable)})
    for share in (0.3, 1.0):  # of the smallest memory node, at most
        tasks = [
            Task(str(number), {width: rng.uniform(5, 6) * (0.1 + 0.9 / width) for width in widths}, need)
            for number, need in enumerate(int(rng.uniform(0, share) * least) for _ in range(24))
        ]
        batch = Batch(tasks, capacity_of(usable, memory_bytes=memory_within(machine, usable, None)))
        for name in strategy_names():
            made = plan(tasks, machine, name)
            assert fault_of(made.placements, batch, usable) == ""
            if made.chosen == "memory_aware":
                assert all(fullest(made, tasks, node) <= node.memory_bytes * (1 + 1e-9) for node in nodes)


@pytest.mark.skipif(not TRUTHS, reason="no recorded machines here; name their folder in QCTHREADS_TOPOLOGY_CORPUS")
@pytest.mark.parametrize(
    ("name", "gib"),
    [("16amd64-8n2c-cpusets", 4 * 8.0), ("fakememinitiators-1np2c+1npp+gi", 92.9 + 94.5 + 93.0 + 94.5)],
    ids=["a node without CPUs that may be used", "DRAM on nodes without CPUs"],
)
def test_memory_that_any_cpu_may_use_is_planned_with(name: str, gib: float, unpacked, host):
    machine, usable = usable_of(host.read_machine(unpacked(name)))
    assert memory_within(machine, usable, None) == pytest.approx(gib * 2**30, rel=1e-3)


def fullest(made: Plan, tasks: list[Task], node: Node) -> float:
    """The most bytes that a memory node has to hold at a time; memory lies on the nodes of a task's CPUs."""
    parts = {one: tasks[int(one.id)].memory_bytes * len(one.cpus & node.cpus) / one.threads for one in made.placements}
    return max(
        sum(parts[one] for one in made.placements if one.start_s <= now.start_s < one.end_s) for now in made.placements
    )


@pytest.mark.skipif(not TRUTHS, reason="no recorded machines here; name their folder in QCTHREADS_TOPOLOGY_CORPUS")
def test_memory_without_cpus_has_its_kind_and_its_place(unpacked, host):
    gpus = host.read_machine(unpacked("nvidiagpunumanodes"))
    truth = json.loads((CORPUS / "truth" / "nvidiagpunumanodes.json").read_text())["numa_with_gpu"]
    assert [(node.node_id, list(node.cpus), node.kind) for node in gpus.numa_nodes] == [
        (node["id"], node["cpus"], "GPU" if node.get("subtype") == "GPUMemory" else "DRAM") for node in truth
    ]
    tiered = host.read_machine(unpacked("fakememinitiators-1np2c+1npp+gi"))
    assert [node.node_id for node in tiered.numa_nodes if node.kind == "NVM"] == [7, 10]
    phi = host.read_machine(unpacked("64intel64-fakeKNL-SNC4-hybrid"))
    assert [node.node_id for node in phi.numa_nodes if node.kind == "HBM"] == [4, 5, 6, 7]
    assert str(phi.nodes_of(CpuSet([0]))) == "0", "high-bandwidth memory is for those who ask for it"


@pytest.mark.skipif(sys.platform != "linux", reason="lscpu and /sys are Linux's")
def test_this_machine_agrees_with_lscpu(host):
    machine = host.read_machine()
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
        path.write_text(text, encoding="latin-1")
    return str(root)


CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"


def test_cpuinfo_alone_gives_cores(tmp_path, host):
    machine = host.read_machine(tree(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel: x\n\nprocessor\t: 1\n"}))
    assert [str(core.cpus) for core in machine.cores] == ["0", "1"]
    assert [str(package.cpus) for package in machine.packages] == ["0", "1"]
    assert [(node.node_id, str(node.cpus), node.memory_bytes) for node in machine.numa_nodes] == [(0, "0-1", 0)]
    assert machine.allowed_cpus == machine.cpus_online


def test_no_file_at_all_says_what_was_looked_for(tmp_path, host):
    with pytest.raises(MachineError, match=r"no CPUs found below .*cpu/online.*proc/cpuinfo"):
        host.read_machine(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (f"{CPU}/cpu0/topology/core_cpus", "zebra"),
        (f"{CPU}/cpu0/topology/thread_siblings_list", "3-1"),
        (f"{CPU}/cpu1/topology/core_cpus", "1" * 70000),
        (f"{NODE}/node0/cpumap", "123456789"),
        (f"{NODE}/node0/distance", "ten"),
    ],
)
def test_nonsense_names_the_file(tmp_path, host, name, text):
    with pytest.raises(MachineError, match=rf"{name} cannot be understood"):
        host.read_machine(tree(tmp_path, {f"{CPU}/online": "0-1", f"{NODE}/node1/cpumap": "2", name: text}))


def test_nonsensical_online_file_is_named(tmp_path, host):
    with pytest.raises(MachineError, match=r"cpu/online cannot be understood"):
        host.read_machine(tree(tmp_path, {f"{CPU}/online": "none at all"}))


def test_numbers_up_to_8191(tmp_path, host):
    """Two cores far apart, by masks of the full width of today's largest kernels, padded with NULs."""
    mask = ["00000000"] * 256
    mask[0], mask[-1] = "80000000", "00000001"
    files = {f"{CPU}/online": "0,4095,8191", f"{CPU}/cpu0/topology/core_cpus": ",".join(mask) + "\0" * 1792}
    machine = host.read_machine(tree(tmp_path, files))
    assert [str(core.cpus) for core in machine.cores] == ["0,8191", "4095"]


def test_a_tree_that_vanishes_half_way_still_covers_every_cpu(tmp_path, host):
    files = {f"{CPU}/online": "0-3"} | {f"{CPU}/cpu{cpu}/topology/core_cpus": "3" for cpu in (0, 1)}
    root = tree(tmp_path, files | {f"{CPU}/cpu{cpu}/topology/core_cpus": "c" for cpu in (2, 3)})
    shutil.rmtree(tmp_path / CPU / "cpu2")
    (tmp_path / CPU / "cpu3/topology/core_cpus").unlink()
    machine = host.read_machine(root)
    assert [str(core.cpus) for core in machine.cores] == ["0-1", "2", "3"]


def test_it_may_vanish_between_any_two_files(tmp_path):
    """The pure reader, whose order of reading the native one shares: an answer, each time."""
    files = {f"{CPU}/online": "0-1", f"{NODE}/node0/cpumap": "3", f"{NODE}/node0/meminfo": "MemTotal: 1 kB"}
    for cpu in (0, 1):
        files |= {f"{CPU}/cpu{cpu}/topology/{name}": "3" for name in ("core_cpus", "package_cpus")}
        files |= {f"{CPU}/cpu{cpu}/cache/index0/{name}": "1" for name in ("level", "shared_cpu_map")}
    for gone in range(len(files)):
        root = tree(tmp_path / str(gone), files)
        for name in list(files)[1:][gone:]:
            (tmp_path / str(gone) / name).unlink()
        native, pure = both_facts(root)
        assert native == pure
        assert sum(bits for bits, *_ in native.cores) == sum(bits for bits, *_ in native.packages) == 3


def test_too_many_open_files_is_an_error_and_no_other_machine(host):
    """The limit is lowered in a process of its own."""
    code = (
        "import os, resource\n"
        "from qcthreads.errors import InputError, MachineError\n"
        "from qcthreads.host import get_host\n"
        "host = get_host(); host.read_machine()\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "held = []\n"
        "try:\n"
        "    while True: held.append(os.dup(0))\n"
        "except OSError: pass\n"
        "try: host.read_machine()\n"
        "except MachineError as error: print(error)\n"
    )
    environment = os.environ | {"QCTHREADS_BACKEND": host.capabilities.back_end}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "ulimit -n" in done.stdout


def test_hybrid_kinds_by_device_and_by_capacity(tmp_path, host):
    online = {f"{CPU}/online": "0-3"}
    x86 = {"sys/devices/cpu_core/cpus": "0-1", "sys/devices/cpu_atom/cpus": "2-3"}
    arm = {f"{CPU}/cpu{cpu}/cpu_capacity": "1024" if cpu < 2 else "446" for cpu in range(4)}
    cppc = {f"{CPU}/cpu{cpu}/acpi_cppc/nominal_freq": "3200" if cpu < 2 else "2000" for cpu in range(4)}
    for name, files in (("x86", x86), ("arm", arm), ("cppc", cppc)):
        machine = host.read_machine(tree(tmp_path / name, online | files))
        assert [(str(kind.cpus), kind.efficiency) for kind in machine.cpu_kinds] == [("2-3", 0), ("0-1", 1)]
    assert host.read_machine(tree(tmp_path / "plain", online)).cpu_kinds == ()


def test_favoured_cores_are_of_the_same_kind(tmp_path, host):
    """Turbo Boost Max 3.0: one base frequency, highest frequencies a few per cent apart."""
    files = {f"{CPU}/online": "0-3"}
    for cpu in range(4):
        files[f"{CPU}/cpu{cpu}/cpufreq/base_frequency"] = "2500000"
        files[f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq"] = "4900000" if cpu else "5100000"
    assert host.read_machine(tree(tmp_path, files)).cpu_kinds == ()


def test_memory_by_device_bandwidth_and_tier(tmp_path, host):
    files = {f"{CPU}/online": "0-1"}
    for node in range(5):
        files[f"{NODE}/node{node}/cpumap"] = "3" if node == 0 else "0"
        files[f"{NODE}/node{node}/access1/initiators/read_bandwidth"] = "400000" if node == 1 else "100000"
        files[f"{NODE}/node{node}/access1/initiators/node0/name"] = ""
    files |= {"sys/devices/virtual/memory_tiering/memory_tier4/nodelist": "0,4"}
    files |= {"sys/devices/virtual/memory_tiering/memory_tier22/nodelist": "2"}
    files |= {"sys/devices/platform/ACPI0017:00/root0/region0/dax3.0/target_node": "3"}
    root = tree(tmp_path, files)
    (tmp_path / "sys/bus/dax/devices").mkdir(parents=True)
    (tmp_path / "sys/bus/dax/devices/dax3.0").symlink_to("../../../devices/platform/ACPI0017:00/root0/region0/dax3.0")
    nodes = host.read_machine(root).numa_nodes
    assert [node.kind for node in nodes] == ["DRAM", "HBM", "CXL", "CXL", "DRAM"]
    assert all(str(node.cpus) == "0-1" for node in nodes)
    assert [node.memory_only for node in nodes] == [False, True, True, True, True]


def parsed(parse, *arguments):
    """What a parser makes of it: bits, or None for nonsense."""
    try:
        found = parse(*arguments)
    except (InputError, OSError):
        return None
    return found if isinstance(found, int) else found.bits & (1 << 256) - 1


ranges = st.from_regex(r"[0-9]{1,7}(-[0-9]{1,7}(:[0-9]{1,3}(/[0-9]{1,3})?)?)?", fullmatch=True)
garbled = st.text(alphabet="0123456789abcF,-:/ x\n\t\0\x0b\x85\xa0_+", max_size=40)


@given(st.one_of(garbled, st.lists(ranges, max_size=5).map(",".join)))
def test_parsers_agree_on_any_text(text):
    native = pytest.importorskip("qcthreads.host._native", reason="the native extension is not there")
    stripped = text.strip(" \t\r\n\0")
    if "\0" in stripped:  # no reader hands these over
        return
    encoded = stripped.encode("latin-1")
    assert parsed(native.parse_mask, encoded, 4) == parsed(CpuSet.parse_mask, text)
    assert parsed(native.parse_list, encoded, 4) == parsed(CpuSet.parse, text)


def files_of_masks(level: str, masks: dict[int, str]) -> dict[str, str]:
    return {f"{CPU}/cpu{cpu}/topology/{level}": mask for cpu, mask in masks.items()}


def test_a_mask_that_contradicts_the_others_does_not_split_them(tmp_path, host):
    """Two packages and two L3 of alternate CPUs; CPU 1 says that it is with CPU 0, its sisters know better."""
    online = {f"{CPU}/online": "0-5"}
    files = online | files_of_masks("package_cpus", {0: "15", 1: "3", 2: "15", 3: "2a", 4: "15", 5: "2a"})
    for cpu, mask in enumerate(("15", "3", "15", "2a", "15", "2a")):
        files |= {f"{CPU}/cpu{cpu}/cache/index0/{name}": text for name, text in (("level", "3"), ("size", "8K"))}
        files[f"{CPU}/cpu{cpu}/cache/index0/shared_cpu_map"] = mask
    root = tree(tmp_path, files)
    machine = host.read_machine(root)
    assert [str(package.cpus) for package in machine.packages] == ["0,2,4", "1,3,5"]
    assert [str(cache.cpus) for cache in machine.caches] == ["0,2,4", "1,3,5"]
    native, pure = both_facts(root)
    assert native == pure


def test_a_cpu_whose_masks_nobody_shares_stands_alone(tmp_path, host):
    """CPU 2 names CPU 0, which does not name it; CPU 3's own mask lacks it."""
    files = {f"{CPU}/online": "0-3"} | files_of_masks("core_cpus", {0: "3", 1: "3", 2: "5", 3: "4"})
    for cpu, mask in enumerate(("3", "3", "5", "8")):
        files |= {f"{CPU}/cpu{cpu}/cache/index0/level": "1", f"{CPU}/cpu{cpu}/cache/index0/shared_cpu_map": mask}
    root = tree(tmp_path, files)
    machine = host.read_machine(root)
    assert [str(core.cpus) for core in machine.cores] == ["0-1", "2", "3"]
    assert [str(cache.cpus) for cache in machine.caches] == ["0-1", "2", "3"]
    native, pure = both_facts(root)
    assert native == pure


AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: {}\n"


@pytest.mark.parametrize(
    ("cpuinfo", "cores"),
    [
        (AMD.format(21), ["0", "1", "2", "3"]),
        (AMD.format(23), ["0-1", "2-3"]),
        ("vendor_id : GenuineIntel\ncpu family : 21\n", ["0-1", "2-3"]),
        (None, ["0-1", "2-3"]),
    ],
)
def test_core_ids_divide_siblings_only_in_compute_units_of_amd(tmp_path, host, cpuinfo, cores):
    files = {f"{CPU}/online": "0-3"} | files_of_masks("thread_siblings", {0: "3", 1: "3", 2: "c", 3: "c"})
    files |= files_of_masks("core_id", {cpu: str(cpu) for cpu in range(4)})
    root = tree(tmp_path, files | ({} if cpuinfo is None else {"proc/cpuinfo": cpuinfo}))
    assert [str(core.cpus) for core in host.read_machine(root).cores] == cores
    native, pure = both_facts(root)
    assert native == pure


def test_packages_that_no_file_tells_hold_whole_cores_and_are_marked(tmp_path, host):
    """As a PlayStation 3's kernel, which has thread_siblings alone; CPU 2 has no file at all."""
    files = {f"{CPU}/online": "0-2"} | files_of_masks("thread_siblings", {0: "3", 1: "3"})
    machine = host.read_machine(tree(tmp_path, files))
    assert [(str(package.cpus), package.assumed) for package in machine.packages] == [("0-1", True), ("2", True)]
    assert [(str(core.cpus), core.assumed) for core in machine.cores] == [("0-1", False), ("2", True)]


def test_arm_cores_of_one_design_are_of_one_kind(tmp_path, host):
    """By MIDR_EL1, whatever their clusters' frequencies; ranked by the least capacity of a kind."""
    files = {f"{CPU}/online": "0-3"}
    for cpu, (midr, capacity) in enumerate((("d87", 400), ("d87", 480), ("d85", 1000), ("d85", 1024))):
        files[f"{CPU}/cpu{cpu}/regs/identification/midr_el1"] = f"0x00000000410f{midr}0\n"
        files[f"{CPU}/cpu{cpu}/cpu_capacity"] = str(capacity)
        files[f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq"] = str(1000 * capacity)
    root = tree(tmp_path, files)
    kinds = host.read_machine(root).cpu_kinds
    assert [(str(kind.cpus), kind.efficiency) for kind in kinds] == [("0-1", 0), ("2-3", 1)]
    native, pure = both_facts(root)
    assert native == pure


@pytest.mark.parametrize(
    ("with_memory", "nodes", "expected_kib"),
    [
        ("0", {0: 12}, [24]),  # half of it was added while the kernel ran
        ("0", {0: 30}, [30]),  # as old kernels tell, which count what they keep for themselves
        ("0-1", {0: 12}, [12]),  # the other, which is offline, may have the rest
        ("0-1", {0: 12, 1: 11}, [12, 11]),  # nobody knows which of them has it
    ],
)
def test_the_only_node_has_all_the_memory_of_the_machine(tmp_path, host, with_memory, nodes, expected_kib):
    files = {f"{CPU}/online": "0-1", f"{NODE}/has_memory": with_memory, "proc/meminfo": "MemTotal: 24 kB\n"}
    for node, kib in nodes.items():
        files |= {
            f"{NODE}/node{node}/cpumap": f"{1 << node}",
            f"{NODE}/node{node}/meminfo": f"Node 0 MemTotal: {kib} kB",
        }
    machine = host.read_machine(tree(tmp_path, files))
    assert [node.memory_bytes for node in machine.numa_nodes] == [kib * 1024 for kib in expected_kib]


def test_a_machine_of_a_million_cpus_is_nonsense(tmp_path, host):
    """A few bytes that would ask for gigabytes of masks."""
    with pytest.raises(MachineError, match=r"cpu/online cannot be understood: it tells of CPU 1048575"):
        host.read_machine(tree(tmp_path, {f"{CPU}/online": "0-1048575"}))


def test_lists_with_strides_take_no_time():
    assert len(CpuSet.parse("0-1048575:2")) == 1 << 19
    assert CpuSet.parse("3-20:3/7") == CpuSet([3, 4, 5, 10, 11, 12, 17, 18, 19])


def full_tree(root: Path) -> str:
    """Four CPUs and two nodes with every kind of file that is read."""
    files = {f"{CPU}/online": "0-3", "proc/cpuinfo": "processor\t: 0\n", "proc/meminfo": "MemTotal: 8 kB\n"}
    for cpu in range(4):
        for level, mask in (("core", "5" if cpu % 2 == 0 else "a"), ("die", "f"), ("package", "f")):
            files[f"{CPU}/cpu{cpu}/topology/{level}_cpus"] = mask
        files |= {f"{CPU}/cpu{cpu}/topology/{name}": "0" for name in ("core_id", "die_id", "physical_package_id")}
        for name, text in (("level", "2"), ("type", "Unified"), ("size", "8K"), ("shared_cpu_map", "f")):
            files[f"{CPU}/cpu{cpu}/cache/index0/{name}"] = text
        files |= {f"{CPU}/cpu{cpu}/cpu_capacity": "1024", f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq": "9"}
    for node in (0, 1):
        files |= {f"{NODE}/node{node}/cpumap": "f" if node == 0 else "0", f"{NODE}/node{node}/distance": "10 20"}
        files[f"{NODE}/node{node}/meminfo"] = f"Node {node} MemTotal: 4 kB"
        files[f"{NODE}/node{node}/access0/initiators/node0/name"] = ""
    files["sys/devices/virtual/memory_tiering/memory_tier4/nodelist"] = "0-1"
    return tree(root, files)


def error_of(host, root: str) -> str | None:
    """The message where the tree cannot be read; None for an answer, whose cores and packages cover the CPUs."""
    try:
        machine = host.read_machine(root)
    except MachineError as error:
        return str(error)
    assert sum(core.cpus.bits for core in machine.cores) == machine.cpus_online.bits
    assert sum(package.cpus.bits for package in machine.packages) == machine.cpus_online.bits
    return None


PLACES = {
    "directory": Path.mkdir,
    "pipe": os.mkfifo if hasattr(os, "mkfifo") else None,
    "loop": lambda path: path.symlink_to(path.name),
    "nothing behind": lambda path: path.symlink_to("no/such/file"),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "unreadable": lambda path: path.symlink_to("/proc/self/mem"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "gigabytes": lambda path: (path.touch(), os.truncate(path, 1 << 34)),
    "NULs": lambda path: path.write_bytes(bytes(4096)),
}


@pytest.mark.skipif(sys.platform != "linux", reason="devices and pipes of Linux")
@pytest.mark.parametrize("place", PLACES)
def test_what_lies_in_the_place_of_a_file_neither_blocks_nor_crashes(tmp_path, host, place):
    """Each file in turn: an answer that covers the CPUs, or an error that names the file."""
    root = full_tree(tmp_path / "tree")
    names = sorted(path for path in (tmp_path / "tree").rglob("*") if path.is_file())
    for path in names:
        text = path.read_bytes()
        path.unlink()
        PLACES[place](path)
        assert str(path) in (error_of(host, root) or str(path))
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        path.write_bytes(text)


def test_a_tree_that_somebody_takes_away_meanwhile(tmp_path, host):
    """A thread renames the CPUs' and nodes' directories while the tree is read."""
    root, stop = full_tree(tmp_path / "tree"), threading.Event()

    def come_and_go():
        places = [tmp_path / "tree" / CPU / f"cpu{cpu}" for cpu in range(4)]
        places += [tmp_path / "tree" / NODE, tmp_path / "tree" / CPU, places[0] / "topology"]
        for place in itertools.cycle(places):
            if stop.is_set():
                break
            place.rename(tmp_path / "away")
            (tmp_path / "away").rename(place)

    worker = threading.Thread(target=come_and_go)
    worker.start()
    try:
        for _ in range(200):
            assert "no CPUs found" in (error_of(host, root) or "no CPUs found")
    finally:
        stop.set()
        worker.join()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self tells descriptors and memory")
def test_reading_leaks_neither_descriptors_nor_memory(tmp_path, host):
    """Whole trees, and those whose reading ends in an error half-way."""
    whole, broken = full_tree(tmp_path / "whole"), full_tree(tmp_path / "broken")
    (tmp_path / "broken" / NODE / "node1/distance").write_text("ten")

    def read(times: int) -> tuple[int, int]:
        for _ in range(times):
            host.read_machine(whole)
            with pytest.raises(MachineError, match="node1/distance"):
                host.read_machine(broken)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(list(Path("/proc/self/fd").iterdir())), pages * os.sysconf("SC_PAGE_SIZE")

    before, resident_before = read(100)
    after, resident_after = read(400)
    assert after == before
    assert resident_after - resident_before < 4 << 20  # a leak of one read's 100 KiB would be 40 MB


NAMES = [f"{CPU}/online", "proc/cpuinfo", "proc/meminfo"]
NAMES += [f"{CPU}/cpu{cpu}/topology/{level}" for cpu in range(3) for level in ("core_id", "die_id", "cluster_id")]
NAMES += [
    f"{CPU}/cpu{cpu}/topology/{level}_cpus" for cpu in range(3) for level in ("core", "die", "package", "cluster")
]
NAMES += [f"{CPU}/cpu{cpu}/topology/{name}" for cpu in range(3) for name in ("core_cpus_list", "core_siblings")]
NAMES += [f"{CPU}/cpu{cpu}/{name}" for cpu in range(3) for name in ("cpu_capacity", "regs/identification/midr_el1")]
for at in ("index0", "index2"):
    NAMES += [f"{CPU}/cpu{c}/cache/{at}/{n}" for c in range(3) for n in ("level", "type", "size", "shared_cpu_map")]
NAMES += [f"{NODE}/node{node}/{name}" for node in (0, 1, 7) for name in ("cpumap", "cpulist", "meminfo", "distance")]
NAMES += ["sys/devices/cpu_core/cpus", "sys/devices/cpu_atom/cpus", f"{NODE}/node1/access0/initiators/node0/name"]
NAMES += ["sys/devices/virtual/memory_tiering/memory_tier4/nodelist", f"{NODE}/node1/access1/initiators/read_bandwidth"]

masks = st.sampled_from(["0", "1", "3", "5", "6", "7", "8", "f", "ff,00000007", ""])
lists = st.sampled_from(["0", "0-1", "1-2", "0,2", "0-2", "3-9", "0-2:2", ""])
others = st.sampled_from(
    ["-1", "0x410fd4f0", "Data", "32K", "10 20", "20 10 30", "Node 0 MemTotal: 12 kB", "4000000000"]
)
amd = st.sampled_from([AMD.format(21), "processor : 0\nprocessor : 2\n"])
texts = st.one_of(masks, lists, others, amd, st.text(alphabet="0123456789abfKx,-: \0\n\xff", max_size=12))


def test_reserved_memory_of_high_bandwidth(tmp_path, host):
    """Firmware hands it over as a device of its own; it may even list CPUs, and is no measure for the others."""
    files = {
        f"{CPU}/online": "0-1",
        f"{NODE}/node0/cpumap": "1",
        f"{NODE}/node1/cpumap": "2",
        f"{NODE}/node2/cpumap": "0",
    }
    for node, bandwidth in enumerate((1000, 10000, 10000)):
        files[f"{NODE}/node{node}/access1/initiators/read_bandwidth"] = str(bandwidth)
        if node:
            files[f"sys/devices/platform/hmem.{node}/dax{node}.0/target_node"] = str(node)
    root = tree(tmp_path, files)
    (tmp_path / "sys/bus/dax/devices").mkdir(parents=True)
    for node in (1, 2):
        link = tmp_path / f"sys/bus/dax/devices/dax{node}.0"
        link.symlink_to(f"../../../devices/platform/hmem.{node}/dax{node}.0")
    assert [node.kind for node in host.read_machine(root).numa_nodes] == ["DRAM", "HBM", "HBM"]


@given(online=lists, files=st.dictionaries(st.sampled_from(NAMES), texts, max_size=25))
def test_both_readers_say_the_same_of_any_tree(tmp_path_factory, online, files):
    """Where the native reader refuses, the other one has the last word."""
    pytest.importorskip("qcthreads.host._native", reason="the native extension is not there")
    from qcthreads.host import linux

    root = tree(tmp_path_factory.mktemp("any"), {f"{CPU}/online": online} | files)
    said = []
    for facts in (linux.read_facts, sysfs.read_facts):
        try:
            said.append(answers(read_machine(root, facts=facts)))
        except MachineError as error:
            said.append({"error": str(error)})
    assert said[0] == said[1]
    shutil.rmtree(root)


@given(online=lists, files=st.dictionaries(st.sampled_from(NAMES), st.one_of(masks, others), max_size=40))
def test_what_the_native_reader_takes_needs_no_other(tmp_path_factory, online, files):
    root = tree(tmp_path_factory.mktemp("any"), {f"{CPU}/online": online or "0-2"} | files)
    try:
        native, pure = both_facts(root)
    except (OSError, MachineError):
        return
    assert native == pure
    shutil.rmtree(root)
