"""The machine as values: what PUs, cores, caches and memory nodes there are; asks no operating system."""

from .model import Cache, Cluster, Core, CpuKind, Die, Distances, LlcDomain, Machine, NumaNode, Package, Region

__all__ = [
    "Cache",
    "Cluster",
    "Core",
    "CpuKind",
    "Die",
    "Distances",
    "LlcDomain",
    "Machine",
    "NumaNode",
    "Package",
    "Region",
]
