"""What several unit tests need: a way to let something happen between any two instructions."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dis import opname
from types import FrameType
from typing import Any

import pytest

BeforeInstruction = Callable[[int, str, Callable[[], object]], AbstractContextManager[list[int]]]


@pytest.fixture
def before_instruction() -> BeforeInstruction:
    """``before_instruction(n, file, act)``: ``act`` before the n-th instruction that runs in ``file``.

    As a finalizer or another thread might; what the context gives is empty when there were fewer.
    """
    return _before_instruction


@pytest.fixture
def interrupted() -> Callable[[int, tuple[str, ...]], AbstractContextManager[list[int]]]:
    """``interrupted(n, files)``: KeyboardInterrupt at the n-th point in ``files`` where Python would let one in.

    That is where a function begins, after a call of C and where a loop begins again (CPython's eval breaker).
    """
    return _interrupted


@contextlib.contextmanager
def _interrupted(number: int, files: tuple[str, ...]) -> Iterator[list[int]]:
    seen, reached, last = itertools.count(1), [], {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if event == "call":
            last.pop(frame.f_back, None)  # it has not called C
        if not frame.f_code.co_filename.endswith(files):
            return None
        frame.f_trace_opcodes = True
        before, checked = last.get(frame, ""), event == "call"
        if event == "opcode":
            last[frame] = opname[frame.f_code.co_code[frame.f_lasti]]
            checked = before in ("CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD")
        if checked and next(seen) == number:
            reached.append(number)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield reached
    finally:
        sys.settrace(before)
        last.clear()  # frames, and in them what the caller gave up


@contextlib.contextmanager
def _before_instruction(number: int, file: str, act: Callable[[], object]) -> Iterator[list[int]]:
    seen, reached = itertools.count(1), []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith(file):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(seen) == number:
            reached.append(number)
            sys.settrace(None)
            act()
            sys.settrace(trace)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield reached
    finally:
        sys.settrace(before)
