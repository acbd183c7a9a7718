"""The C sources for systems that are not here: built with every warning an error, and run under Wine and qemu-user."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qcthreads.host import read_machine
from qcthreads.host.windows_topology import GROUP_BITS, parse_topology

REPOSITORY = Path(__file__).parents[2]
CSRC = REPOSITORY / "csrc"
CACHE = REPOSITORY / "build" / "zig"  # of start-up code, built once for each target
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-O2"]
# Zig would build the whole C library of MinGW first, for minutes; what is needed of one is memset and memcmp.
WITHOUT_C_LIBRARY = ["-nostdlib", "-lkernel32", "-lapi-ms-win-crt-string-l1-1-0", "-Wl,--subsystem,console"]
AARCH64_ROOT = Path("/usr/aarch64-linux-gnu")
SKIPPED = 77  # what a program exits with where this system forbids the calls it tests

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cross-built on Linux alone")


def not_here(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what}, in CI")
    pytest.skip(what)


def find(what: str, *names: str) -> str:
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        not_here(f"{what} is not installed")
    return str(found)


@pytest.fixture(scope="module")
def zig_root():
    try:
        import ziglang
    except ImportError:
        not_here("ziglang is not installed")
    return Path(ziglang.__file__).parent


@pytest.fixture(scope="module")
def build(zig_root, tmp_path_factory):
    """A function that builds sources of csrc for a target, with no warning."""
    folder = tmp_path_factory.mktemp("cross")

    def built(target: str, *sources: str, flags: tuple[str, ...] | list[str] = ()) -> Path:
        made = folder / f"{target}-{Path(sources[-1]).stem}"
        command = [str(zig_root / "zig"), "cc", "-target", target, *FLAGS, *flags]
        done = subprocess.run(
            [*command, *(str(CSRC / source) for source in sources), "-o", str(made)],
            env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(CACHE), "ZIG_LOCAL_CACHE_DIR": str(CACHE)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return made

    return built


@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_macos_builds_and_links(build, processor):
    library = build(f"{processor}-macos", "bandwidth.c", "darwin.c", flags=["-shared"])
    assert library.read_bytes()[:4] == bytes.fromhex("cffaedfe")  # MH_MAGIC_64 of mach-o/loader.h


@pytest.fixture(scope="module")
def run_windows(build, zig_root, tmp_path_factory):
    """A function that builds sources of csrc for Windows, runs the program, and gives what it wrote to stdout."""
    wine = find("Debian's wine64", "wine64", "/usr/lib/wine/wine64")
    headers = zig_root / "lib" / "libc" / "include" / "any-windows-any"
    flags = ["-isystem", str(headers), *WITHOUT_C_LIBRARY, "-Wl,--entry,mainCRTStartup"]
    # No debugger, no .NET and no browser, which a new prefix would ask for.
    quiet = {"WINEDEBUG": "-all", "WINEDLLOVERRIDES": "mscoree,mshtml,winedbg.exe="}
    environment = {**os.environ, **quiet, "WINEPREFIX": str(tmp_path_factory.mktemp("wine") / "prefix")}

    def run(*sources: str) -> bytes:
        program = build("x86_64-windows-gnu", *sources, flags=flags)
        done = subprocess.run([wine, str(program)], env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    return run


def test_windows_under_wine(run_windows):
    machine, linux = parse_topology(run_windows("windows.c", "tests/test_windows.c"), 0), read_machine()
    if len(linux.cpus_online) <= GROUP_BITS:  # Wine has one group
        assert machine.cpus_online == linux.cpus_online
        assert [core.cpus for core in machine.cores] == [core.cpus for core in linux.cores]
        assert [package.cpus for package in machine.packages] == [package.cpus for package in linux.packages]


def test_what_the_book_of_leases_relies_on_under_wine(run_windows):
    run_windows("tests/test_windows_locks.c")


def test_the_sampler_builds_on_aarch64(build):
    """It is not run: qemu-user's own threads are in /proc with those of the program."""
    build("aarch64-linux-gnu.2.31", "linux_sampler.c", "linux_recorder.c", "tests/test_sampler.c", flags=["-pthread"])


def test_bandwidth_builds_on_aarch64(build):
    """It is not run: under qemu-user /proc tells of qemu's own memory."""
    sources = "linux_affinity.c", "linux_mempolicy.c", "bandwidth.c", "tests/test_bandwidth.c"
    build("aarch64-linux-gnu.2.31", *sources, flags=["-pthread"])


@pytest.mark.parametrize("part", ["affinity", "mempolicy", "topology", "files"])
def test_linux_on_aarch64_under_qemu(build, part, tmp_path):
    qemu = find("qemu-user-static", "qemu-aarch64-static", "qemu-aarch64")
    if not AARCH64_ROOT.joinpath("lib", "ld-linux-aarch64.so.1").exists():
        not_here("Debian's libc6-arm64-cross is not installed")
    program = build("aarch64-linux-gnu.2.31", f"linux_{part}.c", f"tests/test_{part}.c", flags=["-pthread"])
    done = subprocess.run(
        [qemu, "-L", str(AARCH64_ROOT), str(program), str(tmp_path)], capture_output=True, text=True, check=False
    )
    if done.returncode == SKIPPED:
        pytest.skip(f"under qemu-user {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
