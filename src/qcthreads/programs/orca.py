"""ORCA: a serial driver that starts mpirun for each module; for exec only."""

from .spec import Fact, Known, MemorySetting, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="orca",
    title="ORCA",
    parallel_model=ParallelModel.OWN_LAUNCHER,
    in_process=False,
    qcengine=False,
    command='$(which orca) input.inp "--bind-to none"',
    input_text="%pal nprocs {ranks} end",
    memory=MemorySetting("process", "MB", "%maxcore in the input: three quarters of the lease's by the processes"),
    executable="orca",
    install_hint="ORCA is licensed (free for academics): see https://orcaforum.kofo.mpg.de; put orca and its Open "
    "MPI on PATH",
    facts=(
        Fact(
            "threads",
            "%pal nprocs in the input, or ! PALn; its modules have no threads of their own.",
            Known.DOCUMENTED,
            "ORCA 6.1 manual: parallel",
        ),
        Fact(
            "memory",
            "%maxcore is for each process, and a target rather than a limit.",
            Known.DOCUMENTED,
            "ORCA 6.1 tutorials: memory",
        ),
        Fact(
            "binding",
            "By Open MPI, which leaves the mask: the manual names OMPI_MCA_hwloc_base_binding_policy=none.",
            Known.DOCUMENTED,
            "ORCA 6.1 manual: parallel",
        ),
        Fact(
            "width",
            "RI-DFT up to 16 processes, coupled cluster 8 to 16.",
            Known.DOCUMENTED,
            "ORCA 6.0.1 manual, chapter 3",
        ),
        Fact(
            "trap", "Called by its full path, and never under mpirun.", Known.DOCUMENTED, "ORCA 6.0.1 manual, chapter 3"
        ),
        Fact(
            "trap",
            "Inside a Slurm job its mpirun reads part of SLURM_*: they are removed.",
            Known.DOCUMENTED,
            "ORCA 6.1 manual: parallel",
        ),
    ),
)
