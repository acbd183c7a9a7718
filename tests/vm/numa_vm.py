#!/usr/bin/env python3
"""Boots a Debian kernel under QEMU with made-up CPUs and memory nodes, and runs one command in it; never writes here.

    tests/vm/numa_vm.py --setup                                      # install what is missing, fetch the kernel
    tests/vm/numa_vm.py --topology 2s4c2t --nodes 2 -- numactl -H
    tests/vm/numa_vm.py --topology 4s2c1t --nodes 4 --memory-nodes 1 -- python3 -m qcthreads topo

The guest sees this machine's file system at the same paths; what it writes goes into its memory and is lost. The
command runs there as root. Exit status: the command's own; 124 it ran too long; 125 the guest did not come up or died;
126 something that is needed is missing. Needs the standard library and the Debian packages that --setup installs.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static"}
KERNEL_PACKAGE = "linux-image-cloud-amd64"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qcthreads-vm"
GUEST = Path(__file__).with_name("guest")
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
MODULES = {"virtiofs": ["virtiofs"], "9p": ["9pnet_virtio", "9p"]}
# With a stable clock the kernel patches its code while all CPUs wake, and QEMU 7.2 may go on with what it translated of
# the old code for ever (int3, again and again): one boot in five hung. Without, nothing is patched there.
KERNEL_OPTIONS = (
    "console=ttyS0 panic=-1 rdinit=/init tsc=unstable no_timer_check nokaslr mitigations=off random.trust_cpu=on "
    "nowatchdog rcupdate.rcu_cpu_stall_suppress=1 audit=0 cgroup_no_v1=all cryptomgr.notests 8250.nr_uarts=1 quiet"
)
DIRECTORY, FILE, DEVICE = 0o040755, 0o100755, 0o020600


class VmError(Exception):
    """The guest could not do what was asked; ``status`` is the exit status for it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotUpError(VmError):
    """The guest took too long to boot: another try may go better, where the machine was busy."""


@dataclass(frozen=True)
class Topology:
    """A made-up machine: CPUs are numbered socket by socket, core by core, and dealt out to the nodes in that order."""

    sockets: int
    dies: int
    cores: int
    threads: int
    nodes: int
    """With CPUs; those of ``memory_mib`` beyond have memory only."""
    memory_mib: tuple[int, ...]
    offline: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str, nodes: int, memory_nodes: int = 0, memory_mib: int = 1024, offline: str = "") -> Topology:
        """From ``2s4c2t`` or ``2s2d4c2t`` and the memory of all nodes together."""
        match = re.fullmatch(r"(\d+)s(?:(\d+)d)?(\d+)c(\d+)t", text)
        if not match:
            raise VmError(f"the topology is {text!r}; it must look like 2s4c2t or 2s2d4c2t", 2)
        sockets, dies, cores, threads = (int(count or 1) for count in match.groups())
        total = nodes + memory_nodes
        each = (memory_mib // total // 2 * 2,) * total
        return cls(sockets, dies, cores, threads, nodes, each, tuple(map(int, filter(None, offline.split(",")))))

    @property
    def cpus(self) -> int:
        """How many there are, offline or not."""
        return self.sockets * self.dies * self.cores * self.threads

    def cpus_of(self, node: int) -> range:
        """The CPUs of a node; none of a memory-only one."""
        if node >= self.nodes:
            return range(0)
        cores = self.cpus // self.threads
        return range(node * cores // self.nodes * self.threads, (node + 1) * cores // self.nodes * self.threads)

    def distance(self, one: int, other: int) -> int:
        """10 to itself, 12 within a socket, 17 to a memory-only node, 21 across sockets."""
        if one == other:
            return 10
        if max(one, other) >= self.nodes:
            return 17
        per_socket = self.cpus // self.sockets
        return 12 if self.cpus_of(one)[0] // per_socket == self.cpus_of(other)[0] // per_socket else 21

    def qemu_arguments(self) -> list[str]:
        """What makes QEMU build it; memory is shared, as the file server needs it."""
        parts = f"sockets={self.sockets},dies={self.dies},cores={self.cores},threads={self.threads}"
        arguments = ["-smp", f"cpus={self.cpus},{parts}", "-m", f"{sum(self.memory_mib)}M"]
        for node, size in enumerate(self.memory_mib):
            cpus = self.cpus_of(node)
            where = f",cpus={cpus[0]}-{cpus[-1]}" if cpus else ""
            arguments += ["-object", f"memory-backend-memfd,id=m{node},size={size}M,share=on"]
            arguments += ["-numa", f"node,nodeid={node},memdev=m{node}{where}"]
        for one in range(len(self.memory_mib)):
            for other in range(len(self.memory_mib)):
                arguments += ["-numa", f"dist,src={one},dst={other},val={self.distance(one, other)}"]
        return arguments


@dataclass(frozen=True)
class Done:
    """What a command in a guest did."""

    status: int
    stdout: bytes
    stderr: bytes
    boot_s: float
    wall_s: float


def lacking() -> str:
    """What is missing to boot a guest, or an empty string."""
    missing = [package for command, package in PACKAGES.items() if not shutil.which(command)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return "" if kernels() else "no kernel has been fetched"


def setup() -> None:
    """Install the packages that are missing and fetch a kernel, which is unpacked and not installed."""
    missing = [package for command, package in PACKAGES.items() if not shutil.which(command)]
    if missing:
        command = ["apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends", *missing]
        subprocess.run(command, check=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    if not kernels():
        _fetch_kernel()


def kernels() -> list[tuple[Path, Path]]:
    """(kernel, directory of its modules), the newest fetched first, then those that are installed."""
    found = []
    for root in (CACHE, Path("/")):
        for image in sorted(root.glob("boot/vmlinuz-*amd64"), reverse=True):
            modules = root / "lib/modules" / image.name.removeprefix("vmlinuz-") / "kernel"
            if modules.is_dir() and os.access(image, os.R_OK):
                found.append((image, modules))
    return found


def run(
    command: Sequence[str],
    topology: Topology,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout_s: float = 300,
) -> Done:
    """Boot, run ``command`` in ``folder`` with just ``environment``, stop. Raises VmError."""
    if missing := lacking():
        raise VmError(f"{missing}; run {Path(__file__).name} --setup", 126)
    with tempfile.TemporaryDirectory(prefix="numa-vm-") as name:
        place = Path(name)
        share = "virtiofs" if os.geteuid() == 0 and _virtiofsd() else "9p"
        image, modules = kernels()[0]
        script = _script(command, environment or {}, folder or Path.cwd())
        offline = " ".join(map(str, topology.offline))
        job = {"command": script, "settings": f"SHARE={share}\nOFFLINE='{offline}'\n"}
        place.joinpath("initrd").write_bytes(_initramfs(modules, MODULES[share], job))
        with _file_server(share, place) as share_arguments:
            arguments = [
                *["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"],
                *["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,vendor=GenuineIntel"],
                *["-machine", "q35,hpet=off,smm=off,vmport=off", *topology.qemu_arguments()],
                *["-kernel", str(image), "-initrd", str(place / "initrd"), "-append", KERNEL_OPTIONS],
                *["-serial", f"file:{place}/console", "-device", "virtio-rng-pci"],
                *["-device", "virtio-serial-pci,max_ports=8", *_ports(place), *share_arguments],
            ]
            return _watch(arguments, place, boot_limit_s=300 + 4 * topology.cpus, timeout_s=timeout_s)


def _watch(arguments: Sequence[str], place: Path, boot_limit_s: float, timeout_s: float) -> Done:
    start = time.monotonic()
    boot_s = 0.0
    with place.joinpath("qemu").open("wb") as log, _ended(subprocess.Popen(arguments, stdout=log, stderr=log)) as qemu:
        while True:
            now = time.monotonic() - start
            alive = qemu.poll() is None  # asked before the report is read: what it said last counts
            report = place.joinpath("report").read_text() if place.joinpath("report").exists() else ""
            boot_s = boot_s or (now if "ready" in report else 0.0)
            if said := re.search(r"^exit (\d+)$", report, re.MULTILINE):
                out, err = (place.joinpath(name).read_bytes() for name in ("stdout", "stderr"))
                return Done(int(said.group(1)), out, err, boot_s, now)
            if not alive:
                raise VmError(f"the guest ended before the command did\n{_last_words(place)}", 125)
            if not boot_s and now > boot_limit_s:
                raise NotUpError(f"the guest was not up after {boot_limit_s:.0f} s\n{_last_words(place)}", 125)
            if boot_s and now > boot_s + timeout_s:
                said_so_far = place.joinpath("stderr").read_text(errors="replace")
                raise VmError(f"the command ran longer than {timeout_s:.0f} s; it said: {said_so_far}", 124)
            time.sleep(0.05)


def _last_words(place: Path) -> str:
    texts = [
        place.joinpath(name).read_text(errors="replace") for name in ("console", "qemu") if (place / name).exists()
    ]
    return "\n".join("".join(texts).splitlines()[-25:])


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ports(place: Path) -> list[str]:
    """Three ports of the guest, each a file here."""
    arguments = []
    for number, name in enumerate(("stdout", "stderr", "report"), 1):
        arguments += ["-chardev", f"file,id={name},path={place / name}"]
        arguments += ["-device", f"virtserialport,chardev={name},nr={number}"]
    return arguments


def _virtiofsd() -> str | None:
    return next((path for path in VIRTIOFSD if Path(path).exists()), None)


@contextmanager
def _file_server(share: str, place: Path) -> Iterator[list[str]]:
    """Serve the whole file system; gives QEMU's arguments for it."""
    if share == "9p":
        yield ["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]
        return
    socket = place / "share"
    options = ["source=/", "cache=always", "log_level=err", "sandbox=chroot"]
    command = [str(_virtiofsd()), "-f", f"--socket-path={socket}", *(part for o in options for part in ("-o", o))]
    with (
        place.joinpath("virtiofsd").open("wb") as log,
        _ended(subprocess.Popen(command, stdout=log, stderr=log)) as server,
    ):
        deadline = time.monotonic() + 10
        while not socket.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise VmError(f"virtiofsd did not start: {place.joinpath('virtiofsd').read_text()}", 125)
            time.sleep(0.01)
        device = "vhost-user-fs-pci,chardev=share,tag=host,queue-size=1024"
        yield ["-chardev", f"socket,id=share,path={socket}", "-device", device]


def _script(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> str:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    exports = {"PATH": path, "HOME": "/root", **environment}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    return "\n".join([*lines, f"cd {shlex.quote(str(folder))} || exit 125", f"exec {shlex.join(command)}", ""])


def _initramfs(modules: Path, wanted: Sequence[str], job: Mapping[str, str]) -> bytes:
    """An archive in cpio's newc format (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst)."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    loaded = _modules(modules, ["virtio_pci", "virtio_console", "overlay", *wanted])
    folders = ("bin", "dev", "modules", "job", "host", "over", "new")
    entries = [(folder, DIRECTORY, b"", (0, 0)) for folder in folders]
    entries += [("dev/console", DEVICE, b"", (5, 1)), ("dev/null", DEVICE, b"", (1, 3))]
    files = {
        "init": GUEST.joinpath("init.sh").read_bytes(),
        "run.sh": GUEST.joinpath("run.sh").read_bytes(),
        "bin/busybox": Path(busybox).read_bytes(),
        "modules/order": "".join(f"{name}.ko\n" for name in loaded).encode(),
        **{f"modules/{name}.ko": data for name, data in loaded.items()},
        **{f"job/{name}": text.encode() for name, text in job.items()},
    }
    entries += [(name, FILE, data, (0, 0)) for name, data in files.items()]
    return b"".join(_cpio([*entries, ("TRAILER!!!", 0, b"", (0, 0))]))


def _cpio(entries: Iterable[tuple[str, int, bytes, tuple[int, int]]]) -> Iterator[bytes]:
    for inode, (name, mode, data, device) in enumerate(entries, 1):
        path = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        yield head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def _modules(folder: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """The modules and what they depend on, in the order of loading; what is not there is built into the kernel."""
    files = {path.stem.replace("-", "_"): path for path in folder.rglob("*.ko")}
    loaded: dict[str, bytes] = {}

    def add(name: str, above: tuple[str, ...] = ()) -> None:
        if name in files and name not in loaded and name not in above:
            data = files[name].read_bytes()
            depends = re.search(rb"\0depends=([^\0]*)\0", data)
            for other in depends.group(1).decode().split(",") if depends else ():
                add(other.replace("-", "_"), (*above, name))
            loaded[name] = _unsigned(data)

    for name in wanted:
        add(name)
    return loaded


def _unsigned(module: bytes) -> bytes:
    """Without its signature, which takes an emulated CPU a second to check (struct module_signature)."""
    mark = b"~Module signature appended~\n"
    if not module.endswith(mark):
        return module
    end = len(module) - len(mark)
    (size,) = struct.unpack_from(">I", module, end - 4)
    return module[: end - 12 - size]


def _fetch_kernel() -> None:
    told = subprocess.run(["apt-cache", "depends", KERNEL_PACKAGE], capture_output=True, text=True, check=True).stdout
    match = re.search(r"Depends: (linux-image-\d\S*)", told)
    if match is None:
        raise VmError(f"apt knows no package {KERNEL_PACKAGE}; this is for Debian: {told}", 126)
    keep = re.compile(
        r"\./(usr/)?(boot/vmlinuz-|lib/modules/[^/]+/kernel/(drivers/(virtio|char|block)|fs|net/9p|lib|crypto|arch)/)"
    )
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="numa-vm-", dir=CACHE.parent) as place:
        subprocess.run(["apt-get", "--quiet=2", "download", match.group(1)], cwd=place, check=True)
        (package,) = Path(place).glob("*.deb")
        with (
            subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacking,
            tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive,
        ):
            for member in archive:
                if member.isfile() and keep.match(member.name):
                    member.name = member.name.removeprefix("./").removeprefix("usr/")
                    archive.extract(member, Path(place, "kernel"))
        if unpacking.returncode:
            raise VmError(f"{package.name} could not be unpacked: dpkg-deb ended with {unpacking.returncode}", 126)
        shutil.rmtree(CACHE, ignore_errors=True)  # what an interrupted --setup left would be taken for a kernel
        Path(place, "kernel").rename(CACHE)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--setup", action="store_true", help="install what is missing, fetch the kernel, and end")
    add("--check", action="store_true", help="say whether everything needed is here, and end")
    add("--topology", default="2s4c2t", help="sockets, dies (if more than one), cores, threads: %(default)s")
    add("--nodes", type=int, default=2, help="memory nodes with CPUs: %(default)s")
    add("--memory-nodes", type=int, default=0, help="further nodes with memory only: %(default)s")
    add("--mem", type=int, default=1024, metavar="MIB", help="memory of all nodes together: %(default)s")
    add("--offline", default="", metavar="LIST", help="CPUs to take offline first, as 3,5")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for the command")
    add("--timeout", type=float, default=300, metavar="S", help="how long the command may run: %(default)s")
    add("--timing", action="store_true", help="say how long it took to boot, and in all")
    add("command", nargs="*")
    args = parser.parse_args()
    if args.setup:
        setup()
    if args.setup or args.check:
        print(lacking() or f"ready: {kernels()[0][0]}")
        return 126 if lacking() else 0
    if not args.command:
        parser.error("no command; write it after --")
    topology = Topology.parse(args.topology, args.nodes, args.memory_nodes, args.mem, args.offline)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the guest ends, too
    environment = dict(item.partition("=")[::2] for item in args.env)
    done = run(args.command, topology, environment=environment, timeout_s=args.timeout)
    sys.stdout.buffer.write(done.stdout)
    sys.stderr.buffer.write(done.stderr)
    if args.timing:
        print(f"{topology.cpus} CPUs, up in {done.boot_s:.1f} s, {done.wall_s:.1f} s in all", file=sys.stderr)
    return done.status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VmError as problem:
        print(f"numa_vm: {problem}", file=sys.stderr)
        sys.exit(problem.status)
