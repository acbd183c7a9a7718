"""Clusters of a molecule's fragments as QCElemental cuts them out, as data; checks each fragment once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcelemental.models.v2 import Molecule


class Clusters:
    """What ``get_fragment(real, ghosts, group_fragments=False)`` of ``whole`` gives, in a fraction of its time.

    QCElemental checks a cluster as if nothing were known of it. In a molecule that was checked as a whole, atoms do not
    collide, and each fragment has a charge and multiplicity that it can have: it is enough to check each fragment once.
    Data, and no models: a driver makes one between two calculations, and the code of models is a lot to go through.
    """

    def __init__(self, whole: Molecule) -> None:
        # With its masses filled in: QCElemental else looks all of them up again for every atom of every fragment.
        self._whole: Molecule = whole.model_copy(update={"masses_": whole.masses})
        self._checked = bool(whole.real.all()) and _holds(whole)
        self._alone: dict[int, _Fragment] = {}

    def cluster(self, real: Sequence[int], ghosts: Sequence[int]) -> dict[str, Any]:
        """Of these fragments, from 0, whose order is kept; ``ghosts`` are there as basis functions only.

        A QCSchema molecule, as ``model_dump(mode="json")`` has it.
        """
        if not self._checked:
            return _data(self._cut_out(real, ghosts))
        numbers = sorted((*real, *ghosts))
        parts = [self._fragment(number) for number in numbers]
        name = f"{self._whole.name or ''} ({[*real]},{[*ghosts]})"
        return parts[0].data | {"name": name} | _joined(parts, [number in real for number in numbers])

    def _fragment(self, number: int) -> _Fragment:
        if number not in self._alone:
            made = self._cut_out([number], [])
            self._alone[number] = _Fragment(_data(made), made.mass_numbers.tolist())
        return self._alone[number]

    def _cut_out(self, real: Sequence[int], ghosts: Sequence[int]) -> Molecule:
        made: Molecule = self._whole.get_fragment([*real], [*ghosts], orient=False, group_fragments=False)
        return made


@dataclass(frozen=True, slots=True)
class _Fragment:
    data: dict[str, Any]
    mass_numbers: list[int]
    """Which the data tell of isotopes alone."""


def _data(molecule: Molecule) -> dict[str, Any]:
    data: dict[str, Any] = molecule.model_dump(mode="json")
    return data


def _holds(whole: Molecule) -> bool:
    """Whether QCElemental finds nothing wrong: that it was checked is only what a file says."""
    if not whole.validated:
        return False
    try:
        type(whole)(**{**whole.model_dump(), "validated": False})
    except Exception:  # one of many kinds; what to say of it QCElemental knows when it cuts clusters out
        return False
    return True


def _joined(parts: Sequence[_Fragment], real: Sequence[bool]) -> dict[str, Any]:
    """The fields that follow from those of the fragments."""
    data = [part.data for part in parts]
    sizes = [len(one["symbols"]) for one in data]
    charges = [one["molecular_charge"] if there else 0.0 for one, there in zip(data, real, strict=True)]
    spins = [one["molecular_multiplicity"] if there else 1.0 for one, there in zip(data, real, strict=True)]
    joined: dict[str, Any] = {name: _chained(one[name] for one in data) for name in ("symbols", "geometry", "masses")}
    if any("mass_numbers" in one for one in data):
        joined["mass_numbers"] = _chained(part.mass_numbers for part in parts)
    ends = list(accumulate(sizes))
    return joined | {
        "real": _chained([there] * size for there, size in zip(real, sizes, strict=True)),
        "fragments": [[*range(end - size, end)] for end, size in zip(ends, sizes, strict=True)],
        "fragment_charges": charges,
        "fragment_multiplicities": spins,
        "molecular_charge": sum(charges),
        "molecular_multiplicity": 1.0 + sum(spin - 1.0 for spin in spins),
    }


def _chained(lists: Iterable[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))
