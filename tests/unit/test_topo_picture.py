"""The pictures of a machine: every PU is there once, and what may not be used can be told from the rest."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from qcthreads.cli.topo_picture import heading, picture
from qcthreads.cli.topo_svg import write_svg
from qcthreads.cpuset import CpuSet, NodeSet
from qcthreads.machine import CpuKind, Machine, NumaNode
from qcthreads.machine.synthetic import synthetic_machine

SVG = "{http://www.w3.org/2000/svg}"
SMALL = synthetic_machine(packages=2, llcs=2, cores=2, threads=2)
BIG = synthetic_machine(packages=2, nodes=4, llcs=4, cores=4, threads=2)


def test_a_small_machine_shows_every_pu_once() -> None:
    lines = picture(SMALL, 100)
    assert lines[:4] == [
        "package 0",
        "  node 0  16 GiB  [0 8][1 9] │ [2 10][3 11]",
        "package 1",
        "  node 1  16 GiB  [4 12][5 13] │ [6 14][7 15]",
    ]


def test_256_pus_fit_a_screen_with_a_sign_for_every_core() -> None:
    assert len(BIG.cpus_online) == 256
    lines = picture(BIG, 80)
    assert len(lines) <= 24
    assert all(len(line) <= 80 for line in lines)
    assert sum(line.count("█") for line in lines[:-3]) == len(BIG.cores)
    assert sum(line.count("│") for line in lines[:-3]) == 8 * 3


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_core_is_lost_at_any_width(width: int) -> None:
    lines = "".join(picture(BIG, width)[:-3])
    assert lines.count("█") == len(BIG.cores) or len(re.findall(r"\[", lines)) == len(BIG.cores)


def test_what_may_not_be_used_shows() -> None:
    part = replace(SMALL, allowed_cpus=CpuSet([0, 1, 9]))
    assert "[0 (8)][1 9] │ [(2) (10)][(3) (11)]" in picture(part, 100)[1]
    assert "(N) PU that may not be used" in picture(part, 100)
    big = picture(replace(BIG, allowed_cpus=CpuSet([0, 1, 129])), 80)[1]
    assert big.strip().startswith("node 0  16 GiB  ▌█··│····")


def test_what_is_leased_shows() -> None:
    part = replace(SMALL, allowed_cpus=CpuSet([0, 1, 8, 9]))
    leased = CpuSet([0, 8, 10])
    lines = picture(part, 100, leased=leased)
    assert "[0* 8*][1 9] │ [(2) (10*)][(3) (11)]" in lines[1]
    assert "N* PU that is leased" in lines
    assert picture(BIG, 80, leased=leased)[1].strip().startswith("node 0  16 GiB  ▒███│████│▒█▒█│████")
    assert "%###|####|%#%#|####" in picture(BIG, 80, "ascii", leased)[1]
    assert "▒ core with PUs that are leased" in picture(BIG, 80, leased=leased)
    assert not any("leased" in line for line in picture(BIG, 80))


def test_a_drawing_tells_whose_cores_are_leased(tmp_path: Path) -> None:
    write_svg(SMALL, tmp_path / "leased.svg", leases=[(CpuSet([0, 8]), "<alice>, process 7"), (CpuSet([9]), "bob")])
    write_svg(SMALL, tmp_path / "free.svg")
    drawn = ElementTree.parse(tmp_path / "leased.svg")
    titles = {group.findtext(f"{SVG}title"): group for group in drawn.iter(f"{SVG}g")}
    whose = "core of PUs 0,8; PUs 0,8 leased by <alice>, process 7"
    assert whose in titles
    assert "core of PUs 1,9; PUs 9 leased by bob" in titles
    assert [text.text for text in titles[whose].iter(f"{SVG}text")] == ["0*", "8*"]
    before = {box.get("fill") for box in ElementTree.parse(tmp_path / "free.svg").iter(f"{SVG}rect")}
    (colour,) = {box.get("fill") for box in drawn.iter(f"{SVG}rect")} - before
    assert sum(box.get("fill") == colour for box in drawn.iter(f"{SVG}rect")) == 2 + 1  # two cores and the legend


def test_slower_kinds_and_terminals_without_unicode() -> None:
    hybrid = replace(BIG, cpu_kinds=(CpuKind(CpuSet(range(2, 256)), 0), CpuKind(CpuSet([0, 1]), 1)))
    assert "##oo|oooo" in picture(hybrid, 80, "ascii")[1]
    assert "kinds of PUs, the fastest first: 0-1; 2-255" in picture(hybrid, 80)
    small = picture(replace(SMALL, cpu_kinds=(CpuKind(SMALL.cores[1].cpus, 0), CpuKind(SMALL.cores[0].cpus, 1))), 100)
    assert "[0 8]{1 9}" in small[1]
    assert "{ } core of a slower kind" in small


def test_memory_without_pus_is_named() -> None:
    node = NumaNode(9, CpuSet([0, 1]), 2**40, "CXL", memory_only=True)
    machine = replace(SMALL, numa_nodes=(*SMALL.numa_nodes, node), allowed_mems=NodeSet([0, 9]))
    assert "memory without PUs: node 9  1 TiB CXL, next to PUs 0-1" in picture(machine, 100)


def test_memory_that_may_not_be_used_is_named() -> None:
    node = NumaNode(9, CpuSet(), 2**40, "CXL", memory_only=True)
    machine = replace(SMALL, numa_nodes=(*SMALL.numa_nodes, node), allowed_mems=NodeSet([0]))
    lines = picture(machine, 100)
    assert lines[1].startswith("  node 0  16 GiB                [")
    assert lines[3].startswith("  node 1  16 GiB (not allowed)  [")
    assert "memory without PUs: node 9  1 TiB CXL (not allowed), next to no PUs in particular" in lines
    empty = replace(machine, numa_nodes=(*SMALL.numa_nodes, replace(node, memory_bytes=0, cpus=CpuSet([3]))))
    assert "memory without PUs: node 9  no memory, next to PUs 3" in picture(empty, 100), "nobody may use what is not"


def test_the_heading_counts_one_and_many_and_names_what_is_offline() -> None:
    one = synthetic_machine(cores=4)
    assert heading(one, CpuSet([4])) == [
        "4 PUs online (0-3; offline: 4), 4 cores (0 with SMT), 1 package, 1 memory node",
        "may be used: PUs 0-3, memory nodes 0",
    ]
    assert heading(SMALL, CpuSet())[0] == ("16 PUs online (0-15), 8 cores (8 with SMT), 2 packages, 2 memory nodes")


def test_cache_sizes_say_whether_each_has_as_much() -> None:
    assert picture(SMALL, 100)[-1] == "last-level cache: 32 MiB each"
    assert picture(synthetic_machine(cores=2), 100)[-1] == "last-level cache: 32 MiB"


SMT8 = synthetic_machine(packages=2, llcs=20, cores=1, threads=8)
PART = replace(SMT8, allowed_cpus=CpuSet(range(0, 320, 3)))


@pytest.mark.parametrize("machine", [SMALL, BIG, SMT8, PART], ids=["16", "256", "smt8", "part"])
def test_svg_has_every_core_and_every_pu_inside_the_page(machine: Machine, tmp_path: Path) -> None:
    page = drawn(machine, tmp_path)
    titles = [title.text for title in page.iter(f"{SVG}title")]
    assert sorted(map(str, titles)) == sorted(f"core of PUs {core.cpus}" for core in machine.cores)
    numbers = [text.text or "" for group in page.iter(f"{SVG}g") for text in group.iter(f"{SVG}text")]
    assert sorted(int(number.strip("()")) for number in numbers) == list(machine.cpus_online)
    forbidden = machine.cpus_online - machine.allowed_cpus
    assert {int(number.strip("()")) for number in numbers if "(" in number} == set(forbidden)
    for box in page.iter(f"{SVG}rect"):
        assert int(box.get("x", 0)) + int(box.get("width", 0)) <= int(page.get("width", 0)) <= 1300
        assert int(box.get("y", 0)) + int(box.get("height", 0)) <= int(page.get("height", 0))


def test_numbers_of_a_core_stay_in_its_box(tmp_path: Path) -> None:
    for group in drawn(SMT8, tmp_path).iter(f"{SVG}g"):
        box = next(group.iter(f"{SVG}rect"))
        left, top = int(box.get("x", 0)), int(box.get("y", 0))
        places = {(int(text.get("x", 0)), int(text.get("y", 0))) for text in group.iter(f"{SVG}text")}
        assert len(places) == 8
        assert all(left < x < left + int(box.get("width", 0)) for x, _ in places)
        assert all(top < y < top + int(box.get("height", 0)) for _, y in places)


def test_svg_says_what_it_shows(tmp_path: Path) -> None:
    kinds = (CpuKind(SMALL.cpus_online - CpuSet([0, 8]), 0), CpuKind(CpuSet([0, 8]), 1))
    part = replace(SMALL, cpu_kinds=kinds, allowed_cpus=CpuSet(range(8)), allowed_mems=NodeSet([0]))
    page = drawn(part, tmp_path, ["borg <1>", "16 PUs"])
    texts = [text.text for text in page.iter(f"{SVG}text")]
    assert texts[:2] == ["borg <1>", "16 PUs"]
    assert {"node 0  16 GiB", "node 1  16 GiB (not allowed)", "32 MiB", "last-level cache: 32 MiB each"} <= set(texts)
    assert "core of the fastest kind: PUs 0,8" in texts
    assert "core of a slower kind: PUs 1-7,9-15" in texts
    assert "core with none that may be used; (N): PU N may not be used" in texts
    fills = [box.get("fill") for group in page.iter(f"{SVG}g") for box in group.iter(f"{SVG}rect")]
    assert len(set(fills)) == 2


def drawn(machine: Machine, folder: Path, said: Sequence[str] = ()) -> ElementTree.Element:
    write_svg(machine, folder / "machine.svg", said)
    return ElementTree.parse(folder / "machine.svg").getroot()
