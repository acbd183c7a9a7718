"""From a file and options to a checked ManyBodyInput (QCSchema version 2); starts nothing and guesses no ion."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..execution.xyz import parse_xyz
from ..programs import registry
from ..units import BOHR_TO_ANGSTROM
from .request import DEFAULT_PROGRAM, RunRequest
from .supported import check_bsse, check_input

if TYPE_CHECKING:
    from qcelemental.models.v2 import Molecule
    from qcmanybody.models.v2 import ManyBodyInput

DEFAULT_MAX_NBODY = 2
DEFAULT_BSSE = ("nocp",)

_BOND_FACTOR = 1.2  # times the sum of covalent radii, as in qcelemental.molutil.guess_connectivity
_TOO_CLOSE_ANGSTROM = 0.4  # well below the shortest bond there is (H2, 0.74)
# Their covalent radii reach to the next water's oxygen; in a cluster they are ions, so they are fragments of their own.
_STAND_ALONE = frozenset(("Li", "Na", "K", "Rb", "Cs", "Fr", "Mg", "Ca", "Sr", "Ba", "Ra"))
_NOBLE = frozenset(("He", "Ne", "Ar", "Kr", "Xe", "Rn"))
_WANTED = (
    "give a ManyBodyInput as .json, an .xyz file, or a Psi4 molecule block, "
    "which has a line 'O 0.0 0.0 0.0' for each atom and a line '--' between fragments"
)
_log = logging.getLogger("qcthreads")


def read_input(path: Path, request: RunRequest) -> ManyBodyInput:
    """Read a ManyBodyInput JSON file, an .xyz file, or a Psi4 molecule block, and complete it from the request.

    What the file leaves open, the request fills; where both say something they must say the same.

    Raises
    ------
    InputError
        Malformed or contradictory input: what was asked, what was found, what to do.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read the input {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file; {_WANTED}") from None
    if not text.strip():
        raise InputError(f"{path} is empty; {_WANTED}")
    if path.suffix.lower() == ".json" or text.lstrip().startswith("{"):
        return _from_json(path, text, request)
    if path.suffix.lower() == ".xyz":
        molecule = molecule_from_xyz(
            text,
            fragments=request.fragments,
            charges=request.charges,
            multiplicities=request.multiplicities,
            name=str(path),
        )
    else:
        molecule = molecule_from_psi4(text, name=str(path))
        _same_fragmentation(path, molecule, request)
    return build_input(
        molecule,
        program=request.program,
        method=request.method,
        basis=request.basis,
        max_nbody=request.max_nbody,
        bsse=request.bsse,
        keywords=request.keywords,
    )


def build_input(
    molecule: Molecule,
    *,
    program: str | None = None,
    method: str | None = None,
    basis: str | None = None,
    max_nbody: int | None = None,
    bsse: Sequence[str] | None = None,
    keywords: Mapping[str, Any] | None = None,
) -> ManyBodyInput:
    """The ManyBodyInput of one model chemistry; total energies are asked for, so that counterpoise gives them too.

    Defaults: program ``pyscf``, ``max_nbody`` 2, ``bsse`` nocp; method and basis have none, except for a program with a
    usual method and no basis sets (xtb: GFN2-xTB).
    """
    from qcmanybody.models.v2 import ManyBodyInput

    program = (program or DEFAULT_PROGRAM).lower()
    method, basis = _model(program, method, basis)
    n_fragments = len(molecule.fragments)
    max_nbody = _checked_max_nbody(min(DEFAULT_MAX_NBODY, n_fragments) if max_nbody is None else max_nbody, n_fragments)
    model = {"method": method} if basis is None else {"method": method, "basis": basis}
    atomic = {"program": program, "driver": "energy", "model": model, "keywords": dict(keywords or {})}
    data = {
        "molecule": molecule,
        "specification": {
            "driver": "energy",
            "keywords": {
                "bsse_type": check_bsse(bsse or DEFAULT_BSSE),
                "max_nbody": max_nbody,
                "return_total_data": True,
            },
            "specification": {"(auto)": atomic},
        },
    }
    made = ManyBodyInput(**data)
    _check(made)
    return made


def molecule_from_xyz(
    text: str,
    *,
    fragments: str | None = None,
    charges: Sequence[float] | None = None,
    multiplicities: Sequence[int] | None = None,
    name: str = "the .xyz input",
) -> Molecule:
    """A fragmented molecule of an .xyz file (angstrom).

    Fragments are what covalent bonds connect (distance below 1.2 times the sum of the covalent radii; alkali and
    alkaline earth metals stand alone), in the order of their first atoms, or as ``fragments`` says. QCManyBody wants
    the atoms of a fragment next to each other: where the file has them apart, they are brought together, with a line
    in the log.
    """
    import numpy as np
    from qcelemental.models.v2 import Molecule

    symbols, coordinates = parse_xyz(text, name)
    _check_distances(coordinates, name)
    groups = _connected(symbols, coordinates) if fragments is None else parse_fragments(fragments, len(symbols))
    if len(groups) < 2:
        how = "--fragments gives" if fragments is not None else "its covalent bonds connect all atoms to"
        raise InputError(
            f"{name}: {how} one fragment only, and a many-body expansion needs two or more; "
            'give the atoms of each, for example --fragments "1-3;4-6"'
        )
    states = _states(symbols, groups, charges, multiplicities, name)
    order = [atom for group in groups for atom in group]
    if order != list(range(len(symbols))):
        _log.warning(
            "%s: atoms are reordered so that each fragment's stand together: %s", name, _ranges(a + 1 for a in order)
        )
    sizes = np.cumsum([0, *(len(group) for group in groups)])
    return Molecule(
        symbols=[symbols[atom] for atom in order],
        geometry=np.array([coordinates[atom] for atom in order]) / BOHR_TO_ANGSTROM,
        fragments=[list(range(start, end)) for start, end in pairwise(sizes)],
        fragment_charges=[charge for charge, _ in states],
        fragment_multiplicities=[multiplicity for _, multiplicity in states],
        molecular_charge=sum(charge for charge, _ in states),
        molecular_multiplicity=1 + sum(multiplicity - 1 for _, multiplicity in states),
        fix_com=True,
        fix_orientation=True,
    )


def molecule_from_psi4(text: str, *, name: str = "the molecule block") -> Molecule:
    """A fragmented molecule of a Psi4 molecule block, bare or inside ``molecule { }``, with ``--`` between fragments.

    Units, charges, multiplicities and their defaults are Psi4's (QCElemental reads the block).
    """
    from qcelemental.models.v2 import Molecule

    block, rest = _unwrap(text, name)
    if rest:
        raise InputError(
            f"{name}: found input outside the molecule block ({rest[0]!r}); only the molecule is read from this file: "
            "remove the rest and say it with --method, --basis and --keywords"
        )
    if not block.strip():
        raise InputError(f"{name}: found no atom; {_WANTED}")
    try:
        molecule = Molecule.from_data(block, dtype="psi4", fix_com=True, fix_orientation=True)
    except Exception as error:  # QCElemental raises several kinds, some of them not exported
        problem = _impossible_in_block(block) or f"{_no_block(error)}; {_WANTED}"
        raise InputError(f"{name}: {problem}") from None
    if len(molecule.fragments) < 2:
        raise InputError(f"{name}: found one fragment only; put a line '--' between the fragments")
    return molecule


def parse_fragments(text: str, n_atoms: int) -> list[list[int]]:
    """Zero-based atoms of each fragment of ``"1-3;4-6"``: every atom of 1..n in exactly one."""
    groups: list[list[int]] = []
    owner: dict[int, int] = {}
    for number, part in enumerate((p for p in text.strip().strip(";").split(";")), start=1):
        group: list[int] = []
        for piece in part.split(","):
            match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", piece)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if not match or last < first:
                raise InputError(
                    f"--fragments: {piece!r} in {text!r} is not an atom or a range; write for example 1-3;4-6"
                )
            for atom in range(first, last + 1):
                if not 1 <= atom <= n_atoms:
                    raise InputError(
                        f"--fragments: atom {atom} of fragment {number}, but the atoms are 1 to {n_atoms}; "
                        "name only these"
                    )
                if atom in owner:
                    raise InputError(
                        f"--fragments: atom {atom} is in fragment {owner[atom]} and again in fragment {number}; "
                        "leave it in one of them"
                    )
                owner[atom] = number
                group.append(atom - 1)
        groups.append(group)
    missing = [atom for atom in range(1, n_atoms + 1) if atom not in owner]
    if missing:
        raise InputError(
            f"--fragments {text!r}: in no fragment: {'atom' if len(missing) == 1 else 'atoms'} {_ranges(missing)}; "
            "put each atom in one"
        )
    return groups


def _from_json(path: Path, text: str, request: RunRequest) -> ManyBodyInput:
    """A ManyBodyInput of version 1 or 2, completed from the request."""
    from pydantic import ValidationError
    from qcelemental.exceptions import ValidationError as MoleculeError
    from qcmanybody.models.v2 import ManyBodyInput

    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from None
    if not isinstance(data, dict) or "molecule" not in data or "specification" not in data:
        found = ", ".join(sorted(data)[:8]) if isinstance(data, dict) else type(data).__name__
        raise InputError(
            f"{path} is not a QCManyBody ManyBodyInput: it needs 'molecule' and 'specification', found: {found}"
        )
    try:
        if data.get("schema_version") == 1 or data.get("schema_name") == "qcschema_manybodyinput":
            data = _converted_to_v2(data)
        given = ManyBodyInput(**data)
        completed = _completed(path, given, request)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path} is not a valid ManyBodyInput: {where}: {first['msg']}") from None
    except MoleculeError as error:
        problem = _impossible_in_data(data["molecule"]) or f"its molecule is refused: {_one_line(error)}"
        raise InputError(f"{path}: {problem}") from None
    _same_fragmentation(path, completed.molecule, request)
    _check(completed)
    return completed


def _converted_to_v2(data: dict[str, Any]) -> dict[str, Any]:
    from qcmanybody.models.v1 import ManyBodyInput as ManyBodyInputV1

    try:
        converted = ManyBodyInputV1(**data).convert_v(2)
    except Exception as error:  # pydantic.v1's ValidationError is not pydantic's
        raise InputError(f"not a valid ManyBodyInput of QCSchema version 1: {_one_line(error)}") from None
    dumped: dict[str, Any] = converted.model_dump(exclude_unset=True)
    return dumped


def _completed(path: Path, given: ManyBodyInput, request: RunRequest) -> ManyBodyInput:
    """The input with what it leaves open filled from the request; a contradiction is an error."""
    from qcmanybody.models.v2 import ManyBodyInput

    data = given.model_dump(exclude_unset=True)
    specification = data["specification"]
    keywords = specification["keywords"]
    if request.max_nbody is not None:
        wanted = _checked_max_nbody(request.max_nbody, len(given.molecule.fragments))
        levels = [level for level in (keywords.get("levels") or {}) if level != "supersystem"]
        found = keywords.get("max_nbody") or (max(int(level) for level in levels) if levels else None)
        keywords["max_nbody"] = _agree(path, "--max-nbody", wanted, found)
    if request.bsse is not None:
        said = [getattr(treatment, "value", treatment) for treatment in keywords.get("bsse_type") or ()] or None
        keywords["bsse_type"] = _agree(path, "--bsse", check_bsse(request.bsse), said)
    for atomic in specification["specification"].values():
        model = atomic.setdefault("model", {})
        if request.program is not None:
            atomic["program"] = _agree(
                path, "--program", request.program.lower(), atomic.get("program") or None, str.lower
            )
        if request.method is not None:
            model["method"] = _agree(path, "--method", request.method, model.get("method") or None, str.lower)
        if request.basis is not None:
            model["basis"] = _agree(path, "--basis", request.basis, model.get("basis") or None, str.lower)
        if request.keywords:
            atomic["keywords"] = _agree(path, "--keywords", dict(request.keywords), atomic.get("keywords") or None)
    return ManyBodyInput(**data)


def _agree(path: Path, option: str, asked: Any, found: Any, fold: Callable[[Any], Any] = lambda value: value) -> Any:
    """What the file says if it says something, and then the option must say the same; else the option."""
    if found is None:
        return asked
    if not isinstance(found, str | int | list | Mapping) or fold(asked) != fold(found):
        raise InputError(
            f"{option} {_said(asked)} contradicts {path}, which says {_said(found)}; "
            "leave the option out or change the file"
        )
    return found


def _said(value: Any) -> str:
    """A value as it is written after an option."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else json.dumps(value, default=str)


def _same_fragmentation(path: Path, molecule: Molecule, request: RunRequest) -> None:
    """The file has fragments of its own: options that say otherwise are an error."""
    if request.fragments is not None:
        asked = [sorted(group) for group in parse_fragments(request.fragments, len(molecule.symbols))]
        found = [sorted(int(atom) for atom in group) for group in molecule.fragments]
        if asked != found:
            atoms = ";".join(_ranges(atom + 1 for atom in group) for group in found)
            raise InputError(
                f"--fragments {request.fragments!r} contradicts {path}, which says {atoms!r}; leave it out"
            )
    for option, said, has in (
        ("--charges", request.charges, molecule.fragment_charges),
        ("--multiplicities", request.multiplicities, molecule.fragment_multiplicities),
    ):
        if said is not None and [float(value) for value in said] != [float(value) for value in has]:
            numbers = ",".join(f"{value:g}" for value in has)
            raise InputError(
                f"{option} {','.join(map(str, said))} contradicts {path}, which says {numbers}; leave it out"
            )


def _check(made: ManyBodyInput) -> None:
    """Everything that must hold whatever the input's form was."""
    check_input(made)
    n_fragments = len(made.molecule.fragments)
    if n_fragments < 2:
        raise InputError(
            "the molecule has one fragment only, and a many-body expansion needs two or more: give fragments"
        )
    if made.specification.keywords.max_nbody is not None:
        _checked_max_nbody(made.specification.keywords.max_nbody, n_fragments)
    for atomic in made.specification.specification.values():
        if not atomic.program:
            raise InputError(f"the input names no program; give --program (for example {DEFAULT_PROGRAM})")
        _model(atomic.program.lower(), atomic.model.method, atomic.model.basis)


def _model(program: str, method: str | None, basis: Any) -> tuple[str, Any]:
    """Method and basis, or InputError that says which to give."""
    spec = registry.get(program)
    if not spec.takes_basis:
        method = method or spec.usual_method
        if method is None:
            raise InputError(f"no method was given for {program}; give --method")
        if basis:
            raise InputError(f"--basis {basis!r} with {program}, which has no basis sets; leave the basis out")
        return method, None
    if not method:
        raise InputError(f"no method was given for {program}; give --method, for example --method mp2")
    if not basis:
        raise InputError(f"no basis set was given for {program}; give --basis, for example --basis cc-pvdz")
    return method, basis


def _checked_max_nbody(max_nbody: int, n_fragments: int) -> int:
    if not 1 <= max_nbody <= n_fragments:
        raise InputError(f"max_nbody {max_nbody}, but there are {n_fragments} fragments; give 1 to {n_fragments}")
    return max_nbody


def _distances(coordinates: Sequence[tuple[float, float, float]]) -> Any:
    import numpy as np

    points = np.asarray(coordinates)
    return np.sqrt(((points[:, None, :] - points[None, :, :]) ** 2).sum(axis=-1))


def _check_distances(coordinates: Sequence[tuple[float, float, float]], name: str) -> None:
    import numpy as np

    distances = _distances(coordinates)
    np.fill_diagonal(distances, np.inf)
    a, b = (int(index) for index in np.unravel_index(np.argmin(distances), distances.shape))
    if distances[a, b] < _TOO_CLOSE_ANGSTROM:
        raise InputError(
            f"{name}: atoms {a + 1} and {b + 1} are {distances[a, b]:.3f} angstrom apart; is an atom there twice, "
            "or are the coordinates not in angstrom?"
        )


def _connected(symbols: Sequence[str], coordinates: Sequence[tuple[float, float, float]]) -> list[list[int]]:
    """Connected components of the graph of covalent bonds, each sorted, in the order of their first atoms."""
    import numpy as np

    radii = np.array([_covalent_radius(symbol) for symbol in symbols])
    radii[[symbol in _STAND_ALONE for symbol in symbols]] = -np.inf
    bonded = _distances(coordinates) < _BOND_FACTOR * (radii[:, None] + radii[None, :])
    groups: list[list[int]] = []
    seen: set[int] = set()
    for start in range(len(symbols)):
        if start in seen:
            continue
        group, reached = {start}, [start]
        while reached:
            found = {int(atom) for atom in np.flatnonzero(bonded[reached.pop()])} - group
            group |= found
            reached.extend(found)
        seen |= group
        groups.append(sorted(group))
    return groups


def _covalent_radius(symbol: str) -> float:
    """In angstrom, as the table has it: asked for a unit, QCElemental imports pint, which takes 0.3 s."""
    from qcelemental import covalentradii
    from qcelemental.exceptions import DataUnavailableError

    try:
        return float(covalentradii.get(symbol, return_tuple=True).data)
    except DataUnavailableError:
        return 1.8


def _states(
    symbols: Sequence[str],
    groups: Sequence[Sequence[int]],
    charges: Sequence[float] | None,
    multiplicities: Sequence[int] | None,
    name: str,
) -> list[tuple[float, int]]:
    """Charge and multiplicity of each fragment; what cannot be known safely is asked for."""
    from qcelemental import periodictable

    for option, given in (("--charges", charges), ("--multiplicities", multiplicities)):
        if given is not None and len(given) != len(groups):
            listed = "; ".join(f"{i}: {_formula(symbols, group)}" for i, group in enumerate(groups, start=1))
            raise InputError(
                f"{option} has {len(given)} numbers, but {name} has {len(groups)} fragments ({listed}); give one each"
            )
    states = []
    for number, group in enumerate(groups, start=1):
        what = f"fragment {number} ({_formula(symbols, group)}, atoms {_ranges(atom + 1 for atom in group)})"
        charge = float(charges[number - 1]) if charges is not None else 0.0
        if not charge.is_integer():
            raise InputError(f"{name}: charge {charge:g} of {what} is not a whole number")
        if charges is None and len(group) == 1 and symbols[group[0]] not in _NOBLE:
            raise InputError(
                f"{name}: {what} is a single atom and ions are not guessed; give --charges (one per fragment)"
            )
        nuclear = sum(periodictable.to_Z(symbols[atom]) for atom in group)
        electrons = nuclear - int(charge)
        multiplicity = None if multiplicities is None else int(multiplicities[number - 1])
        problem = _impossible(what, nuclear, int(charge), multiplicity)
        if problem:
            raise InputError(f"{name}: {problem}")
        if multiplicity is None:
            if electrons % 2:
                raise InputError(
                    f"{name}: {what} has {electrons} electrons at charge {charge:g}, an odd number: if it is an ion "
                    "give --charges, if it is a radical give --multiplicities (one number per fragment)"
                )
            states.append((charge, 1))
            continue
        states.append((charge, multiplicity))
    return states


def _impossible(what: str, nuclear: int, charge: int, multiplicity: int | None) -> str | None:
    """Why ``what`` cannot have this charge or multiplicity, and what it can have; ``None`` where it can."""
    electrons = nuclear - charge
    if electrons < 0:
        return f"{what} is given charge {charge:+d}, but its nuclei have {nuclear:+d} in all; give at most that"
    if multiplicity is None or (1 <= multiplicity <= electrons + 1 and (electrons - multiplicity) % 2):
        return None
    fits = ", ".join(str(fit) for fit in range(1 + electrons % 2, min(electrons + 1, 6) + 1, 2))
    return (
        f"multiplicity {multiplicity} is impossible for {what} with {electrons} electrons at charge {charge}, "
        f"which can have {fits}; give one of these, or another charge"
    )


def _no_block(error: Exception) -> str:
    """Of a text that QCElemental does not take for a molecule block: what it found."""
    from qcelemental.exceptions import NotAnElementError

    if isinstance(error, NotAnElementError):
        return f"{_one_line(error, 60)!r} is no element"
    said, _, lines = str(error).partition("remnants under psi4:\n")
    if lines:
        return f"{_shortened(lines.splitlines()[0], 60)!r} is no line of a molecule block"
    return f"it cannot be read as a molecule block ({_shortened(said, 120)})"


def _impossible_in_block(block: str) -> str | None:
    """Of a Psi4 molecule block that QCElemental refuses: which fragment's charge or multiplicity cannot be."""
    states: list[tuple[int, int | None]] = []
    fragments: list[range] = []
    symbols: list[str] = []
    for part in re.split(r"^\s*--\s*$", block, flags=re.MULTILINE):
        found = re.findall(r"^\s*([+-]?\d+)\s+(\d+)\s*$", part, re.MULTILINE)
        atoms = re.findall(r"^[ \t]*([A-Za-z]{1,2})(?:[_\d@]\S*)?[ \t]+[-+.\d]", part, re.MULTILINE)
        states.append((int(found[-1][0]), int(found[-1][1])) if found else (0, None))
        fragments.append(range(len(symbols), len(symbols) + len(atoms)))
        symbols += atoms
    return _first_impossible(symbols, fragments, states)


def _impossible_in_data(molecule: Any) -> str | None:
    """The same of a QCSchema molecule."""
    try:
        symbols, fragments = molecule["symbols"], molecule["fragments"]
        charges = [int(charge) for charge in molecule["fragment_charges"]]
        multiplicities = [int(multiplicity) for multiplicity in molecule["fragment_multiplicities"]]
        return _first_impossible(symbols, fragments, list(zip(charges, multiplicities, strict=True)))
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _first_impossible(
    symbols: Sequence[str], fragments: Sequence[Sequence[int]], states: Sequence[tuple[int, int | None]]
) -> str | None:
    from qcelemental import periodictable

    for number, (group, (charge, multiplicity)) in enumerate(zip(fragments, states, strict=True), start=1):
        try:
            nuclear = sum(periodictable.to_Z(symbols[atom]) for atom in group)
            what = f"fragment {number} ({_formula(symbols, group)}, atoms {_ranges(atom + 1 for atom in group)})"
        except Exception:  # QCElemental's NotAnElementError: then that is what is wrong
            return None
        problem = _impossible(what, nuclear, charge, multiplicity)
        if problem:
            return problem
    return None


def _formula(symbols: Sequence[str], group: Iterable[int]) -> str:
    from qcelemental.molutil import molecular_formula_from_symbols

    formula: str = molecular_formula_from_symbols([symbols[atom] for atom in group])
    return formula


def _unwrap(text: str, name: str) -> tuple[str, list[str]]:
    """The inside of ``molecule name { ... }`` and what stands outside it; a text without braces is all inside."""
    clean = re.sub(r"#.*", "", text)
    if "{" not in clean:
        return clean, []
    blocks = list(re.finditer(r"\bmolecule\b[^{}\n]*\{([^{}]*)\}", clean))
    if len(blocks) != 1:
        raise InputError(f"{name}: found {len(blocks)} molecule blocks 'molecule {{ ... }}'; give exactly one")
    outside = clean[: blocks[0].start()] + clean[blocks[0].end() :]
    return blocks[0][1], [line.strip() for line in outside.splitlines() if line.strip()]


def _ranges(numbers: Iterable[int]) -> str:
    """``1-3,7``, in the order given."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _one_line(error: Exception, most: int = 300) -> str:
    return _shortened(str(error), most)


def _shortened(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."
