"""xtb by its Python API, in the worker itself: libgomp, and a pthreads OpenBLAS that must be held at one thread."""

from .spec import ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="xtb",
    title="xtb",
    parallel_model=ParallelModel.OPENMP,
    in_process=True,
    environment={
        # Told 2 as well, 3 threads ran and 64 waters took 3.30 s instead of 2.68 s (wheel 22.1, 2 cores).
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_STACKSIZE": "4G",  # virtual, as xtb's own help says; larger systems end with a segmentation fault without
    },
    python_module="xtb",
    preload=("xtb.qcschema.harness",),
    takes_basis=False,
    usual_method="GFN2-xTB",
    install_hint="pip install 'qcthreads[xtb]' (Linux, Python 3.11), or conda install -c conda-forge xtb-python",
    provenance="measured with the wheel 22.1",
)
