"""Reading the machine beside libhwloc in one process: this machine, a 4096-CPU tree, recordings; asserts nothing.

    python benchmarks/bench_topology.py [--rounds N] [--recordings DIR] [--big SCRIPT] [TREE ...]

TREE is a directory that holds sys/ and proc/. DIR holds recordings (NAME.tar.xz); SCRIPT writes a big tree into the
folder it is given. Debian's libhwloc15 is called through ctypes: init, load and destroy, its default filters, the files
of the same root and no other component (HWLOC_COMPONENTS=linux,stop). Ours is the whole of ``read_machine``.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asking

from qcthreads.host import get_host
from qcthreads.host.linux import LinuxHost
from qcthreads.host.portable import PortableHost

SHARED = Path(__file__).parents[2] / "shared"


def main() -> None:
    """Print one line per tree: median ms of hwloc, of both of our readers, and how many times faster the first is."""
    parser = asking.parser(__doc__, rounds=15)
    parser.add_argument("--recordings", type=Path, default=SHARED / "topologies")
    parser.add_argument("--big", type=Path, default=SHARED / "tools" / "make_big_topology.py")
    parser.add_argument("trees", nargs="*", type=Path)
    args = parser.parse_args()
    hwloc = Hwloc()
    print(f"back end {get_host().capabilities.back_end}; hwloc {hwloc.version}; median ms of {args.rounds} rounds")
    print(f"{'tree':40} {'CPUs':>5} {'hwloc':>9} {'native':>9} {'pure':>9} {'hwloc/native':>13}")
    with tempfile.TemporaryDirectory() as folder:
        for name, root in trees(args, Path(folder)):
            compare(name, root, hwloc, args.rounds)


def trees(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str | None]]:
    """(name, root) of everything that is here to be read; None is this machine."""
    yield "this machine", None
    for tree in args.trees:
        yield tree.name, str(tree)
    if args.big.is_file():
        subprocess.run([sys.executable, str(args.big), str(folder / "big")], check=True, stdout=subprocess.DEVNULL)
        yield "big tree", str(folder / "big")
    for packed in sorted(args.recordings.glob("*.tar.xz")):
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="fully_trusted")  # links lead all over a recorded /sys
        name = packed.name.removesuffix(".tar.xz")
        yield name, str(folder / name)


def compare(name: str, root: str | None, hwloc: Hwloc, rounds: int) -> None:
    """The contenders take turns; the first round of each is not counted."""
    native, pure = LinuxHost(), PortableHost()
    contenders: dict[str, Callable[[], object]] = {
        "hwloc": lambda: hwloc.load(root),
        "native": lambda: native.read_machine(root),
        "pure": lambda: pure.read_machine(root),
    }
    times_ms: dict[str, list[float]] = {contender: [] for contender in contenders}
    for number in range(rounds + 1):
        for contender, read in contenders.items():
            start_ns = time.perf_counter_ns()
            read()
            if number:
                times_ms[contender].append((time.perf_counter_ns() - start_ns) / 1e6)
    medians = {contender: statistics.median(found) for contender, found in times_ms.items()}
    cpus = len(native.read_machine(root).cpus_online)
    figures = " ".join(f"{median:9.2f}" for median in medians.values())
    print(f"{name:40} {cpus:5} {figures} {medians['hwloc'] / medians['native']:13.1f}", flush=True)


class Hwloc:
    """The three calls of libhwloc that make and free a topology."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libhwloc.so.15")
        except OSError as error:
            raise SystemExit(f"{error}: install hwloc's library (Debian: libhwloc15)") from error
        self.version = f"API {self._library.hwloc_get_api_version():#x}"

    def load(self, root: str | None) -> None:
        """Load and destroy the topology of ``root``, or of this machine."""
        topology = ctypes.c_void_p()
        with environment(root):
            if self._library.hwloc_topology_init(ctypes.byref(topology)):
                raise SystemExit("hwloc_topology_init failed")
            if self._library.hwloc_topology_load(topology):
                raise SystemExit(f"hwloc_topology_load failed for {root}")
        self._library.hwloc_topology_destroy(topology)


@contextmanager
def environment(root: str | None) -> Iterator[None]:
    """hwloc takes the root from its environment."""
    settings = {"HWLOC_COMPONENTS": "linux,stop", "HWLOC_HIDE_ERRORS": "2"}
    if root is not None:
        settings |= {"HWLOC_FSROOT": root, "HWLOC_THISSYSTEM": "0"}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            del os.environ[name]


if __name__ == "__main__":
    main()
