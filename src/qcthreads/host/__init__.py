"""Asks and tells the operating system: topology, limits, affinity; the only package that does, and it decides nothing."""

from .select import get_host, read_machine

__all__ = ["get_host", "read_machine"]
