"""CFOUR: OpenMP and BLAS threads in one process under QCEngine, which never starts its MPI build in parallel."""

from .spec import ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="cfour",
    title="CFOUR",
    parallel_model=ParallelModel.MPI_OPENMP,
    in_process=False,
    # An MPI build starts its configured default when this is unset, each rank with all the threads.
    environment={"CFOUR_NUM_CORES": "1"},
    memory_overhead_bytes=256 * 1024**2,
    executable="xcfour",
    install_hint="CFOUR is licensed by its authors: see https://www.cfour.de, and put xcfour on PATH",
    provenance="second-hand: never run here",
)
