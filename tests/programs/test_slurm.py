"""``exec`` inside a job of a real Slurm, of this machine alone: srun's processes have the CPUs of their leases."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="masks are Linux's, and two steps need 2 CPUs"
)

CPUS = sorted(os.sched_getaffinity(0))[-2:]
RANK = """
import os
print(sorted(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"], os.environ["SLURM_NTASKS"], flush=True)
"""
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of who asks a Slurm of the test's own, whose daemons end with it."""
    if os.geteuid() or not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "srun"))):
        assert os.environ.get("CI") != "true", "Slurm must be installed in CI"
        pytest.skip("needs Slurm, and root to start it: on Debian, apt install slurm-wlm")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=host, folder=folder, cpus=os.cpu_count(), controller=free_port(), node=free_port()
        ).lstrip()
    )
    environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    munged = ["munged", "--foreground", "--force", f"--key-file={folder}/key"]
    munged += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    daemons = [[*munged, f"--socket={folder}/munge.socket"], ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]]
    running = []
    try:
        for command in daemons:
            with (folder / f"{command[0]}.out").open("w") as out:
                running.append(subprocess.Popen(command, env=environ, stdout=out, stderr=out, start_new_session=True))
            if command[0] == "munged":
                assert wait_for((folder / "munge.socket").exists), (folder / "munged.out").read_text()
        if not wait_for(lambda: "idle" in state(environ)):
            said = "\n".join((folder / f"{command[0]}.out").read_text() for command in daemons)
            pytest.skip(f"Slurm's daemons do not come up in this container: {said[-500:]}")
        yield environ
    finally:
        for process in reversed(running):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(there) -> bool:
    give_up = time.monotonic() + 60
    while not there():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.1)
    return True


def state(environ) -> str:
    asked = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environ, capture_output=True, text=True, check=False)
    return asked.stdout


def in_a_job(slurm, script):
    """What a shell script says that has all CPUs of the machine as a job of Slurm."""
    done = subprocess.run(
        ["salloc", "--quiet", "--nodes=1", "--exclusive", "sh", "-c", script],
        env={**slurm, "QCTHREADS_LEASES": os.environ["QCTHREADS_LEASES"]},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def exec_line(tmp_path, monkeypatch):
    """A command of ``exec`` as a shell reads it; leases are of the test's own."""
    (tmp_path / "book").mkdir()
    monkeypatch.setenv("QCTHREADS_LEASES", str(tmp_path / "book"))
    (tmp_path / "rank.py").write_text(RANK)

    def line(options, ranks):
        rank = f"srun -n{ranks} {sys.executable} {tmp_path}/rank.py"
        return f"{sys.executable} -m qcthreads exec {options} -- {rank}"

    return line


@pytest.mark.parametrize("program", ["", "--program cp2k"])
def test_the_ranks_of_a_step_have_the_cpus_of_the_lease(slurm, exec_line, program):
    """By itself srun binds one to the first CPU of the job, whatever mask it has inherited."""
    line = exec_line(f"{program} --cpus {CPUS[-1]}", 1)
    bare = f"taskset -c {CPUS[-1]} {line.partition(' -- ')[2]}"
    said = in_a_job(slurm, f"{line}; OMP_NUM_THREADS=1 {bare}").splitlines()
    assert said[0] == f"[{CPUS[-1]}] 1 1"
    assert said[1] != said[0]  # else this shows nothing
    said = in_a_job(slurm, exec_line(f"{program} --cpus {CPUS[0]},{CPUS[1]}", 2))
    assert said.splitlines() == [f"{CPUS} 1 2"] * 2


@pytest.mark.parametrize("part", ["-c 1", "--exact", "SRUN_CPUS_PER_TASK=1"])
def test_a_step_that_slurm_gives_cpus_of_its_own_starts_all_the_same_and_it_is_said(slurm, exec_line, part):
    """It refuses a mask with others, as that of the last CPU."""
    line = exec_line(f"--cpus {CPUS[-1]}", 1)
    line = f"{part} {line}" if "=" in part else line.replace("srun -n1", f"srun {part} -n1")
    said = in_a_job(slurm, f"{line} 2>&1")
    assert f"Slurm chooses the CPUs of this step, not the lease: {part.partition(' ')[0]} gives it" in said
    assert "] 1 1" in said  # the rank's


def test_two_steps_at_once_are_on_a_cpu_each_and_do_not_wait_for_each_other(slurm, exec_line, tmp_path):
    """Each ends when it has seen the other."""
    (tmp_path / "rank.py").write_text(
        RANK
        + f"""
import pathlib, sys, time
give_up = time.monotonic() + 120
folder = pathlib.Path({str(tmp_path)!r})
(folder / str(min(os.sched_getaffinity(0)))).touch()
while not all((folder / name).exists() for name in {list(map(str, CPUS))}):
    assert time.monotonic() < give_up
    time.sleep(0.05)
"""
    )
    both = " & ".join(exec_line(f"--cpus {cpu}", 1) for cpu in CPUS)
    said = in_a_job(slurm, f"{both} & wait")
    assert sorted(said.splitlines()) == sorted(f"[{cpu}] 1 1" for cpu in CPUS)
