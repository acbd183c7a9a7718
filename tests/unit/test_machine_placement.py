"""Places are disjoint, close together, on physical cores first; checked on machines of many shapes."""

import dataclasses
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcthreads.cpuset import CpuSet
from qcthreads.errors import InputError, OversubscriptionError
from qcthreads.machine import CpuKind, Machine
from qcthreads.machine.placement import choose, split, thread_cpus, usable_cpus
from qcthreads.machine.synthetic import synthetic_machine

TWO_CORES = synthetic_machine(cores=2)
TWO_SOCKETS = synthetic_machine(packages=2, cores=4, threads=2)  # PU n and n + 8 share core n
FOUR_NODES = synthetic_machine(packages=2, nodes=2, cores=4)
BIG = synthetic_machine(packages=2, nodes=4, llcs=4, cores=8)

shapes = st.builds(
    synthetic_machine,
    packages=st.integers(1, 2),
    nodes=st.integers(1, 2),
    llcs=st.integers(1, 2),
    cores=st.integers(1, 4),
    threads=st.integers(1, 3),
    adjacent_siblings=st.booleans(),
)


@st.composite
def masked_machines(draw):
    """A machine and part of its PUs, as a container may leave them: some cores with one sibling, some with all."""
    machine = draw(shapes)
    allowed = draw(st.sets(st.sampled_from(sorted(machine.cpus_online)), min_size=1))
    return machine, CpuSet(allowed)


def cores_of(machine: Machine, cpus: CpuSet) -> int:
    return sum(not core.cpus.isdisjoint(cpus) for core in machine.cores)


def llcs_of(machine: Machine, cpus: CpuSet) -> int:
    return sum(not domain.cpus.isdisjoint(cpus) for domain in machine.llc_domains)


def texts(places):
    return [str(place) for place in places]


def test_the_synthetic_big_machine_has_the_shape_asked_for():
    assert (len(BIG.cpus_online), len(BIG.packages), len(BIG.numa_nodes), len(BIG.llc_domains)) == (256, 2, 8, 32)
    assert BIG.distances is not None
    assert BIG.distances.matrix[0] == (10, 12, 12, 12, 21, 21, 21, 21)
    with pytest.raises(InputError, match="cores=0"):
        synthetic_machine(cores=0)


@pytest.mark.parametrize(
    ("machine", "places", "width", "expected"),
    [
        (TWO_CORES, 2, 1, ["0", "1"]),
        (TWO_CORES, 1, 2, ["0-1"]),
        (TWO_SOCKETS, 2, 1, ["0", "4"]),
        (TWO_SOCKETS, 2, 3, ["0-2", "4-6"]),
        (TWO_SOCKETS, 3, 2, ["0-1", "2-3", "4-5"]),
        (TWO_SOCKETS, 8, 1, ["0", "1", "2", "3", "4", "5", "6", "7"]),
        (TWO_SOCKETS, 8, 2, ["0,8", "1,9", "2,10", "3,11", "4,12", "5,13", "6,14", "7,15"]),
        (FOUR_NODES, 4, 4, ["0-3", "4-7", "8-11", "12-15"]),
        (FOUR_NODES, 4, 2, ["0-1", "4-5", "8-9", "12-13"]),
        (FOUR_NODES, 2, 8, ["0-7", "8-15"]),
        (FOUR_NODES, 5, 3, ["0-2", "3,7,11", "4-6", "8-10", "12-14"]),
    ],
)
def test_split_by_hand(machine, places, width, expected):
    assert texts(split(machine, machine.cpus_online, places, width)) == expected


@pytest.mark.parametrize(("places", "width"), [(64, 4), (64, 1), (32, 8), (16, 16), (256, 1), (2, 128)])
def test_split_of_256_cpus_keeps_every_place_in_as_few_llc_domains_as_it_needs(places, width):
    made = split(BIG, BIG.cpus_online, places, width)
    assert all(llcs_of(BIG, place) == max(1, width // 8) for place in made)
    per_node = [sum(not node.cpus.isdisjoint(place) for place in made) for node in BIG.numa_nodes]
    assert max(per_node) - min(per_node) <= 1


@given(masked_machines(), st.data())
def test_split_properties(masked, data):
    machine, allowed = masked
    places = data.draw(st.integers(1, len(allowed)))
    width = data.draw(st.integers(1, len(allowed) // places))
    made = split(machine, allowed, places, width)
    assert len(made) == places
    assert all(len(place) == width and place <= allowed for place in made)
    assert len(CpuSet(cpu for place in made for cpu in place)) == places * width
    used = CpuSet(cpu for place in made for cpu in place)
    assert cores_of(machine, used) == min(places * width, cores_of(machine, allowed)), "physical cores first"
    assert list(made) == sorted(made, key=lambda place: place.first)


@given(shapes, st.data())
def test_split_straddles_llc_domains_only_where_it_must(machine, data):
    usable = usable_cpus(machine, machine.cpus_online)
    width = data.draw(st.integers(1, min(len(usable & domain.cpus) for domain in machine.llc_domains)))
    whole = sum(len(usable & domain.cpus) // width for domain in machine.llc_domains)
    places = data.draw(st.integers(1, whole))
    assert all(llcs_of(machine, place) == 1 for place in split(machine, usable, places, width))


@given(masked_machines())
def test_usable_is_one_pu_of_every_core_of_the_mask(masked):
    machine, allowed = masked
    usable = usable_cpus(machine, allowed)
    assert usable <= allowed
    assert [core.cpus & usable for core in machine.cores if core.cpus & allowed] == [
        CpuSet([(core.cpus & allowed).first]) for core in machine.cores if core.cpus & allowed
    ]
    assert usable_cpus(machine, allowed, smt=True) == allowed


@given(masked_machines(), st.data())
def test_choose_properties(masked, data):
    machine, free = masked
    width = data.draw(st.integers(1, len(machine.cpus_online)))
    place = choose(machine, free, width)
    if width > len(free):
        assert place is None
        return
    assert place is not None
    assert len(place) == width
    assert place <= free
    assert cores_of(machine, place) == min(width, cores_of(machine, free)), "physical cores first"


@settings(max_examples=40)
@given(
    st.builds(synthetic_machine, packages=st.just(2), llcs=st.integers(1, 2), cores=st.integers(1, 2)),
    st.data(),
)
def test_choose_takes_as_few_llc_domains_as_brute_force_finds(machine, data):
    free = CpuSet(data.draw(st.sets(st.sampled_from(sorted(machine.cpus_online)), min_size=1)))
    width = data.draw(st.integers(1, len(free)))
    place = choose(machine, free, width)
    assert place is not None
    in_packages = [free & package.cpus for package in machine.packages]
    candidates = [pool for pool in in_packages if len(pool) >= width] or [free]
    best = min(llcs_of(machine, CpuSet(some)) for pool in candidates for some in combinations(pool, width))
    assert llcs_of(machine, place) == best


def test_choose_fills_the_tightest_domain_and_leaves_big_ones_whole():
    assert choose(TWO_SOCKETS, CpuSet.parse("0-3,6-7"), 2) == CpuSet.parse("6-7")
    assert choose(TWO_SOCKETS, CpuSet.parse("0-3,6-7"), 4) == CpuSet.parse("0-3")
    assert choose(FOUR_NODES, CpuSet.parse("0-1,4-7,8-15"), 6) == CpuSet.parse("0-1,4-7")


def test_choose_takes_two_large_domains_rather_than_three_next_to_each_other():
    two_packages = synthetic_machine(packages=2, llcs=2, cores=2)
    assert choose(two_packages, CpuSet.parse("0-2,4-5"), 4) == CpuSet.parse("0-1,4-5")


def test_choose_stays_near():
    assert choose(BIG, CpuSet.parse("0-255"), 2, near=CpuSet([130])) == CpuSet.parse("128-129")
    assert choose(FOUR_NODES, CpuSet.parse("0-3,6,12-15"), 3, near=CpuSet([5])) == CpuSet.parse("0-1,6")


def test_choose_prefers_a_core_that_nobody_works_on():
    free = TWO_SOCKETS.cpus_online - CpuSet.parse("0-2")
    assert choose(TWO_SOCKETS, free, 5) == CpuSet.parse("3-7")


def test_faster_cores_come_first():
    hybrid = Machine(
        cpus_online=TWO_CORES.cpus_online,
        cores=TWO_CORES.cores,
        packages=TWO_CORES.packages,
        numa_nodes=TWO_CORES.numa_nodes,
        cpu_kinds=(CpuKind(CpuSet([0]), 0), CpuKind(CpuSet([1]), 1)),
    )
    assert choose(hybrid, hybrid.cpus_online, 1) == CpuSet([1])
    assert texts(split(hybrid, hybrid.cpus_online, 1, 1)) == ["1"]
    assert texts(split(hybrid, hybrid.cpus_online, 2, 1)) == ["0", "1"]


@pytest.mark.parametrize(("places", "width"), [(4, 8), (3, 1), (0, 1), (1, 0)])
def test_what_does_not_fit_is_refused_with_the_numbers(places, width):
    with pytest.raises(
        OversubscriptionError, match=rf"{places} places x {width} threads = {places * width} .* 2 CPUs: 0-1"
    ):
        split(TWO_CORES, TWO_CORES.cpus_online, places, width)


def test_contradictory_and_partial_descriptions_still_cover_every_cpu():
    """Overlapping nodes, as some firmware reports them, and PUs in no node."""
    nodes = TWO_SOCKETS.numa_nodes
    odd = Machine(
        cpus_online=TWO_SOCKETS.cpus_online,
        cores=TWO_SOCKETS.cores,
        packages=TWO_SOCKETS.packages,
        numa_nodes=(nodes[0], type(nodes[0])(1, nodes[0].cpus | CpuSet([4]), 0)),
    )
    assert sum(part.bits for part in odd.region.parts) == odd.cpus_online.bits
    assert len(split(odd, odd.cpus_online, 16, 1)) == 16
    assert str(odd.nodes_of(CpuSet([4]))) == "1"


@pytest.mark.parametrize(
    ("mask", "count", "one_per_core", "with_siblings"),
    [
        ("0-15", 16, "0-7", "0-15"),  # both siblings of all cores
        ("0,8,1,10", 16, "0-1,10", "0-1,8,10"),  # both of one core, the first of one, the second of one
        ("8-15", 16, "8-15", "8-15"),  # only second siblings
        ("0,8", 1, "0", "0"),
        ("0-15", 4, "0-3", "0-3"),  # a quota of 4: four cores, not two with their siblings
        ("0-3,8-11", 6, "0-3", "0-3,8-9"),
    ],
)
def test_cores_or_hardware_threads_is_a_choice(mask, count, one_per_core, with_siblings):
    """PU n and n + 8 share a core; the default is one PU per core."""
    allowed = CpuSet.parse(mask)
    assert str(thread_cpus(TWO_SOCKETS, allowed, count)) == one_per_core
    assert str(thread_cpus(TWO_SOCKETS, allowed, count, smt=True)) == with_siblings


def test_a_capped_number_takes_performance_cores_first():
    base = synthetic_machine(cores=6)
    kinds = (CpuKind(CpuSet.parse("0-3"), 0), CpuKind(CpuSet.parse("4-5"), 1))
    hybrid = dataclasses.replace(base, cpu_kinds=kinds)
    assert str(thread_cpus(hybrid, CpuSet.parse("0-5"), 2)) == "4-5"
    assert CpuSet.parse("4-5") <= thread_cpus(hybrid, CpuSet.parse("0-5"), 3)
    assert str(thread_cpus(hybrid, CpuSet.parse("0-3"), 2)) == "0-1"
