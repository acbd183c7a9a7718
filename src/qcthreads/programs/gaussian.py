"""Gaussian 16: shared-memory threads; for exec only."""

from .spec import Fact, Known, MemorySetting, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="gaussian",
    title="Gaussian 16",
    parallel_model=ParallelModel.THREADS,
    in_process=False,
    qcengine=False,
    environment={"GAUSS_PDEF": "{threads}", "GAUSS_SCRDIR": "{scratch}"},
    unset=("GAUSS_CDEF", "GAUSS_WDEF"),
    command="g16 -p={threads} input.gjf",
    input_text="%NProcShared={threads}",
    memory=MemorySetting("calculation", "8-byte words, or KB, MB, GB", "%Mem, -m or GAUSS_MDEF"),
    executable="g16",
    install_hint="Gaussian is licensed: see https://gaussian.com; put g16 on PATH and set g16root",
    facts=(
        Fact(
            "threads",
            "%NProcShared in the input, over -p, over GAUSS_PDEF: a number in the input overrides what it is told.",
            Known.DOCUMENTED,
            "gaussian.com/equivs",
        ),
        Fact(
            "memory", "Of the whole process; it should grow with the threads.", Known.DOCUMENTED, "gaussian.com/link0"
        ),
        Fact(
            "binding",
            "%CPU, -c and GAUSS_CDEF pin its threads to CPUs counted by the machine; without them the mask binds.",
            Known.DOCUMENTED,
            "gaussian.com/equivs, gaussian.com/relnotes",
        ),
        Fact(
            "trap",
            "A fixed %CPU=0-3 in every input stacks all jobs on the same cores.",
            Known.DOCUMENTED,
            "gaussian.com/equivs",
        ),
    ),
)
