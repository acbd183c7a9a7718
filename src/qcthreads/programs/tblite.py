"""tblite in the worker itself, through a QCEngine harness of ours, for QCEngine has none: libgomp alone has threads."""

from .spec import Fact, Known, ParallelModel, ProgramSpec, Sample

SPEC = ProgramSpec(
    name="tblite",
    title="tblite",
    parallel_model=ParallelModel.OPENMP,
    in_process=True,
    environment={
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_STACKSIZE": "4G",  # virtual; its stack grows with the system (tblite: doc/tutorial/parallel.rst)
    },
    python_module="tblite",
    required_modules=("qcelemental",),
    harness_module="qcthreads.programs.harnesses.tblite",
    preload=("tblite.qcschema",),
    takes_basis=False,
    usual_method="GFN2-xTB",
    methods=("GFN2-xTB", "GFN1-xTB", "IPEA1-xTB"),  # 0.8.0: tblite/qcschema.py
    sample=Sample(waters=64, method="GFN2-xTB"),
    install_hint="pip install tblite qcengine, or conda install -c conda-forge tblite-python",
    measured_with="0.8.0",
    facts=(
        Fact(
            "threads",
            "OMP_NUM_THREADS when libgomp is loaded; it has no call of its own.",
            Known.SOURCE,
            "tblite 91756528: doc/tutorial/parallel.rst",
        ),
        Fact(
            "threads",
            "The wheel uses the system's libgomp and a reference BLAS, which has no threads.",
            Known.MEASURED,
            "wheel 0.8.0",
        ),
        Fact("width", "64 waters: 4.30 s with one thread, 4.04 s with two.", Known.MEASURED, "0.8.0, 2 cores"),
        Fact("binding", "Keeps the mask that it inherits.", Known.MEASURED, "0.8.0 under taskset"),
        Fact(
            "trap",
            "With torch up to 2.6 in the same process two libgomps met, and energies differed from run to run.",
            Known.SOURCE,
            "tblite 91756528: .github/regressions/test_libgomp_collision.py; issue 340",
        ),
    ),
)
