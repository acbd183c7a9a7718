"""Counters of memory traffic: the refusal of the real system, the real perf_event_open, and made-up trees of files.

No machine at hand has resctrl or counters of memory controllers; what the kernel's documentation says of their files is
written by hand.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.host import get_host
from qcthreads.host.memory_traffic import NotMeasurableError, open_traffic_counter
from qcthreads.host.uncore import UncoreCounter
from qcthreads.monitoring.bandwidth import BandwidthWatch
from qcthreads.monitoring.run_monitor import RunMonitor
from qcthreads.monitoring.statistics import Grant

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these counters are Linux's")

RESCTRL = "sys/fs/resctrl"
DEVICES = "sys/bus/event_source/devices"


def count(group: Path, *values: object) -> None:
    """What a group's domains have counted, as the kernel writes it."""
    for number, value in enumerate(values):
        domain = group / f"mon_data/mon_L3_{number:02}"
        domain.mkdir(parents=True, exist_ok=True)
        (domain / "mbm_total_bytes").write_text(f"{value}\n")


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """A tree with a resctrl of two domains, in which no group may be made."""
    resctrl = tmp_path / RESCTRL
    (resctrl / "info/L3_MON").mkdir(parents=True)
    (resctrl / "info/L3_MON/mon_features").write_text("llc_occupancy\nmbm_total_bytes\nmbm_local_bytes\n")
    count(resctrl, 1000, 2000)
    return tmp_path


@pytest.fixture
def made_up_kernel(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, with a directory of groups in which a new one has files, as the kernel would see to."""
    (made_up / RESCTRL / "mon_groups").mkdir()
    mkdir = Path.mkdir

    def make(path: Path, *arguments: int, **options: bool) -> None:
        mkdir(path, *arguments, **options)
        if path.parent.name == "mon_groups":
            count(path, 0, 0)
            (path / "tasks").touch()

    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(Path, "rmdir", shutil.rmtree)
    return made_up


def test_this_system_counts_or_says_why_not() -> None:
    resctrl, controllers = Path("/", RESCTRL), list(Path("/", DEVICES).glob("uncore_imc*"))
    try:
        counter = open_traffic_counter()
    except NotMeasurableError as error:
        why = str(error)
        assert ("resctrl is not mounted" in why) == (resctrl.is_dir() and not (resctrl / "info").exists())
        assert ("no resctrl" in why) == (not resctrl.is_dir())
        assert ("no counters of memory controllers" in why) == (not controllers)
        used = BandwidthWatch().report()
        assert (used.bytes_per_s, used.share, used.reason) == (None, None, why)
    else:
        assert controllers or (resctrl / "info").exists()
        counter.close()


def test_monitor_tells_it() -> None:
    command = [sys.executable, "-m", "qcthreads", "monitor", "--json-file", "/dev/stderr", "--", "true"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "qcthreads monitor: memory bandwidth: " in told
    used = json.loads(told[told.index("\n{") :])["memory_bandwidth"]
    assert used["scope"] in ("processes", "node", "")
    assert (used["bytes_per_s"] is None) == (not used["scope"])


def test_a_run_tells_it_until_its_end_and_after_it() -> None:
    monitor = RunMonitor()
    assert monitor.bandwidth.reason == "it was not watched"
    with subprocess.Popen(["sleep", "60"]) as child:
        monitor.begin(child.pid, Grant(worker_id=child.pid, threads_asked=1, leased=CpuSet([0])))
        during = monitor.bandwidth
        child.kill()
    monitor.close()
    expected = BandwidthWatch().report()
    for told in (during, monitor.bandwidth):
        assert (told.source, told.scope, told.reason) == (expected.source, expected.scope, expected.reason)


def test_made_up_resctrl_is_read_as_a_whole(made_up: Path) -> None:
    """With the groups that share caches out, which count apart, and without those that monitor, which count within."""
    count(made_up / RESCTRL / "low_priority", 500, 0)
    count(made_up / RESCTRL / "mon_groups/other", 77, 77)
    (made_up / RESCTRL / "mon_groups").chmod(0o500)
    counter = open_traffic_counter(str(made_up), group=False)
    assert (counter.scope, counter.source, counter.read_bytes()) == ("node", "resctrl", 3500)


def test_made_up_resctrl_gives_a_group_to_what_is_watched(made_up_kernel: Path) -> None:
    groups = made_up_kernel / RESCTRL / "mon_groups"
    watch = BandwidthWatch(str(made_up_kernel))
    (group,) = groups.iterdir()
    assert group.name.startswith(f"qcthreads-{os.getpid()}-")
    with subprocess.Popen(["sleep", "60"]) as child:
        watch.watch(child.pid)
        assert (group / "tasks").read_text() == f"{child.pid}\n"  # the last that was written
        child.kill()
    count(made_up_kernel / RESCTRL, 10**12, 10**12)  # by others
    before_s = time.monotonic()
    first = watch.report()
    count(group, 3 * 10**9, 10**9)
    time.sleep(0.05)
    used = watch.report()
    longest_s = time.monotonic() - before_s
    assert first.bytes_per_s == 0.0
    assert used.bytes_per_s is not None
    assert 4e9 / longest_s <= used.bytes_per_s <= 4e9 / 0.05
    assert (used.scope, used.source) == ("processes", "resctrl")
    watch.close()
    assert not list(groups.iterdir())


def test_made_up_groups_do_not_outlive_who_made_them(made_up_kernel: Path) -> None:
    groups = made_up_kernel / RESCTRL / "mon_groups"
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    for name in (f"qcthreads-{ended.pid}-1", f"qcthreads-{os.getppid()}-1", "other"):
        (groups / name).mkdir()
    watch = BandwidthWatch(str(made_up_kernel))
    assert len(list(groups.iterdir())) == 3
    assert not (groups / f"qcthreads-{ended.pid}-1").exists()
    del watch
    assert {group.name for group in groups.iterdir()} == {f"qcthreads-{os.getppid()}-1", "other"}


def test_made_up_group_that_a_thread_may_not_join_counts_the_node(made_up_kernel: Path) -> None:
    """A directory in the place of the file of tasks: whatever is written there is refused."""
    groups = made_up_kernel / RESCTRL / "mon_groups"
    watch = BandwidthWatch(str(made_up_kernel))
    (group,) = groups.iterdir()
    (group / "tasks").unlink()
    (group / "tasks").mkdir()
    watch.watch(os.getpid())
    count(made_up_kernel / RESCTRL, 10**9, 2000)
    used = watch.report()
    assert (used.scope, used.source) == ("node", "resctrl")
    assert used.bytes_per_s
    assert not list(groups.iterdir())


@pytest.mark.parametrize("word", ["Unavailable", "Error", "Unassigned", ""])
def test_made_up_counter_that_has_no_number(word: str, made_up: Path) -> None:
    watch = BandwidthWatch(str(made_up))
    count(made_up / RESCTRL, 10, word)
    assert watch.report().reason == f"the counter cannot be read: the kernel says '{word}'"
    with pytest.raises(NotMeasurableError, match=f"the kernel says '{word}'"):
        open_traffic_counter(str(made_up))


def test_made_up_group_that_the_hardware_follows_only_where_it_has_run(made_up_kernel: Path) -> None:
    """As AMD's CPUs do: until a thread has run there the kernel writes a word."""
    watch = BandwidthWatch(str(made_up_kernel))
    (group,) = (made_up_kernel / RESCTRL / "mon_groups").iterdir()
    count(group, "Unavailable", "Unavailable")
    assert watch.report().bytes_per_s == 0.0  # nothing is in it
    watch.watch(os.getpid())
    assert watch.report().reason == "the counter cannot be read: the kernel says 'Unavailable'"
    count(group, 10**9, "Unavailable")
    first = watch.report()
    assert first.bytes_per_s
    assert first.scope == "processes"
    count(group, "Unavailable", 10**9)  # it has gone to the other; what it did here stays counted
    assert watch.report().bytes_per_s


def test_made_up_group_without_a_counter_counts_the_node(made_up_kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where counters are assigned to groups, and none is left."""
    mkdir = Path.mkdir

    def make(path: Path, *arguments: int, **options: bool) -> None:
        mkdir(path, *arguments, **options)
        if path.parent.name == "mon_groups":
            count(path, "Unassigned", "Unassigned")

    monkeypatch.setattr(Path, "mkdir", make)
    assert open_traffic_counter(str(made_up_kernel)).scope == "node"
    assert not list((made_up_kernel / RESCTRL / "mon_groups").iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EBUSY])
def test_made_up_hardware_that_can_count_no_more_groups_counts_the_node(
    number: int, made_up_kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: int, **__: bool) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    counter = open_traffic_counter(str(made_up_kernel))
    assert (counter.scope, counter.read_bytes()) == ("node", 3000)


def test_made_up_cache_that_serves_two_nodes_counts_once(made_up: Path) -> None:
    """With sub-NUMA clusters the files of the nodes lie below that of their sum."""
    below = made_up / RESCTRL / "mon_data/mon_L3_00/mon_sub_L3_00"
    below.mkdir()
    (below / "mbm_total_bytes").write_text("600\n")
    assert open_traffic_counter(str(made_up), group=False).read_bytes() == 3000


def test_made_up_counter_that_was_configured_anew_is_read_again(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reading after that is a word, the next a number."""
    counter = open_traffic_counter(str(made_up), group=False)
    count(made_up / RESCTRL, "Unavailable", 2000)
    read_text = Path.read_text

    def read(path: Path, encoding: str | None = None) -> str:
        text = read_text(path, encoding)
        if text == "Unavailable\n":
            path.write_text("5000\n")
        return text

    monkeypatch.setattr(Path, "read_text", read)
    assert counter.read_bytes() == 7000


def test_made_up_resctrl_without_bandwidth(made_up: Path) -> None:
    features = made_up / RESCTRL / "info/L3_MON/mon_features"
    features.write_text("llc_occupancy\n")
    with pytest.raises(NotMeasurableError, match="monitors no memory bandwidth on this CPU"):
        open_traffic_counter(str(made_up))
    shutil.rmtree(made_up / RESCTRL / "info")
    with pytest.raises(NotMeasurableError, match="mount -t resctrl resctrl"):
        open_traffic_counter(str(made_up))


def made_up_controller(root: Path, **changes: str) -> None:
    """A memory controller in the files of an Intel driver; behind it is the kernel's own counter of page faults."""
    device = root / DEVICES / "uncore_imc_0"
    files = {
        "type": "1",  # PERF_TYPE_SOFTWARE
        "cpumask": str(get_host().get_affinity().first),
        "format/event": "config:0-7",
        "format/umask": "config:8-15",
        **{f"events/cas_count_{way}": "event=0x02" for way in ("read", "write")},  # PERF_COUNT_SW_PAGE_FAULTS
        **{f"events/cas_count_{way}.scale": "0.5" for way in ("read", "write")},
        **{f"events/cas_count_{way}.unit": "MiB" for way in ("read", "write")},
        **changes,
    }
    for name, text in files.items():
        path = device / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def test_made_up_controllers_are_counted_by_the_real_perf_event_open(tmp_path: Path) -> None:
    made_up_controller(tmp_path)
    pages, host = 500, get_host()
    before = host.get_affinity()
    try:
        counter = open_traffic_counter(str(tmp_path))
    except NotMeasurableError as error:  # what a user without rights gets
        pytest.skip(f"this system refuses: {error}")
    assert isinstance(counter, UncoreCounter)
    host.set_affinity(CpuSet([before.first]))
    try:
        began = counter.read_bytes()
        memory = mmap.mmap(-1, pages * mmap.PAGESIZE)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(pages):
            memory[page * mmap.PAGESIZE] = 1
        counted = counter.read_bytes() - began
    finally:
        host.set_affinity(before)
        counter.close()
    assert counted >= pages * 2 * 2**19  # by two counters, half a MiB each
    assert counter.scope == "node"


@pytest.mark.parametrize(
    "changes",
    [{"format/event": "config1:0-7"}, {"events/cas_count_write.unit": "barns"}, {"cpumask": "x"}, {"type": "?"}],
)
def test_made_up_controllers_that_are_not_understood_count_as_none(changes: dict[str, str], tmp_path: Path) -> None:
    made_up_controller(tmp_path, **changes)
    with pytest.raises(NotMeasurableError, match="no counters of memory controllers"):
        open_traffic_counter(str(tmp_path))


def test_made_up_controllers_of_unknown_type_are_refused_by_the_real_system(tmp_path: Path) -> None:
    made_up_controller(tmp_path, type="999999")
    with pytest.raises(NotMeasurableError, match="counters may not be read"):
        open_traffic_counter(str(tmp_path))
