"""The worker process: binds itself, then computes what its driver sends, until the driver ends; never started by hand.

``python -m qcthreads.execution.worker``. Standard input and output are the pipes to the driver. Nothing that starts
threads (numpy, QCEngine, a program) may be imported before the mask is set: OpenBLAS sizes its pool by the mask when it
is loaded.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import os
import queue
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import IO, Any

from ..cpuset import CpuSet, NodeSet
from ..errors import BindingError, InputError
from ..host import processes, trees
from . import wire
from .locks import Held

# Looking for memory to give back takes a millisecond, which shorter calculations are not to pay.
_LONG_S = 0.02


def main() -> None:
    """Serve the driver at the other end of standard input and output; never returns while the driver lives."""
    inbox, outbox = _take_pipes()
    held = Held(int(sys.argv[1])) if len(sys.argv) > 1 else None
    faulthandler.enable()
    outbox.write(wire.GREETING)
    outbox.flush()
    start = wire.receive(inbox)
    if start is None:
        return
    _take_paths(start)
    processes.adopt_orphans()
    wire.send(outbox, _bind(start["cpus"]) | _prefer(start["nodes"]))
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    watch = threading.Thread(target=_watch, args=(inbox, requests, start["folder"]), daemon=True)
    watch.start()
    while True:
        request = requests.get()
        began_s = time.perf_counter()
        try:
            if held is not None:
                held.update()
            processes.call_itself(processes.WORKER_NAME + request.get("name", ""))
            outbox.write(_get_ready(request) if "preload" in request else _serve(request))
            if requests.empty():
                processes.call_itself(processes.WORKER_NAME)
            outbox.flush()
        except OSError:  # the driver has ended: the watch ends us
            break
        if time.perf_counter() - began_s > _LONG_S:
            _give_back_memory()
    watch.join()


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Move the pipes out of the way of the programs: these read nothing and print into the log."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if sys.platform != "win32":
        os.register_at_fork(after_in_child=lambda: wire.let_go(inbox, outbox))
    return inbox, outbox


def _take_paths(start: Mapping[str, Any]) -> None:
    """Import from where the driver imports; programs below see the caller's PYTHONPATH, not the one we started with."""
    sys.path[:] = [*start["sys_path"], *(path for path in sys.path if path not in start["sys_path"])]
    if start["pythonpath"] is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = start["pythonpath"]


def _bind(cpus: str | None) -> dict[str, Any]:
    """Bind this process before it has threads; say what the mask is now, or why there is none."""
    if cpus is None:
        return {"bound": None, "lost": "", "refused": None}
    from ..host import get_host

    host = get_host()
    try:
        if host.capabilities.inherit_binding:
            binding = host.set_affinity(CpuSet.parse(cpus))
        else:
            binding = host.set_process_affinity(CpuSet.parse(cpus), os.getpid())
    except BindingError as error:
        return {"bound": None, "lost": "", "refused": str(error)}
    return {"bound": str(binding.got), "lost": str(binding.lost), "refused": None}


def _prefer(nodes: str | None) -> dict[str, Any]:
    """Take memory from ``nodes`` before this process has any to speak of; say why if that cannot be.

    Preferred, not bound: where a program needs more than these nodes have, slower memory is better than an end by the
    kernel. Helper threads that the program starts and processes that escape the mask take theirs from there too.
    """
    if nodes is None:
        return {"memory_refused": None}
    from ..host import get_host

    wanted = NodeSet.parse(nodes)
    try:
        # Kernels before 5.15 know only the first.
        get_host().set_memory_policy("preferred" if len(wanted) == 1 else "preferred-many", wanted)
    except BindingError as error:
        return {"memory_refused": str(error)}
    return {"memory_refused": None}


def _watch(inbox: IO[bytes], requests: queue.SimpleQueue[dict[str, Any]], folder: str) -> None:
    """Pass requests on. When the driver has ended, however it did, nothing of us may go on or remain."""
    while (request := wire.receive(inbox)) is not None:
        requests.put(request)
    _end_descendants()
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(folder))  # noqa: PTH106, PTH120 (pathlib would cost every worker its import)
    os._exit(0)


def _get_ready(request: Mapping[str, Any]) -> bytes:
    """Import what the first calculation would have to; what cannot be imported is that calculation's to report.

    Modules are not garbage: looking for some among them takes a tenth of the time, and as much again at each of the
    first looks during calculations.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with contextlib.suppress(Exception, SystemExit):
            _compute_function(request["compute"], request["program"], request["harness_module"])
            for module in request["preload"]:
                importlib.import_module(module)
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
    return wire.encode({"cpu_s": time.process_time()})


def _serve(request: Mapping[str, Any]) -> bytes:
    """One calculation: the reply to the driver, encoded."""
    reply: dict[str, Any] = {"status": "failed", "result": None, "error": None, "error_type": ""}
    own_before = 0 if _forget_peak() else _own_peak_bytes()
    cpu_before, children_before = _usage()
    start = time.perf_counter()
    reply["started_at"] = time.time()
    try:
        compute = _compute_function(request["compute"], request["program"], request["harness_module"])
        # Imports are the worker's cost, once, and not the calculation's.
        cpu_before, start = _usage()[0], time.perf_counter()
        reply["started_at"] = time.time()
        os.environ.update(request.get("environment", {}))
        result = compute(request)
        reply["wall_s"] = time.perf_counter() - start
        reply.update(_judge(result))
    except (Exception, SystemExit) as error:
        reply.update(_raised(error))
    reply.setdefault("wall_s", time.perf_counter() - start)
    _end_descendants()
    cpu_after, children_peak = _usage()
    reply["cpu_s"] = cpu_after - cpu_before
    own_peak = _own_peak_bytes()
    # The system keeps the largest of all: what was no larger than before may have been of this calculation or not.
    own_peak = own_peak if own_peak > own_before else 0
    reply["peak_memory_bytes"] = max(own_peak, children_peak if children_peak > children_before else 0)
    try:
        return wire.encode(reply)
    except (TypeError, ValueError) as error:  # the result holds what JSON cannot say
        return wire.encode(reply | _raised(error))


@cache
def _compute_function(
    compute: str | None, program: str, harness_module: str | None
) -> Callable[[Mapping[str, Any]], object]:
    """What turns a request into a result: the caller's function, or QCEngine."""
    if compute is not None:
        module, _, name = compute.partition(":")
        function = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        return lambda request: function(request["input"])  # type: ignore[operator]
    import qcengine

    _hide_a_mask_that_cannot_be_read()
    if harness_module is not None:
        importlib.import_module(harness_module)
    _have_qcengine_look_around()

    def run(request: Mapping[str, Any]) -> object:
        return qcengine.compute(
            request["input"], program, task_config=request["task_config"], raise_error=False, return_version=2
        )

    return run


def _have_qcengine_look_around() -> None:
    """What every calculation asks it again, once.

    Of the processor it tells results the name alone, for which py-cpuinfo takes 0.3 s, most of it asleep: where the
    kernel has it, the name is there at once.
    """
    import cpuinfo
    import qcengine

    ask, name = cpuinfo.get_cpu_info, _processor_name()
    if name:
        cpuinfo.get_cpu_info = lambda: {"brand_raw": name}
    try:
        qcengine.get_config()
    finally:
        cpuinfo.get_cpu_info = ask


def _processor_name() -> str:
    """As py-cpuinfo says it; empty where it asks other programs."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
        for line in lines:
            field, _, said = line.partition(":")
            name = said.strip()
            if field.strip().lower() in ("model name", "cpu", "processor", "uarch") and name and not name.isdigit():
                return name
    return ""


def _hide_a_mask_that_cannot_be_read() -> None:
    """QCEngine asks psutil for the mask where psutil offers it, and fails where the system then refuses to tell."""
    import psutil

    if sys.platform in ("linux", "win32"):  # where psutil offers it
        try:
            psutil.Process().cpu_affinity()
        except (OSError, psutil.Error):
            del psutil.Process.cpu_affinity


def _judge(result: object) -> dict[str, Any]:
    """Whether a calculation succeeded, by QCSchema's ``success``."""
    data = wire.plain(result) if hasattr(result, "model_dump") else result
    if not isinstance(data, Mapping):
        raise InputError(f"the function returned {type(result).__name__}; it must return QCSchema AtomicResult data")
    if data.get("success", True):
        return {"status": "finished", "result": data}
    error = data.get("error") or {}
    error_type = str(error.get("error_type", "unknown_error"))
    message = str(error.get("error_message", "the program gave no message"))
    message = wire.tail(message.removeprefix("QCEngine Input Error: "))  # the type says that already
    return {"status": "failed", "error": f"{error_type}: {message}", "error_type": error_type}


def _raised(error: BaseException) -> dict[str, Any]:
    text = wire.tail("".join(traceback.format_exception(error)))
    return {"status": "failed", "result": None, "error": text, "error_type": type(error).__name__}


def _end_descendants() -> None:
    """When a calculation is over, or the driver is, its PUs are given to others: nothing started for it may go on."""
    if sys.platform == "linux":
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return  # orphans come to us, so no child means no descendant
    trees.end(partial(trees.members, {os.getpid(): os.environ.get(trees.MARK, "")}))
    if sys.platform != "win32":
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _give_back_memory() -> None:
    """What was freed, to the system: what a worker keeps, others have been granted, and it counts for what follows.

    Of what PySCF takes for an MP2 with 96 functions, 20 MiB stayed otherwise, and counted as the peak of smaller ones.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], object] | None:
    """The C library's, where it has one, as glibc, and can be called: not every Python or system lets us."""
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (ImportError, OSError, MemoryError):
        return None


def _usage() -> tuple[float, int]:
    """CPU seconds of this process and its ended children so far; the largest resident memory, bytes, of any child."""
    if sys.platform == "win32":
        return time.process_time(), 0
    import resource

    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return cpu_s, children.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _own_peak_bytes() -> int:
    """The largest resident memory of this process since it was forgotten last."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    # Linux carries the driver's peak over exec into ours (setmax_mm_hiwater_rss in fs/exec.c); VmHWM starts anew.
    unit = 1 if sys.platform == "darwin" else 1024
    return processes.high_water_bytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak() -> bool:
    """From here on, our peak is that of this calculation; false where the kernel cannot forget that of all so far."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "wb") as clear_refs:  # noqa: PTH123
            clear_refs.write(b"5")  # see proc_pid_clear_refs(5)
            return True
    return False


if __name__ == "__main__":
    main()
