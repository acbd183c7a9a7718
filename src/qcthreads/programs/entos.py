"""Entos: OpenMP in the worker, told by QCEngine's harness. The old name of Qcore."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="entos",
    title="Entos",
    parallel_model=ParallelModel.OPENMP,
    in_process=True,
    python_module="qcore",
    install_hint="conda install -c entos -c conda-forge py-qcore (closed source, no longer developed in public)",
    facts=(
        Fact(
            "harness",
            "qcore.run(..., ncores=ncores); no memory and no scratch.",
            Known.SOURCE,
            "QCEngine 0.52: programs/qcore.py",
        ),
        Fact("threads", "OpenMP.", Known.SECOND_HAND, "its manual"),
    ),
)
