"""Measured times on disk: kept, read again, shared with what is shipped, and never believed where they are broken."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from qcthreads.errors import MachineError
from qcthreads.execution import cost_store
from qcthreads.execution.cost_store import CostStore, Kind, document_of
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.planning.costs import Observation, Size

KIND = Kind("pyscf", "energy", "MP2", "cc-pVDZ")
SEEN = [Observation(Size(24 * n, 10 * n), 1, 0.1 * n**3, 10**8 + n) for n in (1, 2, 3)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CostStore:
    monkeypatch.setattr(cost_store, "shipped_observations", lambda _: ())
    return CostStore(synthetic_machine(cores=4), {"XDG_DATA_HOME": str(tmp_path)})


def test_what_is_added_is_there_for_the_next(store: CostStore) -> None:
    assert store.model(KIND).source == "none"
    store.add(KIND, SEEN[:2])
    store.add(Kind("pyscf", "energy", "mp2", "cc-pvdz"), SEEN[2:])
    stored = store.model(KIND)
    assert stored.source == "here"
    assert stored.model.observations == tuple(SEEN)
    assert store.model(Kind("pyscf", "energy", "hf", "cc-pvdz")).source == "none"


def test_another_machine_has_times_of_its_own(store: CostStore, tmp_path: Path) -> None:
    store.add(KIND, SEEN)
    other = CostStore(synthetic_machine(packages=2, cores=8, threads=2), {"XDG_DATA_HOME": str(tmp_path)})
    assert other.model(KIND).source == "none"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 99, "models": {}}', '{"format": 1, "models": {"a": [{}]}}']
)
def test_a_broken_file_is_named_and_written_anew(store: CostStore, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = store.add(KIND, SEEN)
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert store.model(KIND).source == "none"
    assert str(path) in caplog.text
    store.add(KIND, SEEN[:1])
    assert store.model(KIND).model.observations == tuple(SEEN[:1])


def test_where_nothing_can_be_written_it_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "qcthreads").write_text("in the way")
    store = CostStore(synthetic_machine(cores=4), {"XDG_DATA_HOME": str(tmp_path)})
    with pytest.raises(MachineError, match="XDG_DATA_HOME"):
        store.add(KIND, SEEN)


def test_the_file_does_not_grow_without_end(store: CostStore) -> None:
    for _ in range(3):
        path = store.add(KIND, [Observation(Size(24, 10), 1, 1.0 + n, 1) for n in range(300)])
    assert len(json.loads(path.read_text())["models"]["energy|mp2|cc-pvdz"]) == 400


def test_shipped_times_count_by_how_fast_this_machine_is(store: CostStore, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tuple(Observation(Size(24 * n, 10 * n), 1, 0.1 * n**3, 0) for n in range(1, 9))
    monkeypatch.setattr(cost_store, "shipped_observations", lambda _: shipped)
    before = store.model(KIND)
    assert before.source == "shipped"
    store.add(KIND, [Observation(Size(24 * n, 10 * n), 1, 0.3 * n**3, 0) for n in (1, 2, 3)])
    after = store.model(KIND)
    assert after.source == "here"
    slow, fast = after.model.seconds(Size(192, 80)), before.model.seconds(Size(192, 80))
    assert slow is not None
    assert fast is not None
    assert slow.value / fast.value == pytest.approx(3, rel=0.2)


def test_every_shipped_file_can_be_read() -> None:
    for file in (Path(cost_store.__file__).parent / "costs").glob("*.json"):
        document = json.loads(file.read_text())
        assert cost_store.observations_of(document)
        assert document == document_of(file.stem, document["measured_on"], cost_store.observations_of(document)) | {
            key: document[key] for key in ("measured_at", "version")
        }
