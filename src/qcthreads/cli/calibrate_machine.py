"""``qcthreads calibrate --machine``: the bandwidth of this machine's memory, printed and stored; computes nothing."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from ..execution.bandwidth import measure_machine
from ..host.profiles import read_profile, write_profile
from ..leases import process_book
from ..machine.bandwidth import DomainBandwidth, MachineProfile
from ..units import format_count
from .render import gigabytes, print_json, print_table

_NAMES = {"llc": "LLC domain", "node": "memory node", "machine": "machine"}


def execute(args: Namespace) -> int:
    """Measure, store and print."""
    book = process_book()
    before = read_profile(book.machine)
    if before.profile is None and before.path.exists():
        print(before.missing, file=sys.stderr)
    profile = measure_machine(book, wait=args.wait, progress=_tell)
    path = write_profile(profile)
    if args.json:
        print_json({"file": path, **profile_document(profile)})
    else:
        _print(profile)
        print(f"\nstored in {path}", file=sys.stderr)
    return 0


def profile_document(profile: MachineProfile) -> dict[str, Any]:
    """The JSON form of a profile."""
    return {
        "fingerprint": profile.fingerprint,
        "cpu_model": profile.cpu_model,
        "measured_at": profile.measured_at,
        "method": profile.method,
        "domains": [
            {
                "kind": domain.kind,
                "cpus": domain.cpus,
                "node": domain.node,
                "bytes_per_s": {str(cores): rate for cores, rate in domain.rates},
                "peak_bytes_per_s": domain.peak_bytes_per_s,
                "saturation_cores": domain.saturation_cores,
            }
            for domain in profile.domains
        ],
    }


def in_short(profile: MachineProfile) -> str:
    """The machine as a whole, in one line."""
    whole = profile.of("machine")[0]
    return (
        f"{gigabytes(whole.peak_bytes_per_s)} GB/s, which {format_count(whole.saturation_cores, 'core')} of "
        f"{whole.cores} take; measured {profile.measured_at}"
    )


def _tell(message: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{message}", end="", file=sys.stderr, flush=True)


def _print(profile: MachineProfile) -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    print(
        f"{profile.cpu_model or 'unknown CPU'}: triad bandwidth by cores that ask at the same time ({profile.method})"
    )
    print_table("", ("domain", "CPUs", "node", "cores", "GB/s", "of the most", ""), _rows(profile))


def _rows(profile: MachineProfile) -> list[tuple[object, ...]]:
    return [row for domain in profile.domains for row in _rows_of(domain)]


def _rows_of(domain: DomainBandwidth) -> list[tuple[object, ...]]:
    node = "-" if domain.node is None else domain.node
    return [
        (
            _NAMES[domain.kind],
            domain.cpus,
            node,
            cores,
            gigabytes(rate),
            f"{100 * rate / domain.peak_bytes_per_s:.0f} %",
            "<- more cores get no more" if cores == domain.saturation_cores < domain.cores else "",
        )
        for cores, rate in domain.rates
    ]
