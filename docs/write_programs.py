"""Writes docs/programs.md from the programs' records and docs/programs/*.md; with ``--check`` it writes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from qcthreads.programs import launchers, registry, runtimes
from qcthreads.programs.settings import settings_for
from qcthreads.programs.spec import Fact, ProgramSpec

HERE = Path(__file__).parent
PAGE = HERE / "programs.md"
PARTS = HERE / "programs"
_TOPICS = {
    "threads": "Threads",
    "harness": "QCEngine",
    "memory": "Memory",
    "binding": "Binding",
    "width": "Width",
    "trap": "Trap",
    "check": "To see that it obeyed",
}


def page() -> str:
    """The whole page."""
    specs = [registry.get(name) for name in registry.BUILT_IN]
    parts = [
        _part("_head"),
        _table(specs),
        _part("_every"),
        _runtimes(),
        _launchers(),
        *map(_section, specs),
        _part("_tail"),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _part(name: str) -> str:
    """What was written by hand."""
    path = PARTS / f"{name}.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _table(specs: list[ProgramSpec]) -> str:
    head = ["| program | threads by | through | how well its threading is known |", "|---|---|---|---|"]
    lines = ["## All of them", "", *head]
    for spec in specs:
        through = "QCEngine" if spec.qcengine else "`exec`"
        link = f"[{spec.title}](#{_anchor(spec)}) `{spec.name}`"
        lines.append(f"| {link} | {spec.parallel_model.value} | {through} | {spec.provenance} |")
    return "\n".join(lines)


def _runtimes() -> str:
    constants = ", ".join(f"`{name}={value}`" for name, value in runtimes.CONSTANTS.items())
    counts = ", ".join(f"`{name}`" for name in runtimes.COUNTS)
    unset = ", ".join(f"`{name}`" for name in runtimes.UNSET)
    lines = [
        "## Runtimes",
        "",
        f"- Set to the threads of one process: {counts}",
        f"- Set always: {constants}",
        f"- Removed: {unset}",
    ]
    return "\n".join(lines)


def _launchers() -> str:
    lines = [
        "## MPI launchers",
        "",
        "| launcher | inherits the mask | told | removed | known | |",
        "|---|---|---|---|---|---|",
    ]
    for launcher in launchers.LAUNCHERS:
        told = ", ".join(f"`{name}={value}`" for name, value in launcher.environment.items())
        removed = ", ".join(f"`{name}`" for name in launcher.escapes)
        inherits = "yes" if launcher.inherits_mask else "no"
        cells = (launcher.name, inherits, told, removed, launcher.known.value, launcher.note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _section(spec: ProgramSpec) -> str:
    title = f"({_anchor(spec)})=\n## {spec.title}"
    blocks = [title, _settings(spec), "\n".join(map(_fact, spec.facts)), _part(spec.name)]
    return "\n\n".join(block.strip() for block in blocks if block)


def _settings(spec: ProgramSpec) -> str:
    """What a calculation at a width of 4 is started with, beyond what every program gets."""
    return "\n".join(f"- {label}: {text}" for label, text in _setting_lines(spec))


def _setting_lines(spec: ProgramSpec) -> Iterator[tuple[str, str]]:
    yield "Install", spec.install_hint
    settings = settings_for(spec, 4)
    each = int(settings.environment["OMP_THREAD_LIMIT"])
    if settings.threads == 1:
        yield "A width of 4", "is 1: more is not used"
    elif settings.ranks > 1:
        yield "A width of 4", f"is {settings.ranks} processes of {each} thread"
    else:
        yield "A width of 4", f"is 1 process of {settings.threads} threads"
    environment = " ".join(f"`{name}={value}`" for name, value in spec.environment.items())
    if environment:
        yield "Environment, beside the runtimes'", environment
    if spec.unset:
        yield "Removed", ", ".join(f"`{name}`" for name in spec.unset)
    config = {name: value for name, value in settings.task_config.items() if name != "ncores"}
    if spec.qcengine:
        told = "".join(f", `{name}={value!r}`" for name, value in config.items())
        yield "QCEngine's task_config", f"`ncores={settings.threads}`{told}"
    if spec.command:
        yield "Its own command", f"`{spec.command}`"
    if spec.input_text:
        yield "In its input", f"`{spec.input_text}`"
    if spec.memory:
        yield "Memory", f"per {spec.memory.scope}, in {spec.memory.unit}; {spec.memory.set_by}"
    for name, reason in spec.inert.items():
        yield f"In vain: `{name}`", reason


def _fact(fact: Fact) -> str:
    return f"- {_TOPICS[fact.topic]}: {fact.text} *({fact.known.value}; {fact.source})*"


def _anchor(spec: ProgramSpec) -> str:
    return f"program-{spec.name.replace('_', '-')}"


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8", newline="\n")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is not what the records say: run python {__file__}")
