"""Chooses the one back end that this platform and installation offer; decides nothing else."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from typing import TYPE_CHECKING

from ..errors import InputError, MachineError
from .build_info import native_status

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

        return DarwinHost()
    if sys.platform == "win32":
        from .windows import WindowsHost

        return WindowsHost()
    if native:
        from .linux import LinuxHost

        return LinuxHost()
    from .portable import PortableHost

    return PortableHost()


def _say_what_is_missing(host: Host) -> None:
    """Once per process: what the platform cannot do, and what is done instead."""
    if not host.capabilities.bind_process:
        import logging

        logging.getLogger("qcthreads.host").warning(
            "this platform cannot bind processes to CPUs: leases still count CPUs, "
            "and where the threads run is left to the operating system"
        )
