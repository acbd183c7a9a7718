"""Q-Chem: threads of one process, told by QCEngine."""

from .spec import Fact, Known, MemorySetting, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="qchem",
    title="Q-Chem",
    parallel_model=ParallelModel.OPENMP,
    in_process=False,
    command="qchem -nt {threads} input output",
    memory=MemorySetting("calculation", "MB", "MEM_TOTAL of $rem, by QCEngine"),
    executable="qchem",
    install_hint="Q-Chem is licensed: see https://www.q-chem.com, and put qchem on PATH",
    facts=(
        Fact(
            "threads",
            "-nt n, or QCTHREADS; MPI only with -mpi -np.",
            Known.SECOND_HAND,
            "the pages of the Ohio Supercomputer Center",
        ),
        Fact(
            "harness",
            "-nt ncores, MEM_TOTAL, and a scratch directory of its own for every calculation.",
            Known.SOURCE,
            "QCEngine 0.52: programs/qchem.py",
        ),
        Fact("memory", "Of the whole job, in MB.", Known.SOURCE, "QCEngine 0.52: programs/qchem.py"),
    ),
)
