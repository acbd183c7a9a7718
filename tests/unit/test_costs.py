"""Speedup and cost models: known laws are found again in noisy data, nothing is made up, outliers do no harm."""

from __future__ import annotations

import json
import math
import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcthreads.errors import InputError
from qcthreads.execution.cost_store import shipped
from qcthreads.planning import costs
from qcthreads.planning.cost import assumed_parallel_fraction, assumed_speedup
from qcthreads.planning.costs import CostModel, Observation, Size, representative, speedups_of, thinned
from qcthreads.planning.speedup import SpeedupModel

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16)


def test_amdahls_law_is_found_again_beyond_the_widths_measured() -> None:
    fitted = SpeedupModel.fit({width: 10 * (0.2 + 0.8 / width) for width in (1, 2, 4, 8)})
    assert fitted.speedup(64) == pytest.approx(1 / (0.2 + 0.8 / 64), rel=0.01)
    assert fitted.speedup(3) == pytest.approx(1 / (0.2 + 0.8 / 3), rel=0.01)


def test_saturation_is_found_again() -> None:
    fitted = SpeedupModel.fit({width: 0.1 + 0.3 / width + 0.6 / min(width, 4) for width in WIDTHS})
    assert fitted.saturation_width == 4
    assert fitted.speedup(32) == pytest.approx(1 / (0.1 + 0.3 / 32 + 0.6 / 4), rel=0.02)


def test_measured_widths_that_get_slower_are_believed() -> None:
    times_s = {1: 1.0, 2: 0.6, 4: 0.9}
    fitted = SpeedupModel.fit(times_s)
    assert {width: fitted.share(width) for width in times_s} == pytest.approx(times_s)


def test_between_measured_widths_it_is_no_faster_than_both_and_beyond_them_it_goes_on_from_the_last() -> None:
    """Bandwidth is used up, further threads cost more than they bring, and times scatter: no law fits all of it."""
    noise = random.Random(1)
    for _ in range(120):
        parallel, knee, cost = noise.uniform(0.5, 0.98), noise.choice((2, 4, 8, 64)), noise.choice((0, 0.02))
        table = {
            width: (1 - parallel + parallel / min(width, knee) + cost * max(0, width - knee))
            * noise.lognormvariate(0, 0.05)
            for width in (1, 2, 4, 8, 16, 32)
        }
        fitted = SpeedupModel.fit(table)
        for width, around in {3: (2, 4), 6: (4, 8), 12: (8, 16), 24: (16, 32)}.items():
            low, high = sorted(table[one] / table[1] for one in around)
            assert 0.97 * low < fitted.share(width) < 1.03 * high
        assert fitted.share(33) == pytest.approx(table[32] / table[1], rel=0.04)


@given(st.dictionaries(st.sampled_from(WIDTHS), st.floats(0.01, 1e4), min_size=1))
@settings(max_examples=200, deadline=None)
def test_every_model_is_sound(times_s: dict[int, float]) -> None:
    fitted = SpeedupModel.fit(times_s)
    assert fitted.serial + fitted.compute + fitted.memory == pytest.approx(1)
    assert min(fitted.serial, fitted.compute, fitted.memory) >= 0
    for width in (*times_s, 1, 5, 100):
        assert 0 < fitted.share(width) < math.inf
    if len(times_s) > 1:
        for one in times_s:
            for other in times_s:
                assert fitted.share(one) / fitted.share(other) == pytest.approx(times_s[one] / times_s[other])


@pytest.mark.parametrize("times_s", [{}, {0: 1.0}, {1: 0.0}, {1: math.nan}, {2: math.inf}])
def test_times_that_cannot_be_are_refused(times_s: dict[int, float]) -> None:
    with pytest.raises(InputError, match="speedup"):
        SpeedupModel.fit(times_s)


def _truth(size: Size) -> float:
    return 0.3 + 4e-6 * size.basis_functions**3 * (size.electrons / size.basis_functions) ** 1.5


def _water(molecules: int, ghosts: int = 0) -> Size:
    return Size(24 * (molecules + ghosts), 10 * molecules)


def test_a_known_law_is_found_again_in_noise_with_outliers() -> None:
    noise = random.Random(1)
    seen = []
    for molecules in (1, 2, 3, 4):
        for ghosts in (0, 1, 2, 4):
            size = _water(molecules, ghosts)
            seen.append(Observation(size, 1, _truth(size) * math.exp(noise.gauss(0, 0.05)), 0))
    seen[3] = Observation(seen[3].size, 1, 30 * seen[3].wall_s, 0)  # somebody suspended it
    model = CostModel(method="hf", observations=tuple(seen))
    for size in (_water(5), _water(6, 2), _water(2, 3)):
        estimate = model.seconds(size)
        assert estimate is not None
        assert abs(math.log(estimate.value / _truth(size))) < 0.35
        assert estimate.factor < 2


def _with_effects(noise: random.Random, times: int = 1) -> tuple[CostModel, dict[Size, float]]:
    """Sizes that are by 0.25 from any law (iterations, shapes), measured with errors of 0.08; and what is true."""
    sizes = [_water(n, ghosts) for n in (1, 2, 3, 4) for ghosts in (0, 1, 2)]
    true_s = {size: _truth(size) * noise.lognormvariate(0, 0.25) for size in sizes}
    seen = [
        Observation(size, width, true_s[size] * (0.3 + 0.7 / width) * noise.lognormvariate(0, 0.08), 0)
        for size in sizes
        for width in (1, 2)
        for _ in range(times)
    ]
    return CostModel(method="hf", observations=tuple(seen)), true_s


@pytest.mark.parametrize("width", [1, 2])
def test_a_size_that_was_measured_is_predicted_as_measured_and_better_the_more_often(width: int) -> None:
    noise = random.Random(7)
    law_errors, factors = [], []
    errors: dict[int, list[float]] = {1: [], 9: []}
    inside = []
    for times in errors:
        for _ in range(10):
            model, true_s = _with_effects(noise, times)
            assert model.seconds_law is not None
            for size, alone_s in true_s.items():
                will_be_s = alone_s * (0.3 + 0.7 / width)
                estimate = model.seconds(size, width)
                assert estimate is not None
                assert estimate.source == "seen"
                law = model.seconds_law.estimate(size)
                law_errors.append(abs(math.log(law.value / alone_s)))
                errors[times].append(abs(math.log(estimate.value / will_be_s)))
                factors.append(estimate.factor / law.factor)
                again_s = will_be_s * noise.lognormvariate(0, 0.08)
                inside.append(abs(math.log(estimate.value / again_s)) < math.log(estimate.factor))
    assert statistics.median(errors[9]) < statistics.median(errors[1]) < 0.6 * statistics.median(law_errors)
    assert max(factors) < 1
    assert 0.55 < statistics.mean(inside) < 0.9  # 0.68: exact


def test_one_time_that_fits_to_nothing_does_little_and_many_of_the_same_are_believed() -> None:
    exact = [Observation(_water(n, g), 1, _truth(_water(n, g)), 0) for n in (1, 2, 3, 4) for g in (0, 1, 2)]
    size = _water(2, 1)
    asleep = Observation(size, 1, 30 * _truth(size), 0)
    others = [seen for seen in exact if seen.size != size]
    alone, among, many = (
        CostModel(method="hf", observations=(*others, *seen)).seconds(size)
        for seen in ([asleep], [asleep, *[replace(asleep, wall_s=_truth(size))] * 4], [asleep] * 9)
    )
    assert alone is not None
    assert among is not None
    assert many is not None
    assert alone.value < 3 * _truth(size)
    assert among.value == pytest.approx(_truth(size), rel=0.1)
    assert many.value == pytest.approx(30 * _truth(size), rel=0.2)


def test_that_a_size_was_measured_at_many_widths_makes_it_no_surer() -> None:
    """Their times are tied to that of width 1 by their own speedup: an odd one makes all of them odd."""
    law = costs.Estimate(1.0, 1.2)
    once = costs._corrected(law, {1: [3.0]})
    often = costs._corrected(law, {width: [3.0] for width in (1, 2, 4, 8)})
    assert (often.value, often.factor) == pytest.approx((once.value, once.factor))
    again = costs._corrected(law, {1: [3.0] * 4})
    assert once.value < again.value < 3.0


def test_a_size_between_those_measured_is_the_laws() -> None:
    model, _ = _with_effects(random.Random(8))
    assert model.seconds_law is not None
    assert model.seconds(_water(3, 3)) == model.seconds_law.estimate(_water(3, 3))


def test_one_observation_sets_the_scale_and_theory_the_slope() -> None:
    model = CostModel(method="ccsd(t)", observations=(Observation(Size(50, 10), 1, 2.0, 0),))
    double = model.seconds(Size(100, 20))
    at_hand = model.seconds(Size(50, 10))
    assert double is not None
    assert at_hand is not None
    assert at_hand.value == pytest.approx(2.0, rel=0.05)
    assert double.value / at_hand.value == pytest.approx(2**7, rel=0.05)
    assert double.factor > at_hand.factor > 1


def _peaks(peaks_mib: dict[int, float]) -> CostModel:
    """xtb's size is its electrons."""
    seen = [Observation(Size(n, n), 1, 1.0, round(peak * 1024**2)) for n, peak in peaks_mib.items()]
    return CostModel(method="gfn2-xtb", observations=tuple(seen))


def _peak_mib(peaks_mib: dict[int, float], n: int) -> tuple[float, float]:
    estimate = _peaks(peaks_mib).memory_bytes(Size(n, n))
    assert estimate is not None
    return estimate.value / 1024**2, estimate.factor


def test_memory_of_one_size_is_mostly_what_is_resident_whatever_the_size() -> None:
    """xtb takes 82 MiB for one water and 83 for three; the cubic law alone says 17 GiB for six, and 3 for one."""
    above, factor = _peak_mib({10: 82}, 60)
    assert above / factor < 83 < above < 1000
    assert _peak_mib({30: 83}, 10)[0] == pytest.approx(82, rel=0.1)
    large, _ = _peak_mib({200: 8000}, 400)
    assert large == pytest.approx(8 * 8000, rel=0.2)


def test_between_sizes_memory_is_between_theirs_and_of_a_size_it_is_the_highest_seen_at_any_width() -> None:
    assert 100 <= _peak_mib({10: 100, 100: 101}, 90)[0] <= 101
    seen = [Observation(Size(24, 10), width, 1.0, peak) for width, peak in ((1, 96), (2, 281), (1, 90))]
    estimate = CostModel(method="hf", observations=tuple(seen)).memory_bytes(Size(24, 10))
    assert estimate is not None
    assert (estimate.value, estimate.source) == (281, "seen")


def test_of_another_machine_seconds_are_taken_but_no_speedups() -> None:
    """As measured on one whose other CPUs were busy."""
    seen = [Observation(_water(n), width, width * n**3.0, 0) for n in (1, 2, 3) for width in (1, 2, 4)]
    here = CostModel(method="hf", observations=tuple(seen))
    elsewhere = replace(here, measured_on="a laptop")
    assert here.share(_water(20), 4) == pytest.approx(4)
    for width in (1, 2, 4, 32):
        assert elsewhere.share(_water(20), width) == pytest.approx(50 / 530 + 480 / 530 / width)
    estimate = elsewhere.seconds(_water(3))
    assert estimate is not None
    assert estimate.value == pytest.approx(27, rel=0.2)


def test_nothing_observed_is_no_number() -> None:
    model = CostModel(method="mp2")
    assert model.seconds(Size(50, 10)) is None
    assert model.memory_bytes(Size(50, 10)) is None
    assert model.times_s(Size(50, 10), [1, 2]) is None


def test_uncertainty_shrinks_with_what_was_seen_and_covers_the_truth() -> None:
    noise = random.Random(2)
    inside = total = 0
    for _ in range(30):
        seen = tuple(
            Observation(size, 1, _truth(size) * math.exp(noise.gauss(0, 0.1)), 0)
            for size in [_water(n) for n in (1, 2, 3, 4)] * 2
        )
        estimate = CostModel(method="hf", observations=seen).seconds(_water(5))
        assert estimate is not None
        inside += abs(math.log(estimate.value / _truth(_water(5)))) < 2 * math.log(estimate.factor)
        total += 1
    assert inside >= 0.9 * total


def test_observations_at_other_widths_count_by_the_speedup_seen() -> None:
    seen = [
        Observation(_water(n), width, _truth(_water(n)) * (0.4 + 0.6 / width), 100 * n)
        for n in (1, 2, 3)
        for width in (1, 2, 4)
    ]
    for _, found in speedups_of(seen):
        assert found.speedup(8) == pytest.approx(1 / (0.4 + 0.6 / 8), rel=0.02)
    model = CostModel(method="hf", observations=tuple(seen))
    wide = model.seconds(_water(3), width=4)
    assert wide is not None
    assert wide.value == pytest.approx(_truth(_water(3)) * 0.55, rel=0.2)
    assert CostModel.from_json(json.loads(json.dumps(model.to_json()))) == model


def _alone(width: int) -> CostModel:
    """One size, measured at one width."""
    return CostModel(method="mp2", observations=(Observation(Size(48, 20), width, 1.0, 0),))


@pytest.mark.parametrize(("measured", "nearer", "farther"), [(1, 2, 4), (4, 2, 1)])
def test_of_an_assumed_speedup_less_is_known_the_farther_a_width_is_from_the_measured_one(
    measured: int, nearer: int, farther: int
) -> None:
    model = _alone(measured)
    found = [model.seconds(Size(48, 20), width) for width in (measured, nearer, farther)]
    told = [one for one in found if one is not None]
    assert [one.source for one in told] == ["seen", "law", "law"]
    assert 1 < told[0].factor < told[1].factor < told[2].factor
    times_s = model.times_s(Size(48, 20), (measured, nearer, farther))
    assert times_s == {width: one.value for width, one in zip((measured, nearer, farther), told, strict=True)}


def test_of_speedups_that_are_assumed_two_of_three_are_as_far_as_is_told() -> None:
    inside = []
    for program in ("pyscf", "psi4", "nwchem"):
        for key, several in shipped(program).observations.items():
            timed = [(seen, seen.wall_s) for seen in several if seen.wall_s is not None]
            at_one = tuple(seen for seen, _ in timed if seen.width == 1)
            model = CostModel(method=key.split("|")[1], observations=at_one)
            for seen, wall_s in timed:
                told = model.seconds(seen.size, seen.width)
                assert told is not None
                if seen.width > 1 and seen.size in {one.size for one in at_one}:
                    inside.append(abs(math.log(told.value / wall_s)) < math.log(told.factor))
    assert len(inside) > 40
    assert 0.6 < statistics.mean(inside) < 0.8


def test_small_ones_scale_less_than_large_ones_and_between_is_between() -> None:
    seen = [Observation(_water(1), width, 1.0, 0) for width in (1, 2)]
    seen += [Observation(_water(4), width, 100.0 / width, 0) for width in (1, 2)]
    model = CostModel(method="mp2", observations=tuple(seen))
    assert model.share(_water(1), 2) == pytest.approx(1)
    assert model.share(_water(2), 2) == pytest.approx(0.75)
    assert model.share(_water(4), 2) == pytest.approx(0.5)
    assert model.share(_water(9), 2) == pytest.approx(0.5)
    assert CostModel(method="mp2", useful_width=1).share(_water(2), 8) == 1


def test_no_size_is_forgotten_for_another() -> None:
    many = [Observation(_water(1), 1, float(n + 1), 0) for n in range(100)]
    few = [Observation(_water(5), 1, 7.0, 0)]
    kept = thinned([*few, *many], 10)
    assert len(kept) == 10
    assert few[0] in kept
    assert many[-1] in kept
    assert thinned(many, 1000) == tuple(many)


def test_one_stands_for_all_that_are_alike() -> None:
    batch = [Observation(_water(n), width, 1.0 + at, 100 + at) for n in (1, 2) for width in (1, 2) for at in range(5)]
    kept = representative(random.Random(3).sample(batch, len(batch)))
    assert set(kept) == {Observation(_water(n), width, 3.0, 104) for n in (1, 2) for width in (1, 2)}


def test_a_run_that_others_disturbed_does_not_spoil_a_model() -> None:
    measured = [Observation(_water(n, g), 1, _truth(_water(n, g)), 0) for n in (1, 2, 3, 4) for g in (0, 1, 2)]
    disturbed = [Observation(_water(n), 1, 5 * _truth(_water(n)), 0) for n in (1, 2) for _ in range(200)]
    model = CostModel(method="hf", observations=(*measured, *representative(disturbed)))
    for size in (_water(1), _water(2), _water(3), _water(5)):
        estimate = model.seconds(size)
        assert estimate is not None
        assert abs(math.log(estimate.value / _truth(size))) < 0.3 * math.log(5)


def test_a_law_that_a_constant_hides_is_found_again() -> None:
    """Resident memory: a program with its libraries, and integrals that only the larger ones show."""

    def peak_bytes(size: Size) -> int:
        return round(130e6 + 1.8 * size.basis_functions**4)

    noise = random.Random(4)
    seen = [
        Observation(_water(n), 1, 1.0, round(peak_bytes(_water(n)) * math.exp(noise.gauss(0, 0.005))))
        for n in (1, 2, 3, 4, 6)
    ]
    model = CostModel(method="mp2", observations=tuple(seen))
    for n in (1, 2, 3, 4, 5, 6):
        estimate = model.memory_bytes(_water(n))
        assert estimate is not None
        assert estimate.value == pytest.approx(peak_bytes(_water(n)), rel=0.05)
        assert estimate.factor < 1.06


def test_what_was_disturbed_took_no_less_than_it_would_have_taken() -> None:
    """Of all but one, which theory makes too much of: nearly all of it is the start of the program."""
    one = Observation(Size(10, 10), 1, 0.012, 1)
    disturbed = [Observation(Size(n, n), 1, None, 1, at_most_s=0.36 * n / 320) for n in (10, 60, 320)]
    for size in (Size(60, 60), Size(300, 300)):
        bound = next(seen for seen in disturbed if size.within(seen.size)).at_most_s or 0.0
        alone = CostModel(method="gfn2-xtb", observations=(one,)).seconds(size)
        bounded = CostModel(method="gfn2-xtb", observations=(one, *disturbed)).seconds(size)
        assert alone is not None
        assert bounded is not None
        assert alone.value > bound == bounded.value
    model = CostModel(method="gfn2-xtb", observations=(*representative(disturbed * 2), one))
    assert CostModel.from_json(json.loads(json.dumps(model.to_json()))) == model


@pytest.mark.parametrize(
    "data", [{}, {"method": "hf", "observations": [{}], "useful_width": None}, {"observations": 3}]
)
def test_data_that_are_no_model_are_refused(data: dict[str, object]) -> None:
    with pytest.raises(InputError, match="no cost model"):
        CostModel.from_json(data)


def test_what_is_taken_for_parallel_lies_between_what_was_measured_of_programs() -> None:
    """Of calculations of 0.1 s and longer: most of PySCF's gain more from a second thread, most of the others less."""

    def slower(program: str) -> list[bool]:
        walls: dict[tuple[str, Size], dict[int, float]] = {}
        for key, several in shipped(program).observations.items():
            for seen in several:
                walls.setdefault((key, seen.size), {})[seen.width] = seen.wall_s
        return [
            by_width[1] / by_width[2] < assumed_speedup(2, assumed_parallel_fraction(size.basis_functions))
            for (_, size), by_width in walls.items()
            if {1, 2} <= by_width.keys() and by_width[1] >= 0.1
        ]

    assert statistics.mean(slower("pyscf")) < 0.5
    assert statistics.mean(slower("psi4") + slower("nwchem")) > 0.5
