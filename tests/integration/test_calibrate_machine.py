"""``qcthreads calibrate --machine`` as a user runs it, beside others' leases; how fast memory is, is not judged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from others import busy_cpus

from qcthreads.cli import main
from qcthreads.execution import bandwidth
from qcthreads.host import native_status, read_machine
from qcthreads.host.limits import read_limits
from qcthreads.host.profiles import read_profile
from qcthreads.machine.placement import usable_cpus

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the leases' witness is Linux's exec")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    book = tmp_path / "book"
    return {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data"), "QCTHREADS_LEASES": str(book)}


def qcthreads(*arguments: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qcthreads", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)


def told_by_doctor(environ: dict[str, str]) -> dict[str, Any]:
    return dict(json.loads(qcthreads("doctor", "--json", environ=environ).stdout)["memory_bandwidth"])


def test_measures_every_domain_and_doctor_tells_of_it(environ: dict[str, str]) -> None:
    path = Path(told_by_doctor(environ)["file"])
    path.parent.mkdir(parents=True)
    path.write_text("{")
    broken = told_by_doctor(environ)
    assert broken["measured"] is None
    assert str(path) in broken["in_words"]

    done = qcthreads("calibrate", "--machine", "--json", environ=environ)
    assert f"{path} cannot be understood" in done.stderr
    if done.returncode == 3 and "CPUs busy while" in done.stderr:
        assert path.read_text() == "{"
        pytest.skip("others keep the CPUs busy, so that nothing is stored")
    assert done.returncode == 0, done.stderr
    machine, found = read_machine(), json.loads(done.stdout)
    cores = len(usable_cpus(machine, read_limits().cpus))
    kinds = [domain["kind"] for domain in found["domains"]]
    assert kinds.count("llc") <= len(machine.llc_domains)
    assert set(kinds) >= {"llc", "machine"}
    whole = found["domains"][-1]
    assert whole["kind"] == "machine"
    assert [int(count) for count in whole["bytes_per_s"]][-1] <= cores
    assert 1e8 < whole["peak_bytes_per_s"] == max(whole["bytes_per_s"].values()) < 1e13
    assert found["method"] == ("native" if native_status()[0] else "numpy")
    assert found["file"] == str(path)
    assert json.loads(path.read_text())["fingerprint"] == found["fingerprint"]
    assert told_by_doctor(environ)["measured"]["domains"] == found["domains"]


def test_what_others_disturb_is_measured_again_and_not_stored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth, "working_set_bytes", lambda *_: 24 * 1024**2)  # no figure is wanted
    with busy_cpus():
        assert main(["calibrate", "--machine", "--wait"]) == 3
    said = capsys.readouterr().err
    assert re.search(r"others kept at least [\d.]+ of the \d+ CPUs? busy while the bandwidth of 1 core was", said)
    profile = read_profile(read_machine())
    assert (profile.profile, profile.path.exists()) == (None, False)


def test_says_who_holds_the_cpus(environ: dict[str, str]) -> None:
    inside = f"{sys.executable} -m qcthreads leases --json >/dev/null; echo held; read line"
    command = [sys.executable, "-m", "qcthreads", "exec", "--threads", "1", "--", "sh", "-c", inside]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused = qcthreads("calibrate", "--machine", environ=environ)
        holder.stdin.close()
    assert refused.returncode == 3
    assert str(holder.pid) in refused.stderr
    assert not Path(environ["XDG_DATA_HOME"]).exists()


def test_calibrates_nothing_unasked(environ: dict[str, str]) -> None:
    done = qcthreads("calibrate", environ=environ)
    assert done.returncode == 2
    assert "--machine" in done.stderr
