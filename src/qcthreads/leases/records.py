"""What holders and waiters tell of themselves, as text that anybody may have written: checked, and never believed for
more than what its owner may do anyway; decides nothing.

A record is one line: the CRC-32 of the rest in hexadecimal, a blank, JSON. What was written in part has another.
"""

from __future__ import annotations

from _json import encode_basestring_ascii as _quoted
from binascii import crc32
from collections.abc import Mapping
from functools import lru_cache

from ..cpuset import CpuSet
from ..errors import InputError
from ..host.processes import user_name
from ..light import dataclass
from .claims import Claim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .hold import Hold

TICKET_DIGITS = 18
"""Nanoseconds since the boot, which all processes count alike, in the name of a ticket."""

_Pools = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who tells: everything but ``uid``, which the kernel tells of the file, is his word."""

    uid: int
    pid: int
    """In his own PID namespace."""
    boot: str
    pid_namespace: str
    since: float
    """Seconds since the epoch."""
    mark: str
    """What the environment of everything has that he starts: ``QCTHREADS_LEASE`` begins with it."""
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command or 'not named'}, user {user_name(self.uid)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A lease, told of by its holder."""

    name: str
    owner: Owner
    cpus: CpuSet
    reserved: CpuSet
    gpus: tuple[int, ...]
    memory_bytes: int
    draws: _Pools
    orphans: str
    """What becomes of processes under the lease when their supervisor is gone: ``end`` or ``wait`` for them."""
    run: str = ""
    """What it is for, in its holder's words."""

    @property
    def mark(self) -> str:
        """What ``QCTHREADS_LEASE`` is in the environment of what runs under it, if the name is believed."""
        return self.name.removeprefix("l").partition("-")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A request that waits its turn, told of by who waits; the names sort by age."""

    name: str
    owner: Owner
    claim: Claim


def encode(*bodies: str) -> bytes:
    """The text of a record, from what :func:`body` made of its parts."""
    text = f"{{{','.join(bodies)}}}".encode()
    return b"%08x %s\n" % (crc32(text), text)


def body(content: Mapping[str, Any]) -> str:
    """JSON of ``content`` without the braces: a part of a record, for it is made while others wait."""
    return _to_json(content)[1:-1]


def lease_text(hold: Hold, owner: str) -> bytes:
    """The record of a lease; ``owner`` is what :func:`body` made of who holds it."""
    run, draws = hold.book.run, tuple(hold.draws.items())
    return _lease_text(
        owner, hold.cpus.bits, hold.reserved.bits, hold.gpus, hold.memory_bytes, draws, hold.orphans, run
    )


@lru_cache  # leases of the same PUs, and for the same, come again and again
def _lease_text(
    owner: str,
    cpus: int,
    reserved: int,
    gpus: tuple[int, ...],
    memory_bytes: int,
    draws: tuple[tuple[str, tuple[int, int]], ...],
    orphans: str,
    run: str,
) -> bytes:
    content = {
        "cpus": str(CpuSet.from_bits(cpus)),
        "reserved": str(CpuSet.from_bits(reserved)),
        "gpus": gpus,
        "memory_bytes": memory_bytes,
        "draws": dict(draws),
        "orphans": orphans,
        "run": run,
    }
    return encode(body(content), owner)


def claim_body(claim: Claim) -> str:
    """What is told of a request, beside its owner."""
    content = {
        "threads": claim.threads,
        "candidates": str(CpuSet.from_bits(claim.candidates)),
        "siblings": str(CpuSet.from_bits(claim.siblings)),
        "preferred": str(CpuSet.from_bits(claim.preferred)),
        "near": str(CpuSet.from_bits(claim.near)),
        "gpus": claim.gpus,
        "gpu_candidates": claim.gpu_candidates,
        "memory_bytes": claim.memory_bytes,
        "draws": claim.draws,
        "nodes": claim.nodes,
        "bound": claim.bound,
    }
    return body(content)


def parse(name: str, text: bytes, uid: int) -> Holding | Waiting | None:
    """What the file ``name`` of user ``uid`` tells of; ``None`` for what is torn, or is no record."""
    content = decode(text)
    if content is None:
        return None
    return waiting(name, content, uid) if is_ticket(name) else holding(name, content, uid) if name[:1] == "l" else None


def decode(text: bytes) -> dict[str, Any] | None:
    """The content of a record; ``None`` for what is torn, or is no record."""
    import json  # which who finds no record can do without

    check, _, body = text.rstrip(b"\n").partition(b" ")
    try:
        if int(check, 16) != crc32(body):
            return None
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def holding(name: str, content: dict[str, Any], uid: int) -> Holding | None:
    """A lease, if that is what ``content`` tells of."""
    try:
        cpus, reserved = CpuSet.parse(_text(content["cpus"])), CpuSet.parse(_text(content["reserved"]))
        if not cpus or not cpus <= reserved:  # whether its holder lives would not be seen by any lock
            return None
        return Holding(
            name=name,
            owner=_owner(content, uid),
            cpus=cpus,
            reserved=reserved,
            gpus=_numbers(content["gpus"]),
            memory_bytes=_amount(content["memory_bytes"]),
            draws=_pools(content["draws"]),
            orphans="end" if content["orphans"] == "end" else "wait",
            run=_text(content.get("run", "")),
        )
    except (KeyError, TypeError, ValueError, InputError):
        return None


def waiting(name: str, content: dict[str, Any], uid: int) -> Waiting | None:
    """A request that waits, if that is what ``content`` tells of."""
    try:
        words = ("candidates", "siblings", "preferred", "near")
        sets = {word: CpuSet.parse(_text(content[word])).bits for word in words}
        claim = Claim(
            threads=_amount(content["threads"], least=1),
            gpus=_amount(content["gpus"]),
            gpu_candidates=_numbers(content["gpu_candidates"]),
            memory_bytes=_amount(content["memory_bytes"]),
            draws=_pools(content["draws"]),
            nodes={_text(pool): _amount(holds) for pool, holds in content["nodes"].items()},
            bound=content["bound"] is True,
            **sets,
        )
        return Waiting(name=name, owner=_owner(content, uid), claim=claim)
    except (AttributeError, KeyError, TypeError, ValueError, InputError):
        return None


def is_ticket(name: str) -> bool:
    """Whether a file of this name may tell of a request that waits."""
    number, dash, _ = name.partition("-")
    digits = number[1:]
    return number[:1] == "w" and digits.isascii() and digits.isdigit() and len(digits) == TICKET_DIGITS and bool(dash)


def entered_at_ns(ticket: str) -> int:
    """When he entered the line who has the ticket of this name, by ``time.monotonic_ns``."""
    return int(ticket[1 : 1 + TICKET_DIGITS])


def _to_json(value: object) -> str:
    """Of text, numbers and what is made of them, as short as JSON can be."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_quoted(name)}:{_to_json(of)}' for name, of in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_to_json, value))}]"
    return repr(value).lower() if isinstance(value, bool) else repr(value)


def _owner(content: dict[str, Any], uid: int) -> Owner:
    return Owner(
        uid=uid,
        pid=_amount(content["pid"]),
        boot=_text(content["boot"]),
        pid_namespace=_text(content["pid_namespace"]),
        since=_time(content["since"]),
        mark=_text(content["mark"]),
        command=_text(content["command"]),
    )


def _text(value: object) -> str:
    """Text of one line that a terminal may be shown."""
    if not isinstance(value, str) or not value.isprintable():
        raise TypeError(f"no printable text: {value!r}")
    return value


def _amount(value: object, *, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 62:
        raise TypeError(f"no amount: {value!r}")
    return value


def _time(value: object) -> float:
    if not isinstance(value, float) or not 0.0 <= value < 1e11:
        raise TypeError(f"no time: {value!r}")
    return value


def _numbers(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > 4096:
        raise TypeError(f"no list of numbers: {values!r}")
    return tuple(map(_amount, values))


def _pools(value: object) -> dict[str, tuple[int, int]]:
    if not isinstance(value, dict) or len(value) > 4096:
        raise TypeError(f"no pools: {value!r}")
    return {_text(pool): (_amount(amount), _amount(holds)) for pool, (amount, holds) in value.items()}
