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
from ..planning.costs import Size
from ..programs import registry
from .clusters import Clusters
from .sizes import functions
from .supported import check_core, check_ghosts, check_input

if TYPE_CHECKING:
    from qcelemental.models.v2 import AtomicResult, Molecule
    from qcmanybody import ManyBodyCore
    from qcmanybody.models.v2 import ManyBodyInput, ManyBodyResult
    from qcmanybody.v2 import ManyBodyComputer


@dataclass(frozen=True, slots=True)
class Chemistry:
    """One model chemistry: a program, and what it is told of a QCSchema AtomicSpecification (driver, model, ...)."""

    name: str
    """QCManyBody's, which labels begin with."""
    program: str
    """QCEngine's name."""
    specification: Mapping[str, Any]

    @property
    def method(self) -> str:
        """As the program calls it."""
        return str(self.specification["model"]["method"])

    @property
    def basis(self) -> Any:
        """A name, a QCSchema BasisSet as data, or ``None``."""
        return self.specification["model"].get("basis")

    @property
    def basis_name(self) -> str | None:
        """For messages."""
        return self.basis if isinstance(self.basis, str | None) else "given in the input"


@dataclass(frozen=True, slots=True)
class Term:
    """One cluster of fragments in one basis: what QCManyBody calls a label, and its relative cost."""

    label: str
    chemistry: Chemistry
    fragments: tuple[int, ...]
    """Real fragments, from 1."""
    ghosts: tuple[int, ...]
    cost: float
    molecule: Molecule | None = None
    """Where the caller gave it. Else it is made when its time comes: of many terms they would fill the memory."""

    @property
    def nbody(self) -> int:
        """How many real fragments."""
        return len(self.fragments)


class Expansion:
    """All terms of one expansion, with one model chemistry or with several for its orders.

    Parameters
    ----------
    core
        QCManyBody's; says which terms there are.
    chemistries
        The model chemistries that the core's levels name.
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
        chemistries: Iterable[Chemistry],
        computer: ManyBodyComputer | None = None,
    ) -> None:
        check_core(core)
        self.core = core
        self._by_name = {chemistry.name: chemistry for chemistry in chemistries}
        self._computer = computer
        self._clusters = Clusters(core.molecule)
        self._commons: dict[str, dict[str, Any]] = {}
        groups = [[int(core.molecule.atomic_numbers[atom]) for atom in group] for group in core.molecule.fragments]
        self._functions = [sum(map(functions, numbers)) for numbers in groups]
        self._electrons = [sum(numbers) for numbers in groups]

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
        driver = given.specification.driver.value
        chemistries = [_chemistry(name, given.specification.specification, driver) for name in core.mc_levels]
        return cls(core, chemistries, computer)

    @classmethod
    def from_core(cls, core: ManyBodyCore, program: str, basis: str | None) -> Expansion:
        """The expansion of a bare core: its model chemistries are named ``"method"`` or ``"method/basis"``."""
        check_core(core)
        check_ghosts(core.bsse_type, [program])
        program = program.lower()
        chemistries = []
        for name in core.mc_levels:
            model = _model_of(str(name), program, basis)
            chemistries.append(Chemistry(name, program, {"driver": "energy", "model": model, "keywords": {}}))
        return cls(core, chemistries)

    @property
    def chemistries(self) -> tuple[Chemistry, ...]:
        """In the order of the orders that they are for."""
        return tuple(self._by_name.values())

    @property
    def programs(self) -> tuple[str, ...]:
        """QCEngine's names, each once."""
        return tuple(dict.fromkeys(chemistry.program for chemistry in self.chemistries))

    def orders(self, chemistry: Chemistry) -> list[int | str]:
        """The orders that ``chemistry`` is for; ``"supersystem"``: what is beyond them, by one of all fragments."""
        return [*self.core.nbodies_per_mc_level[chemistry.name]]

    @property
    def bodies(self) -> tuple[int, ...]:
        """Through how many bodies there is an energy."""
        orders = range(1, self.core.max_nbody + 1)
        beyond = self.core.has_supersystem and self.core.nfragments not in orders
        return (*orders, *([self.core.nfragments] if beyond else ()))

    @property
    def bsse(self) -> tuple[str, ...]:
        """The treatments by QCManyBody's names; the first decides what is returned."""
        return tuple(treatment.value for treatment in self.core.bsse_type)

    def counts_by_nbody(self) -> dict[int, int]:
        """Calculations by number of real fragments, in order.

        With one model chemistry and no supersystem by arithmetic, so that millions take no time.
        """
        core, bsse = self.core, self.bsse
        if len(self.chemistries) > 1 or core.has_supersystem:
            orders_of_all = [len(real) for _, real, _ in self._pairs()]
            return {order: orders_of_all.count(order) for order in sorted(set(orders_of_all))}
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
        """Every term, the costliest first, so that none that takes long is left for the end.

        Costs of different model chemistries cannot be compared: the costliest of each are the first of all.
        """
        from qcmanybody.utils import labeler

        made = [self._term(labeler(name, real, basis), name, real, basis) for name, real, basis in self._pairs()]
        made.sort(key=lambda term: (-term.cost, term.nbody, term.fragments, term.ghosts))
        first = {term.chemistry.name: term for term in reversed(made)}
        return sorted(made, key=lambda term: first[term.chemistry.name] is not term)

    def term(self, label: str, molecule: Molecule) -> Term:
        """The term of one label of QCManyBody's, with the molecule that comes with it."""
        from qcmanybody.utils import delabeler

        name, real, basis = delabeler(label)
        return self._term(label, name, real, basis, molecule)

    def size(self, term: Term) -> Size:
        """What its cost depends on, as cost models count it."""
        electrons = sum(self._electrons[number - 1] for number in term.fragments)
        functions = sum(self._functions[number - 1] for number in (*term.fragments, *term.ghosts))
        return Size(electrons if term.chemistry.basis is None else functions, electrons)

    def calculation(
        self,
        term: Term,
        *,
        threads: int,
        memory_bytes: int,
        files_bytes: int = 0,
        timeout_s: float | None = None,
        compute: str | None = None,
        task_config: Mapping[str, Any] | None = None,
    ) -> Calculation:
        """One term, ready to be run: the AtomicInput is the one that QCManyBody's own driver would hand to QCEngine."""
        return Calculation(
            label=term.label,
            program=term.chemistry.program,
            input=partial(self._atomic_input, term),
            threads=threads,
            memory_bytes=memory_bytes,
            files_bytes=files_bytes,
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
        return self._common(term.chemistry) | {"molecule": self._molecule(term)}

    def _common(self, chemistry: Chemistry) -> dict[str, Any]:
        """What the AtomicInputs of all its terms have in common."""
        if chemistry.name not in self._commons:
            from qcelemental.models.v2 import AtomicInput

            specification = {**chemistry.specification, "program": chemistry.program}
            made = AtomicInput(molecule=self.core.molecule, specification=specification)
            self._commons[chemistry.name] = made.model_dump(mode="json", exclude={"molecule"})
        return self._commons[chemistry.name]

    def _molecule(self, term: Term) -> dict[str, Any]:
        """The molecule of ``term``, as QCManyBody's own ``iterate_molecules`` makes it."""
        if term.molecule is not None:
            given: dict[str, Any] = term.molecule.model_dump(mode="json")
            return given
        real, ghosts = ([number - 1 for number in numbers] for numbers in (term.fragments, term.ghosts))
        fixed: dict[str, Any] = {"fix_com": True, "fix_orientation": True}
        if self.core.molecule.fix_symmetry == "c1":
            fixed["fix_symmetry"] = "c1"
        return self._clusters.cluster(real, ghosts) | fixed

    def _pairs(self) -> set[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """Model chemistry, real fragments and those whose basis is there, of every term."""
        return {
            (name, real, basis)
            for name, by_order in self.core.compute_map.items()
            for pairs in by_order["all"].values()
            for real, basis in pairs
        }

    def _term(
        self, label: str, name: str, real: Sequence[int], basis: Sequence[int], molecule: Molecule | None = None
    ) -> Term:
        chemistry = self._by_name[name]
        ghosts = tuple(sorted(set(basis) - set(real))) if len(basis) > len(real) else ()
        # Of a fragment: its basis functions, or its electrons where there is no basis; only ratios matter.
        sizes = self._electrons if chemistry.basis is None else self._functions
        size = sum(sizes[number - 1] for number in (*real, *ghosts))
        cost = relative_cost(chemistry.method, basis_functions=size)
        return Term(label, chemistry, tuple(real), ghosts, cost, molecule)


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


def _chemistry(name: str, given: Mapping[str, Any], driver: str) -> Chemistry:
    """The model chemistry ``name`` of a ManyBodyInput's specifications."""
    if name not in given:
        raise InputError(
            f"levels name the model chemistry {name!r}, but the specification has only: {', '.join(given)}"
        )
    try:
        specification = given[name].model_dump(mode="json")
    except ValueError as error:  # pydantic's, of what it cannot write as JSON
        raise InputError(
            f"the keywords go to a worker process as plain data, and these cannot: {error}; give numbers, text, "
            "truth values, lists and dicts"
        ) from None
    program = specification.pop("program").lower()
    return Chemistry(name, program, {**specification, "driver": driver})


def _model_of(name: str, program: str, basis: str | None) -> dict[str, str]:
    """The QCSchema model that the name of a bare core's model chemistry means."""
    method, slash, own_basis = name.partition("/")
    if not method or method.startswith("("):
        raise InputError(
            f"the levels of the ManyBodyCore name the model chemistry {name!r}, which is no method; name them "
            "'method' or 'method/basis' (for example {2: 'mp2/cc-pvdz'}), or use from_manybodyinput"
        )
    if not registry.get(program).takes_basis:
        if own_basis:
            raise InputError(f"basis {own_basis!r} with {program}, which has no basis sets; name the level {method!r}")
        return {"method": method}
    chosen = own_basis if slash else basis
    if not chosen:
        raise InputError(f"no basis set for {method} with {program}; name the level 'method/basis', or set basis_set")
    return {"method": method, "basis": chosen}


def _field(data: Any, name: str) -> Any:
    return data.get(name) if isinstance(data, Mapping) else getattr(data, name, None)
