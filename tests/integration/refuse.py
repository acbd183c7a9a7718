"""Run a command whose system calls fail as named: a seccomp filter, which children inherit; never mocks anything.

    python refuse.py EPERM sched_setaffinity,set_mempolicy COMMAND...

The kernel itself then answers with that error, whoever calls: the extension, the standard library or a program.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

# asm/unistd_64.h of x86-64; asm-generic/unistd.h.
NUMBERS = {
    "x86_64": {
        "sched_setaffinity": 203,
        "sched_getaffinity": 204,
        "prctl": 157,
        "mbind": 237,
        "set_mempolicy": 238,
        "get_mempolicy": 239,
        "move_pages": 279,
        "set_mempolicy_home_node": 450,
    },
    "aarch64": {
        "sched_setaffinity": 122,
        "sched_getaffinity": 123,
        "prctl": 167,
        "mbind": 235,
        "get_mempolicy": 236,
        "set_mempolicy": 237,
        "move_pages": 239,
        "set_mempolicy_home_node": 450,
    },
}
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2  # linux/prctl.h, linux/seccomp.h
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, RET|K
_RETURN_ERRNO, _RETURN_ALLOW = 0x0005_0000, 0x7FFF_0000  # linux/seccomp.h


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def refuse(error: int, calls: list[str]) -> None:
    """From now on the kernel answers ``calls`` of this process, and of its children, with ``error``."""
    numbers = NUMBERS[platform.machine()]
    steps = [(_LOAD, 0, 0, 0)]  # the number of the call is the first word of struct seccomp_data
    for place, call in enumerate(calls):
        steps.append((_JUMP_IF_EQUAL, len(calls) - place, 0, numbers[call]))
    steps += [(_RETURN, 0, 0, _RETURN_ALLOW), (_RETURN, 0, 0, _RETURN_ERRNO | error)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = _Program(len(steps), ctypes.cast(code, ctypes.c_void_p))
    library = ctypes.CDLL(None, use_errno=True)
    for call in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if library.prctl(*call):
            number = ctypes.get_errno()
            raise OSError(number, f"prctl{call[:1]}: {os.strerror(number)}")


if __name__ == "__main__":
    refuse(getattr(errno, sys.argv[1]), sys.argv[2].split(","))
    os.execvp(sys.argv[3], sys.argv[3:])
