"""MOPAC: no parallel region of its own; small systems gain nothing from a threaded BLAS."""

from .spec import Fact, Known, ParallelModel, ProgramSpec, Sample

SPEC = ProgramSpec(
    name="mopac",
    title="MOPAC",
    parallel_model=ParallelModel.BLAS,
    in_process=False,
    command="mopac input.mop",
    input_text="THREADS={threads}",
    useful_width=1,  # 60 waters, PM7: 1.54 s with 1, 1.57 s with 2 (22.0.6, 2 cores); its maintainer says the same
    takes_basis=False,
    executable="mopac",
    version_command=("mopac", "--version"),
    sample=Sample(waters=60, method="pm7"),
    install_hint="on Debian: apt install mopac, or conda install -c conda-forge mopac; never PyPI's mopac, "
    "an unrelated package",
    measured_with="22.0.6",
    facts=(
        Fact(
            "threads",
            "No OpenMP region exists in its source; threads run in BLAS and LAPACK only, and MOZYME calls neither.",
            Known.SOURCE,
            "mopac 05269122",
        ),
        Fact(
            "threads",
            "The keyword THREADS calls omp_set_num_threads, in builds with THREADS_KEYWORD; without it the runtime's "
            "default holds, all CPUs.",
            Known.SOURCE,
            "mopac 05269122: src/input/readmo.F90:792, CMakeLists.txt:214",
        ),
        Fact(
            "harness",
            "OMP_NUM_THREADS and MKL_NUM_THREADS in the child's environment; it calls the memory managed, and says "
            "none.",
            Known.SOURCE,
            "QCEngine 0.52: programs/mopac.py",
        ),
        Fact("width", "60 waters, PM7: 1.54 s with one thread, 1.57 s with two.", Known.MEASURED, "22.0.6, 2 cores"),
        Fact("binding", "Keeps the mask that it inherits.", Known.MEASURED, "22.0.6 under taskset"),
    ),
)
