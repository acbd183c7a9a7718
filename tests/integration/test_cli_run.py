"""``qcthreads run`` and what reads its stores, as a user types them; the arithmetic is checked against PySCF alone."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from others import ended

from qcthreads import cli

pyscf = pytest.importorskip("pyscf", reason="PySCF does not support this platform")

Main = Callable[..., tuple[int, str, str]]
COMMAND = [sys.executable, "-m", "qcthreads"]
HELIUM = "3\nthree helium atoms, angstrom\nHe 0 0 0\nHe 0 0 2.8\nHe 2.9 0 0\n"
WATER4 = Path(__file__).parents[2] / "examples" / "water4.xyz"
NAMES = {"1", "2", "3", "1+2", "1+3", "2+3", "1+2+3"}
MODEL = ("--method", "hf", "--basis", "6-31g")


def run(*arguments: object, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert check is None or done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str]) -> Main:
    """The same in this process, where nothing is computed: exit status, and what is written."""

    def main(*arguments: object) -> tuple[int, str, str]:
        status = cli.main(list(map(str, arguments)))
        said = capsys.readouterr()
        return status, said.out, said.err

    return main


@pytest.fixture
def helium(tmp_path: Path) -> Path:
    path = tmp_path / "he3.xyz"
    path.write_text(HELIUM)
    return path


def energy(*atoms: tuple[float, float, float]) -> float:
    """Of helium atoms at these places, by PySCF alone."""
    molecule = pyscf.gto.M(atom=[("He", place) for place in atoms], basis="6-31g", verbose=0)
    return float(pyscf.scf.RHF(molecule).run(conv_tol=1e-12).e_tot)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def first(folder: Path) -> subprocess.CompletedProcess[str]:
    """A run that leaves everything behind that one can."""
    (folder / "he3.xyz").write_text(HELIUM)
    files = {"report": "html", "trace": "json", "metrics": "prom", "store": "store"}
    options = (part for name, suffix in files.items() for part in (f"--{name}", folder / f"run.{suffix}"))
    return run("run", folder / "he3.xyz", *MODEL, "--max-nbody", 3, "--json", *options)


def test_json_is_the_only_thing_on_standard_output(first: subprocess.CompletedProcess[str]) -> None:
    document = json.loads(first.stdout)
    assert {"result", "statistics", "decision", "findings"} <= set(document)
    whole = energy((0, 0, 0), (0, 0, 2.8), (2.9, 0, 0))
    assert document["result"]["return_result"] == pytest.approx(whole, abs=1e-8)
    assert document["statistics"]["fragments_total"] == 7
    assert document["statistics"]["fragments_computed"] == 7
    assert "7/7 done" in first.stderr


def test_text_gives_the_interaction_energy_and_why(helium: Path, tmp_path: Path) -> None:
    done = run("run", helium, *MODEL, "--max-nbody", 2, "--csv", tmp_path / "he.csv")
    places = [(0, 0, 0), (0, 0, 2.8), (2.9, 0, 0)]
    one = energy((0, 0, 0))
    interaction = sum(energy(places[i], places[j]) - 2 * one for i, j in ((0, 1), (0, 2), (1, 2)))
    (line,) = (line for line in done.stdout.splitlines() if line.strip().startswith("interaction energy (nocp)"))
    assert float(line.split()[3]) == pytest.approx(interaction, abs=1e-8)
    assert "Decided (auto)" in done.stdout
    with (tmp_path / "he.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["fragments"] for row in rows] == ["1", "2", "3", "1+2", "1+3", "2+3"]
    assert float(rows[0]["energy_hartree"]) == pytest.approx(one, abs=1e-8)
    assert float(rows[3]["closest_contact_angstrom"]) == pytest.approx(2.8, abs=1e-6)


def test_dry_run_counts_and_computes_nothing(helium: Path, tmp_path: Path, main: Main) -> None:
    document = json.loads(run("run", helium, *MODEL, "--dry-run", "--store", tmp_path / "s", "--json").stdout)
    assert document["counts_by_nbody"] == {"1": 3, "2": 3}
    assert document["calculations"] == 6
    assert document["decision"]["workers"] >= 1
    assert not (tmp_path / "s").exists()
    status, told, _ = main("run", helium, *MODEL, "--dry-run", "--csv", tmp_path / "plan.csv")
    assert status == 0
    assert "3 monomers, 3 dimers" in told
    assert "Expected to take" not in told  # nothing of its kind was measured
    assert "energy/hartree" not in told
    with (tmp_path / "plan.csv").open(newline="") as stream:
        plan = [(row["name"], row["charge"], row["energy_hartree"]) for row in csv.DictReader(stream)]
    assert plan == [(name, "0", "") for name in ("1", "2", "3", "1+2", "1+3", "2+3")]


def test_dry_run_tells_how_long_it_takes_where_its_like_was_measured(main: Main) -> None:
    water4 = Path(__file__).parents[2] / "examples" / "water4.xyz"
    asked = ("run", water4, "--method", "hf", "--basis", "cc-pvdz", "--dry-run")
    expected_s = json.loads(main(*asked, "--json")[1])["decision"]["expected_wall_s"]
    status, told, _ = main(*asked)
    assert status == 0
    (line,) = (line for line in told.splitlines() if line.startswith("Expected to take: about "))
    number, unit = line.removeprefix("Expected to take: about ").split()
    assert float(number) * {"ms": 1e-3, "s": 1.0}[unit] == pytest.approx(expected_s, rel=0.1)


def test_a_dry_run_of_very_many_counts_and_lists_none(tmp_path: Path, main: Main) -> None:
    """C(200, 2) and C(200, 3) by hand: 200 * 199 / 2 and 200 * 199 * 198 / 6."""
    path = tmp_path / "he200.xyz"
    path.write_text(
        "200\n\n" + "".join(f"He {3 * (i % 10)} {3 * (i // 10 % 10)} {3 * (i // 100)}\n" for i in range(200))
    )
    asked = ("run", path, *MODEL, "--max-nbody", 3, "--dry-run")
    document = json.loads(main(*asked, "--json")[1])
    assert document["counts_by_nbody"] == {"1": 200, "2": 19900, "3": 1313400}
    assert document["fragments"] is None
    told = main(*asked)[1]
    assert told.startswith("1333500 calculations: 200 monomers, 19900 dimers, 1313400 trimers\n")
    assert "Decided" in told


def test_a_store_is_kept_read_and_resumed(folder: Path, first: subprocess.CompletedProcess[str]) -> None:
    store = folder / "run.store"

    assert json.loads(run("status", store, "--json").stdout) == {"total": 7, "finished": 7, "failed": 0, "running": 0}
    assert run("status", store).stdout == "7 total, 7 finished, 0 failed, 0 running\n"
    assert json.loads(run("failures", store, "--json").stdout) == {}

    exported = list(csv.DictReader(io.StringIO(run("export", store, "--to", "csv").stdout)))
    assert len(exported) == 7
    label = exported[3]["label"]
    assert exported[3]["name"] == json.loads(run("show", store, label).stdout)["name"]
    assert {row["name"] for row in exported} == NAMES
    assert json.loads(run("show", store, label).stdout)["label"] == label
    assert json.loads(run("show", store, "1+2").stdout)["label"] == '["(auto)", [1, 2], [1, 2]]'
    assert "did you mean 1+2" in run("show", store, "1+21", check=2).stderr
    json.loads(run("export", store, "--to", "json").stdout)
    run("export", store, "--to", "zip", "--output", folder / "he.zip")
    assert zipfile.ZipFile(folder / "he.zip").testzip() is None

    asked = ("run", folder / "he3.xyz", "--basis", "6-31g", "--max-nbody", 3, "--store", store)
    again = run(*asked, "--method", "hf", check=2)
    assert "--resume" in again.stderr
    resumed = json.loads(run(*asked, "--method", "hf", "--resume", "--json").stdout)
    assert resumed["statistics"]["fragments_reused"] == 7
    assert resumed["statistics"]["fragments_computed"] == 0
    assert resumed["result"]["return_result"] == json.loads(first.stdout)["result"]["return_result"]
    other = run(*asked, "--method", "mp2", "--resume", check=2)
    assert "method" in other.stderr


def test_a_failing_calculation_leaves_the_rest_and_no_total(tmp_path: Path) -> None:
    """RHF is for singlets: what contains the hydrogen atom fails in PySCF, the helium dimer does not."""
    path = tmp_path / "mixed.xyz"
    path.write_text("3\n\nHe 0 0 0\nHe 0 0 2.8\nH 4 0 0\n")
    asked = (*MODEL, "--charges", "0,0,0", "--multiplicities", "1,1,2", "--keywords", '{"reference": "rhf"}')
    store = tmp_path / "mixed.store"
    done = run("run", path, *asked, "--store", store, check=1)
    assert "3 of 6 calculations failed, all with:" in done.stdout
    assert done.stdout.count("RHF is for singlets") == done.stderr.count("RHF is for singlets") == 1
    assert "  3, 1+3, 2+3" in done.stdout
    assert "No total energy: 3 terms are missing" in done.stdout
    assert "kcal/mol" not in done.stdout
    assert json.loads(run("status", store, "--json").stdout) == {"total": 6, "finished": 3, "failed": 3, "running": 0}
    failures = json.loads(run("failures", store, "--json").stdout)
    assert len(failures) == 3
    assert all("RHF is for singlets" in error for error in failures.values())
    told = run("failures", store).stdout
    assert told.count("RHF is for singlets") == 1
    assert told.startswith("3, 1+3, 2+3\n")
    document = json.loads(run("run", path, *asked, "--json", check=1).stdout)
    assert document["result"] is None
    assert len(document["missing"]) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--workers", "64", "--threads", "64"), "4096 threads"),
        (("--program", "cfour"), "cfour"),
        (("--cpus", "100000"), "100000"),
    ],
)
def test_what_this_machine_cannot_is_exit_code_3(
    helium: Path, arguments: tuple[str, ...], said: str, main: Main
) -> None:
    status, _, error = main("run", helium, *MODEL, *arguments)
    assert status == 3
    assert said in error.lower()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_leaves_no_process_and_can_be_resumed(tmp_path: Path, stop: signal.Signals) -> None:
    store = tmp_path / "water.store"
    alone = ("--workers", "1", "--threads", "1")  # so that most is left when the first has ended
    arguments = ["run", str(WATER4), "--method", "mp2", "--basis", "aug-cc-pvdz", *alone, "--store", str(store)]
    page, trace, metrics = tmp_path / "run.html", tmp_path / "run.json", tmp_path / "run.prom"
    arguments += ["--report", str(page), "--trace", str(trace), "--metrics", str(metrics)]
    driver = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children: set[psutil.Process] = set()
    finished = 0
    while not finished and driver.poll() is None:
        children |= set(psutil.Process(driver.pid).children(recursive=True))
        time.sleep(0.05)
        finished = ended(store)
    children |= set(psutil.Process(driver.pid).children(recursive=True))
    driver.send_signal(stop)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 4, errors
    assert "--resume" in errors
    _, alive = psutil.wait_procs(children, timeout=60)
    assert children
    assert not alive
    kept = json.loads(run("status", store, "--json").stdout)
    assert kept["total"] == 10
    assert finished <= kept["finished"] < 10
    assert kept["running"] == 0
    # What was seen until then is told and written all the same.
    assert f"stopped before its end: {kept['finished']} of 10 calculations had ended" in errors
    assert "thread efficiency" in errors
    events = json.loads(trace.read_text())["traceEvents"]
    ran = Counter(event["args"]["status"] for event in events if "status" in event.get("args", ()))
    assert ran.keys() <= {"finished", "stopped"}
    assert ran["finished"] - kept["finished"] in (0, 1)  # one may have ended as the signal came
    assert "stopped before its end" in page.read_text(encoding="utf-8")
    states = dict(re.findall(r'state="(\w+)"} (\d+)', metrics.read_text()))
    assert (int(states["running"]), int(states["finished"])) == (0, kept["finished"])
    assert re.search(r"qcthreads_run_cpus_busy{.*} 0.0\n", metrics.read_text())
    resumed = run(*arguments, "--resume", "--json")
    rest = json.loads(resumed.stdout)
    assert f"{10 - kept['finished']}/{10 - kept['finished']} done" in resumed.stderr
    assert rest["statistics"]["fragments_reused"] == kept["finished"]
    assert rest["statistics"]["fragments_computed"] == 10 - kept["finished"]
    assert f", {10 - kept['finished']} calculation" in rest["decision"]["reasons"][0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind")
def test_on_a_terminal_there_is_a_live_bar(helium: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "run", str(helium), *MODEL, "--json"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"},
    ) as driver:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the other end was closed
                break
        assert driver.stdout is not None
        json.loads(driver.stdout.read())
    os.close(ours)
    assert b"6/6 done" in shown
    assert b"\x1b[" in shown


def test_what_a_run_leaves_behind_agrees_with_its_document(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    page, trace, metrics = folder / "run.html", folder / "run.json", folder / "run.prom"
    document = json.loads(first.stdout)
    statistics = document["statistics"]
    total = statistics["fragments_computed"]
    assert statistics["watched"] == sum(worker["calculations"] for worker in statistics["worker_processes"]) == total
    pids = {row["worker_pid"] for row in document["fragments"]}
    assert {worker["pid"] for worker in statistics["worker_processes"]} == pids
    assert all(0 < worker["start_cpu_s"] <= worker["start_s"] for worker in statistics["worker_processes"])
    assert list(statistics["driver_cpu_s"]) == ["start", "preparation", "calculations", "report"]
    assert 0 <= statistics["idle_pus"] <= len(document["decision"]["cpus_usable"])
    families = list(text_string_to_metric_families(metrics.read_text()))
    samples = {(one.name, one.labels.get("state")): one.value for family in families for one in family.samples}
    assert all(family.name.startswith("qcthreads_run_") and family.documentation for family in families)
    # The conventions of https://prometheus.io/docs/practices/naming: what only grows is a counter, and is called so.
    counters = {name for family in families if family.type == "counter" for name, *_ in family.samples}
    assert counters == {name for name, _ in samples if name.endswith("_total")}
    assert {family.type for family in families} == {"counter", "gauge"}
    assert samples["qcthreads_run_calculations", "finished"] == total
    assert samples["qcthreads_run_calculations", "waiting"] == samples["qcthreads_run_calculations", "running"] == 0
    assert samples["qcthreads_run_cpu_seconds_total", None] == pytest.approx(statistics["cpu_s"])
    assert samples.get(("qcthreads_run_run_queue_seconds_total", None)) == pytest.approx(statistics["run_queue_s"])
    assert samples["qcthreads_run_sampler_cpu_seconds_total", None] > 0
    assert [file.name for file in folder.glob("run.prom*")] == ["run.prom"]
    slices = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    assert {one["name"] for one in slices} == NAMES  # as the tables name them
    assert "<html" in page.read_text(encoding="utf-8")[:2000]


@pytest.mark.skipif(sys.platform != "linux", reason="the full disk and the pipe are Linux's")
@pytest.mark.parametrize("trace", ["/dev/full", "pipe"])
def test_what_keeps_a_stopped_run_from_telling_all_leaves_it_its_exit_code(tmp_path: Path, trace: str) -> None:
    """A disk that is full, and, while the trace waits for somebody who reads it, the signal once more."""
    os.mkfifo(tmp_path / "pipe")
    store = tmp_path / "water.store"
    arguments = ["run", WATER4, "--method", "mp2", "--basis", "cc-pvdz", "--workers", "1", "--threads", "1"]
    command = [*COMMAND, *map(str, arguments), "--store", str(store), "--trace", trace]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        assert driver.stderr is not None
        while not ended(store) and driver.poll() is None:
            time.sleep(0.05)
        driver.terminate()
        told = ""
        while "stopped before its end" not in told:
            line = driver.stderr.readline()
            assert line, told
            told += line
        if trace == "pipe":
            driver.terminate()
        told += driver.stderr.read()
    assert driver.returncode == 4, told
    assert "Traceback" not in told
    if trace == "/dev/full":
        assert told.endswith("--trace /dev/full could not be written: No space left on device; its figures are above\n")


def test_metrics_are_there_while_it_runs(tmp_path: Path) -> None:
    metrics = tmp_path / "run.prom"
    arguments = ["run", WATER4, "--method", "mp2", "--basis", "cc-pvdz", "--workers", "1", "--threads", "1"]
    command = [*COMMAND, *map(str, arguments), "--metrics", str(metrics)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not metrics.exists() and process.poll() is None:
                time.sleep(0.01)
            states = dict(re.findall(r'state="(\w+)"} (\d+)', metrics.read_text()))
            assert sum(map(int, states.values())) == 10
            assert int(states["finished"]) < 10
        finally:
            process.terminate()
    assert process.returncode == 4


@pytest.mark.parametrize(
    ("option", "name", "code", "said"),
    [
        ("--report", "there/run.html", 2, "there is no directory"),
        ("--trace", "he3.xyz", 2, "which it would overwrite"),
        ("--metrics", "run.txt", 2, "the node exporter reads *.prom alone"),
    ],
)
def test_a_file_that_cannot_be_is_told_before_anything_starts(
    helium: Path, tmp_path: Path, option: str, name: str, code: int, said: str, main: Main
) -> None:
    store = tmp_path / "he.store"
    status, told, error = main("run", helium, *MODEL, "--store", store, option, tmp_path / name)
    assert (status, told) == (code, "")
    assert said in error
    assert not store.exists()
    assert helium.read_text() == HELIUM


@pytest.mark.parametrize(("option", "module"), [("report", "plotly"), ("metrics", "prometheus_client")])
def test_what_writes_a_file_and_is_hidden_by_the_test_is_missed_before_anything_starts(
    helium: Path, tmp_path: Path, option: str, module: str
) -> None:
    hide = f"import sys; sys.modules[{module!r}] = None; from qcthreads.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [str(part) for part in ("run", helium, *MODEL, f"--{option}", tmp_path / "run.prom")]
    done = subprocess.run([sys.executable, "-c", hide, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert f"--{option} needs {module}" in done.stderr
    assert f"'qcthreads[{option}]'" in done.stderr
