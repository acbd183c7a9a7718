"""Asks and tells the operating system: topology, limits, affinity; the only package that does; decides nothing."""

from .build_info import native_status
from .interface import Binding, Capabilities, Host
from .select import get_host, read_machine

__all__ = ["Binding", "Capabilities", "Host", "get_host", "native_status", "read_machine"]
