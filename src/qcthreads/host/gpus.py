"""The GPUs of this machine that this process may use, and how a child is shown some of them; opens no GPU, ever.

Opening ``/dev/nvidiaN`` may wake a card for seconds, so everything here comes from files that only describe:

- NVIDIA: ``/dev/nvidiaN`` and the driver's ``/proc/driver/nvidia/gpus/*/information``.
- AMD: ``/dev/kfd``, ``/dev/dri/renderDN`` and ``/sys/class/kfd/kfd/topology/nodes`` (the kernel's kfd_topology.c), in
  the order of ROCr.
- What batch systems and containers withhold: access(2) asks the device cgroup too (the kernel's fs/namei.c).
- Variables: "CUDA Environment Variables" in NVIDIA's CUDA Programming Guide, "GPU isolation techniques" in AMD's ROCm
  documentation; where that is silent, amd_filter_device.h of ROCr and rocdevice.cpp of HIP.

Intel's GPUs are left out: the numbers that Level Zero's ZE_AFFINITY_MASK takes are told by no file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from ..cpuset import CpuSet
from ..light import dataclass
from .cpusets import parsed
from .sysfs import names_in, numbered, read_number, read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

_NVIDIA = "proc/driver/nvidia/gpus"
_PCI = "sys/bus/pci/devices"
_KFD = "sys/class/kfd/kfd/topology/nodes"
_DRM = "sys/class/drm"

# Hides all from CUDA, ROCr and HIP alike: a number that no GPU has. An empty list would not do: HIP takes it for none.
_HIDDEN = "-1"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as a lease counts it and as its maker's variables name it."""

    index: int
    """The N of its device file, ``/dev/nvidiaN`` or ``/dev/dri/renderDN`` (AMD, from 128): alike in every container."""
    vendor: Literal["nvidia", "amd"]
    ordinal: int
    """Its place among its maker's GPUs that this process may open, which is how the variables count; by PCI address."""
    model: str
    """As the driver calls it; empty where it does not say."""
    uuid: str | None
    """``GPU-...``; ``None`` where the driver does not tell: before the first use, and old cards."""
    numa_node: int | None
    """The memory node it is attached to; ``None`` where the firmware does not tell."""
    cpus: CpuSet
    """The PUs near it; empty where nothing tells."""


def read_gpus(
    environ: Mapping[str, str] | None = None, sysroot: str | os.PathLike[str] | None = None
) -> tuple[Gpu, ...]:
    """The GPUs of this machine that this process may use, NVIDIA's before AMD's, in the order of the variables' lists.

    Parameters
    ----------
    environ
        Where ``CUDA_VISIBLE_DEVICES``, ``ROCR_VISIBLE_DEVICES``, ``HIP_VISIBLE_DEVICES`` and ``NVIDIA_VISIBLE_DEVICES``
        are looked for; ``None`` is this process's environment; none with ``sysroot``.
    sysroot
        A recorded tree with ``dev/``, ``proc/`` and ``sys/``. ``None`` is this machine.

    Returns
    -------
    tuple of Gpu
        Empty where there are none, none may be opened, or the platform tells of none in files (macOS, Windows).
    """
    root = "/" if sysroot is None else os.fspath(sysroot)
    if environ is None:
        environ = os.environ if sysroot is None else {}
    return (*_visible_nvidia(_nvidia(root), environ), *_visible_amd(_amd(root), environ))


def visibility(gpus: Iterable[Gpu]) -> dict[str, str]:
    """The environment variables that show a child these GPUs and no others; all GPUs are hidden where there are none.

    By UUID where all have one, which means the same whatever the child has inherited or a program sets besides. HIP
    counts what ROCr leaves, so that an inherited ``HIP_VISIBLE_DEVICES`` must be replaced too.
    """
    of_nvidia: list[Gpu] = []
    of_amd: list[Gpu] = []
    for gpu in gpus:
        (of_nvidia if gpu.vendor == "nvidia" else of_amd).append(gpu)
    shown = {
        "CUDA_VISIBLE_DEVICES": _list_of(of_nvidia),
        "ROCR_VISIBLE_DEVICES": _list_of(of_amd),
        "HIP_VISIBLE_DEVICES": ",".join(map(str, range(len(of_amd)))) or _HIDDEN,
    }
    if any(gpu.uuid is None for gpu in of_nvidia):
        shown["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as the ordinals count
    return shown


def _list_of(gpus: list[Gpu]) -> str:
    uuids = [gpu.uuid for gpu in gpus if gpu.uuid]
    return ",".join(uuids if len(uuids) == len(gpus) else [str(gpu.ordinal) for gpu in gpus]) or _HIDDEN


def _nvidia(root: str) -> list[Gpu]:
    """In the order of their PCI addresses, as nvidia-smi has them, and CUDA with CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    facts = _nvidia_facts(root)
    minors = [minor for minor in numbered(root, "dev", "nvidia") if _may_open(root, f"dev/nvidia{minor}")]
    cards = [(minor, facts.get(minor, {})) for minor in minors]
    cards = [(minor, told) for minor, told in cards if not _is_excluded(told)]
    cards.sort(key=lambda card: (_as_numbers(card[1].get("address", "")), card[0]))
    return [_nvidia_gpu(root, minor, ordinal, told) for ordinal, (minor, told) in enumerate(cards)]


def _nvidia_facts(root: str) -> dict[int, dict[str, str]]:
    """The lines of ``information`` and the PCI address, by the N of /dev/nvidiaN."""
    facts = {}
    for address in names_in(root, _NVIDIA):
        text = read_text(root, f"{_NVIDIA}/{address}/information") or ""
        told = dict(re.findall(r"^([\w ]+):[ \t]*(.*?)[ \t]*$", text, re.MULTILINE))
        minor = told.get("Device Minor", "")
        if re.fullmatch("[0-9]{1,9}", minor):
            facts[int(minor)] = {**told, "address": address}
    return facts


def _nvidia_gpu(root: str, minor: int, ordinal: int, told: Mapping[str, str]) -> Gpu:
    """A card whose device file alone is there has neither model nor place."""
    uuid = told.get("GPU UUID", "")
    known = re.fullmatch("GPU-[0-9a-f-]+", uuid)  # before the first use it is GPU-????????-????-...
    near = _near(root, f"{_PCI}/{told['address']}") if told else (None, CpuSet())
    return Gpu(minor, "nvidia", ordinal, told.get("Model", ""), uuid if known else None, *near)


def _is_excluded(told: Mapping[str, str]) -> bool:
    """Taken out of use by the driver's option NVreg_ExcludedGpus, or by the name that it had before."""
    return "Yes" in (told.get("GPU Excluded"), told.get("Blacklisted"))


def _as_numbers(address: str) -> tuple[int, ...]:
    return tuple(int(part, 16) for part in re.findall("[0-9a-fA-F]{1,8}", address))


def _amd(root: str) -> list[Gpu]:
    """Those nodes of the driver's topology that compute and whose render node may be opened, in the order of ROCr."""
    gpus: list[Gpu] = []
    if not _may_open(root, "dev/kfd"):
        return gpus
    for node in sorted(numbered(root, _KFD, "")):
        text = read_text(root, f"{_KFD}/{node}/properties") or ""  # refused where the device cgroup withholds the GPU
        told = {name: int(value) for name, value in re.findall(r"^(\w+) ([0-9]{1,20})$", text, re.MULTILINE)}
        minor = told.get("drm_render_minor", 0)
        if told.get("simd_count") and _may_open(root, f"dev/dri/renderD{minor}"):
            model, number = read_text(root, f"{_KFD}/{node}/name") or "", told.get("unique_id")
            uuid = f"GPU-{number:016x}" if number else None
            gpus.append(Gpu(minor, "amd", len(gpus), model, uuid, *_near(root, f"{_DRM}/renderD{minor}/device")))
    return gpus


def _may_open(root: str, path: str) -> bool:
    return os.access(os.path.join(root, path), os.R_OK | os.W_OK)  # noqa: PTH118 - as everywhere that root is text


def _near(root: str, device: str) -> tuple[int | None, CpuSet]:
    """The memory node and the CPUs next to a PCI device; -1 is the kernel's word for an unknown node."""
    node = read_number(root, f"{device}/numa_node")
    cpus = parsed(CpuSet.parse, read_text(root, f"{device}/local_cpulist") or "")
    return node if node is not None and node >= 0 else None, cpus or CpuSet()


def _visible_nvidia(gpus: list[Gpu], environ: Mapping[str, str]) -> list[Gpu]:
    """Container runtimes have acted on NVIDIA_VISIBLE_DEVICES already: its numbers are the host's.

    ``none`` still says that no GPU is meant. ``void`` does not: it is what CDI sets beside the GPUs that it brings in.
    """
    if environ.get("NVIDIA_VISIBLE_DEVICES") == "none":
        return []
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    visible = _listed(listed, gpus)
    mixed = len({gpu.model for gpu in gpus}) > 1 and len(visible) < len(gpus)
    if mixed and re.search("(^|,) *[0-9]", listed or "") and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        import logging

        logging.getLogger("qcthreads.host").warning(
            "CUDA_VISIBLE_DEVICES=%s is read as nvidia-smi counts; CUDA itself counts GPUs of several models by speed: "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or list UUIDs, to make sure that the same are meant",
            listed,
        )
    return visible


def _visible_amd(gpus: list[Gpu], environ: Mapping[str, str]) -> list[Gpu]:
    """HIP's list counts what ROCr's leaves; it may have CUDA's name instead, and an empty one is none."""
    left = _listed(environ.get("ROCR_VISIBLE_DEVICES"), gpus)
    return _listed(environ.get("HIP_VISIBLE_DEVICES") or environ.get("CUDA_VISIBLE_DEVICES") or None, left)


def _listed(text: str | None, gpus: list[Gpu]) -> list[Gpu]:
    """Those that ``text`` lists, in its order, before the first entry that names none, several, or one again."""
    if text is None:
        return gpus
    visible: list[Gpu] = []
    for entry in text.split(","):
        meant = [gpu for place, gpu in enumerate(gpus) if _means(entry.strip(), place, gpu)]
        if len(meant) != 1 or meant[0] in visible:
            break
        visible += meant
    return visible


def _means(entry: str, place: int, gpu: Gpu) -> bool:
    """A number or the beginning of a UUID. ``MIG-...`` means a part of a GPU, which no file tells: none is meant."""
    if re.fullmatch("[0-9]{1,9}", entry):
        return int(entry) == place
    return len(entry) > len("GPU-") and (gpu.uuid or "").lower().startswith(entry.lower())
