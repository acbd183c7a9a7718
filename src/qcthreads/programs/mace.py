"""MACE: torch in the worker, on the CPU's threads or on a GPU."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="mace",
    title="MACE",
    parallel_model=ParallelModel.GPU,
    in_process=True,
    gpu=True,
    takes_basis=False,
    python_module="mace",
    distribution="mace-torch",
    install_hint="pip install mace-torch, or conda install -c conda-forge pymace",
    facts=(
        Fact(
            "threads",
            "torch reads OMP_NUM_THREADS at import, and MKL_NUM_THREADS for its MKL.",
            Known.DOCUMENTED,
            "docs.pytorch.org: threading environment variables",
        ),
        Fact(
            "harness",
            "device is cuda where torch finds it, else cpu; nothing of the task_config is used.",
            Known.SOURCE,
            "QCEngine 0.52: programs/mace.py",
        ),
        Fact("threads", "It calls nothing that sets threads: torch's defaults hold.", Known.SOURCE, "mace 667eee4e"),
        Fact("trap", "Every process takes GPU 0.", Known.SOURCE, "QCEngine 0.52: programs/mace.py"),
    ),
)
