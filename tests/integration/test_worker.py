"""The worker process alone, driven by hand over its pipes, and its driver killed at any moment of its life."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from qcthreads.execution import wire
from qcthreads.host import get_host
from qcthreads.host.trees import MARK

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc and taskset what the worker is")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that has not been told anything yet."""
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "qcthreads.execution.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, MARK: "worker-test"},
        ) as process,
    ):
        yield process
        process.kill()


def begin(
    worker: subprocess.Popen[bytes],
    tmp_path: Path,
    cpus: str | None,
    nodes: str | None = None,
    path: Sequence[str] = sys.path,
) -> dict[str, object] | None:
    assert worker.stdin
    assert worker.stdout
    assert wire.skip_to_greeting(worker.stdout)
    folder = tmp_path / "run" / "w1"
    folder.mkdir(parents=True)
    start = {"sys_path": path, "pythonpath": None, "cpus": cpus, "nodes": nodes, "folder": str(folder)}
    wire.send(worker.stdin, start)
    return wire.receive(worker.stdout)


def answer(worker: subprocess.Popen[bytes], request: Mapping[str, object]) -> dict[str, Any]:
    assert worker.stdin
    assert worker.stdout
    wire.send(worker.stdin, request)
    reply = wire.receive(worker.stdout)
    assert reply is not None
    return reply


def test_the_mask_is_set_read_back_and_what_is_lost_is_said(worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    allowed = min(os.sched_getaffinity(0))
    absent = 1 + max(int(cpu.name[3:]) for cpu in Path("/sys/devices/system/cpu").glob("cpu[0-9]*"))
    answer = begin(worker, tmp_path, f"{allowed},{absent}")
    assert answer == {"bound": str(allowed), "lost": str(absent), "refused": None, "memory_refused": None}
    said = subprocess.run(["taskset", "-pc", str(worker.pid)], capture_output=True, text=True, check=True).stdout
    assert said.rstrip().endswith(f": {allowed}")
    threads, end = list[Path](), time.monotonic() + 30
    while len(threads) < 2 and time.monotonic() < end:  # the one that computes and the one that watches the driver
        threads = list(Path(f"/proc/{worker.pid}/task").iterdir())
    assert len(threads) == 2
    for thread in threads:
        assert f"Cpus_allowed_list:\t{allowed}\n" in (thread / "status").read_text()


def test_an_impossible_mask_is_refused_and_said(worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    absent = 1 + max(int(cpu.name[3:]) for cpu in Path("/sys/devices/system/cpu").glob("cpu[0-9]*"))
    answer = begin(worker, tmp_path, str(absent))
    assert answer is not None
    assert answer["bound"] is None
    assert "qcthreads limits" in str(answer["refused"])


@pytest.mark.skipif(not get_host().capabilities.bind_memory, reason="this system forbids memory policies or has none")
def test_memory_is_preferred_from_the_nodes_of_the_lease(worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    answer = begin(worker, tmp_path, None, "0")
    assert answer == {"bound": None, "lost": "", "refused": None, "memory_refused": None}
    # The stack is from before the policy was set, but has none of its own.
    maps = Path(f"/proc/{worker.pid}/numa_maps").read_text()
    assert {line.split()[1] for line in maps.splitlines() if "stack" in line or "heap" in line} == {"prefer:0"}


@pytest.mark.parametrize("nodes", ["900", "900-901"])
def test_nodes_that_are_not_there_leave_the_default_and_say_so(
    worker: subprocess.Popen[bytes], tmp_path: Path, nodes: str
) -> None:
    answer = begin(worker, tmp_path, None, nodes)
    assert answer
    assert answer["refused"] is None
    assert "cannot set the memory policy" in str(answer["memory_refused"])
    maps = Path(f"/proc/{worker.pid}/numa_maps")
    assert not maps.exists() or "prefer" not in maps.read_text()


def test_it_leaves_at_the_end_of_its_input_and_takes_its_files_along(
    worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    begin(worker, tmp_path, None)
    (tmp_path / "run" / "w1" / "left over").write_text("x")
    assert worker.stdin
    worker.stdin.close()
    assert worker.wait(30) == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("said", [b"", b"\0\0", b"\0\0\0\0\0\0\0\x10only half"])
def test_a_driver_that_ends_in_mid_word(worker: subprocess.Popen[bytes], said: bytes) -> None:
    assert worker.stdin
    worker.stdin.write(said)
    worker.stdin.close()
    assert worker.wait(30) == 0


def test_what_is_printed_goes_to_the_log_and_not_to_the_driver(
    worker: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chatty = "import os\ndef talk(_):\n    print('one')\n    os.system('echo two; cat')\n    return {'said': True}\n"
    (tmp_path / "chatty.py").write_text(chatty)
    monkeypatch.syspath_prepend(tmp_path)
    begin(worker, tmp_path, None)
    assert worker.stdin
    assert worker.stdout
    request: dict[str, object] = {
        "input": {},
        "compute": "chatty:talk",
        "program": "x",
        "harness_module": None,
        "task_config": {},
    }
    wire.send(worker.stdin, request)
    reply = wire.receive(worker.stdout)
    assert reply is not None
    assert reply["result"] == {"said": True}
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_what_qcengine_does_not_know_is_a_failure_in_its_words(worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """QCEngine answers this with a model of QCSchema version 1, whatever was asked for."""
    begin(worker, tmp_path, None)
    assert worker.stdin
    assert worker.stdout
    request: dict[str, object] = {
        "input": {},
        "compute": None,
        "program": "nosuch",
        "harness_module": None,
        "task_config": {},
    }
    wire.send(worker.stdin, request)
    reply = wire.receive(worker.stdout)
    assert reply is not None
    assert reply["status"] == "failed"
    assert "Program nosuch is not registered" in reply["error"]


def test_qcengine_is_told_the_name_of_the_processor_and_no_more(
    worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    cpuinfo = pytest.importorskip("cpuinfo", reason="QCEngine, which asks it, is not installed")
    if "model name" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this kernel does not name the processor")
    (tmp_path / "looks.py").write_text(
        "import cpuinfo, qcengine.config\n"
        "def around(input):\n"
        "    return {'told': qcengine.config.get_global('cpuinfo'), 'asked': cpuinfo.get_cpu_info()}\n"
    )
    begin(worker, tmp_path, None, path=[str(tmp_path), *sys.path])
    common: dict[str, object] = {"program": "pyscf", "harness_module": None}
    answer(worker, {"preload": [], "compute": None, **common})
    said = answer(worker, {"input": {}, "compute": "looks:around", "task_config": {}, **common})["result"]
    assert said["told"] == {"brand_raw": cpuinfo.get_cpu_info()["brand_raw"]}
    assert said["asked"]["flags"]  # whoever asks py-cpuinfo itself hears everything


@pytest.mark.once
def test_a_driver_killed_at_any_moment_leaves_no_worker(tmp_path: Path) -> None:
    """From before the first worker starts until calculations run: 12 moments over the first second."""
    (tmp_path / "tasks.py").write_text("import time\ndef nap(input):\n    time.sleep(0.05)\n    return {}\n")
    script = textwrap.dedent("""
        from pathlib import Path
        from qcthreads.execution.calculation import Calculation
        from qcthreads.execution.engine import LocalEngine
        from qcthreads.leases import process_book

        jobs = [Calculation(label=str(n), program="none", input={}, compute="tasks:nap") for n in range(1000)]
        print(flush=True)
        list(LocalEngine(process_book(), scratch=Path("scratch")).run(jobs))
    """)
    for moment in range(12):
        driver = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE)
        assert driver.stdout
        with driver.stdout as output:
            output.readline()
            time.sleep(moment / 12)
            driver.kill()
            driver.wait()
    deadline = time.monotonic() + 30
    while workers_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers_of(tmp_path) == []


def workers_of(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["environ", "status"]):
        temporary = (process.info["environ"] or {}).get("TMPDIR", "")
        if temporary.startswith(str(folder)) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found
