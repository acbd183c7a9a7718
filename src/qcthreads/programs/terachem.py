"""TeraChem: on the GPUs that it sees; QCEngine tells it nothing."""

from .spec import Fact, Known, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="terachem",
    title="TeraChem",
    parallel_model=ParallelModel.GPU,
    in_process=False,
    gpu=True,
    command="terachem input",
    executable="terachem",
    version_command=("terachem", "--version"),
    install_hint="TeraChem is licensed: see https://www.petachem.com, and put terachem on PATH",
    facts=(
        Fact(
            "harness",
            "terachem tc.in; of the task_config the scratch directory alone.",
            Known.SOURCE,
            "QCEngine 0.52: programs/terachem.py",
        ),
        Fact("threads", "One host thread for each GPU, and BLAS.", Known.SECOND_HAND, "its user's guide 1.9"),
        Fact(
            "trap",
            "Without gpus in the input or CUDA_VISIBLE_DEVICES every job takes all GPUs.",
            Known.SECOND_HAND,
            "its user's guide 1.9",
        ),
    ),
)
