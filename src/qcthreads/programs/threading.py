"""``QCProgramThreading``: how every program is told its threads, the specified names beside; sets nothing itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..units import nearest
from .registry import BUILT_IN, get, names
from .settings import check_threads, settings_for


class QCProgramThreading:
    """How each program is told how many threads to use: one method ``configure_NAME_threading(threads)`` per program.

    NAME is QCEngine's name in lower case, with ``_`` for ``-``: ``configure_s_dftd3_threading``. Each method returns
    ``"applied"``, the settings that make the program run at that width under QCEngine (``environment``,
    ``task_config``, ``keywords``), and ``"inert"``, names that do nothing or harm, each with the reason. Those of Psi4,
    NWChem and CFOUR return the keys of the specification beside them, as they are specified; use ``"applied"``, for
    some of those names do nothing. All raise ValueError where ``threads`` is not an int of at least 1.
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

    def __getattr__(self, name: str) -> Callable[[int], dict[str, Any]]:
        """The method of any other program, those that other packages bring among them."""
        methods = {_method(program): program for program in BUILT_IN}
        if name not in methods and name.startswith("configure_"):
            methods = {_method(program): program for program in names()}
        if name not in methods:
            near = nearest(name, methods) if name.startswith("configure_") else None
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}{f'; did you mean {near}?' if near else ''}", name=name, obj=self
            )
        return lambda threads: _what_works(methods[name], threads)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *map(_method, names())})


def _method(program: str) -> str:
    return f"configure_{re.sub(r'[^0-9a-z_]', '_', program)}_threading"


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
