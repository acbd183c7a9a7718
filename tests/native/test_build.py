"""What comes out of a build with a compiler, without one, and when told to do without; in a copy of the sources."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NEEDED = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "csrc", "src")
SAYS = (
    "from qcthreads.host import get_host, native_status; import qcthreads.host as h; "
    "print(h.__file__); print(*native_status(), sep='|'); print(get_host().capabilities.back_end)"
)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the names of wheels and modules are those of Linux"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is installed to be broken"),
]


@pytest.fixture
def sources(tmp_path):
    copy = tmp_path / "sources"
    copy.mkdir()
    unwanted = shutil.ignore_patterns("_native.c", "*.so", "_build.txt", "*.egg-info", "__pycache__")
    for name in NEEDED:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=unwanted)
        elif path.exists():
            shutil.copy(path, copy)
    return copy


def build(sources: Path, what: str = "build_wheel", **environment: str) -> subprocess.CompletedProcess[str]:
    """Through the build backend's own interface (PEP 517), with this environment's setuptools and Cython."""
    for module in ("setuptools", "Cython"):
        pytest.importorskip(module, reason=f"{module} is not in this environment")
    out = sources.parent / "out"
    out.mkdir(exist_ok=True)
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("QCTHREADS_") and name != "CC"}
    inherited["CFLAGS"] = "-O0"  # not how fast it is
    return subprocess.run(
        [sys.executable, "-c", f"from setuptools.build_meta import {what} as build; build({str(out)!r})"],
        cwd=sources, env={**inherited, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def the_wheel(sources: Path) -> Path:
    (wheel,) = (sources.parent / "out").glob("*.whl")
    return wheel


def says(path: Path) -> list[str]:
    """What the package in ``path`` says of itself: the file it came from, native_status() and the back end."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("QCTHREADS_")}
    environment["PYTHONPATH"] = str(path)
    told = subprocess.run(
        [sys.executable, "-c", SAYS], cwd=path, env=environment, capture_output=True, text=True, check=True
    )
    return told.stdout.splitlines()


def unpacked(wheel: Path) -> Path:
    target = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"QCTHREADS_PURE": "1"}, "built pure (QCTHREADS_PURE=1)"),
        ({"CC": "/bin/false"}, "not built: no working compiler at install"),
        ({"CC": "/no/such/compiler"}, "not built: no working compiler at install"),
    ],
    ids=["pure", "failing compiler", "no compiler"],
)
def test_without_the_extension_the_wheel_is_pure_and_says_why(sources, environment, reason):
    done = build(sources, **environment)
    assert done.returncode == 0, done.stderr
    wheel = the_wheel(sources)
    assert wheel.name.endswith("-py3-none-any.whl")
    target = unpacked(wheel)
    assert not list(target.rglob("*.so"))
    metadata = next(target.glob("*.dist-info/WHEEL")).read_text()
    assert "Root-Is-Purelib: true" in metadata
    assert "Tag: py3-none-any" in metadata
    file, status, back_end = says(target)
    assert file.startswith(str(target))
    assert (status, back_end) == (f"False|{reason}", "portable")


def test_with_a_compiler_the_wheel_is_for_every_later_python(sources):
    done = build(sources)
    assert done.returncode == 0, done.stderr
    wheel = the_wheel(sources)
    assert "-cp311-abi3-linux_" in wheel.name
    target = unpacked(wheel)
    assert [path.name for path in target.rglob("*.so")] == ["_native.abi3.so"]
    assert not list(target.rglob("_build.txt"))
    assert says(target)[1:] == ["True|in use", "native"]


def test_a_release_build_fails_loudly_without_a_compiler(sources):
    done = build(sources, CC="/bin/false", QCTHREADS_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "/bin/false" in done.stderr
    assert not list((sources.parent / "out").glob("*.whl"))


def test_an_editable_install_follows_the_last_build(sources):
    """With a compiler, without one, and with one again: nothing of an earlier build may stay behind."""
    for environment, expected in (
        ({}, ["True|in use", "native"]),
        ({"CC": "/bin/false"}, ["False|not built: no working compiler at install", "portable"]),
        ({"QCTHREADS_PURE": "1"}, ["False|built pure (QCTHREADS_PURE=1)", "portable"]),
        ({}, ["True|in use", "native"]),
    ):
        done = build(sources, "build_editable", **environment)
        assert done.returncode == 0, done.stderr
        assert says(sources / "src")[1:] == expected
        shutil.rmtree(sources.parent / "out")


def test_the_source_archive_can_build_the_extension(sources):
    done = build(sources, "build_sdist")
    assert done.returncode == 0, done.stderr
    (archive,) = (sources.parent / "out").glob("*.tar.gz")
    shutil.unpack_archive(archive, sources.parent / "from-archive", filter="data")
    (top,) = (sources.parent / "from-archive").iterdir()
    assert not list(top.rglob("_native.c"))
    assert (top / "csrc" / "qct.h").exists()
    assert (top / "src" / "qcthreads" / "leases" / "tmpfiles.conf").exists()
    done = build(top)
    assert done.returncode == 0, done.stderr
    assert "-cp311-abi3-linux_" in the_wheel(top).name
    assert (unpacked(the_wheel(top)) / "qcthreads" / "leases" / "tmpfiles.conf").exists()
