"""dftd3, the classic executable: serial."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="dftd3",
    title="DFT-D3 (classic dftd3)",
    parallel_model=ParallelModel.SERIAL,
    in_process=False,
    command="dftd3 geometry.xyz -func pbe",
    takes_basis=False,
    executable="dftd3",
    version_command=("dftd3", "-version"),
    install_hint="conda install -c psi4 dftd3, or build it from the authors' page; s-dftd3 does the same in the "
    "process",
    facts=(
        Fact(
            "harness",
            "Nothing of ncores or memory reaches the command, but the scratch directory.",
            Known.SOURCE,
            "QCEngine 0.52: programs/dftd3.py",
        ),
        Fact("threads", "It has no threads.", Known.SECOND_HAND, "QCEngine declares it thread_parallel=False"),
    ),
)
