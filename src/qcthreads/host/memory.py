"""Memory policies in words for whoever can make the calls, and what their refusals mean; makes no call itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from ..cpuset import NodeSet
from ..errors import (
    BindingError,
    BindingNotEnforcedError,
    BindingNotPermittedError,
    BindingNotSupportedError,
    InputError,
)
from .interface import MEMORY_KINDS, MemoryBinding, MemoryKind, MemoryPolicy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, Protocol, TypeVar

    from typing_extensions import Buffer

    _T = TypeVar("_T")
else:
    Protocol = object

_WITHOUT_NODES = ("default", "local")
_NO_NODES = NodeSet()


class Calls(Protocol):
    """The system calls: the native extension's, or those of ``memory_calls``. They raise OSError."""

    def probe_memory_policy(self) -> None:
        """Raises where policies can be neither read nor set."""

    def get_memory_policy(self) -> tuple[int, int]:
        """(kind, bits of the nodes) of the calling thread."""

    def set_memory_policy(self, kind: int, nodes: int) -> None:
        """Of the calling thread."""

    def bind_buffer(self, buffer: Buffer, kind: int, nodes: int) -> tuple[int, int]:
        """Of the pages of a buffer; the policy read back."""

    def page_nodes(self, buffer: Buffer) -> list[int]:
        """Nodes, or negative errnos."""


def _refuse(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


class NoCalls:
    """Of a system without memory policies."""

    probe_memory_policy = get_memory_policy = set_memory_policy = bind_buffer = page_nodes = staticmethod(_refuse)


class MemoryPolicies:
    """What every back end has of memory policies; ``memory_calls`` are its own. All raise a BindingError subclass."""

    memory_calls: Calls = NoCalls()

    def set_memory_policy(self, kind: MemoryKind, nodes: NodeSet = _NO_NODES) -> MemoryBinding:
        """Set the policy of the calling thread, which children inherit, and read it back."""
        policy = _checked(kind, nodes)

        def act() -> MemoryPolicy:
            self.memory_calls.set_memory_policy(MEMORY_KINDS.index(kind), nodes.bits)
            return _policy(*self.memory_calls.get_memory_policy())

        return MemoryBinding(policy, _asked(f"set the memory policy of this thread to {policy}", nodes, act))

    def get_memory_policy(self) -> MemoryPolicy:
        """The policy of the calling thread."""
        calls = self.memory_calls
        return _asked("read the memory policy of this thread", _NO_NODES, lambda: _policy(*calls.get_memory_policy()))

    def bind_buffer(self, buffer: Buffer, kind: MemoryKind, nodes: NodeSet = _NO_NODES) -> MemoryBinding:
        """Set the policy of every page that ``buffer`` touches, move those on other nodes, and read it back."""
        policy = _checked(kind, nodes)
        size = _size(buffer)
        got = _asked(
            f"set the memory policy of a buffer of {size} bytes to {policy}",
            nodes,
            lambda: _policy(*self.memory_calls.bind_buffer(buffer, MEMORY_KINDS.index(kind), nodes.bits)),
        )
        return MemoryBinding(policy, got)

    def page_nodes(self, buffer: Buffer) -> tuple[int | None, ...]:
        """The node of every page that ``buffer`` touches; ``None`` where no memory is behind it yet."""
        what = f"ask where a buffer of {_size(buffer)} bytes lies"
        found = _asked(what, _NO_NODES, lambda: self.memory_calls.page_nodes(buffer))
        return tuple(node if node >= 0 else None for node in found)


def works(calls: Calls) -> bool:
    """Whether memory policies can be set here; containers often forbid them."""
    try:
        calls.probe_memory_policy()
    except OSError:
        return False
    return True


def _checked(kind: MemoryKind, nodes: NodeSet) -> MemoryPolicy:
    if kind not in MEMORY_KINDS:
        raise InputError(f"{kind!r} is no kind of memory policy; there are {', '.join(MEMORY_KINDS)}")
    if kind in _WITHOUT_NODES and nodes:
        raise InputError(f"memory policy {kind} was asked for with nodes {nodes}, but it takes none")
    if kind not in _WITHOUT_NODES and not nodes:
        raise InputError(f"memory policy {kind} was asked for without nodes; name at least one")
    if kind == "preferred" and len(nodes) > 1:
        raise InputError(f"memory policy preferred takes one node, not {nodes}; preferred-many takes several")
    return MemoryPolicy(kind, nodes)


def _policy(kind: int, nodes: int) -> MemoryPolicy:
    if kind >= len(MEMORY_KINDS):
        raise OSError(errno.ENOTSUP, f"the kernel's memory policy number {kind} is not known")
    if MEMORY_KINDS[kind] == "preferred" and not nodes:  # how kernels before 5.14 say it
        return MemoryPolicy("local")
    return MemoryPolicy(MEMORY_KINDS[kind], NodeSet.from_bits(nodes))


def _size(buffer: Buffer) -> int:
    view = memoryview(buffer)
    if not view.nbytes or not view.c_contiguous:
        found = "an empty one" if not view.nbytes else "one in pieces"
        raise InputError(f"a contiguous buffer is needed, but this is {found}")
    return view.nbytes


def _asked(what: str, nodes: NodeSet, act: Callable[[], _T]) -> _T:
    try:
        return act()
    except OSError as error:
        raise _memory_error(error, what, nodes) from error


def _memory_error(error: OSError, what: str, nodes: NodeSet) -> BindingError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return BindingNotPermittedError(
            f"cannot {what}: the system does not permit it; containers need the capability SYS_NICE for it"
        )
    if error.errno in (errno.ENOSYS, errno.ENOTSUP):
        return BindingNotSupportedError(f"cannot {what}: this system has no memory policies; leave it at the default")
    if error.errno == errno.EINVAL:
        return BindingNotEnforcedError(
            f"cannot {what}: none of the nodes {nodes} has memory that may be used here, or this kernel does not know "
            "the kind (preferred-many needs Linux 5.15); `qcthreads topo` lists the nodes"
        )
    return BindingError(f"cannot {what}: {error}")
