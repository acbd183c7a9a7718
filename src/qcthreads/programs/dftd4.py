"""DFT-D4 by its Python API, in the worker: OpenMP that small molecules do not gain from."""

from .spec import Fact, Known, ParallelModel, ProgramSpec, Sample

SPEC = ProgramSpec(
    name="dftd4",
    title="DFT-D4",
    parallel_model=ParallelModel.OPENMP,
    in_process=True,
    useful_width=1,
    takes_basis=False,
    python_module="dftd4",
    preload=("dftd4.qcschema",),
    sample=Sample(waters=128, method="pbe", keywords={"level_hint": "d4"}),
    install_hint="pip install dftd4, or conda install -c conda-forge dftd4-python",
    measured_with="4.3.1",
    facts=(
        Fact(
            "threads",
            "OMP_NUM_THREADS when libgomp is loaded; the wheel brings its own.",
            Known.MEASURED,
            "wheel 4.3.1",
        ),
        Fact(
            "harness",
            "Computes in the process and hands nothing of the task_config on.",
            Known.SOURCE,
            "QCEngine 0.52: programs/dftd_ng.py",
        ),
        Fact(
            "width",
            "300 carbon atoms with gradient: 0.17 s with one thread, 0.15 s with four on 2 CPUs.",
            Known.MEASURED,
            "4.3.1",
        ),
        Fact("binding", "Keeps the mask that it inherits.", Known.MEASURED, "4.3.1 under taskset"),
        Fact(
            "trap",
            "Where torch was imported first, its OpenMP runtime takes over, and OMP_NUM_THREADS stops to matter.",
            Known.SECOND_HAND,
            "dftd4 issue 245",
        ),
    ),
)
