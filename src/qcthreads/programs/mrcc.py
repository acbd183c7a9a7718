"""MRCC: OpenMP and MKL, by its input; for exec only."""

from .spec import Fact, Known, MemorySetting, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="mrcc",
    title="MRCC",
    parallel_model=ParallelModel.MPI_OPENMP,
    in_process=False,
    qcengine=False,
    command="dmrcc",
    input_text="ccsdthreads={threads} ptthreads={threads}",
    memory=MemorySetting("process", "MB or GB", "mem= in MINP"),
    executable="dmrcc",
    install_hint="MRCC is licensed (free for academics): see https://www.mrcc.hu, and put dmrcc on PATH",
    facts=(
        Fact(
            "threads",
            "OMP_NUM_THREADS and MKL_NUM_THREADS; ccsdthreads, ptthreads and mpitasks in MINP.",
            Known.SECOND_HAND,
            "ASH's interface to MRCC",
        ),
        Fact(
            "trap",
            "From Psi4 it is told Psi4's threads, or MRCC_OMP_NUM_THREADS.",
            Known.SOURCE,
            "psi4 886caaab: driver/procrouting/proc.py:5424",
        ),
    ),
)
