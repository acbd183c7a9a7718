"""PySCF for QCEngine: HF and MP2 energies and gradients; importing this registers it, and changes nothing else.

Never returns the energy of an SCF that did not converge, and never leaves a thread count changed.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import numpy as np
import qcengine
from qcelemental.models.v2 import AtomicInput, AtomicResult
from qcelemental.util import which_import
from qcengine.config import TaskConfig
from qcengine.exceptions import ConvergenceError, InputError, ResourceError
from qcengine.programs.model import ProgramHarness

from ...units import nearest

_METHODS = ("hf", "scf", "mp2")
# What people ask for, in their spelling: for hints only.
_FAMILIAR_BASES = (
    *("sto-3g", "3-21g", "6-31g", "6-31g*", "6-31g**", "6-31+g*", "6-311g**", "6-311++g**"),
    *(f"{prefix}cc-pv{size}z" for prefix in ("", "aug-") for size in "dtq"),
    *("def2-svp", "def2-svpd", "def2-tzvp", "def2-tzvpd", "def2-tzvpp", "def2-qzvp", "lanl2dz"),
)
_KEYWORDS = {
    "reference": "rhf, uhf or rohf; by default rhf for singlets, else uhf",
    "density_fit": "true or false (default)",
    "auxbasis": "name of the fitting basis of the SCF, with density_fit",
    "auxbasis_mp2": "name of the fitting basis of MP2, with density_fit",
    "frozen_core": "true, false (default), or the number of orbitals",
    "cartesian": "true or false; by default as the basis defines",
    "conv_tol": "a number above 0: convergence of the SCF energy in hartree (default 1e-10)",
    "max_cycle": "a whole number of at least 1: iterations of the SCF (default 50)",
}
_VALID: dict[str, Callable[[Any], bool]] = {
    "reference": lambda value: str(value).lower() in ("rhf", "uhf", "rohf"),
    "density_fit": lambda value: isinstance(value, bool),
    "cartesian": lambda value: isinstance(value, bool),
    "frozen_core": lambda value: isinstance(value, int) and value >= 0,
    "conv_tol": lambda value: isinstance(value, float | int) and not isinstance(value, bool) and value > 0,
    "max_cycle": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
}


class PySCFHarness(ProgramHarness):  # type: ignore[misc]
    """HF and MP2 by PySCF in this process.

    Threads are ``task_config["ncores"]``, memory ``task_config["memory"]``. The keywords are in ``_KEYWORDS``; an
    unknown one is an InputError that names them all.
    """

    _defaults: ClassVar[dict[str, Any]] = {
        "name": "PySCF",
        "scratch": True,
        "thread_safe": False,
        "thread_parallel": True,
        "node_parallel": False,
        "managed_memory": True,
    }

    @staticmethod
    def found(raise_error: bool = False) -> bool:
        """Whether PySCF can be imported."""
        return bool(
            which_import(
                "pyscf",
                return_bool=True,
                raise_error=raise_error,
                raise_msg="Please install via `pip install pyscf` (Linux and macOS).",
            )
        )

    def get_version(self) -> str:
        """PySCF's version."""
        import pyscf

        return str(pyscf.__version__)

    def compute(self, input_data: AtomicInput, config: TaskConfig) -> AtomicResult:
        """Run one calculation; QCEngine turns what is raised into a FailedOperation."""
        from pyscf import lib

        self.found(raise_error=True)
        spec = input_data.specification
        keywords = _checked(spec.driver.value, {"method": spec.model.method, "basis": spec.model.basis}, spec.keywords)
        log = io.StringIO() if input_data.specification.protocols.stdout else None
        with _scratch(config.scratch_directory), _threads(config.ncores):
            nthreads = lib.num_threads()
            try:
                answer = _calculate(input_data, keywords, config, log)
            except MemoryError as error:
                raise ResourceError(
                    f"PySCF needs more than the {config.memory:.3f} GiB it was given: {error}"
                ) from None
        return AtomicResult(
            input_data=input_data,
            molecule=input_data.molecule,
            success=True,
            stdout=log.getvalue() if log else None,
            provenance={
                "creator": "PySCF",
                "version": self.get_version(),
                "routine": __name__,
                "nthreads": nthreads,
                "memory": round(config.memory, 3),
            },
            **answer,
        )


def check(common: Mapping[str, Any]) -> dict[str, Any]:
    """Whether PySCF knows what every calculation of a batch asks for: ``{"refused": None}``, or why it does not.

    ``common``: ``driver``, ``model`` and ``keywords`` of a QCSchema AtomicSpecification, and all ``elements``.
    """
    try:
        keywords = _checked(common["driver"], common["model"], common["keywords"])
        sets = {name: keywords[name] for name in ("auxbasis", "auxbasis_mp2") if name in keywords}
        for basis in (common["model"]["basis"], *sets.values()):
            for element in common["elements"]:
                _element_basis(basis, element)
    except InputError as error:
        return {"refused": str(error)}
    return {"refused": None}


def _checked(driver: str, model: Mapping[str, Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords with names in lower case, once everything asked for is known to be offered."""
    keywords = {name.lower(): value for name, value in keywords.items()}
    unknown = sorted(keywords.keys() - _KEYWORDS.keys())
    if unknown:
        near = nearest(unknown[0], _KEYWORDS)
        offered = "; ".join(f"{name}: {meaning}" for name, meaning in _KEYWORDS.items())
        meant = f"; did you mean {near}?" if near else "."
        raise InputError(f"unknown keywords for PySCF: {', '.join(unknown)}{meant} It knows {offered}")
    if model["method"].lower() not in _METHODS:
        raise InputError(f"method {model['method']!r} is not offered with PySCF; offered are hf and mp2")
    if driver not in ("energy", "gradient"):
        raise InputError(f"driver {driver!r} is not offered with PySCF; offered are energy and gradient")
    if not isinstance(model["basis"], str) or not model["basis"]:
        raise InputError(f"PySCF takes the name of a basis set as a string; given was {model['basis']!r}")
    for name, value in keywords.items():
        if not _VALID.get(name, _is_name)(value):
            raise InputError(f"keyword {name} is {value!r}; it must be {_KEYWORDS[name]}")
    return keywords


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _calculate(
    inp: AtomicInput, keywords: dict[str, Any], config: TaskConfig, log: io.StringIO | None
) -> dict[str, Any]:
    """The fields of the result that the calculation decides."""
    mol = _molecule(inp, keywords, config.memory, log)
    mf, iterations = _scf(mol, inp.specification.model.basis, keywords)
    energy = float(mf.e_tot)
    properties = {
        "calcinfo_nbasis": mol.nao,
        "calcinfo_nmo": mf.mo_coeff[0].shape[-1] if mf.istype("UHF") else mf.mo_coeff.shape[-1],
        "calcinfo_nalpha": mol.nelec[0],
        "calcinfo_nbeta": mol.nelec[1],
        "calcinfo_natom": mol.natm,
        "nuclear_repulsion_energy": float(mol.energy_nuc()),
        "scf_total_energy": energy,
        "scf_iterations": iterations,
    }
    wavefunction = mf
    if inp.specification.model.method.lower() == "mp2":
        wavefunction = _mp2(mol, mf, inp.specification.model.basis, keywords, inp.specification.driver == "gradient")
        energy = float(wavefunction.e_tot)
        properties |= {
            "mp2_correlation_energy": float(wavefunction.e_corr),
            "mp2_total_energy": energy,
            "mp2_same_spin_correlation_energy": float(wavefunction.e_corr_ss),
            "mp2_opposite_spin_correlation_energy": float(wavefunction.e_corr_os),
        }
    properties["return_energy"] = energy
    result: Any = energy
    if inp.specification.driver == "gradient":
        result = np.asarray(wavefunction.nuc_grad_method().kernel())
        properties["return_gradient"] = result
    return {"return_result": result, "properties": properties}


def _molecule(inp: AtomicInput, keywords: dict[str, Any], memory_gib: float, log: io.StringIO | None) -> Any:
    from pyscf import gto

    basis = inp.specification.model.basis
    molecule = inp.molecule
    if molecule.molecular_charge != round(molecule.molecular_charge):
        raise InputError(f"the charge must be a whole number; given was {molecule.molecular_charge}")
    labels = [s if real else f"GHOST-{s}" for s, real in zip(molecule.symbols, molecule.real, strict=True)]
    mol = gto.Mole()
    mol.atom = [[label, tuple(xyz)] for label, xyz in zip(labels, molecule.geometry, strict=True)]
    mol.unit = "Bohr"
    mol.basis = {label: _element_basis(basis, label.removeprefix("GHOST-")) for label in set(labels)}
    mol.ecp = {label: ecp for label in set(labels) if (ecp := _element_ecp(basis, label))}
    mol.charge = round(molecule.molecular_charge)
    mol.spin = round(molecule.molecular_multiplicity) - 1
    mol.cart = keywords.get("cartesian", _is_cartesian(basis))
    mol.max_memory = memory_gib * 1024**3 / 1e6
    mol.verbose = 4 if log else 0
    mol.stdout = log or io.StringIO()
    try:
        mol.build(dump_input=False, parse_arg=False)
    except RuntimeError as error:  # electrons and multiplicity do not fit
        raise InputError(f"PySCF refuses this molecule: {' '.join(str(error).split())}") from None
    if mol.nelectron == 0:
        raise InputError("this molecule has no electrons")
    return mol


@cache
def _element_basis(basis: str, element: str) -> Any:
    """Parsed once: PySCF reads its files again for every molecule."""
    from pyscf import gto

    try:
        return gto.basis.load(basis, element)
    except Exception:  # PySCF raises several kinds, KeyError and its own among them
        raise InputError(_no_basis(basis, element)) from None


def _no_basis(basis: str, element: str) -> str:
    """Why there is none, and which there are."""
    missing = f"PySCF has no basis set {basis!r} for {element}"
    if any(_has(basis, other) for other in ("H", "C", "Fe")):
        others = [name for name in _FAMILIAR_BASES if _has(name, element)]
        return f"{missing}, though for other elements; for {element} there is for example {', '.join(others) or 'none'}"
    near = nearest(basis, _FAMILIAR_BASES)
    return (
        f"{missing}, nor for other elements; {f'did you mean {near}? There' if near else 'there'} are for example "
        f"{', '.join(_FAMILIAR_BASES)}; `pip install basis-set-exchange` adds all of the Basis Set Exchange"
    )


def _has(basis: str, element: str) -> bool:
    from pyscf import gto

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PySCF warns that it could look into the Basis Set Exchange
        try:
            return bool(gto.basis.load(basis, element))
        except Exception:  # it raises several kinds
            return False


@cache
def _element_ecp(basis: str, label: str) -> Any:
    """The effective core potential that belongs to the basis; PySCF by itself would leave it out."""
    from pyscf import gto
    from pyscf.data.elements import charge

    if label.startswith("GHOST-") or charge(label) <= 10:  # no set in use replaces the core of H to Ne
        return None
    try:
        return gto.basis.load_ecp(basis, label)
    except Exception:  # no such potential: PySCF raises several kinds
        return None


def _is_cartesian(basis: str) -> bool:
    """Whether the basis was defined with Cartesian d and f functions: as the headers of Psi4's basis files say."""
    name = re.sub(r"[-_ ]", "", basis.lower())
    return re.match(r"(321|631)\+{0,2}g", name) is not None or name in ("dz", "dzp", "lanl2dz")


def _scf(mol: Any, basis: str, keywords: dict[str, Any]) -> tuple[Any, int]:
    """A converged SCF and the number of its iterations."""
    from pyscf import scf

    reference = str(keywords.get("reference", "uhf" if mol.spin else "rhf")).lower()
    kinds = {"rhf": scf.hf.RHF, "uhf": scf.uhf.UHF, "rohf": scf.rohf.ROHF}
    if reference == "rhf" and mol.spin:
        raise InputError(f"RHF is for singlets; the multiplicity is {mol.spin + 1}: use reference uhf or rohf")
    mf = kinds[reference](mol)
    mf.chkfile = None
    if checkpoint := getattr(mf, "_chkfile", None):  # an empty file by now, that would stay open
        checkpoint.close()
    if keywords.get("density_fit"):
        mf = mf.density_fit(auxbasis=_fitting_basis(mol, basis, keywords.get("auxbasis"), mp2=False))
    mf.conv_tol = keywords.get("conv_tol", 1e-10)
    mf.max_cycle = keywords.get("max_cycle", 50)
    mf.kernel(dm0=_guess(mol, basis, reference))
    if mf.converged:
        return mf, mf.cycles
    second = mf.newton()
    second.max_cycle = mf.max_cycle
    second.kernel(mf.mo_coeff, mf.mo_occ)
    if not second.converged:
        raise ConvergenceError(
            f"the SCF did not converge to {mf.conv_tol:g} hartree in {mf.max_cycle} iterations, nor by second-order "
            "iterations from there; check geometry, charge and multiplicity, or give a larger max_cycle"
        )
    return second, mf.cycles + second.cycles


def _guess(mol: Any, basis: str, reference: str) -> Any:
    """Densities of the neutral atoms side by side, or ``None`` for PySCF's own guess.

    PySCF's own is the same in a minimal basis, projected; but it reads a basis file anew for every element, which is
    half the time of a water molecule in cc-pVDZ (35 of 62 ms, 2.14).
    """
    if mol._ecp or (reference == "uhf" and not mol.spin):  # PySCF breaks the spin symmetry of a UHF singlet
        return None
    density = np.zeros((mol.nao, mol.nao))
    for atom, (_, _, begin, end) in enumerate(mol.aoslice_by_atom()):
        label = mol.atom_symbol(atom)
        if not label.startswith("GHOST-"):
            density[begin:end, begin:end] = _atom_density(basis, label, mol.cart)
    return density if reference == "rhf" else np.array((density / 2, density / 2))


@cache
def _atom_density(basis: str, element: str, cartesian: bool) -> Any:
    from pyscf import gto, scf

    atom = gto.Mole(verbose=0)
    atom.atom = [[element, (0.0, 0.0, 0.0)]]
    atom.basis = {element: _element_basis(basis, element)}
    atom.spin = None
    atom.cart = cartesian
    atom.build(dump_input=False, parse_arg=False)
    return np.asarray(scf.hf.init_guess_by_minao(atom))


def _mp2(mol: Any, mf: Any, basis: str, keywords: dict[str, Any], for_gradient: bool) -> Any:
    """A finished MP2; with its amplitudes only where the gradient needs them."""
    from pyscf import df, mp
    from pyscf.data.elements import chemcore

    if mf.istype("ROHF"):
        raise InputError("MP2 on an ROHF reference is not offered with PySCF; use reference uhf")
    fitted = bool(keywords.get("density_fit"))
    if fitted and for_gradient:
        raise InputError("the gradient of density-fitted MP2 is not offered with PySCF; leave density_fit out")
    frozen = keywords.get("frozen_core", False)
    if isinstance(frozen, bool):
        frozen = chemcore(mol) if frozen else 0
    if frozen > min(mol.nelec) or frozen == max(mol.nelec):
        raise InputError(
            f"frozen_core is {frozen}, but this molecule has {min(mol.nelec)} doubly occupied orbitals, "
            "and some electron must be left to correlate"
        )
    # Not mp.MP2, which asks mf whether it has fitted densities: to answer, PySCF imports all of itself (0.6 s).
    if mf.istype("UHF"):
        method = mp.dfump2.DFUMP2 if fitted else mp.ump2.UMP2
    else:
        method = mp.dfmp2.DFMP2 if fitted else mp.mp2.RMP2
    calculation = method(mf, frozen=frozen or None)
    if fitted:
        calculation.with_df = df.DF(mol, auxbasis=_fitting_basis(mol, basis, keywords.get("auxbasis_mp2"), mp2=True))
        calculation.with_df.verbose = mol.verbose
    calculation.kernel(with_t2=for_gradient)
    return calculation


def _fitting_basis(mol: Any, basis: str, asked: str | None, *, mp2: bool) -> Any:
    """The set asked for, or made for this basis where there is one (Psi4's choice), else PySCF's even-tempered one."""
    from pyscf import df

    if asked is not None:
        for element in mol.elements:
            _element_basis(asked, element.removeprefix("GHOST-"))
        return asked
    return df.addons.predefined_auxbasis(mol, basis, "HF", mp2) or df.aug_etb(mol)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """PySCF's OpenMP teams at ``threads``, and the BLAS pools of NumPy and SciPy beside them at one."""
    from pyscf import lib

    with lib.with_omp_threads(threads), _pools().limit(limits=1, user_api="blas"):
        yield


@cache
def _pools() -> Any:
    import pyscf.scf  # noqa: F401  brings NumPy's and SciPy's pools, which must be there to be found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def _scratch(directory: str | None) -> Iterator[None]:
    from pyscf.lib import param

    before = param.TMPDIR
    param.TMPDIR = directory or before
    try:
        yield
    finally:
        param.TMPDIR = before


if "pyscf" not in qcengine.list_all_programs():
    qcengine.register_program(PySCFHarness())
