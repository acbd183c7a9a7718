"""Psi4: one process, OpenMP and threaded BLAS; QCEngine starts it as a command and tells it its width."""

from .spec import ParallelModel, ProgramSpec

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
    inert={
        "PSI_NTHREAD": "read by no version of Psi4; the width comes by --nthread (old: nthreads in the input), "
        "which QCEngine sets from ncores",
        "num_threads": "not an option of Psi4: given as a keyword it ends the calculation with an error",
    },
    memory_overhead_bytes=256 * 1024**2,
    executable="psi4",
    version_command=("psi4", "--version"),
    per_calculation_keywords={"num_frozen_docc": 'write {"freeze_core": true}'},
    harness_module="qcthreads.programs.harnesses.psi4",
    install_hint="conda install -c conda-forge psi4, or on Debian: apt install psi4 libopenblas0-pthread",
    provenance="verified in source (psi4 886caaab), measured with 1.3.2",
)
