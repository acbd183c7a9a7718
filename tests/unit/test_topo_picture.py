"""The pictures of a machine: every PU is there once, and what may not be used can be told from the rest."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from qcthreads.cli.topo_picture import picture
from qcthreads.cli.topo_svg import write_svg
from qcthreads.cpuset import CpuSet
from qcthreads.machine import CpuKind, NumaNode
from qcthreads.machine.synthetic import synthetic_machine

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
    assert "[0 ·][1 9] │ [· ·][· ·]" in picture(part, 100)[1]
    big = picture(replace(BIG, allowed_cpus=CpuSet([0, 1, 129])), 80)[1]
    assert big.strip().startswith("node 0  16 GiB  ▌█··│····")


def test_slower_kinds_and_terminals_without_unicode() -> None:
    hybrid = replace(BIG, cpu_kinds=(CpuKind(CpuSet(range(2, 256)), 0), CpuKind(CpuSet([0, 1]), 1)))
    assert "##oo|oooo" in picture(hybrid, 80, "ascii")[1]
    assert "kinds of PUs, the fastest first: 0-1; 2-255" in picture(hybrid, 80)


def test_memory_without_pus_is_named() -> None:
    node = NumaNode(9, CpuSet([0, 1]), 2**40, "CXL", memory_only=True)
    lines = picture(replace(SMALL, numa_nodes=(*SMALL.numa_nodes, node)), 100)
    assert "memory without PUs: node 9  1 TiB CXL, next to PUs 0-1" in lines


@pytest.mark.parametrize("machine", [SMALL, BIG], ids=["16", "256"])
def test_svg_has_a_box_for_every_core_inside_the_page(machine, tmp_path: Path) -> None:
    write_svg(machine, tmp_path / "machine.svg")
    page = ElementTree.parse(tmp_path / "machine.svg").getroot()
    titles = [title.text for title in page.iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(titles) == sorted(f"core of PUs {core.cpus}" for core in machine.cores)
    for box in page.iter("{http://www.w3.org/2000/svg}rect"):
        assert int(box.get("x", 0)) + int(box.get("width", 0)) <= int(page.get("width", 0))
        assert int(box.get("y", 0)) + int(box.get("height", 0)) <= int(page.get("height", 0))
