"""Each program that runs here, by QCEngine with its defaults and with our settings: two calculations at once, and one.

    python benchmarks/bench_programs.py [--rounds 6] [--program psi4] [--write [FOLDER] | --settings]

QCEngine's defaults are what a script gets that calls ``qcengine.compute(input, program)``: every core for each
calculation, OMP_NUM_THREADS and MKL_NUM_THREADS set. Ours are the settings of the record: two at once have a CPU each,
one alone has both. There are two CPUs for all, the last ones of a machine that has more. All are fresh processes, timed
from start to exit, interleaved round by round; the energies are compared. In brackets what holds the median of the
rounds' ratios between them (sign test), with the probability behind.
The calculations are those of ``qcthreads verify``. ``--write`` puts the times where docs/write_programs.py finds them,
or into FOLDER.

``--settings``: one calculation alone under our settings, and under them without one of them at a time: the mask, each
variable. A ratio below 1 is one of a setting that makes the program slower; it is marked where its interval is, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import timing

from qcthreads.execution.sample import built_in
from qcthreads.monitoring.intervals import median_interval
from qcthreads.programs.precedence import environment_under, settle
from qcthreads.programs.registry import BUILT_IN, find, get, version
from qcthreads.programs.runtimes import COUNTS
from qcthreads.programs.settings import settings_for

MEMORY_BYTES = 2 * 1024**3
PROGRAMS = [name for name in BUILT_IN if get(name).sample and get(name).qcengine]
MASK = "mask"
MEASURED = Path(__file__).parents[1] / "docs" / "programs" / "measured"
COMPUTE = """
import importlib, json, sys
import qcengine
job = json.load(sys.stdin)
if job["harness_module"]:
    importlib.import_module(job["harness_module"])
how = {"task_config": job["task_config"], "return_version": 2, "raise_error": True}
print(qcengine.compute(job["input"], job["program"], **how).properties.return_energy)
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--program", action="append", choices=PROGRAMS)
    instead = options.add_mutually_exclusive_group()
    instead.add_argument(
        "--write", nargs="?", type=Path, const=MEASURED, metavar="FOLDER", help="for the pages of the programs, too"
    )
    instead.add_argument("--settings", action="store_true", help="what each setting is worth by itself")
    options.add_argument("--without", help=argparse.SUPPRESS)
    options.add_argument("--start", nargs=2, metavar=("HOW", "NUMBER"), help=argparse.SUPPRESS)
    asked = options.parse_args()
    cpus = sorted(os.sched_getaffinity(0))[-2:]
    if len(cpus) < 2:
        options.error("two calculations at once need two CPUs, and this process may use one")
    os.sched_setaffinity(0, cpus)  # for all that is started: QCEngine's defaults take every core that they see
    if asked.start:
        how, number = asked.start
        print(json.dumps(start(asked.program[0], ours=how == "ours", number=int(number), without=asked.without)))
        return
    for program in asked.program or PROGRAMS:
        if find(get(program)) is None:
            print(f"\n{program} is not installed here", flush=True)
        elif asked.settings:
            compare_settings(program, asked.rounds)
        else:
            compare(program, asked.rounds, write=asked.write)


def compare(program: str, rounds: int, *, write: Path | None) -> None:
    """Print the tables of one program."""
    job, compared = built_in(get(program)).title, {}
    print(f"\n{program}, {job}, {rounds} rounds", flush=True)
    for number, what in ((2, "two at once"), (1, "one alone")):
        command = [sys.executable, __file__, "--program", program, "--start"]
        contenders = {
            f"{what}, QCEngine's defaults": [*command, "defaults", str(number)],
            f"{what}, qcthreads": [*command, "ours", str(number)],
        }
        timings = timing.interleave(contenders, rounds)
        print("\n" + timing.table(timings, f"{what}, qcthreads"), flush=True)
        defaults, ours = timings.values()
        for name, theirs, mine in (
            ("wall", defaults.wall_s, ours.wall_s),
            ("CPU", defaults.cpu_s, ours.cpu_s),
        ):
            ratio = median_interval(one / two for one, two in zip(theirs, mine, strict=True))
            print(f"\n{name} time, defaults / ours, by round: {ratio}, {ratio.coverage:.0%}", flush=True)
        energies = [energy for one in timings.values() for energy in json.loads(one.stdout)]
        print(f"\nlargest difference of energies: {max(energies) - min(energies):.1e} hartree", flush=True)
        compared[what] = {
            "defaults": {"wall_s": defaults.wall_s, "cpu_s": defaults.cpu_s},
            "qcthreads": {"wall_s": ours.wall_s, "cpu_s": ours.cpu_s},
            "energies_differ_hartree": max(energies) - min(energies),
        }
    if write:
        write_down(write, program, job, compared)


def write_down(folder: Path, program: str, job: str, compared: Mapping[str, object]) -> None:
    """What the page of the program is made from."""
    installation = find(get(program))
    document = {
        "program": program,
        "version": installation and version(installation),
        "date": datetime.now(UTC).date().isoformat(),
        "job": job,
        "compared": compared,
    }
    (folder / f"{program}.defaults.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def compare_settings(program: str, rounds: int) -> None:
    """Print what the program loses, or gains, without each setting."""
    spec = get(program)
    print(f"\n{program}, {built_in(spec).title}, alone, {rounds} rounds: wall time without / with", flush=True)
    environment = settings_for(spec, 2, MEMORY_BYTES, "scratch").environment
    counts = [name for name in COUNTS if name in environment and name not in spec.environment]
    others = [name for name in environment if name not in counts]
    settings = {MASK: MASK, "every count of threads": ",".join(counts), **dict(zip(others, others, strict=True))}
    command = [sys.executable, __file__, "--program", program, "--start", "ours", "1"]
    contenders = {"all": command} | {name: [*command, "--without", what] for name, what in settings.items()}
    timings = timing.interleave(contenders, rounds)
    for name in settings:
        pairs = zip(timings[name].wall_s, timings["all"].wall_s, strict=True)
        ratio = median_interval(without / with_all for without, with_all in pairs)
        slows = ", and so makes it slower" if ratio.high < 1 else ""
        print(f"  {name:40} {ratio}, {ratio.coverage:.0%}{slows}", flush=True)


def start(program: str, *, ours: bool, number: int, without: str | None = None) -> list[float]:
    """``number`` calculations at once, and their energies; under our settings but for one, or some by commas."""
    cpus = sorted(os.sched_getaffinity(0))[-2:]
    shares = [cpus[place::number] for place in range(number)]
    with tempfile.TemporaryDirectory() as folder:
        running = [_calculation(program, share if ours else None, folder, without or "") for share in shares]
        said = [process.communicate()[0] for process in running]
    failed = [process for process in running if process.returncode]
    if failed:
        raise SystemExit(f"{len(failed)} calculations failed")
    return [float(text.split()[-1]) for text in said]


def _calculation(program: str, cpus: list[int] | None, folder: str, without: str) -> subprocess.Popen[str]:
    """A calculation of its own, on ``cpus`` under our settings but for those ``without``; or without both."""
    spec = get(program)
    settings = settings_for(spec, len(cpus), MEMORY_BYTES, folder) if cpus else None
    job = {
        "program": program,
        "harness_module": spec.harness_module,
        "task_config": dict(settings.task_config) if settings else None,
        "input": built_in(spec).atomic_input,
    }
    bound = ["taskset", "-c", ",".join(map(str, cpus))] if cpus and without != MASK else []
    told = environment_under(settle(settings, os.environ, counts=False), os.environ) if settings else None
    with tempfile.TemporaryFile("w+") as asked:  # not a pipe, whose end each would hear of after the one before it
        json.dump(job, asked)
        asked.seek(0)
        return subprocess.Popen(
            [*bound, sys.executable, "-c", COMPUTE],
            env={name: value for name, value in told.items() if name not in without.split(",")} if told else None,
            stdin=asked,
            stdout=subprocess.PIPE,
            cwd=folder,
            text=True,
        )


if __name__ == "__main__":
    main()
