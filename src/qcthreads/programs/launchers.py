"""The MPI launchers: how each is made to start its processes inside the lease; names no program, starts nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from ..cpuset import CpuSet
from ..light import dataclass, field
from .spec import Known


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """One launcher."""

    name: str
    inherits_mask: bool
    """Its processes have the mask that it was started with, unless a variable says otherwise."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set for every program, so that the processes stay in the mask."""
    escapes: tuple[str, ...] = ()
    """Variables that lead the processes out of the mask; removed from every child."""
    known: Known
    note: str


LAUNCHERS = (
    Launcher(
        name="Open MPI 4",
        inherits_mask=False,
        environment={"OMPI_MCA_hwloc_base_binding_policy": "none"},
        escapes=("OMPI_MCA_hwloc_base_cpu_list", "OMPI_MCA_hwloc_base_cpu_set"),
        known=Known.MEASURED,
        note="4.1.4: binds by the machine, two at once both to CPU 0; told not to bind, its ranks keep the mask, "
        "unless a cpu_list is set beside it",
    ),
    Launcher(
        name="Open MPI 5 (PRRTE)",
        inherits_mask=False,
        environment={"PRTE_MCA_hwloc_default_binding_policy": "none"},
        escapes=("PRTE_MCA_hwloc_default_cpu_list",),
        known=Known.MEASURED,
        note="5.0.11: as Open MPI 4, by another variable; Open MPI 4's has no effect on it",
    ),
    Launcher(
        name="MPICH (hydra)",
        inherits_mask=True,
        escapes=("HYDRA_BINDING", "HYDRA_MAPPING"),
        known=Known.MEASURED,
        note="5.0.2: its ranks keep the mask; HYDRA_BINDING=core and -bind-to core put them on CPU 0, whatever the "
        "mask",
    ),
    Launcher(
        name="Intel MPI",
        inherits_mask=True,
        escapes=(
            "I_MPI_PIN_RESPECT_CPUSET",
            "I_MPI_PIN_PROCESSOR_LIST",
            "I_MPI_PIN_PROCESSOR_EXCLUDE_LIST",
            "I_MPI_PIN_DOMAIN",
        ),
        known=Known.MEASURED,
        note="2021.18: pins its ranks inside the mask; I_MPI_PIN_RESPECT_CPUSET=0 leaves it, and a processor list "
        "outside it makes the launcher spin for ever",
    ),
    Launcher(
        name="MVAPICH2",
        inherits_mask=False,
        environment={"MV2_ENABLE_AFFINITY": "0"},
        escapes=("MV2_CPU_MAPPING", "MV2_CPU_BINDING_POLICY", "MV2_CPU_BINDING_LEVEL"),
        known=Known.SECOND_HAND,
        note="pins each rank to one core, counted from core 0, unless told not to",
    ),
    Launcher(
        name="srun",
        inherits_mask=False,
        known=Known.MEASURED,
        note="22.05.8: its processes are children of Slurm's daemon and inherit no mask; `exec` inside a Slurm job "
        "tells it that of the lease by SLURM_CPU_BIND, and by SLURM_OVERLAP that steps share the job's CPUs",
    ),
)

BINDING: Mapping[str, str] = {
    **{name: value for launcher in LAUNCHERS for name, value in launcher.environment.items()},
    # hwloc asks each CPU what it is from that CPU itself: prterun and hydra's proxy went through all of the machine's,
    # mask or no mask, until told to read /sys alone (measured; Open MPI 5.0.11, MPICH 5.0.2).
    "HWLOC_COMPONENTS": "-x86",
}
"""Set for every program: whatever is below may start MPI."""

ESCAPES = tuple(name for launcher in LAUNCHERS for name in launcher.escapes)
"""Removed from every child."""

OPEN_MPI_AS_ROOT: Mapping[str, str] = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

SLOTS = ("OMPI_MCA_orte_set_default_slots", "PRTE_MCA_prte_set_default_slots")
"""Set to the cores of the lease: Open MPI 4 and 5 start as many processes where nobody says how many, and refuse more.
By themselves they have one for each core of the machine, mask or no mask; MPICH and Intel MPI start one (measured)."""
OVERSUBSCRIBE = ("OMPI_MCA_rmaps_base_oversubscribe", "PRTE_MCA_rmaps_default_mapping_policy")
"""What may let Open MPI start more, removed from every child."""

COMMANDS = ("mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun", "srun")
# What has srun give a step CPUs of its own.
_PARTING = ("-c", "--cpus-per-task", "--exact", "--exclusive")
_PARTING_VARIABLES = ("SRUN_CPUS_PER_TASK", "SLURM_EXACT", "SLURM_EXCLUSIVE")
_RANKS = ("-n", "-np", "--n", "--np", "--ntasks")
# On each node, of which a lease has one; srun means other things by -N and -c.
_RANKS_OF_NODE = ("-c", "-N", "--N", "-npernode", "--npernode", "-ppn", "--ppn", "-perhost")
_MAPPING = ("-map-by", "--map-by")  # ppr:4:node
# srun's options of one letter without a value, and with one in the same word at most (srun(1); 22.05.8).
_FLAGS_OF_SRUN = "EHOQVXZhlsuv"
_OWN_VALUE_OF_SRUN = "IKk"
# Their value is two words.
_PAIRS = ("-mca", "--mca", "-gmca", "--gmca", "--prtemca", "--pmixmca", "-env", "-genv")

_OUTER = ("SLURM_", "PMI_", "PMIX_", "HYDI_")
# What tells of a whole job, each by its name and its old one.
_JOBS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "SLURM_": (("SLURM_JOB_ID", "SLURM_JOBID"), ("SLURM_JOB_NODELIST", "SLURM_NODELIST")),
    "PMI_": (("PMI_RANK",), ("PMI_SIZE",)),
    "PMIX_": (("PMIX_NAMESPACE",), ("PMIX_RANK",)),
}
_OPEN_MPI_RANK = "OMPI_COMM_WORLD_RANK"


def ranks_of(command: Sequence[str], slots: int) -> tuple[int | None, str]:
    """How many processes ``command`` starts, as its launcher is told; None: it starts no launcher, or Slurm says.

    Each of several programs at once (``mpirun -n 2 a : -n 1 b``) says its own number. Where one does not, there are as
    many as ``slots``, or one where the launcher is known to be MPICH's or Intel's; a line says so.
    """
    called = [place for place, word in enumerate(command) if os.path.basename(word) in COMMANDS]  # noqa: PTH119
    if not called:
        return None, ""
    parts: list[list[str]] = [[]]
    for word in command[called[0] + 1 :]:
        if word == ":":
            parts.append([])
        else:
            parts[-1].append(word)
    launcher = command[called[0]]
    step = starts_step(command)
    ranks = [_number(_written_out(part) if step else part, of_node=not step) for part in parts]
    if None not in ranks:
        return sum(number for number in ranks if number), ""
    if step:
        return None, ""
    untold = f"{os.path.basename(launcher)} is told no number of processes"  # noqa: PTH119
    if len(parts) == 1 and _is_hydra(launcher):
        return 1, f"{untold} and starts one, which has all threads: give it one by -n"
    note = f"{untold}: {slots} are assumed; MPICH and Intel MPI start one: give it one by -n"
    return slots, note if slots > 1 else ""


def starts_step(command: Sequence[str]) -> bool:
    """Whether ``command`` has Slurm start its processes, which then needs all that tells of its job."""
    return any(os.path.basename(word) == "srun" for word in command)  # noqa: PTH119


def bound_step(command: Sequence[str], cpus: CpuSet, environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """What has the srun of ``command`` bind its step to ``cpus``, where ``environ`` is that of a Slurm job; and a note.

    By itself it binds to CPUs of its own choice, and a second step waits for the first to end. A step that is given
    only some of the job's CPUs is refused by Slurm where the mask has others (measured; 22.05.8).
    """
    if not starts_step(command) or not any(name in environ for name in _JOBS["SLURM_"][0]):
        return {}, ""
    unbound = "Slurm chooses the CPUs of this step, not the lease"
    if environ.get("SLURM_JOB_NUM_NODES", environ.get("SLURM_NNODES")) != "1":
        return {}, f"{unbound}: its job has several nodes"
    parting = [word for word in _options_of_srun(command) if word.startswith(_PARTING)]
    parting += [f"{name}={environ[name]}" for name in _PARTING_VARIABLES if name in environ]
    if parting:
        return {}, f"{unbound}: {parting[0]} gives it a part of the job's; leave that out"
    own = environ.get("SLURM_CPU_BIND")
    note = f"SLURM_CPU_BIND={own} is not kept: the step gets the CPUs of the lease" if own else ""
    return {"SLURM_CPU_BIND": f"quiet,mask_cpu:{cpus.bits:#x}", "SLURM_OVERLAP": "1"}, note


def _options_of_srun(command: Sequence[str]) -> list[str]:
    called = next(place for place, word in enumerate(command) if os.path.basename(word) == "srun")  # noqa: PTH119
    return [option.partition("=")[0] for option, _ in _options(_written_out(command[called + 1 :]))]


def of_outer_launcher(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names in ``environ`` that an outer launcher or a batch system left, all of them.

    A child that starts MPI of its own takes them for its own job; part of Slurm's is worse than nothing: SLURM_JOBID
    without SLURM_NODELIST ends Open MPI 4.1.4 (measured). ``OMPI_*`` are also a user's settings: they go where Open
    MPI itself started this process.
    """
    prefixes = (*_OUTER, "OMPI_") if _OPEN_MPI_RANK in environ else _OUTER
    return tuple(sorted(name for name in environ if name.startswith(prefixes)))


def of_partial_job(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names in ``environ`` that a batch system or launcher left where they do not tell of a whole job.

    That is worse than of none; a whole one is left to those who may be a rank of it, or call srun.
    """
    gone: list[str] = []
    for prefix, job in _JOBS.items():
        said = [any(name in environ for name in alike) for alike in job]
        if not all(said) and (any(said) or prefix == "SLURM_"):
            gone += [name for name in environ if name.startswith(prefix) and name != "SLURM_CONF"]
    return tuple(sorted(gone))


def _number(words: Sequence[str], *, of_node: bool) -> int | None:
    """How many processes a launcher is told to start by ``words``: in all, or, ``of_node``, on each node."""
    told: dict[str, str] = {}
    for option, following in _options(words):
        name, _, value = option.partition("=")
        told.setdefault(name, value or following)
    numbers = [value for name, value in told.items() if name in _RANKS]
    if of_node and not numbers:
        mappings = {name: told[name].split(":") for name in _MAPPING if name in told}
        told |= {name: kind[1] for name, kind in mappings.items() if kind[0] == "ppr" and kind[2:3] == ["node"]}
        numbers = [value for name, value in told.items() if name in _RANKS_OF_NODE + _MAPPING]
    return int(numbers[0]) if numbers and numbers[0].isdigit() and int(numbers[0]) > 0 else None


def _written_out(words: Sequence[str]) -> list[str]:
    """srun's options of one letter as its others are written, for getopt(3) reads ``-ln4`` as ``-l= -n=4``."""
    written = []
    for word in words:
        if not (word.startswith("-") and word[1:2].isalpha()):
            written.append(word)
            continue
        last = word[1:].lstrip(_FLAGS_OF_SRUN)
        written += [f"-{flag}=" for flag in word[1 : len(word) - len(last)]]
        if last:
            glued = last[1:] or last in _OWN_VALUE_OF_SRUN
            written.append(f"-{last[0]}={last[1:]}" if glued else f"-{last}")
    return written


def _options(words: Sequence[str]) -> list[tuple[str, str]]:
    """Each option of a launcher with the word after it, up to its program: the first that can be no option's value."""
    options = []
    values = 0
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word.startswith("-"):
            options.append((word, following))
            values = 0 if "=" in word else 2 if word in _PAIRS else 1
        elif values:
            values -= 1
        else:
            break
    return options


def _is_hydra(launcher: str) -> bool:
    """Whether it is MPICH's launcher or Intel's, where that can be told by the name of its file."""
    import shutil  # which commands that tell a number can do without

    return os.path.basename(os.path.realpath(shutil.which(launcher) or launcher)) == "mpiexec.hydra"  # noqa: PTH119
