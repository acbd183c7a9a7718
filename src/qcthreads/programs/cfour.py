"""CFOUR: OpenMP and BLAS threads in one process under QCEngine, which never starts its MPI build in parallel."""

from .spec import Fact, Known, MemorySetting, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="cfour",
    title="CFOUR",
    parallel_model=ParallelModel.MPI_OPENMP,
    in_process=False,
    # The one second-hand setting that is made: a build without MPI does not read it, and a build with MPI starts the
    # processes of its site's default, each with all the threads, where it is unset.
    environment={"CFOUR_NUM_CORES": "{ranks}"},
    command="xcfour",
    memory=MemorySetting("process", "integer words", "MEMORY_SIZE in ZMAT, by QCEngine"),
    executable="xcfour",
    install_hint="CFOUR is licensed by its authors: see https://www.cfour.de, and put xcfour on PATH",
    facts=(
        Fact(
            "threads",
            "OMP_NUM_THREADS reaches the OpenMP modules (NCC) and an OpenMP BLAS, MKL_NUM_THREADS its MKL.",
            Known.SECOND_HAND,
            "ASH and Psi4's interface to CFOUR",
        ),
        Fact(
            "threads",
            "MPI builds start their modules by the mpirun given at configure time, often mpirun -np $CFOUR_NUM_CORES.",
            Known.SECOND_HAND,
            "configure lines and job scripts of several centres",
        ),
        Fact(
            "harness",
            "Starts xcfour, and tells the width by OMP_NUM_THREADS and MKL_NUM_THREADS alone.",
            Known.SOURCE,
            "QCEngine 0.52: programs/cfour/runner.py",
        ),
        Fact(
            "memory",
            "GiB are written as integer words, for each process.",
            Known.SOURCE,
            "QCEngine 0.52: programs/cfour/runner.py",
        ),
        Fact("trap", "xcfour itself is never started under mpirun.", Known.SECOND_HAND, "job scripts"),
    ),
)
