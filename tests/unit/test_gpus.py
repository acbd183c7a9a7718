"""GPUs: made-up trees of two drivers, and the variables as the makers of CUDA, ROCr and HIP document them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qcthreads.host import Gpu, read_gpus, visibility

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="PCI addresses are no names of files on Windows")

# As the driver 550 writes it; the cards' addresses are not in the order of their minors.
INFORMATION = """Model: \t\t {model}
IRQ:   \t\t 63
GPU UUID: \t {uuid}
Video BIOS: \t 86.02.40.00.48
Bus Type: \t PCIe
DMA Size: \t 47 bits
Bus Location: \t {address}
Device Minor: \t {minor}
GPU Excluded:\t {excluded}
"""
CARDS = {  # address: minor, UUID
    "0000:17:00.0": (1, "GPU-e953c3c5-dba7-029e-ce44-7b51417131df"),
    "0000:65:00.0": (0, "GPU-4ce175fe-a313-4c4a-d620-560e96e8ef2e"),
    "0000:e3:00.0": (2, "GPU-4ce175ff-0000-4c4a-d620-560e96e8ef2e"),
    "10000:01:00.0": (3, "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"),
}
# Of amdkfd's properties those that are read, and some that are not: an MI200's two dies behind two sockets.
PROPERTIES = (
    "cpu_cores_count {cores}\nsimd_count {simds}\nlocation_id 49664\ndrm_render_minor {minor}\nunique_id {unique}\n"
)


def write(root, name, text=""):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def nvidia(root, **changed):
    for address, (minor, uuid) in CARDS.items():
        facts = {"model": "NVIDIA A100", "uuid": uuid, "minor": minor, "address": address, "excluded": "No", **changed}
        write(root, f"proc/driver/nvidia/gpus/{address}/information", INFORMATION.format(**facts))
        write(root, f"dev/nvidia{minor}")
        write(root, f"sys/bus/pci/devices/{address}/numa_node", f"{minor // 2}\n")
        write(root, f"sys/bus/pci/devices/{address}/local_cpulist", f"{32 * (minor // 2)}-{32 * (minor // 2) + 31}\n")
    for name in ("nvidiactl", "nvidia-uvm", "nvidia-modeset", "nvidia-caps/nvidia-cap1"):
        write(root, f"dev/{name}")
    return root


def amd(root, unique=(0x4B2C1A9F8D3E6F7A, 0xBEEF)):
    nodes = "sys/class/kfd/kfd/topology/nodes"
    write(root, "dev/kfd")
    for node in range(2):
        write(root, f"{nodes}/{node}/properties", PROPERTIES.format(cores=64, simds=0, minor=0, unique=0))
    for place, number in enumerate(unique):
        node, minor = (2, 10)[place], 128 + place
        write(root, f"{nodes}/{node}/properties", PROPERTIES.format(cores=0, simds=416, minor=minor, unique=number))
        write(root, f"{nodes}/{node}/name", "aldebaran\n")
        write(root, f"dev/dri/renderD{minor}")
        write(root, f"sys/class/drm/renderD{minor}/device/numa_node", "-1\n" if place else "3\n")
        write(root, f"sys/class/drm/renderD{minor}/device/local_cpulist", "\n" if place else "48-63\n")
    return root


def minors(root, **environ):
    return [gpu.index for gpu in read_gpus(environ, root)]


def test_nvidia_cards_count_by_address_and_are_named_by_minor(tmp_path):
    gpus = read_gpus(sysroot=nvidia(tmp_path))
    assert [(gpu.ordinal, gpu.index, gpu.uuid) for gpu in gpus] == [
        (place, minor, uuid) for place, (minor, uuid) in enumerate(CARDS.values())
    ]
    assert [(gpu.vendor, gpu.model) for gpu in gpus] == [("nvidia", "NVIDIA A100")] * 4
    assert [(gpu.index, gpu.numa_node, str(gpu.cpus)) for gpu in gpus][1:3] == [(0, 0, "0-31"), (2, 1, "32-63")]


def test_amd_nodes_that_compute_count_by_number(tmp_path):
    first, second = read_gpus(sysroot=amd(tmp_path))
    assert (first.index, second.index) == (128, 129)
    assert (first.vendor, first.model, first.ordinal, first.uuid) == ("amd", "aldebaran", 0, "GPU-4b2c1a9f8d3e6f7a")
    assert (first.numa_node, str(first.cpus)) == (3, "48-63")
    assert (second.ordinal, second.uuid) == (1, "GPU-000000000000beef")
    assert (second.numa_node, str(second.cpus)) == (None, "")


@pytest.mark.parametrize(
    ("listed", "left"),
    [
        (None, [1, 0, 2, 3]),
        ("", []),
        ("-1", []),
        ("2,1", [2, 0]),  # these three of the CUDA Programming Guide
        ("0,2,-1,1", [1, 2]),
        ("GPU-8932f937", [3]),
        (" 3 , GPU-E953C3C5", [3, 1]),
        ("0,GPU-4ce175f,1", [1]),  # the beginning of two
        ("0,GPU-,1", [1]),
        ("0,GPU-e953c3c5-dba7-029e-ce44-7b51417131df0,1", [1]),
        ("1,1", [0]),
        ("4,0", []),
        ("1,two", [0]),
        ("1;2", []),
        ("9" * 5000, []),
        ("MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0", []),
        ("NoDevFiles", []),  # Slurm's for a step without any
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(tmp_path, listed, left):
    environ = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert minors(nvidia(tmp_path), **environ) == left


@pytest.mark.parametrize(
    ("environ", "left"),
    [
        ({"ROCR_VISIBLE_DEVICES": ""}, []),  # A1 to A3 of amd_filter_device.h
        ({"ROCR_VISIBLE_DEVICES": "-1"}, []),
        ({"ROCR_VISIBLE_DEVICES": "GPU-XX"}, []),
        ({"ROCR_VISIBLE_DEVICES": "1,GPU-4B2C"}, [129, 128]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, [129]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}, []),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        ({"HIP_VISIBLE_DEVICES": ""}, [128, 129]),  # ROCm/hip#3001
        ({"CUDA_VISIBLE_DEVICES": "1"}, [129]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, [128]),
    ],
)
def test_rocr_chooses_first_and_hip_of_what_is_left(tmp_path, environ, left):
    assert minors(amd(tmp_path), **environ) == left


def test_container_runtimes_have_acted_already(tmp_path):
    nvidia(tmp_path)
    assert minors(tmp_path, NVIDIA_VISIBLE_DEVICES="none") == []
    assert minors(tmp_path, NVIDIA_VISIBLE_DEVICES="void") == [1, 0, 2, 3], "CDI sets it beside the GPUs"
    assert minors(tmp_path, NVIDIA_VISIBLE_DEVICES="7") == [1, 0, 2, 3], "a number of the host's"


def test_what_is_not_in_the_container_does_not_count(tmp_path):
    nvidia(tmp_path)
    amd(tmp_path)
    (tmp_path / "dev/nvidia1").unlink()
    (tmp_path / "dev/dri/renderD128").unlink()
    assert [(gpu.index, gpu.ordinal) for gpu in read_gpus({}, tmp_path)] == [(0, 0), (2, 1), (3, 2), (129, 0)]
    assert minors(tmp_path, CUDA_VISIBLE_DEVICES="0", HIP_VISIBLE_DEVICES="0") == [0, 129]
    (tmp_path / "dev/kfd").unlink()
    assert minors(tmp_path) == [0, 2, 3]


def test_what_may_not_be_opened_does_not_count(tmp_path):
    """As in a batch job whose GPUs others have: asked as a user whom the files do not admit."""
    root = nvidia(tmp_path / "machine")
    code = "import os, sys; sys.path[:0] = eval(sys.argv[1]); from qcthreads.host import read_gpus\n"
    code += "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    code += "print([gpu.index for gpu in read_gpus({}, '.')])"
    for minor, mode in ((0, 0o000), (1, 0o444), (2, 0o666), (3, 0o666)):
        (root / f"dev/nvidia{minor}").chmod(mode)
    command = [sys.executable, "-c", code, repr(sys.path)]
    assert subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout == "[2, 3]\n"


def test_cards_that_the_driver_excludes_do_not_count(tmp_path):
    assert minors(nvidia(tmp_path, excluded="Yes")) == []


def test_device_files_alone_are_enough(tmp_path):
    for minor in (10, 9):
        write(tmp_path, f"dev/nvidia{minor}")
    nine, ten = read_gpus({}, tmp_path)
    assert nine == Gpu(9, "nvidia", 0, "", None, None, nine.cpus)
    assert not nine.cpus
    assert visibility([ten]) == {
        "CUDA_VISIBLE_DEVICES": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "ROCR_VISIBLE_DEVICES": "-1",
        "HIP_VISIBLE_DEVICES": "-1",
    }


def test_a_uuid_that_the_driver_does_not_know_yet_is_none(tmp_path):
    gpus = read_gpus({}, nvidia(tmp_path, uuid="GPU-????????-????-????-????-????????????"))
    assert [gpu.uuid for gpu in gpus] == [None] * 4
    assert visibility(gpus[2:])["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_children_are_shown_their_gpus_and_no_others(tmp_path):
    nvidia(tmp_path)
    gpus = read_gpus({}, amd(tmp_path, unique=(0xBEEF, 0)))
    assert visibility([]) == dict.fromkeys(
        ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), "-1"
    )
    assert visibility([gpus[3], gpus[4]]) == {
        "CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
        "ROCR_VISIBLE_DEVICES": "GPU-000000000000beef",
        "HIP_VISIBLE_DEVICES": "0",
    }
    assert visibility(gpus[4:])["ROCR_VISIBLE_DEVICES"] == "0,1", "an old card has no UUID"


@pytest.mark.parametrize("listed", [None, "3", "2,0", "GPU-8932f937"])
def test_what_a_child_is_shown_is_what_it_finds(tmp_path, listed):
    """Each single GPU and all of them, read back by a child that inherits nothing else and by one that inherits all."""
    inherited = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed, "HIP_VISIBLE_DEVICES": "1"}
    gpus = read_gpus(inherited, amd(nvidia(tmp_path)))
    for leased in ((), *((gpu,) for gpu in gpus), gpus):
        assert read_gpus(visibility(leased), tmp_path) == leased
        assert read_gpus(inherited | visibility(leased), tmp_path) == leased


def test_numbers_of_unlike_cards_are_said_to_be_unsure(tmp_path, caplog):
    nvidia(tmp_path)
    name = "proc/driver/nvidia/gpus/0000:17:00.0/information"
    write(tmp_path, name, (tmp_path / name).read_text().replace("A100", "T4"))
    for sure in ({}, {"CUDA_VISIBLE_DEVICES": "GPU-4ce175fe"}, {"CUDA_VISIBLE_DEVICES": "3,2,1,0"}):
        read_gpus(sure, tmp_path)
    read_gpus({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, tmp_path)
    assert not caplog.records
    assert minors(tmp_path, CUDA_VISIBLE_DEVICES="0") == [1]
    assert "set CUDA_DEVICE_ORDER=PCI_BUS_ID" in caplog.text


def test_nonsense_describes_no_gpu(tmp_path):
    amd(tmp_path)
    nvidia(tmp_path, minor="x" * 70000)
    for node in (2, 10):
        write(tmp_path, f"sys/class/kfd/kfd/topology/nodes/{node}/properties", "simd_count many\ndrm_render_minor \0\n")
    assert [gpu.uuid for gpu in read_gpus({}, tmp_path)] == [None] * 4, "device files without a description"
    assert read_gpus({}, tmp_path / "nothing") == ()


def test_this_machine_has_no_other_gpus_than_device_files():
    names = [path.name for path in (*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev/dri").glob("renderD*"))]
    assert {gpu.index for gpu in read_gpus()} <= {int(re.sub("[^0-9]", "", name)) for name in names}
