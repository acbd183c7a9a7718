"""Memory policies over both back ends, against /proc/self/numa_maps; machines with several nodes are in tests/vm."""

import mmap
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qcthreads.cpuset import NodeSet
from qcthreads.errors import BindingNotEnforcedError, BindingNotSupportedError, InputError
from qcthreads.host import MemoryPolicy, get_host
from qcthreads.host.darwin import DarwinHost
from qcthreads.host.windows import WindowsHost

PAGE = mmap.PAGESIZE
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="these back ends are Linux's")


@pytest.fixture
def permitted(host):
    """The back end where memory policies can be set; with the default again afterwards."""
    if not host.capabilities.bind_memory:
        pytest.skip("this system forbids memory policies, or its kernel has none")
    yield host
    host.set_memory_policy("default")


def here() -> NodeSet:
    """The nodes that the kernel lets this process take memory from."""
    status = Path("/proc/thread-self/status").read_text()
    return NodeSet.parse(re.search(r"^Mems_allowed_list:\s*(\S*)", status, re.MULTILINE).group(1))


def numa_maps(address: int) -> str:
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        if int(line.split()[0], 16) == address:
            return line
    raise AssertionError(f"{address:x} is no mapping")


def address_of(buffer) -> int:
    return np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]


@LINUX
@pytest.mark.parametrize("kind", ["bind", "preferred", "preferred-many", "interleave"])
def test_a_policy_is_set_read_back_and_inherited(permitted, kind):
    one = NodeSet([here().first])
    try:
        binding = permitted.set_memory_policy(kind, one)
    except BindingNotEnforcedError:
        assert kind == "preferred-many"  # a kernel before 5.15
        return
    assert binding.got == binding.asked == permitted.get_memory_policy() == MemoryPolicy(kind, one)
    assert not binding.lost
    shown = {"preferred": "prefer", "preferred-many": "prefer (many)"}.get(kind, kind)
    fresh = mmap.mmap(-1, 4 * PAGE)
    assert f"{shown}:{one}" in numa_maps(address_of(fresh)).replace("=static", "")
    code = "from qcthreads.host import get_host; print(get_host().get_memory_policy())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == f"{kind} {one}"


@LINUX
@pytest.mark.parametrize("kind", ["local", "default"])
def test_policies_without_nodes(permitted, kind):
    assert permitted.set_memory_policy(kind).got == permitted.get_memory_policy() == MemoryPolicy(kind)


@LINUX
def test_says_which_nodes_the_kernel_dropped(permitted):
    one, absent = NodeSet([here().first]), NodeSet([900])
    binding = permitted.set_memory_policy("bind", one | absent)
    assert (binding.got.nodes, binding.lost) == (one, absent)
    with pytest.raises(BindingNotEnforcedError, match="left out nodes 900"):
        binding.enforced()


@LINUX
def test_nodes_that_cannot_be_are_not_enforced(permitted):
    for nodes in (NodeSet([900]), NodeSet([100_000])):
        with pytest.raises(BindingNotEnforcedError, match=str(nodes)):
            permitted.set_memory_policy("bind", nodes)
        with pytest.raises(BindingNotEnforcedError, match=str(nodes)):
            permitted.bind_buffer(bytearray(PAGE), "bind", nodes)
    assert permitted.get_memory_policy() == MemoryPolicy("default")


@LINUX
def test_contradictions_are_refused(host):
    for kind, nodes in (("bind", ""), ("preferred", "0-1"), ("local", "0"), ("default", "0"), ("scatter", "0")):
        with pytest.raises(InputError, match=kind):
            host.set_memory_policy(kind, NodeSet.parse(nodes))
    for buffer in (b"", np.zeros((4, 4))[:, ::2]):
        with pytest.raises(InputError, match="contiguous"):
            host.page_nodes(buffer)


@LINUX
def test_a_buffer_has_a_policy_of_its_own_and_its_pages_are_found(permitted):
    one = NodeSet([here().first])
    buffer = mmap.mmap(-1, 1300 * PAGE)
    buffer.madvise(mmap.MADV_NOHUGEPAGE)
    assert set(permitted.page_nodes(buffer)) == {None}
    assert permitted.bind_buffer(buffer, "bind", one).got == MemoryPolicy("bind", one)
    assert numa_maps(address_of(buffer)).split()[1] == f"bind:{one}"
    assert permitted.get_memory_policy() == MemoryPolicy("default")
    for page in (0, 7, 1299):
        buffer[page * PAGE] = 1
    found = permitted.page_nodes(buffer)
    assert len(found) == 1300
    assert {page for page, node in enumerate(found) if node is not None} == {0, 7, 1299}
    assert {found[page] for page in (0, 7, 1299)} == set(one)
    assert re.search(rf" N{one}=3\b", numa_maps(address_of(buffer)))


@LINUX
def test_arrays_and_read_only_buffers_are_asked_about(permitted):
    array = np.ones((1000, 1000))
    start = array.__array_interface__["data"][0]
    pages = (start + array.nbytes - 1) // PAGE - start // PAGE + 1
    for buffer in (array, memoryview(array).toreadonly(), array.view("u1").tobytes()):
        assert set(permitted.page_nodes(buffer)) <= set(here())
    assert len(permitted.page_nodes(array)) == pages


@LINUX
def test_both_back_ends_agree(monkeypatch, host):
    monkeypatch.setenv("QCTHREADS_BACKEND", "portable")
    assert host.capabilities.bind_memory == get_host().capabilities.bind_memory


@pytest.mark.parametrize("host_class", [DarwinHost, WindowsHost])
def test_platforms_without_memory_policies_say_so(host_class):
    elsewhere = host_class()
    assert not elsewhere.capabilities.bind_memory
    for ask in (
        elsewhere.get_memory_policy,
        lambda: elsewhere.set_memory_policy("bind", NodeSet([0])),
        lambda: elsewhere.bind_buffer(bytearray(8), "bind", NodeSet([0])),
        lambda: elsewhere.page_nodes(b"8 bytes!"),
    ):
        with pytest.raises(BindingNotSupportedError, match="no memory policies"):
            ask()
