"""Tables a chemist reads, from terms, outcomes and QCManyBody's results; computes no energy of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ..execution.calculation import Outcome
from ..execution.labels import label_order, short_label
from ..units import BOHR_TO_ANGSTROM
from .expansion import Term, energy_of
from .supported import BSSE_NAMES

if TYPE_CHECKING:
    from qcelemental.models.v2 import Molecule

_FAILURE = re.compile(r"error\b|fail|abort|not converge|cannot|could not|unable", re.IGNORECASE)

# Python's tempfile adds eight characters to a prefix; wN is a worker's directory, psi.N what Psi4 names its files by.
_OF_ONE_CALCULATION = re.compile(
    r"(?<=qcthreads-)[a-z0-9_]{8}(/w\d+)?\b|(?<=/tmp)[a-z0-9_]{8}|(?<=/psi\.)\d+"
    r"|\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"
    r"|\b0x[0-9a-f]+\b|\b(pid|process|worker)[ =:]+\d+",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FragmentRow:
    """One fragment or cluster of fragments, as a chemist reads it."""

    label: str
    """QCManyBody's."""
    name: str
    """What tables print for it: ``1+2``, and ``1@1+2`` for fragment 1 in the basis of both."""
    chemistry: str
    """QCManyBody's name of the model chemistry."""
    nbody: int
    fragments: tuple[int, ...]
    ghosts: tuple[int, ...]
    formula: str
    charge: float
    multiplicity: int
    electrons: int
    closest_contact_angstrom: float | None
    """Shortest distance between atoms of different fragments in it; ``None`` for one fragment."""
    energy_hartree: float | None = None
    wall_s: float | None = None
    threads: int | None = None
    cpus: str | None = None
    worker_pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyRow:
    """One order of the expansion under one BSSE treatment; energies in hartree."""

    bsse: str
    nbody: int
    total_hartree: float | None
    """Total energy through this order; ``None`` where the treatment does not give one."""
    interaction_hartree: float
    """Interaction energy through this order; zero for one body, by definition."""
    contribution_hartree: float
    """What this order adds to the interaction energy."""


def fragment_rows(
    terms: Iterable[Term],
    molecule: Molecule,
    results: Mapping[str, Any] | None = None,
    outcomes: Mapping[str, Outcome] | None = None,
) -> tuple[FragmentRow, ...]:
    """A row for every term, by order, then by fragments: ``molecule`` is the whole system.

    ``results`` give energies; ``outcomes``, where there is one, time and place.
    """
    contacts, facts = _contacts(molecule), _facts(molecule)
    results, outcomes = results or {}, outcomes or {}
    ordered = sorted(terms, key=lambda term: (term.nbody, term.fragments, term.ghosts))
    return tuple(_row(term, contacts, facts, results.get(term.label), outcomes.get(term.label)) for term in ordered)


def body_rows(properties: Mapping[str, Any], bsse: Sequence[str], bodies: Sequence[int]) -> tuple[BodyRow, ...]:
    """QCManyBody's properties as rows, treatment by treatment."""
    rows = []
    for treatment in bsse:
        prefix = f"{treatment}_corrected"
        for nbody in bodies:
            rows.append(
                BodyRow(
                    bsse=treatment,
                    nbody=nbody,
                    total_hartree=properties.get(f"{prefix}_total_energy_through_{nbody}_body"),
                    interaction_hartree=float(properties.get(f"{prefix}_interaction_energy_through_{nbody}_body", 0.0)),
                    contribution_hartree=float(properties.get(f"{prefix}_{nbody}_body_contribution_to_energy", 0.0)),
                )
            )
    return tuple(rows)


def bsse_treatment(bsse: Sequence[str]) -> str:
    """The treatments in words, the one that decides the returned energy first."""
    return "; ".join(BSSE_NAMES[treatment] for treatment in bsse)


def grouped(failures: Mapping[str, str]) -> dict[str, list[str]]:
    """Error -> the short labels of the calculations that failed with it, the smallest first; each error once.

    Errors that differ only by what differs between calculations (:func:`common`) are one, in the words of the first.
    """
    first_told: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for label in sorted(failures, key=label_order):
        error = failures[label].strip()
        told = first_told.setdefault(common(error.replace(label, "")), error)
        groups.setdefault(told, []).append(short_label(label))
    return groups


def common(error: str) -> str:
    """``error`` without names of temporary directories, process numbers and addresses."""
    return _OF_ONE_CALCULATION.sub("", error)


def headline(error: str) -> str:
    """The one line of a calculation's error that says what went wrong; the store keeps all of it.

    Of a Python traceback that is the exception; of a program's output, of which ``unknown_error`` holds the tail, the
    first line that speaks of a failure; of anything else the first line.
    """
    lines = [line.rstrip() for line in error.strip().splitlines() if line.strip(" -=*")]
    if not lines:
        return "no message"
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    if frames:
        said = next((line for line in lines[frames[-1] + 1 :] if not line.startswith(" ")), lines[-1])
        return " ".join(said.split())
    kind, colon, first = lines[0].partition(":")
    if colon and kind == "unknown_error":
        said = next((line for line in (first, *lines[1:]) if _FAILURE.search(line)), first)
        return " ".join(f"{kind}: {said}".split())
    return " ".join(lines[0].split())


@dataclass(frozen=True, slots=True)
class _Facts:
    """One fragment."""

    symbols: tuple[str, ...]
    nuclear: int
    charge: float
    multiplicity: int


def _facts(molecule: Molecule) -> list[_Facts]:
    states = zip(molecule.fragments, molecule.fragment_charges, molecule.fragment_multiplicities, strict=True)
    return [
        _Facts(
            tuple(sorted(str(molecule.symbols[atom]) for atom in group)),
            sum(int(molecule.atomic_numbers[atom]) for atom in group),
            float(charge),
            int(multiplicity),
        )
        for group, charge, multiplicity in states
    ]


def _row(
    term: Term, contacts: Sequence[Sequence[float]], facts: Sequence[_Facts], result: Any, outcome: Outcome | None
) -> FragmentRow:
    real = [facts[number - 1] for number in term.fragments]
    charge = sum(fragment.charge for fragment in real)
    pairs = [contacts[a - 1][b - 1] for i, a in enumerate(term.fragments) for b in term.fragments[i + 1 :]]
    return FragmentRow(
        label=term.label,
        name=short_label(term.label),
        chemistry=term.chemistry.name,
        nbody=term.nbody,
        fragments=term.fragments,
        ghosts=term.ghosts,
        formula=_formula(tuple(sorted(fragment.symbols for fragment in real))),
        charge=int(charge) if charge == int(charge) else charge,
        # High spin, as QCElemental and QCManyBody couple fragments.
        multiplicity=1 + sum(fragment.multiplicity - 1 for fragment in real),
        electrons=sum(fragment.nuclear for fragment in real) - round(charge),
        closest_contact_angstrom=min(pairs) if pairs else None,
        energy_hartree=None if result is None else energy_of(result),
        wall_s=outcome.wall_s if outcome else None,
        threads=outcome.threads if outcome else None,
        cpus=str(outcome.cpus) if outcome else None,
        worker_pid=outcome.worker_pid if outcome else None,
    )


@cache
def _formula(fragments: tuple[tuple[str, ...], ...]) -> str:
    """Of clusters of the same fragments once, as there may be millions."""
    from qcelemental.molutil import molecular_formula_from_symbols

    formula: str = molecular_formula_from_symbols([symbol for symbols in fragments for symbol in symbols])
    return formula


def _contacts(molecule: Molecule) -> list[list[float]]:
    """Shortest distance in angstrom between the atoms of each two fragments."""
    import numpy as np

    points = np.asarray(molecule.geometry).reshape(-1, 3) * BOHR_TO_ANGSTROM
    groups = [points[np.asarray(group)] for group in molecule.fragments]
    contacts = [[0.0] * len(groups) for _ in groups]
    for i, one in enumerate(groups):
        for j in range(i + 1, len(groups)):
            distances = np.sqrt(((one[:, None, :] - groups[j][None, :, :]) ** 2).sum(axis=-1))
            contacts[i][j] = contacts[j][i] = float(distances.min())
    return contacts
