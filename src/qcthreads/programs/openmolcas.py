"""OpenMolcas: each module as MPI processes that pymolcas starts; for exec only."""

from .spec import Fact, Known, MemorySetting, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="openmolcas",
    title="OpenMolcas",
    parallel_model=ParallelModel.OWN_LAUNCHER,
    in_process=False,
    qcengine=False,
    environment={"MOLCAS_NPROCS": "{ranks}", "MOLCAS_THREADS": "{threads}", "MOLCAS_WORKDIR": "{scratch}"},
    inert={"OMP_NUM_THREADS": "pymolcas replaces it by MOLCAS_THREADS"},
    command="pymolcas -np {ranks} -nt {threads} input",
    memory=MemorySetting("process", "MB", "MOLCAS_MEM"),
    executable="pymolcas",
    install_hint="on Debian: apt install openmolcas; its source: https://gitlab.com/Molcas/OpenMolcas",
    facts=(
        Fact(
            "threads",
            "MOLCAS_NPROCS processes by the launcher in RUNBINARY, MOLCAS_THREADS threads of BLAS in each.",
            Known.SOURCE,
            "OpenMolcas b6500376: Tools/pymolcas/molcas_wrapper.py:341,800",
        ),
        Fact(
            "memory",
            "MOLCAS_MEM for each process, a soft limit of its work array; 1024 MB unasked.",
            Known.SOURCE,
            "OpenMolcas b6500376: doc/source/users.guide/environment.rst:266",
        ),
        Fact(
            "binding", "As the launcher in RUNBINARY.", Known.SOURCE, "OpenMolcas b6500376: src/ga_util/gainit.F90:47"
        ),
    ),
)
