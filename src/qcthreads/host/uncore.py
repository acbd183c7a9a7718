"""The memory controllers' own counters, through perf_event_open; of everything on the node, never of a process."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import re
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..cpuset import CpuSet
from ..errors import InputError, MachineError

# From the kernel's arch/*/*/syscalls/*.tbl and scripts/syscall.tbl.
_NUMBERS = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "loongarch64": 241, "ppc64le": 319, "s390x": 331}
_CLOSE_ON_EXEC = 1 << 3  # PERF_FLAG_FD_CLOEXEC
_ATTRIBUTE = struct.Struct("=IIQQQQQIIQ")  # struct perf_event_attr as it was first (PERF_ATTR_SIZE_VER0), 64 bytes
_ANY_PROCESS = -1

# How Intel's drivers call what a controller reads and writes (drivers/perf and arch/x86/events/intel/uncore*.c): of
# servers, of desktops, of desktops with counters that run freely.
_EVENTS = (("cas_count_read", "cas_count_write"), ("data_reads", "data_writes"), ("data_read", "data_write"))
_UNITS = {"MiB": 1024**2, "Bytes": 1, "": 1}


@dataclass(frozen=True, slots=True)
class _Event:
    """One counter of one controller."""

    pmu_type: int
    config: int
    cpu: int
    """Where the kernel wants it to be read."""
    bytes_each: float


class UncoreCounter:
    """All memory controllers together, from now on.

    Raises MachineError where there are none, or they may not be read.
    """

    scope: Literal["node"] = "node"
    source: Literal["uncore"] = "uncore"

    def __init__(self, sysroot: str = "/") -> None:
        events = _events(Path(sysroot, "sys/bus/event_source/devices"))
        if not events:
            raise MachineError("the kernel shows no counters of memory controllers (uncore_imc)")
        self._open: list[tuple[int, float]] = []
        try:
            for event in events:
                self._open.append((_perf_event_open(event), event.bytes_each))
        except OSError as error:
            self.close()
            raise MachineError(
                f"the memory controllers' counters may not be read ({error.strerror}): it takes the capability "
                "PERFMON, or 0 or less in /proc/sys/kernel/perf_event_paranoid"
            ) from error

    def read_bytes(self) -> int:
        """Since they were opened."""
        return round(sum(int.from_bytes(os.read(fd, 8), sys.byteorder) * each for fd, each in self._open))

    def add(self, tids: Iterable[int]) -> None:
        """They are counted already."""

    def close(self) -> None:
        """Close the counters."""
        while self._open:
            with contextlib.suppress(OSError):
                os.close(self._open.pop()[0])


def _events(devices: Path) -> list[_Event]:
    """Reads and writes of every controller; a controller that does not tell of both is left out."""
    found = []
    for device in sorted(devices.glob("uncore_imc*")):
        for names in _EVENTS:
            try:
                found += [_event(device, name, cpu) for name in names for cpu in _cpus(device)]
                break
            except (OSError, ValueError, KeyError, InputError):
                continue
    return found


def _cpus(device: Path) -> CpuSet:
    """One of each package."""
    return CpuSet.parse((device / "cpumask").read_text(encoding="ascii").strip())


def _event(device: Path, name: str, cpu: int) -> _Event:
    def told(file: str) -> str:
        return (device / file).read_text(encoding="ascii").strip()

    config = 0
    for term in told(f"events/{name}").split(","):
        key, _, value = term.partition("=")
        config |= _placed(told(f"format/{key}"), int(value or "1", 0))
    each = float(told(f"events/{name}.scale")) * _UNITS[told(f"events/{name}.unit")]
    return _Event(int(told("type")), config, cpu, each)


def _placed(form: str, value: int) -> int:
    """``value`` in the bits that a format names: ``config:8-15``, or in pieces ``config:0-7,32-35``."""
    if not re.fullmatch(r"config:\d+(-\d+)?(,\d+(-\d+)?)*", form):
        raise ValueError(form)
    config = 0
    for part in form.removeprefix("config:").split(","):
        first, last = int(part.split("-")[0]), int(part.split("-")[-1])
        width = last - first + 1
        config |= (value & (1 << width) - 1) << first
        value >>= width
    return config


def _perf_event_open(event: _Event) -> int:
    number = _NUMBERS.get(platform.machine())
    if sys.platform != "linux" or number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    attribute = ctypes.create_string_buffer(
        _ATTRIBUTE.pack(event.pmu_type, _ATTRIBUTE.size, event.config, 0, 0, 0, 0, 0, 0, 0), _ATTRIBUTE.size
    )
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    numbers = (ctypes.c_long(value) for value in (_ANY_PROCESS, event.cpu, -1, _CLOSE_ON_EXEC))
    descriptor = call(ctypes.c_long(number), attribute, *numbers)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(descriptor)
