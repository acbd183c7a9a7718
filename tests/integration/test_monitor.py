"""``qcthreads monitor`` around real commands, as a process of its own; wait4 and the commands say what is true."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from qcthreads.host import native_status

if sys.platform != "linux":
    pytest.skip("the figures of the other systems are tested with the sampler", allow_module_level=True)

MONITOR = [sys.executable, "-m", "qcthreads", "monitor"]
BURN = """
import hashlib, threading, time
def burn():
    end = time.thread_time() + {cpu_s}
    while time.thread_time() < end:
        hashlib.sha256(bytes(1 << 20)).digest()
threads = [threading.Thread(target=burn) for _ in range({threads})]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def monitor(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MONITOR, *arguments], capture_output=True, text=True, timeout=120, check=False, **more)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["true"], 0),
        (["sh", "-c", "kill -9 $$"], 128 + 9),
        (["/nowhere/at/all"], 127),
        (["/etc/passwd"], 126),
        ([], 125),
    ],
)
def test_the_exit_status_is_the_commands_or_that_of_env(command: list[str], status: int) -> None:
    done = monitor("--", *command)
    assert done.returncode == status
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    if command and status < 125:
        assert subprocess.run(["env", *command], check=False).returncode == status


@pytest.mark.parametrize(
    "arguments",
    [
        ["--interval", "0", "--", "true"],
        ["--threads", "0", "--", "true"],
        ["--memory", "much", "--", "true"],
        ["--json-file", "/nowhere/at/all", "--", "true"],
        ["--pid", "1", "--", "true"],
        ["--pid", "4194305"],
        ["--frob"],
    ],
)
def test_its_own_failures_are_125_and_told_in_a_line(arguments: list[str]) -> None:
    done = monitor(*arguments)
    assert done.returncode == 125
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_standard_input_output_and_arguments_are_the_commands() -> None:
    done = monitor("--", "sh", "-c", 'cat; echo "$@" >&2', "sh", "--pid", "-1", "--", "x", input="through\n")
    assert done.stdout == "through\n"
    assert "--pid -1 -- x\n" in done.stderr


def test_a_thread_that_others_follow_does_not_work_beside_them(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    alone = "import time\nwhile time.thread_time() < 0.4: pass\n"
    monitor("--json-file", str(report), "--", sys.executable, "-c", alone + BURN.format(threads=2, cpu_s=1.5))
    usage = json.loads(report.read_text())["usage"]
    assert usage["threads_working"] == 2


def test_what_it_saw_is_what_wait4_says(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    code = BURN.format(threads=2, cpu_s=1.5)
    done = monitor("--interval", "0.2", "--json-file", str(report), "--", sys.executable, "-c", code)
    seen = json.loads(report.read_text())
    assert done.returncode == seen["exit_status"] == 0
    usage = seen["usage"]
    assert usage["cpu_ns"] / 1e9 == pytest.approx(seen["wait4_cpu_s"], rel=0.01)
    assert usage["cpu_ns"] >= 3e9
    assert usage["threads_working"] == 2  # the start of the main thread is no company
    assert usage["looks"] >= 2
    assert set(usage["cpus_allowed"]) == os.sched_getaffinity(0)
    assert set(usage["cpus_seen"]) <= os.sched_getaffinity(0)
    assert usage["moments"]
    assert seen["sampling"]["samples"] > seen["sampling"]["detailed"]


def test_children_that_ended_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    burn = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    monitor("--json-file", str(report), "--", "sh", "-c", "".join(f"sh -c '{burn}'; " for _ in range(6)))
    seen = json.loads(report.read_text())
    # As their parent waited for them, a clock tick each, or as they were last seen.
    assert seen["usage"]["cpu_ns"] / 1e9 == pytest.approx(seen["wait4_cpu_s"], rel=0.01, abs=6 * 0.01)


def test_more_threads_than_omp_num_threads_is_a_finding() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = monitor("--", sys.executable, "-c", BURN.format(threads=3, cpu_s=1.0), env=environment)
    assert "threads: 1 asked (OMP_NUM_THREADS), 3 worked side by side" in done.stderr
    assert "was given 1 thread, but 3 worked; tell every threading runtime its width" in done.stderr


def test_who_asked_for_no_width_is_told_of_the_cpus() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = monitor("--", "sleep", "0.6", env=environment)
    cpus = len(os.sched_getaffinity(0))
    assert f"threads: {cpus} asked (the CPUs that it may use), 0 worked side by side" in done.stderr
    assert f"has CPUs for {cpus} thread{'s' * (cpus > 1)}, but none worked: it waits or sleeps" in done.stderr


@pytest.mark.parametrize("told", ["3", "3,2"])
def test_a_running_process_is_held_against_the_width_that_it_began_with(told: str) -> None:
    with subprocess.Popen(["sleep", "600"], env={**os.environ, "OMP_NUM_THREADS": told}) as process:
        command = [*MONITOR, "--pid", str(process.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as watching:
            wait_until_it_watches(watching.pid, process.pid)
            process.kill()
            _, said = watching.communicate()
    assert "threads: 3 asked (OMP_NUM_THREADS)" in said


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_command_that_leaves_its_mask_is_a_finding() -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    code = f"import os\nos.sched_setaffinity(0, [{second}])\n" + BURN.format(threads=1, cpu_s=0.5)
    command = ["taskset", "-c", str(first), *MONITOR, "--interval", "0.1", "--", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"was bound to CPUs {first}, but may run on " in done.stderr
    assert f" and ran on {second}: something in it sets its own mask" in done.stderr


def test_memory_over_the_grant_is_a_finding() -> None:
    code = "import time\ndata = bytearray(80 << 20)\ntime.sleep(0.6)"
    done = monitor("--interval", "0.1", "--memory", "64MiB", "--", sys.executable, "-c", code)
    assert "was granted 64 MiB, but has held " in done.stderr


def wait_until_it_watches(monitor: int, pid: int) -> None:
    """The extension keeps the files of its threads open; without it there is nothing to be seen, and 3 s must do."""
    end = time.monotonic() + (60 if native_status()[0] else 3)
    while time.monotonic() < end:
        for file in Path(f"/proc/{monitor}/fd").iterdir():
            try:
                if str(file.readlink()).startswith(f"/proc/{pid}/task/{pid}/"):
                    return
            except FileNotFoundError:
                continue
        time.sleep(0.05)


def burn_a_while(pid: int) -> None:
    process = psutil.Process(pid)
    until = process.cpu_times().user + 0.5
    while process.cpu_times().user < until:
        time.sleep(0.1)


@pytest.mark.once
def test_a_running_process_is_watched_until_it_ends_or_the_watching_is_stopped(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with subprocess.Popen([sys.executable, "-c", BURN.format(threads=1, cpu_s=60)]) as burner:
        command = [*MONITOR, "--interval", "0.1", "--json-file", str(report), "--pid", str(burner.pid)]
        for number in (signal.SIGINT, signal.SIGTERM):
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as watching:
                wait_until_it_watches(watching.pid, burner.pid)
                burn_a_while(burner.pid)
                watching.send_signal(number)
                _, told = watching.communicate()
            assert watching.returncode == 0
            assert "1 worked side by side" in told
        assert burner.poll() is None
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as watching:
            wait_until_it_watches(watching.pid, burner.pid)
            time.sleep(0.5)
            burner.kill()
            burner.wait()
            assert watching.wait(timeout=60) == 0
    seen = json.loads(report.read_text())
    assert seen["command"] is None
    assert seen["exit_status"] is None
    assert seen["usage"]["ended"]


def test_a_request_to_end_reaches_the_command() -> None:
    code = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
    code += "print(1, flush=True)\ntime.sleep(60)"
    with subprocess.Popen([*MONITOR, "--", sys.executable, "-c", code], stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.send_signal(signal.SIGINT)  # as a terminal sends to both: it is the command's to answer
        watching.send_signal(signal.SIGTERM)
        assert watching.wait(timeout=60) == 9
