"""MRChem: OpenMP in one process under QCEngine; MPI builds choose their threads by themselves."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="mrchem",
    title="MRChem",
    parallel_model=ParallelModel.MPI_OPENMP,
    in_process=False,
    command="mrchem --launcher='mpirun -np {ranks}' input.inp",
    takes_basis=False,
    executable="mrchem.x",
    version_command=("mrchem.x", "--version"),
    install_hint="see https://mrchem.readthedocs.io; a build without MPI obeys OMP_NUM_THREADS",
    facts=(
        Fact(
            "threads",
            "OMP_NUM_THREADS is read by builds without MPI alone, and by others where the input says "
            "MPI.use_omp_num_threads.",
            Known.SOURCE,
            "mrcpp 77187f0e: src/utils/parallel.cpp:75",
        ),
        Fact(
            "threads",
            "Unasked MPI builds take min((CPUs of the machine / 2 - banks) / ranks, CPUs of the mask / 2) threads: "
            "half the lease.",
            Known.SOURCE,
            "mrcpp 77187f0e: src/utils/parallel.cpp:75",
        ),
        Fact(
            "threads",
            'Keywords {"MPI": {"omp_threads": n}} say otherwise, in versions that know them.',
            Known.SOURCE,
            "mrchem bac59b5a: python/template.yml, doc/users/user_inp.rst:108",
        ),
        Fact(
            "harness",
            "mrchem.x, under mpiexec_command where use_mpiexec; neither memory nor threads reach its input.",
            Known.SOURCE,
            "QCEngine 0.52: programs/mrchem.py",
        ),
        Fact(
            "binding",
            "It binds nothing; a launcher that binds ranks to cores leaves their threads one.",
            Known.DOCUMENTED,
            "mrchem: doc/users/running.rst",
        ),
        Fact(
            "width",
            "8 to 20 threads per rank, a rank per memory node.",
            Known.DOCUMENTED,
            "mrchem: doc/users/running.rst",
        ),
        Fact(
            "trap",
            "From two ranks on a third of them are bank ranks of one thread.",
            Known.SOURCE,
            "mrcpp 77187f0e: src/utils/parallel.cpp:75",
        ),
    ),
)
