"""Asks and tells the operating system: topology, limits, affinity, memory policy; nobody else does; decides nothing.

Names load on first use, so that whoever only looks at a recorded machine pays for no back end, and nobody for all.
"""

import importlib

TYPE_CHECKING = False  # as type checkers know it; importing typing costs more than all the rest here
if TYPE_CHECKING:
    from .build_info import native_status
    from .busy import BusyWatch, Load, PinnedProcess
    from .gpus import Gpu, read_gpus, visibility
    from .interface import Binding, Capabilities, Host, MemoryBinding, MemoryKind, MemoryPolicy
    from .select import get_host, read_machine

_HOME = {
    "Binding": "interface",
    "BusyWatch": "busy",
    "Capabilities": "interface",
    "Gpu": "gpus",
    "Host": "interface",
    "Load": "busy",
    "MemoryBinding": "interface",
    "MemoryKind": "interface",
    "MemoryPolicy": "interface",
    "PinnedProcess": "busy",
    "get_host": "select",
    "native_status": "build_info",
    "read_gpus": "gpus",
    "read_machine": "select",
    "visibility": "gpus",
}

__all__ = [
    "Binding",
    "BusyWatch",
    "Capabilities",
    "Gpu",
    "Host",
    "Load",
    "MemoryBinding",
    "MemoryKind",
    "MemoryPolicy",
    "PinnedProcess",
    "get_host",
    "native_status",
    "read_gpus",
    "read_machine",
    "visibility",
]


def __getattr__(name: str) -> object:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
