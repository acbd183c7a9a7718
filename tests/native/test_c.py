"""The C core's own tests, with every warning an error, under the address and undefined-behaviour sanitizers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-O1", "-g", "-pthread"]
SKIPPED = 77  # what a program exits with where this system forbids the calls it tests
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def compiler():
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None or subprocess.run([found, "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"there is no working C compiler: {found}")
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the sources are for Linux")
@pytest.mark.parametrize(
    ("part", "files", "flags"),
    [
        ("affinity", ("linux_affinity",), []),
        ("mempolicy", ("linux_mempolicy",), []),
        ("topology", ("linux_topology",), []),
        ("sampler", ("linux_sampler", "linux_recorder"), []),
        ("sampler", ("linux_sampler", "linux_recorder"), ["-DRESCAN_NS=1"]),  # all of /proc in each sample
        ("files", ("linux_files",), []),
        ("bandwidth", ("bandwidth", "linux_affinity", "linux_mempolicy"), []),
    ],
)
def test_linux(part, files, flags, compiler, tmp_path):
    program, empty = tmp_path / "program", tmp_path / "empty"
    empty.mkdir()
    sources = [*(str(CSRC / f"{name}.c") for name in files), str(CSRC / "tests" / f"test_{part}.c")]
    subprocess.run([compiler, *FLAGS, *SANITIZERS, *flags, *sources, "-o", str(program)], check=True)
    # LeakSanitizer ends threads to look at their memory, which needs ptrace; containers often forbid it.
    command = [str(program), str(empty)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "LeakSanitizer has encountered a fatal error" in done.stderr:
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
