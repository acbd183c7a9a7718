"""What of QCManyBody is computed here, and the refusal, by name, of everything else; decides nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..programs import registry

if TYPE_CHECKING:
    from qcmanybody import ManyBodyCore
    from qcmanybody.models.v2 import ManyBodyInput

BSSE_NAMES = {
    "nocp": "none (nocp): each cluster in its own basis",
    "cp": "counterpoise (cp, Boys-Bernardi, site-site function counterpoise): each cluster in the whole system's basis",
}
_ALIASES = {"ssfc": "cp", "mbe": "nocp", "none": "nocp"}  # QCManyBody's


def check_bsse(treatments: Iterable[Any]) -> list[str]:
    """The treatments under QCManyBody's names, each once, in the order given. Raises InputError for any other."""
    if isinstance(treatments, str):
        treatments = [treatments]
    names: dict[str, None] = {}
    for treatment in treatments:
        name = str(getattr(treatment, "value", treatment)).lower()
        name = _ALIASES.get(name, name)
        if name not in BSSE_NAMES:
            why = "is not there yet" if name == "vmfc" else "is not known"
            raise InputError(f"bsse treatment {name!r} {why}; there are: {', '.join(BSSE_NAMES)}")
        names[name] = None
    if not names:
        raise InputError(f"no bsse treatment was given; there are: {', '.join(BSSE_NAMES)}")
    return list(names)


def check_input(given: ManyBodyInput) -> None:
    """Raise InputError, naming it, for anything in the input that is not computed here."""
    specification = given.specification
    keywords = specification.keywords
    drivers = {specification.driver.value, *(atomic.driver.value for atomic in specification.specification.values())}
    if drivers != {"energy"}:
        _refuse(f"driver {', '.join(sorted(drivers - {'energy'}))}", "energies")
    check_bsse(keywords.bsse_type)
    check_ghosts(keywords.bsse_type, [atomic.program for atomic in specification.specification.values()])
    for atomic in specification.specification.values():
        _check_keywords(atomic.program.lower(), atomic.keywords)
    levels = keywords.levels or {}
    if not levels and len(specification.specification) > 1:
        raise InputError(
            f"the specification has the model chemistries {', '.join(specification.specification)}, and no levels say "
            'which is for which order; give for example "levels": {"1": "ccsd", "2": "mp2"}'
        )
    _check_expansion(
        supersystem_ie_only=bool(keywords.supersystem_ie_only),
        embedding=bool(keywords.embedding_charges),
    )


def check_core(core: ManyBodyCore) -> None:
    """The same for a ManyBodyCore, which has no driver: its energies are computed."""
    check_bsse(core.bsse_type)
    _check_expansion(
        supersystem_ie_only=bool(core.supersystem_ie_only),
        embedding=bool(core.embedding_charges),
    )


def check_ghosts(treatments: Iterable[Any], programs: Iterable[str]) -> None:
    """Raise InputError for counterpoise with a program that has no basis sets, which ghosts have nothing else to be."""
    without = [program.lower() for program in programs if not registry.get(program).takes_basis]
    if without and "cp" in check_bsse(treatments):
        raise InputError(
            f"bsse cp with {without[0]}: counterpoise puts basis functions on ghost atoms, and {without[0]} has no "
            "basis sets and would count ghosts as atoms; use nocp"
        )


def _check_keywords(program: str, keywords: Mapping[str, Any]) -> None:
    refused = registry.get(program).per_calculation_keywords
    for name, value in keywords.items():
        remedy = refused.get(name.lower())
        if remedy is not None and not isinstance(value, bool) and value != 0:
            raise InputError(
                f"keyword {name} {value!r} freezes so many orbitals in every calculation, in a monomer as in a dimer, "
                f"which leaves no meaning to their difference; {remedy}"
            )


def _check_expansion(*, supersystem_ie_only: bool, embedding: bool) -> None:
    if supersystem_ie_only:
        _refuse("supersystem_ie_only", "every order up to max_nbody")
    if embedding:
        _refuse("embedding_charges", "fragments without embedding")


def _refuse(what: str, instead: str) -> None:
    raise InputError(f"{what}: not there yet; what is computed now: {instead}")
