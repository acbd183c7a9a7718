"""The command line's parsing, exit codes and rendering; computes nothing (tests/integration/test_cli_run.py does)."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import qcthreads
from qcthreads.cli import COMMANDS, main
from qcthreads.cli import run as run_command
from qcthreads.cli.progress import Pace, show_progress
from qcthreads.cli.render import plain, print_json, print_table, seconds
from qcthreads.cli.results import print_report, write_csv
from qcthreads.cpuset import CpuSet
from qcthreads.errors import InputError
from qcthreads.execution.calculation import Progress
from qcthreads.execution.store import Store
from qcthreads.manybody.report import BodyRow, FragmentRow, headline
from qcthreads.manybody.run import RunReport, RunRequest


def request(*arguments: str) -> RunRequest:
    parser = ArgumentParser()
    run_command.add_arguments(parser)
    return run_command.request_of(parser.parse_args(arguments))


def rows(count: int) -> list[FragmentRow]:
    return [
        FragmentRow(
            label=f"r{number}",
            chemistry="(auto)",
            name=f"{number}",
            nbody=1,
            fragments=(number,),
            ghosts=(),
            formula="H2O",
            charge=0.0,
            multiplicity=1,
            electrons=10,
            closest_contact_angstrom=None,
            energy_hartree=-76.0,
            wall_s=0.5,
            threads=1,
        )
        for number in range(1, count + 1)
    ]


def report(**changes: Any) -> RunReport:
    values: dict[str, Any] = {
        "fragments": tuple(rows(3)),
        "bodies": (
            BodyRow(bsse="cp", nbody=1, total_hartree=None, interaction_hartree=0.0, contribution_hartree=0.0),
            BodyRow(bsse="cp", nbody=2, total_hartree=-152.5, interaction_hartree=-0.01, contribution_hartree=-0.01),
        ),
        "result": {"return_result": -152.5},
        "missing": (),
        "failures": {},
        "statistics": {
            "wall_s": 3.0,
            "fragments_total": 3,
            "fragments_computed": 3,
            "busy_fraction": 0.9,
            "thread_efficiency": 0.97,
            "watched": 3,
            "contention": 0.25,
            "run_queue_s": 1.5,
            "idle_pus": 0.4,
            "idle_over_time": [{"at_s": float(n), "idle_pus": n / 10} for n in range(25)],
        },
        "decision": {
            "strategy": "auto",
            "workers": 2,
            "threads": 1,
            "program": "pyscf",
            "reasons": ["2 PUs may be used"],
        },
        "findings": (),
        "bsse_treatment": "counterpoise",
        "record": None,  # nothing here renders it
    }
    return RunReport(**values | changes)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"qcthreads {qcthreads.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"  qcthreads {command}" in shown.partition("examples:")[2]
    assert f"{COMMANDS[command][1:]}." in " ".join(shown.split())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["walk"],
        ["--frobnicate"],
        ["run"],
        ["run", "x.xyz", "--workers", "0"],
        ["run", "x.xyz", "--workers", "two"],
        ["run", "x.xyz", "--memory", "much"],
        ["run", "x.xyz", "--memory", "16"],
        ["run", "x.xyz", "--csv", "x.xyz"],
        ["run", "x.xyz", "--csv", "y", "--store", "y"],
        ["run", "x.xyz", "--csv", "/"],
        ["run", "x.xyz", "--cpus", "0-"],
        ["run", "x.xyz", "--cpus", ""],
        ["run", "x.xyz", "--keywords", "{"],
        ["run", "x.xyz", "--keywords", "[1]"],
        ["run", "x.xyz", "--keywords", "@/nowhere/at/all"],
        ["run", "x.xyz", "--charges", "0,a"],
        ["run", "x.xyz", "--strategy", "balanced", "--workers", "2"],
        ["run", "x.xyz", "--resume"],
        ["run", "x.xyz", "--csv", "/nowhere/at/all.csv"],
        ["run", "/nowhere/at/all.xyz", "--method", "hf", "--basis", "sto-3g"],
        ["topo", "--sysroot", "/nowhere/at/all"],
        ["export", "some.store"],
        ["status", "/nowhere/at/all.store"],
    ],
)
def test_malformed_usage_is_exit_code_2_with_a_message(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: " in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--methd", "hf"), "no option --methd; did you mean --method?"),
        (("--methd=hf",), "no option --methd; did you mean --method?"),
        (("--zzzzzzz",), "no option --zzzzzzz"),
        (("another.xyz",), "nothing is expected here: another.xyz"),
        (("--charges", "0,a"), "not numbers separated by commas: '0,a'; write for example 0,1,-1"),
        (("--cpus", "0-"), "not a list of PUs: '0-'; write for example 0-3,8"),
    ],
)
def test_a_wrong_option_is_told_in_a_line_and_where_help_is(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "x.xyz", *arguments]) == 2
    error, where = capsys.readouterr().err.splitlines()
    assert error.startswith("qcthreads run: error: ")
    assert error.endswith(said)
    assert "`qcthreads run --help`" in where


@pytest.mark.parametrize("to", ["csv", "json", "zip"])
@pytest.mark.parametrize(
    ("output", "code"), [("/nowhere/at/all/x", 2), ("/proc/x", 3), ("/dev/full", 3), ("a.store", 2)]
)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc and /dev/full, where even root cannot write")
def test_an_export_that_cannot_be_written_is_told_in_a_line(
    to: str, output: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Store.create(Path("a.store"), {}).close()
    before = Path("a.store").read_bytes()
    assert main(["export", "a.store", "--to", to, "--output", output]) == code
    told = capsys.readouterr().err
    assert told.startswith(f"qcthreads: error: --output {output} ")
    assert told.count("\n") == 1
    assert Path("a.store").read_bytes() == before


def test_an_unknown_command_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    main(["walk"])
    message = capsys.readouterr().err
    assert "'walk'" in message
    assert all(name in message for name in COMMANDS)


def test_options_of_run_reach_the_request(tmp_path: Path) -> None:
    keywords = tmp_path / "keywords.json"
    keywords.write_text('{"conv_tol": 1e-10}')
    asked = request(
        *("in.xyz", "--fragments", "1-3;4", "--charges=0,-1", "--multiplicities", "1,2", "--program", "psi4"),
        *(
            "--method",
            "mp2",
            "--basis",
            "cc-pvdz",
            "--max-nbody",
            "2",
            "--bsse",
            "nocp,cp",
            "--keywords",
            f"@{keywords}",
        ),
        *("--workers", "4", "--threads", "2", "--max-total-threads", "8", "--memory", "2GiB", "--cpus", "0-3,8"),
        *("--leave", "1", "--no-affinity", "--scratch", "/tmp", "--store", "s", "--resume", "--retries", "1"),
        *("--timeout", "2.5", "--no-learn"),
    )
    assert asked == RunRequest(
        input=Path("in.xyz"),
        fragments="1-3;4",
        charges=[0.0, -1.0],
        multiplicities=[1, 2],
        program="psi4",
        method="mp2",
        basis="cc-pvdz",
        max_nbody=2,
        bsse=["nocp", "cp"],
        keywords={"conv_tol": 1e-10},
        workers=4,
        threads=2,
        max_total_threads=8,
        memory_bytes=2 * 1024**3,
        cpus=CpuSet([0, 1, 2, 3, 8]),
        leave=1,
        affinity=False,
        scratch=Path("/tmp"),
        store=Path("s"),
        resume=True,
        retries=1,
        timeout_s=2.5,
        learn=False,
    )


def test_what_is_not_said_is_left_open() -> None:
    assert request("in.json") == RunRequest(input=Path("in.json"))


def test_strategy_names_with_dash_or_underscore() -> None:
    assert request("in", "--strategy", "memory-aware").strategy == request("in", "--strategy", "memory_aware").strategy


def test_a_value_that_begins_with_a_minus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The input does not exist, so what is complained of shows that the charges were understood."""
    missing = tmp_path / "missing.xyz"
    assert main(["run", str(missing), "--charges", "-1,0", "--method", "hf", "--basis", "sto-3g"]) == 2
    assert "missing.xyz" in capsys.readouterr().err


def test_strategy_with_explicit_widths_is_contradictory() -> None:
    with pytest.raises(InputError, match="--workers and --threads"):
        request("in", "--strategy", "auto", "--threads", "2")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows reports a closed pipe as another error")
def test_a_closed_pipe_is_no_error() -> None:
    """As in ``qcthreads --help | head -0``."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "qcthreads", "limits"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_under_standard_output_is_no_traceback() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "qcthreads", "limits"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 3
    assert done.stderr == "qcthreads: error: the output cannot be written: no space is left there; make some\n"


def test_what_was_all_in_the_store_was_not_decided(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(statistics={"fragments_total": 3, "fragments_reused": 3}), None)
    shown = capsys.readouterr().out
    assert "all results were in the store" in shown
    assert "Decided" not in shown


def test_plain_data_is_strict_json() -> None:
    shown = io.StringIO()
    print_json({"cpus": CpuSet([3, 1]), "nan": float("nan"), "path": Path("a"), 2: (1.5, None, True)}, shown)
    assert json.loads(shown.getvalue()) == {"cpus": [1, 3], "nan": None, "path": "a", "2": [1.5, None, True]}
    with pytest.raises(TypeError, match="object"):
        plain(object())


def test_tables_align_numbers_to_the_right() -> None:
    shown = io.StringIO()
    print_table("Title", ("name", "n"), [("a", 1), ("long name", 200)], shown)
    assert shown.getvalue() == "Title\n  name         n\n  a            1\n  long name  200\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_no_terminal_is_too_narrow_for_a_digit(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = Terminal()
    print_table("Title", ("name", "energy/hartree"), [("water", "-76.23010671")] * 2, shown)
    assert shown.getvalue().count("-76.23010671") == 2
    assert "energy/hartree" in shown.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4216, "0.422 s"), (65, "1 min 05 s"), (7800, "2 h 10 min"), (3.2e100, "3.2e+100 s"), (None, "not known")],
)
def test_durations(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_time_to_go_is_by_cost_not_by_count() -> None:
    """One calculation of 20 electrons costs as much as eight of 10; after it, half the cost remains, not 8/9."""
    small = rows(8)
    large = FragmentRow(
        label="large", name="1+2", nbody=2,
        chemistry="(auto)",
        fragments=(1, 2), ghosts=(), formula="H4O2", charge=0.0, multiplicity=1, electrons=20,
        closest_contact_angstrom=1.9,
    )  # fmt: skip
    clock = iter([0.0, 10.0, 10.0])
    pace = Pace([*small, large], now=lambda: next(clock))
    assert pace.remaining_s is None
    pace.count(Progress(event="finished", label="large"))
    assert pace.remaining_s == pytest.approx(10.0)
    assert pace.rate_per_s == pytest.approx(0.1)


def test_what_is_reused_is_not_counted_as_work() -> None:
    clock = iter([0.0, 10.0, 10.0])
    pace = Pace(rows(4), now=lambda: next(clock))
    pace.count(Progress(event="reused", label="r1"))
    pace.count(Progress(event="reused", label="r2"))
    pace.count(Progress(event="finished", label="r3"))
    assert (pace.done, pace.total) == (1, 2)
    assert pace.remaining_s == pytest.approx(10.0)


def test_plain_progress_tells_failures_at_once_and_counts_seldom() -> None:
    class Prepared:
        fragments = rows(50)

    shown = io.StringIO()
    with show_progress(Prepared(), shown) as on_progress:
        on_progress(Progress(event="note", label="", message="CPU 3 was lost"))
        for row in Prepared.fragments[:49]:
            on_progress(Progress(event="started", label=row.label))
            on_progress(Progress(event="finished", label=row.label))
        on_progress(Progress(event="failed", label="r50", message="SCF did not converge\nmore of it"))
    lines = shown.getvalue().splitlines()
    assert lines[0] == "note: CPU 3 was lost"
    assert "failed: r50: SCF did not converge" in lines
    assert lines[-1].startswith("50/50 done, 1 failed")
    assert len(lines) < 10


def test_the_report_gives_energies_in_three_units(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(), None)
    shown = capsys.readouterr().out
    # -0.01 hartree by CODATA 2018: 627.509474 kcal/mol and 2625.49964 kJ/mol per hartree
    assert "interaction energy (cp)  -0.0100000000 hartree = -6.2751 kcal/mol = -26.2550 kJ/mol" in shown
    assert "BSSE treatment: counterpoise" in shown
    assert "2 PUs may be used" in shown
    table = [" ".join(line.split()) for line in shown.splitlines()]
    assert "usable PUs leased 90 % share of their time that a calculation had them" in table
    assert "thread efficiency 97 % CPU time / (threads x wall time)" in table
    assert "contention 25 % threads waited 1.5 s for a CPU" in table
    assert "idle PUs 0.4 no thread of the run ran there; over time: 0.0 0.3 0.6 0.9 1.2 1.5 1.8 2.1 2.4" in table


def test_no_total_is_printed_when_a_term_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(missing=("dimer 1+2",), failures={"d12": "SCF did not converge"}, result=None), None)
    shown = capsys.readouterr().out
    assert "No total energy: 1 term is missing:\n  dimer 1+2" in shown
    assert "SCF did not converge" in shown
    assert "kcal/mol" not in shown


def test_monomers_alone_have_no_interaction_energy(capsys: pytest.CaptureFixture[str]) -> None:
    body = BodyRow(bsse="cp", nbody=1, total_hartree=-152.5, interaction_hartree=0.0, contribution_hartree=0.0)
    print_report(report(bodies=(body,)), None)
    shown = capsys.readouterr().out
    assert "total energy (cp)" in shown
    assert "interaction energy" not in shown


def test_columns_of_which_nothing_is_known_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows(1)
    print_report(report(fragments=(replace(row, name="1@1+2+3", wall_s=None, threads=None),)), None)
    _, head, line, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["n", "name", "formula", "charge", "mult", "energy/hartree"]
    assert line.split()[1] == "1@1+2+3"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("timed out after 3 s", "timed out after 3 s"),
        ("", "no message"),
        # NWChem 7.0.2 by QCEngine: the tail of its output
        (
            "unknown_error:    number of included internuclear angles:   1\n ======\n"
            " bas_tag_lib: failed opening basis file         0\n ------\nTRACEBACK:\nNoneType: None\n",
            "unknown_error: bas_tag_lib: failed opening basis file 0",
        ),
        # Psi4 1.3.2
        (
            "input_error: BasisSetNotFound: Unable to find a basis set for atom 1 for key BASIS among:\n"
            "  Shell Entries: ['O']\n  Input Blocks:\n",
            "input_error: BasisSetNotFound: Unable to find a basis set for atom 1 for key BASIS among:",
        ),
        (
            'Traceback (most recent call last):\n  File "model.py", line 5, in energy\n    raise ValueError(text)\n'
            "ValueError: too large\nreally",
            "ValueError: too large",
        ),
    ],
)
def test_the_line_that_says_what_went_wrong(error: str, line: str) -> None:
    assert headline(error) == line


def test_long_tables_say_what_they_leave_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(fragments=tuple(rows(100))), None)
    assert "... and 76 more; --csv FILE writes all" in capsys.readouterr().out


def test_csv_holds_every_calculation(tmp_path: Path) -> None:
    write_csv(tmp_path / "out.csv", [replace(row, cpus="1-2,5") for row in rows(100)])
    with (tmp_path / "out.csv").open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [row["label"] for row in read] == [f"r{number}" for number in range(1, 101)]
    assert [row["name"] for row in read] == [f"{number}" for number in range(1, 101)]
    assert {float(row["energy_hartree"]) for row in read} == {-76.0}
    assert {row["cpus"] for row in read} == {"1+2+5"}  # a spreadsheet would make a date of 1-2
