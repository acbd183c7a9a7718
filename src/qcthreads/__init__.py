"""The names a user imports, each loaded on first use; this module imports nothing but ``importlib``, ever."""

import importlib

__version__ = "0.1.0"

_HOME = {
    "QCThreadManager": "manager",
    "QCThreadConfig": "manager",
    "ThreadAllocation": "manager",
    "ThreadUsageStats": "monitoring.statistics",
    "ThreadSampler": "monitoring.sampler",
    "HybridParallelConfig": "manybody.config",
    "ParallelConfig": "manybody.config",
    "ParallelManyBodyExecutor": "manybody.executor",
    "QCProgramThreading": "programs.threading",
    "CpuSet": "cpuset",
    "NodeSet": "cpuset",
    "Machine": "machine.model",
    "read_machine": "host",
    "read_limits": "host.limits",
    "lease": "leases",
    "lease_async": "leases",
    "open_store": "execution.store",
    "qcengine_lease": "integrations.qcengine",
    "Task": "planning.model",
    "plan": "planning",
    "lower_bound": "planning.bounds",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name):  # type: ignore[no-untyped-def]
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__():  # type: ignore[no-untyped-def]
    return sorted(__all__)
