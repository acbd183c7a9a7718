"""Settings, records and the specified class: what they say, held against QCEngine's own reading of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from qcthreads import QCProgramThreading
from qcthreads.errors import InputError, MachineError, ProgramNotFoundError
from qcthreads.programs import launchers, registry, runtimes
from qcthreads.programs.precedence import environment_under, settle
from qcthreads.programs.settings import settings_for, untold
from qcthreads.programs.spec import ParallelModel, ProgramSpec

GIB = 1024**3
ROOT = Path(__file__).parents[2]
ONE_THREAD = {"dftd3", "dftd4", "gcp", "mctc-gcp", "mopac", "mp2d", "rdkit", "s-dftd3", "terachem_fe", "terachem_pbs"}
SPECIFIED = ("psi4", "nwchem", "cfour")


@pytest.mark.parametrize("threads", [0, -1, 1.0, "2", True, None])
def test_a_width_that_is_no_width_is_refused(threads):
    with pytest.raises(ValueError, match="whole number of at least 1"):
        settings_for(registry.get("psi4"), threads)
    for name in (*SPECIFIED, "xtb", "s_dftd3"):
        with pytest.raises(ValueError, match=f"is {threads!r};"):
            getattr(QCProgramThreading(), f"configure_{name}_threading")(threads)


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_qcengine_accepts_the_task_config(name, monkeypatch):
    from qcengine.config import get_config

    settings = settings_for(registry.get(name), 4, 8 * GIB, "/scratch")
    for variable in settings.unset:
        monkeypatch.delenv(variable, raising=False)
    config = get_config(task_config=dict(settings.task_config))
    assert config.ncores == settings.threads == (1 if name in ONE_THREAD else 4)
    assert 7.25 < config.memory <= 8
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


def test_two_ranks_of_two_threads_are_what_qcengine_starts():
    from qcengine.config import get_config
    from qcengine.util import create_mpi_invocation

    settings = settings_for(registry.get("nwchem"), 5, ranks=2)
    assert (settings.threads, settings.ranks, settings.environment["OMP_NUM_THREADS"]) == (4, 2, "2")
    command = create_mpi_invocation("nwchem", get_config(task_config=dict(settings.task_config)))
    assert command[1:4] == ["OMP_NUM_THREADS=2", "MKL_NUM_THREADS=2", "OPENBLAS_NUM_THREADS=2"]
    assert command[-4:] == ["mpirun", "-np", "2", "nwchem"]
    with pytest.raises(InputError, match="6 processes of NWChem cannot share 5 PUs: give 1 to 5"):
        settings_for(registry.get("nwchem"), 5, ranks=6)


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_processes_times_threads_stay_within_the_lease(name):
    """Also where QCEngine tells every process ncores: it leaves OMP_THREAD_LIMIT and OPENBLAS_NUM_THREADS alone."""
    for width in (1, 2, 3, 8):
        for ranks in (None, *range(1, width + 1)):
            try:
                settings = settings_for(registry.get(name), width, ranks=ranks)
            except InputError:  # more processes than a program that does not thread is given
                assert name in ONE_THREAD
                continue
            assert settings.threads <= width
            for variable in ("OMP_THREAD_LIMIT", "OPENBLAS_NUM_THREADS"):
                assert settings.ranks * int(settings.environment[variable]) <= width


def test_what_is_only_second_hand_sets_nothing():
    """But for CFOUR's number of MPI processes, which is said in its record."""
    unsure = {name for name in registry.BUILT_IN if registry.get(name).provenance == "never verified: second-hand"}
    assert {name for name in unsure if registry.get(name).environment} == {"cfour"}
    assert unsure >= {"qchem", "turbomole", "mrcc"}


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_fact_says_where_it_is_from(name):
    spec = registry.get(name)
    assert spec.facts
    assert all(fact.source.strip() and fact.text.endswith(".") for fact in spec.facts)
    for template in (spec.command, spec.input_text, *spec.environment.values()):
        template.format(threads=2, ranks=3, width=6, scratch="/s")
    assert not spec.measured_with or "measured here" in spec.provenance


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_what_could_not_be_found_out_is_marked_on_its_page(name):
    spec = registry.get(name)
    page = (ROOT / "docs" / "programs" / f"{name}.md").read_text(encoding="utf-8")
    facts = {fact.topic for fact in spec.facts}
    one = spec.parallel_model is ParallelModel.SERIAL or spec.useful_width == 1
    for topic, known, mark in (
        ("binding", False, "whether it binds"),
        ("width", one, "up to which width it gets faster"),
        ("memory", spec.memory is not None, "Memory: it has no setting for all of it that is known"),
    ):
        assert topic in facts or known or mark in page, topic


def test_every_runtime_is_told_and_none_may_leave_the_mask():
    settings = settings_for(registry.get("unheard-of"), 3)
    assert {settings.environment[name] for name in runtimes.COUNTS} == {"3"}
    assert settings.environment["OMP_PROC_BIND"] == "false"
    assert settings.environment["OMPI_MCA_hwloc_base_binding_policy"] == "none"
    assert settings.environment["PRTE_MCA_hwloc_default_binding_policy"] == "none"
    parent = {"PATH": "/bin", "GOMP_CPU_AFFINITY": "0-7", "KMP_AFFINITY": "norespect", "QCENGINE_NCORES": "64"}
    parent |= {"HYDRA_BINDING": "core", "I_MPI_PIN_PROCESSOR_LIST": "0", "OMPI_MCA_hwloc_base_cpu_list": "0"}
    assert environment_under(settle(settings, parent), parent) == {"PATH": "/bin", **settings.environment}
    assert "nothing is known about the program 'unheard-of'" in settings.notes[0]


@pytest.mark.parametrize("name", ["psi4", "pyscf", "xtb", "nwchem"])
def test_openblas_stays_at_one_where_openmp_has_the_threads(name):
    assert settings_for(registry.get(name), 4).environment["OPENBLAS_NUM_THREADS"] == "1"


def test_a_program_that_does_not_thread_gets_one_and_says_so():
    settings = settings_for(registry.get("mopac"), 4)
    assert (settings.threads, settings.task_config["ncores"], settings.environment["OMP_NUM_THREADS"]) == (1, 1, "1")
    assert settings.notes == ("MOPAC gains nothing from threads: 1 is used instead of 4",)
    assert settings_for(registry.get("mopac"), 1).notes == ()
    assert settings_for(registry.get("mp2d"), 4).notes == ("MP2D does not thread: 1 is used instead of 4",)
    for name in registry.BUILT_IN:
        wide = settings_for(registry.get(name), 4)
        assert (wide.threads == 1 and "1 is used instead of 4" in wide.notes[0]) == (name in ONE_THREAD)


def test_which_programs_compute_on_every_gpu_that_they_see():
    """Those in whose harness QCEngine asks torch for cuda, and TeraChem."""
    assert {name for name in registry.BUILT_IN if registry.get(name).gpu} == {"mace", "orb", "terachem", "torchani"}
    programs = Path(pytest.importorskip("qcengine", reason="its source is read").__file__).parent / "programs"
    asks_torch = {path.stem for path in programs.glob("*.py") if b"cuda.is_available()" in path.read_bytes()}
    assert asks_torch == {"mace", "orb", "torchani"}


def test_a_list_of_cores_of_its_own_is_taken_from_gaussian():
    settings = settings_for(registry.get("gaussian"), 3)
    parent = {"GAUSS_CDEF": "0-63", "PATH": "/bin"}
    child = environment_under(settle(settings, parent), parent)
    assert "GAUSS_CDEF" not in child
    assert child["GAUSS_PDEF"] == "3"


def test_the_program_is_told_the_lease_less_its_overhead():
    spec = registry.get("psi4")
    told_gib = settings_for(spec, 1, 4 * GIB).task_config["memory"]
    assert told_gib * GIB == pytest.approx(4 * GIB - spec.memory_overhead_bytes, abs=1024)
    assert "memory" not in settings_for(spec, 1).task_config
    with pytest.raises(MachineError, match=r"was given 100 MiB of memory, but needs 256 MiB"):
        settings_for(spec, 1, 100 * 1024**2)


@pytest.mark.parametrize("memory", ["2GiB", 2.5, True])
def test_memory_that_is_no_number_of_bytes_is_refused(memory):
    with pytest.raises(InputError, match="must be a whole number of bytes"):
        settings_for(registry.get("psi4"), 1, memory)


def test_every_rank_has_memory_of_its_own_beside_what_the_program_is_told():
    spec = registry.get("nwchem")
    one, four = (settings_for(spec, ranks, 4 * GIB).task_config["memory"] * GIB for ranks in (1, 4))
    assert one - four == pytest.approx(3 * spec.memory_per_process_bytes, abs=2048)
    assert spec.memory_per_process_bytes > 0
    tight = spec.memory_overhead_bytes + spec.memory_least_bytes
    for ranks in (1, 64):  # what was enough for one is not taken from many
        told_gib = settings_for(spec, ranks, tight).task_config["memory"]
        assert told_gib * GIB == pytest.approx(spec.memory_least_bytes, abs=1024)


def test_scratch_goes_to_the_programs_own_variable():
    assert settings_for(registry.get("psi4"), 1, scratch="/fast").environment["PSI_SCRATCH"] == "/fast"
    assert "PSI_SCRATCH" not in settings_for(registry.get("psi4"), 1).environment


def test_an_outer_launchers_variables_go_whole_or_in_part_and_only_for_mpi(monkeypatch):
    outer = {"SLURM_JOBID": "7", "SLURM_NODELIST": "n1", "PMI_FD": "3", "PMIX_RANK": "0"}  # half of Slurm's
    own = {"OMPI_MCA_btl": "self"}

    for name, value in {**outer, **own}.items():
        monkeypatch.setenv(name, value)

    def child(name):
        return environment_under(
            settle(settings_for(registry.get(name), 2), os.environ, counts=False), os.environ
        ).keys()

    for name in ("nwchem", "molpro", "cp2k"):
        assert not child(name) & outer.keys()
        assert child(name) >= own.keys()
    assert child("psi4") & outer.keys() == outer.keys() - {"PMIX_RANK"}  # a rank of what?
    assert child("psi4") >= own.keys()
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert "OMPI_MCA_btl" not in child("nwchem")  # Open MPI's, who started us


@pytest.mark.parametrize(
    ("command", "ranks"),
    [
        ("mpirun -np 4 cp2k.psmp -i in", 4),
        ("env X=1 /opt/mpi/bin/mpiexec --oversubscribe -n 2 pw.x -n 8", 2),  # the second is pw.x's own
        ("srun --ntasks=3 --mpi=pmix orca", 3),
        ("srun -n4 a -n 8", 4),
        ("srun -ln4 a", 4),
        ("srun -l -N1 -n 4 a", 4),
        ("srun -K -n 4 a", 4),
        ("srun -K1 -n 4 a", 4),
        ("srun -l a -n 4", None),
        ("srun -Jn4 a", None),
        ("mpirun -n 2 a : -n 1 b", 3),
        ("mpirun -N 4 a -n 8", 4),
        ("mpirun --npernode 4 a", 4),
        ("mpiexec -ppn 4 a", 4),
        ("mpirun -c 4 a", 4),
        ("mpirun -N 4 --oversubscribe sh -c a", 4),
        ("mpirun --map-by ppr:4:node a", 4),
        ("mpirun -ppn 4 --map-by=ppr:3:node:pe=2 --mca btl self -n 2 a", 2),  # in all
        ("mpirun --map-by ppr:1:socket a", 6),
        ("srun -N 1 -c 4 a", None),  # of nodes and of CPUs
        ("mpirun a", 6),  # as many as the lease has room for
        ("mpirun a -n 2", 6),
        ("mpirun -n 2 a : b", 6),
        ("mpirun -n many a", 6),
        ("srun a", None),  # as many as its job says
        ("psi4 -n 4 in.dat", None),
        ("", None),
    ],
)
def test_a_commands_own_number_of_processes(command, ranks, monkeypatch):
    monkeypatch.setenv("PATH", "")  # whatever mpirun is on it
    found, note = launchers.ranks_of(command.split(), 6)
    assert found == ranks
    assert ("6 are assumed" in note) is (ranks == 6)


@pytest.mark.skipif(sys.platform == "win32", reason="the launcher is a shell script")
def test_a_launcher_of_mpich_that_is_told_no_number_starts_one(tmp_path, monkeypatch):
    hydra = tmp_path / "mpiexec.hydra"
    hydra.write_text("#!/bin/sh\n")
    hydra.chmod(0o755)
    (tmp_path / "mpirun").symlink_to(hydra)
    monkeypatch.setenv("PATH", str(tmp_path))
    ranks, note = launchers.ranks_of(["mpirun", "a"], 6)
    assert (ranks, note.partition(":")[0]) == (
        1,
        "mpirun is told no number of processes and starts one, which has all threads",
    )
    assert launchers.ranks_of(["mpirun", "-n", "2", "a"], 6) == (2, "")


def test_every_launcher_is_bound_or_inherits_the_mask():
    said = {launcher.name: launcher.inherits_mask or bool(launcher.environment) for launcher in launchers.LAUNCHERS}
    assert said.pop("srun") is False  # its processes are not ours: said in its note
    assert all(said.values())
    assert not set(launchers.BINDING) & set(launchers.ESCAPES)


def test_open_mpi_may_start_as_root_only_where_root_starts_ranks():
    two = settings_for(registry.get("nwchem"), 2).environment
    assert ("OMPI_ALLOW_RUN_AS_ROOT" in two) == (os.geteuid() == 0)
    assert "OMPI_ALLOW_RUN_AS_ROOT" not in settings_for(registry.get("psi4"), 2).environment


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_there_are_no_more_ranks_than_cores(name):
    """Of 6 PUs on 3 cores, 7 on 4, and 2 on 1; what was asked for explicitly is kept or refused."""
    for width, cores in ((6, 3), (7, 4), (2, 1)):
        settings = settings_for(registry.get(name), width, cores=cores)
        assert settings.ranks <= cores
        assert settings.ranks * int(settings.environment["OMP_THREAD_LIMIT"]) <= settings.threads <= width
        assert {settings.environment[slots] for slots in launchers.SLOTS} <= {"1", str(cores)}


def test_threads_have_the_pus_that_ranks_leave():
    settings = settings_for(registry.get("nwchem"), 8, cores=4)
    assert (settings.ranks, settings.threads, settings.environment["OMP_NUM_THREADS"]) == (4, 8, "2")
    assert settings.notes == ("NWChem spins while it waits: a process per core, 4 on 8 PUs",)
    with pytest.raises(InputError, match=r"5 processes of NWChem cannot share 8 PUs of 4 cores, .* spin: give 1 to 4"):
        settings_for(registry.get("nwchem"), 8, ranks=5, cores=4)


def test_a_callers_leave_to_start_more_ranks_than_there_is_room_for_is_removed():
    settings = settings_for(registry.get("nwchem"), 2)
    parent = {"OMPI_MCA_rmaps_base_oversubscribe": "1", launchers.SLOTS[0]: "64", launchers.SLOTS[1]: "1"}
    told = settle(settings, parent)
    assert environment_under(told, parent) == {**settings.environment, launchers.SLOTS[1]: "1"}
    assert told.notes[-1] == "removed, for they contradict the lease: OMPI_MCA_rmaps_base_oversubscribe"


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


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_program_has_its_method(name):
    told = getattr(QCProgramThreading(), f"configure_{name.replace('-', '_')}_threading")(3)
    settings = settings_for(registry.get(name), 3)
    assert told["applied"]["task_config"] == settings.task_config
    assert told["applied"]["environment"] == settings.environment
    assert told["inert"] == registry.get(name).inert
    assert f"configure_{name.replace('-', '_')}_threading" in dir(QCProgramThreading())


def test_a_method_of_no_program_is_an_attribute_error():
    assert not hasattr(QCProgramThreading(), "configure_psi5_threading")
    with pytest.raises(AttributeError, match="did you mean configure_psi4_threading"):
        QCProgramThreading().configure_psi44_threading(2)


def test_built_ins_are_the_entry_points_of_the_package():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["qcthreads.programs"]
    modules = {name: name.replace("-", "_") for name in registry.BUILT_IN}
    assert declared == {name: f"qcthreads.programs.{module}:SPEC" for name, module in modules.items()}
    for name in registry.BUILT_IN:
        assert registry.get(name).name == name


def test_every_harness_of_qcengine_has_a_record_that_finds_what_it_finds(tmp_path, monkeypatch):
    qcengine = pytest.importorskip("qcengine", reason="the harnesses are QCEngine's")
    monkeypatch.chdir(tmp_path)
    ours = {"pyscf", "tblite", "psi4_legacy"}  # harnesses of ours, where another test registered them
    servers = {"terachem_pbs", "terachem_fe"}  # QCEngine asks the server, which must not be asked for a list
    theirs = qcengine.list_all_programs() - ours
    assert len(theirs) >= 29  # as many has QCEngine 0.52
    for name in theirs:
        assert registry.get(name).qcengine
        assert name in registry.BUILT_IN
        if name not in servers:
            installation = registry.find(registry.get(name))
            found = installation is not None and not installation.missing
            assert found == bool(qcengine.get_program(name, check=False).found()), name


def test_names_are_known_in_any_case():
    assert registry.get("Psi4") is registry.get("PSI4") is registry.get("psi4")
    assert set(registry.names()) >= set(registry.BUILT_IN)


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
def test_the_example_in_contributing_is_a_program_like_ours(tmp_path):
    """Installed by pip as its author would, and found by its entry point."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["pyproject.toml", "qcthreads_myqc.py"]
    for name, content in files:
        (tmp_path / name).write_text(content)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", "site", "."], cwd=tmp_path, check=True)
    executable = tmp_path / "myqc"
    executable.write_text("#!/bin/sh\necho myqc 3.1\n")
    executable.chmod(0o755)
    code = (
        "from qcthreads import QCProgramThreading\n"
        "from qcthreads.programs import registry\n"
        "here = registry.require('MyQC', through_qcengine=False)\n"
        "print(here.path, registry.version(here), registry.get('myqc').provenance, sep='\\n')\n"
        "print(QCProgramThreading().configure_myqc_threading(3)['applied']['environment']['MYQC_THREADS'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(executable), "3.1", "measured here with 3.1, verified in source", "3"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("WRONG = 3\n", "is a int; it must be a qcthreads.programs.spec.ProgramSpec"),
        ("import a_module_that_is_gone\n", "cannot be loaded (ModuleNotFoundError: No module named 'a_module_that_is"),
    ],
)
def test_a_package_that_is_broken_is_named_and_keeps_nobody_from_the_others(tmp_path, content, said):
    (tmp_path / "wrong.py").write_text(content)
    info = tmp_path / "wrong-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: itspackage\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[qcthreads.programs]\nwrong = wrong:WRONG\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PATH": str(tmp_path)}

    def qcthreads(*arguments):
        command = [sys.executable, "-m", "qcthreads", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    alone = qcthreads("programs", "wrong")
    assert alone.returncode == 3
    assert said in alone.stderr
    assert "repair or uninstall the package itspackage that brings it" in alone.stderr
    listed = qcthreads("programs")
    assert listed.returncode == 0
    assert f"wrong: the entry point 'wrong' of the group qcthreads.programs {said}" in listed.stdout
    assert "nwchem" in listed.stdout
    document = json.loads(qcthreads("doctor", "--json").stdout)
    assert [one["name"] for one in document["broken_programs"]] == ["wrong"]
    assert {one["name"] for one in document["programs"]} == set(registry.BUILT_IN)


@pytest.mark.parametrize(
    ("name", "command", "add"),
    [
        ("psi4", "psi4 w.dat", "`psi4 -n 4 input.dat`"),
        ("psi4", "psi4", "`psi4 -n 4 input.dat`"),
        ("psi4", "psi4 -n", None),  # which psi4 itself refuses
        ("psi4", "/opt/bin/psi4 --memory 4GB w.dat", "`psi4 -n 4 input.dat`"),
        ("psi4", "psi4 -n 4 w.dat", None),
        ("psi4", "psi4 -n4 w.dat", None),
        ("psi4", "psi4 --nthread=4 w.dat", None),
        ("psi4", "./relax.sh w.dat", None),  # which says it itself
        ("psi4", "nice -n 10 psi4 w.dat", "`psi4 -n 4 input.dat`"),
        ("psi4", "nice -n 10 psi4 -n 4 w.dat", None),
        ("molpro", "molpro w.com", "`molpro -n 4 -t 1 input.com`"),
        ("molpro", "molpro -t 4 w.com", "`molpro -n 4 -t 1 input.com`"),
        ("molpro", "molpro -n4 w.com", None),
        ("nwchem", "nwchem w.nw", "`mpirun -np 4 nwchem input.nw`"),
        ("nwchem", "mpirun nwchem w.nw", None),
        ("nwchem", "srun /opt/bin/nwchem w.nw", None),
        ("cp2k", "cp2k.psmp -i w.inp", None),  # by OMP_NUM_THREADS
    ],
)
def test_a_command_that_does_not_tell_its_program_the_width_is_told_how(name, command, add):
    spec = registry.get(name)
    said = untold(spec, settings_for(spec, 4), command.split())
    assert said is None if add is None else add in said
    assert untold(spec, settings_for(spec, 1), [spec.executable, "w.dat"]) is None


@pytest.mark.parametrize("command", ["psi4 -n 5 w.dat", "psi4 -n5", "psi4 --nthread=5", "molpro -n 5 w.com"])
def test_a_command_that_tells_its_program_more_than_was_leased_is_told_so(command):
    spec = registry.get(command.split()[0])
    said = untold(spec, settings_for(spec, 4), command.split())
    assert f"has {spec.title} start 5, and the lease is of 4: write `{spec.name} -n 4" in said
    assert "and the lease is of 1:" in untold(spec, settings_for(spec, 1), command.split())  # --threads was forgotten
    assert untold(spec, settings_for(spec, 5), command.split()) is None


def test_each_process_of_a_launcher_has_the_threads_that_its_program_is_told():
    spec = registry.get("psi4")
    command = ["mpirun", "-n", "2", "psi4", "-n", "4", "w.dat"]
    said = untold(spec, settings_for(spec, 4, ranks=2), command)
    assert "has Psi4 start 8, and the lease is of 4: write `psi4 -n 2" in said
    assert untold(spec, settings_for(spec, 8, ranks=2), command) is None


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
def test_a_program_without_a_harness_is_for_exec(monkeypatch, tmp_path):
    orca = tmp_path / "orca"
    orca.write_text("#!/bin/sh\n")
    orca.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert registry.require("orca", through_qcengine=False).path == str(orca)
    with pytest.raises(InputError, match=r"no harness for ORCA; lease CPUs for its own command: `qcthreads exec"):
        registry.require("orca")


def test_a_program_that_is_not_here_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramNotFoundError, match=r"no 'psi4' on PATH\): conda install"):
        registry.require("psi4")
    with pytest.raises(ProgramNotFoundError, match=r"no 'molpro' on PATH.*: Molpro is licensed: see https"):
        registry.require("molpro")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pycsf", "did you mean pyscf?"),
        ("Psi3", "did you mean psi4?"),
        ("gamesss", "did you mean gamess?"),
        ("geometric", "geometric is a procedure of QCEngine, and has calculations done by a program: name"),
        ("sh", "there is no program 'sh'; qcthreads knows adcc, aimnet2,"),  # though it is on PATH
    ],
)
def test_a_mistyped_program_is_told_what_there_is(name, said):
    pytest.importorskip("qcengine", reason="QCEngine knows of more programs; without it none is called mistyped")
    with pytest.raises(InputError) as refused:
        registry.require(name)
    assert said in str(refused.value)


def test_which_programs_take_a_basis():
    """What QCEngine's own harnesses refuse or ignore a basis in; the rest need one."""
    without = {name for name in registry.BUILT_IN if not registry.get(name).takes_basis}
    corrections = {"dftd3", "s-dftd3", "dftd4", "mp2d", "gcp", "mctc-gcp"}
    learned = {"torchani", "mace", "aimnet2", "orb", "rdkit"}
    assert without == {"xtb", "tblite", "mopac", "dftbplus", "mrchem"} | corrections | learned
    assert registry.get("xtb").usual_method == "GFN2-xTB"


def test_a_module_that_a_harness_needs_is_named(monkeypatch, tmp_path):
    nwchem = tmp_path / "nwchem"
    nwchem.write_text("#!/bin/sh\n")
    nwchem.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(
        ProgramNotFoundError, match=r"cannot drive it without networkx: on Debian.*pip install networkx"
    ):
        registry.require("nwchem")


def test_a_record_of_a_program_that_qcengine_does_not_know_is_for_exec(monkeypatch):
    pytest.importorskip("qcengine", reason="it is QCEngine's registry that is looked at")
    model = ParallelModel.SERIAL
    spec = ProgramSpec(
        name="shell", title="S", parallel_model=model, in_process=False, install_hint="-", executable="sh"
    )
    entry = SimpleNamespace(load=lambda: spec)
    monkeypatch.setattr(registry, "_entry_points", lambda: {"shell": entry})
    registry.get.cache_clear()
    with pytest.raises(InputError, match="QCEngine knows no program 'shell': its record has to name a harness_module"):
        registry.require("Shell")
    assert registry.require("Shell", through_qcengine=False).program == "shell"
    registry.get.cache_clear()


def test_a_program_that_only_qcengine_knows_is_found_through_it():
    qcengine = pytest.importorskip("qcengine", reason="it is QCEngine's registry that is looked at")
    from qcengine.programs.model import ProgramHarness

    class Theirs(ProgramHarness):
        _defaults = {  # noqa: RUF012 (QCEngine's own way)
            "name": "theirs",
            **dict.fromkeys(("scratch", "thread_safe", "thread_parallel", "node_parallel", "managed_memory"), False),
        }

        def found(self, raise_error=False):  # noqa: ARG002
            return True

        def compute(self, input_data, config):
            raise NotImplementedError

    qcengine.register_program(Theirs())
    try:
        assert registry.find(registry.get("theirs")).path == "QCEngine's theirs"
        assert registry.require("theirs").program == "theirs"
    finally:
        qcengine.unregister_program("theirs")
    assert registry.find(registry.get("no-such-program")) is None


@pytest.mark.parametrize("name", ["psi4", "mopac", "pyscf", "nwchem"])
def test_version_is_told_and_leaves_nothing_behind(name, tmp_path, monkeypatch):
    installation = registry.find(registry.get(name))
    if installation is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} must be installed in CI")
        pytest.skip(f"{name} is not installed here")
    monkeypatch.chdir(tmp_path)
    registry.version.cache_clear()
    assert re.fullmatch(r"\d+\.\d+\S*", registry.version(installation))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
def test_a_program_that_is_asked_its_version_is_no_rank_of_a_job(tmp_path, monkeypatch):
    nwchem = tmp_path / "nwchem"
    nwchem.write_text('#!/bin/sh\necho "nwchem 7.$OMP_NUM_THREADS$PMI_RANK"\n')
    nwchem.chmod(0o755)
    monkeypatch.setenv("PMI_RANK", "5")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    registry.version.cache_clear()
    assert registry.version(registry.Installation(program="nwchem", path=str(nwchem))) == "7.1"


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
    spec = ProgramSpec(name="s", title="S", parallel_model=ParallelModel.SERIAL, in_process=False, install_hint="-")
    assert settings_for(spec, 2).threads == 1
    with pytest.raises(InputError):
        settings_for(spec, 0)


def test_the_pages_of_programs_are_what_the_records_say():
    script = ROOT / "docs" / "write_programs.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
