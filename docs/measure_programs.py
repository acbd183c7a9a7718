"""Measures anew what the pages of the programs tell, for every program that is here, and writes them.

    python docs/measure_programs.py [PROGRAM ...] [--rounds 6] [--into FOLDER]

`qcthreads verify PROGRAM --json` and benchmarks/bench_programs.py, one after the other, into docs/programs/measured.
For a machine that does nothing else; a program that fails keeps what was measured before, and is named at the end.
With FOLDER the pages stay as they are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from qcthreads.programs import registry

HERE = Path(__file__).parent
MEASURED = HERE / "programs" / "measured"
BENCHMARK = HERE.parent / "benchmarks" / "bench_programs.py"


def main() -> int:
    """Measure those that are asked for, or all; 1 where any fails."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("program", nargs="*")
    options.add_argument("--rounds", default="6", help="measurements of each; fewer than 6 give no interval of 95 %%")
    options.add_argument("--into", type=Path, default=MEASURED, metavar="FOLDER")
    asked, failed = options.parse_args(), []
    for name in asked.program or registry.BUILT_IN:
        spec = registry.get(name)
        if spec.sample is None or registry.find(spec) is None:
            if asked.program:
                failed.append(f"{name} (not here, or nothing to compute with it)")
            continue
        print(f"== {name}", flush=True)
        if not verify(name, asked.rounds, asked.into):
            failed.append(f"{name} (verify)")
        if spec.qcengine and run(BENCHMARK, "--program", name, "--rounds", asked.rounds, "--write", str(asked.into)):
            failed.append(f"{name} (benchmark)")
    if asked.into == MEASURED and run(HERE / "write_programs.py"):
        failed.append("the pages")
    print(f"failed: {', '.join(failed)}" if failed else "all was measured")
    return 1 if failed else 0


def run(script: Path, *arguments: str) -> int:
    """Its exit status."""
    return subprocess.run([sys.executable, script, *arguments], check=False).returncode


def verify(name: str, rounds: str, into: Path) -> bool:
    """Whether it could be run; what disobeys is measured, too."""
    command = [sys.executable, "-m", "qcthreads", "verify", name, "--repeats", rounds, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.stdout:
        (into / f"{name}.json").write_text(done.stdout, encoding="utf-8", newline="\n")
    return bool(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
