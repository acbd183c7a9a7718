"""NWChem: MPI ranks under Global Arrays, one thread each; QCEngine starts more than one rank only if told how."""

from .spec import Fact, Known, MemorySetting, ParallelModel, ProgramSpec, Sample

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
        "mpiexec_command": "env OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} OPENBLAS_NUM_THREADS={threads} "
        "mpirun -np {{total_ranks}}",
    },
    command="mpirun -np {ranks} nwchem input.nw",
    inert={"NWCHEM_NPROC": "read by no version of NWChem; the number of ranks is mpirun's -np"},
    memory=MemorySetting(
        "process", "8-byte words", "the memory line of the input, by QCEngine: the lease's by the ranks"
    ),
    memory_per_process_bytes=128 * 1024**2,
    executable="nwchem",
    version_command=("nwchem", "/dev/null"),  # it has no option for that, and says it before it reads its input
    required_modules=("networkx",),
    sample=Sample(waters=2, method="hf", basis="cc-pvtz"),
    install_hint="on Debian: apt install nwchem openmpi-bin libopenblas0-pthread; with it: pip install networkx",
    measured_with="7.0.2 and Open MPI 4.1.4",
    facts=(
        Fact(
            "threads",
            "OpenMP exists in builds with USE_OPENMP alone, and there in CCSD(T), TCE, plane waves and GW.",
            Known.SOURCE,
            "nwchem a79c4e25: src/util/util_maxthreads.F, src/ccsd/aoccsd2.F:322",
        ),
        Fact(
            "threads",
            "BLAS is set to one thread at the start; in the CCSD(T) triples NWC_NUM_THREADS may raise it.",
            Known.SOURCE,
            "nwchem a79c4e25: src/util/util_blasthreads.F:77",
        ),
        Fact(
            "harness",
            "ncores alone starts no MPI: one rank; use_mpiexec and mpiexec_command start ncores // cores_per_rank.",
            Known.SOURCE,
            "QCEngine 0.52: programs/nwchem/runner.py, util.py",
        ),
        Fact(
            "memory",
            "Per rank; QCEngine divides what it is given by the number of ranks.",
            Known.SOURCE,
            "QCEngine 0.52: programs/nwchem/runner.py",
        ),
        Fact(
            "memory",
            "Its output says how much it was told in doubles: the lease's less the overhead, by the ranks.",
            Known.MEASURED,
            "7.0.2",
        ),
        Fact(
            "memory",
            "HF/triple zeta, 2 waters: 239 MiB with one rank and its worker, 330 MiB with two; with room for more "
            "460 MiB, and 552 to 586 MiB with two.",
            Known.MEASURED,
            "7.0.2",
        ),
        Fact(
            "binding",
            "Global Arrays binds nothing (COMEX_SET_AFFINITY is 0): the launcher decides.",
            Known.SOURCE,
            "ga dd403471: comex/src-mpi-pr/comex_impl.h:25",
        ),
        Fact(
            "width",
            "A rank per core at most: two ranks on one core took 113 s where 3 s was due, for they spin while they "
            "wait.",
            Known.MEASURED,
            "7.0.2, HF on 2 cores",
        ),
        Fact(
            "trap",
            "Builds for MPI-PR keep one rank per node for communication, which spins: 2 ranks compute as 1.",
            Known.SOURCE,
            "ga dd403471: comex/src-mpi-pr/groups.h:62; nwchem issue 1272",
        ),
        Fact(
            "trap",
            "With OMP_NUM_THREADS unset and hwloc built in it takes the machine's cores by the ranks, mask or no mask.",
            Known.SOURCE,
            "nwchem a79c4e25: src/nwchem.F:174",
        ),
        Fact(
            "trap",
            "libpsm2, where Open MPI loads it, puts each rank on CPU 0 for some milliseconds, or tenths of a second "
            "where that CPU is busy, and back into its mask: it measures the clock there.",
            Known.MEASURED,
            "7.0.2 and Open MPI 4.1.4 under taskset; strace",
        ),
        Fact("check", "The output says nproc.", Known.MEASURED, "7.0.2"),
    ),
)
