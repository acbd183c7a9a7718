"""ORB: torch in the worker, on the CPU's threads or on a GPU."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="orb",
    title="ORB",
    parallel_model=ParallelModel.GPU,
    in_process=True,
    gpu=True,
    takes_basis=False,
    python_module="orb_models",
    install_hint="pip install orb-models",
    facts=(
        Fact(
            "threads",
            "torch reads OMP_NUM_THREADS at import, and MKL_NUM_THREADS for its MKL.",
            Known.DOCUMENTED,
            "docs.pytorch.org: threading environment variables",
        ),
        Fact(
            "harness",
            "The keyword device, else cuda where torch finds it; nothing of the task_config is used.",
            Known.SOURCE,
            "QCEngine 0.52: programs/orb.py",
        ),
        Fact(
            "trap",
            "Every process takes GPU 0, unless the keyword device says cpu.",
            Known.SOURCE,
            "QCEngine 0.52: programs/orb.py",
        ),
    ),
)
