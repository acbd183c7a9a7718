"""What a calculation costs relative to another, from theory alone; good for order and balance, never for seconds.

Exponents are the formal scaling with system size at a fixed basis quality. Hartree-Fock and DFT are the exception: on
molecules of tens of atoms and more, integral screening takes the formal 4 to about 3.
"""

from __future__ import annotations

import re
from functools import cache

from ..errors import InputError

# As in Helgaker, Jorgensen, Olsen, "Molecular Electronic-Structure Theory" (2000); the first match counts.
_EXPONENTS = (
    (r"ccsdtq", 10.0),
    (r"ccsdt\(", 9.0),
    (r"ccsdt", 8.0),
    (r"(ccsd|qcisd|bccd)[(\[+]|a-ccsd|cr-cc|mp4(?!\(?sdq)", 7.0),
    (r"ccsd|qcisd|cisd|b?ccd|cepa|lccd|o?mp3|mp4|mp2\.5", 6.0),
    (r"cc2|adc|o?mp2|rpa|b2|dsd-|pwpb95|wb97x-2", 5.0),
    (r"gfn|xtb|pm\d|am1|rm1|mndo|dftb|om[123]", 3.0),
    (r"uff|gaff|mmff|smirnoff|openff|amber|charmm|d[234]|gcp|mbd", 2.0),
)
_SELF_CONSISTENT_FIELD = 3.0

# Energy and gradient together / energy, to a factor of 2 either way. A gradient by itself takes at most 4 times what is
# differentiated, however many variables there are (Griewank, Walther, "Evaluating Derivatives", 2008, chapter 4).
GRADIENT_RATIO = 2.0

# PySCF 2.14, HF/triple zeta on 3 waters, 2 cores: 11.19 s with one thread, 8.02 s with two, a speedup of 1.40; by
# Amdahl's law 57 % of the work is parallel. Psi4 on 4 waters has less (1.08), larger molecules have more.
PARALLEL_FRACTION = 0.57

# Half of the work of so many basis functions is taken for parallel, and of N the share N / (N + this). By what comes
# with qcthreads, measured at 1 and 2 threads, it is 15 for PySCF (the median of what takes 0.1 s or longer), and 300
# for Psi4 and NWChem, of whose second at 72 functions the start is the most.
_HALF_PARALLEL = 50


@cache
def scaling_exponent(method: str) -> float:
    """The power of the system's size that a method's time grows with; Hartree-Fock's and DFT's for names not known."""
    name = re.sub(r"^(ri|df|dlpno|lno|local|scs|sos|u|ro|r)-", "", method.strip().lower())
    for pattern, exponent in _EXPONENTS:
        if re.match(pattern, name):
            return exponent
    return _SELF_CONSISTENT_FIELD


def relative_cost(method: str, *, electrons: int = 0, basis_functions: int = 0, atoms: int = 0) -> float:
    """Cost at width 1 in arbitrary units, comparable between calculations of one method only.

    The best measure of size given is used, in this order: basis functions (ghost atoms included), electrons, atoms.
    The same measure must be given for all calculations that are compared.

    Raises
    ------
    InputError
        When no size is given.
    """
    size = basis_functions or electrons or atoms
    if size <= 0:
        raise InputError(
            f"the size of a calculation with {method} must be given: basis functions, electrons or atoms, at least 1"
        )
    return float(size ** scaling_exponent(method))


def assumed_parallel_fraction(basis_functions: float) -> float:
    """The share of the work that is taken for parallel where nothing was measured: the more, the larger it is."""
    return basis_functions / (basis_functions + _HALF_PARALLEL)


def assumed_speedup(width: int, parallel_fraction: float = PARALLEL_FRACTION) -> float:
    """Amdahl's law: how many times faster than at width 1."""
    return 1.0 / (1.0 - parallel_fraction + parallel_fraction / width)
