"""The variables of every threading and MPI runtime: what a child is given, and what taken from it; names no program."""

from __future__ import annotations

from collections.abc import Mapping

COUNTS = (
    "OMP_NUM_THREADS",
    "OMP_THREAD_LIMIT",  # holds even against omp_set_num_threads (measured, libgomp)
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
    # mpirun of Open MPI 4 and of 5 binds by the machine and leaves the mask it inherited (measured, both).
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "MV2_ENABLE_AFFINITY": "0",
}
"""Set for every program, whatever its width."""

OPEN_MPI_AS_ROOT: Mapping[str, str] = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
OPEN_MPI_OVERSUBSCRIBE: Mapping[str, str] = {"OMPI_MCA_rmaps_base_oversubscribe": "1"}

UNSET = (
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
    "I_MPI_PIN_RESPECT_CPUSET",  # 0 leaves the inherited mask
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

_LAUNCHERS = {  # prefix of a launcher's variables: the one that says a process runs under it
    "SLURM_": "SLURM_JOB_ID",
    "PMI_": "PMI_RANK",
    "PMIX_": "PMIX_RANK",
    "OMPI_": "OMPI_COMM_WORLD_RANK",
    "HYDI_": "HYDI_CONTROL_FD",
}


def of_outer_launcher(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names in ``environ`` that an outer launcher left: each launcher's as a whole, or none of them.

    A child that starts MPI of its own takes them for its own job, and a half-removed SLURM set aborts Open MPI 4.1.
    """
    prefixes = tuple(prefix for prefix, marker in _LAUNCHERS.items() if marker in environ)
    return tuple(sorted(name for name in environ if name.startswith(prefixes))) if prefixes else ()
