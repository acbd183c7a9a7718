"""Build the fuzz targets of the C parsers and run each for its share of SECONDS; fails on a crash, hang or leak.

Usage: run.py SECONDS, of CPU time: targets run side by side, as many as there are CPUs. Needs clang with its run-time
libraries (Debian: clang libclang-rt-dev) and nothing else. The corpus lies in build/fuzz/TARGET between runs, what made
a target fail in build/fuzz/.
"""

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "fuzz"
CORPUS = Path(os.environ.get("QCTHREADS_TOPOLOGY_CORPUS") or ROOT.parent / "shared" / "topologies")

# Source, flags and share of the time.
TARGETS = {
    "topology": ("fuzz_topology.c", [], 2),
    "mask": ("fuzz_parse.c", ["-DPARSE=qct_parse_mask"], 1),
    "list": ("fuzz_parse.c", ["-DPARSE=qct_parse_list"], 1),
}
FLAGS = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=fuzzer,address,undefined"]
FLAGS += ["-fno-sanitize-recover=all"]

MASKS = ["ff,00000001", "1,,0", "", "ffffffff,ffffffff,ffffffff,ffffffff,0", "123456789", "zebra"]
LISTS = ["0-3,8", "0-7:2", "0-11:2/4", "127,8191", " 1 ,,\t2,\n", "3-1", "0-99999999"]

CPUS = 4
FILES = re.findall('^"(.*)",$', (HERE / "files.inc").read_text(), re.MULTILINE)


def main() -> int:
    """Fuzz every target; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=int, help="of CPU time, for all targets together")
    parser.add_argument("--timeout", type=int, default=10, help="seconds after which one input counts as a hang")
    args = parser.parse_args()
    clang = shutil.which(os.environ.get("FUZZ_CC", "clang"))
    if clang is None:
        print("no clang on PATH; Debian: apt-get install clang libclang-rt-dev", file=sys.stderr)
        return 1
    BUILD.mkdir(parents=True, exist_ok=True)
    shares = sum(share for *_, share in TARGETS.values())
    seconds = {name: max(1, args.seconds * share // shares) for name, (*_, share) in TARGETS.items()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the longest first, so that two CPUs are done at the same time
        done = {name: pool.submit(fuzz, clang, name, seconds[name], args.timeout) for name in TARGETS}
    failed = [name for name, target in done.items() if not target.result()]
    print(f"fuzzed {', '.join(TARGETS)}; " + (f"failed: {', '.join(failed)}" if failed else "none failed"))
    return 1 if failed else 0


def fuzz(clang: str, name: str, seconds: int, timeout_s: int) -> bool:
    """Build, seed and run one target; prints what it said, and gives whether nothing was found."""
    source, flags, _ = TARGETS[name]
    corpus, program = BUILD / name, BUILD / f"fuzz_{name}"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed{number}").write_bytes(seed)
    sources = [HERE / source, ROOT / "csrc" / "linux_topology.c"]
    subprocess.run([clang, *FLAGS, *flags, *sources, "-o", program], check=True)
    limits = [f"-max_total_time={seconds}", f"-timeout={timeout_s}", "-max_len=8192"]
    told = ["-print_final_stats=1", "-verbosity=0", f"-artifact_prefix={BUILD}/{name}-"]
    done = subprocess.run(
        [program, *limits, *told, corpus], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    print(f"== fuzz {name}\n{done.stdout.decode(errors='replace')}", end="", flush=True)
    return done.returncode == 0


def seeds(name: str) -> Iterator[bytes]:
    """Where every target begins: texts, or trees made here and cut from recorded machines where there are any."""
    if name != "topology":
        yield from (text.encode() for text in (MASKS if name == "mask" else LISTS))
        return
    yield packed({})
    yield packed(two_cores())
    for path in sorted(CORPUS.glob("*.tar.xz")):
        yield packed(recorded(path))


def two_cores() -> dict[str, bytes]:
    """Two cores of two PUs, a cache each and one for all, two memory nodes; one file contradicts the others."""
    files = {"proc/cpuinfo": b"vendor_id\t: AuthenticAMD\ncpu family\t: 21\n"}
    for cpu in range(CPUS):
        texts = {"core_id": str(cpu), "core_cpus": "a" if cpu % 2 else "5", "package_cpus": "3" if cpu == 2 else "f"}
        texts |= {"die_id": "0", "die_cpus": "f", "physical_package_id": "0"}
        files |= {f"sys/devices/system/cpu/cpu{cpu}/topology/{name}": text.encode() for name, text in texts.items()}
        for index, level, mask in (("index0", "1", texts["core_cpus"]), ("index3", "3", texts["package_cpus"])):
            cache = {"level": level, "type": "Unified", "size": "32K", "shared_cpu_map": mask}
            directory = f"sys/devices/system/cpu/cpu{cpu}/cache/{index}"
            files |= {f"{directory}/{name}": text.encode() for name, text in cache.items()}
    for node, mask in enumerate(("f", "0")):
        texts = {"cpumap": mask, "meminfo": f"Node {node} MemTotal: 1024 kB", "distance": "10 20" if node else "20 10"}
        files |= {f"sys/devices/system/node/node{node}/{name}": text.encode() for name, text in texts.items()}
    return files


def recorded(path: Path) -> dict[str, bytes]:
    """The files of CPUs and nodes 0 to 3 that a fuzzed tree may have."""
    wanted = {name.replace("%u", str(number)) for name in FILES for number in range(CPUS)}
    found = {}
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r:xz") as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            if name in wanted and member.isfile() and (file := archive.extractfile(member)) is not None:
                found[name] = file.read().strip(b"\0\n")
    return found


def packed(files: dict[str, bytes]) -> bytes:
    """As fuzz_topology.c reads it; long files are cut."""
    parts = [bytes([(1 << CPUS) - 1])]
    for at, name in enumerate(FILES):
        for number in range(CPUS if "%u" in name else 1):
            text = files.get(name.replace("%u", str(number)))
            if text is not None:
                parts += [bytes([at, number, min(len(text), 255)]), text[:255]]
    return b"".join(parts)


if __name__ == "__main__":
    sys.exit(main())
