"""AIMNet2: torch in the worker, on the CPU's threads."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="aimnet2",
    title="AIMNet2",
    parallel_model=ParallelModel.OPENMP,
    in_process=True,
    takes_basis=False,
    python_module="pyaimnet2",
    install_hint="pip install git+https://github.com/jthorton/AIMNet2.git@main",
    facts=(
        Fact(
            "threads",
            "torch reads OMP_NUM_THREADS at import, and MKL_NUM_THREADS for its MKL.",
            Known.DOCUMENTED,
            "docs.pytorch.org: threading environment variables",
        ),
        Fact(
            "harness",
            "Tensors on the CPU, whatever GPUs there are; nothing of the task_config is used.",
            Known.SOURCE,
            "QCEngine 0.52: programs/aimnet2.py",
        ),
    ),
)
