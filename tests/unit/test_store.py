"""The store: what is recorded is there after any death, one writer at a time, and clear words for everything else."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import zipfile
from pathlib import Path

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import InputError, MachineError
from qcthreads.execution import store as store_module
from qcthreads.execution.calculation import Outcome
from qcthreads.execution.store import Store, open_store

IDENTITY = {"molecule": "abc123", "method": "mp2", "basis": "cc-pvdz", "keywords": {"frozen_core": True}}


def outcome(label: str, *, error: str | None = None, energy: float = -1.5) -> Outcome:
    return Outcome(
        label=label,
        status="failed" if error else "finished",
        result=None if error else {"return_result": energy, "extras": {"many": [1.0] * 1000, "nothing": math.nan}},
        error=error,
        threads=2,
        cpus=CpuSet([0, 1]),
        bound=CpuSet([0, 1]),
        worker_pid=4711,
        started_at=1.0e9,
        wall_s=1.25,
        cpu_s=2.5,
        peak_memory_bytes=12345,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.store"


def test_status_follows_the_run_while_it_goes_on(path: Path) -> None:
    with Store.create(path, IDENTITY) as store, open_store(path) as reader:
        store.expect(["a", "b", "c", "d"])
        store.started("a")
        store.started("b")
        assert reader.status() == {"total": 4, "finished": 0, "failed": 0, "running": 2}
        store.record(outcome("a"))
        store.record(outcome("b", error="SCF did not converge"))
        assert reader.status() == {"total": 4, "finished": 1, "failed": 1, "running": 0}
        assert reader.failures() == {"b": "SCF did not converge"}
        assert store.results().keys() == {"a"}


def test_everything_that_was_recorded_is_read_again(path: Path) -> None:
    with Store.create(path, IDENTITY) as store:
        store.expect(['["mp2", [1, 2], [1, 2]]', "other"])
        store.record(outcome('["mp2", [1, 2], [1, 2]]', energy=-76.1))
    with open_store(path) as reader:
        shown = reader.show('["mp2", [1, 2], [1, 2]]')
        assert shown["result"]["return_result"] == -76.1
        assert math.isnan(shown["result"]["extras"]["nothing"])
        assert shown["cpus"] == [0, 1]
        assert shown["bound"] == [0, 1]
        assert shown["threads"] == 2
        assert shown["peak_memory_bytes"] == 12345
        assert reader.show("other")["status"] == "expected"
        assert reader.identity() == IDENTITY
        assert [row["energy_hartree"] for row in reader.rows()] == [-76.1, None]
        with pytest.raises(InputError, match="no calculation 'nowhere'"):
            reader.show("nowhere")


def test_a_store_that_exists_is_not_overwritten(path: Path) -> None:
    Store.create(path, IDENTITY).close()
    with pytest.raises(InputError, match="--resume"):
        Store.create(path, IDENTITY)
    path.with_name("other").write_text("mine")
    with pytest.raises(InputError, match="--resume"):
        Store.create(path.with_name("other"), IDENTITY)
    assert path.with_name("other").read_text() == "mine"


def test_resume_keeps_what_ended_and_names_what_differs(path: Path) -> None:
    with Store.create(path, IDENTITY) as store:
        store.expect(["a", "b"])
        store.record(outcome("a"))
        store.started("b")
    with pytest.raises(InputError, match='basis is "cc-pvdz" there, "sto-3g" here'):
        Store.resume(path, {**IDENTITY, "basis": "sto-3g"})
    with pytest.raises(InputError, match="bsse is not given there"):
        Store.resume(path, {**IDENTITY, "bsse": "cp"})
    with pytest.raises(InputError, match="another molecule"):
        Store.resume(path, {**IDENTITY, "molecule": "x" * 1000})
    with Store.resume(path, dict(reversed(IDENTITY.items()))) as store:
        store.expect(["a", "b"])
        assert store.results().keys() == {"a"}
        assert store.status() == {"total": 2, "finished": 1, "failed": 0, "running": 0}
    with pytest.raises(InputError, match="no store"):
        Store.resume(path.with_name("nowhere"), IDENTITY)


def test_a_failure_is_replaced_by_a_later_success(path: Path) -> None:
    with Store.create(path, IDENTITY) as store:
        store.record(outcome("a", error="no"))
        store.record(outcome("a"))
        assert store.status() == {"total": 1, "finished": 1, "failed": 0, "running": 0}
        assert store.failures() == {}


def test_what_is_no_store_is_named(path: Path) -> None:
    for content in (b"", b"not a database at all, but long enough to be looked at as one" * 100):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a store of qcthreads"):
            open_store(path)
        with pytest.raises(InputError, match="is not a store of qcthreads"):
            Store.resume(path, IDENTITY)
    path.unlink()
    with pytest.raises(InputError, match="there is no store"):
        open_store(path)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE calculation (label)")
    database.close()
    with pytest.raises(InputError, match="is not a store of qcthreads"):
        open_store(path)
    with pytest.raises(InputError, match="no store can be written"):
        Store.create(path.parent / "nowhere" / "run.store", IDENTITY)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc, where even root can make no file")
def test_where_no_file_can_be_made_is_told_without_the_systems_words() -> None:
    with pytest.raises(MachineError, match=r"no store can be written at /proc/run\.store: no file") as refused:
        Store.create(Path("/proc/run.store"), IDENTITY)
    assert "Errno" not in str(refused.value)
    assert ".lock" not in str(refused.value)


def test_another_version_is_named(path: Path) -> None:
    Store.create(path, IDENTITY).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(InputError, match="version 99"):
        open_store(path)


def test_a_closed_store_is_one_plain_file(path: Path) -> None:
    with Store.create(path, IDENTITY) as store:
        store.record(outcome("a"))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    database.close()


def test_the_second_writer_is_refused(path: Path) -> None:
    with Store.create(path, IDENTITY) as store:
        script = "import sys; from pathlib import Path; from qcthreads.execution.store import Store; "
        script += "Store.resume(Path(sys.argv[1]), {})"
        second = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
        assert "another run is writing" in second.stderr
        with pytest.raises(InputError, match="another run is writing"):
            Store.resume(path, IDENTITY)
        store.record(outcome("a"))
    Store.resume(path, IDENTITY).close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kill -9")
def test_after_kill_9_there_are_whole_results_and_no_lock(path: Path) -> None:
    script = textwrap.dedent(f"""
        from pathlib import Path
        from test_store import IDENTITY, outcome
        from qcthreads.execution.store import Store
        store = Store.create(Path({str(path)!r}), IDENTITY)
        store.expect(map(str, range(100000)))
        for number in range(100000):
            store.started(str(number))
            store.record(outcome(str(number), energy=float(number)))
            print(number, flush=True)
    """)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert writer.stdout
    with writer.stdout as lines:
        for _ in range(50):
            acknowledged = int(lines.readline())
        writer.kill()
        acknowledged = max([acknowledged, *(int(line) for line in lines if line.endswith(b"\n"))])
    assert writer.wait() == -signal.SIGKILL
    with open_store(path) as reader:
        results = reader.results()
        assert [result["return_result"] for result in results.values()] == [
            float(number) for number in range(len(results))
        ]
        assert len(results) in (acknowledged + 1, acknowledged + 2)
        assert reader.status() == {"total": 100000, "finished": len(results), "failed": 0, "running": 0}
    with Store.resume(path, IDENTITY) as store:
        store.record(outcome("after"))
        assert len(store.results()) == len(results) + 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_another_user_sees_that_a_run_goes_on() -> None:
    script = "import fcntl, os, sys; from qcthreads.execution.store import open_store; os.setuid(65534)\n"
    script += "with open_store(sys.argv[1]) as reader: print(reader.status())"
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        Path(folder).chmod(0o755)
        path = Path(folder) / "run.store"
        with Store.create(path, IDENTITY) as store:
            store.started("a")
            seen = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
            assert seen.stdout == "{'total': 1, 'finished': 0, 'failed': 0, 'running': 1}\n", seen.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="mounts are Linux's")
def test_the_kind_of_a_file_system_with_an_odd_name_is_found(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount anything")
    script = "import sys; from pathlib import Path; from qcthreads.execution import store\n"
    script += "store._NETWORK = ('ramfs',); print([store._on_network(Path(path)) for path in sys.argv[1:]])"
    odd = tmp_path / "na\u00efve caf\u00e9\\040"
    odd.mkdir()
    mount = 'mount -t ramfs none "$2" && exec "$0" -c "$1" "$2/a" "$2.b"'
    told = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, sys.executable, script, odd], capture_output=True, text=True
    )
    assert told.stdout == "[True, False]\n", told.stderr


def test_a_file_system_of_the_network_kind_gets_a_rollback_journal_and_a_status_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real kind of the file system under ``path`` is declared a network's, for want of an NFS server."""
    if sys.platform != "linux":
        pytest.skip("the kind of a file system is asked on Linux only")
    kind = subprocess.run(["stat", "-f", "-c", "%T", path.parent], capture_output=True, text=True, check=True).stdout
    mounts = {line.split()[2] for line in Path("/proc/self/mounts").read_text().splitlines()}
    monkeypatch.setattr(store_module, "_NETWORK", tuple(found for found in mounts if found[:3] == kind[:3]))
    with Store.create(path, IDENTITY) as store:
        store.expect(["a", "b"])
        store.record(outcome("a"))
        assert not path.with_name("run.store-wal").exists()
        status = json.loads(path.with_name("run.store.status.json").read_text())
        assert status == {"total": 2, "finished": 1, "failed": 0, "running": 0} == store.status()


def test_many_threads_record_at_once(path: Path) -> None:
    with Store.create(path, IDENTITY) as store:

        def record_five(name: int) -> None:
            for number in range(5):
                store.record(outcome(f"{name}-{number}"))

        threads = [threading.Thread(target=record_five, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.status()["finished"] == 40


def test_exports(path: Path, tmp_path: Path) -> None:
    with Store.create(path, IDENTITY) as store:
        store.expect(["a", "b", "c"])
        store.record(outcome("a", energy=-2.5))
        store.record(outcome("b", error='said "no",\nand ended'))
    with open_store(path) as reader:
        reader.export("csv", tmp_path / "out.csv")
        reader.export("json", tmp_path / "out.json")
        reader.export("zip", tmp_path / "out.zip")
        with pytest.raises(InputError, match="not to 'pdf'"):
            reader.export("pdf", tmp_path / "out.pdf")  # type: ignore[arg-type]
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["a", "b", "c"]
    assert float(rows[0]["energy_hartree"]) == -2.5
    assert [row["cpus"] for row in rows] == ["0+1", "0+1", ""]  # a spreadsheet would make a date of 1-2
    assert rows[1]["error"] == 'said "no",\nand ended'
    document = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert document["identity"] == IDENTITY
    assert document["status"]["total"] == 3
    assert document["calculations"][0]["result"]["extras"]["nothing"] is None
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.testzip() is None
        index = json.loads(archive.read("index.json"))
        assert json.loads(archive.read(index["calculations"][0]["file"]))["return_result"] == -2.5
        assert sorted(archive.namelist()) == ["000001.json", "index.json"]


def test_a_reader_never_writes(path: Path) -> None:
    Store.create(path, IDENTITY).close()
    with open_store(path) as reader, pytest.raises(Exception, match="readonly"):
        reader._database.execute("DELETE FROM identity")


def test_durability_is_asked_for(path: Path) -> None:
    with Store.create(path, IDENTITY) as store:
        store.record(outcome("a"))
        assert store._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
