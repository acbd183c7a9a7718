"""``qcthreads top`` with real leases held by real processes: as text, as JSON, and on a terminal of 80x24."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

if sys.platform != "linux":
    pytest.skip("holders, masks and locks are read from /proc", allow_module_level=True)

import fcntl
import pty
import struct
import termios

from textual.widgets import DataTable, Static

from qcthreads.cli.top_frame import SIGNS, cpu_lines, frame, lease_rows
from qcthreads.cli.top_screen import TopScreen
from qcthreads.errors import StopRequestedError
from qcthreads.execution.calculation import Calculation
from qcthreads.execution.engine import LocalEngine
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.leases import LeaseBook, node_ledger
from qcthreads.leases.place import find_place
from qcthreads.machine import Machine
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.monitoring.live import Live, Now

HOLDS = """
import os, qcthreads, sys
with qcthreads.lease(1, 1 << 30) as lease:
    child = lease.popen(sys.argv[1:])
    print(child.pid, lease.cpus, flush=True)
    sys.stdin.read()
    child.kill()
"""
BURNS = ("sh", "-c", "while :; do :; done")
SLEEPS = ("sleep", "600")
SHORT_LIVED = """
import threading, time
def burn():
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
while True:
    thread = threading.Thread(target=burn)
    thread.start()
    thread.join()
"""

Start = Callable[..., tuple[subprocess.Popen[str], int, int]]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """In which the book is empty, here and for what is started."""
    for name in [name for name in os.environ if name.startswith("QCTHREADS_LEASE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("QCTHREADS_LEASES", str(tmp_path / "book"))
    return dict(os.environ)


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """``start(*command)``: a holder of a lease of one CPU who runs ``command`` in it, its child's pid, and the CPU."""
    started: list[tuple[subprocess.Popen[str], int]] = []

    def begin(*command: str) -> tuple[subprocess.Popen[str], int, int]:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDS, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert holder.stdout is not None
        pid, cpu = map(int, holder.stdout.readline().split())
        started.append((holder, pid))
        return holder, pid, cpu

    yield begin
    for holder, pid in started:
        holder.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # it has the holder's standard output, too
        holder.communicate()


def top(*arguments: str, environment: dict[str, str], **options: Any) -> str:
    command = [sys.executable, "-m", "qcthreads", "top", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=60,
        stdin=subprocess.DEVNULL,
        **options,
    )
    return done.stdout


def test_one_document_tells_what_the_holders_processes_did(start: Start, environment: dict[str, str]) -> None:
    holder, child, cpu = start(*BURNS)
    before, began = psutil.Process(child).cpu_times(), time.monotonic()
    document = json.loads(top("--json", "--interval", "2", environment=environment))
    after, wall_s = psutil.Process(child).cpu_times(), time.monotonic() - began
    (lease,) = document["leases"]
    assert (lease["pid"], lease["cpus"], lease["state"]) == (holder.pid, [cpu], "running")
    assert lease["runs"] == " ".join(BURNS)
    assert lease["processes"] == 2
    assert lease["threads_working"] == 1
    assert lease["memory_granted_bytes"] == 1 << 30
    busiest = lease["threads"][0]
    assert (busiest["pid"], busiest["last_cpu"]) == (child, cpu)
    # No more than psutil counts for the longer time around it, but for clock ticks.
    counted_s = after.user + after.system - before.user - before.system
    assert 0 < busiest["busy"] * document["interval_s"] <= counted_s + 0.05
    assert document["interval_s"] <= wall_s
    assert document["cpus_busy"][str(cpu)] >= busiest["busy"] - 0.05
    resident = sum(psutil.Process(pid).memory_info().rss for pid in (holder.pid, child))
    assert lease["memory_bytes"] == pytest.approx(resident, rel=0.05)


def test_what_short_lived_threads_used_is_in_the_efficiency(start: Start) -> None:
    _, child, _ = start(sys.executable, "-c", SHORT_LIVED)
    with Live(find_place(create=False)) as live:
        live.look()
        began_s = sum(psutil.Process(child).cpu_times()[:2])
        time.sleep(1)
        ended_s = sum(psutil.Process(child).cpu_times()[:2])
        now = live.look()
    (lease,) = now.leases
    assert lease.busy is not None
    # psutil was asked in between, and counts in clock ticks.
    assert lease.busy * now.interval_s >= ended_s - began_s - 0.03
    assert lease.busy > sum(thread.busy for thread in lease.threads or ())


def test_what_sleeps_does_not_work(start: Start, environment: dict[str, str]) -> None:
    start(*SLEEPS)
    (lease,) = json.loads(top("--json", "--interval", "0.5", environment=environment))["leases"]
    assert lease["threads_working"] == 0
    assert lease["efficiency"] < 0.05


def test_without_a_terminal_it_is_one_frame(start: Start, environment: dict[str, str]) -> None:
    holder, _, _ = start(*SLEEPS)
    for arguments in (["--once"], []):
        printed = top(*arguments, "--interval", "0.3", environment=environment | {"COLUMNS": "80"})
        assert all(len(line) <= 80 for line in printed.splitlines())
        assert any(f" {holder.pid} " in line for line in printed.splitlines())


def test_nobody_holds_anything(environment: dict[str, str]) -> None:
    assert json.loads(top("--json", "--interval", "0.1", environment=environment))["leases"] == []
    assert "0 leases" in top("--once", "--interval", "0.1", environment=environment)
    assert not Path(environment["QCTHREADS_LEASES"]).exists()


def test_what_a_killed_holder_left_behind_is_seen(start: Start, environment: dict[str, str]) -> None:
    holder, child, _ = start(*BURNS)
    holder.kill()
    holder.wait()
    (lease,) = json.loads(top("--json", "--interval", "1", environment=environment))["leases"]
    assert lease["state"] == "outlived"
    assert lease["threads"][0]["pid"] == child
    assert lease["threads_working"] == 1


@pytest.mark.usefixtures("environment")
def test_leases_of_one_holder_are_told_apart_by_their_masks() -> None:
    book = LeaseBook(read_machine(), read_limits(), ledger=node_ledger())
    if len(book.usable) < 2:
        pytest.skip("two leases need two CPUs")
    with book.acquire(1) as one, book.acquire(1) as two:
        burns = one.popen(BURNS)
        sleeps = two.popen(SLEEPS)
        try:
            with Live(find_place(create=False)) as live:
                time.sleep(1)
                seen = {lease.cpus: lease for lease in live.look().leases}
        finally:
            burns.kill(), sleeps.kill()
            burns.wait(), sleeps.wait()
    assert {thread.pid for thread in seen[one.cpus].threads or ()} == {burns.pid}
    assert {thread.pid for thread in seen[two.cpus].threads or ()} == {sleeps.pid}
    assert (seen[one.cpus].threads_working, seen[two.cpus].threads_working) == (1, 0)


def test_the_calculation_of_a_worker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resting.py").write_text("import time\ndef rest(input):\n    time.sleep(600)\n")
    monkeypatch.syspath_prepend(tmp_path)
    dimer = Calculation(label='["(auto)", [1, 2], [1, 2]]', program="none", input={}, compute="resting:rest")
    book = LeaseBook(read_machine(), read_limits(), ledger=node_ledger(), run="water.xyz")

    def compute() -> None:
        with contextlib.suppress(StopRequestedError):
            list(engine.run([dimer]))

    with LocalEngine(book) as engine, Live(find_place(create=False)) as live:
        caller = threading.Thread(target=compute)
        caller.start()
        try:
            named = []
            while not named:
                time.sleep(0.1)
                leases = live.look().leases  # others on this machine may have some, too
                named = [lease for lease in leases if lease.held.pid == os.getpid() and lease.calculation]
        finally:
            engine.stop()
            caller.join()
    (lease,) = named
    assert lease.calculation == "1+2"
    (row,) = lease_rows(replace(looked(), leases=(lease,)))
    assert row[-1] == "water.xyz 1+2"


class Stopped(Live):
    """Tells the same again and again."""

    def __init__(self, now: Now) -> None:
        self.now = now

    def look(self) -> Now:
        return self.now


def looked(interval_s: float = 0.5) -> Now:
    with Live() as live:
        time.sleep(interval_s)
        return live.look()


def on_terminal(machine: Machine, live: Live, act: Callable[..., Any], interval_s: float = 0.2) -> None:
    """``act`` on a screen of 80x24 that has been drawn."""

    async def drive() -> None:
        screen = TopScreen(machine, live, interval_s)
        async with screen.run_test(size=(80, 24)) as pilot:
            for _ in range(200):
                await pilot.pause(0.05)
                if screen._now is not None:
                    break
            await act(screen, pilot)

    asyncio.run(drive())


def cells(screen: TopScreen) -> list[list[str]]:
    table = screen.query_one(DataTable)
    return [[str(cell) for cell in table.get_row_at(row)] for row in range(table.row_count)]


async def drawn(screen: TopScreen, pilot: Any, wanted: str) -> list[str]:
    """The lines on the screen, when ``wanted`` is among them."""
    for _ in range(100):
        lines = [strip.text for strip in screen.screen._compositor.render_strips()]
        if any(wanted in line for line in lines):
            return lines
        await pilot.pause(0.05)
    raise AssertionError("\n".join(lines))


def test_the_screen_has_leases_threads_and_keys_in_80x24(start: Start) -> None:
    holder, child, _ = start(*BURNS)

    async def act(screen: TopScreen, pilot: Any) -> None:
        assert str(holder.pid) in cells(screen)[0]
        await drawn(screen, pilot, "busy ")
        lines = await drawn(screen, pilot, f" {holder.pid} ")
        assert len(lines) == 24
        assert any(" ".join(BURNS)[:8] in line for line in lines)
        assert any(line.strip().startswith("busy") for line in lines)
        assert all(key in lines[-1] for key in ("q quit", "t threads/leases", "p pause", "+ slower", "- faster"))
        await pilot.press("t")
        assert str(child) in [row[1] for row in cells(screen)]
        await pilot.press("t")
        assert str(holder.pid) in cells(screen)[0]

    with Live() as live:
        on_terminal(read_machine(), live, act)


def test_pause_and_pace(start: Start) -> None:
    start(*SLEEPS)

    async def act(screen: TopScreen, pilot: Any) -> None:
        await pilot.press("plus")
        assert screen._interval_s == 0.4
        await pilot.press("minus", "minus")
        assert screen._interval_s == 0.25
        await pilot.press("p")
        await pilot.pause(0.6)  # one that had begun ends
        before = screen._now
        await pilot.pause(1.0)
        assert screen._now is before
        assert "paused" in str(screen.query_one("#head", Static).content)
        await pilot.press("p")
        for _ in range(100):
            await pilot.pause(0.1)
            if screen._now is not before:
                return
        raise AssertionError("it never went on")

    with Live() as live:
        on_terminal(read_machine(), live, act)


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
def test_it_quits(start: Start, key: str) -> None:
    start(*SLEEPS)

    async def act(screen: TopScreen, pilot: Any) -> None:
        await pilot.press(key)
        assert screen._exit

    with Live() as live:
        on_terminal(read_machine(), live, act)


def test_a_machine_of_256_cpus_leaves_room_for_its_leases(start: Start) -> None:
    start(*SLEEPS)
    machine = synthetic_machine(packages=2, nodes=1, llcs=8, cores=8, threads=2)
    now = looked()
    lines = cpu_lines(machine, now, 80, SIGNS)
    assert len(lines) <= 12
    assert all(len(line) <= 80 for line in lines)
    drawn = "".join(line[8:] for line in lines if line.strip().startswith("lease"))
    assert len(drawn.replace(SIGNS.cut, "")) == 256

    async def act(screen: TopScreen, pilot: Any) -> None:  # noqa: ARG001
        table = screen.query_one(DataTable)
        assert table.region.height >= 8
        assert table.region.bottom <= 24

    on_terminal(machine, Stopped(now), act)


def test_what_may_not_be_seen_is_a_dash(start: Start) -> None:
    start(*BURNS)
    now = looked()
    (lease,) = now.leases
    hidden = replace(lease, processes=0, memory_bytes=0, busy=None, threads=None)
    unseen = Now(place=now.place, at_s=now.at_s, interval_s=1.0, cpus_busy=None, leases=(hidden,), queue=(), shut=False)
    (row,) = lease_rows(unseen)
    assert row[4:8] == ("-/1", "-", "-", "-")
    assert any("?" in line for line in frame(read_machine(), unseen, 80, SIGNS))


def test_a_command_is_told_without_its_directory_and_a_worker_by_what_it_computes_for(start: Start) -> None:
    start(*SLEEPS)
    now = looked()
    (lease,) = now.leases
    worker = "/usr/bin/python3 -P -m qcthreads.execution.worker 13"
    for command, run, shown in (
        ("/usr/bin/sleep 600", "water.xyz", "sleep 600"),
        ("sleep", "", "sleep"),
        (worker, "water.xyz", "water.xyz"),
        (worker, "", "python3 -P -m qcthreads.execution.worker 13"),
    ):
        held = replace(lease.held, holding=replace(lease.held.holding, run=run))
        (row,) = lease_rows(replace(now, leases=(replace(lease, runs=command, held=held),)))
        assert row[-1] == shown


def test_letters_and_signs_that_ascii_can_say(start: Start) -> None:
    start(*BURNS)
    lines = frame(read_machine(), looked(), 80, SIGNS.of("ascii"))
    "\n".join(lines).encode("ascii")


def test_on_a_real_terminal_it_leaves_nothing_behind(start: Start, environment: dict[str, str]) -> None:
    holder, _, _ = start(*SLEEPS)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(slave)
    command = [sys.executable, "-m", "qcthreads", "top", "--interval", "0.3"]
    shown = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment | {"TERM": "xterm-256color"},
        start_new_session=True,
    )
    try:
        assert str(holder.pid).encode() in read_until(master, str(holder.pid).encode())
        os.write(master, b"\x03")
        rest = read_until(master, b"\x1b[?1049l")
        assert b"\x1b[?1049l" in rest  # the screen that was there before
        assert shown.wait(timeout=60) == 0
        assert termios.tcgetattr(slave) == before
    finally:
        shown.kill()
        shown.wait()
        os.close(master)
        os.close(slave)


def read_until(master: int, wanted: bytes) -> bytes:
    """What is written to the terminal until ``wanted`` is, or nothing comes for a minute."""
    seen = b""
    while wanted not in seen and select.select([master], [], [], 60)[0]:
        seen += os.read(master, 1 << 16)
    return seen
