"""Messages between driver and worker: JSON with its length in front, over pipes that only they hold; never pickle."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from typing import IO, Any

# What a worker writes first: whatever its interpreter printed before (a sitecustomize, say) is skipped up to here.
GREETING = b"\0qcthreads worker\n"
_LENGTH = struct.Struct("!Q")
_TAIL_LINES, _TAIL_CHARACTERS = 30, 8000


def encode(message: object) -> bytes:
    """The message's bytes. Arrays become lists, models plain data; NaN stays. Raises TypeError for anything else."""
    data = json.dumps(message, default=plain, separators=(",", ":")).encode()
    return _LENGTH.pack(len(data)) + data


def send(pipe: IO[bytes], message: object) -> None:
    """Write one message. Raises OSError when nobody reads any more."""
    pipe.write(encode(message))
    pipe.flush()


def receive(pipe: IO[bytes]) -> dict[str, Any] | None:
    """Read one message; ``None`` when the other side has ended, also in the middle of one."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = pipe.read(length)
    if len(data) < length:
        return None
    message: dict[str, Any] = json.loads(data)
    return message


def skip_to_greeting(pipe: IO[bytes]) -> bool:
    """Read up to the greeting; false when the other side ended without one."""
    seen = b""
    while not seen.endswith(GREETING):
        byte = pipe.read(1)
        if not byte:
            return False
        seen = seen[-len(GREETING) :] + byte
    return True


def let_go(*pipes: IO[bytes]) -> None:
    """In a forked child: hold these ends no longer, or the other side would not see when our parent has ended."""
    null = os.open(os.devnull, os.O_RDWR)
    for pipe in pipes:
        with contextlib.suppress(OSError, ValueError):  # closed already
            os.dup2(null, pipe.fileno(), inheritable=False)
    os.close(null)


def tail(text: str) -> str:
    """The end of what a program said: as much as a person reads."""
    return "\n".join(text[-_TAIL_CHARACTERS:].strip().splitlines()[-_TAIL_LINES:])


def plain(value: Any) -> Any:
    """Plain data for what JSON does not know: models, numpy arrays and scalars. Raises TypeError for the rest."""
    if hasattr(value, "model_dump"):
        try:
            return value.model_dump(mode="json")
        except TypeError:  # QCSchema version 1 models have pydantic's older interface
            return json.loads(value.json())
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"not plain data: {type(value).__module__}.{type(value).__qualname__}")
