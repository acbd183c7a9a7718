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

# Long, and nothing in them knows whether there is an extension: other programs, other users, C for other platforms.
ONCE = (
    "integration/test_leases_shared.py",
    "integration/test_leases_users.py",
    "integration/test_peer_suites.py",
    "integration/test_report_page.py",
    "integration/test_run_shared.py",
    "integration/test_trace_perfetto.py",
    "native/test_cross.py",
    "programs/",
    "unit/test_cli_leases.py",
    "unit/test_lease_instructions.py",
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
