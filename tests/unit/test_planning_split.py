"""Workers x threads from counts, costs, memory and ceilings; every refusal with its numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcthreads.errors import InputError, OversubscriptionError
from qcthreads.planning import choose_split

GIB = 1024**3


@pytest.mark.parametrize(
    ("n_tasks", "usable", "options", "expected"),
    [
        pytest.param(136, 16, {}, (16, 1), id="many small calculations: one thread each"),
        pytest.param(136, 2, {}, (2, 1), id="two cores"),
        pytest.param(3, 2, {}, (2, 1), id="one more than fits"),
        pytest.param(17, 16, {}, (16, 1), id="one more than fits on many"),
        pytest.param(4, 16, {}, (4, 4), id="fewer calculations than PUs"),
        pytest.param(1, 16, {}, (1, 16), id="one calculation"),
        pytest.param(0, 4, {}, (1, 4), id="nothing left to compute"),
        pytest.param(3, 16, {"useful_width": 2}, (3, 2), id="the program stops scaling"),
        pytest.param(3, 16, {"useful_width": 1}, (3, 1), id="the program does not thread"),
        pytest.param(50, 16, {"max_workers": 4}, (4, 4), id="ceiling of workers"),
        pytest.param(50, 16, {"max_total_threads": 6}, (6, 1), id="ceiling of threads"),
        pytest.param(50, 16, {"workers": 3}, (3, 5), id="workers asked"),
        pytest.param(50, 16, {"threads": 3}, (5, 3), id="threads asked"),
        pytest.param(2, 16, {"threads": 3}, (2, 3), id="threads asked, few calculations"),
        pytest.param(50, 16, {"workers": 4, "threads": 4}, (4, 4), id="both asked"),
        pytest.param(
            50,
            16,
            {"workers": 4, "threads": 4, "useful_width": 1},
            (4, 1),
            id="asked of a program that does not thread",
        ),
        pytest.param(
            50, 16, {"workers": 4, "useful_width": 2}, (4, 2), id="workers asked of a program that stops scaling"
        ),
    ],
)
def test_the_split(n_tasks: int, usable: int, options: dict[str, Any], expected: tuple[int, int]) -> None:
    split = choose_split(n_tasks, [], usable, 0, **options)
    assert (split.workers, split.threads) == expected


def test_one_large_calculation_among_small_ones_gets_wider_workers() -> None:
    split = choose_split(7, [100.0, *[1.0] * 6], 16, 0)
    assert split.threads > 2
    assert "wider workers end the longest calculations sooner" in split.reasons


def test_memory_for_few_makes_wider_workers_that_share_it() -> None:
    split = choose_split(20, [], 16, 64 * GIB, 16 * GIB)
    assert (split.workers, split.threads, split.memory_bytes) == (4, 4, 16 * GIB)
    assert "memory for 4 at a time: each needs up to 16 GiB" in split.reasons


def test_the_reasons_begin_with_the_decision() -> None:
    assert choose_split(136, [], 16, 0).reasons[0] == "16 PUs, 136 calculations: 16 workers x 1 thread"


def test_ceilings_above_the_machine_give_fewer_and_say_why() -> None:
    split = choose_split(50, [], 2, 0, max_workers=4, max_total_threads=8, explain="2 CPUs may be used: mask 0-1")
    assert (split.workers, split.threads) == (2, 1)
    assert "fewer than max_total_threads=8: 2 CPUs may be used: mask 0-1" in split.reasons
    assert "fewer than max_workers=4: 2 CPUs may be used: mask 0-1" in split.reasons
    assert "fewer than max_workers=4: there are 2 calculations" in choose_split(2, [], 16, 0, max_workers=4).reasons


def test_a_worker_may_be_given_less_than_its_share_of_the_memory() -> None:
    split = choose_split(50, [], 2, 64 * GIB, GIB, memory_per_worker_bytes=GIB)
    assert split.memory_bytes == GIB
    assert "1 GiB for each worker, as asked" in split.reasons
    assert "4 GiB for the worker" in choose_split(1, [], 2, 4 * GIB).reasons


@pytest.mark.parametrize(
    ("usable", "memory", "need", "options", "words"),
    [
        (
            2, 0, 0, {"workers": 4, "threads": 8, "explain": "2 CPUs may be used: mask 0-1"},
            "4 workers x 8 threads = 32 threads, but 2 CPUs may be used: mask 0-1; "
            "ask for at most 2 workers x 1 thread or 1 worker x 2 threads",
        ),
        (
            16, 0, 0, {"workers": 4, "threads": 8},
            "16 CPUs may be used; ask for at most 2 workers x 8 threads or 4 workers x 4 threads",
        ),
        (2, 0, 0, {"threads": 3}, "= 3 threads, but 2 CPUs may be used; ask for at most 1 worker x 2 threads"),
        (2, 0, 0, {"workers": 3}, "= 3 threads, but 2 CPUs may be used; ask for at most 2 workers x 1 thread"),
        (
            16, 0, 0, {"workers": 3, "threads": 2, "max_total_threads": 4},
            "but max_total_threads allows 4 of 16 CPUs; ask for at most 2 workers x 2 threads or 3 workers x 1 thread",
        ),
        (16, 8 * GIB, 4 * GIB, {"workers": 4}, "4 workers x 4 GiB = 16 GiB, but 8 GiB may be used; ask for at most 2"),
        (16, 8 * GIB, 40 * GIB, {}, "1 worker x 40 GiB = 40 GiB, but 8 GiB may be used; allow more memory"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_numbers(
    usable: int, memory: int, need: int, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(OversubscriptionError) as refused:
        choose_split(50, [], usable, memory, need, **options)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((5, [], 4, 0), {"workers": 0}, "workers is 0; ask for 1 at least"),
        ((5, [], 4, 0), {"max_total_threads": -1}, "max_total_threads is -1"),
        ((5, [], 4, 0), {"workers": 3, "max_workers": 2}, "3 workers were asked for, but max_workers is 2"),
        ((5, [1.0], 4, 0), {}, "5 calculations with 1 costs on 4 CPUs"),
        ((5, [], 0, 0), {}, "5 calculations with 0 costs on 0 CPUs"),
    ],
)
def test_nonsense_is_refused(arguments: tuple[Any, ...], options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        choose_split(*arguments, **options)


@given(
    costs=st.lists(st.floats(0.1, 1e6), min_size=1, max_size=40),
    usable=st.integers(1, 256),
    memory=st.integers(1, 64),
    need=st.integers(0, 64),
    max_total=st.none() | st.integers(1, 300),
    max_workers=st.none() | st.integers(1, 300),
    useful=st.none() | st.integers(1, 300),
    each=st.integers(0, 9),
)
def test_what_is_chosen_always_fits(
    costs: list[float],
    usable: int,
    memory: int,
    need: int,
    max_total: int | None,
    max_workers: int | None,
    useful: int | None,
    each: int,
) -> None:
    try:
        split = choose_split(
            len(costs),
            costs,
            usable,
            memory,
            need,
            max_total_threads=max_total,
            max_workers=max_workers,
            useful_width=useful,
            memory_per_process_bytes=each,
        )
    except OversubscriptionError:
        assert need > memory
        return
    assert 1 <= split.workers <= min(len(costs), max_workers or usable)
    assert 1 <= split.threads <= (useful or usable)
    assert split.workers * split.threads <= min(usable, max_total or usable)
    assert split.workers * split.memory_bytes <= memory
    assert split.workers * (need + (split.threads - 1) * each) <= memory or need == 0
