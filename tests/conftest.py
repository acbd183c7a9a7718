"""What holds for every test: no test fails because the machine is busy, a Ctrl-C that a test sends arrives, and what a
run measures helps no other test to another plan.
"""

import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from qcthreads.planning import strategies

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell without job control starts background jobs with SIGINT ignored, which every child would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What `make pure` need not repeat. Nothing in it knows whether there is an extension (other programs, users, platforms,
# whole runs of which others are left, what asks no operating system), or it is of both back ends itself, or looks at
# processes through the sampler, which is.
ONCE = (
    "programs/",
    *(f"native/test_{name}.py" for name in ("build", "c", "cross", "topology")),
    *(f"unit/test_{name}" for name in ("cli_leases", "costs", "dispatch", "disks", "expansion", "inputs")),
    *(f"unit/test_{name}" for name in ("lease_instructions", "moldable", "needs", "planning", "profiles", "programs")),
    *(f"unit/test_{name}" for name in ("benchmarks", "monitoring", "report", "sampler", "store")),
    *(f"integration/test_{name}" for name in ("calibrate", "callers_variables", "cli_run", "engine_source")),
    *(f"integration/test_{name}.py" for name in ("leases_beside_others", "leases_shared", "leases_users", "manybody")),
    *(f"integration/test_{name}.py" for name in ("measured", "memory_planned", "multi_level", "peer_suites")),
    *(f"integration/test_{name}.py" for name in ("refused_calls", "report_page")),
    *(f"integration/test_{name}" for name in ("leases_shown", "run", "top", "trace_perfetto", "watching", "wrapping")),
)

# What holds however long it waits for a CPU: on a busy machine it takes longer, and no more.
BESIDE = (
    *(f"native/test_{name}.py" for name in ("build", "c", "cross", "topology")),
    *(f"programs/test_{name}.py" for name in ("harnesses", "launchers", "memory_knobs", "procedures")),
    *(f"programs/test_{name}.py" for name in ("public_failures", "pyscf_against_psi4", "standins")),
    *(f"unit/test_{name}.py" for name in ("cli_leases", "cli_machine", "costs", "dispatch", "lease_instructions")),
    *(f"unit/test_{name}.py" for name in ("disks", "machine_limits", "manager", "moldable", "planning")),
    *(f"unit/test_{name}.py" for name in ("benchmarks", "planning_quality", "planning_split", "programs", "report")),
    *(f"integration/test_{name}.py" for name in ("at_most", "callers_variables", "cli_run", "engine")),
    *(f"integration/test_{name}.py" for name in ("engine_driver", "engine_gpus", "engine_source", "exec")),
    *(f"integration/test_{name}.py" for name in ("exec_usage", "lease_orphans", "leases_edges", "leases_shown")),
    *(f"integration/test_{name}.py" for name in ("leases_shrinking", "manager_leases", "manybody", "measured")),
    *(f"integration/test_{name}.py" for name in ("memory_planned", "multi_level", "peer_suites", "refused_calls")),
    *(f"integration/test_{name}.py" for name in ("report_page", "run", "run_beside", "worker", "wrapping")),
)


def place_of(path: Path) -> str:
    """Below this directory."""
    here = Path(__file__).parent
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else ""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files of which ``-m`` selects nothing are not even imported: to import all takes longer than some groups."""
    if collection_path.suffix != ".py":
        return None
    place, selected = place_of(collection_path), config.getoption("markexpr").split(" and ")
    beside, spins = place.startswith(BESIDE), "mark.nwchem" in collection_path.read_text(encoding="utf-8")
    left_out = (
        ("not once" in selected and place.startswith(ONCE))
        or ("beside" in selected and not beside)
        or ("not beside" in selected and beside and not spins)
    )
    return True if left_out else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark those that `make pure` leaves out, those that `make test` runs side by side, and those that real processes
    decide: other work on the machine may reach into one of these, so it is told of and repeated, once.
    """
    for item in items:
        path = place_of(item.path)
        if not path.startswith("unit/"):
            item.add_marker(pytest.mark.flaky(reruns=1))
        # Ranks that wait for each other spin: where others use their CPUs they take ten times as long.
        spins = item.get_closest_marker("nwchem") is not None
        for name, paths in (("once", ONCE), ("beside", () if spins else BESIDE)):
            if path.startswith(paths):
                item.add_marker(name)


if "PYTEST_XDIST_WORKER" in os.environ:  # those side by side share CPUs: each has a book of its own, and waits for none
    BOOK = tempfile.TemporaryDirectory(prefix="qcthreads-leases-")
    os.environ["QCTHREADS_LEASES"] = BOOK.name

SERIAL = itertools.count()
MEASURED = tempfile.TemporaryDirectory(prefix="qcthreads-measured-")


def pytest_runtest_setup() -> None:
    """Each test has a data directory of its own, made by whatever writes there first."""
    os.environ["XDG_DATA_HOME"] = str(Path(MEASURED.name, str(next(SERIAL))))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why those that were repeated had failed."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"had failed before it was repeated: {report.nodeid}")
        terminalreporter.line(report.longreprtext)


@pytest.fixture
def others_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where to write the module of another package that registers ``of-theirs``, ``absent`` and two names of ours.

    ``of-theirs`` is its function ``place``, which it has: the last task first, one at a time, each as wide as can be.
    """
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs-of-strategies\nVersion: 1\n")
    module = f"strategies_of_{os.urandom(8).hex()}"
    (info / "entry_points.txt").write_text(
        f"[qcthreads.strategies]\nof-theirs = {module}:place\nabsent = {module}:nothing\n"
        f"Adaptive = {module}:place\nmemory-aware = {module}:place\n"
    )
    path = tmp_path / f"{module}.py"
    path.write_text(_LAST_FIRST)
    monkeypatch.syspath_prepend(tmp_path)
    strategies._entry_points.cache_clear()
    yield path
    strategies._entry_points.cache_clear()


_LAST_FIRST = """
from qcthreads.cpuset import CpuSet
from qcthreads.planning import Placement, Proposal

def place(tasks, machine, usable, *, width=None, **limits):
    placements, now_s = [], 0.0
    for task in reversed(tuple(tasks)):
        threads = max(one for one in task.times_s if one <= len(usable))
        end_s = now_s + task.times_s[threads]
        placements.append(Placement(task.id, now_s, end_s, threads, CpuSet(list(usable)[:threads])))
        now_s = end_s
    return Proposal(placements)
"""
