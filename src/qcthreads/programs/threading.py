"""``QCProgramThreading``: the specified settings of three programs, with what of them works; sets nothing itself."""

from __future__ import annotations

from typing import Any

from .registry import get
from .settings import check_threads, settings_for


class QCProgramThreading:
    """How Psi4, NWChem and CFOUR are told how many threads to use.

    Each method returns the keys of the specification as they are specified and, because some of those names do
    nothing, two more: ``"applied"``, the settings that make the program run at that width under QCEngine
    (``environment``, ``task_config``, ``keywords``), and ``"inert"``, the specified names that do nothing or harm,
    each with the reason. Use ``"applied"``. All raise ValueError where ``threads`` is not an int of at least 1.
    """

    def configure_psi4_threading(self, threads: int) -> dict[str, Any]:
        """Settings for Psi4 at ``threads`` OpenMP threads.

        Examples
        --------
        >>> QCProgramThreading().configure_psi4_threading(2)["applied"]["task_config"]
        {'ncores': 2}
        """
        check_threads(threads)
        told = str(threads)
        return {
            "environment": {"OMP_NUM_THREADS": told, "MKL_NUM_THREADS": told, "PSI_NTHREAD": told},
            "keywords": {"num_threads": threads},
            **_what_works("psi4", threads),
        }

    def configure_nwchem_threading(self, threads: int) -> dict[str, Any]:
        """Settings for NWChem at ``threads`` MPI ranks of one thread each."""
        check_threads(threads)
        told = str(threads)
        return {
            "environment": {"OMP_NUM_THREADS": told, "NWCHEM_NPROC": told},
            "task_config": {"ncores": threads},
            **_what_works("nwchem", threads),
        }

    def configure_cfour_threading(self, threads: int) -> dict[str, Any]:
        """Settings for CFOUR at ``threads`` OpenMP and BLAS threads of one process."""
        check_threads(threads)
        told = str(threads)
        return {
            "environment": {"OMP_NUM_THREADS": told, "MKL_NUM_THREADS": told, "CFOUR_NUM_CORES": "1"},
            "task_config": {"ncores": threads},
            **_what_works("cfour", threads),
        }


def _what_works(program: str, threads: int) -> dict[str, Any]:
    spec = get(program)
    settings = settings_for(spec, threads)
    return {
        "applied": {
            "environment": dict(settings.environment),
            "task_config": dict(settings.task_config),
            "keywords": {},
        },
        "inert": dict(spec.inert),
    }
