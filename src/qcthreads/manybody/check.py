"""Asks the programs, before anything is computed, whether they know the method, basis and keywords asked for.

In a worker: it has the program loaded, or soon will, and the driver would need a second to load it.
"""

from __future__ import annotations

from ..errors import InputError
from ..execution.calculation import Calculation
from ..execution.engine import LocalEngine
from ..programs import registry
from .expansion import Chemistry, Expansion

_PATIENCE_S = 60.0  # to import a program from a slow file system takes many seconds; to answer, none


def check_with_program(engine: LocalEngine, expansion: Expansion, *, threads: int, memory_bytes: int) -> None:
    """Raise InputError with what a program says where it would refuse every calculation.

    The worker that answers is one for calculations of this width, and stays for them. A program whose record names no
    check is not asked; nor is it an error that the asking fails: then the calculations themselves say why.
    """
    for chemistry in expansion.chemistries:
        if registry.get(chemistry.program).check is not None:
            _ask(engine, expansion, chemistry, threads, memory_bytes)


def _ask(engine: LocalEngine, expansion: Expansion, chemistry: Chemistry, threads: int, memory_bytes: int) -> None:
    spec, given = registry.get(chemistry.program), chemistry.specification
    question = Calculation(
        label=f"whether {spec.title} knows what is asked for",
        program=chemistry.program,
        input={
            "driver": given["driver"],
            "model": dict(given["model"]),
            "keywords": dict(given.get("keywords") or {}),
            "elements": sorted({str(symbol) for symbol in expansion.core.molecule.symbols}),
        },
        threads=threads,
        memory_bytes=memory_bytes,
        compute=spec.check,
        timeout_s=_PATIENCE_S,
    )
    (answer,) = engine.run([question])
    refused = (answer.result or {}).get("refused")
    if refused:
        raise InputError(f"{spec.title} cannot compute this: {refused}")
