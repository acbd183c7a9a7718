"""The terms of one many-body expansion as calculations, and back from energies to QCManyBody's result; runs nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..execution.calculation import Calculation
from ..planning import relative_cost
from ..programs import registry
from .sizes import functions
from .supported import check_core, check_input

if TYPE_CHECKING:
    from qcelemental.models.v2 import AtomicResult, Molecule
    from qcmanybody import ManyBodyCore
    from qcmanybody.models.v2 import ManyBodyInput, ManyBodyResult
    from qcmanybody.v2 import ManyBodyComputer


@dataclass(frozen=True, slots=True)
class Term:
    """One cluster of fragments in one basis: what QCManyBody calls a label, and its relative cost."""

    label: str
    fragments: tuple[int, ...]
    """Real fragments, from 1."""
    ghosts: tuple[int, ...]
    cost: float
    molecule: Molecule | None = None
    """Where the caller gave it. Else it is made when its time comes: each takes QCElemental milliseconds."""

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
        # With its masses filled in: QCElemental else looks all of them up again for every atom of every fragment.
        self._whole: Molecule = core.molecule.model_copy(update={"masses_": core.molecule.masses})
        self._sizes = [self._size(list(group)) for group in core.molecule.fragments]

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
        try:
            specification = given.specification.specification[chemistry].model_dump(mode="json")
        except ValueError as error:  # pydantic's, of what it cannot write as JSON
            raise InputError(
                f"the keywords go to a worker process as plain data, and these cannot: {error}; give numbers, text, "
                "truth values, lists and dicts"
            ) from None
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

    def counts_by_nbody(self) -> dict[int, int]:
        """Calculations by number of real fragments, in order; by arithmetic, so that millions take no time."""
        core, bsse = self.core, self.bsse
        orders = range(1, core.max_nbody + 1)
        # Of each order, whether in the clusters' own bases or in the whole system's: for the whole system, the same.
        kinds = {(order, order == core.nfragments) for order in orders if "nocp" in bsse}
        kinds |= {(order, True) for order in orders if "cp" in bsse and core.max_nbody > 1}
        if core.return_total_data:
            kinds.add((1, False))
        counts: dict[int, int] = {}
        for order, _ in sorted(kinds):
            counts[order] = counts.get(order, 0) + math.comb(core.nfragments, order)
        return counts

    def terms(self) -> list[Term]:
        """Every term, the costliest first, so that none that takes long is left for the end."""
        from qcmanybody.utils import labeler

        ((chemistry, by_order),) = self.core.compute_map.items()
        pairs = set().union(*by_order["all"].values())
        made = [self._term(labeler(chemistry, real, basis), real, basis) for real, basis in pairs]
        return sorted(made, key=lambda term: (-term.cost, term.nbody, term.fragments, term.ghosts))

    def term(self, label: str, molecule: Molecule) -> Term:
        """The term of one label of QCManyBody's, with the molecule that comes with it."""
        from qcmanybody.utils import delabeler

        _, real, basis = delabeler(label)
        return self._term(label, real, basis, molecule)

    def molecule(self, term: Term) -> Molecule:
        """The molecule of ``term``, as QCManyBody's own ``iterate_molecules`` makes it."""
        if term.molecule is not None:
            return term.molecule
        whole = self._whole
        real, ghosts = ([number - 1 for number in numbers] for numbers in (term.fragments, term.ghosts))
        made: Molecule = whole.get_fragment(real, ghosts, orient=False, group_fragments=False)
        fixed = {"fix_com": True, "fix_orientation": True}
        return made.model_copy(update=fixed | ({"fix_symmetry": "c1"} if whole.fix_symmetry == "c1" else {}))

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
        return Calculation(
            label=term.label,
            program=self.program,
            input=partial(self._atomic_input, term),
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

    def _atomic_input(self, term: Term) -> dict[str, Any]:
        from qcelemental.models.v2 import AtomicInput

        specification = {**self.specification, "program": self.program}
        made: dict[str, Any] = AtomicInput(molecule=self.molecule(term), specification=specification).model_dump(
            mode="json"
        )
        return made

    def _term(self, label: str, real: Sequence[int], basis: Sequence[int], molecule: Molecule | None = None) -> Term:
        ghosts = tuple(sorted(set(basis) - set(real))) if len(basis) > len(real) else ()
        size = sum(self._sizes[number - 1] for number in (*real, *ghosts))
        return Term(label, tuple(real), ghosts, relative_cost(self.method, basis_functions=size), molecule)

    def _size(self, atoms: Iterable[int]) -> int:
        """Of a fragment: its basis functions, or its electrons where there is no basis; only ratios matter."""
        numbers = [int(self.core.molecule.atomic_numbers[atom]) for atom in atoms]
        return sum(numbers) if self.basis is None else sum(map(functions, numbers))


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


def _field(data: Any, name: str) -> Any:
    return data.get(name) if isinstance(data, Mapping) else getattr(data, name, None)
