"""Topology, binding, memory policy, leases and limits on machines that are not here: real kernels booted under QEMU.

What is expected follows from the machine that QEMU was told to build and from what the guest's kernel says, never from
qcthreads. Each machine boots once, does everything, and reports.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numa_vm
import pytest
from numa_vm import Topology

from qcthreads.cpuset import CpuSet
from qcthreads.host import native_status

HERE = Path(__file__).parent
MIB = 1024**2

TWO_SOCKETS = Topology.parse("2s2c2t", nodes=2, memory_mib=1024)
MEMORY_ONLY = Topology.parse("4s2c1t", nodes=4, memory_nodes=1, memory_mib=1600)
OFFLINE = Topology.parse("2s2c2t", nodes=2, memory_mib=1024, offline="3,6")
FULL = Topology.parse("2s2c2t", nodes=2, memory_mib=1400)
LARGE = Topology.parse("2s62c2t", nodes=8, memory_mib=2048)

BACK_END = os.environ.get("QCTHREADS_BACKEND") or ("native" if native_status()[0] else "portable")

# The machines and what is done in each, in the order of booting: the one that takes longest first.
GUESTS = {
    "large": (LARGE, "machine", "limits", "binding=247", "pages=bind:7", "split=8x15", "leases=15", "shared=4x3x140"),
    "two_sockets": (
        TWO_SOCKETS,
        *["machine", "limits", "binding=1,4", "binding=2-3,9"],
        *["pages=bind:1", "pages=bind:0", "pages=preferred:1", "pages=interleave:0-1", "pages=preferred-many:1"],
        *["pages=bind:1,9", "pages=bind:9", "leases=2,2", "leases=1,2,1", "split=2x2", "started=2", "ranks=0,2:1:4"],
        "workers=2x2",
        *["backend=portable", "machine", "limits", "binding=1,4", "pages=bind:1", "pages=interleave:0-1"],
        *["policy=bind:1", "limits", "workers=1x2", "policy=default", "hotplug=8", f"backend={BACK_END}", "hotplug=8"],
    ),
    "offline": (
        OFFLINE,
        *["machine", "limits", "binding=2-4", "binding=3", "leases=1,1,1,1"],
        *["cgroup=outer:cpu.max=250000 100000", "cgroup=outer:memory.max=300M", "cgroup=outer/inner:cpuset.mems=1"],
        *["cgroup=outer/inner:cpuset.cpus=1-2,4-5,7", "cgroup=outer/inner:", "machine", "limits"],
        *["binding=0-1", "pages=bind:0-1", "pages=bind:0", "leases=1,1"],
        *["cgroup=shrinks:cpuset.cpus=1-2,4-5,7", "cgroup=shrinks:", "shrinking=2,4-5"],
    ),
    "full": (FULL, "cgroup=full:memory.max=720M", "cgroup=full:", "hungry=2:80"),
    "memory_only": (
        MEMORY_ONLY,
        *["machine", "pages=bind:4", "pages=interleave:0-4", "pages=bind:2-3", "pages=preferred-many:3-4"],
        *["leases=2,2,2,2", "split=2x4", "workers=1x4", "losing=3x8"],
    ),
}

pytestmark = pytest.mark.vm

Seen = dict[str, list[Any]]


@pytest.fixture(scope="module")
def guests(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Seen]]]:
    """What is seen in those that the tests to be run need; two are up at a time. In CI it must be possible."""
    if missing := numa_vm.lacking():
        if os.environ.get("CI") and sys.platform == "linux":
            pytest.fail(f"tests/vm/numa_vm.py --setup was not run: {missing}")
        pytest.skip(f"no guest can be booted: {missing}; tests/vm/numa_vm.py --setup installs it (Debian)")
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    pool = ThreadPoolExecutor(2)
    yield {name: pool.submit(observe, *guest) for name, guest in GUESTS.items() if name in wanted}
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def two_sockets(guests: dict[str, Future[Seen]]) -> Seen:
    return guests["two_sockets"].result()


@pytest.fixture(scope="module")
def memory_only(guests: dict[str, Future[Seen]]) -> Seen:
    return guests["memory_only"].result()


@pytest.fixture(scope="module")
def full(guests: dict[str, Future[Seen]]) -> Seen:
    return guests["full"].result()


@pytest.fixture(scope="module")
def offline(guests: dict[str, Future[Seen]]) -> Seen:
    return guests["offline"].result()


@pytest.fixture(scope="module")
def large(guests: dict[str, Future[Seen]]) -> Seen:
    return guests["large"].result()


def observe(topology: Topology, *words: str) -> Seen:
    """What tests/vm/observe.py sees in a guest; one that does not come up on a busy machine is booted again, once."""
    boot = partial(
        numa_vm.run,
        [sys.executable, "-B", str(HERE / "observe.py"), f"backend={BACK_END}", *words],
        topology,
        environment={"PYTHONPATH": os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE)])},
        folder=HERE,
        timeout_s=900,
    )
    try:
        done = boot()
    except numa_vm.NotUpError:
        done = boot()
    assert done.status == 0, done.stderr.decode()
    print(f"{topology.cpus} CPUs: up in {done.boot_s:.0f} s, {done.wall_s:.0f} s in all")
    return json.loads(done.stdout)


def check_machine(found: dict[str, Any], topology: Topology) -> None:
    online = [cpu for cpu in range(topology.cpus) if cpu not in topology.offline]
    per_socket, threads = topology.cpus // topology.sockets, topology.threads

    def groups(size: int) -> list[list[int]]:
        starts = range(0, topology.cpus, size)
        cut = [[cpu for cpu in range(start, start + size) if cpu in online] for start in starts]
        return [group for group in cut if group]

    assert found["online"] == found["allowed_cpus"] == online
    assert found["cores"] == groups(threads)
    assert found["packages"] == groups(per_socket)
    assert found["llc"] == groups(per_socket)  # QEMU gives each socket one L3
    nodes = range(len(topology.memory_mib))
    assert [node for node, _, _ in found["numa"]] == found["allowed_mems"] == list(nodes)
    assert [cpus for _, cpus, _ in found["numa"]] == [
        [cpu for cpu in topology.cpus_of(node) if cpu in online] for node in nodes
    ]
    for (_, _, memory_bytes), asked_mib in zip(found["numa"], topology.memory_mib, strict=True):
        assert 0.75 * asked_mib * MIB < memory_bytes <= asked_mib * MIB  # the kernel keeps some for itself
    assert found["distances"] == [[topology.distance(one, other) for other in nodes] for one in nodes]


def check_binding(found: dict[str, Any], cpus: list[int], lost: tuple[int, ...] = ()) -> None:
    """Bound, by the kernel's own list; threads that were there ran nowhere else, and ran on all of them together."""
    assert found["got"] == cpus
    assert found["lost"] == list(lost)
    kernel = [range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1) for part in found["kernel"].split(",")]
    assert [cpu for part in kernel for cpu in part] == cpus
    assert found["threads"] == len(cpus) + len(lost) + 1
    assert found["ran"]
    assert set(found["ran"]) <= set(cpus)


def check_pages(found: dict[str, Any], kind: str, nodes: list[int]) -> None:
    """The policy is in force, and the pages are on these nodes: by move_pages and by the kernel's numa_maps."""
    assert found["thread"] == found["buffer"] == [kind, nodes]
    assert set(found["moved"]) <= set(nodes)
    assert set(found["fresh"]) <= set(nodes)
    if kind == "interleave":  # of pages that are there already, only those on other nodes move
        counts = [found["fresh"].count(node) for node in nodes]
        assert max(counts) - min(counts) <= 2
    word = {"preferred": "prefer", "preferred-many": "prefer"}.get(kind, kind)
    for line, where in zip(found["maps"], (found["moved"], found["fresh"]), strict=True):
        assert line.startswith(word)
        for node in set(where):
            assert f" N{node}=" in line


def test_two_sockets_with_smt_and_two_nodes_are_found(two_sockets):
    for found in two_sockets["machine"]:
        check_machine(found, TWO_SOCKETS)
    names = [found["capabilities"] for found in two_sockets["machine"]]
    assert names == [[BACK_END, True], ["portable", True]]


def test_a_memory_policy_that_binds_limits_memory(two_sockets):
    free, _, bound = two_sockets["limits"]
    assert bound["cpus"] == free["cpus"]
    assert free["memory_rules"] == ["available memory"]
    assert bound["tightest"][1] == ["memory policy bind 1", "get_mempolicy"]
    assert 0 < bound["memory_bytes"] < 512 * MIB


def test_everything_may_be_used_where_nothing_limits(two_sockets):
    for found in two_sockets["limits"][:2]:
        assert found["cpus"] == list(range(8))
        assert (found["cpu_count"], found["quota_cpus"]) == (8, None)
        assert 0 < found["memory_bytes"] < 1024 * MIB


def test_bound_threads_run_only_where_they_were_bound(two_sockets):
    one, with_absent, portable = two_sockets["binding"]
    for found in (one, portable):
        check_binding(found, [1, 4])
    check_binding(with_absent, [2, 3], lost=(9,))


def test_pages_are_on_the_nodes_asked_for(two_sockets):
    seen = two_sockets["pages"]
    asked = [("bind", [1]), ("bind", [0]), ("preferred", [1]), ("interleave", [0, 1]), ("preferred-many", [1])]
    for found, (kind, nodes) in zip(seen, asked, strict=False):
        check_pages(found, kind, nodes)
    check_pages(seen[-2], "bind", [1])  # the portable back end
    check_pages(seen[-1], "interleave", [0, 1])


def test_pages_move_with_their_buffer(two_sockets):
    for found in two_sockets["pages"][:2]:
        assert len(set(found["before"])) == 1  # where this thread ran
    assert {found["moved"][0] for found in two_sockets["pages"][:2]} == {0, 1}


def test_absent_nodes_are_lost_or_refused(two_sockets):
    some, none = two_sockets["pages"][5:7]
    check_pages(some, "bind", [1])
    assert some["lost"] == [9]
    assert none == {"error": "BindingNotEnforcedError"}


def test_leases_take_whole_cores_of_one_socket(two_sockets):
    assert two_sockets["leases"] == [[[0, 2], [4, 6]], [[0], [4, 6], [2]]]
    assert two_sockets["split"] == [[[0, 2], [4, 6]]]


def test_what_is_started_under_a_lease_runs_and_takes_memory_there(two_sockets):
    (told,) = two_sockets["started"]
    assert told["popen"] == told["bound"] == ["0,2", "prefer:0"]
    assert told["exec"] == ["4,6", "prefer:1"]
    assert told["after"] == ["0-7", "default"]


def test_mpi_ranks_have_a_core_each(two_sockets):
    """They spin while they wait: nobody gets the second PU of such a core, and two on one core are refused."""
    (told,) = two_sockets["ranks"]
    assert told["masks"] == ["0,2", "0,2"]
    assert (told["other"][0], told["after"][0]) == (0, 0), told
    assert told["sibling"][0] == 125
    assert "held by" in told["sibling"][1]
    assert told["one core"][0] == 125
    assert "2 processes of mpirun cannot share 2 PUs of 1 core" in told["one core"][1]


def test_workers_run_and_take_memory_where_their_lease_is(two_sockets):
    workers = two_sockets["workers"][0]
    found = sorted((worker["cpus"], worker["mask"], worker["policy"], set(worker["pages"])) for worker in workers)
    assert found == [([0, 2], [0, 2], "preferred 0", {0}), ([4, 6], [4, 6], "preferred 1", {1})]
    assert [worker["notes"] for worker in workers] == [[], []]


def test_nearly_all_of_a_workers_memory_is_next_to_its_cpus(two_sockets):
    """By the kernel's numa_maps, the interpreter's own included; a calculation of 16 MiB leaves little to hide."""
    for worker in two_sockets["workers"][0]:
        (home,) = {cpu // 4 for cpu in worker["cpus"]}
        assert sum(worker["own_kib"].values()) >= 16 * 1024
        assert worker["own_kib"].get(str(home), 0) >= 0.95 * sum(worker["own_kib"].values())


def test_workers_keep_the_memory_policy_that_was_chosen_for_them(two_sockets):
    (worker,) = two_sockets["workers"][1]
    assert (worker["policy"], set(worker["pages"]), worker["notes"]) == ("bind 1", {1}, [])


def test_cpus_that_go_and_come_while_the_machine_is_read(two_sockets):
    found = two_sockets["hotplug"]
    assert [one["refused"] for one in found] == ["", ""]
    said = [reading for one in found for reading in one["machine"]]
    assert {reading["error"] for reading in said if isinstance(reading, dict)} <= {"MachineError"}
    readings = [reading for reading in said if isinstance(reading, list)]
    assert len({str(reading[0]) for reading in readings}) > 2
    for (online,), (allowed,), *levels in readings:
        assert set(allowed) <= set(online) <= set(range(8))
        for groups, size in zip(levels, (2, 4, 4, 4), strict=True):  # cores, packages, LLC domains, nodes
            whole = [[cpu for cpu in range(start, start + size) if cpu in online] for start in range(0, 8, size)]
            assert groups == [group for group in whole if group]


def test_cpus_that_go_and_come_while_threads_are_bound(two_sockets):
    for found in two_sockets["hotplug"]:
        assert all(0 in cpus and set(cpus) <= set(range(8)) for cpus in found["limits"])
        for asked in ([0, 3], [6], list(range(8))):
            for got in found[f"bind {CpuSet(asked)}"]:
                if isinstance(got, dict):
                    assert (got["error"], asked) == ("BindingNotEnforcedError", [6])
                else:  # the kernel lets a thread whose last CPU goes run everywhere
                    assert got
                    assert set(got) <= set(asked) or asked == [6]


def test_nothing_is_killed_where_workers_use_all_of_four_fifths_of_the_limit(full):
    """Both hold what they were granted at the same time, in a group whose limit the kernel enforces, and counts."""
    (found,) = full["hungry"]
    assert found["errors"] == [None, None]
    assert 2 * found["granted"] >= 0.799 * found["limit"]
    assert all(0.99 * found["granted"] <= resident <= found["granted"] for resident in found["resident"])
    assert 0.75 * found["limit"] <= found["peak"] <= found["limit"]
    assert (found["events"]["oom"], found["events"]["oom_kill"]) == ("0", "0")


def test_what_alone_exceeds_the_limit_is_refused_by_name_before_anything_starts(full):
    (found,) = full["hungry"]
    assert found["started_before"] == []
    assert found["refused"].startswith("calculation large can never run here: 1.41 GiB of memory were asked for")
    assert sorted(found["started"]) == ["f0", "f1"]


def test_four_nodes_and_a_memory_only_one_are_found(memory_only):
    check_machine(memory_only["machine"][0], MEMORY_ONLY)


def test_pages_are_on_a_memory_only_node(memory_only):
    asked = [("bind", [4]), ("interleave", [0, 1, 2, 3, 4]), ("bind", [2, 3]), ("preferred-many", [3, 4])]
    for found, (kind, nodes) in zip(memory_only["pages"], asked, strict=True):
        check_pages(found, kind, nodes)


def test_leases_follow_the_nodes(memory_only):
    assert sorted(memory_only["leases"][0]) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert memory_only["split"] == [[[0, 1, 2, 3], [4, 5, 6, 7]]]


def test_a_worker_across_nodes_prefers_all_of_them(memory_only):
    ((worker,),) = memory_only["workers"]
    nodes = sorted({cpu // 2 for cpu in worker["cpus"]})
    assert len(nodes) == 2
    assert worker["policy"] == f"preferred-many {nodes[0]}-{nodes[1]}"
    assert set(worker["pages"]) <= set(nodes)
    assert worker["notes"] == []


def test_a_run_goes_on_when_the_cpu_of_one_of_its_calculations_goes_offline(memory_only):
    (found,) = memory_only["losing"]
    assert [one["error"] for one in found] == [None] * 8
    (lost,) = (one for one in found if one["lost"])
    assert lost["mask"] == [lost["lost"]]
    assert lost["cpus"] == lost["bound"]
    assert lost["moved_to"], "the kernel moved it to CPUs that were left"
    assert lost["lost"] not in lost["moved_to"]
    (bound,) = lost["bound"]
    assert bound != lost["lost"]
    beside = [one for one in found if one["start"] < lost["end"] < one["end"] and one is not lost]
    assert bound not in [cpu for one in beside for cpu in one["cpus"]]
    later = [one for one in found if one["after"]]
    assert len(later) >= 8 - 3
    for one in later:
        assert one["mask"] == one["cpus"]
        assert lost["lost"] not in one["cpus"]


def test_offline_cpus_are_not_used(offline):
    check_machine(offline["machine"][0], OFFLINE)
    assert offline["limits"][0]["cpus"] == [0, 1, 2, 4, 5, 7]
    check_binding(offline["binding"][0], [2, 4], lost=(3,))
    assert offline["binding"][1] == {"error": "BindingNotEnforcedError"}
    assert sorted(offline["leases"][0]) == [[0], [2], [4], [7]]


def test_a_cpuset_and_a_quota_of_its_parent_limit_cpus_and_memory(offline):
    found = offline["limits"][1]
    assert found["cpus"] == [1, 2, 4, 5, 7]
    assert (found["cpu_count"], found["quota_cpus"]) == (2, 2.5)
    assert 0 < found["memory_bytes"] < 300 * MIB
    assert [source for _, source in found["tightest"]] == [
        "/sys/fs/cgroup/outer/cpu.max",
        "/sys/fs/cgroup/outer/memory.max",
    ]


def test_in_a_cpuset_only_its_cpus_and_nodes_are_given(offline):
    inside = offline["machine"][1]
    assert (inside["allowed_cpus"], inside["allowed_mems"]) == ([1, 2, 4, 5, 7], [1])
    check_binding(offline["binding"][2], [1], lost=(0,))
    some, none = offline["pages"]
    check_pages(some, "bind", [1])
    assert some["lost"] == [0]
    assert none == {"error": "BindingNotEnforcedError"}
    taken = [cpus[0] for cpus in offline["leases"][1]]
    assert set(taken) <= {1, 2, 4, 7}  # one PU per core
    assert len(set(taken)) == 2


def test_who_waits_while_his_cpuset_shrinks_gets_of_what_is_left_or_is_told(offline):
    (found,) = offline["shrinking"]
    assert found["held"] == [1, 2, 4, 7]
    assert found["granted"] == [[2, 4], [2, 4]]
    assert found["refused"].startswith("4 CPUs were asked for, but while they were waited for CPUs 1,7 were taken")


def test_248_cpus_on_8_nodes(large):
    check_machine(large["machine"][0], LARGE)
    assert large["limits"][0]["cpu_count"] == 248
    check_binding(large["binding"][0], [247])
    check_pages(large["pages"][0], "bind", [7])
    nodes = [set(LARGE.cpus_of(node)) for node in range(8)]
    for place in [*large["split"][0], *large["leases"][0]]:
        assert sum(set(place) <= node for node in nodes) == 1
        assert len({cpu // 2 for cpu in place}) == len(place) == 15
    assert len(large["split"][0]) == 8


def test_leases_of_several_processes_on_248_cpus(large):
    """Each asks for more than half of a node's memory, so that no two of them find theirs on the same node."""
    (found,) = large["shared"]
    held = [set(cpus) for cpus, _ in found["held"]]
    nodes = [{node for node in range(8) if cpus & set(LARGE.cpus_of(node))} for cpus in held]
    for number, cpus in enumerate(held):
        assert len(cpus) == len({cpu // 2 for cpu in cpus}) == 3
        assert len(nodes[number]) == 1
        assert f"node:{min(nodes[number])}" in found["held"][number][1]
        assert f"process {found['pids'][number]} (" in found["refused"]
    assert len(set.union(*held)) == 12
    assert len(set.union(*nodes)) == 4
    assert len(found["after_kill"]) == 124 - 9
    assert set(found["after_kill"]).isdisjoint(set.union(*held[1:]))
    assert {cpu // 2 for cpu in found["everything"]} == set(range(124))
