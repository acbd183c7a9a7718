"""Measured times on disk: kept, read again, and never believed where they are broken."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from qcthreads.errors import MachineError
from qcthreads.execution import cost_store
from qcthreads.execution.cost_store import CostStore, Kind, shipped
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.planning.costs import Observation, Size

KIND = Kind("pyscf", "energy", "MP2", "def2-SVP")
SEEN = [Observation(Size(24 * n, 10 * n), 1, 0.1 * n**3, 10**8 + n) for n in (1, 2, 3)]


@pytest.fixture
def store(tmp_path: Path) -> CostStore:
    return CostStore(synthetic_machine(cores=4), {"XDG_DATA_HOME": str(tmp_path)})


def test_what_is_added_is_there_for_the_next(store: CostStore) -> None:
    assert not store.model(KIND).observations
    store.add(KIND, SEEN[:2])
    store.add(Kind("pyscf", "energy", "mp2", "def2-svp"), SEEN[2:])
    assert store.model(KIND).observations == tuple(SEEN)
    assert not store.model(Kind("pyscf", "energy", "hf", "def2-svp")).observations


def test_another_machine_has_times_of_its_own(store: CostStore, tmp_path: Path) -> None:
    store.add(KIND, SEEN)
    other = CostStore(synthetic_machine(packages=2, cores=8, threads=2), {"XDG_DATA_HOME": str(tmp_path)})
    assert not other.model(KIND).observations


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 99, "models": {}}', '{"format": 1, "models": {"a": [{}]}}']
)
def test_a_broken_file_is_named_and_written_anew(store: CostStore, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = store.add(KIND, SEEN)
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert not store.model(KIND).observations
    assert str(path) in caplog.text
    store.add(KIND, SEEN[:1])
    assert store.model(KIND).observations == tuple(SEEN[:1])


def test_where_nothing_can_be_written_it_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "qcthreads").write_text("in the way")
    store = CostStore(synthetic_machine(cores=4), {"XDG_DATA_HOME": str(tmp_path)})
    with pytest.raises(MachineError, match="XDG_DATA_HOME"):
        store.add(KIND, SEEN)


def test_the_file_does_not_grow_without_end(store: CostStore) -> None:
    for _ in range(3):
        path = store.add(KIND, [Observation(Size(24, 10), 1, 1.0 + n, 1) for n in range(300)])
    assert len(json.loads(path.read_text())["models"]["energy|mp2|def2-svp"]) == 400


MEASURED = sorted((Path(cost_store.__file__).parent / "measured").glob("*.json"))


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_measurements_that_come_with_it_are_sound_and_give_way_to_those_of_this_machine(
    store: CostStore, path: Path
) -> None:
    found = shipped(path.stem)
    assert found.measured_on
    assert found.observations
    for key, observations in found.observations.items():
        kind = Kind(path.stem, *key.split("|"))
        model = store.model(kind)
        assert (model.observations, model.measured_on) == (observations, found.measured_on)
        assert store.model(replace(kind, keywords='{"a": 1}')).observations == observations
        largest = max(observations, key=lambda seen: (seen.size.basis_functions, -seen.width))
        estimate = model.seconds(largest.size)
        assert estimate is not None
        assert 0.4 < estimate.value / largest.wall_s < 2.5
        store.add(kind, SEEN)
        assert (store.model(kind).observations, store.model(kind).measured_on) == (tuple(SEEN), "")


def test_nothing_comes_with_a_program_that_was_not_measured(store: CostStore) -> None:
    assert not shipped("mopac").observations
    assert not store.model(Kind("mopac", "energy", "PM7", "")).observations
