"""PySCF: Python in the worker itself, OpenMP inside; through a QCEngine harness of ours, for QCEngine has none."""

from .spec import ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="pyscf",
    title="PySCF",
    parallel_model=ParallelModel.OPENMP,
    in_process=True,
    environment={
        # NumPy and SciPy bring a pthreads OpenBLAS each beside PySCF's libgomp: told 2, 4 threads ran (2.14, 2 cores).
        "OPENBLAS_NUM_THREADS": "1",
        "PYSCF_TMPDIR": "{scratch}",
    },
    # PySCF counts what its process already holds against its memory setting.
    memory_overhead_bytes=64 * 1024**2,
    python_module="pyscf",
    harness_module="qcthreads.programs.harnesses.pyscf",
    preload=("pyscf.scf", "pyscf.mp", "pyscf.df"),
    check="qcthreads.programs.harnesses.pyscf:check",
    per_calculation_keywords={"frozen_core": 'write {"frozen_core": true}'},
    install_hint="pip install 'qcthreads[run]' (Linux and macOS)",
    provenance="verified in source (pyscf 94d4dc83), measured with 2.14",
)
