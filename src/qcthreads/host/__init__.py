"""Asks and tells the operating system: topology, limits, affinity, memory policy; nobody else does; decides nothing."""

from .build_info import native_status
from .interface import Binding, Capabilities, Host, MemoryBinding, MemoryKind, MemoryPolicy
from .select import get_host, read_machine

__all__ = [
    "Binding",
    "Capabilities",
    "Host",
    "MemoryBinding",
    "MemoryKind",
    "MemoryPolicy",
    "get_host",
    "native_status",
    "read_machine",
]
