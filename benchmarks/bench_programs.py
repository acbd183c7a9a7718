"""Each program that runs here, by QCEngine with its defaults and with our settings: two calculations at once, and one.

    python benchmarks/bench_programs.py [--rounds 6] [--program psi4] [--write [FOLDER] | --settings [groups|each]]

QCEngine's defaults are what a script gets that calls ``qcengine.compute(input, program)``: every core for each
calculation, OMP_NUM_THREADS and MKL_NUM_THREADS set. Ours are the settings of the record: two at once have a CPU each,
one alone has both. There are two CPUs for all, the last ones of a machine that has more. All are fresh processes, timed
from start to exit, interleaved round by round; the energies are compared. In brackets what holds the median of the
rounds' ratios between them (sign test), with the probability behind.
The calculations are those of ``qcthreads verify``. ``--write`` puts the times where docs/write_programs.py finds them,
or into FOLDER.

``--settings``: one calculation alone under our settings, and under them without some at a time: the mask, the counts of
threads, what else runtimes and the program read, and of programs that start MPI what launchers read; ``each``: without
one at a time, which takes five times as long. Each ratio is the wall time without / with. Where its interval is below
1, the settings make the program slower; so says one of 60 intervals by chance, and not the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import asking
import timing

from qcthreads.execution.sample import built_in
from qcthreads.monitoring.intervals import Interval, median_interval
from qcthreads.programs import launchers
from qcthreads.programs.precedence import environment_under, settle
from qcthreads.programs.registry import BUILT_IN, find, get, version
from qcthreads.programs.runtimes import COUNTS
from qcthreads.programs.settings import settings_for
from qcthreads.programs.spec import ProgramSpec

MEMORY_BYTES = 2 * 1024**3
PROGRAMS = [name for name in BUILT_IN if get(name).sample and get(name).qcengine]
MASK = "mask"
MEASURED = Path(__file__).parents[1] / "docs" / "programs" / "measured"
COMPUTE = """
import importlib, json, sys
import qcengine
with open(sys.argv[1]) as file:
    job = json.load(file)
if job["harness_module"]:
    importlib.import_module(job["harness_module"])
how = {"task_config": job["task_config"], "return_version": 2, "raise_error": True}
print(qcengine.compute(job["input"], job["program"], **how).properties.return_energy)
"""


def main() -> None:
    options = asking.parser(__doc__, rounds=6)
    options.add_argument("--program", action="append", choices=PROGRAMS)
    instead = options.add_mutually_exclusive_group()
    instead.add_argument(
        "--write", nargs="?", type=Path, const=MEASURED, metavar="FOLDER", help="for the pages of the programs, too"
    )
    instead.add_argument(
        "--settings", nargs="?", choices=("groups", "each"), const="groups", help="what the settings are worth"
    )
    options.add_argument("--start", nargs=2, metavar=("HOW", "NUMBER"), help=argparse.SUPPRESS)
    asked = options.parse_args()
    cpus = sorted(os.sched_getaffinity(0))[-2:]
    if len(cpus) < 2:
        options.error("two calculations at once need two CPUs, and this process may use one")
    os.sched_setaffinity(0, cpus)  # for all that is started: QCEngine's defaults take every core that they see
    if asked.start:
        how, number = asked.start
        print(json.dumps(start(asked.program[0], ours=how == "ours", number=int(number))))
        return
    for program in asked.program or PROGRAMS:
        if find(get(program)) is None:
            print(f"\n{program} is not installed here", flush=True)
        elif asked.settings:
            compare_settings(program, asked.rounds, each=asked.settings == "each")
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


def compare_settings(program: str, rounds: int, *, each: bool) -> None:
    """Print what the program loses, or gains, without some of its settings."""
    spec, cpus = get(program), sorted(os.sched_getaffinity(0))[-2:]
    with tempfile.TemporaryDirectory() as folder:
        width = settings_for(spec, len(cpus)).threads
        groups = _groups(spec, settings_for(spec, width, MEMORY_BYTES, folder).environment)
        if each:
            groups = {name: [name] for group in groups.values() for name in group}
        alternatives: dict[str, Sequence[str]] = {"all": (), **groups}
        commands = {name: _command(program, cpus[:width], folder, without) for name, without in alternatives.items()}
        timings = timing.interleave(commands, rounds)
    print(f"\n{program}, {built_in(spec).title}, alone, {rounds} rounds: wall time without / with", flush=True)
    for name in groups:
        ratio = median_interval(a / b for a, b in zip(timings[name].wall_s, timings["all"].wall_s, strict=True))
        print(f"  {name:40} {ratio}, {ratio.coverage:.0%}: {_worth(ratio)}", flush=True)
    energies = [float(one.stdout.split()[-1]) for one in timings.values()]
    print(f"  largest difference of energies: {max(energies) - min(energies):.1e} hartree", flush=True)


def _worth(ratio: Interval) -> str:
    if ratio.coverage < 0.95:
        return "too few rounds to tell"
    if ratio.low > 1:
        return "faster with it: worth keeping"
    if ratio.high < 1:
        return "SLOWER with it: if it is so again, to be removed"
    return "no difference to be seen: kept for what it prevents"


def _groups(spec: ProgramSpec, environment: Mapping[str, str]) -> dict[str, list[str]]:
    """Settings by what they are for, but for those that only let MPI start; launchers' where there is MPI."""
    mpi = [*launchers.BINDING, *launchers.SLOTS]
    counts = [name for name in COUNTS if name in environment]
    others = [name for name in environment if name not in (*counts, *mpi, *launchers.OPEN_MPI_AS_ROOT)]
    groups = {MASK: [MASK], "counts of threads": counts, "other variables": others}
    if spec.useful_width == 1:
        groups = {MASK: [MASK], "variables": counts + others}
    return groups | ({"launchers": mpi} if spec.starts_mpi else {})


def start(program: str, *, ours: bool, number: int) -> list[float]:
    """``number`` calculations at once, and their energies."""
    cpus = sorted(os.sched_getaffinity(0))[-2:]
    shares = [cpus[place::number] for place in range(number)]
    with tempfile.TemporaryDirectory() as folder:
        commands = [_command(program, share if ours else None, folder) for share in shares]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
        said = [process.communicate()[0] for process in running]
    failed = [process for process in running if process.returncode]
    if failed:
        raise SystemExit(f"{len(failed)} calculations failed")
    return [float(text.split()[-1]) for text in said]


def _command(program: str, cpus: Sequence[int] | None, folder: str, without: Sequence[str] = ()) -> list[str]:
    """A calculation in ``folder``, on ``cpus`` under our settings but for those ``without``; or without all of them."""
    spec = get(program)
    settings = settings_for(spec, len(cpus), MEMORY_BYTES, folder) if cpus else None
    document = {
        "program": program,
        "harness_module": spec.harness_module,
        "task_config": dict(settings.task_config) if settings else None,
        "input": built_in(spec).atomic_input,
    }
    job = Path(folder) / f"{'defaults' if cpus is None else len(cpus)}.json"
    job.write_text(json.dumps(document), encoding="utf-8")
    compute = [sys.executable, "-c", COMPUTE, str(job)]
    if settings is None or cpus is None:
        return ["env", "-C", folder, *compute]
    told = environment_under(settle(settings, os.environ, counts=False), os.environ)
    variables = [f"{name}={value}" for name, value in told.items() if name not in without]
    bound = [] if MASK in without else ["taskset", "-c", ",".join(map(str, cpus))]
    return [*bound, "env", "-C", folder, "-i", *variables, *compute]


if __name__ == "__main__":
    main()
