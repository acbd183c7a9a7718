"""Writes docs/programs.md and docs/programs/*.md from the programs' records, what was written by hand
(docs/programs/parts) and what measure_programs.py measured (docs/programs/measured): NAME.json by `qcthreads verify
--json`, NAME.defaults.json by benchmarks/bench_programs.py. ``--check`` writes nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from qcthreads.monitoring.intervals import median_interval
from qcthreads.programs import launchers, registry, runtimes
from qcthreads.programs.settings import settings_for
from qcthreads.programs.spec import Fact, ParallelModel, ProgramSpec
from qcthreads.units import format_size

HERE = Path(__file__).parent
PARTS = HERE / "programs" / "parts"
MEASURED = HERE / "programs" / "measured"
_WIDTH = 4  # of the examples


def pages() -> dict[Path, str]:
    """Every page that is written here, by its file."""
    specs = [registry.get(name) for name in registry.BUILT_IN]
    written = {
        HERE / "programs.md": _index(specs),
        HERE / "programs" / "runtimes.md": _joined(_part("_runtimes"), _variables()),
        HERE / "programs" / "mpi.md": _joined(_part("_mpi"), _launchers(), _part("_mpi_tail")),
    }
    return written | {HERE / "programs" / f"{spec.name}.md": _page(spec) for spec in specs}


def _index(specs: list[ProgramSpec]) -> str:
    names = "\n".join(f"programs/{spec.name}" for spec in specs)
    contents = f"```{{toctree}}\n:hidden:\nprograms/runtimes\nprograms/mpi\n{names}\n```"
    return _joined(_part("_head"), _table(specs), _part("_specification"), _part("_every"), _part("_tail"), contents)


def _table(specs: list[ProgramSpec]) -> str:
    lines = [
        "## All of them",
        "",
        "| program | threads by | through | how well its threading is known | `qcthreads verify` |",
        "|---|---|---|---|---|",
    ]
    for spec in specs:
        through = "QCEngine" if spec.qcengine else "`exec`"
        link = f"[{spec.title}](programs/{spec.name}.md) `{spec.name}`"
        cells = (link, spec.parallel_model.value, through, spec.provenance, _verdict(spec))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _verdict(spec: ProgramSpec) -> str:
    measured = _measured(spec.name)
    if measured is None:
        return "never verified"
    return f"{'obeys' if measured['obeys'] else '**does not obey**'}: {measured['version']}, {measured['date']}"


def _variables() -> str:
    constants = ", ".join(f"`{name}={value}`" for name, value in runtimes.CONSTANTS.items())
    counts = ", ".join(f"`{name}`" for name in runtimes.COUNTS)
    unset = ", ".join(f"`{name}`" for name in runtimes.UNSET)
    slots = ", ".join(f"`{name}`" for name in launchers.SLOTS)
    return (
        f"- Set to the threads of one process: {counts}\n- Set to the cores of the lease: {slots}\n"
        f"- Set always: {constants}\n- Removed: {unset}"
    )


def _launchers() -> str:
    lines = ["| launcher | inherits the mask | told | removed | known | |", "|---|---|---|---|---|---|"]
    for launcher in launchers.LAUNCHERS:
        told = ", ".join(f"`{name}={value}`" for name, value in launcher.environment.items())
        removed = ", ".join(f"`{name}`" for name in launcher.escapes)
        inherits = "yes" if launcher.inherits_mask else "no"
        cells = (launcher.name, inherits, told, removed, launcher.known.value, launcher.note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _page(spec: ProgramSpec) -> str:
    """One program: what is known, set and measured, and how it is used."""
    return _joined(
        f"(program-{spec.name.replace('_', '-')})=\n# {spec.title}",
        f"*{spec.parallel_model.value}; {spec.provenance}.* {spec.install_hint}.",
        _part(spec.name),
        _section("How it threads", _joined(_facts(spec, "threads", "width", "binding", "memory"), _not_known(spec))),
        _section(f"What qcthreads sets, at a width of {_WIDTH}", _items(_set(spec))),
        _section("What it does not", _items(_not_set(spec))),
        _section("Through QCEngine", _by_qcengine(spec)),
        _section("Through `exec`", _by_exec(spec)),
        _section("In a batch script", _by_batch(spec)),
        _section("What it did when it was run", _seen(spec)),
        _section("QCEngine's defaults and these settings", _beside_defaults(spec)),
    )


def _facts(spec: ProgramSpec, *topics: str) -> str:
    return "\n".join(_fact(fact) for topic in topics for fact in spec.facts if fact.topic == topic)


def _not_known(spec: ProgramSpec) -> str:
    return f"Not known: {'; '.join(spec.not_known)}." if spec.not_known else ""


def _fact(fact: Fact) -> str:
    return f"- {fact.text} *({fact.known.value}; {fact.source})*"


def _set(spec: ProgramSpec) -> Iterator[str]:
    settings = settings_for(spec, _WIDTH)
    each = settings.threads // settings.ranks
    if settings.threads == 1:
        yield "One PU, whatever was asked."
    elif settings.ranks > 1:
        yield f"{settings.ranks} processes of {each} thread."
    else:
        yield f"1 process of {settings.threads} threads."
    yield "The mask of the lease, and the variables of [all runtimes and launchers](runtimes.md)."
    told = {name: f"`{name}={value}`" for name, value in spec.environment.items()}
    scratch = [words for words in told.values() if "{scratch}" in words]
    always = [words for words in told.values() if words not in scratch]
    if always:
        yield f"Beside them {', '.join(always)}."
    if scratch:
        who = "`run` and `verify`, which make" if spec.qcengine else "`verify`, which makes"
        yield f"By {who} a directory for each calculation, {', '.join(scratch)}; else what you have set stays."
    if spec.unset:
        yield f"Removed: {', '.join(f'`{name}`' for name in spec.unset)}."
    if spec.qcengine:
        config = {name: value for name, value in settings.task_config.items() if name != "ncores"}
        more = "".join(f", `{name}={value!r}`" for name, value in config.items())
        yield f"QCEngine's task_config: `ncores={settings.threads}`{more}."
        yield from (f"{_fact(fact)[2:]}" for fact in spec.facts if fact.topic == "harness")
    if spec.memory:
        less = f" less {format_size(spec.memory_overhead_bytes)}" if spec.memory_overhead_bytes else ""
        if spec.memory_per_process_bytes:
            less += f", and {format_size(spec.memory_per_process_bytes)} for each process but the first"
        yield (
            f"Memory, per {spec.memory.scope}, in {spec.memory.unit}: {spec.memory.set_by}. Through QCEngine it is "
            f"told the lease's{less}."
            if spec.qcengine
            else f"Memory is told by you, per {spec.memory.scope}, in {spec.memory.unit}: {spec.memory.set_by}."
        )


def _not_set(spec: ProgramSpec) -> Iterator[str]:
    for name, reason in spec.inert.items():
        yield f"`{name}`: {reason}."
    if spec.input_text:
        yield f"What your own input says of the width: at {_WIDTH} it is `{_filled(spec, spec.input_text)}`."
    if spec.memory is None:
        yield "Memory: it has no setting for all of it that is known, so that the lease's is counted and not told."
    if spec.useful_width is not None:
        yield f"More than {spec.useful_width}: what a wider lease would have beyond that is left to others."
    if spec.parallel_model is not ParallelModel.SERIAL:
        yield "Pin single threads: they move within the mask."
    if spec.gpu:
        yield (
            "Choose among GPUs: it computes on all that the lease shows it. Through QCEngine that is one, where there "
            "is any; `exec` shows as many as `--gpus` says, else none."
        )
    for fact in spec.facts:
        if fact.topic == "trap":
            yield f"A trap: {_fact(fact)[2:]}"


def _by_qcengine(spec: ProgramSpec) -> str:
    if not spec.qcengine:
        return "QCEngine has no harness for it."
    width = settings_for(spec, _WIDTH).threads
    return f"""```python
import qcengine
import qcthreads

with qcthreads.qcengine_lease("{spec.name}", threads={width}, memory_bytes=8 * 1024**3) as task_config:
    result = qcengine.compute(atomic_input, "{spec.name}", task_config=task_config)
```"""


def _by_exec(spec: ProgramSpec) -> str:
    return f"```console\n$ {_exec_command(spec)}\n```"


def _by_batch(spec: ProgramSpec) -> str:
    return f"""```bash
#!/bin/bash
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task=8 --mem=16G{" --gpus=2" if spec.gpu else ""}
# Two at a time, of {settings_for(spec, _WIDTH).threads} each: what does not fit waits.
for input in */; do
    (cd "$input" && {_exec_command(spec, "--wait ")} > output) &
done
wait
```"""


def _exec_command(spec: ProgramSpec, options: str = "") -> str:
    bare = "python script.py" if spec.in_process else f"{spec.executable} ..."
    command = _filled(spec, spec.command) or bare
    width = settings_for(spec, _WIDTH).threads
    if "$(" in command or "=" in command.split()[0]:  # a shell is to read it
        command = f"sh -c '{command}'"
    options += f"--program {spec.name} --threads {width} --memory 8GiB{' --gpus 1' if spec.gpu else ''}"
    return f"qcthreads exec {options} -- {command}"


def _filled(spec: ProgramSpec, template: str) -> str:
    settings = settings_for(spec, _WIDTH)
    ranks = settings.ranks
    return template.format(threads=settings.threads // ranks, ranks=ranks, width=settings.threads, scratch="$TMPDIR")


def _seen(spec: ProgramSpec) -> str:
    measured = _measured(spec.name)
    checks = _facts(spec, "check")
    how = f"To see that it obeyed:\n\n{checks}" if checks else ""
    if measured is None:
        need = "" if spec.sample else " --input FILE"
        said = (
            f"Never verified: `qcthreads verify` has not been run with it. `qcthreads verify {spec.name}{need}` does."
        )
        return _joined(said, how).strip()
    lines = [
        "| width | threads that worked | speedup | efficiency | wall s | CPU s | peak memory | energy, hartree |",
        "|---|---|---|---|---|---|---|---|",
        *map(_measured_row, measured["widths"], measured["scaling"]),
        *(_measured_row(one, None) for one in measured["two_at_once"]),
    ]
    scaling = measured["scaling"][0]["speedup"]
    basis = (
        f"`qcthreads verify {spec.name}` of {measured['date']}, version {measured['version']}, on "
        f"{measured['platform']} with {measured['cpus_usable']} CPUs: {measured['job']}; {measured['repeats']} "
        "measurements of each width. In brackets what holds the median between them with "
        f"{scaling['coverage']:.0%} ({measured['interval_method']})."
    )
    beside = measured["side_by_side"]
    twice = f"Two at the same time took {_interval(beside)} times as long as one alone at that width." if beside else ""
    granted = format_size(measured["widths"][0]["memory_granted_bytes"])
    notes = _items([*measured["notes"], f"Granted: {granted} of memory."])
    return _joined(f"**{measured['verdict']}.**", basis, "\n".join(lines), twice, notes, how).strip()


def _measured_row(one: Mapping[str, Any], scaling: Mapping[str, Any] | None) -> str:
    ranks = f" in {one['processes_working']} processes" if one["processes_working"] > 1 else ""
    cells = (
        f"{one['threads']}" if scaling else f"{one['threads']}, one of two at the same time",
        f"{one['threads_working']}{ranks}",
        _interval(scaling["speedup"]) if scaling else "",
        _interval(scaling["efficiency"]) if scaling else "",
        f"{median(one['wall_s']):.2f}",
        f"{median(one['cpu_s']):.2f}",
        format_size(one["memory_peak_bytes"]),
        "not read" if one["energy_hartree"] is None else f"{one['energy_hartree']:.8f}",
    )
    return f"| {' | '.join(cells)} |"


def _beside_defaults(spec: ProgramSpec) -> str:
    """What a script gets that leaves everything to QCEngine, beside what it gets here."""
    measured = _measured(f"{spec.name}.defaults")
    if measured is None:
        return ""
    lines = [
        "| | time | s, QCEngine's defaults | s, qcthreads | defaults / qcthreads |",
        "|---|---|---|---|---|",
        *(_compared_row(what, both, clock) for what, both in measured["compared"].items() for clock in ("wall", "cpu")),
    ]
    rounds = len(measured["compared"]["one alone"]["defaults"]["wall_s"])
    differ = max(both["energies_differ_hartree"] for both in measured["compared"].values())
    version = f", version {measured['version']}" if measured["version"] else ""
    basis = (
        f"`benchmarks/bench_programs.py` of {measured['date']}{version}, on two CPUs: "
        f"{measured['job']}; {rounds} rounds. Two at once have a CPU each by qcthreads, and both CPUs by QCEngine's "
        "defaults. The ratio is that of each round, in brackets what holds its median; energies differ by "
        f"{differ:.0e} hartree at most."
    )
    return _joined(basis, "\n".join(lines)).strip()


def _compared_row(what: str, both: Mapping[str, Any], clock: str) -> str:
    theirs, ours = both["defaults"][f"{clock}_s"], both["qcthreads"][f"{clock}_s"]
    ratio = median_interval(one / other for one, other in zip(theirs, ours, strict=True))
    name = "CPU" if clock == "cpu" else clock
    return f"| {what} | {name} | {median(theirs):.2f} | {median(ours):.2f} | {ratio} |"


def _interval(interval: Mapping[str, float]) -> str:
    return f"{interval['median']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


@cache
def _measured(name: str) -> dict[str, Any] | None:
    path = MEASURED / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _part(name: str) -> str:
    """What was written by hand."""
    path = PARTS / f"{name}.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _items(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _joined(*blocks: str) -> str:
    return "\n\n".join(block.strip() for block in blocks if block) + "\n"


if __name__ == "__main__":
    written = pages()
    stale = [path for path, text in written.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    left = sorted({*(HERE / "programs").glob("*.md")} - written.keys())
    if "--check" not in sys.argv:
        for path in stale:
            path.write_text(written[path], encoding="utf-8", newline="\n")
        for path in left:
            path.unlink()
    elif stale or left:
        sys.exit(f"{', '.join(path.name for path in [*stale, *left])} not what the records say: run python {__file__}")
