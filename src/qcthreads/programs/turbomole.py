"""Turbomole: OpenMP, or processes forked by its own scripts, as many as QCEngine tells it."""

from .spec import Fact, Known, MemorySetting, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="turbomole",
    title="Turbomole",
    parallel_model=ParallelModel.OPENMP,
    in_process=False,
    command="PARA_ARCH=SMP PARNODES={threads} ridft",
    memory=MemorySetting("PU", "MiB", "$maxcor and $ricore per_core, by QCEngine"),
    executable="define",
    install_hint="Turbomole is licensed: see https://www.turbomole.org; source Config_turbo_env with PARA_ARCH=SMP, "
    "so that define is on PATH",
    facts=(
        Fact(
            "threads",
            "PARNODES threads or forked processes, OpenMP where both exist and TM_PAR_OMP is on; ricc2 by "
            "OMP_NUM_THREADS.",
            Known.SECOND_HAND,
            "CSC's copy of its manual, job scripts",
        ),
        Fact(
            "harness",
            "PARA_ARCH=SMP, TM_PAR_OMP=on, PARNODES=SMPCPUS=ncores; the scratch directory is not used.",
            Known.SOURCE,
            "QCEngine 0.52: programs/turbomole/runner.py",
        ),
        Fact(
            "memory",
            "The harness counts in MB and writes MiB: 5 % more than it was given.",
            Known.SOURCE,
            "QCEngine 0.52: programs/turbomole/runner.py",
        ),
        Fact(
            "trap",
            "PARA_ARCH must fit the binaries on PATH: serial ones ignore PARNODES.",
            Known.SECOND_HAND,
            "job scripts",
        ),
        Fact(
            "trap",
            "NumForce, of numerical Hessians, may start several displacements at once.",
            Known.SECOND_HAND,
            "its manual",
        ),
    ),
)
