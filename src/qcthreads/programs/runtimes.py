"""The variables of every threading and MPI runtime: what a child is given, and what taken from it; names no program."""

from __future__ import annotations

from collections.abc import Mapping

from . import launchers

COUNTS = (
    "OMP_NUM_THREADS",
    # Holds against omp_set_num_threads (libgomp) and holds MKL 2026.2 against MKL_NUM_THREADS, over libiomp5 and
    # libgomp (all measured): QCEngine tells each of n processes n threads by OMP_NUM_THREADS and MKL_NUM_THREADS.
    "OMP_THREAD_LIMIT",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",  # wins over OMP_NUM_THREADS in pthreads builds, and QCEngine never sets it
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "FLEXIBLAS_NUM_THREADS",
    "ARMPL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "JULIA_NUM_THREADS",
    "PYTHON_CPU_COUNT",  # CPython >= 3.13: what os.cpu_count() answers
)
"""Set to the threads of one process."""

CONSTANTS: Mapping[str, str] = {
    # The mask binds. A runtime that pins its first thread hands a mask of one CPU to OpenBLAS's threads.
    "OMP_PROC_BIND": "false",
    "OMP_DYNAMIC": "false",  # true shrinks teams by the machine's load: other results at every run
    "OMP_MAX_ACTIVE_LEVELS": "1",  # nested teams make threads squared (psi4 issue 671)
    "MKL_DYNAMIC": "FALSE",  # true looks at the machine's cores, not at the mask (measured)
    **launchers.BINDING,
}
"""Set for every program, whatever its width."""

UNSET = (
    *launchers.ESCAPES,
    *launchers.OVERSUBSCRIBE,
    "GOMP_CPU_AFFINITY",  # leaves the inherited mask (measured)
    "KMP_AFFINITY",  # does so with norespect (measured)
    "KMP_HW_SUBSET",
    "OMP_PLACES",
    "OMP_NESTED",
    "MKL_DOMAIN_NUM_THREADS",  # overrides MKL_NUM_THREADS
    "GOTO_NUM_THREADS",
    "BLIS_JC_NT",  # the loop factors override BLIS_NUM_THREADS
    "BLIS_PC_NT",
    "BLIS_IC_NT",
    "BLIS_JR_NT",
    "BLIS_IR_NT",
    "JULIA_EXCLUSIVE",  # pins from CPU 0
    # QCEngine reads these beneath the task_config; they are about the machine, not about one lease of it.
    "QCENGINE_NCORES",
    "QCENGINE_NNODES",
    "QCENGINE_CORES_PER_RANK",
    "QCENGINE_MEMORY",
    "QCENGINE_JOBS_PER_NODE",
    "QCENGINE_USE_MPIEXEC",
    "QCENGINE_MPIEXEC_COMMAND",
)
"""Removed from every child."""
