"""gCP, the classic executable: serial."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="gcp",
    title="gCP (classic gcp)",
    parallel_model=ParallelModel.SERIAL,
    in_process=False,
    takes_basis=False,
    command="gcp geometry.xyz -level hf3c",
    executable="gcp",
    install_hint="conda install -c psi4 gcp; mctc-gcp is its successor",
    facts=(
        Fact(
            "harness",
            "Nothing of ncores or memory reaches the command, but the scratch directory.",
            Known.SOURCE,
            "QCEngine 0.52: programs/gcp.py",
        ),
        Fact("threads", "No OpenMP in its source.", Known.SOURCE, "gcp bae24c68: src, meson.build"),
        Fact(
            "trap",
            "Reads ~/.gcppar.HOST, which all calculations of a host share.",
            Known.SECOND_HAND,
            "its manual, by QCEngine's harness",
        ),
    ),
)
