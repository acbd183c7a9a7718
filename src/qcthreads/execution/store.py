"""One SQLite file per run, in which what ended is durable before it counts; never unpickles, never computes.

On a local disk with a write-ahead log. On network file systems, where that is unsafe (sqlite.org/wal.html: all
processes must be on the same host), with a rollback journal, and with ``STORE.status.json`` beside it for readers on
other hosts.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import math
import os
import sqlite3
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, Self

from ..closing import Closing
from ..cpuset import CpuSet
from ..errors import InputError, MachineError
from ..host.cgroup import unescape
from .calculation import Outcome
from .labels import short_label

_APPLICATION_ID = 0x71635468  # "qcTh"; SQLite's header holds it, and file(1) shows it
_VERSION = 1
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
CREATE TABLE identity (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE calculation (
    position INTEGER PRIMARY KEY,
    label TEXT UNIQUE NOT NULL,
    status TEXT NOT NULL DEFAULT 'expected',
    error TEXT,
    result BLOB,
    threads INTEGER,
    cpus TEXT,
    bound TEXT,
    worker_pid INTEGER,
    started_at REAL,
    wall_s REAL,
    cpu_s REAL,
    peak_memory_bytes INTEGER,
    attempts INTEGER
);
"""
_ROW = "label, status, error, threads, cpus, bound, worker_pid, started_at, wall_s, cpu_s, peak_memory_bytes, attempts"
_COLUMNS = ["label", "name", *_ROW.split(", ")[1:]]
_NETWORK = (
    "nfs",
    "lustre",
    "gpfs",
    "beegfs",
    "cifs",
    "smb",
    "ceph",
    "panfs",
    "afs",
    "9p",
    "orangefs",
    "fuse.",
    "virtiofs",
)


class StoreReader(Closing):
    """A store opened for reading, also while its run goes on; see :func:`open_store`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._database = _connect(path)

    def status(self) -> dict[str, int]:
        """``total``, ``finished``, ``failed`` and ``running`` (started and not ended) calculations."""
        counts = dict(self._query("SELECT status, count(*) FROM calculation GROUP BY status"))
        running = counts.get("running", 0) if self._is_written() else 0
        return {
            "total": sum(counts.values()),
            "finished": counts.get("finished", 0),
            "failed": counts.get("failed", 0),
            "running": running,
        }

    def failures(self) -> dict[str, str]:
        """Label -> what its program said."""
        return dict(self._query("SELECT label, error FROM calculation WHERE status = 'failed' ORDER BY position"))

    def results(self) -> dict[str, dict[str, Any]]:
        """Label -> QCSchema AtomicResult data, of all that finished."""
        query = "SELECT label, result FROM calculation WHERE status = 'finished' ORDER BY position"
        return {label: _unpack(result) for label, result in self._query(query)}

    def rows(self) -> list[dict[str, Any]]:
        """One flat row per calculation, in the order in which they were expected, with its energy."""
        found = []
        for *values, result in self._query(f"SELECT {_ROW}, result FROM calculation ORDER BY position"):
            row = _row(values)
            value = _unpack(result).get("return_result") if result is not None else None
            row["energy_hartree"] = value if isinstance(value, int | float) else None
            found.append(row)
        return found

    def labels(self) -> list[str]:
        """Of all calculations, in the order in which they were expected."""
        return [label for (label,) in self._query("SELECT label FROM calculation ORDER BY position")]

    def finished(self) -> set[str]:
        """Labels of the calculations that have a result."""
        return {label for (label,) in self._query("SELECT label FROM calculation WHERE status = 'finished'")}

    def show(self, label: str) -> dict[str, Any]:
        """Everything held about one calculation, ``result`` included. Raises InputError for an unknown label."""
        for *values, result in self._query(f"SELECT {_ROW}, result FROM calculation WHERE label = ?", label):
            row = _row(values)
            return {**row, "result": None if result is None else _unpack(result)}
        labels = [known for (known,) in self._query("SELECT label FROM calculation ORDER BY position LIMIT 3")]
        raise InputError(
            f"no calculation {label!r} in {self.path}; there are, for example: {', '.join(labels) or 'none yet'}"
        )

    def identity(self) -> dict[str, Any]:
        """What was being computed, as given to :meth:`Store.create`."""
        return {key: json.loads(value) for key, value in self._query("SELECT key, value FROM identity ORDER BY key")}

    def export(self, to: Literal["csv", "json", "zip"], path: Path) -> None:
        """Write ``path``: a row (csv), an object (json) or a file (zip) per calculation. NaN becomes null."""
        if to == "csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                _write_csv(self.rows(), file)
        elif to == "json":
            document = {"identity": self.identity(), "status": self.status(), "calculations": list(self._everything())}
            path.write_text(_strict_json(document) + "\n", encoding="utf-8")
        elif to == "zip":
            self._write_zip(path)
        else:
            raise InputError(f"a store can be exported to csv, json or zip, not to {to!r}")

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._database.close()

    def _is_written(self) -> bool:
        """Whether a run holds the store: what one that was killed had started runs no more."""
        probe = _WriterLock(self.path)
        free = probe.take(shared=True)
        probe.release()
        return not free

    def _query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, _explained(self.path):
            return self._database.execute(sql, values).fetchall()

    def _everything(self) -> Iterator[dict[str, Any]]:
        for label in self.labels():
            yield self.show(label)

    def _write_zip(self, path: Path) -> None:
        index = []
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, row in enumerate(self._everything(), 1):
                result = row.pop("result")
                row["file"] = f"{number:06d}.json" if result is not None else None  # labels make no file names
                if result is not None:
                    archive.writestr(row["file"], _strict_json(result))
                index.append(row)
            document = {"identity": self.identity(), "status": self.status(), "calculations": index}
            archive.writestr("index.json", _strict_json(document))


class Store(StoreReader):
    """The store of a run that goes on; its only writer, by a lock that the kernel takes back when the process ends."""

    def __init__(self, path: Path, writer: _WriterLock) -> None:
        """Use :meth:`create` or :meth:`resume`."""
        super().__init__(path)
        self._writer = writer
        self._network = _on_network(path)
        with _explained(path):
            self._database.execute("PRAGMA query_only = OFF")
            self._database.execute(f"PRAGMA journal_mode = {'DELETE' if self._network else 'WAL'}")

    @classmethod
    def create(cls, path: Path, identity: Mapping[str, Any]) -> Store:
        """A new store. ``identity``: what is being computed, as plain data (molecule, method, basis, keywords, ...).

        Raises InputError when there is something at ``path`` already.
        """
        with _WriterLock(path).held_if_all_goes_well() as writer:
            if path.exists():
                raise InputError(
                    f"there is a file {path} already; give --resume to compute what it lacks, or another name"
                )
            # Under another name until it is whole: a store that is there can always be resumed.
            new = path.with_name(path.name + ".new")
            new.unlink(missing_ok=True)
            with _explained(path), contextlib.closing(sqlite3.connect(new)) as database:
                database.executescript(_SCHEMA)
                database.executemany("INSERT INTO identity VALUES (?, ?)", _identity_rows(identity))
                database.commit()
            new.replace(path)
            _make_durable(path.parent)
            return cls(path, writer)

    @classmethod
    def resume(cls, path: Path, identity: Mapping[str, Any]) -> Store:
        """A store that is there, to go on with what it lacks. Raises InputError when it is of something else."""
        if not path.is_file():
            raise InputError(f"there is no store {path} to resume; leave --resume out to begin one")
        with _WriterLock(path).held_if_all_goes_well() as writer:
            with StoreReader(path) as reader:
                there = dict(reader._query("SELECT key, value FROM identity"))
            asked = dict(_identity_rows(identity))
            differing = sorted(key for key in {*there, *asked} if there.get(key) != asked.get(key))
            if differing:
                raise InputError(
                    f"{path} holds something else: {_differences(differing, there, asked)}; use another store"
                )
            store = cls(path, writer)
            store._nothing_runs()
            return store

    def expect(self, labels: Iterable[str]) -> None:
        """Say which calculations the run consists of; those known already stay as they are."""
        with self._changing() as database:
            database.executemany("INSERT OR IGNORE INTO calculation (label) VALUES (?)", [(label,) for label in labels])

    def started(self, label: str) -> None:
        """A calculation runs from now on."""
        with self._changing(durable=False) as database:
            database.execute("INSERT OR IGNORE INTO calculation (label) VALUES (?)", (label,))
            database.execute(
                "UPDATE calculation SET status = 'running', started_at = ? WHERE label = ?", (time.time(), label)
            )

    def record(self, outcome: Outcome) -> None:
        """A calculation has ended; on return that is on the disk, whatever happens to us or to the machine."""
        values = {
            "label": outcome.label,
            "status": outcome.status,
            "error": outcome.error,
            "result": None if outcome.result is None else _pack(outcome.result),
            "threads": outcome.threads,
            "cpus": str(outcome.cpus),
            "bound": None if outcome.bound is None else str(outcome.bound),
            "worker_pid": outcome.worker_pid,
            "started_at": outcome.started_at,
            "wall_s": outcome.wall_s,
            "cpu_s": outcome.cpu_s,
            "peak_memory_bytes": outcome.peak_memory_bytes,
            "attempts": outcome.attempts,
        }
        names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
        updates = ", ".join(f"{name} = excluded.{name}" for name in values)
        with self._changing() as database:
            database.execute(
                f"INSERT INTO calculation ({names}) VALUES ({places}) ON CONFLICT (label) DO UPDATE SET {updates}",
                values,
            )

    def close(self) -> None:
        """Close the file and let others write; a second call does nothing."""
        try:
            if self._writer.is_held:
                self._nothing_runs()
                with self._lock, contextlib.suppress(sqlite3.Error):
                    # One plain file again, to be copied or read where nothing may be written; not while others read it.
                    self._database.execute("PRAGMA busy_timeout = 0")
                    self._database.execute("PRAGMA journal_mode = DELETE")
        finally:
            super().close()
            self._writer.release()

    def _nothing_runs(self) -> None:
        with self._changing() as database:
            database.execute("UPDATE calculation SET status = 'expected', started_at = NULL WHERE status = 'running'")

    @contextlib.contextmanager
    def _changing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction; what is not ``durable`` may be lost with the machine, though never with the process."""
        with self._lock, _explained(self.path):
            self._database.execute(f"PRAGMA synchronous = {'FULL' if durable or self._network else 'NORMAL'}")
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
        if self._network:
            _replace(self.path.with_name(self.path.name + ".status.json"), json.dumps(self.status()))


def open_store(path: str | os.PathLike[str]) -> StoreReader:
    """Open the store of a run for reading. Raises InputError when ``path`` is no store, or one of another version."""
    return StoreReader(Path(path))


def _connect(path: Path) -> sqlite3.Connection:
    """Open what must be one of our stores. Not read-only: a reader, too, writes the index of a write-ahead log."""
    if not path.is_file():
        raise InputError(f"there is no store {path}; give the file that was given to --store")
    with _explained(path):
        database = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=60, check_same_thread=False
        )
        try:
            database.execute("PRAGMA query_only = ON")
            kind = database.execute("PRAGMA application_id").fetchone()[0]
            version = database.execute("PRAGMA user_version").fetchone()[0]
            _check_kind(path, kind, version)
        except BaseException:
            database.close()
            raise
    return database


def _check_kind(path: Path, kind: int, version: int) -> None:
    if kind != _APPLICATION_ID:
        raise InputError(f"{path} is not a store of qcthreads; give the file that was given to --store")
    if version != _VERSION:
        raise InputError(
            f"{path} is a store of version {version}, and this qcthreads reads version {_VERSION}; "
            "use the qcthreads that wrote it"
        )


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise MachineError(
            f"the store {path} cannot be used: {error}; is the disk full, or may it not be written? "
            "What it holds remains"
        ) from error
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path} is not a store of qcthreads, or it is damaged: {error}") from error


def _identity_rows(identity: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(key), json.dumps(value, sort_keys=True)) for key, value in identity.items()]


def _differences(keys: list[str], there: Mapping[str, str], asked: Mapping[str, str]) -> str:
    words = []
    for key in keys:
        old, new = there.get(key, "not given"), asked.get(key, "not given")
        # A molecule is too long to be read in a message.
        words.append(f"{key} is {old} there, {new} here" if len(old) + len(new) < 160 else f"another {key}")
    return ", ".join(words)


class _WriterLock:
    """The right to write to a store: a lock on ``STORE.lock``, which the kernel takes back from a process that ends.

    On a file of its own: network file systems turn flock into locks that collide with those of SQLite on its file.
    """

    def __init__(self, path: Path) -> None:
        self._store = path
        self._path = path.with_name(path.name + ".lock")
        self._file: IO[bytes] | None = None
        self._shared = False

    @property
    def is_held(self) -> bool:
        return self._file is not None

    def take(self, *, shared: bool = False) -> bool:
        """Lock it now; false when another holds it. ``shared``: only to see whether anybody writes."""
        while True:
            try:
                file = self._path.open("rb" if shared else "a+b")
            except OSError:
                if shared:
                    return True
                raise
            if not _lock(file, shared=shared):
                file.close()
                return False
            try:
                if shared or os.fstat(file.fileno()).st_ino == self._path.stat().st_ino:
                    self._file, self._shared = file, shared
                    return True
            except FileNotFoundError:
                pass
            file.close()  # its last holder removed it meanwhile

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        if self._file is not None:
            if not self._shared:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def held_if_all_goes_well(self) -> Iterator[Self]:
        """Locked from here on, unless the block raises.

        Raises InputError when another run holds it or its directory is not there, MachineError where none can be made.
        """
        try:
            for _ in range(5):  # somebody may look for an instant whether anybody writes
                if self.take():
                    break
                time.sleep(0.05)
            else:
                raise InputError(
                    f"another run is writing to {self._store}; wait until it has ended, or use another store"
                )
        except OSError as error:
            folder = self._store.absolute().parent
            if not folder.is_dir():
                raise InputError(
                    f"no store can be written at {self._store}: there is no directory {folder}; make it"
                ) from None
            # In /proc the kernel says of a file that it cannot make that it is not there.
            why = "no file can be made there" if error.errno == errno.ENOENT else error.strerror
            raise MachineError(
                f"no store can be written at {self._store}: {why}; give a file in a directory of yours"
            ) from None
        try:
            yield self
        except BaseException:
            self.release()
            raise


def _lock(file: IO[bytes], *, shared: bool) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _make_durable(folder: Path) -> None:
    """What was renamed in ``folder`` outlives a crash of the machine."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _on_network(path: Path) -> bool:
    """Whether ``path`` lies on a file system that other hosts share, or on none that can be told."""
    if sys.platform != "linux":
        return False
    where = path.absolute().resolve()
    found, depth = "", -1
    with contextlib.suppress(OSError), Path("/proc/self/mounts").open("rb") as mounts:
        for line in mounts:
            _, point, kind, *_ = os.fsdecode(line).split(" ")
            mounted = Path(unescape(point))
            if where.is_relative_to(mounted) and len(mounted.parts) >= depth:
                found, depth = kind, len(mounted.parts)
    return not found or found.startswith(_NETWORK)


def _pack(result: Mapping[str, Any]) -> bytes:
    return zlib.compress(json.dumps(result, separators=(",", ":")).encode(), level=3)


def _unpack(packed: bytes) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(zlib.decompress(packed))
    return result


def _row(values: list[Any]) -> dict[str, Any]:
    """``_COLUMNS`` from the values of ``_ROW``; sets of CPUs as lists of numbers."""
    label, *rest = values
    row = dict(zip(_COLUMNS, [label, short_label(label), *rest], strict=True))
    for name in ("cpus", "bound"):
        row[name] = None if row[name] is None else list(CpuSet.parse(row[name]))
    return row


def _write_csv(rows: list[dict[str, Any]], file: IO[str]) -> None:
    """CPUs joined by ``+``: a spreadsheet takes the ``1-2`` of a list of CPUs for the second of January."""
    writer = csv.DictWriter(file, [*_COLUMNS, "energy_hartree"])
    writer.writeheader()
    for row in rows:
        joined = {name: None if row[name] is None else "+".join(map(str, row[name])) for name in ("cpus", "bound")}
        writer.writerow(row | joined)


def _strict_json(document: object) -> str:
    """JSON that every reader takes: NaN and infinities become null."""
    return json.dumps(_without_nan(document), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def _replace(path: Path, text: str) -> None:
    """Readers see the old text or the new one."""
    new = path.with_name(path.name + ".new")
    new.write_text(text + "\n", encoding="utf-8")
    new.replace(path)
