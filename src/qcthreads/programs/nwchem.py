"""NWChem: MPI ranks under Global Arrays, one thread each; QCEngine starts more than one rank only if told how."""

from .spec import ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="nwchem",
    title="NWChem",
    parallel_model=ParallelModel.MPI,
    in_process=False,
    environment={"NWCHEM_SCRATCH_DIR": "{scratch}"},
    task_config={
        "use_mpiexec": True,
        # QCEngine gives every rank OMP_NUM_THREADS = MKL_NUM_THREADS = ncores, which makes ranks squared in builds
        # with OpenMP; it splits this text at spaces, so that env can put it right. -np is all that every mpirun knows.
        "mpiexec_command": "env OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 mpirun -np {total_ranks}",
    },
    inert={"NWCHEM_NPROC": "read by no version of NWChem; the number of ranks is mpirun's -np"},
    memory_overhead_bytes=256 * 1024**2,
    executable="nwchem",
    required_modules=("networkx",),
    install_hint="on Debian: apt install nwchem openmpi-bin libopenblas0-pthread; with it: pip install networkx",
    provenance="verified in source (nwchem a79c4e25), measured with 7.0.2 and Open MPI 4.1.4",
)
