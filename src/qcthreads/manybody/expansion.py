"""The terms of one many-body expansion as calculations, and back from energies to QCManyBody's result; runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..execution.calculation import Calculation
from ..planning import relative_cost
from ..programs import registry
from .supported import check_core, check_input

if TYPE_CHECKING:
    from qcelemental.models.v2 import AtomicResult, Molecule
    from qcmanybody import ManyBodyCore
    from qcmanybody.models.v2 import ManyBodyInput, ManyBodyResult
    from qcmanybody.v2 import ManyBodyComputer

# Basis functions of cc-pVDZ (Dunning 1989; Woon and Dunning 1993) for H-He, Li-Ne, Na-Ar, Ga-Kr; beyond, a guess. Only
# ratios matter: which calculation is larger.
_FUNCTIONS_UP_TO_Z = ((2, 5), (10, 14), (18, 18), (36, 27), (118, 40))


@dataclass(frozen=True, slots=True)
class Term:
    """One cluster of fragments in one basis: what QCManyBody calls a label, its molecule, and its relative cost."""

    label: str
    molecule: Molecule
    fragments: tuple[int, ...]
    """Real fragments, from 1."""
    ghosts: tuple[int, ...]
    cost: float

    @property
    def nbody(self) -> int:
        """How many real fragments."""
        return len(self.fragments)


class Expansion:
    """All terms of one expansion with one model chemistry.

    Parameters
    ----------
    core
        QCManyBody's; says which terms there are.
    program, specification
        QCEngine's name of the program; driver, model, keywords, ... of a QCSchema AtomicSpecification.
    computer
        Where the expansion came from a ManyBodyInput: builds the ManyBodyResult.

    Raises
    ------
    InputError
        For what is not computed here, by name.
    """

    def __init__(
        self,
        core: ManyBodyCore,
        program: str,
        specification: Mapping[str, Any],
        computer: ManyBodyComputer | None = None,
    ) -> None:
        check_core(core)
        self.core = core
        self.program = program.lower()
        self.specification = dict(specification)
        self._computer = computer

    @classmethod
    def from_input(cls, given: ManyBodyInput) -> Expansion:
        """The expansion of a ManyBodyInput, as QCManyBody's own driver would build it."""
        from pydantic import ValidationError
        from qcmanybody.v2 import ManyBodyComputer

        check_input(given)
        try:
            computer = ManyBodyComputer.from_manybodyinput(given, build_tasks=False)
        except (ValueError, ValidationError, KeyError) as error:
            raise InputError(f"QCManyBody refuses the input: {' '.join(str(error).split())}") from None
        core: ManyBodyCore = computer.qcmb_core
        (chemistry,) = set(core.levels.values())
        if chemistry not in given.specification.specification:
            known = ", ".join(given.specification.specification)
            raise InputError(f"levels name the model chemistry {chemistry!r}, but the specification has only: {known}")
        specification = given.specification.specification[chemistry].model_dump(mode="json")
        program = specification.pop("program")
        specification["driver"] = given.specification.driver.value
        return cls(core, program, specification, computer)

    @classmethod
    def from_core(cls, core: ManyBodyCore, program: str, basis: str | None) -> Expansion:
        """The expansion of a bare core: the name of its model chemistry is ``"method"`` or ``"method/basis"``."""
        check_core(core)
        (chemistry,) = set(core.levels.values())
        method, slash, own_basis = str(chemistry).partition("/")
        if not method or method.startswith("("):
            raise InputError(
                f"the levels of the ManyBodyCore name the model chemistry {chemistry!r}, which is no method; name them "
                "'method' or 'method/basis' (for example {2: 'mp2/cc-pvdz'}), or use from_manybodyinput"
            )
        model = {"method": method}
        if registry.get(program).takes_basis:
            chosen = own_basis if slash else basis
            if not chosen:
                raise InputError(
                    f"no basis set for {method} with {program}; name the level 'method/basis', or set basis_set"
                )
            model["basis"] = chosen
        elif own_basis:
            raise InputError(f"basis {own_basis!r} with {program}, which has no basis sets; name the level {method!r}")
        elif any(treatment.value == "cp" for treatment in core.bsse_type):
            raise InputError(
                f"bsse cp with {program}, which has no basis sets and would count ghosts as atoms; use nocp"
            )
        return cls(core, program, {"driver": "energy", "model": model, "keywords": {}})

    @property
    def method(self) -> str:
        """Of the one model chemistry."""
        return str(self.specification["model"]["method"])

    @property
    def basis(self) -> Any:
        """A name, a QCSchema BasisSet as data, or ``None``."""
        return self.specification["model"].get("basis")

    @property
    def bsse(self) -> tuple[str, ...]:
        """The treatments by QCManyBody's names; the first decides what is returned."""
        return tuple(treatment.value for treatment in self.core.bsse_type)

    def terms(self) -> list[Term]:
        """Every term, the costliest first, so that none that takes long is left for the end."""
        made = [self.term(label, molecule) for _, label, molecule in self.core.iterate_molecules()]
        return sorted(made, key=lambda term: (-term.cost, term.nbody, term.fragments, term.ghosts))

    def term(self, label: str, molecule: Molecule) -> Term:
        """The term of one label of QCManyBody's."""
        from qcmanybody import delabeler

        _, real, basis = delabeler(label)
        ghosts = tuple(sorted(set(basis) - set(real)))
        return Term(label, molecule, tuple(real), ghosts, self._cost(molecule))

    def calculation(
        self,
        term: Term,
        *,
        threads: int,
        memory_bytes: int,
        timeout_s: float | None = None,
        compute: str | None = None,
        task_config: Mapping[str, Any] | None = None,
    ) -> Calculation:
        """One term, ready to be run: the AtomicInput is the one that QCManyBody's own driver would hand to QCEngine."""
        from qcelemental.models.v2 import AtomicInput

        atomic = AtomicInput(molecule=term.molecule, specification={**self.specification, "program": self.program})
        return Calculation(
            label=term.label,
            program=self.program,
            input=atomic.model_dump(mode="json"),
            threads=threads,
            memory_bytes=memory_bytes,
            timeout_s=timeout_s,
            compute=compute,
            task_config=task_config or {},
        )

    def analyze(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """QCManyBody's analysis of the energies of AtomicResults (models or data); every term must be there."""
        energies = {label: {"energy": energy_of(result)} for label, result in results.items()}
        analysis: dict[str, Any] = self.core.analyze(energies)
        analysis["nbody_number"] = len(energies)
        return analysis

    def result(self, results: Mapping[str, Any]) -> ManyBodyResult:
        """QCManyBody's ManyBodyResult; only for an expansion that came from a ManyBodyInput."""
        if self._computer is None:
            raise InputError(
                "a ManyBodyResult repeats its ManyBodyInput, and here is only a core; use from_manybodyinput"
            )
        wanted = self._computer.input_data.specification.protocols.cluster_results.value == "all"
        made: ManyBodyResult = self._computer.get_results(
            external_results=self.analyze(results),
            component_results={label: as_model(result) for label, result in results.items()} if wanted else {},
        )
        return made

    def _cost(self, molecule: Molecule) -> float:
        numbers = [int(number) for number in molecule.atomic_numbers]
        if self.basis is None:
            return relative_cost(self.method, electrons=sum(numbers), atoms=len(numbers))
        return relative_cost(self.method, basis_functions=sum(map(_functions, numbers)))


def energy_of(result: Any) -> float:
    """The energy of an AtomicResult, model or data; InputError where there is none, so that none is ever invented."""
    energy = _field(_field(result, "properties"), "return_energy")
    if energy is None:
        energy = _field(result, "return_result")
    if not isinstance(energy, float | int) or energy != energy:
        raise InputError(f"a result without an energy: return_energy is {energy!r}; the program must return a number")
    return float(energy)


def as_model(result: Any) -> AtomicResult:
    """An AtomicResult of QCElemental (version 2) from its data."""
    from qcelemental.models.v2 import AtomicResult

    return AtomicResult(**result) if isinstance(result, Mapping) else result


def count_by_nbody(terms: Iterable[Term]) -> dict[int, int]:
    """Calculations by number of real fragments, in order."""
    counts: dict[int, int] = {}
    for nbody in sorted(term.nbody for term in terms):
        counts[nbody] = counts.get(nbody, 0) + 1
    return counts


def _field(data: Any, name: str) -> Any:
    return data.get(name) if isinstance(data, Mapping) else getattr(data, name, None)


def _functions(atomic_number: int) -> int:
    return next(count for limit, count in _FUNCTIONS_UP_TO_Z if atomic_number <= limit)
