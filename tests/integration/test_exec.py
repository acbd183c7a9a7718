"""``qcthreads exec`` as processes and terminals see it: /proc, exit statuses and a pty, with a book of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.host.limits import read_limits

if sys.platform == "win32":
    pytest.skip("there is no exec on Windows", allow_module_level=True)
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

EXEC = [sys.executable, "-m", "qcthreads", "exec"]
MASK = ["grep", "Cpus_allowed_list", "/proc/self/status"]


@pytest.fixture(autouse=True)
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of the test's own, so that it never waits for the machine's."""
    place = tmp_path / "book"
    monkeypatch.setenv("QCTHREADS_LEASES", str(place))
    return place


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts an exec with pipes, and sees to its end."""
    all_of_them: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*EXEC, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        all_of_them.append(process)
        return process

    yield start
    for process in all_of_them:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*EXEC, *arguments], capture_output=True, text=True, timeout=120, **options)


def cpus_of(pid: int | str) -> CpuSet:
    status = Path(f"/proc/{pid}/status").read_text()
    return CpuSet.parse(re.findall(r"Cpus_allowed_list:\s*(\S+)", status)[0])


def usable() -> int:
    document = subprocess.run([*EXEC[:-1], "limits", "--json"], capture_output=True, text=True, check=True).stdout
    count: int = json.loads(document)["cpu_count"]
    return count


needs_two = pytest.mark.skipif((os.cpu_count() or 1) < 2 or usable() < 2, reason="needs two CPUs")


def wait_until(true: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + 60
    while not true():
        assert time.monotonic() < give_up, f"never: {what}"
        time.sleep(0.01)


def wait_for(path: Path) -> str:
    """What a command of the test writes once it runs."""
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"), f"{path} is written")
    return path.read_text().strip()


def state_of(pid: int) -> str | None:
    """The letter of /proc/PID/stat; ``None`` when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def ended(pid: int) -> bool:
    return state_of(pid) in (None, "Z", "X")


# What passes through.


def test_output_input_and_status_are_the_commands() -> None:
    done = run("--", "sh", "-c", "cat; echo to stderr >&2; exit 7", input="from stdin\n")
    assert (done.stdout, done.stderr, done.returncode) == ("from stdin\n", "to stderr\n", 7)


def test_arguments_arrive_as_they_were_given() -> None:
    arguments = ["--threads", "-1", "--", "a b", "$HOME", ""]
    done = run("--", sys.executable, "-c", "import sys; print(sys.argv[1:])", *arguments)
    assert done.stdout.strip() == str(arguments)


def test_files_that_the_caller_has_open_stay_open() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as reader:
        done = run("--", "sh", "-c", f"echo here >/dev/fd/{writing}", pass_fds=(writing,))
        os.close(writing)
        assert (done.returncode, reader.read()) == (0, "here\n")


def test_the_commands_end_by_a_signal_is_the_end_of_exec() -> None:
    assert run("--", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    assert run("--", "sh", "-c", "kill -KILL $$").returncode == -signal.SIGKILL


def test_own_failures_have_the_status_that_env_has(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("text")
    for name in ("no-such-command-here", str(plain), str(tmp_path)):
        own = subprocess.run(["env", name], capture_output=True, check=False).returncode
        assert run("--", name).returncode == own in (126, 127)
    for wrong in (["--threads"], ["--no-such-option"], ["--threads", "1"], ["--threads", "0", "--", "true"]):
        assert run(*wrong).returncode == 125
    assert run("--threads", "100000", "--", "true").returncode == 125


def test_a_script_without_its_first_line_is_run_by_sh_as_env_does(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$1"\n')
    script.chmod(0o755)
    own = subprocess.run(["env", str(script), "x"], capture_output=True, text=True, check=True)
    assert run("--", str(script), "x").stdout == own.stdout == "x\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGQUIT"])
def test_a_signal_to_exec_alone_reaches_the_command_once(
    name: str, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    ready, count = tmp_path / "ready", tmp_path / "count"
    command = f"""
import signal, pathlib, time
got = []
signal.signal(signal.{name}, lambda *_: got.append(1))
pathlib.Path({str(ready)!r}).write_text("ready\\n")
while not got:
    time.sleep(0.01)
time.sleep(0.3)
pathlib.Path({str(count)!r}).write_text(f"{{len(got)}}\\n")
"""
    process = started("--", sys.executable, "-c", command)
    wait_for(ready)
    process.send_signal(getattr(signal, name))
    assert process.wait(60) == 0
    assert wait_for(count) == "1"


IGNORES = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"


def test_a_caller_that_ignores_the_end_of_children_sees_that_of_the_command(tmp_path: Path) -> None:
    ignoring = [sys.executable, "-c", IGNORES]
    script = tmp_path / "script"
    script.write_text("exit 9\n")
    script.chmod(0o755)
    for command, status in (
        (["sh", "-c", "echo ran; exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], -signal.SIGTERM),
        ([str(script)], 9),
    ):
        done = subprocess.run([*ignoring, *EXEC, "--", *command], capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (status, b"")
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    done = subprocess.run([*ignoring, *EXEC, "--", str(broken)], capture_output=True, timeout=60, check=False)
    assert done.returncode == 127
    assert b"cannot be started" in done.stderr


@linux
@pytest.mark.parametrize("name", ["SIGCHLD", "SIGUSR1"])
def test_what_the_caller_ignores_the_command_ignores_and_nothing_else(name: str) -> None:
    show = ["grep", "SigIgn", "/proc/self/status"]
    ignoring = [sys.executable, "-c", IGNORES.replace("SIGCHLD", name)]
    done = subprocess.run([*ignoring, *EXEC, "--", *show], capture_output=True, text=True, timeout=60, check=True)
    ignored = int(done.stdout.split()[1], 16) & 0x7FFF_FFFF  # glibc's posix_spawn(3) ignores two of its own above 31
    # A shell that starts something in the background has it ignore these two.
    own = {one for one in (signal.SIGINT, signal.SIGQUIT) if signal.getsignal(one) == signal.SIG_IGN}
    assert ignored == sum(1 << (one - 1) for one in {getattr(signal, name), *own})


@linux
@pytest.mark.parametrize("caller", [[], [sys.executable, "-c", IGNORES]], ids=["plain", "ignores SIGCHLD"])
def test_the_command_holds_the_locks_of_its_lease(caller: list[str], book: Path) -> None:
    line = [*caller, *EXEC, "--cpus", "0", "--", "ls", "-l", "/proc/self/fd"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    assert f"{book}/locks/cpu0\n" in done.stdout


@linux
def test_an_end_that_nobody_tells_of_is_an_end() -> None:
    code = """
import os, signal
from qcthreads.execution.foreground import Foreground
foreground = Foreground()
foreground.start("/bin/true", ["true"], os.environ)
os.waitid(os.P_PID, foreground.pid, os.WEXITED)
signal.sigtimedwait([signal.SIGCHLD], 60)
foreground.wait(lambda pids, complete: None)
print(foreground.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "125\n"


# What it is given.


@linux
def test_the_command_is_bound_to_its_lease_and_told_its_width() -> None:
    done = run(
        "--cpus", "0", "--", "sh", "-c", "grep Cpus_allowed_list /proc/self/status; echo $OMP_NUM_THREADS; nproc"
    )
    assert done.stdout.split() == ["Cpus_allowed_list:", "0", "1", "1"]
    assert done.stderr == ""


@linux
def test_openmp_runs_as_many_threads_as_were_leased(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    source, program = tmp_path / "team.c", tmp_path / "team"
    source.write_text(
        "#include <omp.h>\n#include <stdio.h>\nint main(void) {\n#pragma omp parallel num_threads(8)\n"
        '#pragma omp single\nprintf("%d\\n", omp_get_num_threads());\nreturn 0; }\n'
    )
    subprocess.run(["cc", "-fopenmp", source, "-o", program], check=True)
    assert run("--threads", "1", "--", str(program)).stdout == "1\n"


def test_a_variable_of_the_callers_wins_only_where_it_cannot_oversubscribe() -> None:
    show = ["sh", "-c", "echo $OMP_NUM_THREADS $OMP_PROC_BIND $GOMP_CPU_AFFINITY $MKL_NUM_THREADS $OMP_STACKSIZE"]
    own = {"OMP_NUM_THREADS": "64", "OMP_PROC_BIND": "true", "GOMP_CPU_AFFINITY": "1", "OMP_STACKSIZE": "1G"}
    done = run("--threads", "1", "--", *show, env=os.environ | own)
    assert done.stdout.split() == ["1", "false", "1", "1G"]
    assert "OMP_NUM_THREADS=64" in done.stderr
    assert "GOMP_CPU_AFFINITY" in done.stderr


@needs_two
def test_a_smaller_count_of_the_callers_is_kept_and_said() -> None:
    done = run(
        *("--threads", "2", "--", "sh", "-c", "echo $OMP_NUM_THREADS $MKL_NUM_THREADS"),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.split() == ["1", "2"]
    assert "OMP_NUM_THREADS=1" in done.stderr


@needs_two
def test_a_programs_own_settings_are_used() -> None:
    show = ["sh", "-c", "echo $OMP_NUM_THREADS $OPENBLAS_NUM_THREADS"]
    assert run("--threads", "2", "--program", "xtb", "--", *show).stdout.split() == ["2", "1"]  # as xtb.py measured
    assert run("--threads", "2", "--program", "nwchem", "--", *show).stdout.split() == ["1", "1"]  # two ranks


@linux
@needs_two
def test_two_at_once_never_share_a_cpu(tmp_path: Path, started: Callable[..., subprocess.Popen[str]]) -> None:
    ready = [tmp_path / name for name in ("first", "second")]
    for path in ready:
        started("--", "sh", "-c", f"echo $$ >{path}; exec sleep 60")
    first, second = (int(wait_for(path)) for path in ready)
    assert len(cpus_of(first)) == len(cpus_of(second)) == 1
    assert cpus_of(first).isdisjoint(cpus_of(second))
    for pid in (first, second):
        os.kill(pid, signal.SIGTERM)


@linux
@needs_two
def test_a_batch_job_and_a_session_beside_it_do_not_meet(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    """Though the job may use that CPU alone which the session would take first."""
    allowed = os.sched_getaffinity(0)
    given = {min(allowed)}
    os.sched_setaffinity(0, given)
    try:
        env = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "1"}
        job = started("--", "sh", "-c", f"echo $$ >{tmp_path / 'job'}; exec sleep 60", env=env)
    finally:
        os.sched_setaffinity(0, allowed)
    pid = int(wait_for(tmp_path / "job"))
    assert set(cpus_of(pid)) == given
    session = run("--", *MASK)
    assert given.isdisjoint(CpuSet.parse(session.stdout.split()[1]))
    refused = run("--threads", str(usable()), "--", "true")
    assert refused.returncode == 125
    assert f"process {job.pid}" in refused.stderr
    os.kill(pid, signal.SIGTERM)


# Waiting.


@linux
def test_what_is_taken_is_refused_with_its_holder_or_waited_for(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    ready, width = tmp_path / "ready", str(usable())
    holder = started("--threads", width, "--", "sh", "-c", f"echo $$ >{ready}; exec sleep 60")
    pid = int(wait_for(ready))
    refused = run("--", "true")
    assert refused.returncode == 125
    assert f"process {holder.pid}" in refused.stderr
    assert run("--timeout", "0.2", "--", "true").returncode == 125

    report = tmp_path / "report.json"
    waiter = started("--wait", "--json-file", str(report), "--", *MASK)
    assert waiter.stderr is not None
    assert f"process {holder.pid}" in waiter.stderr.readline()
    os.kill(pid, signal.SIGTERM)
    assert waiter.wait(60) == 0
    document = json.loads(report.read_text())
    assert document["waited_s"] > 1
    assert f"process {holder.pid}" in document["waited_for"]


@linux
def test_an_interrupted_wait_leaves_nothing(
    tmp_path: Path, book: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    ready = tmp_path / "ready"
    started("--threads", str(usable()), "--", "sh", "-c", f"echo $$ >{ready}; exec sleep 60")
    pid = int(wait_for(ready))
    waiter = started("--wait", "--", "true")
    assert waiter.stderr is not None
    assert "waits" in waiter.stderr.readline()
    assert list((book / "records").glob("w*"))
    waiter.send_signal(signal.SIGINT)
    assert waiter.wait(60) == -signal.SIGINT
    assert not list((book / "records").glob("w*"))
    os.kill(pid, signal.SIGTERM)


# What outlives something.


def leaves_running(left: Path) -> str:
    """A script that ends, and leaves behind a process in a session of its own, whose number it writes."""
    return f"""
setsid sh -c 'echo $$ >{left}; exec sleep 300' >/dev/null 2>&1 &
while ! [ -s {left} ]; do sleep 0.01; done
"""


@linux
def test_what_the_command_leaves_behind_is_named_and_waited_for(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    left, said = tmp_path / "left", tmp_path / "said"
    waits = f"until [ -e {said} ]; do sleep 0.01; done; grep Cpus_allowed_list /proc/self/status >{left}"
    process = started("--", "sh", "-c", f"setsid sh -c '{waits}' >/dev/null 2>&1 & exit 5")
    assert process.stderr is not None
    assert "left behind" in process.stderr.readline()
    assert process.poll() is None
    said.touch()
    assert process.wait(60) == 5
    assert left.read_text().startswith("Cpus_allowed_list")


@linux
def test_what_the_command_leaves_behind_is_ended_where_that_is_asked(tmp_path: Path) -> None:
    left, report = tmp_path / "left", tmp_path / "report.json"
    done = run("--strays", "end", "--json-file", str(report), "--", "sh", "-c", leaves_running(left))
    assert done.returncode == 0
    assert ended(int(left.read_text()))
    assert json.loads(report.read_text())["strays"]


@linux
def test_a_signal_ends_the_wait_for_what_was_left_behind(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    left = tmp_path / "left"
    process = started("--", "sh", "-c", leaves_running(left))
    assert process.stderr is not None
    assert "left behind" in process.stderr.readline()
    process.terminate()
    assert process.wait(60) == 0
    assert ended(int(wait_for(left)))


@linux
def test_a_killed_exec_leaves_the_lease_to_its_command(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    ready, width = tmp_path / "ready", str(usable())
    process = started("--threads", width, "--", "sh", "-c", f"echo $$ >{ready}; exec sleep 300")
    pid = int(wait_for(ready))
    process.kill()
    process.wait(60)
    assert run("--threads", width, "--", "true").returncode == 125
    assert not ended(pid)
    os.kill(pid, signal.SIGKILL)
    assert run("--threads", width, "--timeout", "30", "--", "true").returncode == 0


# What is verified and told.


@linux
@needs_two
def test_a_command_that_leaves_its_lease_is_told_of() -> None:
    assert run("--cpus", "0", "--", "taskset", "-c", "0", "sleep", "0.5").stderr == ""
    done = run("--cpus", "0", "--", "sh", "-c", "taskset -c 1 sleep 2; exit 3")
    assert done.returncode == 3
    assert re.search(r"\((sleep|taskset)\) may run on CPUs 1, outside the lease of 0", done.stderr)


BUSY_THREADS = """
import hashlib, os, threading, time
os.sched_setaffinity(0, [1])
def work():
    end = time.monotonic() + 3
    while time.monotonic() < end:
        hashlib.sha256(bytes(2**22))
threads = [threading.Thread(target=work) for _ in range(40)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.once
@linux
@needs_two
def test_a_command_with_many_threads_that_leaves_its_lease_is_told_of() -> None:
    done = run("--cpus", "0", "--", sys.executable, "-c", BUSY_THREADS)
    assert done.returncode == 0
    assert "may run on CPUs 1, outside the lease of 0" in done.stderr


# exec is told of the end of each, several times a second.
ORPHANS = "timeout 5 sh -c 'while :; do (sleep 0.1 &); sleep 0.2; done' &"


@pytest.mark.once
@linux
@pytest.mark.parametrize(("busy", "orphans", "told"), [(3, "", True), (3, ORPHANS, True), (1, "", False)])
def test_more_threads_at_once_than_were_leased_are_told_of(tmp_path: Path, busy: int, orphans: str, told: bool) -> None:
    file = tmp_path / "exec.json"
    script = f"{orphans} for one; do timeout 5 sh -c 'while :; do :; done' & done; sleep 5; wait"
    done = run("--json-file", str(file), "--", "sh", "-c", script, "sh", *"x" * busy)
    assert ("threads of the command shared the 1 CPU of its lease" in done.stderr) is told, done.stderr
    document = json.loads(file.read_text())
    assert (document["threads_at_once"] >= 1.5) is told
    assert document["mismatches"] == [line.partition(": ")[2] for line in done.stderr.splitlines()]


@linux
@needs_two
def test_who_went_outside_and_came_back_is_not_told_of() -> None:
    program = "import os, time; os.sched_setaffinity(0, {1}); time.sleep(0.5); os.sched_setaffinity(0, {0})"
    done = run("--cpus", "0", "--", sys.executable, "-c", program)
    assert (done.returncode, done.stderr) == (0, "")


@linux
@needs_two
def test_a_thread_that_waits_outside_is_not_told_of_and_one_that_works_is() -> None:
    program = """
import os, sys, threading, time
def aside():
    os.sched_setaffinity(0, {1})
    while time.thread_time() < float(sys.argv[1]):
        pass
    time.sleep(9)
threading.Thread(target=aside, daemon=True).start()
while time.thread_time() < 1:
    pass
"""
    for seconds, told in (("0", False), ("0.5", True)):
        done = run("--cpus", "0", "--", sys.executable, "-c", program, seconds)
        assert ("may run on CPUs 0-1" in done.stderr) is told, done.stderr


@needs_two
def test_a_program_that_its_command_tells_no_width_is_told_how() -> None:
    done = run("--program", "psi4", "--threads", "2", "--dry-run", "--", "psi4", "water.dat")
    assert "write `psi4 -n 2 input.dat`" in done.stderr
    done = run("--program", "psi4", "--threads", "2", "--dry-run", "--", "psi4", "-n", "2", "water.dat")
    assert "write" not in done.stderr


@pytest.mark.once
@linux
@needs_two
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs Open MPI")
def test_the_ranks_of_two_mpiruns_at_once_stay_in_their_leases(started: Callable[..., subprocess.Popen[str]]) -> None:
    # By itself mpirun binds each job's first rank to core 0, whatever mask it has inherited.
    rank = ["mpirun", "-n", "1", "sh", "-c", "sleep 0.5; grep Cpus_allowed_list /proc/self/status"]
    two = [started("--cpus", cpu, "--program", "nwchem", "--", *rank) for cpu in "01"]
    assert [process.communicate(timeout=60)[0].split()[-1] for process in two] == ["0", "1"]


@pytest.mark.once
@linux
@needs_two
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs Open MPI")
def test_an_mpirun_that_is_told_no_number_starts_as_many_as_the_lease_has_cores() -> None:
    # By itself it starts as many as the machine has, each of which would spin while it waits for the others.
    rank = ["mpirun", "sh", "-c", "echo $OMP_NUM_THREADS"]
    for threads in ("1", "2"):
        done = run("--threads", threads, "--", *rank)
        assert done.stdout.split() == ["1"] * int(threads)
        assert ("mpirun is told no number of processes: 2 are assumed" in done.stderr) is (threads == "2")


@pytest.mark.once
@linux
@needs_two
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs Open MPI")
@pytest.mark.parametrize("number", [["-N", "1"], ["-c", "1"], ["--npernode", "1"], ["--map-by", "ppr:1:node"]])
def test_an_mpirun_that_says_its_number_otherwise_leaves_each_process_its_threads(number: list[str]) -> None:
    command = ["mpirun", *number, "sh", "-c", "echo $OMP_NUM_THREADS"]
    done = run("--threads", "2", "--", *command)
    assert (done.stdout, done.stderr) == ("2\n", "")


@linux
def test_where_the_system_refuses_to_bind_the_command_runs_unbound_and_says_so(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    refuse = [sys.executable, str(Path(__file__).with_name("refuse.py")), "EPERM", "sched_setaffinity"]
    command = [*refuse, *EXEC, "--json-file", str(report), "--", "sh", "-c", "echo $OMP_NUM_THREADS"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "1\n"
    assert "runs unbound" in done.stderr
    assert json.loads(report.read_text())["bound"] is None


@linux
def test_the_document_tells_what_happened(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    burn = "import time\nheap = bytearray(300 * 1024**2)\nwhile time.process_time() < 0.4: pass"
    done = run("--cpus", "0", "--memory", "400MiB", "--json-file", str(report), "--", sys.executable, "-c", burn)
    assert done.returncode == 0
    document = json.loads(report.read_text())
    assert document["command"] == [sys.executable, "-c", burn]
    assert document["lease"] == {"cpus": [0], "nodes": [0], "memory_bytes": 400 * 1024**2, "gpus": []}
    assert document["bound"] == [0]
    assert document["environment"]["set"]["OMP_NUM_THREADS"] == "1"
    assert (document["exit_status"], document["signal"]) == (0, None)
    assert 0.4 <= document["cpu_s"] <= document["wall_s"] + 0.05
    assert 300 * 1024**2 < document["peak_memory_bytes"] < 400 * 1024**2


@linux
def test_more_memory_than_was_leased_is_told_of() -> None:
    grow = [sys.executable, "-c", "heap = bytearray(200 * 1024**2)"]
    assert run("--memory", "1GiB", "--", *grow).stderr == ""
    assert "100 MiB are leased" in run("--memory", "100MiB", "--", *grow).stderr


@linux
@needs_two
def test_one_cpu_by_its_number_may_have_most_of_the_memory() -> None:
    limits = read_limits()
    more_than_its_share = limits.total_bytes // len(limits.cpus) + limits.total_bytes // 16
    if limits.memory_bytes < 1.1 * more_than_its_share:
        pytest.skip("too much of the memory is in use")
    assert run("--cpus", str(limits.cpus.first), "--memory", str(more_than_its_share), "--", "true").stderr == ""


@linux
def test_the_memory_of_exec_itself_is_not_the_commands(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run("--memory", "1MiB", "--json-file", str(report), "--", "true")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(report.read_text())
    assert document["mismatches"] == []
    assert document["peak_memory_bytes"] > 4 * 1024**2  # else the system carries nothing over, and this shows nothing


@linux
def test_the_dry_runs_snippet_has_the_same_effect_in_a_shell(tmp_path: Path) -> None:
    show = [
        "sh",
        "-c",
        "env | grep -E '^[A-Z]+_NUM_THREADS|^OMP|AFFINITY' | sort; grep Cpus_allowed_list /proc/self/status",
    ]
    own = os.environ | {"GOMP_CPU_AFFINITY": "0"}
    snippet = run("--cpus", "0", "--dry-run", "--", *show, env=own)
    script = tmp_path / "job.sh"
    script.write_text(snippet.stdout)
    pasted = subprocess.run(["sh", script], capture_output=True, text=True, check=True, env=own)
    assert pasted.stdout == run("--cpus", "0", "--", *show, env=own).stdout
    assert "GOMP_CPU_AFFINITY" not in pasted.stdout


@linux
@pytest.mark.parametrize("wrap", [[], ["--wrap", "env PASSED=on"]])
def test_the_dry_runs_snippet_has_the_same_effect_in_another_environment(tmp_path: Path, wrap: list[str]) -> None:
    """A job script has neither what the caller had nor the lease, and a site's modules may have set what binds."""
    show = ["sh", "-c", "env | grep -E '^OMP|AFFINITY|I_MPI|QCTHREADS_LEASE=' | sort"]
    own = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_STACKSIZE": "3M"}
    script = tmp_path / "job.sh"
    script.write_text(run("--cpus", "0", *wrap, "--dry-run", "--", *show, env=own).stdout)
    job = {"PATH": os.environ["PATH"], "KMP_AFFINITY": "compact", "I_MPI_PIN_DOMAIN": "socket", "OMP_STACKSIZE": "3M"}
    pasted = subprocess.run(["sh", script], capture_output=True, text=True, check=True, env=job)
    here = run("--cpus", "0", *wrap, "--", *show, env=own).stdout.splitlines()
    assert pasted.stdout.splitlines() == [line for line in here if not line.startswith("QCTHREADS_LEASE=")]
    assert "OMP_NUM_THREADS=1" in here


@linux
def test_exec_inside_exec_is_given_a_part_of_the_outer_lease() -> None:
    done = run("--cpus", "0", "--", *EXEC, "--timeout", "1", "--", *MASK)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["0"])


@linux
def test_exec_inside_exec_leaves_nothing_beside_the_book(book: Path) -> None:
    inner = f"{' '.join(EXEC)} -- ls {book.parent}"
    done = run("--cpus", "0", "--", "sh", "-c", f"{inner}; exit 3")
    assert done.returncode == 3
    assert [name.partition("-in-")[0] for name in done.stdout.split()] == [book.name, book.name]
    assert [path.name for path in book.parent.iterdir()] == [book.name]


# In a terminal.


class Terminal:
    """A shell with job control on a pty of its own."""

    def __init__(self) -> None:
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.environ["PS1"] = "$ "
            os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def read_until(self, pattern: str) -> re.Match[str]:
        """What appears from now on, up to ``pattern``."""
        give_up = time.monotonic() + 60
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < give_up, self.seen
            if select.select([self._master], [], [], 0.1)[0]:
                self.seen += os.read(self._master, 4096).decode(errors="replace")
        self.seen = self.seen[found.end() :]
        return found

    def close(self) -> None:
        os.close(self._master)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    terminal = Terminal()
    yield terminal
    terminal.close()


COUNTS_INTERRUPTS = """
import os, signal, sys, time
got = []
signal.signal(signal.SIGINT, lambda *_: got.append(1))
signal.signal(signal.SIGCONT, lambda *_: print("goes on", flush=True))
print(f"pid={os.getpid()} tty={os.isatty(0)} group={os.getpgrp() == os.tcgetpgrp(0)}", flush=True)
while not got:
    time.sleep(0.01)
time.sleep(0.3)
print("interrupted", len(got), flush=True)
"""


def shell_line(tmp_path: Path, code: str) -> str:
    script = tmp_path / "script.py"
    script.write_text(code)
    return f"{' '.join(EXEC)} -- {sys.executable} {script}"


def test_ctrl_c_reaches_the_command_once(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type(f"{shell_line(tmp_path, COUNTS_INTERRUPTS)}; echo status=$?\n")
    found = terminal.read_until(r"pid=(\d+) tty=(\w+) group=(\w+)")
    assert found.groups()[1:] == ("True", "True")
    terminal.type("\x03")
    assert terminal.read_until(r"interrupted (\d)").group(1) == "1"
    terminal.read_until("status=0")


def test_ctrl_c_ends_a_shells_loop_as_without_exec(terminal: Terminal) -> None:
    terminal.type(f"for i in 1 2 3; do {' '.join(EXEC)} -- sh -c 'echo turn=$((6*7)); exec sleep 60'; done\n")
    terminal.read_until("turn=42")
    terminal.type("\x03")
    terminal.type("echo status=$?\n")
    terminal.read_until("status=130")
    assert "turn=42" not in terminal.seen


@linux
def test_ctrl_z_stops_and_fg_goes_on(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type(f"{shell_line(tmp_path, COUNTS_INTERRUPTS)}; echo status=$?\n")
    pid = int(terminal.read_until(r"pid=(\d+)").group(1))
    terminal.type("\x1a")
    terminal.read_until("Stopped")
    wait_until(lambda: state_of(pid) == "T", "the command stops")
    terminal.type("fg\n")
    terminal.read_until("goes on")
    terminal.type("\x03")
    assert terminal.read_until(r"interrupted (\d)").group(1) == "1"


def test_a_command_that_stops_itself_gives_the_shell_its_terminal_back(terminal: Terminal) -> None:
    terminal.type(f"{' '.join(EXEC)} -- sh -c 'kill -STOP $$; echo went=$((6*7))'\n")
    terminal.read_until("Stopped")
    terminal.type("fg\n")
    terminal.read_until("went=42")


def test_the_windows_size_reaches_the_command(terminal: Terminal, tmp_path: Path) -> None:
    import fcntl
    import struct
    import termios

    code = """
import os, signal, time
got = []
signal.signal(signal.SIGWINCH, lambda *_: got.append(os.get_terminal_size(0)))
print("ready=1", flush=True)
while not got:
    time.sleep(0.01)
print(f"size={got[-1].columns}x{got[-1].lines}", flush=True)
"""
    terminal.type(f"{shell_line(tmp_path, code)}\n")
    terminal.read_until("ready=1")
    fcntl.ioctl(terminal._master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    terminal.read_until("size=99x33")
