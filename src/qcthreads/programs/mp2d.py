"""MP2D: serial."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="mp2d",
    title="MP2D",
    parallel_model=ParallelModel.SERIAL,
    in_process=False,
    takes_basis=False,
    command="mp2d geometry.xyz --TT_a1=0.944 --TT_a2=0.48 --rcut=0.72 --w=0.2 --s8=1.187",
    executable="mp2d",
    version_command=("mp2d", "--version"),
    install_hint="conda install -c psi4 mp2d",
    facts=(
        Fact(
            "harness",
            "Nothing of ncores or memory reaches the command, but the scratch directory.",
            Known.SOURCE,
            "QCEngine 0.52: programs/mp2d.py",
        ),
        Fact("threads", "It has no threads.", Known.SECOND_HAND, "QCEngine declares it thread_parallel=False"),
    ),
)
