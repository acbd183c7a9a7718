"""The profiles of machines that were measured, one file each, per user; reads and writes them, and measures nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..cpuset import CpuSet
from ..errors import InputError, MachineError
from ..machine import Machine
from ..machine.bandwidth import DomainBandwidth, MachineProfile
from .sysfs import read_text

FORMAT = 1
"""A file of another format is not read: the machine is measured anew."""

_MODEL = re.compile(r"^(?:model name|cpu|Processor|Model)[ \t]*:[ \t]*(\S.*)$", re.MULTILINE)
_ARM_DESIGN = re.compile(r"^CPU (?:implementer|part)[ \t]*:[ \t]*(\S+)$", re.MULTILINE)
_HOW = "`qcthreads calibrate --machine` measures it"


@dataclass(frozen=True, slots=True)
class StoredProfile:
    """What there is of a machine, and where; without a profile, ``missing`` says why and what to do."""

    path: Path
    profile: MachineProfile | None
    missing: str = ""


def read_profile(
    machine: Machine, sysroot: str | None = None, environ: Mapping[str, str] | None = None
) -> StoredProfile:
    """What was stored of ``machine``; ``sysroot`` is where it was read from. Never raises for what a file holds."""
    path = profile_path(fingerprint(machine, cpu_model(sysroot)), environ)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return StoredProfile(path, _profile(document, path.stem))
    except FileNotFoundError:
        return StoredProfile(path, None, f"not measured: {_HOW}")
    except OSError as error:
        return StoredProfile(path, None, f"{path} cannot be read: {error.strerror or error}")
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        return StoredProfile(path, None, f"{path} cannot be understood ({type(error).__name__}: {error}): {_HOW} anew")


def write_profile(profile: MachineProfile, environ: Mapping[str, str] | None = None) -> Path:
    """Store it in the place of an older one, whole or not at all. Raises MachineError where that is refused."""
    path = profile_path(profile.fingerprint, environ)
    document = {"format": FORMAT, **asdict(profile)}
    for domain in document["domains"]:
        domain["cpus"] = str(domain["cpus"])
    write_document(path, document, "the profile of this machine cannot be written to")
    return path


def profile_path(name: str, environ: Mapping[str, str] | None = None) -> Path:
    """The file of the machine with this fingerprint, of this user."""
    return data_directory(environ) / "machines" / f"{name}.json"


def data_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where what was measured is kept for this user; it need not be there yet."""
    environ = os.environ if environ is None else environ
    if environ.get("XDG_DATA_HOME"):
        return Path(environ["XDG_DATA_HOME"], "qcthreads")
    if sys.platform == "win32" and environ.get("LOCALAPPDATA"):
        return Path(environ["LOCALAPPDATA"], "qcthreads")
    try:
        home = Path(environ.get("HOME") or Path.home())
    except RuntimeError:  # no HOME, and no such user: what Debian calls the home of those who have none
        home = Path("/nonexistent")
    return home / ".local" / "share" / "qcthreads"


def fingerprint(machine: Machine, model: str) -> str:
    """The same for machines whose memory need not be measured twice: equal CPUs in an equal topology.

    Of the PUs that are online; how much memory there is does not count, which a kernel says a little different each
    time that it starts.
    """
    facts = {
        "cpu": model,
        "cores": [str(core.cpus) for core in machine.cores],
        "llc": [[str(domain.cpus), domain.size_bytes] for domain in machine.llc_domains],
        "nodes": [[node.node_id, str(node.cpus), node.kind] for node in machine.numa_nodes],
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def cpu_model(sysroot: str | None = None) -> str:
    """What the system calls its CPUs; empty where it does not say."""
    text = read_text("/" if sysroot is None else sysroot, "proc/cpuinfo") or ""
    named = _MODEL.search(text)
    if named:
        return " ".join(named[1].split())
    return " ".join(dict.fromkeys(_ARM_DESIGN.findall(text))) or ("" if sysroot else platform.processor())


def _profile(document: Any, name: str) -> MachineProfile:
    """What a file holds; raises any of the errors of wrong types and values."""
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']}, and {FORMAT} is known")
    if document["fingerprint"] != name:
        raise ValueError("it is of another machine")
    model, measured_at, method = (document[field] for field in ("cpu_model", "measured_at", "method"))
    if not all(isinstance(text, str) for text in (model, measured_at, method)):
        raise TypeError("texts were expected")
    return MachineProfile(name, model, measured_at, method, tuple(_domain(entry) for entry in document["domains"]))


def _domain(entry: Any) -> DomainBandwidth:
    rates = tuple((int(cores), float(rate)) for cores, rate in entry["rates"])
    counts = [cores for cores, _ in rates]
    if not rates or counts != sorted(set(counts)) or counts[0] < 1 or not all(0 < rate < 1e18 for _, rate in rates):
        raise ValueError(f"rates {entry['rates']!r}")
    if entry["kind"] not in ("llc", "node", "machine"):
        raise ValueError(f"kind {entry['kind']!r}")
    try:
        cpus = CpuSet.parse(entry["cpus"])
    except InputError as error:
        raise ValueError(str(error)) from None
    return DomainBandwidth(entry["kind"], cpus, None if entry["node"] is None else int(entry["node"]), rates)


def write_document(path: Path, document: Mapping[str, Any], refused: str) -> None:
    """Put ``document`` in the place of the file, whole or not at all; makes its directory.

    MachineError where that is refused; its message begins with ``refused``, for example "it cannot be kept in".
    """
    try:
        _write_whole(path, json.dumps(document) + "\n")
    except OSError as error:
        raise MachineError(
            f"{refused} {path}: {error.strerror or error}; make room there, or name another directory with "
            "XDG_DATA_HOME"
        ) from error


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".new")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 (a descriptor)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)  # noqa: PTH108
        raise
