"""CP2K: MPI ranks times OpenMP threads; for exec only."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="cp2k",
    title="CP2K",
    parallel_model=ParallelModel.MPI_OPENMP,
    in_process=False,
    qcengine=False,
    environment={"OMP_STACKSIZE": "64M"},
    command="mpirun -np {ranks} cp2k.psmp -i input.inp",
    executable="cp2k.psmp",
    version_command=("cp2k.psmp", "--version"),
    install_hint="on Debian: apt install cp2k, or conda install -c conda-forge cp2k",
    facts=(
        Fact(
            "threads",
            "OMP_NUM_THREADS for each rank; the names popt and sopt force one.",
            Known.SOURCE,
            "cp2k ae513bac: src/start/cp2k.F:155",
        ),
        Fact(
            "memory",
            "None but MAX_MEMORY of HFX, per process in MiB.",
            Known.SOURCE,
            "cp2k ae513bac: src/input_cp2k_hfx.F:459",
        ),
        Fact(
            "binding",
            "Open MPI binds a rank's threads to one core unless told not to: 4.72 s instead of 3.20 s with 2 threads.",
            Known.MEASURED,
            "2023.1 psmp, Open MPI 4.1.4, 2 cores",
        ),
        Fact(
            "width",
            "3.70 s with one thread, 3.20 s with two, 2.85 s with two ranks.",
            Known.MEASURED,
            "2023.1 psmp, 2 cores",
        ),
        Fact(
            "trap",
            "Threads need stack: OMP_STACKSIZE, which it reports at the start.",
            Known.SOURCE,
            "cp2k ae513bac: docs/technologies/libraries.md:49",
        ),
    ),
)
