"""Runs in a guest: does what qcthreads can do there, prints what it and the kernel say of it as JSON; judges nothing.

Standard library only, and as little of that as can be: an import takes an emulated CPU twenty times as long.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from qcthreads.cpuset import CpuSet, NodeSet
from qcthreads.errors import QCThreadsError
from qcthreads.host import Host, get_host
from qcthreads.host.interface import MemoryKind
from qcthreads.host.limits import read_limits
from qcthreads.leases import LeaseBook
from qcthreads.leases.place import find_place
from qcthreads.leases.shared import SharedLedger

PAGES = 64
BUSY_S = 0.3
WORK_BYTES = 16 * 1024**2  # of a calculation, beside what its worker needs itself
PORTION_BYTES = 1024**2
HOTPLUG_MORE_S = 60  # on a busy machine, until CPUs have gone and come between readings
PATIENT_S = 600  # for what other processes of a slow guest do first
LOOKED_S = 1.5  # by then a run has looked again at what may be used
CGROUPS = Path("/sys/fs/cgroup")
TELLS = ["sh", "-c", "grep Cpus_allowed_list: /proc/self/status; grep -m1 heap /proc/self/numa_maps"]
"""Where it may run, and the policy of its memory, as the kernel has them."""
SWITCH_CPUS = """
cd /sys/devices/system/cpu
switch() { for cpu in $2; do echo "$1" >"cpu$cpu/online"; done; sleep 1; }
while [ -e "$1" ]; do
    switch 0 '3 2 5'; switch 1 '2 5 3'; switch 0 '4 5 6 7'; switch 1 '4 5 6 7'
done
"""


def main() -> None:
    """Everything named on the command line, in that order: ``binding=0,2 pages=1 ...``."""
    seen: dict[str, Any] = {}
    for word in sys.argv[1:]:
        what, _, argument = word.partition("=")
        try:
            found = _OBSERVERS[what](argument)
        except QCThreadsError as error:
            found = {"error": type(error).__name__}
        seen.setdefault(what, []).append(found)
    print(json.dumps(seen))


def backend(name: str) -> None:
    """``native`` or ``portable`` for everything that follows."""
    os.environ["QCTHREADS_BACKEND"] = name


def machine(_: str) -> dict[str, Any]:
    """The topology."""
    found = get_host().read_machine()
    return {
        "online": list(found.cpus_online),
        "cores": [list(core.cpus) for core in found.cores],
        "packages": [list(package.cpus) for package in found.packages],
        "llc": [list(domain.cpus) for domain in found.llc_domains],
        "numa": [[node.node_id, list(node.cpus), node.memory_bytes] for node in found.numa_nodes],
        "distances": found.distances and [list(row) for row in found.distances.matrix],
        "allowed_cpus": list(found.allowed_cpus),
        "allowed_mems": list(found.allowed_mems),
        "capabilities": [get_host().capabilities.back_end, get_host().capabilities.bind_memory],
    }


def limits(_: str) -> dict[str, Any]:
    """What may be used, and the two rules that decided it."""
    found = read_limits()
    return {
        "cpus": list(found.cpus),
        "cpu_count": found.cpu_count,
        "quota_cpus": found.quota_cpus,
        "memory_bytes": found.memory_bytes,
        "memory_rules": [rule.rule for rule in found.rules if rule.memory_bytes is not None],
        "tightest": [[rule.rule, rule.source] for rule in found.rules if rule.tightest],
    }


def binding(cpus: str) -> dict[str, Any]:
    """Bind all threads of this process, let each be busy, and note where the kernel ran it."""
    host, before = get_host(), get_host().get_affinity()
    asked = CpuSet.parse(cpus)
    ran: list[set[int]] = []
    go = threading.Event()
    threads = [threading.Thread(target=_be_busy, args=(go, ran)) for _ in range(len(asked) + 1)]
    for thread in threads:
        thread.start()
    try:
        bound = host.set_process_affinity(asked, os.getpid())
    finally:
        go.set()
        for thread in threads:
            thread.join()
    status = Path("/proc/self/status").read_text()
    listed = next(line.split()[1] for line in status.splitlines() if line.startswith("Cpus_allowed_list"))
    host.set_process_affinity(before, os.getpid())
    return {
        "got": list(bound.got),
        "lost": list(bound.lost),
        "kernel": listed,
        "ran": sorted(set().union(*ran)),
        "threads": len(ran),
    }


def _be_busy(go: threading.Event, ran: list[set[int]]) -> None:
    getcpu, seen = ctypes.CDLL(None).sched_getcpu, set()
    go.wait()
    end = time.monotonic() + BUSY_S
    while time.monotonic() < end:
        seen.add(getcpu())
    ran.append(seen)


def pages(word: str) -> dict[str, Any]:
    """``KIND:NODES`` for this thread, and for a buffer whose pages are there already; where the pages are."""
    kind, _, listed = word.partition(":")
    host, nodes = get_host(), NodeSet.parse(listed)
    memory_kind: MemoryKind = kind  # type: ignore[assignment]
    old = _touched()
    here = host.page_nodes(old)
    bound = host.bind_buffer(old, memory_kind, nodes)
    policy = host.set_memory_policy(memory_kind, nodes)
    new = _touched()
    maps = [_numa_maps(old), _numa_maps(new)]
    host.set_memory_policy("default")
    return {
        "thread": [policy.got.kind, list(policy.got.nodes)],
        "buffer": [bound.got.kind, list(bound.got.nodes)],
        "lost": list(policy.lost),
        "before": here,
        "moved": host.page_nodes(old),
        "fresh": host.page_nodes(new),
        "maps": maps,
    }


def _touched() -> mmap.mmap:
    buffer = mmap.mmap(-1, PAGES * mmap.PAGESIZE)
    buffer.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(PAGES):
        buffer[page * mmap.PAGESIZE] = 1
    return buffer


def _numa_maps(buffer: mmap.mmap) -> str:
    """The kernel's line about the mapping that is ``buffer``, without its address."""
    start = f"{ctypes.addressof(ctypes.c_char.from_buffer(buffer)):x}"
    lines = Path("/proc/self/numa_maps").read_text().splitlines()
    return next(line.partition(" ")[2] for line in lines if line.split()[0].lstrip("0") == start)


def policy(word: str) -> None:
    """``KIND:NODES`` for this thread and what it starts from now on, as ``numactl`` does."""
    kind, _, listed = word.partition(":")
    memory_kind: MemoryKind = kind  # type: ignore[assignment]
    get_host().set_memory_policy(memory_kind, NodeSet.parse(listed))


def hotplug(seconds: str) -> dict[str, Any]:
    """Read and bind for so long while CPUs go and come: every different answer and error of each, once."""
    host, everything = get_host(), get_host().get_affinity()
    asked = [CpuSet([0, 3]), CpuSet([6]), everything]
    acts: dict[str, Callable[[], object]] = {"machine": _machine_now, "limits": lambda: list(read_limits().cpus)}
    acts |= {f"bind {cpus}": partial(_bind_all, cpus) for cpus in asked}
    answers: dict[str, set[str]] = {name: set() for name in acts}
    end, rounds = time.monotonic() + float(seconds), 0
    going_on = Path("/run/hotplug")
    going_on.touch()
    with subprocess.Popen(["/bin/sh", "-c", SWITCH_CPUS, "sh", going_on], stderr=subprocess.PIPE) as switching:
        while (now := time.monotonic()) < end or (now < end + HOTPLUG_MORE_S and len(answers["machine"]) < 3):
            rounds += 1
            for name, act in acts.items():
                try:
                    answer: object = act()
                except QCThreadsError as error:
                    answer = {"error": type(error).__name__, "message": str(error)}
                answers[name].add(json.dumps(answer))
        going_on.unlink()
        refused = switching.communicate()[1].decode()
    host.set_process_affinity(everything, os.getpid())
    return {"rounds": rounds, "refused": refused} | {
        name: [json.loads(one) for one in sorted(found)] for name, found in answers.items()
    }


def _machine_now() -> list[list[list[int]]]:
    found = machine("")
    groups = [found["cores"], found["packages"], found["llc"], [cpus for _, cpus, _ in found["numa"] if cpus]]
    return [[found["online"]], [found["allowed_cpus"]], *groups]


def _bind_all(cpus: CpuSet) -> list[int]:
    return list(get_host().set_process_affinity(cpus, os.getpid()).got)


def leases(word: str) -> list[list[int]]:
    """``WIDTH,WIDTH,...``: the CPUs of leases taken one after the other, all held."""
    book = LeaseBook(get_host().read_machine(), read_limits())
    held = [book.acquire(int(width)) for width in word.split(",")]
    return [list(lease.cpus) for lease in held]


def shared(word: str) -> dict[str, Any]:
    """``COUNTxWIDTHxMIB``: leases of so many processes beside each other, and what another gets when one is killed."""
    count, width, mib = map(int, word.split("x"))
    book, _ = _shared_book()
    rest = len(book.usable) - (count - 1) * width
    holders = [_holder(book, width, mib << 20) for _ in range(count)]
    held = [json.loads(told.readline()) for _, told in holders]
    try:
        refused = str(book.acquire(rest, wait=False))
    except QCThreadsError as error:
        refused = str(error)
    os.kill(holders[0][0], signal.SIGKILL)
    after_kill = book.acquire(rest, timeout=PATIENT_S)
    for pid, _ in holders[1:]:
        os.kill(pid, signal.SIGKILL)
    after_kill.release()
    everything = book.acquire(len(book.usable), count * mib << 20, timeout=PATIENT_S)
    return {
        "held": held,
        "pids": [pid for pid, _ in holders],
        "refused": refused,
        "after_kill": list(after_kill.cpus),
        "everything": list(everything.cpus),
    }


def shrinking(cpus: str) -> dict[str, Any]:
    """What two processes get that wait for leases while the cpuset of their group is left ``cpus``."""
    book, place = _shared_book()
    holder, told = _holder(book, len(book.usable), 0)
    held, _ = json.loads(told.readline())
    few, many = _waiter(book, 2), _waiter(book, len(book.usable))
    while len(list(place.glob("records/w*"))) < 2:
        time.sleep(0.05)
    _own_group().joinpath("cpuset.cpus").write_text(cpus)
    refused = json.loads(many.readline())  # with all of it held as before
    os.kill(holder, signal.SIGKILL)
    return {"held": held, "refused": refused, "granted": json.loads(few.readline())}


def _waiter(book: LeaseBook, width: int) -> IO[str]:
    """A process that waits for a lease, and tells what it got and where it may run then."""
    tells, told = os.pipe()
    if os.fork() == 0:
        try:
            with book.acquire(width, timeout=PATIENT_S) as lease, lease.bound() as mask:
                said: Any = [list(lease.cpus), list(mask)]
        except Exception as error:  # nothing of it may go on as its parent
            said = str(error)
        os.write(told, json.dumps(said).encode() + b"\n")
        os._exit(0)
    os.close(told)
    return os.fdopen(tells)


def _shared_book() -> tuple[LeaseBook, Path]:
    place = Path(tempfile.mkdtemp())
    ledger = SharedLedger(find_place({"QCTHREADS_LEASES": str(place)}))
    return LeaseBook(get_host().read_machine(), read_limits(), ledger=ledger), place


def _holder(book: LeaseBook, width: int, memory_bytes: int) -> tuple[int, IO[str]]:
    """A process that leases, tells of it and holds it until it is killed."""
    tells, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        lease = book.acquire(width, memory_bytes, timeout=PATIENT_S)
        os.write(told, json.dumps([list(lease.cpus), sorted(lease.hold.draws)]).encode() + b"\n")
        signal.pause()
    os.close(told)
    return pid, os.fdopen(tells)


def split(word: str) -> list[list[int]]:
    """``PLACESxWIDTH``: the CPUs of leases taken together."""
    places, _, width = word.partition("x")
    book = LeaseBook(get_host().read_machine(), read_limits())
    return [list(lease.cpus) for lease in book.acquire_split(int(places), int(width))]


def started(word: str) -> dict[str, list[str]]:
    """What the kernel tells of processes under leases of so many CPUs: of one the lease's own, beside it exec's."""
    book, place = _shared_book()
    exec_ = [sys.executable, "-B", "-m", "qcthreads", "exec", "--threads", word, "--", *TELLS]
    with book.acquire(int(word)) as lease:
        own, _ = lease.popen(TELLS, stdout=subprocess.PIPE).communicate()
        with lease.bound():
            within = subprocess.check_output(TELLS)
        beside = subprocess.check_output(exec_, env={**os.environ, "QCTHREADS_LEASES": str(place)})
    told = {"popen": own, "bound": within, "after": subprocess.check_output(TELLS), "exec": beside}
    return {how: text.decode().split()[1:4:2] for how, text in told.items()}


def ranks(word: str) -> dict[str, Any]:
    """``CPUS:SIBLING:OTHER``: the masks of an MPI rank for each CPU, and what exec says of other CPUs meanwhile."""
    cpus, sibling, other = word.split(":")
    environment = {**os.environ, "QCTHREADS_LEASES": str(_shared_book()[1])}

    def exec_(cpus: str, *command: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-B", "-m", "qcthreads", "exec", "--cpus", cpus, "--", *command]
        return subprocess.Popen(
            words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def of(cpus: str, *command: str) -> list[Any]:
        said = (process := exec_(cpus, *command)).communicate()[1]
        return [process.returncode, said]

    count = str(len(CpuSet.parse(cpus)))
    started = [
        "mpirun",
        "--allow-run-as-root",
        "-n",
        count,
        "sh",
        "-c",
        "grep Cpus_allowed_list: /proc/self/status; cat",
    ]
    running = exec_(cpus, *started)
    assert running.stdout is not None
    masks = [running.stdout.readline().split()[-1] for _ in range(int(count))]
    meanwhile = {"sibling": of(sibling, "true"), "other": of(other, "true")}
    one_core = f"{CpuSet.parse(cpus).first},{sibling}"
    running.communicate()
    return {"masks": masks, **meanwhile, "after": of(sibling, "true"), "one core": of(one_core, *started)}


def workers(word: str) -> list[dict[str, Any]]:
    """``COUNTxWIDTH`` calculations, each of which says what its worker was given."""
    from qcthreads.execution.calculation import Calculation, Progress
    from qcthreads.execution.engine import LocalEngine

    count, _, width = word.partition("x")
    book = LeaseBook(get_host().read_machine(), read_limits())
    jobs = [
        Calculation(label=str(n), program="none", input={}, threads=int(width), compute="observe:calculation")
        for n in range(int(count))
    ]
    notes: list[str] = []

    def listen(event: Progress) -> None:
        if event.event == "note":
            notes.append(event.message)

    with LocalEngine(book, on_progress=listen) as engine:
        outcomes = list(engine.run(jobs, max_workers=int(count)))
    return [
        {"cpus": list(outcome.cpus), "error": outcome.error, "notes": notes, **(outcome.result or {})}
        for outcome in outcomes
    ]


def calculation(_: object) -> dict[str, Any]:
    """Runs in a worker: its policy, and where its memory comes from."""
    host: Host = get_host()
    policy, buffer, work = host.get_memory_policy(), _touched(), b"x" * WORK_BYTES
    return {
        "mask": list(host.get_affinity()),
        "policy": str(policy),
        "pages": host.page_nodes(buffer),
        "own_kib": _own_kib(),
        "worked_on": len(work),
    }


def losing(word: str) -> list[dict[str, Any]]:
    """``COUNTxMANY`` calculations side by side, one of which takes its own CPU offline while it runs."""
    from qcthreads.execution.calculation import Calculation
    from qcthreads.execution.engine import LocalEngine
    from qcthreads.execution.source import Dispatched
    from qcthreads.planning import Task
    from qcthreads.planning.dispatch import Dispatcher

    many, _, count = word.partition("x")
    book = LeaseBook(get_host().read_machine(), read_limits())
    made = {
        f"f{n}": Calculation(label=f"f{n}", program="none", input={}, compute="observe:linger")
        for n in range(int(count))
    }
    dispatcher = Dispatcher([Task(label, {1: 1.0}) for label in made], book.machine, known="nothing")
    source = Dispatched(dispatcher, list(made.values()), lambda label, _, __: made[label], most_threads=int(many))
    with LocalEngine(book) as engine:
        outcomes = list(engine.run(source, max_workers=int(many)))
    for outcome in outcomes:
        if lost := (outcome.result or {}).get("lost"):
            _online(lost).write_text("1")
    return [
        {
            "cpus": list(one.cpus),
            "start": one.started_at,
            "end": one.started_at + one.wall_s,
            "error": one.error,
            **(one.result or {}),
        }
        for one in outcomes
    ]


def linger(_: object) -> dict[str, Any]:
    """Runs in a worker: takes its CPU offline if nobody did so before; outlasts the next look at the limits, or what
    that does to it."""
    begun, mask = Path("/run/losing"), list(get_host().get_affinity())
    after, lost = Path("/run/lost").exists(), None
    if 0 not in mask and not after:  # the first CPU cannot go
        try:
            begun.mkdir()
        except FileExistsError:
            pass
        else:
            lost = mask[0]
            _online(lost).write_text("0")
            Path("/run/lost").touch()
    while not Path("/run/lost").exists():
        time.sleep(0.1)
    moved = list(get_host().get_affinity())
    if lost is not None:
        end = time.monotonic() + PATIENT_S
        while len(get_host().get_affinity()) > 1 and time.monotonic() < end:
            time.sleep(0.1)
    elif not after:
        time.sleep(LOOKED_S)
    return {"mask": mask, "after": after, "lost": lost, "moved_to": moved, "bound": list(get_host().get_affinity())}


def _online(cpu: int) -> Path:
    return Path(f"/sys/devices/system/cpu/cpu{cpu}/online")


def _own_kib() -> dict[str, int]:
    """All memory of this process by node, but for the pages of files, which it shares with whoever read them before."""
    counts: dict[str, int] = {}
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        fields = dict(field.split("=", 1) for field in line.split()[2:] if "=" in field)
        if "anon" in fields:
            for name, pages in fields.items():
                if name.startswith("N"):
                    counts[name[1:]] = counts.get(name[1:], 0) + int(pages) * int(fields["kernelpagesize_kB"])
    return counts


def hungry(word: str) -> dict[str, Any]:
    """``COUNT:PERCENT``: calculations side by side, to each its part of so much of the limit, use all that they got."""
    from qcthreads.execution.calculation import Calculation, Progress
    from qcthreads.execution.engine import LocalEngine

    count, percent = (int(number) for number in word.split(":"))
    book = LeaseBook(get_host().read_machine(), read_limits())
    group = _own_group()
    limit = int((group / "memory.max").read_text())
    granted = limit * percent // 100 // count
    jobs = [
        Calculation(label=f"f{n}", program="none", input=[granted, count], memory_bytes=granted, compute="observe:eat")
        for n in range(count)
    ]
    large = Calculation(label="large", program="none", input=[0, 1], memory_bytes=2 * limit, compute="observe:eat")
    started: list[str] = []

    def listen(event: Progress) -> None:
        if event.event == "started":
            started.append(event.label)

    with LocalEngine(book, on_progress=listen) as engine:
        try:
            refused = str(list(engine.run([*jobs, large])))
        except QCThreadsError as error:
            refused = str(error)
        before = list(started)
        outcomes = list(engine.run(jobs, max_workers=count))
    return {
        "limit": limit,
        "granted": granted,
        "refused": refused,
        "started_before": before,
        "started": started,
        "errors": [outcome.error for outcome in outcomes],
        "resident": [(outcome.result or {}).get("bytes") for outcome in outcomes],
        "peak": int((group / "memory.peak").read_text()),
        "events": dict(line.split() for line in (group / "memory.events").read_text().splitlines()),
    }


def eat(given: list[int]) -> dict[str, int]:
    """Runs in a worker: touches memory until it holds what it was granted, and keeps it until all others do, too."""
    granted, count = given
    eaten = []
    # The kernel counts late, by up to 64 pages of a thread, and a portion takes a page more: two keep below the grant.
    while (resident := _resident_bytes()) < granted - 2 * PORTION_BYTES:
        eaten.append(b"x" * PORTION_BYTES)
    full = Path("/tmp/full")
    full.mkdir(exist_ok=True)
    (full / str(os.getpid())).touch()
    while len(list(full.iterdir())) < count:
        time.sleep(0.1)
    return {"bytes": resident}


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def _own_group() -> Path:
    return CGROUPS / Path("/proc/self/cgroup").read_text().strip().partition("::/")[2]


def cgroup(word: str) -> None:
    """``FOLDER:FILE=VALUE``: make the group and write the file; ``FOLDER:`` moves this process there."""
    folder, _, assignment = word.partition(":")
    name, _, value = assignment.partition("=")
    group = CGROUPS
    for part in Path(folder).parts:
        (group / "cgroup.subtree_control").write_text("+cpuset +cpu +memory")
        group /= part
        group.mkdir(exist_ok=True)
    (group / (name or "cgroup.procs")).write_text(value or str(os.getpid()))


_OBSERVERS = {
    function.__name__: function
    for function in (
        backend,
        machine,
        limits,
        binding,
        pages,
        policy,
        hotplug,
        leases,
        shared,
        shrinking,
        split,
        started,
        ranks,
        workers,
        cgroup,
        hungry,
        losing,
    )
}

if __name__ == "__main__":
    main()
