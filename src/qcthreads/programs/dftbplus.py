"""DFTB+: OpenMP, or MPI ranks; for exec only."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="dftbplus",
    title="DFTB+",
    parallel_model=ParallelModel.MPI_OPENMP,
    in_process=False,
    qcengine=False,
    takes_basis=False,
    command="dftb+",
    executable="dftb+",
    version_command=("dftb+", "--version"),
    install_hint="conda install -c conda-forge dftbplus",
    facts=(
        Fact(
            "threads",
            "OMP_NUM_THREADS; unset, all CPUs of the mask.",
            Known.SOURCE,
            "dftbplus a3ccbcc9: src/dftbp/dftbplus/initprogram.F90:3380",
        ),
        Fact(
            "trap",
            "An MPI build stops where it has more than one thread and the input does not say UseOmpThreads = Yes.",
            Known.SOURCE,
            "dftbplus a3ccbcc9: src/dftbp/dftbplus/initprogram.F90:3380, parser.F90:7792",
        ),
        Fact(
            "binding",
            "Keeps the mask that it inherits; of MPI builds the launcher's.",
            Known.SOURCE,
            "dftbplus a3ccbcc9",
        ),
        Fact(
            "width",
            "Up to hundreds of atoms the build with OpenMP and threaded LAPACK is the better one.",
            Known.DOCUMENTED,
            "dftbplus: INSTALL.rst:275",
        ),
    ),
)
