"""Exit codes and kinds of errors as design and standard library fix them; sizes against hand-made figures."""

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcthreads import errors
from qcthreads.cpuset import CpuSet
from qcthreads.host.binding import binding_error
from qcthreads.units import (
    BOHR_TO_ANGSTROM,
    HARTREE_TO_KCAL_PER_MOL,
    HARTREE_TO_KJ_PER_MOL,
    format_count,
    format_size,
    parse_size,
)


@pytest.mark.parametrize(
    ("error", "code", "also"),
    [
        (errors.InputError, 2, ValueError),
        (errors.MachineError, 3, RuntimeError),
        (errors.OversubscriptionError, 3, ValueError),
        (errors.BindingNotPermittedError, 3, PermissionError),
        (errors.ProcessGoneError, 3, ProcessLookupError),
        (errors.CalculationError, 1, errors.QCThreadsError),
        (errors.StopRequestedError, 4, errors.QCThreadsError),
    ],
)
def test_every_error_has_its_exit_code_and_kind(error, code, also):
    assert error.exit_code == code
    assert issubclass(error, also)
    assert str(error("what happened")) == "what happened"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000),
        ("2GiB", 2**31),
        ("1.5g", 3 * 2**29),
        ("1048576", 2**20),
        ("1k", 1024),
        (" 7 b ", 7),
        (".5M", 2**19),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "1 parsec", "-1G", "1e9", "2 ib"])
def test_nonsense_sizes_are_refused(text):
    with pytest.raises(errors.InputError, match="not a size"):
        parse_size(text)


@given(st.integers(0, 2**50))
def test_sizes_are_written_to_three_figures(size):
    number, unit = format_size(size).split()
    assert parse_size(f"{float(number):f}{unit}") == pytest.approx(size, rel=0.006, abs=1)


@pytest.mark.parametrize(
    ("size", "written"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1000 * 2**20, "1000 MiB"),
        (1010 * 2**20 + 5, "1010 MiB"),
        (2**30 - 1, "1 GiB"),
        (int(99.96 * 2**30), "100 GiB"),
        (int(11.54 * 2**30), "11.5 GiB"),
        (5000 * 2**40, "5000 TiB"),
        (-1000 * 2**20, "-1000 MiB"),
    ],
)
def test_sizes_are_written_as_people_write_them(size, written):
    assert format_size(size) == written


def test_conversions_are_those_of_qcelemental():
    constants = pytest.importorskip("qcelemental", reason="QCElemental comes with the extra 'run'").constants
    assert pytest.approx(constants.conversion_factor("hartree", "kcal/mol"), rel=1e-12) == HARTREE_TO_KCAL_PER_MOL
    assert pytest.approx(constants.conversion_factor("hartree", "kJ/mol"), rel=1e-12) == HARTREE_TO_KJ_PER_MOL
    assert pytest.approx(constants.conversion_factor("bohr", "angstrom"), rel=1e-12) == BOHR_TO_ANGSTROM


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSYS, errors.BindingNotSupportedError),
        (errno.EPERM, errors.BindingNotPermittedError),
        (errno.EACCES, errors.BindingNotPermittedError),
        (errno.EINVAL, errors.BindingNotEnforcedError),
        (errno.ESRCH, errors.ProcessGoneError),
        (errno.ENOENT, errors.ProcessGoneError),
        (errno.EIO, errors.BindingError),
    ],
)
def test_refusals_to_bind_have_one_meaning_each(number, kind):
    error = binding_error(OSError(number, os.strerror(number)), "thread 7", CpuSet([3]))
    assert type(error) is kind
    assert "bind thread 7 to CPUs 3" in str(error)
    assert "read the mask of thread 7" in str(binding_error(OSError(number, "x"), "thread 7"))


def test_counts_are_said_in_the_singular_and_plural() -> None:
    assert [format_count(number, "thread") for number in (0, 1, 2)] == ["0 threads", "1 thread", "2 threads"]
