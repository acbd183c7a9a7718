"""ParallelConfig and HybridParallelConfig: the specified fields and defaults, and the refusal of wrong values."""

from __future__ import annotations

import dataclasses
import os.path

import pytest

from qcthreads import HybridParallelConfig, ParallelConfig
from qcthreads.manybody.config import strategy_name


def test_the_specified_fields_and_defaults():
    assert dataclasses.asdict(ParallelConfig()) == {
        "max_workers": 4,
        "execution_mode": "multiprocessing",
        "memory_limit_mb": 1000,
        "timeout_seconds": 3600,
        "use_qcengine": True,
        "qc_program": "psi4",
        "basis_set": "sto-3g",
        "qcengine_config": None,
        "compute": None,
        "at_most": None,
        "setup": None,
        "wrap": None,
        "learn": True,
    }
    own = [field.name for field in dataclasses.fields(HybridParallelConfig)][len(dataclasses.fields(ParallelConfig)) :]
    hybrid = dataclasses.asdict(HybridParallelConfig())
    assert {name: hybrid[name] for name in own} == {
        "qc_threads_per_fragment": 1,
        "enable_thread_affinity": False,
        "thread_allocation_strategy": "balanced",
        "max_total_threads": None,
    }
    assert issubclass(HybridParallelConfig, ParallelConfig)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_workers": 0}, "max_workers: 0; .*1 or more"),
        ({"max_workers": 2.0}, "max_workers: 2.0"),
        ({"at_most": {"orca": 0}}, "at_most of orca: 0"),
        ({"wrap": "env 'x"}, "quote it as in a shell"),
        ({"max_workers": True}, "max_workers: True"),
        ({"execution_mode": "mpi"}, "'mpi' is not one of multiprocessing, threading, serial"),
        ({"memory_limit_mb": 0}, "memory_limit_mb: 0"),
        ({"timeout_seconds": -1}, "timeout_seconds: -1"),
        ({"qc_program": ""}, "qc_program"),
        ({"use_qcengine": False}, "needs compute="),
        ({"compute": os.path.join}, "use_qcengine=False"),
        ({"use_qcengine": False, "compute": lambda given: given}, "lambda"),
        ({"use_qcengine": False, "compute": "no_colon"}, "module:function"),
        ({"use_qcengine": False, "compute": 3}, "not a function"),
        ({"qcengine_config": {"ncores": 2}}, "ncores=2, but each calculation has 1"),
        ({"qcengine_config": {"memory": 4}}, "memory=4 GiB, but memory_limit_mb=1000"),
        ({"qcengine_config": ["ncores"]}, "give a dict"),
        ({"qcengine_config": {"ncore": 1}}, "'ncore' is not in QCEngine's task_config; there are: ncores, nnodes"),
        ({"qcengine_config": {"memory": "4"}}, "memory: '4'; give a number"),
        ({"memory_limit_mb": float("inf")}, "memory_limit_mb: inf"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds: nan"),
        ({"basis_set": ""}, "basis_set: ''; give the name of a basis set"),
        ({"use_qcengine": "no"}, "use_qcengine: 'no'; give True or False"),
    ],
)
def test_wrong_values_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        ParallelConfig(**values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"qc_threads_per_fragment": 0}, "qc_threads_per_fragment: 0"),
        (
            {"thread_allocation_strategy": "best"},
            "'best' is not known; there are: auto, balanced, adaptive, memory-aware",
        ),
        ({"max_total_threads": 0}, "max_total_threads: 0"),
        ({"enable_thread_affinity": 1}, "enable_thread_affinity: 1; give True or False"),
        ({"qc_threads_per_fragment": 4, "max_total_threads": 2}, "not one calculation could run"),
        ({"qc_threads_per_fragment": 2, "qcengine_config": {"ncores": 1}}, "ncores=1, but each calculation has 2"),
    ],
)
def test_wrong_values_of_the_hybrid_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        HybridParallelConfig(**values)


@pytest.mark.usefixtures("others_strategy")
def test_a_strategy_of_another_package_is_known_under_either_spelling():
    assert strategy_name("Of_Theirs") == strategy_name("of-theirs") == "of-theirs"
    with pytest.raises(ValueError, match=r"'best' is not known; there are: auto, .*, memory-aware, absent, of-theirs"):
        HybridParallelConfig(thread_allocation_strategy="best")


def test_the_names_in_a_task_config_are_qcengines():
    from qcengine.config import TaskConfig

    from qcthreads.manybody.config import _TASK_CONFIG

    assert set(_TASK_CONFIG) == set(TaskConfig.model_fields)


def test_what_says_the_same_is_fine():
    HybridParallelConfig(qc_threads_per_fragment=2, qcengine_config={"ncores": 2, "retries": 1})
    ParallelConfig(memory_limit_mb=1000, qcengine_config={"memory": 0.9313})


def test_a_nested_function_is_refused_with_the_reason():
    def nested(given):
        return given

    with pytest.raises(ValueError, match=r"nested is nested.*top level of a module"):
        ParallelConfig(use_qcengine=False, compute=nested)


def test_an_importable_function_is_named():
    from qcthreads.manybody.config import compute_name

    config = ParallelConfig(use_qcengine=False, compute=dataclasses.asdict)
    assert compute_name(config.compute) == "dataclasses:asdict"


def test_memory_that_nobody_asked_for_is_said_to_be_the_default():
    executor = pytest.importorskip("qcthreads.manybody.executor", reason="it needs QCManyBody")
    assert executor._memory_why(ParallelConfig()) == "by default (memory_limit_mb=1000)"
    assert executor._memory_why(HybridParallelConfig(memory_limit_mb=500)) == "as asked (memory_limit_mb=500)"
