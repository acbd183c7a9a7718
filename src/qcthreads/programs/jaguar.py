"""Jaguar: as many threads as QCEngine tells Schrödinger's job control."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="jaguar",
    title="Jaguar",
    parallel_model=ParallelModel.THREADS,
    in_process=False,
    command="jaguar run -PARALLEL {threads} input.in",
    python_module="schrodinger.application.jaguar.input",
    install_hint="Jaguar is part of Schrödinger's suite, which is licensed: run qcthreads with the suite's Python, "
    "with SCHRODINGER set",
    facts=(
        Fact(
            "harness",
            "-PARALLEL ncores, a scratch directory, no memory.",
            Known.SOURCE,
            "QCEngine 0.52: programs/jaguar.py",
        ),
        Fact(
            "trap",
            "The harness changes the state of its whole process: never two in the threads of one process.",
            Known.SOURCE,
            "QCEngine 0.52: programs/jaguar.py",
        ),
        Fact(
            "threads",
            "What -PARALLEL starts, and whether its job control keeps the mask, is not known.",
            Known.SECOND_HAND,
            "QCEngine's own words: multiple threads",
        ),
    ),
)
