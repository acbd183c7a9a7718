"""TeraChem (protobuf server): the worker waits for a server, which computes outside every lease."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="terachem_pbs",
    title="TeraChem (protobuf server)",
    parallel_model=ParallelModel.SERIAL,
    in_process=True,
    python_module="tcpb",
    install_hint="pip install tcpb, and start a TeraChem server; TERACHEM_PBS_HOST and TERACHEM_PBS_PORT say where "
    "it is",
    facts=(
        Fact(
            "threads",
            "The worker waits for the server, and computes nothing.",
            Known.SOURCE,
            "QCEngine 0.52: programs/terachem_pbs.py",
        ),
        Fact(
            "harness",
            "A client; TERACHEM_PBS_HOST and TERACHEM_PBS_PORT, read at import, say where the server is; nothing of "
            "the task_config is used.",
            Known.SOURCE,
            "QCEngine 0.52: programs/terachem_pbs.py",
        ),
        Fact(
            "trap",
            "One server takes one request at a time: more workers only wait. Its CPUs and GPUs are no lease's.",
            Known.SOURCE,
            "QCEngine 0.52: programs/terachem_pbs.py",
        ),
    ),
)
