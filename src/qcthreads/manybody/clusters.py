"""Clusters of a molecule's fragments as QCElemental cuts them out; checks each fragment once, not each cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcelemental.models.v2 import Molecule


class Clusters:
    """What ``get_fragment(real, ghosts, group_fragments=False)`` of ``whole`` gives, in a fraction of its time.

    QCElemental checks a cluster as if nothing were known of it. In a molecule that was checked as a whole, atoms do not
    collide, and each fragment has a charge and multiplicity that it can have: it is enough to check each fragment once.
    """

    def __init__(self, whole: Molecule) -> None:
        # With its masses filled in: QCElemental else looks all of them up again for every atom of every fragment.
        self._whole: Molecule = whole.model_copy(update={"masses_": whole.masses})
        self._checked = bool(whole.real.all()) and _holds(whole)
        self._alone: dict[int, Molecule] = {}

    def cluster(self, real: Sequence[int], ghosts: Sequence[int]) -> Molecule:
        """Of these fragments, from 0, whose order is kept; ``ghosts`` are there as basis functions only."""
        if not self._checked:
            return self._cut_out(real, ghosts)
        numbers = sorted((*real, *ghosts))
        parts = [self._fragment(number) for number in numbers]
        joined = _joined(parts, [number in real for number in numbers])
        return parts[0].model_copy(update={"name": f"{self._whole.name or ''} ({[*real]},{[*ghosts]})"} | joined)

    def _fragment(self, number: int) -> Molecule:
        if number not in self._alone:
            self._alone[number] = self._cut_out([number], [])
        return self._alone[number]

    def _cut_out(self, real: Sequence[int], ghosts: Sequence[int]) -> Molecule:
        made: Molecule = self._whole.get_fragment([*real], [*ghosts], orient=False, group_fragments=False)
        return made


def _holds(whole: Molecule) -> bool:
    """Whether QCElemental finds nothing wrong: that it was checked is only what a file says."""
    if not whole.validated:
        return False
    try:
        type(whole)(**{**whole.model_dump(), "validated": False})
    except Exception:  # one of many kinds; what to say of it QCElemental knows when it cuts clusters out
        return False
    return True


def _joined(parts: Sequence[Molecule], real: Sequence[bool]) -> dict[str, Any]:
    """The fields that follow from those of the fragments."""
    import numpy as np

    sizes = [len(part.symbols) for part in parts]
    charges = [part.molecular_charge if there else 0.0 for part, there in zip(parts, real, strict=True)]
    spins = [part.molecular_multiplicity if there else 1 for part, there in zip(parts, real, strict=True)]
    usual = all(part.mass_numbers_ is None for part in parts)  # isotopes are not told then
    return {
        "symbols": np.concatenate([part.symbols for part in parts]),
        "geometry": np.concatenate([part.geometry for part in parts]),
        "masses_": np.concatenate([part.masses for part in parts]),
        "mass_numbers_": None if usual else np.concatenate([part.mass_numbers for part in parts]),
        "real_": np.repeat(real, sizes),
        "fragments_": np.split(np.arange(sum(sizes), dtype=np.int32), np.cumsum(sizes)[:-1]),
        "fragment_charges_": charges,
        "fragment_multiplicities_": spins,
        "molecular_charge": sum(charges),
        "molecular_multiplicity": 1 + sum(spin - 1 for spin in spins),
    }
