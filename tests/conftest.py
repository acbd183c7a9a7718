"""What holds for every test: no test fails because the machine is busy, a Ctrl-C that a test sends arrives, and what a
run measures helps no other test to another plan.
"""

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell without job control starts background jobs with SIGINT ignored, which every child would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Nothing in them knows whether there is an extension: other programs, other users, other platforms, whole runs of
# which others are left, and what asks no operating system.
ONCE = (
    "programs/",
    *(f"native/test_{name}.py" for name in ("build", "c", "cross")),
    *(f"unit/test_{name}" for name in ("cli_leases", "costs", "dispatch", "expansion", "inputs", "lease_instructions")),
    *(f"unit/test_{name}" for name in ("moldable", "needs", "planning", "profiles", "programs", "report", "store")),
    *(f"integration/test_{name}.py" for name in ("calibrate", "callers_variables", "cli_run", "leases_beside_others")),
    *(f"integration/test_{name}.py" for name in ("leases_shared", "leases_users", "manybody", "measured")),
    *(f"integration/test_{name}.py" for name in ("memory_planned", "multi_level", "peer_suites", "report_page")),
    *(f"integration/test_{name}" for name in ("leases_shown", "run", "trace_perfetto", "wrapping")),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark those that `make pure` leaves out."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.path.relative_to(here).as_posix().startswith(ONCE):
            item.add_marker("once")


MEASURED = tempfile.TemporaryDirectory(prefix="qcthreads-measured-")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each test has a data directory of its own, made by whatever writes there first."""
    os.environ["XDG_DATA_HOME"] = str(Path(MEASURED.name, str(abs(hash(item.nodeid)))))
