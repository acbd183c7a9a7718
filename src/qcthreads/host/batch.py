"""What a batch system granted this job on this node, from the variables it sets; a reader, which starts no command.

The variables are those that the systems document for a running job: Slurm's sbatch(1) and srun(1); Torque's qsub(1B)
and PBS Professional's User's Guide; LSF's "Environment variables set for job execution"; Grid Engine's submit(1) and
sge_pe(5). Flux (flux-environment(7)) states neither CPUs nor memory in variables: its shell sets the mask. The memory
that PBS, LSF and Grid Engine grant is in no variable either: where they enforce it, the cgroup says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from ..cpuset import CpuSet
from ..errors import InputError
from ..light import dataclass

_MIB = 1024**2
_MOST_NODES = 1_000_000  # of a job; more is nobody's
_NUMBER = r"[1-9][0-9]{0,8}"


@dataclass(frozen=True, slots=True)
class Grant:
    """One thing granted, and the variable that says so: exactly one of the last three is set."""

    source: str
    cpus: CpuSet | None = None
    cpu_count: int | None = None
    memory_bytes: int | None = None


def grants(environ: Mapping[str, str]) -> tuple[Grant, ...]:
    """Everything the variables in ``environ`` grant on this node; what is no number or list grants nothing."""
    readers = (_slurm, _pbs, _lsf, _grid_engine)
    return tuple(grant for reader in readers for grant in reader(environ))


def _slurm(environ: Mapping[str, str]) -> Iterator[Grant]:
    node = int(environ["SLURM_NODEID"]) if _number(environ.get("SLURM_NODEID")) else 0
    on_node = _number(environ.get("SLURM_CPUS_ON_NODE"))
    source = "SLURM_CPUS_ON_NODE"
    if on_node is None:
        source = "SLURM_JOB_CPUS_PER_NODE"
        on_node = _at(parse_repeats(environ.get(source, "")), node)
    if on_node is not None:
        yield Grant(source, cpu_count=on_node)
    per_task = _number(environ.get("SLURM_CPUS_PER_TASK"))
    if per_task is not None:
        # A task of a step has its own share. A batch script has those of all the tasks that it may start here.
        tasks = (
            None if "SLURM_STEP_ID" in environ else _at(parse_repeats(environ.get("SLURM_TASKS_PER_NODE", "")), node)
        )
        yield Grant("SLURM_CPUS_PER_TASK", cpu_count=per_task * (tasks or 1))
    memory_mib = _number(environ.get("SLURM_MEM_PER_NODE"))  # 0 is all of the node's
    if memory_mib is not None:
        yield Grant("SLURM_MEM_PER_NODE", memory_bytes=memory_mib * _MIB)
    memory_mib = _number(environ.get("SLURM_MEM_PER_CPU"))
    if memory_mib is not None and on_node is not None:
        yield Grant("SLURM_MEM_PER_CPU", memory_bytes=memory_mib * on_node * _MIB)


def _pbs(environ: Mapping[str, str]) -> Iterator[Grant]:
    """``PBS_NUM_PPN`` and ``PBS_NP`` (of all nodes) are Torque's, ``NCPUS`` PBS Professional's; others use it too."""
    for name in ("PBS_NUM_PPN", "PBS_NP", "NCPUS"):
        count = _number(environ.get(name))
        if count is not None and (name != "NCPUS" or "PBS_JOBID" in environ):
            yield Grant(name, cpu_count=count)


def _lsf(environ: Mapping[str, str]) -> Iterator[Grant]:
    """``LSB_DJOB_NUMPROC`` counts all hosts, ``LSB_MCPU_HOSTS`` each: ``hostA 4 hostB 2``."""
    hosts = environ.get("LSB_MCPU_HOSTS", "").split()
    here = _here(list(zip(hosts[::2], hosts[1::2], strict=False)))
    if here is not None:
        yield Grant("LSB_MCPU_HOSTS", cpu_count=here)
    count = _number(environ.get("LSB_DJOB_NUMPROC"))
    if count is not None:
        yield Grant("LSB_DJOB_NUMPROC", cpu_count=count)
    yield from _cpu_list("LSB_BIND_CPU_LIST", environ.get("LSB_BIND_CPU_LIST", ""))


def _grid_engine(environ: Mapping[str, str]) -> Iterator[Grant]:
    """``NSLOTS`` counts all hosts, the file ``PE_HOSTFILE`` each: ``hostA 4 queue@hostA UNDEFINED``."""
    if "JOB_ID" not in environ:  # NSLOTS is a name that others use too
        return
    rows = [line.split() for line in _read(environ.get("PE_HOSTFILE", "")).splitlines()]
    here = _here([(row[0], row[1]) for row in rows if len(row) > 1])
    if here is not None:
        yield Grant("PE_HOSTFILE", cpu_count=here)
    count = _number(environ.get("NSLOTS"))
    if count is not None:
        yield Grant("NSLOTS", cpu_count=count)
    yield from _cpu_list("SGE_BINDING", ",".join(environ.get("SGE_BINDING", "").split()))  # ``-binding env``


def parse_repeats(text: str) -> list[int]:
    """Slurm's ``4(x2),1`` as ``[4, 4, 1]``; nothing for anything else."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([1-9][0-9]{0,8})(?:\(x([1-9][0-9]{0,5})\))?", part.strip())
        if not match:
            return []
        counts += [int(match.group(1))] * int(match.group(2) or 1)
        if len(counts) > _MOST_NODES:
            return []
    return counts


def _at(counts: list[int], node: int) -> int | None:
    return counts[node] if node < len(counts) else min(counts, default=None)


def _here(rows: list[tuple[str, str]]) -> int | None:
    """The sum of the numbers beside this node's name, with or without its domain."""
    if not rows:
        return None
    import platform  # slow to import, and only these two systems need it

    name = platform.node().partition(".")[0]
    counts = [_number(count) or 0 for host, count in rows if host.partition(".")[0] == name]
    return sum(counts) or None


def _cpu_list(source: str, text: str) -> Iterator[Grant]:
    try:
        cpus = CpuSet.parse(text)
    except InputError:
        return
    if cpus:
        yield Grant(source, cpus=cpus)


def _number(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if re.fullmatch(_NUMBER, text) else None


def _read(path: str) -> str:
    """A file that may not be there, or not for us."""
    if not path:
        return ""
    try:
        with open(os.path.expanduser(path), encoding="utf-8", errors="replace") as file:  # noqa: PTH111, PTH123
            return file.read()
    except (OSError, ValueError):
        return ""
