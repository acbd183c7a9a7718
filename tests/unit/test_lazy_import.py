"""Holds ``import qcthreads`` to importing nothing but importlib, and its names to being there."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import qcthreads
from qcthreads.host import native_status
from qcthreads.host.build_info import CODE_FLAGS


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_the_package_loads_nothing_but_importlib() -> None:
    loaded = _python(
        "import sys, importlib\nbefore = set(sys.modules)\nimport qcthreads\nprint(*sorted(set(sys.modules) - before))"
    )
    assert loaded.split() == ["qcthreads"]


def test_a_name_loads_when_it_is_used() -> None:
    loaded = _python(
        "import sys, qcthreads\nqcthreads.CpuSet\nprint('numpy' in sys.modules, 'qcthreads.cpuset' in sys.modules)"
    )
    assert loaded.split() == ["False", "True"]


def test_every_public_name_is_there() -> None:
    for name in qcthreads.__all__:
        assert getattr(qcthreads, name) is not None
    assert set(qcthreads.__all__) <= set(dir(qcthreads))


def test_a_wrong_name_is_an_attribute_error() -> None:
    assert not hasattr(qcthreads, "QCThreadsManager")


def test_the_command_line_parses_without_the_numerical_packages() -> None:
    heavy = ("numpy", "qcengine", "pydantic", "qcmanybody", "rich")
    code = "import sys\nfrom qcthreads.cli import main\nmain(['topo', '--help'])\n"
    code += f"print(*sys.modules.keys() & set({heavy}))"
    assert _python(code).splitlines()[-1] == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no exec")
def test_a_command_waits_for_no_import_that_takes_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QCTHREADS_LEASES", str(tmp_path))
    slow = {"dataclasses", "inspect", "json", "locale", "logging", "psutil", "queue", "subprocess"}
    slow |= {"ctypes", "pathlib", "typing"} if native_status()[0] else set()  # the portable back end needs them
    code = "import os, sys\nbefore = set(sys.modules)\nfrom qcthreads.cli import main\n"
    code += f"os._exit = lambda status: print(*sys.modules.keys() & {slow} - before, 'left', status)\n"
    code += "main(['exec', '--', 'true'])\n"
    assert _python(code).splitlines() == ["left 0"]


def test_what_the_extension_is_told_of_inspect_is_what_inspect_says() -> None:
    assert {name: getattr(inspect, name) for name in CODE_FLAGS} == CODE_FLAGS
    code = "from qcthreads import host\nhost.native_status()\nimport inspect\n"
    code += "print(inspect.__name__, inspect.CO_NEWLOCALS)\n"
    assert _python(code) == f"inspect {inspect.CO_NEWLOCALS}\n"


@pytest.mark.skipif(not native_status()[0], reason=native_status()[1])
def test_an_extension_that_asks_for_more_of_inspect_is_told_by_inspect() -> None:
    code = "from qcthreads.host import build_info\nbuild_info.CODE_FLAGS.pop('CO_GENERATOR')\n"
    assert _python(f"{code}print(*build_info.native_status())") == "True in use\n"
