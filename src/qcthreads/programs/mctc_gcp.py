"""mctc-gcp: serial."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="mctc-gcp",
    title="gCP (mctc-gcp)",
    parallel_model=ParallelModel.SERIAL,
    in_process=False,
    takes_basis=False,
    command="mctc-gcp geometry.xyz --level hf3c",
    executable="mctc-gcp",
    version_command=("mctc-gcp", "--version"),
    install_hint="conda install -c conda-forge gcp-correction",
    facts=(
        Fact(
            "harness",
            "Nothing of ncores or memory reaches the command, but the scratch directory.",
            Known.SOURCE,
            "QCEngine 0.52: programs/gcp.py",
        ),
        Fact("threads", "No OpenMP in its source.", Known.SOURCE, "gcp bae24c68: src, meson.build"),
    ),
)
