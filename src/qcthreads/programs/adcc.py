"""adcc on Psi4's Hartree-Fock, in the worker: a thread pool of its own, told by QCEngine's harness."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="adcc",
    title="adcc",
    parallel_model=ParallelModel.THREADS,
    in_process=True,
    environment={"OMP_THREAD_LIMIT": "1", "OPENBLAS_NUM_THREADS": "1"},
    input_text="adcc.set_n_threads({threads})",
    python_module="adcc",
    required_modules=("psi4",),
    install_hint="conda install -c conda-forge adcc psi4",
    facts=(
        Fact(
            "threads",
            "set_n_threads(n): a pool of 2n-1 threads, n of which run; no variable tells it.",
            Known.SOURCE,
            "adcc cbd7e3d7: libadcc_src/pyiface/export_threading.cc:30, docs/calculations.rst:301",
        ),
        Fact(
            "threads",
            "At import it starts os.cpu_count() workers, which PYTHON_CPU_COUNT changes from Python 3.13 on.",
            Known.SOURCE,
            "adcc cbd7e3d7: export_threading.cc:30",
        ),
        Fact(
            "harness",
            "set_n_threads(ncores), after a Hartree-Fock by Psi4 with the one thread that Psi4 has unasked.",
            Known.SOURCE,
            "QCEngine 0.52: programs/adcc.py",
        ),
        Fact(
            "memory",
            "The harness passes no memory on, though it calls it managed.",
            Known.SOURCE,
            "QCEngine 0.52: programs/adcc.py",
        ),
        Fact(
            "trap",
            "BLAS is called from its workers: threads there multiply.",
            Known.SOURCE,
            "adcc cbd7e3d7: docs/calculations.rst",
        ),
    ),
)
