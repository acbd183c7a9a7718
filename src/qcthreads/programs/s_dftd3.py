"""simple-dftd3 by its Python API, in the worker: threads only in builds that small molecules do not gain from."""

from .spec import Fact, Known, ParallelModel, ProgramSpec, Sample

SPEC = ProgramSpec(
    name="s-dftd3",
    title="DFT-D3 (s-dftd3)",
    parallel_model=ParallelModel.OPENMP,
    in_process=True,
    useful_width=1,
    takes_basis=False,
    python_module="dftd3",
    preload=("dftd3.qcschema",),
    sample=Sample(waters=256, method="pbe", keywords={"level_hint": "d3bj"}),
    install_hint="pip install dftd3, or conda install -c conda-forge dftd3-python",
    measured_with="1.7.0",
    facts=(
        Fact(
            "threads",
            "The wheel is built without OpenMP and calls no runtime; conda's builds have it.",
            Known.MEASURED,
            "wheel 1.7.0: no GOMP symbol",
        ),
        Fact(
            "harness",
            "Computes in the process and hands nothing of the task_config on.",
            Known.SOURCE,
            "QCEngine 0.52: programs/dftd_ng.py",
        ),
        Fact("width", "300 atoms take 0.01 s on one core.", Known.MEASURED, "1.7.0"),
        Fact("binding", "Keeps the mask that it inherits.", Known.MEASURED, "1.7.0 under taskset"),
    ),
)
