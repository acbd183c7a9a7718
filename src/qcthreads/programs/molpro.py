"""Molpro: processes started by its own command, as many as QCEngine tells it."""

from .spec import Fact, Known, MemorySetting, ParallelModel, ProgramSpec

SPEC = ProgramSpec(
    name="molpro",
    title="Molpro",
    parallel_model=ParallelModel.OWN_LAUNCHER,
    in_process=False,
    command="molpro -n {ranks} -t {threads} input.com",
    width_options=("-n",),
    memory=MemorySetting("process", "10^6 8-byte words", "the memory card, by QCEngine: the lease's by ncores"),
    executable="molpro",
    install_hint="Molpro is licensed: see https://www.molpro.net, and put molpro on PATH",
    facts=(
        Fact(
            "threads",
            "-n processes of Global Arrays or MPI; OpenMP in parts of the code, which the manual does not recommend.",
            Known.DOCUMENTED,
            "molpro.net: running Molpro on parallel computers",
        ),
        Fact(
            "harness",
            "-n ncores and OMP_NUM_THREADS = ncores: without OMP_THREAD_LIMIT n processes of n threads.",
            Known.SOURCE,
            "QCEngine 0.52: programs/molpro.py",
        ),
        Fact("memory", "The harness divides the memory by ncores.", Known.SOURCE, "QCEngine 0.52: programs/molpro.py"),
        Fact(
            "trap",
            "In pure MPI builds helper processes take PUs from those that compute.",
            Known.DOCUMENTED,
            "molpro.net",
        ),
        Fact("binding", "As the MPI that it was linked with.", Known.SECOND_HAND, "its manual"),
    ),
)
