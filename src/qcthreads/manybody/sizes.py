"""How large a calculation is, by its atoms alone: good for ratios and models fitted to this count, never exact."""

from __future__ import annotations

from collections.abc import Sequence

from ..planning.costs import Size

# Basis functions of cc-pVDZ (Dunning 1989; Woon and Dunning 1993) for H-He, Li-Ne, Na-Ar, Ga-Kr; beyond, a guess. Other
# basis sets have other numbers, in nearly the same ratios; a model is of one basis set.
_FUNCTIONS_UP_TO_Z = ((2, 5), (10, 14), (18, 18), (36, 27), (118, 40))


def size_of(real: Sequence[int], ghosts: Sequence[int] = (), charge: float = 0, *, with_basis: bool = True) -> Size:
    """Of real atoms and ghosts, by atomic number; without a basis, electrons count in the place of functions."""
    electrons = max(1, round(sum(real) - charge))
    return Size(sum(map(functions, (*real, *ghosts))) if with_basis else electrons, electrons)


def functions(atomic_number: int) -> int:
    """Of one atom."""
    return next(count for limit, count in _FUNCTIONS_UP_TO_Z if atomic_number <= limit)
