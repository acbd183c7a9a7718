"""GAMESS: processes started by rungms, as many as QCEngine tells it."""

from .spec import Fact, Known, MemorySetting, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="gamess",
    title="GAMESS (US)",
    parallel_model=ParallelModel.OWN_LAUNCHER,
    in_process=False,
    command="rungms job 00 {ranks}",
    memory=MemorySetting("calculation", "10^6 8-byte words", "MWORDS and MEMDDI of $SYSTEM, by QCEngine"),
    executable="rungms",
    install_hint="GAMESS is licensed: see https://www.msg.chem.iastate.edu/gamess, and put rungms on PATH, edited as "
    "QCEngine's documentation says",
    facts=(
        Fact(
            "threads",
            "rungms starts DDI processes: by ddikick.x over sockets, or by an mpirun.",
            Known.SOURCE,
            "gamess: rungms of December 2014",
        ),
        Fact(
            "threads", "Newer builds have OpenMP in each process, by OMP_NUM_THREADS.", Known.SECOND_HAND, "its manual"
        ),
        Fact(
            "harness",
            "rungms gamess 00 ncores, after up to four trial runs of EXETYP=CHECK; one process for ROHF-CCSD.",
            Known.SOURCE,
            "QCEngine 0.52: programs/gamess/runner.py",
        ),
        Fact("memory", "Per process MEMDDI / p + MWORDS.", Known.SOURCE, "QCEngine 0.52: programs/gamess/runner.py"),
        Fact(
            "binding",
            "rungms switches the pinning of Intel MPI and MVAPICH2 off.",
            Known.SOURCE,
            "gamess: rungms of December 2014",
        ),
        Fact(
            "trap",
            "Over MPI it starts a data server beside every compute process; under Open MPI these spin, and find no "
            "slots in a lease.",
            Known.SOURCE,
            "gamess: rungms of December 2014",
        ),
        Fact(
            "trap",
            "SCR and USERSCR are fixed in rungms, and QCEngine calls every job gamess: edit rungms to ./ as QCEngine "
            "says, or two at once meet.",
            Known.SOURCE,
            "QCEngine 0.52: programs/gamess/runner.py",
        ),
        Fact(
            "trap",
            "A killed run leaves System V segments and semaphores behind: ipcs, ipcrm.",
            Known.SECOND_HAND,
            "a note in QCEngine's harness",
        ),
    ),
)
