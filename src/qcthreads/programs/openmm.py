"""OpenMM's CPU platform: threads of its own, told by QCEngine's harness."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="openmm",
    title="OpenMM",
    parallel_model=ParallelModel.THREADS,
    in_process=True,
    environment={"OPENMM_CPU_THREADS": "{threads}"},
    inert={"OMP_NUM_THREADS": "not read by OpenMM (measured, 8.6.1)"},
    python_module="openmm",
    required_modules=("rdkit", "openff.toolkit", "openmmforcefields"),
    install_hint="conda install -c conda-forge openmm openff-toolkit openmmforcefields rdkit",
    facts=(
        Fact(
            "threads",
            "OPENMM_CPU_THREADS, or the property Threads of the context.",
            Known.SOURCE,
            "openmm 1a47c2f6: platforms/cpu/src/CpuPlatform.cpp:80",
        ),
        Fact(
            "threads",
            "Unasked it starts a thread per CPU of the machine, mask or no mask.",
            Known.MEASURED,
            "8.6.1: 2 threads under a mask of 1 CPU",
        ),
        Fact(
            "harness",
            "The CPU platform with Threads = ncores; a basis must be named, smirnoff or antechamber.",
            Known.SOURCE,
            "QCEngine 0.52: programs/openmm.py",
        ),
        Fact("binding", "Its threads keep the mask that they inherit.", Known.SOURCE, "openmm 1a47c2f6"),
        Fact("trap", "Every context has a pool of threads of its own.", Known.SOURCE, "openmm 1a47c2f6"),
    ),
)
