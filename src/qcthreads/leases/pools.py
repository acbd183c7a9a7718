"""Which amounts leases share with whom: memory of the machine, of its nodes and of control groups, and CPU quotas.

A pool has the same name in every process that draws on it, also in other containers: control groups are told apart by
their directories' device and inode numbers, which the kernel gives all namespaces alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from ..host.limits import Limits, Rule
from ..machine import Machine
from .claims import NODE_POOL

MACHINE_MEMORY = "memory"

# Of every batch system the variable that names the job.
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "FLUX_JOB_ID")


def memory_pools(rules: Iterable[Rule]) -> dict[str, int]:
    """By pool, the bytes that were found there for all who draw on it."""
    return dict(_pools((rule, rule.memory_bytes) for rule in rules if rule.memory_bytes is not None))


def cpu_pools(limits: Limits) -> dict[str, int]:
    """By pool, how many CPUs a quota or a batch job gives all who draw on it, where it does not say which."""
    counts = ((rule, max(1, int(rule.cpu_count))) for rule in limits.rules if rule.cpu_count is not None)
    return {f"cpus of {pool}": count for pool, count in _pools(counts) if count < len(limits.cpus)}


def node_pools(machine: Machine, limits: Limits) -> tuple[dict[str, int], bool]:
    """By memory node that may be used, its bytes, and whether memory is bound to these: it comes from nowhere else."""
    there = [node for node in machine.numa_nodes if node.memory_bytes]
    may = machine.allowed_mems.bits
    for rule in limits.rules:
        may &= rule.nodes.bits if rule.nodes else may
    nodes = [node for node in there if may >> node.node_id & 1]
    return {f"{NODE_POOL}{node.node_id}": node.memory_bytes for node in nodes}, len(nodes) < len(there)


def _pools(amounts: Iterator[tuple[Rule, int]]) -> Iterator[tuple[str, int]]:
    found: dict[str, int] = {}
    for rule, amount in amounts:
        pool = _name(rule, os.environ)
        found[pool] = min(amount, found.get(pool, amount))
    yield from found.items()


def _name(rule: Rule, environ: Mapping[str, str]) -> str:
    if rule.rule in ("cgroup memory", "quota"):
        try:
            group = os.stat(os.path.dirname(rule.source))  # noqa: PTH116, PTH120
            return f"cgroup {group.st_dev}:{group.st_ino}"
        except OSError:
            return f"cgroup {rule.source}"
    if rule.rule == "batch system":
        job = next((environ[name] for name in _JOBS if environ.get(name)), "")
        return f"job {job}" if job.isprintable() else "job"
    return MACHINE_MEMORY if rule.rule == "available memory" else rule.rule
