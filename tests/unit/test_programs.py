"""Settings, records and the specified class: what they say, held against QCEngine's own reading of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qcthreads import QCProgramThreading
from qcthreads.errors import InputError, MachineError, ProgramNotFoundError
from qcthreads.programs import registry, runtimes
from qcthreads.programs.settings import child_environment, settings_for
from qcthreads.programs.spec import ParallelModel, ProgramSpec

GIB = 1024**3
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("threads", [0, -1, 1.0, "2", True, None])
def test_a_width_that_is_no_width_is_refused(threads):
    with pytest.raises(ValueError, match="whole number of at least 1"):
        settings_for(registry.get("psi4"), threads)
    for configure in ("configure_psi4_threading", "configure_nwchem_threading", "configure_cfour_threading"):
        with pytest.raises(ValueError, match=f"is {threads!r};"):
            getattr(QCProgramThreading(), configure)(threads)


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_qcengine_accepts_the_task_config(name, monkeypatch):
    from qcengine.config import get_config

    settings = settings_for(registry.get(name), 4, 8 * GIB, "/scratch")
    for variable in settings.unset:
        monkeypatch.delenv(variable, raising=False)
    config = get_config(task_config=dict(settings.task_config))
    assert config.ncores == settings.threads == (1 if name == "mopac" else 4)
    assert 7.5 < config.memory < 8
    assert config.scratch_directory == "/scratch"


def test_nwchem_is_started_by_mpirun_only_from_two_ranks_on():
    from qcengine.config import get_config
    from qcengine.util import create_mpi_invocation

    one, four = (settings_for(registry.get("nwchem"), width) for width in (1, 4))
    assert one.task_config == {"ncores": 1}
    command = create_mpi_invocation("nwchem", get_config(task_config=dict(four.task_config)))
    assert command[0] == "env"
    assert command[command.index("mpirun") :] == ["mpirun", "-np", "4", "nwchem"]
    asked = subprocess.run(
        [*command[: command.index("mpirun")], sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"],
        env={**os.environ, "OMP_NUM_THREADS": "4"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.strip() == "1"
    assert four.environment["OMP_NUM_THREADS"] == four.environment["OMP_THREAD_LIMIT"] == "1"


def test_every_runtime_is_told_and_none_may_leave_the_mask():
    settings = settings_for(registry.get("unheard-of"), 3)
    assert {settings.environment[name] for name in runtimes.COUNTS} == {"3"}
    assert settings.environment["OMP_PROC_BIND"] == "false"
    assert settings.environment["OMPI_MCA_hwloc_base_binding_policy"] == "none"
    assert settings.environment["PRTE_MCA_hwloc_default_binding_policy"] == "none"
    parent = {"PATH": "/bin", "GOMP_CPU_AFFINITY": "0-7", "KMP_AFFINITY": "norespect", "QCENGINE_NCORES": "64"}
    assert child_environment(settings, parent) == {"PATH": "/bin", **settings.environment}
    assert "nothing is known about the program 'unheard-of'" in settings.notes[0]


@pytest.mark.parametrize("name", ["psi4", "pyscf", "xtb", "nwchem"])
def test_openblas_stays_at_one_where_openmp_has_the_threads(name):
    assert settings_for(registry.get(name), 4).environment["OPENBLAS_NUM_THREADS"] == "1"


def test_a_program_that_does_not_thread_gets_one_and_says_so():
    settings = settings_for(registry.get("mopac"), 4)
    assert (settings.threads, settings.task_config["ncores"], settings.environment["OMP_NUM_THREADS"]) == (1, 1, "1")
    assert settings.notes == ("MOPAC gains nothing from threads: 1 is used instead of 4",)
    assert settings_for(registry.get("mopac"), 1).notes == ()


def test_the_program_is_told_the_lease_less_its_overhead():
    spec = registry.get("psi4")
    told_gib = settings_for(spec, 1, 4 * GIB).task_config["memory"]
    assert told_gib * GIB == pytest.approx(4 * GIB - spec.memory_overhead_bytes, abs=1024)
    assert "memory" not in settings_for(spec, 1).task_config
    with pytest.raises(MachineError, match=r"was given 100 MiB of memory, but needs 256 MiB"):
        settings_for(spec, 1, 100 * 1024**2)


def test_scratch_goes_to_the_programs_own_variable():
    assert settings_for(registry.get("psi4"), 1, scratch="/fast").environment["PSI_SCRATCH"] == "/fast"
    assert "PSI_SCRATCH" not in settings_for(registry.get("psi4"), 1).environment


def test_an_outer_launchers_variables_go_as_a_whole_and_only_for_mpi(monkeypatch):
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NODELIST": "n1", "SLURM_NTASKS": "2"}
    for name, value in {**slurm, "PMI_VERSION": "1"}.items():
        monkeypatch.setenv(name, value)
    assert set(settings_for(registry.get("nwchem"), 2).unset) >= slurm.keys()
    assert "PMI_VERSION" not in settings_for(registry.get("nwchem"), 2).unset
    assert not slurm.keys() & set(settings_for(registry.get("psi4"), 2).unset)


def test_open_mpi_may_start_as_root_only_where_root_starts_ranks():
    two = settings_for(registry.get("nwchem"), 2).environment
    assert ("OMPI_ALLOW_RUN_AS_ROOT" in two) == (os.geteuid() == 0)
    assert "OMPI_ALLOW_RUN_AS_ROOT" not in settings_for(registry.get("psi4"), 2).environment


def test_more_ranks_than_cores_is_allowed_explicitly():
    many = settings_for(registry.get("nwchem"), 4096)
    assert many.environment["OMPI_MCA_rmaps_base_oversubscribe"] == "1"


def test_specified_keys_with_what_works_beside_them():
    psi4 = QCProgramThreading().configure_psi4_threading(3)
    assert psi4["environment"] == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3", "PSI_NTHREAD": "3"}
    assert psi4["keywords"] == {"num_threads": 3}
    assert psi4["applied"]["task_config"] == {"ncores": 3}
    assert psi4["applied"]["keywords"] == {}
    assert psi4["inert"].keys() == {"PSI_NTHREAD", "num_threads"}
    assert not psi4["inert"].keys() & psi4["applied"]["environment"].keys()
    nwchem = QCProgramThreading().configure_nwchem_threading(3)
    assert nwchem["environment"] == {"OMP_NUM_THREADS": "3", "NWCHEM_NPROC": "3"}
    assert nwchem["task_config"] == {"ncores": 3}
    assert nwchem["applied"]["task_config"]["use_mpiexec"] is True
    assert nwchem["inert"].keys() == {"NWCHEM_NPROC"}
    cfour = QCProgramThreading().configure_cfour_threading(3)
    assert cfour["task_config"] == cfour["applied"]["task_config"] == {"ncores": 3}
    assert cfour["applied"]["environment"]["CFOUR_NUM_CORES"] == "1"
    assert cfour["inert"] == {}


def test_built_ins_are_the_entry_points_of_the_package():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["qcthreads.programs"]
    assert declared == {name: f"qcthreads.programs.{name}:SPEC" for name in registry.BUILT_IN}
    for name in registry.BUILT_IN:
        assert registry.get(name).name == name


def test_names_are_known_in_any_case():
    assert registry.get("Psi4") is registry.get("PSI4") is registry.get("psi4")
    assert set(registry.names()) >= set(registry.BUILT_IN)


def test_a_third_partys_program_is_found_by_its_entry_point(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "from qcthreads.programs.spec import ParallelModel, ProgramSpec\n"
        "SPEC = ProgramSpec(name='theirs', title='Theirs', parallel_model=ParallelModel.OPENMP, in_process=False,\n"
        "                   executable='sh', install_hint='-', provenance='-')\n"
        "WRONG = 3\n"
    )
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[qcthreads.programs]\nTheirs = theirs:SPEC\nwrong = theirs:WRONG\n")
    code = (
        "from qcthreads.programs import registry\n"
        "print(registry.get('THEIRS').title, registry.require('theirs').path, 'theirs' in registry.names())\n"
        "try: registry.get('wrong')\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("Theirs /")
    assert first.endswith("/sh True")
    assert "must be a qcthreads.programs.spec.ProgramSpec" in second


def test_a_program_that_is_not_here_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramNotFoundError, match=r"no 'psi4' on PATH\): conda install"):
        registry.require("psi4")
    pytest.importorskip("qcengine", reason="it is QCEngine that drives programs there is no record of")
    with pytest.raises(ProgramNotFoundError, match=r"no 'molpro' on PATH.*: install it as its manual says"):
        registry.require("molpro")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pycsf", "did you mean pyscf?"),
        ("Psi3", "did you mean psi4?"),
        ("gamesss", "did you mean gamess?"),  # one of QCEngine's
        ("sh", "there is no program 'sh'; qcthreads knows cfour, mopac,"),  # though it is on PATH
    ],
)
def test_a_mistyped_program_is_told_what_there_is(name, said):
    pytest.importorskip("qcengine", reason="QCEngine knows of more programs; without it none is called mistyped")
    with pytest.raises(InputError) as refused:
        registry.require(name)
    assert said in str(refused.value)
    assert "QCEngine has also" in str(refused.value)


def test_which_programs_take_a_basis():
    """What QCEngine's own harnesses refuse or ignore a basis in; the rest need one."""
    without = {name for name in (*registry.names(), "molpro", "dftd4", "openmm") if not registry.get(name).takes_basis}
    assert without == {"xtb", "mopac", "dftd4", "openmm"}
    assert registry.get("xtb").usual_method == "GFN2-xTB"


def test_a_module_that_a_harness_needs_is_named(monkeypatch, tmp_path):
    nwchem = tmp_path / "nwchem"
    nwchem.write_text("#!/bin/sh\n")
    nwchem.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(ProgramNotFoundError, match="cannot drive it without networkx: pip install networkx"):
        registry.require("nwchem")


def test_programs_that_only_qcengine_knows_are_found_through_it(tmp_path, monkeypatch):
    import qcengine

    monkeypatch.chdir(tmp_path)  # QCEngine asks Psi4 its version, which leaves a timer.dat where it is asked
    only_qcengine = sorted(qcengine.list_available_programs() - set(registry.names()))
    for name in only_qcengine:
        assert registry.find(registry.get(name)) is not None
    assert registry.find(registry.get("no-such-program")) is None


@pytest.mark.parametrize("name", ["psi4", "mopac", "pyscf"])
def test_version_leaves_nothing_behind(name, tmp_path, monkeypatch):
    installation = registry.find(registry.get(name))
    if installation is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} must be installed in CI")
        pytest.skip(f"{name} is not installed here")
    monkeypatch.chdir(tmp_path)
    registry.version.cache_clear()
    assert registry.version(installation)[0].isdigit()
    assert list(tmp_path.iterdir()) == []


def test_looking_a_program_up_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from qcthreads.programs.registry import find, get\n"
        "from qcthreads.programs.settings import settings_for\n"
        "for name in ('psi4', 'pyscf', 'xtb'): settings_for(get(name), 2); find(get(name))\n"
        "print(sorted({'numpy', 'pydantic', 'qcengine', 'pyscf', 'xtb', 'importlib.metadata'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_serial_program_gets_one_thread():
    spec = ProgramSpec(
        name="s", title="S", parallel_model=ParallelModel.SERIAL, in_process=False, install_hint="-", provenance="-"
    )
    assert settings_for(spec, 2).threads == 1
    with pytest.raises(InputError):
        settings_for(spec, 0)
