"""GPUs are leased by the engine and shown by the makers' variables; on made-up cards, for there are none here."""

from __future__ import annotations

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import LeaseError
from qcthreads.execution.calculation import Calculation
from qcthreads.execution.engine import LocalEngine
from qcthreads.host import Gpu
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import LeaseBook
from qcthreads.machine.synthetic import synthetic_machine

CARDS = tuple(Gpu(n, "nvidia", n, "A100", f"GPU-0000000{n}-0000", None, CpuSet()) for n in range(2))
LOOK = """
import os, time
def compute(given):
    time.sleep(given["sleep_s"])
    return {"success": True, "return_result": 0.0, "extras": {"seen": os.environ.get("CUDA_VISIBLE_DEVICES")}}
"""


@pytest.fixture
def engine(tmp_path, monkeypatch):
    (tmp_path / "looking.py").write_text(LOOK)
    monkeypatch.syspath_prepend(str(tmp_path))
    cpus = CpuSet(range(6))
    limits = Limits(
        cpus=cpus,
        cpu_count=6,
        quota_cpus=None,
        memory_bytes=8 * 1024**3,
        rules=(Rule("online", "made up", cpus=cpus, tightest=True),),
    )
    with LocalEngine(LeaseBook(synthetic_machine(cores=6), limits, gpus=CARDS), affinity=False) as made:
        yield made


def calculation(label, program, gpus=None, sleep_s=0.0):
    given = {"sleep_s": sleep_s}
    return Calculation(label=label, program=program, input=given, gpus=gpus, compute="looking:compute")


def seen(engine, *calculations):
    return {outcome.label: outcome.result["extras"]["seen"] for outcome in engine.run(calculations)}


def test_a_program_for_gpus_sees_one_of_its_own_and_others_none_on_made_up_cards(engine):
    found = seen(
        engine,
        calculation("a", "mace", sleep_s=1.0),
        calculation("b", "mace", sleep_s=1.0),
        calculation("c", "psi4"),
        calculation("d", "a_program_of_mine", gpus=0),
    )
    assert {found["a"], found["b"]} == {card.uuid for card in CARDS}
    assert found["c"] == found["d"] == "-1"


def test_more_may_be_asked_for_and_none_on_made_up_cards(engine):
    """One after the other: a worker that sees other GPUs is not reused."""
    assert seen(engine, calculation("a", "mace", gpus=2)) == {"a": ",".join(str(card.uuid) for card in CARDS)}
    assert seen(engine, calculation("b", "mace", gpus=0)) == {"b": "-1"}
    assert seen(engine, calculation("c", "mace")) == {"c": CARDS[0].uuid}
    with pytest.raises(LeaseError, match="3 GPUs"):
        engine.run([calculation("d", "mace", gpus=3)])
