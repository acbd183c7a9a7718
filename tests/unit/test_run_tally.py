"""What a run tells of its notes: each kind once, though it asks the engine several times."""

from __future__ import annotations

from qcthreads.execution.calculation import Progress
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.leases import LeaseBook
from qcthreads.manybody.run_tally import RunTally


def note(message: str, kind: str = "") -> Progress:
    return Progress(event="note", label="1", message=message, kind=kind)


def test_of_a_kind_the_first_note_is_told_and_found() -> None:
    told: list[str] = []
    tally = RunTally(LeaseBook(read_machine(), read_limits()), lambda progress: told.append(progress.message))
    for one in (note("CPU 1 is 98 % busy", "avoided"), note("tried again"), note("CPU 1 is 90 % busy", "avoided")):
        tally.watch(one)
    assert told == ["CPU 1 is 98 % busy", "tried again"]
    assert [finding.message for finding in tally.findings(affinity=True)] == told
