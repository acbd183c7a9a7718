"""TorchANI: torch in the worker, on the CPU's threads or on a GPU."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="torchani",
    title="TorchANI",
    parallel_model=ParallelModel.GPU,
    in_process=True,
    gpu=True,
    takes_basis=False,
    python_module="torchani",
    install_hint="pip install torchani",
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
            "QCEngine 0.52: programs/torchani.py",
        ),
        Fact(
            "threads",
            "Its optional MNP extension calls omp_set_num_threads(min(n, networks)).",
            Known.SOURCE,
            "torchani 800dcdd3: torchani/csrc/mnp.cpp:10",
        ),
        Fact("trap", "Every process takes GPU 0.", Known.SOURCE, "QCEngine 0.52: programs/torchani.py"),
    ),
)
