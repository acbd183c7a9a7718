"""Quantum ESPRESSO: MPI ranks times OpenMP threads; for exec only."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="quantum_espresso",
    title="Quantum ESPRESSO",
    parallel_model=ParallelModel.MPI_OPENMP,
    in_process=False,
    qcengine=False,
    environment={"ESPRESSO_TMPDIR": "{scratch}"},
    command="mpirun -np {ranks} pw.x -i input.in",
    executable="pw.x",
    install_hint="on Debian: apt install quantum-espresso, or conda install -c conda-forge qe",
    facts=(
        Fact(
            "threads",
            "OMP_NUM_THREADS for each rank; unset, a build with OpenMP takes all CPUs in every rank.",
            Known.SOURCE,
            "q-e ddbec465: Modules/environment.f90:230, environment_variables",
        ),
        Fact("binding", "It binds nothing: the launcher decides.", Known.SOURCE, "q-e ddbec465"),
        Fact(
            "trap",
            "Explicit OpenMP, a threaded library and MPI multiply.",
            Known.SOURCE,
            "q-e ddbec465: Doc/user_guide.tex:1342",
        ),
    ),
)
