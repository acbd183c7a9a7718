"""Linux through the standard library and /proc alone: what linux.py does, only slower; never imports the extension."""

from __future__ import annotations

import errno
import os
import sys
from functools import cache
from typing import TYPE_CHECKING

from ..cpuset import CpuSet
from ..errors import BindingNotSupportedError
from . import memory_calls
from .binding import binding_error, name_of_thread, require_cpus
from .interface import Binding, Capabilities
from .memory import MemoryPolicies, works
from .sysfs import read_facts
from .times import psutil_thread_times, thread_times_error

_PASSES = 64  # a process that starts threads faster than this many passes over /proc can bind them is left as it is

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..machine import Machine
    from .sampling import Sampler, TimesSource


class PortableHost(MemoryPolicies):
    """Any Linux, with or without a compiler; elsewhere it can read a recorded machine and nothing more."""

    memory_calls = memory_calls

    @property
    def capabilities(self) -> Capabilities:
        """What works here."""
        linux = sys.platform == "linux"
        return Capabilities(
            back_end="portable",
            bind_thread=linux,
            bind_process=linux,
            inherit_binding=linux,
            read_binding=linux,
            bind_memory=_memory_works(),
            thread_times=linux,
            run_queue_delay=linux,
        )

    def get_affinity(self, tid: int = 0) -> CpuSet:
        """The mask of thread ``tid`` (0: the calling thread)."""
        try:
            return CpuSet.from_bits(_get(tid))
        except OSError as error:
            raise binding_error(error, name_of_thread(tid)) from error

    def set_affinity(self, cpus: CpuSet, tid: int = 0) -> Binding:
        """Bind thread ``tid`` (0: the calling thread) and read the mask back. Raises a BindingError subclass."""
        try:
            _set(tid, require_cpus(cpus))
            return Binding(cpus, CpuSet.from_bits(_get(tid)))
        except OSError as error:
            raise binding_error(error, name_of_thread(tid), cpus) from error

    def set_process_affinity(self, cpus: CpuSet, pid: int) -> Binding:
        """Bind all threads of process ``pid``, repeated until none is missed; ``got`` is the union of their masks."""
        require_cpus(cpus)
        try:
            for number in range(_PASSES):
                changed, got = _bind_all_once(cpus, pid or os.getpid(), seen=number > 0)
                if not changed:
                    break
            else:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except OSError as error:
            raise binding_error(error, f"process {pid}", cpus) from error
        return Binding(cpus, CpuSet.from_bits(got))

    def thread_times(self, pid: int) -> dict[int, int]:
        """CPU time of every thread of process ``pid`` by its number, in ns, to a clock tick."""
        try:
            return psutil_thread_times(pid)
        except OSError as error:
            raise thread_times_error(error, pid) from error

    def open_sampler(self, pids: Iterable[int], children: bool = True, source: TimesSource | None = None) -> Sampler:
        """What samples the threads of these processes, and of their descendants if ``children``."""
        from .psutil_sampler import open_python_sampler

        return open_python_sampler(self, pids, children, source)

    def read_machine(self, sysroot: str | None = None) -> Machine:
        """The machine, from the live system or from a recorded tree holding ``sys/`` and ``proc/``."""
        from .linux_machine import (
            read_linux_machine,  # with all of the machine's types, which those who only bind never need
        )

        return read_linux_machine(self, sysroot, read_facts)


@cache
def _memory_works() -> bool:
    return works(memory_calls)


def _bind_all_once(cpus: CpuSet, pid: int, *, seen: bool) -> tuple[bool, int]:
    """Whether any thread's mask had to be changed, and the union of all masks.

    A pass that changes nothing proves that none is missed: threads inherit the mask of the one that starts them. ``not
    seen``: also those bound so already are bound, for one that a cpuset leaves no more of its mask has that mask again
    with the cpuset's CPUs.
    """
    changed, got, alive = False, 0, 0
    for name in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - names, not paths
        try:
            before = after = _get(int(name))
            if not seen or before != cpus.bits:
                _set(int(name), cpus)
                after = _get(int(name))
        except ProcessLookupError:  # this thread ended meanwhile
            continue
        alive += 1
        changed |= after != before
        got |= after
    if not alive:
        raise ProcessLookupError(3, "no thread is left")
    return changed, got


if sys.platform == "linux":

    def _get(tid: int) -> int:
        return CpuSet(os.sched_getaffinity(tid)).bits

    def _set(tid: int, cpus: CpuSet) -> None:
        os.sched_setaffinity(tid, cpus)

else:

    def _get(tid: int) -> int:
        raise BindingNotSupportedError(f"cannot read the mask of thread {tid}: {sys.platform} has no call for it")

    def _set(tid: int, cpus: CpuSet) -> None:
        raise BindingNotSupportedError(f"cannot bind thread {tid} to CPUs {cpus}: {sys.platform} has no call for it")
