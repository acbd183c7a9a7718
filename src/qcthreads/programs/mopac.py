"""MOPAC: no parallel region of its own; small systems gain nothing from a threaded BLAS."""

from .spec import ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="mopac",
    title="MOPAC",
    parallel_model=ParallelModel.BLAS,
    in_process=False,
    useful_width=1,  # 60 waters, PM7: 1.54 s with 1, 1.57 s with 2 (22.0.6, 2 cores); its maintainer says the same
    takes_basis=False,
    executable="mopac",
    version_command=("mopac", "--version"),
    install_hint="on Debian: apt install mopac, or conda install -c conda-forge mopac; never PyPI's mopac, "
    "an unrelated package",
    provenance="verified in source (mopac 05269122), measured with 22.0.6",
)
