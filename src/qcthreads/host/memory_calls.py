"""The system calls of csrc/linux_mempolicy.c through ctypes, for installations without the extension."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

# mbind, get_mempolicy, set_mempolicy, move_pages, from the kernel's arch/*/*/syscalls/*.tbl and scripts/syscall.tbl.
_NUMBERS = {
    "x86_64": (237, 239, 238, 279),
    "aarch64": (235, 236, 237, 239),
    "riscv64": (235, 236, 237, 239),
    "loongarch64": (235, 236, 237, 239),
    "ppc64le": (259, 260, 261, 301),
    "ppc64": (259, 260, 261, 301),
    "s390x": (268, 269, 270, 310),
}
_MBIND, _GET, _SET, _MOVE = range(4)

_FLAG_ADDRESS = _FLAG_MOVE = 1 << 1  # MPOL_F_ADDR of get_mempolicy, MPOL_MF_MOVE of mbind
_KIND_FLAGS = 7 << 13
_NO_KIND = 0x1FFF
_WORD_BITS = 64  # every platform above
_MOST_WORDS = 512  # the kernel takes no node mask wider than a page
_PAGES_AT_ONCE = 512


def probe_memory_policy() -> None:
    """Raises OSError where memory policies can be neither read nor set; changes nothing."""
    for call, arguments in ((_GET, (0, 0, 0, 0, 0)), (_SET, (_NO_KIND, 0, 0)), (_MBIND, (0, 0, _NO_KIND, 0, 0, 0))):
        try:
            _syscall(call, *arguments)
        except OSError as error:
            if error.errno != errno.EINVAL:  # what the call says of nonsense, where it is there and permitted
                raise


def get_memory_policy() -> tuple[int, int]:
    """The policy of the calling thread: the kernel's number of its kind and the bits of its nodes."""
    return _policy_of(0)


def set_memory_policy(kind: int, nodes: int) -> None:
    """Set the policy of the calling thread."""
    mask, width = _mask(nodes)
    _syscall(_SET, kind, mask, width)


def bind_buffer(buffer: Buffer, kind: int, nodes: int) -> tuple[int, int]:
    """Set the policy of every page of ``buffer``, move those on other nodes, and return the policy read back."""
    mask, width = _mask(nodes)
    pages = _pages(buffer)
    _syscall(_MBIND, pages.start, len(pages) * pages.step, kind, mask, width, _FLAG_MOVE)
    return _policy_of(pages.start)


def page_nodes(buffer: Buffer) -> list[int]:
    """The node of every page that ``buffer`` touches, or a negative errno where no memory is behind it."""
    pages = _pages(buffer)
    found: list[int] = []
    for first in range(0, len(pages), _PAGES_AT_ONCE):
        part = pages[first : first + _PAGES_AT_ONCE]
        nodes = (ctypes.c_int * len(part))()
        _syscall(_MOVE, 0, len(part), (ctypes.c_void_p * len(part))(*part), 0, nodes, 0)
        found += nodes
    return found


def _pages(buffer: Buffer) -> range:
    """The addresses of the pages that ``buffer`` touches."""
    import numpy as np

    view = np.frombuffer(memoryview(buffer), dtype=np.uint8)
    start: int = view.__array_interface__["data"][0]
    return range(start - start % mmap.PAGESIZE, start + view.nbytes, mmap.PAGESIZE)


def _policy_of(address: int) -> tuple[int, int]:
    kind, nodes = ctypes.c_int(), (ctypes.c_ulong * _node_words())()
    _syscall(_GET, ctypes.byref(kind), nodes, _width(nodes), ctypes.c_void_p(address), _FLAG_ADDRESS if address else 0)
    return kind.value & ~_KIND_FLAGS, sum(word << _WORD_BITS * at for at, word in enumerate(nodes))


@cache
def _node_words() -> int:
    words = 1
    while True:
        nodes = (ctypes.c_ulong * words)()
        try:
            _syscall(_GET, ctypes.byref(ctypes.c_int()), nodes, _width(nodes), 0, 0)
        except OSError as error:
            if error.errno != errno.EINVAL or words == _MOST_WORDS:
                raise
            words *= 2
        else:
            return words


def _mask(bits: int) -> tuple[ctypes.Array[ctypes.c_ulong], int]:
    words = max(_node_words(), bits.bit_length() // _WORD_BITS + 1)
    mask = (ctypes.c_ulong * words)(*((bits >> _WORD_BITS * at) & (1 << _WORD_BITS) - 1 for at in range(words)))
    return mask, _width(mask)


def _width(mask: ctypes.Array[ctypes.c_ulong]) -> int:
    return len(mask) * _WORD_BITS + 1  # the kernel takes one from the number of bits that it is given


def _syscall(call: int, *arguments: object) -> None:
    numbers = _NUMBERS.get(platform.machine())
    if sys.platform != "linux" or numbers is None or ctypes.sizeof(ctypes.c_long) * 8 != _WORD_BITS:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    # C's variable arguments are not widened: a bare int would leave half a register undefined.
    wide = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    if _function()(ctypes.c_long(numbers[call]), *wide) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@cache
def _function() -> Callable[..., int]:
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    return function
