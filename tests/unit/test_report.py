"""What the page of a run contains; how it looks and works in a browser: tests/integration/test_report_page.py."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import made_run

from qcthreads.cpuset import CpuSet
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.monitoring import report
from qcthreads.monitoring.report.drawn import drawn, mean_over_time, rows_of
from qcthreads.monitoring.statistics import Finding, UsablePUs

EVIL = '</script><script>alert("1")</script><img src=x onerror=alert(2)>&amp;\'"'


class Elements(HTMLParser):
    """The elements of a page, and the text of the one that holds the data."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.text: list[str] = []
        self.data = ""
        self._in_data = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self._in_data = dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data += data
        else:
            self.text.append(data)

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self._in_data = False


def elements(path: Path) -> Elements:
    found = Elements()
    found.feed(path.read_text("utf-8"))
    return found


def test_words_of_others_are_words_wherever_they_are(tmp_path: Path) -> None:
    record = made_run(5)
    report.write(record, tmp_path / "plain.html")
    one = replace(record.calculations[0], label=EVIL, group=EVIL, error=EVIL, status="failed")
    evil = replace(
        record,
        title=EVIL,
        calculations=(one, *record.calculations[1:]),
        findings=(Finding(kind=EVIL, message=EVIL),),
        limits=(EVIL, EVIL),
        decision={EVIL: EVIL, "deeper": {EVIL: [EVIL]}, "workers": 8, "reasons": [EVIL]},
        statistics={EVIL: 1.0},
    )
    report.write(evil, tmp_path / "evil.html")
    plain, found = elements(tmp_path / "plain.html"), elements(tmp_path / "evil.html")
    assert found.tags["script"] == plain.tags["script"] == 3
    assert "img" not in found.tags
    assert json.loads(found.data)["calculations"][0]["label"] == EVIL
    assert sum(EVIL in text for text in found.text) >= 8


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from made_runs import made_run; "
    program += "from qcthreads.monitoring import report; report.write(made_run(50), Path(sys.argv[2]))"
    folder = str(Path(sys.modules["made_runs"].__file__ or "").parent)
    for name, seed in (("one", "1"), ("two", "2")):
        command = [sys.executable, "-c", program, folder, str(tmp_path / name)]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    report.write(made_run(5), tmp_path / "page.html")
    found = elements(tmp_path / "page.html")
    assert not found.tags.keys() & {"link", "img", "iframe", "object", "embed", "base"}
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "default-src 'none'" in text
    assert "<script src" not in text


@pytest.mark.parametrize("calculations", [0, 1])
def test_a_run_of_next_to_nothing_has_a_page(calculations: int, tmp_path: Path) -> None:
    record = made_run(1)
    short = replace(record, calculations=record.calculations[:calculations], moments=(), findings=(), limits=())
    report.write(replace(short, decision={}, statistics={}), tmp_path / "page.html")
    data = json.loads(elements(tmp_path / "page.html").data)
    assert len(data["calculations"]) == calculations
    assert data["curves"]["busy"] == []


def test_numbers_have_units_and_rows_are_tables(tmp_path: Path) -> None:
    rows = [{"pid": 7, "wall_s": 75.0}, {"pid": 8, "memory_bytes": 2**30}]
    told = {"cpus": [0, 1], "memory_bytes_per_worker": 3 * 2**30, "workers": rows}
    report.write(replace(made_run(2), decision=told), tmp_path / "page.html")
    text = elements(tmp_path / "page.html").text
    for wanted in ("0, 1", "3 GiB", "2 rows", "1 min 15 s", "1 GiB"):
        assert wanted in text


def test_cpus_that_were_usable_for_a_part_of_the_run_count_for_that_part(tmp_path: Path) -> None:
    record = made_run(40)
    cpu_s = sum(one.cpu_s for one in record.calculations)
    half_s = record.wall_s / 2
    fewer = replace(record, usable=CpuSet([0, 1]), pus_usable=UsablePUs(((0.0, 16), (half_s, 2))))
    report.write(fewer, tmp_path / "page.html")
    found = elements(tmp_path / "page.html")
    at = found.text.index("of the time of 9.0 usable CPUs on average used")
    assert found.text[at - 1] == f"{100 * cpu_s / (16 * half_s + 2 * half_s):.0f} %"
    assert json.loads(found.data)["usable"] == [[0.0, 16], [half_s, 2]]


def test_importing_the_report_loads_neither_plotly_nor_numpy() -> None:
    code = "import sys; import qcthreads.monitoring.report; print('plotly' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_cpus_of_a_core_are_neighbours_and_each_is_there_once() -> None:
    machine = synthetic_machine(packages=2, llcs=2, cores=2, threads=2)  # siblings are 8 apart
    rows = rows_of(machine, machine.cpus_online | CpuSet([99]))
    assert sorted(rows) == [*machine.cpus_online, 99]
    assert rows[-1] == 99  # of which the machine knows nothing
    for core in machine.cores:
        places = [rows.index(cpu) for cpu in core.cpus]
        assert max(places) - min(places) == 1


def test_boxes_cover_the_cpus_of_the_lease() -> None:
    record = made_run(40, width=4, machine=synthetic_machine(packages=2, cores=4, threads=2))
    data = drawn(record)
    for one, columns in zip(record.calculations, data["calculations"], strict=True):
        covered = [data["rows"][row] for first, last in columns["rows"] for row in range(first, last + 1)]
        assert sorted(covered) == sorted(one.cpus)


def test_siblings_that_were_never_used_have_no_rows_but_idle_cores_do() -> None:
    machine = synthetic_machine(cores=4, threads=2)  # siblings are 4 apart
    record = made_run(20, width=2, machine=machine)
    only = [replace(one, cpus=CpuSet([0, 1]), cpus_seen=CpuSet([0, 1])) for one in record.calculations]
    assert drawn(replace(record, calculations=tuple(only)))["rows"] == [0, 1, 2, 6, 3, 7]


times = st.floats(0, 100)


@given(st.lists(st.tuples(times, times, st.floats(0, 64))), st.integers(1, 200), st.floats(100, 120))
def test_the_mean_over_time_keeps_the_area(pairs: list[tuple[float, float, float]], points: int, wall_s: float) -> None:
    intervals = [(min(a, b), max(a, b), amount) for a, b, amount in pairs]
    means = mean_over_time(intervals, wall_s, points)
    area = sum((end - begin) * amount for begin, end, amount in intervals)
    assert sum(means) * wall_s / points == pytest.approx(area, rel=1e-6, abs=1e-6)


def test_planned_dots_stand_for_every_finished_calculation() -> None:
    record = made_run(3000)
    dots = [dot for group in drawn(record)["planned"] for dot in group["dots"]]
    assert sum(dot["count"] for dot in dots) == sum(one.status == "finished" for one in record.calculations)
    real: dict[str, Any] = {one.label: one.wall_s for one in record.calculations}
    assert all(dot["real"] == pytest.approx(real[dot["label"]], rel=1e-5) for dot in dots)


def test_long_runs_are_thinned_to_what_a_screen_shows() -> None:
    record = made_run(20)
    moment = record.moments[0]
    day = tuple(replace(moment, at_s=float(at), memory_bytes=at) for at in range(1, 86_401))
    curves = drawn(replace(record, moments=day, wall_s=86_400.0))["curves"]
    assert len(curves["busy"]) <= 1500
    assert curves["end"][-1] == 86_400.0
    assert max(curves["memory"]) == 86_400
