"""Psi4: one process, OpenMP and threaded BLAS; QCEngine starts it as a command and tells it its width."""

from .spec import Fact, Known, MemorySetting, ParallelModel, ProgramSpec, Sample

SPEC = ProgramSpec(
    name="psi4",
    title="Psi4",
    parallel_model=ParallelModel.OPENMP,
    in_process=False,
    environment={
        # Psi4 never sizes a pthreads OpenBLAS: told 2 as well, 3 threads ran and HF/TZ on 4 waters took 5.73 s
        # instead of 4.71 s (Psi4 1.3.2, Debian 12, 2 cores). Builds with MKL size it themselves by -n.
        "OPENBLAS_NUM_THREADS": "1",
        "PSI_SCRATCH": "{scratch}",
    },
    command="psi4 -n {threads} input.dat",
    width_options=("-n", "--nthread"),
    input_text="set_num_threads({threads})",
    inert={
        "PSI_NTHREAD": "read by no version of Psi4; the width comes by --nthread (old: nthreads in the input), "
        "which QCEngine sets from ncores",
        "num_threads": "not an option of Psi4: given as a keyword it ends the calculation with an error",
    },
    memory=MemorySetting("calculation", "GiB", "--memory, by QCEngine; memory 4 GiB in an input"),
    executable="psi4",
    version_command=("psi4", "--version"),
    per_calculation_keywords={"num_frozen_docc": 'write {"freeze_core": true}'},
    harness_module="qcthreads.programs.harnesses.psi4",
    sample=Sample(waters=2, method="hf", basis="cc-pvtz", keywords={"scf_type": "df"}),
    install_hint="conda install -c conda-forge psi4, or on Debian: apt install psi4 libopenblas0-pthread",
    measured_with="1.3.2",
    facts=(
        Fact(
            "threads",
            "Importing Psi4 sets one thread, and its command as many as -n says; OMP_NUM_THREADS is disregarded since "
            "1.1, and MKL_NUM_THREADS overridden in builds with MKL.",
            Known.SOURCE,
            "psi4 886caaab: psi4/__init__.py:96, psi4/run_psi4.py:54, libpsi4util/process.cc:54",
        ),
        Fact(
            "harness",
            "--nthread ncores and --memory; before 1.4 nthreads and memory in the JSON input.",
            Known.SOURCE,
            "QCEngine 0.52: programs/psi4.py",
        ),
        Fact("memory", "Of the whole process; 500 MiB where nothing is said.", Known.SOURCE, "psi4 886caaab"),
        Fact(
            "memory",
            "Its output says what it was told: the lease's less the overhead.",
            Known.MEASURED,
            "1.3.2",
        ),
        Fact("binding", "Keeps the mask that it inherits.", Known.MEASURED, "1.3.2 under taskset"),
        Fact(
            "width",
            "HF/triple zeta, 4 waters: 5.08 s with one thread, 4.71 s with two.",
            Known.MEASURED,
            "1.3.2, 2 cores",
        ),
        Fact(
            "trap",
            "Calls BLAS inside OpenMP regions: nested teams make the threads squared.",
            Known.SOURCE,
            "psi4 886caaab: dfmp2.rst:228; psi4 issue 671",
        ),
        Fact(
            "trap",
            "With psiapi the thread count belongs to the Python thread that set it.",
            Known.MEASURED,
            "omp_set_num_threads of libgomp in two threads",
        ),
        Fact("check", "The output says how many threads it was given.", Known.MEASURED, "1.3.2"),
    ),
)
