"""Limits: recorded trees of every kind of control group, batch variables, and this machine with real control groups."""

import contextlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcthreads.errors import MachineError
from qcthreads.host.batch import grants, parse_repeats
from qcthreads.host.cgroup import ControlGroups, Group
from qcthreads.host.limits import parse_cpu_max, read_limits
from qcthreads.host.throttling import Throttling

GIB = 1024**3
V2 = "30 23 0:27 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n"
V1 = "".join(
    f"{number} 23 0:{number} / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n"
    for number, name in enumerate(("cpu", "cpuset", "memory"), start=31)
)
PLAIN = {
    "sys/devices/system/cpu/online": "0-7",
    "proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemFree: {2**20} kB\nMemAvailable: {8 * 2**20} kB\n",
    "proc/self/status": "Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t0-7\nMems_allowed_list:\t0\n",
}


def tree(root: Path, *parts: dict[str, str]) -> str:
    for part in parts:
        for name, text in part.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return str(root)


def tightest(limits):
    return [(rule.rule, rule.source) for rule in limits.rules if rule.tightest]


def test_nothing_limits_but_the_machine(tmp_path):
    limits = read_limits(tree(tmp_path, PLAIN))
    assert (str(limits.cpus), limits.cpu_count, limits.quota_cpus) == ("0-7", 8, None)
    assert limits.memory_bytes == 8 * GIB
    assert tightest(limits) == [("mask", "/proc/self/status"), ("available memory", "/proc/meminfo")]
    assert limits.explain_cpus() == "8 CPUs may be used: all that are online (0-7)"


def test_version_2_takes_the_tightest_of_all_ancestors(tmp_path):
    group = "sys/fs/cgroup/batch.slice/job.scope"
    files = {
        "proc/self/cgroup": "0::/batch.slice/job.scope\n",
        "proc/self/mountinfo": V2,
        f"{group}/cpuset.cpus.effective": "0-5\n",
        f"{group}/cpu.max": "max 100000\n",
        "sys/fs/cgroup/batch.slice/cpu.max": "350000 100000\n",
        f"{group}/memory.max": f"{6 * GIB}\n",
        f"{group}/memory.current": f"{2 * GIB}\n",
        f"{group}/memory.stat": f"anon 1\ninactive_file {GIB}\nactive_file 7\n",
        "sys/fs/cgroup/batch.slice/memory.high": f"{7 * GIB}\n",
        "sys/fs/cgroup/batch.slice/memory.max": "max\n",
    }
    limits = read_limits(tree(tmp_path, PLAIN, files))
    assert (str(limits.cpus), limits.cpu_count, limits.quota_cpus) == ("0-5", 3, 3.5)
    assert limits.memory_bytes == 5 * GIB, "6 GiB less the 2 in use, of which 1 can be dropped"
    assert tightest(limits) == [
        ("quota", "/sys/fs/cgroup/batch.slice/cpu.max"),
        ("cgroup memory", f"/{group}/memory.max"),
    ]
    assert limits.explain_cpus() == "3 CPUs may be used: quota 3.5 (/sys/fs/cgroup/batch.slice/cpu.max)"


def test_version_1_takes_the_tightest_of_all_ancestors(tmp_path):
    files = {
        "proc/self/cgroup": "5:memory:/a/b\n4:cpuset:/a\n3:cpu:/a/b\n",
        "proc/self/mountinfo": V1,
        "sys/fs/cgroup/cpuset/a/cpuset.cpus": "2-3\n",
        "sys/fs/cgroup/cpuset/cpuset.cpus": "0-7\n",
        "sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{3 * GIB}\n",
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/a/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
    }
    limits = read_limits(tree(tmp_path, PLAIN, files))
    assert (str(limits.cpus), limits.cpu_count, limits.quota_cpus) == ("2-3", 1, 0.5)
    assert limits.memory_bytes == 3 * GIB


def test_container_whose_mount_shows_only_its_own_group(tmp_path):
    """The path in /proc/self/cgroup is the host's, and the mount's top is that group."""
    files = {
        "proc/self/cgroup": "4:cpuset:/docker/abc\n0::/docker/abc/inner\n",
        "proc/self/mountinfo": "31 23 0:31 /docker/abc /sys/fs/cgroup/cpuset ro - cgroup cgroup rw,cpuset\n"
        r"32 23 0:32 /docker/abc /my\040groups ro - cgroup2 cgroup2 rw" + "\n",
        "sys/fs/cgroup/cpuset/cpuset.cpus": "1,3\n",
        "my groups/inner/cpu.max": "100000 100000\n",
    }
    root = tree(tmp_path, PLAIN, files)
    assert ControlGroups(root).line("cpuset")[0] == Group(1, "sys/fs/cgroup/cpuset")
    assert ControlGroups(root).line("cpu") == (Group(2, "my groups/inner"), Group(2, "my groups"))
    limits = read_limits(root)
    assert (str(limits.cpus), limits.cpu_count) == ("1,3", 1)


def test_an_old_kernel_without_mountinfo_and_memavailable(tmp_path):
    files = {
        "proc/mounts": "none /dev/cpuset cpuset rw 0 0\n",
        "proc/self/cpuset": "/dummy\n",
        "dev/cpuset/dummy/cpus": "0-3\n",
        "proc/meminfo": f"MemTotal: {2**22} kB\nMemFree: {2**20} kB\nBuffers: {2**19} kB\nCached: {2**19} kB\n",
    }
    limits = read_limits(tree(tmp_path, PLAIN, files))
    assert str(limits.cpus) == "0-3"
    assert limits.memory_bytes == 2 * GIB


def test_hybrid_takes_version_1_and_2_together(tmp_path):
    files = {
        "proc/self/cgroup": "3:cpuset:/job\n0::/job\n",
        "proc/self/mountinfo": V1 + V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "),
        "sys/fs/cgroup/cpuset/job/cpuset.cpus": "0-5",
        "sys/fs/cgroup/unified/job/cpuset.cpus.effective": "4-7",
        "sys/fs/cgroup/unified/job/cpu.max": "150000 100000",
        "sys/fs/cgroup/unified/memory.max": f"{GIB}",
    }
    limits = read_limits(tree(tmp_path, PLAIN, files))
    assert (str(limits.cpus), limits.cpu_count, limits.quota_cpus) == ("4-5", 1, 1.5)
    assert limits.memory_bytes == GIB


def test_the_nearest_effective_cpuset_counts_and_not_what_a_partition_left_its_parent(tmp_path):
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "proc/self/mountinfo": V2,
        "sys/fs/cgroup/a/b/cpuset.cpus.effective": "4-7",
        "sys/fs/cgroup/a/cpuset.cpus.effective": "0-3",
    }
    assert str(read_limits(tree(tmp_path, PLAIN, files)).cpus) == "4-7"


def test_a_mounted_part_of_the_hierarchy_that_we_are_not_in_is_no_limit_of_ours(tmp_path):
    files = {
        "proc/self/cgroup": "0::/docker/ours\n",
        "proc/self/mountinfo": "30 23 0:27 /docker/theirs /theirs rw - cgroup2 cgroup2 rw\n" + V2,
        "theirs/cpu.max": "100000 100000",
        "sys/fs/cgroup/docker/ours/cpu.max": "300000 100000",
    }
    limits = read_limits(tree(tmp_path, PLAIN, files))
    assert (limits.cpu_count, tightest(limits)[0][1]) == (3, "/sys/fs/cgroup/docker/ours/cpu.max")


def test_a_group_that_is_mounted_twice_counts_once_where_it_is_there(tmp_path):
    files = {
        "proc/self/cgroup": "0::/job\n",
        "proc/self/mountinfo": V2.replace("/sys/fs/cgroup ", "/gone ") + V2,
        "sys/fs/cgroup/job/cpu.max": "300000 100000",
    }
    root = tree(tmp_path, PLAIN, files)
    assert ControlGroups(root).line("cpu")[0] == Group(2, "sys/fs/cgroup/job")
    assert read_limits(root).cpu_count == 3


@pytest.mark.parametrize(
    ("path", "top", "groups"),
    [
        ("/", "/../..", [""]),  # an ancestor is mounted: what lies between has no name here
        ("/inner", "/../..", [""]),
        ("/../other", "/..", ["/other", ""]),  # moved out of the namespace, and mounted from outside
        ("/../other", "/", []),
        ("/../other/x", "/../other", ["/x", ""]),
    ],
)
def test_a_cgroup_namespace_counts_levels_upwards(tmp_path, path, top, groups):
    mountinfo = V2.replace(" / ", f" {top} ", 1)
    root = tree(tmp_path, PLAIN, {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": mountinfo})
    assert [group.path for group in ControlGroups(root).line("cpu")] == [f"sys/fs/cgroup{one}" for one in groups]


def test_what_quotas_of_both_versions_stopped_adds_up(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/mountinfo": V1 + V2.replace("/sys/fs/cgroup", "/unified"),
            "proc/7/cgroup": "1:cpu:/job/step\n0::/slice\n",
            # step has no quota of its own: what it says of a former one is no matter
            "sys/fs/cgroup/cpu/job/step/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/job/step/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu/job/step/cpu.stat": "nr_periods 1\nnr_throttled 1\nthrottled_time 40\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu/job/cpu.stat": "nr_periods 10\nnr_throttled 9\nthrottled_time 912594949\nnr_bursts 0\n",
            "unified/slice/cpu.max": "200000 100000",
            "unified/slice/cpu.stat": "usage_usec 99\nuser_usec 90\nnr_throttled 2\nthrottled_usec 123\nnr_bursts 0\n",
        },
    )
    assert Throttling(7, root).total_ns() == 912594949 + 123000
    assert Throttling(8, root).total_ns() is None
    (tmp_path / "unified/slice/cpu.stat").unlink()
    assert Throttling(7, root).total_ns() == 912594949


def test_names_of_groups_are_bytes(tmp_path):
    name = "Å à b"  # whose UTF-8 holds bytes that are line ends and spaces in Latin-1
    files = {
        "proc/self/cgroup": f"0::/{name}\n",
        "proc/self/mountinfo": V2.replace(
            "/sys/fs/cgroup ", f"/m/{name} ".replace(" b", r"\040b").replace(" à", r"\040à")
        ),
        f"m/{name}/{name}/cpu.max": "200000 100000",
    }
    assert read_limits(tree(tmp_path, PLAIN, files)).cpu_count == 2


def test_version_1_tells_of_a_memory_limit_above_what_is_mounted(tmp_path):
    files = {
        "proc/self/cgroup": "5:memory:/\n",
        "proc/self/mountinfo": V1,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.stat": f"cache 0\nhierarchical_memory_limit {3 * GIB}\ntotal_inactive_file 0\n",
    }
    limits = read_limits(tree(tmp_path, PLAIN, files))
    assert limits.memory_bytes == 2 * GIB
    assert tightest(limits)[1] == ("cgroup memory", "/sys/fs/cgroup/memory/memory.stat")


def test_memory_of_the_nodes_that_may_be_allocated_from(tmp_path):
    node = "sys/devices/system/node"
    line = "Node {0} MemTotal: 9000000 kB\nNode {0} MemFree: {1} kB\nNode {0} Active(file): 1024 kB\n"
    files = {f"{node}/online": "0-1", **{f"{node}/node{n}/meminfo": line.format(n, 2**20) for n in (0, 1)}}
    limits = read_limits(tree(tmp_path, PLAIN, files))  # Mems_allowed_list: 0
    assert limits.memory_bytes == GIB + 2**20
    assert tightest(limits)[1] == ("memory nodes 0", "/sys/devices/system/node")
    both = {"proc/self/status": PLAIN["proc/self/status"].replace("list:\t0\n", "list:\t0-1\n")}
    assert read_limits(tree(tmp_path, both)).memory_bytes == 8 * GIB


def test_without_meminfo_the_nodes_tell_what_is_available(tmp_path):
    node = "sys/devices/system/node"
    files = {f"{node}/node{n}/meminfo": f"Node {n} MemTotal: 9 kB\nNode {n} MemFree: {2**20} kB\n" for n in (0, 4)}
    root = tree(tmp_path, {**PLAIN, **files})
    (tmp_path / "proc/meminfo").unlink()
    limits = read_limits(root)
    assert limits.memory_bytes == 2 * GIB
    assert tightest(limits)[1] == ("available memory", "/sys/devices/system/node")


GARBLED = ["", "\n", "\0\0", "max", "garbage", "-1", "0-", "9" * 5000, "0-3,zebra", "1 0", "99999999999 1", "²"]
FILES = [
    *("proc/self/cgroup", "proc/self/mountinfo", "proc/self/status"),
    *(f"sys/fs/cgroup/job/{name}" for name in ("cpuset.cpus.effective", "cpuset.mems.effective", "cpuset.cpus")),
    *(f"sys/fs/cgroup/job/{name}" for name in ("cpu.max", "memory.max", "memory.high", "memory.current")),
    "sys/fs/cgroup/job/memory.stat",
    *("sys/devices/system/node/online", "sys/devices/system/cpu/online"),
]
JOB = {
    "proc/self/cgroup": "0::/job\n",
    "proc/self/mountinfo": V2,
    "sys/fs/cgroup/job/cpuset.cpus.effective": "0-5",
    "sys/fs/cgroup/job/cpu.max": "400000 100000",
    "sys/fs/cgroup/job/memory.max": f"{4 * GIB}",
    "sys/fs/cgroup/job/memory.current": f"{GIB}",
}


@pytest.mark.parametrize("name", FILES)
def test_an_empty_garbled_or_unreadable_file_is_no_limit(tmp_path, name):
    """What users of others reported: joblib/loky#634 and #478."""
    root = tree(tmp_path, PLAIN, JOB)
    for text in GARBLED:
        limits = read_limits(tree(tmp_path, {name: text}))
        assert 1 <= limits.cpu_count <= 8
        assert limits.memory_bytes <= 8 * GIB
    (tmp_path / name).unlink()
    assert read_limits(root).cpu_count >= 1
    (tmp_path / name).mkdir()  # root may read every file, and no directory
    assert read_limits(root).cpu_count >= 1


@given(texts=st.dictionaries(st.sampled_from(FILES), st.text(max_size=60), max_size=6))
def test_any_text_in_any_file_gives_limits_or_a_clear_error(tmp_path_factory, texts):
    root = tmp_path_factory.mktemp("any")
    tree(root, PLAIN, JOB)
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(MachineError):  # no CPU is left, or nothing tells of any
        assert read_limits(str(root)).cpu_count >= 1


HERE = platform.node()


@pytest.mark.parametrize(
    ("environ", "count", "source"),
    [
        ({"SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "4"}, 2, "SLURM_CPUS_PER_TASK"),
        ({"SLURM_CPUS_ON_NODE": "4"}, 4, "SLURM_CPUS_ON_NODE"),
        ({"SLURM_JOB_CPUS_PER_NODE": "6(x2),3", "SLURM_NODEID": "2"}, 3, "SLURM_JOB_CPUS_PER_NODE"),
        ({"SLURM_JOB_CPUS_PER_NODE": "6(x2),3"}, 6, "SLURM_JOB_CPUS_PER_NODE"),
        # Two tasks of two: a batch script may use all four, a task of a step its own two.
        ({"SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "4", "SLURM_TASKS_PER_NODE": "2"}, 4, "SLURM_CPUS_ON_NODE"),
        ({"SLURM_CPUS_PER_TASK": "2", "SLURM_TASKS_PER_NODE": "2", "SLURM_STEP_ID": "0"}, 2, "SLURM_CPUS_PER_TASK"),
        ({"PBS_NP": "3"}, 3, "PBS_NP"),
        ({"PBS_NP": "8", "PBS_NUM_NODES": "2", "PBS_NUM_PPN": "4"}, 4, "PBS_NUM_PPN"),
        ({"NCPUS": "3", "PBS_JOBID": "1.server"}, 3, "NCPUS"),
        ({"LSB_DJOB_NUMPROC": "5"}, 5, "LSB_DJOB_NUMPROC"),
        ({"LSB_DJOB_NUMPROC": "7", "LSB_MCPU_HOSTS": f"other 4 {HERE} 3"}, 3, "LSB_MCPU_HOSTS"),
        ({"LSB_DJOB_NUMPROC": "5", "LSB_MCPU_HOSTS": "other 4 another 1"}, 5, "LSB_DJOB_NUMPROC"),
        ({"NSLOTS": "6", "JOB_ID": "17"}, 6, "NSLOTS"),
    ],
)
def test_batch_systems_cap_the_number(tmp_path, environ, count, source):
    limits = read_limits(tree(tmp_path, PLAIN), environ=environ)
    assert (limits.cpu_count, str(limits.cpus)) == (count, "0-7")
    assert tightest(limits)[0] == ("batch system", source)


@pytest.mark.parametrize(
    ("environ", "cpus"),
    [
        ({"LSB_BIND_CPU_LIST": "1,3-4"}, "1,3-4"),
        ({"SGE_BINDING": "0 2 4", "JOB_ID": "17"}, "0,2,4"),
        ({"SGE_BINDING": "0 2 4"}, "0-7"),
        ({"LSB_BIND_CPU_LIST": "none"}, "0-7"),
    ],
)
def test_batch_systems_name_cpus(tmp_path, environ, cpus):
    assert str(read_limits(tree(tmp_path, PLAIN), environ=environ).cpus) == cpus


@pytest.mark.parametrize(
    ("mask", "online", "environ", "said"),
    [
        ("0-7", "0-7", {}, "8 CPUs may be used: all that are online (0-7)"),
        ("0-7", "0-3", {}, "4 CPUs may be used: all that are online (0-3)"),
        ("0-3", "0-7", {}, "4 CPUs may be used: mask 0-3"),
        ("0-3", "0-2,5-7", {}, "3 CPUs may be used: 0-2 of mask 0-3"),
        ("0-6,12-15", "0-12,14-20", {}, "10 CPUs may be used: 0-6,12,14-15 of mask 0-6,12-15"),
        ("0-3", "2-7", {"SLURM_CPUS_ON_NODE": "3"}, "2 CPUs may be used: 2-3 of mask 0-3"),
        ("0-3", "0-7", {"SLURM_CPUS_ON_NODE": "1"}, "1 CPU may be used: batch system 1 (SLURM_CPUS_ON_NODE)"),
        ("0-7", "0-7", {"LSB_BIND_CPU_LIST": "1"}, "1 CPU may be used: batch system (LSB_BIND_CPU_LIST) CPUs 1"),
        ("1", "0-7", {"LSB_BIND_CPU_LIST": "1"}, "1 CPU may be used: mask and batch system (LSB_BIND_CPU_LIST) CPUs 1"),
    ],
)
def test_the_clause_names_the_cpus_and_every_rule_that_leaves_no_more(tmp_path, mask, online, environ, said):
    files = {"sys/devices/system/cpu/online": online, "proc/self/status": f"Cpus_allowed_list:\t{mask}\n"}
    assert read_limits(tree(tmp_path, PLAIN, files), environ=environ).explain_cpus() == said


def test_no_cpu_left_names_the_sets_alone(tmp_path):
    files = {
        "sys/devices/system/cpu/online": "4-7",
        "proc/self/status": "Cpus_allowed_list:\t0-3\n",
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2,
        "sys/fs/cgroup/cpu.max": "350000 100000\n",
    }
    with pytest.raises(MachineError, match=r"mask 0-3 \(/proc/self/status\); online 4-7 ") as refused:
        read_limits(tree(tmp_path, PLAIN, files))
    assert "None" not in str(refused.value)


def test_cpus_that_are_not_ours_still_count(tmp_path):
    """A list inherited from another node says how many, not which."""
    limits = read_limits(tree(tmp_path, PLAIN), environ={"LSB_BIND_CPU_LIST": "40-42"})
    assert (str(limits.cpus), limits.cpu_count) == ("0-7", 3)


def test_grid_engine_lists_the_slots_of_each_host_in_a_file(tmp_path):
    hosts = tmp_path / "pe_hostfile"
    hosts.write_text(f"other.example 4 all.q@other UNDEFINED\n{HERE}.example 2 all.q@here UNDEFINED\n")
    environ = {"JOB_ID": "17", "NSLOTS": "6", "PE_HOSTFILE": str(hosts)}
    limits = read_limits(tree(tmp_path, PLAIN), environ=environ)
    assert (limits.cpu_count, tightest(limits)[0]) == (2, ("batch system", "PE_HOSTFILE"))
    hosts.unlink()
    assert read_limits(str(tmp_path), environ=environ).cpu_count == 6


@pytest.mark.parametrize(
    "environ",
    [
        *({"NCPUS": "3"}, {"NSLOTS": "3"}, {"SLURM_CPUS_ON_NODE": "4(x2)"}, {"PBS_NP": "0"}, {"PBS_NP": "9" * 5000}),
        *({"SLURM_JOB_CPUS_PER_NODE": "4(x"}, {"FLUX_JOB_ID": "f1", "FLUX_JOB_SIZE": "1", "FLUX_JOB_NNODES": "1"}),
    ],
)
def test_variables_that_are_no_batch_systems_or_no_numbers_are_no_limit(tmp_path, environ):
    assert read_limits(tree(tmp_path, PLAIN), environ=environ).cpu_count == 8


BATCH = (
    *("SLURM_NODEID", "SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE", "SLURM_CPUS_PER_TASK", "SLURM_TASKS_PER_NODE"),
    *("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "PBS_NP", "PBS_NUM_PPN", "NCPUS", "PBS_JOBID", "LSB_DJOB_NUMPROC"),
    *("LSB_MCPU_HOSTS", "LSB_BIND_CPU_LIST", "NSLOTS", "JOB_ID", "PE_HOSTFILE", "SGE_BINDING"),
)
values = st.one_of(st.text(max_size=12), st.integers(-2, 300).map(str), st.sampled_from(["2(x3)", f"{HERE} 2", "0-3"]))


@given(st.dictionaries(st.sampled_from(BATCH), values))
def test_any_text_in_batch_variables_grants_something_or_nothing(environ):
    for grant in grants(environ):
        given_by = [grant.cpus, grant.cpu_count, grant.memory_bytes]
        assert sum(bool(one) for one in given_by) == 1
        assert grant.source in environ


@given(st.lists(st.tuples(st.integers(1, 512), st.integers(1, 5)), min_size=1, max_size=5))
def test_slurm_repeats(groups):
    text = ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in groups)
    assert parse_repeats(text) == [count for count, times in groups for _ in range(times)]


def test_more_nodes_than_a_job_can_have_are_nonsense():
    assert parse_repeats(",".join(["1(x999999)"] * 3000)) == []


def test_slurm_memory_is_in_mib(tmp_path):
    root = tree(tmp_path, PLAIN)
    assert read_limits(root, environ={"SLURM_MEM_PER_NODE": "2048"}).memory_bytes == 2 * GIB
    assert read_limits(root, environ={"SLURM_MEM_PER_NODE": "0"}).memory_bytes == 8 * GIB
    per_cpu = {"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "4"}
    assert read_limits(root, environ=per_cpu).memory_bytes == 2 * GIB


def test_contradicting_rules_leave_no_cpu_and_are_named(tmp_path):
    files = {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2, "sys/fs/cgroup/cpuset.cpus.effective": "9\n"}
    with pytest.raises(MachineError, match=r"no CPU is left.*mask 0-7.*cgroup cpuset 9"):
        read_limits(tree(tmp_path, PLAIN, files))


def test_memory_of_unknown_size_is_an_error(tmp_path):
    (tmp_path / "sys/devices/system/cpu").mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/online").write_text("0")
    with pytest.raises(MachineError, match="meminfo"):
        read_limits(str(tmp_path))


@given(st.integers(1, 10**9), st.integers(1, 10**6))
def test_quota_is_a_fraction_of_the_period(quota, period):
    assert parse_cpu_max(f"{quota} {period}") == quota / period


@given(st.text(max_size=20))
def test_any_other_quota_is_no_limit(text):
    parsed = parse_cpu_max(text)
    assert parsed is None or parsed > 0


@given(cgroup=st.text(max_size=80), mountinfo=st.text(max_size=120))
def test_nonsense_in_proc_never_crashes(tmp_path_factory, cgroup, mountinfo):
    root = tmp_path_factory.mktemp("nonsense")
    files = {"proc/self/cgroup": f"0::{cgroup}", "proc/self/mountinfo": f"1 2 3:4 {mountinfo} - cgroup2 x rw"}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert all(".." not in Path(group.path).parts for group in ControlGroups(str(root)).line("cpu"))
    assert read_limits(tree(root, PLAIN)).cpu_count == 8


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_this_machine():
    limits = read_limits(environ={})
    assert set(limits.cpus) == os.sched_getaffinity(0)
    assert 1 <= limits.cpu_count <= len(limits.cpus)
    assert 0 < limits.memory_bytes <= psutil.virtual_memory().available * 1.2
    assert len(tightest(limits)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="masks are Linux's")
def test_a_narrower_mask_narrows_the_limits():
    one = max(os.sched_getaffinity(0))
    assert limits_of_a_child(preexec=lambda: os.sched_setaffinity(0, {one})) == ([one], 1, None)


def limits_of_a_child(preexec):
    """(cpus, cpu_count, quota_cpus) as a process sees them that ``preexec`` has put somewhere first."""
    code = (
        "import json; from qcthreads.host.limits import read_limits; limits = read_limits(environ={}); "
        "print(json.dumps([list(limits.cpus), limits.cpu_count, limits.quota_cpus]))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=preexec
    ).stdout
    return tuple(json.loads(told))


@pytest.fixture
def make_group():
    """Makes real, nested version 1 groups with files written into each, if this user may."""
    made = []

    def make(controller, *levels):
        group = next((top for top in (Path("/sys/fs/cgroup") / controller,) if (top / "tasks").exists()), None)
        if group is None:
            pytest.skip(f"this kernel has no version 1 hierarchy of {controller} in /sys/fs/cgroup")
        for number, files in enumerate(levels):
            group = group / (f"qcthreads-test-{os.getpid()}" if not number else "inner")
            try:
                group.mkdir()
            except OSError as error:
                pytest.skip(f"this user may not make control groups here: {error}")
            made.append(group)
            for name, text in files.items():
                (group / name).write_text(text)
        return group

    yield make
    for group in reversed(made):
        group.rmdir()


def joins(*groups):
    """To be run in a child before it starts."""
    files = [str(group / "cgroup.procs") for group in groups]

    def join():
        for file in files:
            with open(file, "w") as stream:  # noqa: PTH123 - after a fork, the less the better
                stream.write(str(os.getpid()))

    return join


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")


@LINUX
def test_a_real_quota_of_an_ancestor(make_group):
    mask = sorted(os.sched_getaffinity(0))
    half = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}
    assert limits_of_a_child(joins(make_group("cpu", half, {}))) == (mask, 1, 1.5)


@LINUX
def test_a_real_cpuset_and_the_mask_the_kernel_makes_of_it(make_group):
    one = str(max(os.sched_getaffinity(0)))
    mems = (Path("/sys/fs/cgroup/cpuset/cpuset.mems")).read_text() if Path("/sys/fs/cgroup/cpuset").exists() else ""
    files = {"cpuset.mems": mems, "cpuset.cpus": one}
    assert limits_of_a_child(joins(make_group("cpuset", files, files))) == ([int(one)], 1, None)


@LINUX
def test_a_real_memory_limit_of_an_ancestor_less_what_is_in_use(make_group):
    group = make_group("memory", {"memory.limit_in_bytes": str(2**29)}, {})
    code = (
        "from qcthreads.host.limits import read_limits; held = bytearray(2**26); limits = read_limits(environ={}); "
        "print(limits.memory_bytes, *((rule.rule, rule.source) for rule in limits.rules if rule.tightest))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=joins(group)
    )
    left, _, said = done.stdout.partition(" ")
    assert 2**29 - 2**28 < int(left) < 2**29 - 2**26
    assert str(("cgroup memory", f"/sys/fs/cgroup/memory/{group.parent.name}/memory.limit_in_bytes")) in said


@LINUX
@pytest.mark.parametrize("namespace", [(), ("--cgroup",)])
def test_a_real_group_mounted_elsewhere_alone(make_group, tmp_path, namespace):
    """As in a container: the group lies at some mount point, nothing else of its hierarchy is to be seen."""
    group = make_group("cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}, {})
    script = (
        f"mount --bind {group.parent} {tmp_path} && umount -l /sys/fs/cgroup && exec {sys.executable} -c "
        "'from qcthreads.host.limits import read_limits; limits = read_limits(environ={}); "
        "print(limits.quota_cpus, limits.explain_cpus())'"
    )
    done = subprocess.run(
        ["unshare", "--mount", *namespace, "sh", "-c", script],
        capture_output=True,
        text=True,
        preexec_fn=joins(group),
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip(f"this user may not make namespaces here: {done.stderr}")
    assert done.stdout == f"1.5 1 CPU may be used: quota 1.5 ({tmp_path}/cpu.cfs_quota_us)\n", done.stderr


@LINUX
def test_where_nothing_describes_the_machine_the_mask_tells():
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this user may not hide /sys from a process")
    one = max(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{one}]); from qcthreads import read_limits, read_machine; "
        "limits = read_limits(); print(limits.cpus, [rule.rule for rule in limits.rules if rule.cpus]); "
        "print(read_machine().cpus_online)"
    )

    def without(*hiding: str) -> "subprocess.CompletedProcess[str]":
        hide = " && ".join(["mount -t tmpfs none /sys", *hiding, 'exec "$0" -c "$1"'])
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", hide, sys.executable, code], capture_output=True, text=True
        )

    assert without("mount --bind /dev/null /proc/cpuinfo").stdout == f"{one} ['mask']\n{one}\n"
    assert "proc/meminfo cannot be read there" in without("mount -t tmpfs none /proc").stderr
