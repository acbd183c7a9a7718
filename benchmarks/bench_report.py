"""How long the report of a run takes to write, and in a headless Chromium to open, zoom and sort; asserts nothing.

    python benchmarks/bench_report.py [--rounds N]

Opening is from the navigation to the page's own mark that the plots are drawn and the table answers; a zoom, a sort and
a change of theme are from the event to the next frame. Beside it the trace of the same run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import asking
from chromium import Page, chromium
from made_runs import made_run

from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.monitoring import report, trace
from qcthreads.monitoring.record import RunRecord

SIZES = (100, 1000, 10_000, 50_000)

# Each is a promise that is kept in the frame after the act.
_FRAME = "new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"
ACTS = {
    "zoom": "Plotly.relayout(timeline, {{'xaxis.range[0]': 0, 'xaxis.range[1]': data.wall_s * {share}}})",
    "sort": "document.querySelectorAll('#calculations th button')[{column}].click()",
    "theme": "document.getElementById('theme').click()",
}


def main() -> None:
    """A Markdown table: medians in ms, sizes in MB."""
    rounds: int = asking.parser(__doc__, rounds=5).parse_args().rounds
    machine = synthetic_machine(packages=2, llcs=8, cores=8)
    print("| calculations | write ms | page MB | open ms | zoom ms | sort ms | theme ms | trace ms | trace MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            record = made_run(size, width=4, machine=machine)
            page_ms, page_path = _written(report.write, record, Path(folder) / "report.html", rounds)
            trace_ms, trace_path = _written(trace.write, record, Path(folder) / "trace.json", rounds)
            figures = [_in_browser(page_path) for _ in range(rounds)]
            seen = " | ".join(f"{statistics.median(one[name] for one in figures):.0f}" for name in ("open", *ACTS))
            page_mb, trace_mb = (path.stat().st_size / 1e6 for path in (page_path, trace_path))
            print(
                f"| {size:,} | {page_ms:.0f} | {page_mb:.1f} | {seen} | {trace_ms:.0f} | {trace_mb:.1f} |", flush=True
            )


def _written(write: object, record: RunRecord, path: Path, rounds: int) -> tuple[float, Path]:
    assert callable(write)
    times_ms = []
    for _ in range(rounds):
        began = time.perf_counter()
        write(record, path)
        times_ms.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times_ms), path


def _in_browser(path: Path) -> dict[str, float]:
    """Of a browser that has just been started, as nothing is compiled or cached then."""
    with chromium() as page:
        page.open(path.as_uri())
        page.until("document.documentElement.dataset.ready !== undefined")
        figures = {"open": float(page.ask("document.documentElement.dataset.ready"))}
        for name, act in ACTS.items():
            figures[name] = statistics.median(_act(page, act, number) for number in range(3))
        return figures


def _act(page: Page, act: str, number: int) -> float:
    done = act.format(share=(0.5, 0.1, 1.0)[number], column=number)
    script = f"(async () => {{ const began = performance.now(); await {done}; await {_FRAME}; "
    return float(page.ask(f"{script} return performance.now() - began; }})()"))


if __name__ == "__main__":
    main()
