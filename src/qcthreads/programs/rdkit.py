"""RDKit's force fields: serial, in the worker."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="rdkit",
    title="RDKit",
    parallel_model=ParallelModel.SERIAL,
    in_process=True,
    takes_basis=False,
    python_module="rdkit",
    install_hint="pip install rdkit, or conda install -c conda-forge rdkit",
    facts=(
        Fact(
            "harness",
            "One force-field energy or gradient in the process; nothing of the task_config is used.",
            Known.SOURCE,
            "QCEngine 0.52: programs/rdkit.py",
        ),
        Fact(
            "threads",
            "Only the functions for conformers take numThreads, 1 by default; the harness calls none of them.",
            Known.DOCUMENTED,
            "rdkit.org: RDThreads.h",
        ),
    ),
)
