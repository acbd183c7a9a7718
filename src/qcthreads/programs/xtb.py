"""xtb by its Python API, in the worker itself: libgomp, and a pthreads OpenBLAS that must be held at one thread."""

from .spec import Fact, Known, ParallelModel, ProgramSpec, Sample

SPEC = ProgramSpec(
    name="xtb",
    title="xtb",
    parallel_model=ParallelModel.OPENMP,
    in_process=True,
    environment={
        # Told 2 as well, 3 threads ran and 64 waters took 3.30 s instead of 2.68 s (wheel 22.1, 2 cores).
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_STACKSIZE": "4G",  # virtual, as xtb's own help says; larger systems end with a segmentation fault without
    },
    command="xtb coord --parallel {threads}",
    python_module="xtb",
    preload=("xtb.qcschema.harness",),
    takes_basis=False,
    usual_method="GFN2-xTB",
    methods=("GFN2-xTB", "GFN1-xTB", "GFN0-xTB", "IPEA-xTB", "GFN-FF"),  # wheel 22.1: xtb/utils.py, get_method
    sample=Sample(waters=64, method="GFN2-xTB"),
    install_hint="pip install 'qcthreads[xtb]' (Linux, Python 3.11), or conda install -c conda-forge xtb-python",
    measured_with="the wheel 22.1",
    facts=(
        Fact(
            "threads",
            "libgomp by OMP_NUM_THREADS when it is loaded, and a pthreads OpenBLAS that falls back on the same "
            "variable.",
            Known.MEASURED,
            "wheel 22.1",
        ),
        Fact(
            "threads",
            "The command's --parallel calls omp_set_num_threads; it does not reach a pthreads OpenBLAS.",
            Known.SOURCE,
            "xtb 2b5cd482: src/prog/main.F90:1387",
        ),
        Fact(
            "harness",
            "Computes in the process and hands nothing of the task_config on.",
            Known.SOURCE,
            "QCEngine 0.52: programs/xtb.py",
        ),
        Fact("width", "64 waters: 2.73 s with one thread, 2.68 s with two.", Known.MEASURED, "wheel 22.1, 2 cores"),
        Fact("binding", "Keeps the mask that it inherits.", Known.MEASURED, "xtb 6.5.1 and wheel 22.1 under taskset"),
        Fact(
            "trap",
            "Threads need stack: without OMP_STACKSIZE larger systems end with a segmentation fault.",
            Known.SOURCE,
            "xtb 2b5cd482: src/xhelp.f90:347; xtb issue 191",
        ),
        Fact(
            "trap",
            "The command writes files of fixed names, of which xtbrestart shortens the next run.",
            Known.MEASURED,
            "xtb 6.5.1",
        ),
    ),
)
