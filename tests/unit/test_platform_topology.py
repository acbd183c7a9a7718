"""What Windows and macOS tell of machines, parsed without them: records laid out as documented, and nonsense."""

import struct
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcthreads.cpuset import CpuSet
from qcthreads.errors import MachineError
from qcthreads.host import darwin_topology, windows_topology
from qcthreads.machine import Machine

GIB = 1024**3
KIB = 1024

# winnt.h, as laid out for 64 bits; learn.microsoft.com/windows/win32/api/winnt/ documents every structure:
# ns-winnt-system_logical_processor_information_ex, -processor_relationship, -numa_node_relationship,
# -cache_relationship, -group_relationship, -processor_group_info, -group_affinity.
CORE, NODE, CACHE, PACKAGE, GROUP, DIE, NODE_EX, MODULE = range(8)
UNIFIED, INSTRUCTION, DATA, TRACE = range(4)


def record(relationship: int, body: bytes) -> bytes:
    return struct.pack("<II", relationship, 8 + len(body)) + body


def affinities(cpus: CpuSet) -> list[bytes]:
    """GROUP_AFFINITY for each group that these CPUs are in."""
    masks = [(group, cpus.bits >> 64 * group & 2**64 - 1) for group in range(8)]
    return [struct.pack("<QH6x", mask, group) for group, mask in masks if mask]


def processors(relationship: int, cpus: str, flags: int = 0, efficiency_class: int = 0) -> bytes:
    groups = affinities(CpuSet.parse(cpus))
    return record(relationship, struct.pack("<BB20xH", flags, efficiency_class, len(groups)) + b"".join(groups))


def node(number: int, cpus: str, relationship: int = NODE) -> bytes:
    groups = affinities(CpuSet.parse(cpus)) or [bytes(16)]
    return record(relationship, struct.pack("<I18xH", number, len(groups)) + b"".join(groups))


def cache(level: int, kind: int, size_bytes: int, cpus: str) -> bytes:
    groups = affinities(CpuSet.parse(cpus))
    fields = struct.pack("<BBHII18xH", level, 8, 64, size_bytes, kind, len(groups))
    return record(CACHE, fields + b"".join(groups))


def groups(*active: int) -> bytes:
    """One group for each number of CPUs."""
    infos = (struct.pack("<BB38xQ", 64, count, 2**count - 1) for count in active)
    return record(GROUP, struct.pack("<HH20x", len(active), len(active)) + b"".join(infos))


def two_groups() -> bytes:
    """Two packages of 32 cores with two threads, one group each; two memory nodes in each."""
    parts = [groups(64, 64)]
    for package in range(2):
        first = 64 * package
        parts.append(processors(PACKAGE, f"{first}-{first + 63}"))
        parts += [processors(CORE, f"{cpu}-{cpu + 1}", flags=1) for cpu in range(first, first + 64, 2)]
        for half in range(2):
            cpus = f"{first + 32 * half}-{first + 32 * half + 31}"
            parts += [node(2 * package + half, cpus), cache(3, UNIFIED, 32 * KIB**2, cpus)]
    return b"".join(parts)


def hybrid() -> bytes:
    """Two performance cores with two threads, a module of four efficient cores with a common second-level cache."""
    parts = [processors(PACKAGE, "0-7"), processors(DIE, "0-7"), node(0, "0-7")]
    parts += [processors(CORE, cpus, flags=1, efficiency_class=1) for cpus in ("0-1", "2-3")]
    parts += [processors(CORE, str(cpu)) for cpu in range(4, 8)]
    parts += [processors(MODULE, cpus) for cpus in ("0-1", "2-3", "4-7")]
    parts += [cache(2, UNIFIED, 2048 * KIB, cpus) for cpus in ("0-1", "2-3", "4-7")]
    parts += [cache(1, kind, 32 * KIB, "0-1") for kind in (DATA, INSTRUCTION, TRACE)]
    parts += [cache(3, UNIFIED, 24 * KIB**2, "0-7"), groups(8)]
    return b"".join(parts)


windows = partial(windows_topology.parse_topology, memory_bytes=64 * GIB)


def cpus_of(parts) -> list[str]:
    return [str(part.cpus) for part in parts]


def covers_once(machine: Machine) -> bool:
    return all(
        sum(part.cpus.bits for part in parts) == machine.cpus_online.bits for parts in (machine.cores, machine.packages)
    )


def test_constructed_windows_machine_of_two_groups():
    machine = windows(two_groups())
    assert str(machine.cpus_online) == "0-127"
    assert cpus_of(machine.packages) == ["0-63", "64-127"]
    assert len(machine.cores) == 64
    assert cpus_of(machine.cores)[32:34] == ["64-65", "66-67"]
    assert [(n.node_id, str(n.cpus), n.memory_bytes) for n in machine.numa_nodes] == [
        (0, "0-31", 16 * GIB), (1, "32-63", 16 * GIB), (2, "64-95", 16 * GIB), (3, "96-127", 16 * GIB)
    ]  # fmt: skip
    assert cpus_of(machine.llc_domains) == ["0-31", "32-63", "64-95", "96-127"]
    assert machine.cpu_kinds == ()
    assert (machine.allowed_cpus, str(machine.allowed_mems)) == (machine.cpus_online, "0-3")


def test_constructed_windows_machine_whose_package_and_node_span_groups():
    """80 CPUs in groups of 40, as Windows divides them; numbers 40 to 63 are of no CPU."""
    every = "0-39,64-103"
    raw = groups(40, 40) + processors(PACKAGE, every) + node(0, every, NODE_EX) + cache(3, UNIFIED, KIB, every)
    raw += b"".join(processors(CORE, str(cpu)) for cpu in CpuSet.parse(every))
    machine = windows(raw)
    assert len(machine.cpus_online) == len(machine.cores) == 80
    assert cpus_of(machine.packages) == cpus_of(machine.numa_nodes) == cpus_of(machine.llc_domains) == [every]


def test_constructed_windows_machine_with_hybrid_cpus():
    machine = windows(hybrid())
    assert [(kind.efficiency, str(kind.cpus)) for kind in machine.cpu_kinds] == [(0, "4-7"), (1, "0-3")]
    assert cpus_of(machine.cores) == ["0-1", "2-3", "4", "5", "6", "7"]
    assert machine.dies == ()
    assert cpus_of(machine.clusters) == ["4-7"]
    assert [(c.level, c.kind, c.size_bytes, str(c.cpus)) for c in machine.caches if c.level == 1] == [
        (1, "data", 32 * KIB, "0-1"),
        (1, "instruction", 32 * KIB, "0-1"),
    ]
    assert [(str(domain.cpus), domain.size_bytes) for domain in machine.llc_domains] == [("0-7", 24 * KIB**2)]


def test_constructed_windows_node_without_cpus_and_before_server_2022():
    older = bytearray(node(0, "0-7"))
    older[30:32] = bytes(2)  # GroupCount was reserved, and zero
    machine = windows(hybrid().replace(node(0, "0-7"), bytes(older) + node(1, "")))
    assert [(n.node_id, str(n.cpus), n.memory_only) for n in machine.numa_nodes] == [(0, "0-7", False), (1, "", True)]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "no record tells which CPUs"),
        (b"\0\0\0", "shorter than its fields"),
        (struct.pack("<II", CORE, 0), "claims 0 bytes"),
        (struct.pack("<II", CORE, 4000), "claims 4000 bytes"),
        (record(GROUP, b""), "shorter than its fields"),
        (record(GROUP, struct.pack("<HH20x", 1, 60000)), "60000 cannot be"),
        (groups(2), "CPUs 0-1 belong to no core"),
        (groups(2) + processors(CORE, "0-1"), "CPUs 0-1 belong to no package"),
        (groups(2) + processors(CORE, "0-1") * 2, "CPUs 0-1 are in two"),
        (groups(2) + record(CORE, struct.pack("<BB20xHQH6x", 0, 0, 1, 3, 60000)), "60000 cannot be"),
        (groups(2) + record(NODE, struct.pack("<I18xHQH6x", 2**31, 1, 3, 0)), "belong to no core"),
        (hybrid() + record(NODE, struct.pack("<I18xHQH6x", 2**31, 1, 3, 0)), "2147483648 cannot be"),
    ],
)
def test_garbled_windows_records_are_told_from_a_machine(raw, says):
    with pytest.raises(MachineError, match=says):
        windows(raw)


@pytest.mark.parametrize("whole", [hybrid(), two_groups()], ids=["hybrid", "two groups"])
def test_windows_records_cut_short_anywhere_are_an_error_or_a_smaller_machine(whole):
    for size in range(len(whole)):
        try:
            machine = windows(whole[:size])
        except MachineError:
            continue
        assert covers_once(machine)


@given(st.sampled_from([hybrid(), two_groups()]), st.data())
def test_windows_records_with_wrong_bytes_are_a_machine_or_an_error(whole, data):
    raw = bytearray(whole)
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=8)):
        raw[at] = byte
    try:
        machine = windows(bytes(raw))
    except MachineError:
        return
    assert covers_once(machine)
    assert machine.region.bits == machine.cpus_online.bits


@given(st.binary(max_size=400))
def test_any_bytes_for_windows_records_are_an_error(raw):
    with pytest.raises(MachineError):
        windows(raw)


def test_records_written_under_wine():
    """One package of two cores, as Wine 8.0 on a Linux machine with an x86-64 CPU wrote them."""
    raw = Path(__file__).with_name("windows_records_wine.bin").read_bytes()
    machine = windows(raw)
    assert cpus_of(machine.packages) == cpus_of(machine.numa_nodes) == ["0-1"]
    assert cpus_of(machine.cores) == ["0", "1"]


# --- macOS ---


def sysctl(values: dict[str, int | list[int]]):
    """A reader of these values, as sysctl(3) types them: an int of 32 bits where it fits, else of 64; arrays of 64."""

    def read(name: str) -> bytes | None:
        value = values.get(name)
        if value is None:
            return None
        if isinstance(value, list):
            return struct.pack(f"<{len(value)}q", *value)
        return struct.pack("<i" if -(2**31) <= value < 2**31 else "<q", value)

    return read


def level(number: int, cores: int, l1i: int, l1d: int, l2: int, per_l2: int) -> dict[str, int]:
    name = f"hw.perflevel{number}"
    return {
        f"{name}.physicalcpu": cores, f"{name}.logicalcpu": cores, f"{name}.l1icachesize": l1i * KIB,
        f"{name}.l1dcachesize": l1d * KIB, f"{name}.l2cachesize": l2 * KIB, f"{name}.cpusperl2": per_l2,
    }  # fmt: skip


M1 = {
    "hw.packages": 1, "hw.physicalcpu": 8, "hw.logicalcpu": 8, "hw.memsize": 16 * GIB, "hw.nperflevels": 2,
    **level(0, 4, 192, 128, 12288, 4), **level(1, 4, 128, 64, 4096, 4),
}  # fmt: skip
M1_MAX = {
    "hw.packages": 1, "hw.physicalcpu": 10, "hw.logicalcpu": 10, "hw.memsize": 64 * GIB, "hw.nperflevels": 2,
    **level(0, 8, 192, 128, 12288, 4), **level(1, 2, 128, 64, 4096, 2),
}  # fmt: skip
XEON = {
    "hw.packages": 2, "hw.physicalcpu": 12, "hw.logicalcpu": 24, "hw.memsize": 64 * GIB,
    "hw.cacheconfig": [24, 2, 2, 12, 0], "hw.l1icachesize": 32 * KIB, "hw.l1dcachesize": 32 * KIB,
    "hw.l2cachesize": 256 * KIB, "hw.l3cachesize": 12288 * KIB,
}  # fmt: skip


def macos(values) -> Machine:
    return darwin_topology.parse_topology(sysctl(values))


def test_constructed_macos_values_of_apple_silicon():
    machine = macos(M1)
    assert [(kind.efficiency, str(kind.cpus)) for kind in machine.cpu_kinds] == [(0, "0-3"), (1, "4-7")]
    assert len(machine.cores) == 8
    assert [(str(d.cpus), d.size_bytes) for d in machine.llc_domains] == [("0-3", 4096 * KIB), ("4-7", 12288 * KIB)]
    assert machine.numa_nodes[0].memory_bytes == 16 * GIB
    assert cpus_of(macos(M1_MAX).llc_domains) == ["0-1", "2-5", "6-9"]


def test_constructed_macos_values_of_two_xeons():
    machine = macos(XEON)
    assert machine.cpu_kinds == ()
    assert cpus_of(machine.packages) == cpus_of(machine.llc_domains) == ["0-11", "12-23"]
    assert cpus_of(machine.cores)[:2] == ["0-1", "2-3"]
    assert len([cache for cache in machine.caches if cache.level == 2]) == 12


def test_constructed_macos_values_that_lack_or_contradict():
    assert len(macos({"hw.logicalcpu": 3}).cores) == 3
    levels_do_not_add_up = macos(M1 | {"hw.logicalcpu": 6, "hw.physicalcpu": 6})
    assert len(levels_do_not_add_up.cores) == 6
    assert levels_do_not_add_up.cpu_kinds == ()
    for count in (0, -1, 10**6):
        with pytest.raises(MachineError, match=f"hw.logicalcpu: {count}"):
            macos(M1 | {"hw.logicalcpu": count})


@given(st.dictionaries(st.sampled_from(sorted(M1_MAX | XEON)), st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9)))
def test_any_values_of_macos_are_a_machine_or_an_error(changed):
    try:
        machine = macos(M1_MAX | XEON | changed)
    except MachineError:
        return
    assert covers_once(machine)
    assert machine.region.bits == machine.cpus_online.bits
