"""``qcthreads plan``: the document, the picture, and what is said of input that is wrong."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from qcthreads.cli import main
from qcthreads.host.disks import file_system

SHARED = Path("/dev/shm")
TASKS = [
    {"id": "f1", "times_s": {"1": 10.0, "2": 5.6, "4": 3.5}, "memory_bytes": 0},
    {"id": "f2", "times_s": {"1": 2}},
    {"id": "f<3>", "times_s": {"3": 1.5}},
]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps({"cpus": 4, "memory_bytes": None, "tasks": TASKS}))
    return path


@pytest.mark.parametrize("strategy", ["auto", "balanced", "adaptive", "memory-aware", "memory_aware"])
def test_the_document(strategy: str, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tasks), "--strategy", strategy, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["strategy"] == strategy.replace("-", "_")
    assert document["chosen"] == ("adaptive" if strategy == "auto" else document["strategy"])
    assert document["makespan_s"] >= document["lower_bound_s"] >= 5.6 * 2 / 4
    assert sorted(placement["id"] for placement in document["placements"]) == ["f1", "f2", "f<3>"]
    for placement in document["placements"]:
        listed = next(task["times_s"] for task in TASKS if task["id"] == placement["id"])
        assert placement["end_s"] - placement["start_s"] == pytest.approx(listed[str(placement["threads"])])
        assert len(placement["cpus"]) == placement["threads"]
        assert set(placement["cpus"]) <= set(range(4))


def test_times_that_follow_from_the_seconds_with_one_thread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the same plan with the times of Amdahl's law written out."""

    def planned(**task: Any) -> Any:
        file = tmp_path / "tasks.json"
        file.write_text(json.dumps({"cpus": 5, "tasks": [{"id": "a"} | task]}))
        assert main(["plan", str(file), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    halves = {"1": 10.0, "2": 5.5, "3": 4.0}
    listed = planned(times_s=halves)
    assert planned(seconds=10, parallel_fraction=0.9, widths=[1, 2, 3]) == listed
    assert listed["makespan_s"] == 4.0
    assert planned(seconds=10, parallel_fraction=1)["makespan_s"] == 2.0  # on all five
    assert planned(seconds=10)["makespan_s"] == pytest.approx(4.3 + 5.7 / 5)
    assert planned(seconds=10, parallel_fraction=0)["placements"][0]["threads"] == 1


def test_the_table_and_the_picture(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "plan.svg"
    assert main(["plan", str(tasks), "--strategy", "adaptive", "--svg", str(picture)]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].startswith("3 tasks in ")
    assert captured.err == f"wrote {picture}\n"
    titles = [element.text for element in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(str(title).partition(":")[0] for title in titles) == ["f1", "f2", "f<3>"]


SVG = "{http://www.w3.org/2000/svg}"


def drawn(tasks: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Any, Path]:
    """The plan for 4 CPUs, and its picture."""
    file, picture = tmp_path / "drawn.json", tmp_path / "drawn.svg"
    file.write_text(json.dumps({"cpus": 4, "tasks": tasks}))
    assert main(["plan", str(file), "--json", "--svg", str(picture)]) == 0
    return json.loads(capsys.readouterr().out), picture


@pytest.mark.parametrize(
    ("longest_s", "ticks"),
    [
        (0, ["0 s"]),
        (10.1, ["0 s", "2 s", "4 s", "6 s", "8 s", "10 s"]),
        (0.42, ["0 s", "0.1 s", "0.2 s", "0.3 s", "0.4 s"]),
        (100, ["0 s", "20 s", "40 s", "60 s", "80 s", "100 s"]),
        (125, ["0 min", "0.5 min", "1 min", "1.5 min", "2 min"]),
        (7200, ["0 h", "0.5 h", "1 h", "1.5 h", "2 h"]),
        (3.6e99, ["0 h", "2e+95 h", "4e+95 h", "6e+95 h", "8e+95 h", "1e+96 h"]),
    ],
)
def test_the_time_axis_has_round_numbers_where_they_are(
    longest_s: float, ticks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, picture = drawn([{"id": "a", "times_s": {"1": longest_s}}], tmp_path, capsys)
    texts = [text for text in ElementTree.parse(picture).iter(f"{SVG}text") if str(text.text).split()[0] != "CPU"]
    found = {str(text.text): float(text.attrib["x"]) for text in texts if str(text.text) in ticks}
    assert list(found) == ticks
    units = {"s": 1, "min": 60, "h": 3600}
    for said, x in found.items():
        number, unit = said.split()
        share = float(number) * units[unit] / longest_s if longest_s else 0
        assert x == pytest.approx(found[ticks[0]] + 1000 * share, abs=0.01)


def test_the_picture_of_many_tasks_is_small_and_shows_them_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Short ones without a name: nobody can point at them."""
    tasks = [{"id": f"f{number}", "times_s": {"1": 1 + number % 7, "3": 2}} for number in range(3000)]
    made, picture = drawn([*tasks, {"id": "long", "times_s": {"1": 5000}}], tmp_path, capsys)
    assert picture.stat().st_size < 60 * 3000
    paths = [path for group in ElementTree.parse(picture).iter(f"{SVG}g") for path in group.iter(f"{SVG}path")]
    left, scale = 48, 1000 / made["makespan_s"]
    starts = sorted(float(x) for path in paths for x in re.findall(r"M(\S+) ", path.attrib["d"]))
    expected = sorted(left + one["start_s"] * scale for one in made["placements"])
    assert starts == pytest.approx(expected, abs=0.051)
    named = {str(title.text).partition(":")[0] for path in paths for title in path.iter(f"{SVG}title")}
    assert "long" in named
    assert all(one["id"] in named for one in made["placements"] if (one["end_s"] - one["start_s"]) * scale > 1.2)


def test_tasks_from_standard_input_and_a_long_list_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    many = [{"id": str(number), "times_s": {"1": 1}} for number in range(100)]
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"cpus": 2, "tasks": many})))
    assert main(["plan", "-"]) == 0
    assert "... and 60 more: --json lists all" in capsys.readouterr().out


def test_a_recorded_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three cores of two threads: tasks get one thread per core, as leases do."""
    cpus = tmp_path / "recorded/sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    (cpus / "online").write_text("0-5\n")
    for cpu in range(6):
        topology = cpus / f"cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "core_id").write_text(f"{cpu % 3}\n")
        (topology / "physical_package_id").write_text("0\n")
        (topology / "thread_siblings_list").write_text(f"{cpu % 3},{cpu % 3 + 3}\n")
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps({"sysroot": "recorded", "tasks": [{"id": "a", "times_s": {"3": 1.0}}]}))
    assert main(["plan", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["placements"][0]["cpus"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "is not JSON"),
        (" \n", "tasks.json is empty; give a JSON file of tasks"),
        ('{"cpus": 1, "cpus": 2}', "tasks.json: an object has 'cpus' twice"),
        ([1], "not an object, but a list"),
        ({"tasks": []}, 'has neither of "cpus", a number, and "sysroot", a directory; give one of them'),
        ({"cpus": 4, "sysroot": "x", "tasks": []}, 'has both "cpus", a number, and "sysroot"'),
        ({"cpus": 0, "tasks": []}, '"cpus" is 0; give a whole number'),
        ({"cpus": 2.5, "tasks": []}, '"cpus" is 2.5'),
        ({"cpus": True, "tasks": []}, '"cpus" is true'),
        ({"cpus": 10**400, "tasks": []}, '"cpus" is 1000'),
        ({"cpus": 4}, '"tasks" is null'),
        ({"cpus": 4, "tasks": [7]}, "tasks[0] is a number"),
        ({"cpus": 4, "tasks": [{"times_s": {"1": 1}}]}, 'tasks[0]: "id" is null'),
        ({"cpus": 4, "tasks": [{"id": "a\ud800", "times_s": {"1": 1}}]}, "give a printable text"),
        ({"cpus": 4, "tasks": [{"id": "a"}]}, "task 'a': \"times_s\" is null"),
        ({"cpus": 4, "tasks": [{"id": "a", "times_s": {"1": 1}, "seconds": 1}]}, "has \"times_s\" and 'seconds'"),
        ({"cpus": 4, "tasks": [{"id": "a", "widths": [1]}]}, "task 'a': the time at width 1 is null"),
        ({"cpus": 4, "tasks": [{"id": "a", "seconds": 1, "widths": [0]}]}, '"widths" is [0]; give numbers of'),
        (
            {"cpus": 4, "tasks": [{"id": "a", "seconds": 1, "widths": [2**63]}]},
            "give numbers of threads from 1 to 65536",
        ),
        ({"cpus": 4, "tasks": [{"id": "a", "seconds": 1, "widths": "12"}]}, '"widths" is "12"; give numbers of'),
        ({"cpus": 4, "tasks": [{"id": "a", "seconds": 1, "parallel_fraction": 2}]}, '"parallel_fraction" is 2; give a'),
        ({"cpus": 4, "tasks": [{"id": "a", "times_s": {"two": 1}}]}, "task 'a': 'two' in \"times_s\""),
        ({"cpus": 4, "tasks": [{"id": "a", "times_s": {"0": 1}}]}, "task 'a': '0' in \"times_s\""),
        ({"cpus": 4, "tasks": [{"id": "a", "times_s": {"1": -1}}]}, "the time at width 1 is -1"),
        ({"cpus": 4, "tasks": [{"id": "a", "times_s": {"1": "1"}}]}, 'the time at width 1 is "1"'),
        ('{"cpus": 4, "tasks": [{"id": "a", "times_s": {"1": NaN}}]}', "the time at width 1 is NaN"),
        ({"cpus": 4, "tasks": [{"id": "a", "times_s": {"1": 1}, "memory": 1}]}, "task 'a': 'memory' is not known"),
        (
            {"cpus": 4, "tasks": [{"id": "a", "times_s": {"1": 1}, "memory_bytes": -1}]},
            '"memory_bytes" is -1; give bytes, at',
        ),
        ({"cpus": 4, "tasks": [{"id": "a", "times_s": {"1": 1}}] * 2}, "two tasks are called 'a'"),
        ({"cpus": 4, "memory_bytes": 0, "tasks": []}, '"memory_bytes" is 0; give bytes, at least 1, or null for'),
        ({"cpus": 4, "memory_bytes": -1, "tasks": []}, '"memory_bytes" is -1; give bytes, at least 1, or null for'),
        (
            {"cpus": 4, "bandwidth_bytes_per_s": -1, "tasks": []},
            '"bandwidth_bytes_per_s" is -1; give bytes per second, at least 1, or null for no limit',
        ),
        ({"cpus": 4, "memory": 1, "tasks": []}, "the document: 'memory' is not known"),
        ({"sysroot": "/nowhere/at/all", "tasks": []}, '"sysroot" /nowhere/at/all: no sys/'),
    ],
)
def test_wrong_input_is_exit_code_2_and_told_by_name(
    document: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tasks.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    assert main(["plan", str(file)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"cpus": 4, "tasks": [{"id": "a", "times_s": {"8": 1}}]}, "task 'a' needs 8 threads at least"),
        (
            {"cpus": 4, "memory_bytes": 1024, "tasks": [{"id": "a", "times_s": {"1": 1}, "memory_bytes": 2048}]},
            "task 'a' needs 2 KiB of memory, but 1 KiB may be used",
        ),
    ],
)
def test_a_task_that_can_never_run_is_exit_code_3(
    document: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps(document))
    assert main(["plan", str(file)]) == 3
    assert said in capsys.readouterr().err


def test_disk_is_what_the_document_says_or_what_is_free_in_a_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned(files: int, *options: str, **limits: int) -> Any:
        tasks = [{"id": one, "times_s": {"1": 1.0}, "memory_bytes": 1, "disk_bytes": files} for one in "ab"]
        file = tmp_path / "tasks.json"
        file.write_text(json.dumps({"cpus": 2, "tasks": tasks, **limits}))
        status = main(["plan", str(file), "--json", *options])
        captured = capsys.readouterr()
        return captured.err if status else json.loads(captured.out)

    assert planned(6, disk_bytes=12)["makespan_s"] == 1.0
    assert planned(6, disk_bytes=10)["makespan_s"] == planned(6, disk_bytes=10)["lower_bound_s"] == 2.0
    assert "task 'a' needs 6 B of disk, but 5 B may be used; nor do 'b' fit" in planned(6, disk_bytes=5)
    options = "--scratch", str(tmp_path)
    assert planned(1, *options)["makespan_s"] == 1.0
    assert "task 'a' needs" in planned(2 * shutil.disk_usage(tmp_path).total, *options)
    assert planned(1, *options)["reasons"][-1].startswith("disk: ")
    assert "both say how much disk there is" in planned(1, *options, disk_bytes=10)
    assert f"the scratch directory {tmp_path}/none is not there" in planned(1, "--scratch", f"{tmp_path}/none")


@pytest.mark.skipif(
    not SHARED.is_dir() or not file_system(SHARED).in_memory, reason="no directory that is known to be in memory"
)
def test_temporary_files_in_memory_are_a_part_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tasks.json"
    tasks = [{"id": one, "times_s": {"1": 1.0}, "memory_bytes": 4, "disk_bytes": 2} for one in "ab"]
    file.write_text(json.dumps({"cpus": 2, "memory_bytes": 11, "tasks": tasks}))
    assert main(["plan", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["makespan_s"] == 1.0
    assert main(["plan", str(file), "--json", "--scratch", str(SHARED)]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["makespan_s"] == 2.0
    assert made["reasons"][-1].endswith(" (tmpfs: temporary files there count as memory)")


def test_a_byte_order_mark_is_no_part_of_the_document(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks.write_text(tasks.read_text(), encoding="utf-8-sig")
    assert main(["plan", str(tasks)]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(tasks.read_text(encoding="utf-8")))
    assert main(["plan", "-"]) == 0


def test_files_that_are_not_there_and_an_unknown_strategy(tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "/nowhere/at/all.json"]) == 2
    assert "/nowhere/at/all.json cannot be read: No such file" in capsys.readouterr().err
    assert main(["plan", str(tasks), "--strategy", "fastest"]) == 2
    assert "there is no strategy 'fastest'; there are: adaptive, auto, balanced" in capsys.readouterr().err
    assert main(["plan", str(tasks), "--svg", str(tasks)]) == 2
    assert "is the file of tasks, which it would overwrite" in capsys.readouterr().err
