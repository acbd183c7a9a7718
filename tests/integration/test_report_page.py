"""The report of a run in a real browser: what it draws, how it is used, and that it asks the network for nothing."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import chromium
import pytest
from chromium import Page
from made_runs import made_run
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from qcthreads.monitoring import report
from qcthreads.monitoring.record import RunRecord
from qcthreads.monitoring.statistics import UsablePUs

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed")

reads_prints = pytest.mark.skipif(
    shutil.which("pdftotext") is None, reason="pdftotext (poppler-utils) reads what was printed"
)

ROWS = "[...document.querySelectorAll('#calculations tbody tr')]"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium.chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return made_run(120)


def shown(page: Page, record: RunRecord, path: Path) -> Page:
    """A page of ``record``, drawn, and its complaints and requests alone."""
    report.write(record, path)
    page.requests.clear()
    page.complaints.clear()
    page.open(path.as_uri())
    page.until("document.documentElement.dataset.ready !== undefined")
    return page


@pytest.fixture
def opened(page: Page, record: RunRecord, tmp_path: Path) -> Page:
    return shown(page, record, tmp_path / "report.html")


def column(page: Page, title: str) -> list[str]:
    """The cells of a column as they are read."""
    titles = page.ask("[...document.querySelectorAll('#calculations th')].map((head) => head.textContent)")
    cells: list[str] = page.ask(f"{ROWS}.map((row) => row.cells[{titles.index(title)}].textContent)")
    return cells


def sort_by(page: Page, title: str) -> None:
    heads = "[...document.querySelectorAll('#calculations th button')]"
    page.ask(f"{heads}.find((head) => head.textContent === {json.dumps(title)}).click()")


def background(page: Page) -> str:
    colour: str = page.ask("getComputedStyle(document.body).backgroundColor")
    return colour


def test_the_plots_are_drawn_without_a_complaint_or_a_request(opened: Page, record: RunRecord) -> None:
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("file:")] == []
    assert len([url for url in opened.requests if url.startswith("file:")]) == 1
    box = "document.querySelector('#{} .main-svg').getBoundingClientRect()"
    for plot in ("timeline", "planned"):
        assert opened.ask(f"{box.format(plot)}.width") > 1000
        assert opened.ask(f"{box.format(plot)}.height") > 300
    # Plotly's own account of what it drew, against the record: the area of all boxes.
    area = opened.ask("""timeline.data.filter((one) => one.fill === "toself" && one.meta !== "bad").reduce(
        (sum, one) => {
            for (let at = 0; at < one.x.length; at += 6)
                sum += (one.x[at + 1] - one.x[at]) * Math.round(one.y[at + 2] - one.y[at]);
            return sum;
        }, 0)""")
    assert area == pytest.approx(sum(one.wall_s * len(one.cpus) for one in record.calculations), rel=1e-4)
    for name, fill in (("#timeline .scatterlayer path.js-fill", "fill"), ("#planned .point", "fill")):
        fills = set(
            opened.ask(f"[...document.querySelectorAll('{name}')].map((path) => getComputedStyle(path).{fill})")
        )
        assert len(fills) >= 2, name


def test_plotly_is_inflated_to_what_is_installed_and_the_page_is_half_as_large(opened: Page, tmp_path: Path) -> None:
    script = get_plotlyjs()
    assert opened.ask("Plotly.version") == get_plotlyjs_version()
    assert opened.ask(f"[...document.scripts].some((script) => script.textContent === {json.dumps(script)})")
    assert (tmp_path / "report.html").stat().st_size < len(script) / 2


def test_without_a_script_it_says_so_and_tells_the_rest(page: Page, record: RunRecord, tmp_path: Path) -> None:
    report.write(record, tmp_path / "report.html")
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open((tmp_path / "report.html").as_uri())
        words = page.ask("document.body.innerText")
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert "drawn by a script, which this browser does not run" in words
    assert record.findings[0].message in words


def test_a_browser_too_old_to_inflate_is_told_so_and_has_the_table(
    page: Page, record: RunRecord, tmp_path: Path
) -> None:
    report.write(record, tmp_path / "report.html")
    older = page.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")
    try:
        page.complaints.clear()
        page.open((tmp_path / "report.html").as_uri())
        assert "too old" in page.ask("timeline.textContent")
        assert len(column(page, "calculation")) == 50
        page.ask("document.getElementById('theme').click()")
        page.pdf(tmp_path / "report.pdf")
        assert page.complaints == []
    finally:
        page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=older["identifier"])


def test_a_click_on_a_heading_sorts_and_another_one_turns_it_round(opened: Page, record: RunRecord) -> None:
    sort_by(opened, "wall, s")
    shortest = sorted(one.wall_s for one in record.calculations)
    assert [float(cell) for cell in column(opened, "wall, s")] == pytest.approx(shortest[:50], abs=1e-3)
    sort_by(opened, "wall, s")
    assert [float(cell) for cell in column(opened, "wall, s")] == pytest.approx(shortest[:-51:-1], abs=1e-3)
    assert opened.ask("document.querySelectorAll('#calculations th[aria-sort=descending]').length") == 1


def test_all_pages_together_have_every_calculation_once(opened: Page, record: RunRecord) -> None:
    found = column(opened, "calculation")
    while not opened.ask("after.disabled"):
        opened.ask("after.click()")
        found += column(opened, "calculation")
    assert sorted(found) == sorted(one.label for one in record.calculations)


def test_what_is_typed_filters(opened: Page, record: RunRecord) -> None:
    opened.ask("filter = document.getElementById('filter'); filter.value = 'NOT CONVERGE'")
    opened.ask("filter.dispatchEvent(new Event('input'))")
    failed = [one.label for one in record.calculations if one.status == "failed"]
    assert failed
    assert column(opened, "calculation") == failed


def test_a_box_says_what_it_is_and_a_click_finds_it_in_the_table(opened: Page, record: RunRecord) -> None:
    one = next(one for one in record.calculations if one.start_s > 5)
    row = list(record.machine.cpus_online).index(one.cpus.first)
    opened.ask("timeline.scrollIntoView({ block: 'start' })")
    middle_s = (one.start_s + one.end_s) / 2
    x, y = opened.ask(f"""(() => {{
        const box = timeline.getBoundingClientRect(), {{ xaxis, yaxis }} = timeline._fullLayout;
        return [box.left + xaxis._offset + xaxis.d2p({middle_s}), box.top + yaxis._offset + yaxis.d2p({row})];
    }})()""")
    opened.mouse("mouseMoved", x, y)
    opened.until("!document.getElementById('tip').hidden")
    said = opened.ask("document.getElementById('tip').textContent")
    assert said.startswith(one.label)
    assert f"CPUs {one.cpus}" in said
    opened.mouse("mousePressed", x, y)
    opened.mouse("mouseReleased", x, y)
    opened.until("document.querySelector('#calculations tr.found') !== null")
    assert opened.ask("document.querySelector('#calculations tr.found').cells[0].textContent") == one.label


def test_it_is_light_or_dark_as_the_system_is_or_as_the_button_says(
    page: Page, record: RunRecord, tmp_path: Path
) -> None:
    try:
        page.prefer("dark")
        shown(page, record, tmp_path / "report.html")
        dark = background(page)
        assert dark == page.ask("getComputedStyle(document.querySelector('#timeline .main-svg')).backgroundColor")
        page.ask("document.getElementById('theme').click()")
        light = background(page)
        page.until(f"getComputedStyle(document.querySelector('#timeline .main-svg')).backgroundColor === '{light}'")
        assert luminance(dark) < 0.1 < 0.9 < luminance(light)
        ink = page.ask("getComputedStyle(document.body).color")
        assert luminance(ink) < 0.2
        page.ask("document.getElementById('theme').click()")
        assert background(page) == dark
        page.prefer("light")
        page.until(f"getComputedStyle(document.body).backgroundColor === '{light}'")
        assert page.complaints == []
    finally:
        page.prefer("light")


def test_it_prints(opened: Page, tmp_path: Path) -> None:
    opened.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert opened.complaints == []
    opened.until("document.querySelector('#timeline .main-svg').getBoundingClientRect().width > 1100")  # as before


def printed(page: Page, path: Path) -> list[str]:
    """The text of each page."""
    page.pdf(path)
    command = ["pdftotext", "-layout", str(path), "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\f")


@reads_prints
def test_a_plot_is_printed_on_the_page_of_its_heading_also_after_the_window_was_resized(
    opened: Page, tmp_path: Path
) -> None:
    height = opened.ask("timeline.clientHeight")
    for width in (1366, 1100, 1366):
        opened.resize(width, 768)
        opened.until(
            f"Math.abs(timeline._fullLayout.width - (document.body.clientWidth - 48)) < 2 && innerWidth === {width}"
        )
        pages = printed(opened, tmp_path / "report.pdf")
        (drawn,) = [page for page in pages if "seconds since the run began" in page]
        assert "Who ran where and when" in drawn
        assert opened.ask("timeline.clientHeight") == opened.ask("timeline._fullLayout.height") == height


def test_what_went_wrong_is_in_sight_on_a_laptop(opened: Page) -> None:
    shown_width, width = opened.ask(
        "(({clientWidth, scrollWidth}) => [clientWidth, scrollWidth])(document.querySelector('.wide'))"
    )
    assert width <= shown_width <= 1366
    assert "error" in opened.ask("[...document.querySelectorAll('#calculations th')].map((head) => head.textContent)")


@reads_prints
def test_every_printed_page_of_the_table_has_its_headings(opened: Page, tmp_path: Path) -> None:
    pages = printed(opened, tmp_path / "report.pdf")
    of_table = [page for page in pages if re.search(r"finished +[\d.]+ +[\d.]+", page)]
    assert len(of_table) >= 2
    assert all("real / planned" in page for page in of_table)


def test_nothing_hostile_runs(page: Page, record: RunRecord, tmp_path: Path) -> None:
    evil = "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 2'><b>&lt;"
    one = replace(record.calculations[0], label=evil, error=evil, group=evil)
    shown(page, replace(record, calculations=(one, *record.calculations[1:])), tmp_path / "report.html")
    assert page.ask("window.hit ?? null") is None
    assert column(page, "calculation")[0] == evil
    legend = page.ask("[...document.querySelectorAll('#planned .legendtext')].map((text) => text.textContent)")
    assert evil in legend
    assert page.complaints == []


def test_the_line_of_usable_cpus_has_a_step_where_they_became_others(
    page: Page, record: RunRecord, tmp_path: Path
) -> None:
    shown(page, replace(record, pus_usable=UsablePUs(((0.0, 16), (10.0, 2)))), tmp_path / "report.html")
    assert page.complaints == []
    lines = page.ask("""timeline._fullLayout.shapes.filter((one) => one.yref === "y2").map(
        (one) => [one.x0, one.x1, one.y0, one.y1])""")
    assert lines == [[0, 10, 16, 16], [10, pytest.approx(record.wall_s), 2, 2]]
    (said,) = page.ask("timeline.layout.annotations.map((one) => one.y)")
    assert said == 2


def test_a_run_of_nothing_has_a_page_that_works(page: Page, record: RunRecord, tmp_path: Path) -> None:
    shown(page, replace(record, calculations=(), moments=(), findings=()), tmp_path / "report.html")
    assert page.complaints == []
    assert page.ask("document.getElementById('shown').textContent") == "none"


def test_ten_thousand_calculations_are_few_elements_and_can_be_sorted(page: Page, tmp_path: Path) -> None:
    shown(page, made_run(10_000), tmp_path / "report.html")
    assert page.complaints == []
    # What makes a page slow is the number of its elements; it must not grow with the run.
    assert page.ask("document.getElementsByTagName('*').length") < 6000
    sort_by(page, "memory, GiB")
    first, *_, last = column(page, "memory, GiB")
    assert float(first) <= float(last)
    assert page.ask("document.getElementById('shown').textContent") == "1 to 50 of 10,000"


def luminance(colour: str) -> float:
    """0 black, 1 white, of ``rgb(r, g, b)``; WCAG's, without its exponent."""
    red, green, blue = (float(part) / 255 for part in colour[4:-1].split(","))
    return math.fsum((0.2126 * red, 0.7152 * green, 0.0722 * blue))
