"""The program around the engine: however it was started, it works; however it ends, nothing of its workers is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the trees are made with setsid")

TASKS = """
    import os, subprocess, time

    def square(input):
        return {"square": input["number"] ** 2}

    def hide(input):
        subprocess.Popen(["setsid", "sh", "-c", "trap '' TERM; (setsid sleep $0 &) ; sleep $0", input["sleep"]])
        subprocess.Popen(["env", "-i", "sleep", input["sleep"]])
        time.sleep(0.3)
        open(input["ready"] + str(os.getpid()), "w").close()
        time.sleep(600)
"""

# Deliberately without a main guard: a worker that imported the script would run it again.
SCRIPT = """
    from qcthreads.execution.calculation import Calculation
    from qcthreads.execution.engine import LocalEngine
    from qcthreads.leases import process_book

    jobs = [Calculation(label=str(n), program="none", input={"number": n}, compute="tasks:square") for n in range(4)]
    with LocalEngine(process_book()) as engine:
        print(sorted(outcome.result["square"] for outcome in engine.run(jobs)))
"""

DRIVER = """
    import sys
    from pathlib import Path
    from qcthreads.execution.calculation import Calculation
    from qcthreads.execution.engine import LocalEngine
    from qcthreads.leases import process_book

    ready, scratch, sleep = sys.argv[1:]
    jobs = [
        Calculation(label=str(n), program="none", input={"ready": ready, "sleep": sleep}, compute="tasks:hide")
        for n in range(4)
    ]
    {go}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(textwrap.dedent(TASKS))
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "random.py").write_text("raise SystemExit('not the random you are looking for')")
    (tmp_path / "scratch").mkdir()
    return tmp_path


def run(*command: str, cwd: Path, standard_input: str | None = None) -> str:
    done = subprocess.run([sys.executable, *command], cwd=cwd, input=standard_input, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_script_without_a_main_guard(folder: Path) -> None:
    (folder / "random.py").unlink()
    assert run("script.py", cwd=folder) == "[0, 1, 4, 9]"
    assert run(str(folder / "script.py"), cwd=Path("/")) == "[0, 1, 4, 9]"


def test_python_c_and_standard_input(folder: Path) -> None:
    (folder / "random.py").unlink()
    script = (folder / "script.py").read_text()
    assert run("-c", script, cwd=folder) == "[0, 1, 4, 9]"
    assert run("-", cwd=folder, standard_input=script) == "[0, 1, 4, 9]"


def test_the_working_directory_cannot_shadow_a_workers_modules(folder: Path) -> None:
    """The driver is safe by -P; so must its workers be, which are started in the same directory."""
    (folder / "module").mkdir()
    (folder / "tasks.py").rename(folder / "module" / "tasks.py")
    script = f"import sys; sys.path.append({str(folder / 'module')!r})\n" + textwrap.dedent(SCRIPT)
    assert run("-P", "-c", script, cwd=folder) == "[0, 1, 4, 9]"


def test_qcthreads_found_through_sys_path_alone(folder: Path) -> None:
    """Isolated: neither an installed qcthreads nor PYTHONPATH, only what the script puts on its path."""
    import qcthreads

    (folder / "random.py").unlink()
    (folder / "home").mkdir()
    (folder / "home" / "qcthreads").symlink_to(Path(qcthreads.__file__).parent)
    (folder / "home" / "psutil").symlink_to(Path(psutil.__file__).parent)
    paths = [str(folder), str(folder / "home")]
    script = f"import sys; sys.path[:0] = {paths!r}\n" + textwrap.dedent(SCRIPT)
    done = subprocess.run(
        [sys.base_prefix + "/bin/python3", "-s", "-c", script], cwd="/", capture_output=True, text=True
    )
    assert done.stdout.strip() == "[0, 1, 4, 9]", done.stderr


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (lambda driver: driver.kill(), -signal.SIGKILL),
        (lambda driver: driver.terminate(), -signal.SIGTERM),
        (lambda driver: os.killpg(driver.pid, signal.SIGINT), -signal.SIGINT),
    ],
    ids=["kill -9", "SIGTERM", "Ctrl-C without with"],
)
def test_nothing_is_left(folder: Path, how: Callable[[subprocess.Popen[bytes]], None], code: int) -> None:
    end_driver(folder, "list(LocalEngine(process_book(), scratch=Path(scratch)).run(jobs))", how, code)


def test_a_fork_of_the_driver_does_not_keep_the_workers(folder: Path) -> None:
    go = """
import os, threading, time
def fork():
    while not list(Path(ready).parent.glob("ready*")):
        time.sleep(0.01)
    if not os.fork():
        os.close(1)
        Path(ready).with_name("forked").write_text(str(os.getpid()))
        time.sleep(600)
threading.Thread(target=fork, daemon=True).start()
list(LocalEngine(process_book(), scratch=Path(scratch)).run(jobs))
"""
    forked = folder / "forked"

    def kill(driver: subprocess.Popen[bytes]) -> None:
        until(lambda: forked.exists() and forked.read_text() != "")
        driver.kill()

    end_driver(folder, go, kill, -signal.SIGKILL, but=lambda process: str(process.pid) == forked.read_text())


def test_ctrl_c_has_ended_everything_when_the_block_is_left(folder: Path) -> None:
    go = """
try:
    with LocalEngine(process_book(), scratch=Path(scratch)) as engine:
        list(engine.run(jobs))
except KeyboardInterrupt:
    import psutil
    left = [process for process in psutil.process_iter(["cmdline"]) if sleep in (process.info["cmdline"] or ())]
    print(len(left) - 1, process_book().held())  # this process has the argument, too
    sys.exit(4)
"""
    assert end_driver(folder, go, lambda driver: os.killpg(driver.pid, signal.SIGINT), 4) == "0 ()"


def end_driver(
    folder: Path,
    go: str,
    how: Callable[[subprocess.Popen[bytes]], None],
    code: int,
    but: Callable[[psutil.Process], bool] = lambda _: False,
) -> str:
    """Start a driver whose calculations hide processes, end it, and see that they all end and their files go."""
    (folder / "random.py").unlink()
    sleep = f"{os.getpid()}.{time.monotonic_ns() % 10**9}"
    script = textwrap.dedent(DRIVER).replace("{go}", go)
    driver = subprocess.Popen(
        [sys.executable, "-c", script, str(folder / "ready"), str(folder / "scratch"), sleep],
        cwd=folder,
        stdout=subprocess.PIPE,
        start_new_session=True,  # a process group of its own, as a terminal gives to each command
    )
    try:
        until(lambda: len(list(folder.glob("ready*"))) > 0)
        assert len(named(sleep)) >= 3
        how(driver)
        output = driver.communicate(timeout=60)[0].decode().strip()
        assert driver.returncode == code
        until(lambda: [process for process in named(sleep) if not but(process)] == [])
        until(lambda: list((folder / "scratch").iterdir()) == [])
        return output
    finally:
        driver.kill()
        for process in named(sleep):
            process.kill()


def named(argument: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if argument in (process.info["cmdline"] or ()) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
