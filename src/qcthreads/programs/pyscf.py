"""PySCF: Python in the worker itself, OpenMP inside; through a QCEngine harness of ours, for QCEngine has none."""

from .spec import Fact, Known, MemorySetting, ParallelModel, ProgramSpec, Sample

SPEC = ProgramSpec(
    name="pyscf",
    title="PySCF",
    parallel_model=ParallelModel.OPENMP,
    in_process=True,
    any_width=True,
    environment={
        # NumPy and SciPy bring a pthreads OpenBLAS each beside PySCF's libgomp: told 2, 4 threads ran (2.14, 2 cores).
        "OPENBLAS_NUM_THREADS": "1",
        "PYSCF_TMPDIR": "{scratch}",
    },
    command="python script.py",
    input_text="pyscf.lib.num_threads({threads})",
    memory=MemorySetting("calculation", "MB", "mol.max_memory, by the harness of ours"),
    # PySCF counts what its process already holds against its memory setting: 125 MiB before it computes (2.14).
    memory_overhead_bytes=0,
    memory_least_bytes=128 * 1024**2,
    python_module="pyscf",
    harness_module="qcthreads.programs.harnesses.pyscf",
    preload=("pyscf.scf", "pyscf.mp", "pyscf.df"),
    check="qcthreads.programs.harnesses.pyscf:check",
    per_calculation_keywords={"frozen_core": 'write {"frozen_core": true}'},
    sample=Sample(waters=4, method="hf", basis="cc-pvdz"),
    install_hint="pip install 'qcthreads[run]' (Linux and macOS)",
    measured_with="2.14",
    facts=(
        Fact(
            "threads",
            "OMP_NUM_THREADS is read when its libgomp is loaded; lib.num_threads changes it for the thread that calls.",
            Known.SOURCE,
            "pyscf 94d4dc83: pyscf/lib/misc.py:55",
        ),
        Fact(
            "threads",
            "The wheel has a libgomp and a serial OpenBLAS of its own; NumPy and SciPy bring a pthreads OpenBLAS each.",
            Known.MEASURED,
            "2.14: three runtimes in one process",
        ),
        Fact("memory", "Its output says what it was told as max_memory: the lease's.", Known.MEASURED, "2.14"),
        Fact("memory", "Advice, and what the process already holds counts.", Known.SOURCE, "pyscf 94d4dc83"),
        Fact(
            "binding", "Keeps the mask; unasked it takes as many threads as the mask has CPUs.", Known.MEASURED, "2.14"
        ),
        Fact(
            "width",
            "HF/triple zeta, 3 waters: 11.19 s with one thread, 8.02 s with two; smaller ones gain nothing.",
            Known.MEASURED,
            "2.14, 2 cores",
        ),
        Fact("trap", "A process that forks after a parallel region hangs in the child.", Known.MEASURED, "2.14"),
    ),
)
