"""Chooses the one back end that this platform and installation offer; decides nothing else."""

from __future__ import annotations

import os
import sys
from functools import lru_cache

from ..errors import InputError, MachineError
from .build_info import native_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine import Machine
    from .interface import Host


def get_host() -> Host:
    """The back end of this process, made once.

    ``QCTHREADS_BACKEND=native`` or ``portable`` forces one; otherwise the native one where it was built.

    Raises
    ------
    InputError
        ``QCTHREADS_BACKEND`` names no back end.
    MachineError
        The back end asked for is not available here; the message says why.
    """
    return _host(os.environ.get("QCTHREADS_BACKEND", ""))


def read_machine(sysroot: str | None = None) -> Machine:
    """The machine, from the live system or from a recorded tree holding ``sys/`` and ``proc/``."""
    return get_host().read_machine(sysroot)


@lru_cache(maxsize=8)
def _host(wanted: str) -> Host:
    if wanted not in ("", "native", "portable"):
        raise InputError(f"QCTHREADS_BACKEND={wanted!r} names no back end; write native or portable, or leave it out")
    available, reason = native_status()
    if wanted == "native" and not available:
        raise MachineError(f"QCTHREADS_BACKEND=native was asked for, but the native extension cannot be used: {reason}")
    host = _platform_host(native=available and wanted != "portable")
    _say_what_is_missing(host)
    return host


def _platform_host(*, native: bool) -> Host:
    if sys.platform == "darwin":
        from .darwin import DarwinHost

        if native:
            from . import _native

            return DarwinHost(_native)
        return DarwinHost()
    if sys.platform == "win32":
        from .windows import WindowsHost

        if native:
            from . import _native

            return WindowsHost(_native)
        return WindowsHost()
    if native and sys.platform == "linux":
        from .linux import LinuxHost

        return LinuxHost()
    from .portable import PortableHost

    return PortableHost()


def _say_what_is_missing(host: Host) -> None:
    """Once per process, in one line: what cannot be done here, and what is done instead."""
    missing = []
    if not host.capabilities.bind_process:
        missing.append(
            "processes cannot be bound to CPUs: leases still count CPUs, "
            "and where the threads run is left to the operating system"
        )
    elif not host.capabilities.bind_thread:
        missing.append("only whole processes can be bound, and only where there is one processor group of 64 CPUs")
    if not host.capabilities.thread_times:
        missing.append("the CPU times of other processes' threads are not told: those of the processes count")
    if missing:
        import logging

        available, reason = native_status()
        why = "" if available else f" without the native extension ({reason})"
        logging.getLogger("qcthreads.host").warning("on this platform%s %s", why, "; ".join(missing))
