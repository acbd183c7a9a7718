"""Measures anew what the pages of the programs tell, for every program that is here, and writes them.

    python docs/measure_programs.py [PROGRAM ...]

`qcthreads verify PROGRAM --json` and benchmarks/bench_programs.py, one after the other, into docs/programs/measured.
For a machine that does nothing else; a program that fails keeps what was measured before, and is named at the end.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qcthreads.programs import registry

HERE = Path(__file__).parent
MEASURED = HERE / "programs" / "measured"
BENCHMARK = HERE.parent / "benchmarks" / "bench_programs.py"


def main(asked: list[str]) -> int:
    """Measure those ``asked`` for, or all; 1 where any fails."""
    failed = []
    for name in asked or registry.BUILT_IN:
        spec = registry.get(name)
        if spec.sample is None or registry.find(spec) is None:
            if asked:
                failed.append(f"{name} (not here, or nothing to compute with it)")
            continue
        print(f"== {name}", flush=True)
        if not verify(name):
            failed.append(f"{name} (verify)")
        if spec.qcengine and run(BENCHMARK, "--program", name, "--write"):
            failed.append(f"{name} (benchmark)")
    if run(HERE / "write_programs.py"):
        failed.append("the pages")
    print(f"failed: {', '.join(failed)}" if failed else "all was measured")
    return 1 if failed else 0


def run(script: Path, *arguments: str) -> int:
    """Its exit status."""
    return subprocess.run([sys.executable, script, *arguments], check=False).returncode


def verify(name: str) -> bool:
    """Whether it could be run; what disobeys is measured, too."""
    done = subprocess.run(
        [sys.executable, "-m", "qcthreads", "verify", name, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.stdout:
        (MEASURED / f"{name}.json").write_text(done.stdout, encoding="utf-8", newline="\n")
    return bool(done.stdout)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
