"""Measured times on disk: kept, read again, and never believed where they are broken."""

from __future__ import annotations

import ast
import json
import logging
import math
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qcthreads.errors import MachineError
from qcthreads.execution import cost_store
from qcthreads.execution.cost_store import CostStore, Kind, never_failing, shipped
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.planning.costs import CostModel, Observation, Origin, Size

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


def test_what_others_add_or_remove_meanwhile_is_seen(store: CostStore, tmp_path: Path) -> None:
    other = CostStore(synthetic_machine(cores=4), {"XDG_DATA_HOME": str(tmp_path)})
    for number, (one, another) in enumerate([(store, other), (other, store), (store, other)]):
        one.add(KIND, SEEN[number : number + 1])
        assert another.model(KIND).observations == one.model(KIND).observations == tuple(SEEN[: number + 1])
    store.forget(KIND.program)
    assert not other.model(KIND).observations
    other.add(KIND, SEEN[:1])
    assert store.model(KIND).observations == tuple(SEEN[:1])


def test_another_machine_has_times_of_its_own(store: CostStore, tmp_path: Path) -> None:
    store.add(KIND, SEEN)
    other = CostStore(synthetic_machine(packages=2, cores=8, threads=2), {"XDG_DATA_HOME": str(tmp_path)})
    assert not other.model(KIND).observations


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 99, "models": {}}', '{"format": 1, "models": {"a": 1}}', "[" * 100_000, "\xe9"],
    ids=["empty", "cut off", "a list", "another format", "no rows", "deep", "not UTF-8"],
)
def test_a_file_that_is_not_understood_is_named_and_left_alone(
    store: CostStore, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = store.add(KIND, SEEN)
    path.write_text(text, encoding="latin-1")
    with caplog.at_level(logging.WARNING):
        assert not store.model(KIND).observations
    assert str(path) in caplog.text
    with pytest.raises(MachineError, match=r"removes the file") as refused:
        store.add(KIND, SEEN[:1])
    assert str(path) in str(refused.value)
    assert path.read_text(encoding="latin-1") == text
    path.unlink()
    store.add(KIND, SEEN[:1])
    assert store.model(KIND).observations == tuple(SEEN[:1])


def test_a_file_that_cannot_be_read_now_is_left_alone(store: CostStore) -> None:
    path = store.path("pyscf")
    path.mkdir(parents=True)
    assert not store.model(KIND).observations
    with pytest.raises(MachineError, match="cannot be read"):
        store.add(KIND, SEEN)


UNSOUND = {
    "wall_s": (0.0, -1.0, "Infinity", "NaN", 10**400),
    "width": (0, -1, 10**30),
    "basis_functions": (0, -5, 10**400),
    "electrons": (-1, "many"),
    "peak_memory_bytes": (-1, 10**400, float("inf")),
    "peak_scratch_bytes": (-1, float("inf"), None),
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, told in UNSOUND.items() for value in told])
def test_what_cannot_have_been_measured_is_told_of_and_costs_nothing_else(
    store: CostStore, field: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    path = store.add(KIND, SEEN)
    document = json.loads(path.read_text())
    (rows,) = document["models"].values()
    rows[1][field] = value
    path.write_text(json.dumps(document))
    with caplog.at_level(logging.WARNING):
        model = store.model(KIND)
    assert f"1 of the measured times in {path}" in caplog.text
    assert model.observations == (SEEN[0], SEEN[2])
    assert model.seconds(Size(60, 25)) is not None
    store.add(KIND, SEEN[1:2])
    assert set(store.model(KIND).observations) == set(SEEN)


@pytest.mark.parametrize("wall_s", [0.0, -0.1, float("inf"), float("nan")])
def test_what_cannot_have_been_measured_is_not_written(store: CostStore, wall_s: float) -> None:
    store.add(KIND, [SEEN[0], replace(SEEN[1], wall_s=wall_s), SEEN[2]])
    assert store.model(KIND).observations == (SEEN[0], SEEN[2])


ADDING = """
import sys
from qcthreads.execution.cost_store import CostStore, Kind
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.planning.costs import CostModel, Observation, Size

store = CostStore(synthetic_machine(cores=4), {"XDG_DATA_HOME": sys.argv[1]})
for number in range(20):
    store.add(Kind("pyscf", "energy", sys.argv[2], "sto-3g"), [Observation(Size(24, 10), 1, 1.0 + number, 1)])
"""


def test_of_those_that_write_at_the_same_time_none_loses_anything(store: CostStore, tmp_path: Path) -> None:
    methods = ("hf", "mp2", "ccsd")
    writers = [subprocess.Popen([sys.executable, "-c", ADDING, str(tmp_path), method]) for method in methods]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    kept = [store.model(Kind("pyscf", "energy", method, "sto-3g")).observations for method in methods]
    assert [len(observations) for observations in kept] == [20, 20, 20]


def test_whatever_goes_wrong_while_a_run_learns_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), never_failing():
        raise ZeroDivisionError("of a model")
    assert "does not help the next one: of a model" in caplog.text
    with pytest.raises(KeyboardInterrupt), never_failing():
        raise KeyboardInterrupt


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
    """This machine is 1.7 times as slow."""
    found = shipped(path.stem)
    assert found.measured_on
    assert found.observations
    for key, observations in found.observations.items():
        kind = Kind(path.stem, *key.split("|"))
        model = store.model(kind)
        assert (model.observations, model.origin) == ((), Origin(found.measured_on))
        assert (model.memory_bytes(observations[0].size), model.speedups) == (None, ())
        others = store.model(replace(kind, keywords='{"a": 1}'))
        assert others.origin == Origin(found.measured_on, default_keywords=True)
        largest = max(observations, key=lambda seen: (seen.size.basis_functions, -seen.width))
        estimate = model.seconds(largest.size)
        assert estimate is not None
        assert 0.4 < estimate.value / (largest.wall_s or 0.0) < 2.5
        first, *others = [replace(seen, wall_s=1.7 * (seen.wall_s or 0.0)) for seen in observations if seen.width == 1]
        store.add(kind, [first])
        model = store.model(kind)
        assert (model.observations, model.origin) == ((first,), Origin(found.measured_on, 1))
        corrected = model.seconds(largest.size)
        assert corrected is not None
        assert corrected.value == pytest.approx(1.7 * estimate.value, rel=0.5)  # one time tells the factor to so much
        assert corrected.factor > estimate.factor
        store.add(kind, others)
        alone = CostModel(method=kind.method, observations=(first, *others))
        assert store.model(kind).origin is None
        assert store.model(kind).seconds(largest.size) == alone.seconds(largest.size)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_second_run_plans_with_about_what_the_first_one_took(store: CostStore, count: int) -> None:
    """As slow as no law says, from 1.5 to 4 times as slow as on the machine that others were measured on."""
    kind = Kind("pyscf", "energy", "mp2", "cc-pvdz")
    before = store.model(kind)
    waters = [Size(24 * n, 10 * n) for n in range(1, count + 1)]
    took_s = {}
    for at, size in enumerate(waters):
        elsewhere = before.seconds(size)
        assert elsewhere is not None
        took_s[size] = elsewhere.value * (1.5, 3.0, 2.0, 4.0, 2.5)[at]
    store.add(kind, [Observation(size, 1, wall_s, 10**8) for size, wall_s in took_s.items()])
    planned_s = {size: store.model(kind).times_s(size, [1]) for size in waters}
    for size, wall_s in took_s.items():
        assert planned_s[size] == {1: pytest.approx(wall_s, rel=0.15)}


def test_gradients_begin_with_what_energies_took(store: CostStore) -> None:
    gradient, size = replace(KIND, driver="gradient"), Size(48, 20)
    assert store.model(gradient).seconds(size) is store.model(gradient).origin is None
    store.add(KIND, SEEN)
    energy, guessed = store.model(KIND).seconds(size), store.model(gradient).seconds(size)
    assert energy is not None
    assert guessed is not None
    assert guessed.value == pytest.approx(2 * energy.value)
    assert guessed.factor > 2
    assert store.model(gradient).origin == Origin(ratio=2)
    assert store.model(gradient).memory_bytes(size) is None
    store.add(gradient, [replace(seen, wall_s=3 * (seen.wall_s or 0.0)) for seen in SEEN])
    found = store.model(gradient).seconds(size)
    assert found is not None
    assert found.value == pytest.approx(3 * energy.value, rel=0.1)
    assert found.factor < guessed.factor
    assert store.model(gradient).origin == Origin(corrections=3, ratio=2)
    assert store.model(replace(KIND, driver="hessian")).seconds(size) is None


def test_other_keywords_begin_with_what_default_ones_took(store: CostStore) -> None:
    told, size = replace(KIND, keywords='{"density_fit": true}'), Size(48, 20)
    store.add(KIND, SEEN)
    default, other = store.model(KIND), store.model(told)
    assert (default.origin, other.origin) == (None, Origin(default_keywords=True))
    assert other.times_s(size, [1]) == default.times_s(size, [1])
    gradient = replace(told, driver="gradient")
    assert store.model(gradient).origin == Origin(ratio=2, default_keywords=True)
    store.add(told, SEEN)
    assert store.model(told).origin == Origin(corrections=3, default_keywords=True)
    store.add(told, [Observation(Size(96, 40), 1, 6.4, 10**8)])
    assert store.model(told).origin is None
    assert store.model(gradient).origin == Origin(ratio=2)


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_molecules_that_a_model_was_not_fitted_to_are_predicted_in_order(path: Path) -> None:
    """Real times, those that come with it: of the sizes every second one predicts the others."""
    for key, observations in shipped(path.stem).observations.items():
        method = key.split("|")[1]
        seen = sorted((one for one in observations if one.width == 1), key=lambda one: one.size.basis_functions)
        pairs = []
        for first in (0, 1):
            model = CostModel(method=method, observations=tuple(seen[first::2]))
            told = [(model.seconds(one.size), one.wall_s) for one in seen[1 - first :: 2]]
            pairs += [(estimate.value, wall_s) for estimate, wall_s in told if estimate is not None and wall_s]
        assert len(pairs) == len(seen)
        # Of those that take nearly the same time, noise decides the order.
        apart = [(one, other) for one in pairs for other in pairs if one[1] > 1.5 * other[1]]
        assert statistics.mean(one[0] > other[0] for one, other in apart) > 0.85  # 0.5: by chance
        assert statistics.median(abs(math.log(one / other)) for one, other in pairs) < math.log(1.5)


def test_nothing_comes_with_a_program_that_was_not_measured(store: CostStore) -> None:
    assert not shipped("gaussian").observations
    assert store.model(Kind("gaussian", "energy", "hf", "6-31g")).seconds(Size(24, 10)) is None


DISTURBED = [replace(seen, width=2, wall_s=None) for seen in SEEN]


def test_a_time_that_others_disturbed_is_not_kept_and_its_peaks_are(store: CostStore) -> None:
    store.add(KIND, [*SEEN, *DISTURBED])
    model = store.model(KIND)
    assert model.observations == (*SEEN, *DISTURBED)
    assert not model.speedups
    alone = CostModel(method=KIND.method, observations=tuple(SEEN))
    assert model.times_s(Size(60, 25), (1, 2)) == alone.times_s(Size(60, 25), (1, 2))


def test_where_all_were_disturbed_times_of_default_keywords_serve(store: CostStore) -> None:
    told = replace(KIND, keywords='{"conv_tol": 1e-08}')
    store.add(told, DISTURBED)
    assert store.model(told).times_s(Size(24, 10), (1,)) is None
    peak = store.model(told).memory_bytes(Size(24, 10))
    assert peak is not None
    store.add(KIND, [replace(seen, peak_memory_bytes=10**12) for seen in SEEN])
    assert store.model(told).times_s(Size(24, 10), (1,)) == store.model(KIND).times_s(Size(24, 10), (1,))
    assert store.model(told).memory_bytes(Size(24, 10)) == peak


def test_what_is_kept_can_be_forgotten_by_method_and_basis_and_altogether(store: CostStore) -> None:
    told = replace(KIND, keywords='{"a|b": 1}')
    other = replace(KIND, method="MP2", basis="cc-pVDZ")
    for kind in (KIND, told, other):
        store.add(kind, SEEN)
    assert store.programs() == ["pyscf"]
    lower = {replace(kind, method=kind.method.lower(), basis=kind.basis.lower()) for kind in (KIND, told, other)}
    assert set(store.kept("pyscf")) == lower
    assert store.forget("pyscf", "ccsd") == 0
    assert store.forget("pyscf", KIND.method.upper(), KIND.basis) == 2 * len(SEEN)
    assert [kind.method for kind in store.kept("pyscf")] == ["mp2"]
    assert store.forget("pyscf", basis="cc-pvdz") == len(SEEN)
    assert store.programs() == []
    store.add(KIND, SEEN)
    store.path("pyscf").write_text("garbage")
    with pytest.raises(MachineError, match="--forget pyscf"):
        store.forget("pyscf", KIND.method)
    assert store.forget("pyscf") == 0
    assert not store.path("pyscf").exists()


def test_where_nothing_can_be_written_is_found_out_before(store: CostStore, tmp_path: Path) -> None:
    store.check("pyscf")
    assert not any(tmp_path.iterdir())
    (tmp_path / "qcthreads").write_text("in the way")
    with pytest.raises(MachineError, match="is no directory; name another directory with XDG_DATA_HOME"):
        store.check("pyscf")


def test_a_basis_of_none_is_no_basis(store: CostStore) -> None:
    kind = Kind("xtb", "energy", "GFN2-xTB", basis=None)  # type: ignore[arg-type]  # as JSON has it
    assert kind == Kind("xtb", "energy", "GFN2-xTB", "")
    store.add(kind, SEEN)
    assert store.model(kind).observations == tuple(SEEN)


def test_the_examples_of_the_reference_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs/reference/costs.md").read_text()
    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(example, {})
    by_width, uncertain, speedups, scaled = capsys.readouterr().out.splitlines()
    at_two, at_three = map(float, speedups.split())
    assert at_two == pytest.approx(10.0 / 5.6)
    assert at_two < at_three < 10.0 / 3.5
    assert ast.literal_eval(scaled) == pytest.approx({1: 20.0, 2: 11.2, 3: 20.0 / at_three, 4: 7.0})
    times_s = ast.literal_eval(by_width)
    assert list(times_s) == [1, 2]
    assert times_s[1] > times_s[2] > 0  # as shipped: nothing was measured here
    assert f"Estimate(value={times_s[2]}" in uncertain
