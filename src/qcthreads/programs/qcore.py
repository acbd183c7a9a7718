"""Qcore: OpenMP in the worker, told by QCEngine's harness."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="qcore",
    title="Qcore",
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
