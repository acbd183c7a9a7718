"""Limits: recorded trees of every kind of control group, batch variables, and this machine with real control groups."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcthreads.cpuset import CpuSet
from qcthreads.errors import MachineError
from qcthreads.host.cgroup import ControlGroups, Group
from qcthreads.host.limits import parse_cpu_max, read_limits

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
    assert limits.explain_cpus() == "8 CPUs may be used: mask 0-7"
    assert limits.explain_memory() == "8 GiB may be used: available memory (/proc/meminfo)"


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


@pytest.mark.parametrize(
    ("environ", "count", "source"),
    [
        ({"SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "4"}, 2, "SLURM_CPUS_PER_TASK"),
        ({"SLURM_CPUS_ON_NODE": "4"}, 4, "SLURM_CPUS_ON_NODE"),
        ({"PBS_NP": "3"}, 3, "PBS_NP"),
        ({"NCPUS": "3", "PBS_JOBID": "1.server"}, 3, "NCPUS"),
        ({"LSB_DJOB_NUMPROC": "5"}, 5, "LSB_DJOB_NUMPROC"),
        ({"NSLOTS": "6", "JOB_ID": "17"}, 6, "NSLOTS"),
    ],
)
def test_batch_systems_cap_the_number(tmp_path, environ, count, source):
    limits = read_limits(tree(tmp_path, PLAIN), environ=environ)
    assert (limits.cpu_count, str(limits.cpus)) == (count, "0-7")
    assert tightest(limits)[0] == ("batch system", source)


@pytest.mark.parametrize("environ", [{"NCPUS": "3"}, {"NSLOTS": "3"}, {"SLURM_CPUS_ON_NODE": "4(x2)"}, {"PBS_NP": "0"}])
def test_variables_that_are_no_batch_systems_or_no_numbers_are_no_limit(tmp_path, environ):
    assert read_limits(tree(tmp_path, PLAIN), environ=environ).cpu_count == 8


def test_slurm_memory_is_in_mib(tmp_path):
    root = tree(tmp_path, PLAIN)
    assert read_limits(root, environ={"SLURM_MEM_PER_NODE": "2048"}).memory_bytes == 2 * GIB
    assert read_limits(root, environ={"SLURM_MEM_PER_NODE": "0"}).memory_bytes == 8 * GIB


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
def real_group():
    """A real control group that limits CPU time, if this user may make one."""
    for top, files in (
        (Path("/sys/fs/cgroup/cpu"), {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}),
        (Path("/sys/fs/cgroup"), {"cpu.max": "150000 100000"}),
    ):
        group = top / f"qcthreads-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for name, text in files.items():
                (group / name).write_text(text)
        except OSError:
            group.rmdir()
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("this user may not make control groups here")


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_a_real_quota(real_group):
    mask = sorted(os.sched_getaffinity(0))
    join = real_group / "cgroup.procs"
    found = limits_of_a_child(preexec=lambda: join.write_text(str(os.getpid())))
    assert found == (mask, 1, 1.5)
    assert CpuSet(found[0]) == read_limits(environ={}).cpus


@pytest.mark.skipif(sys.platform != "linux", reason="mounts are Linux's")
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
