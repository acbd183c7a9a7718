"""The record for a program that nothing is known about: every runtime is told the width, and nothing is promised."""

from __future__ import annotations

from .spec import ParallelModel, ProgramSpec


def unknown(name: str) -> ProgramSpec:
    """The fallback for ``name``."""
    return ProgramSpec(
        name=name,
        title=name,
        parallel_model=ParallelModel.UNKNOWN,
        # Its width must be what the first calculation says, in case it computes in the worker.
        in_process=True,
        executable=name,
        install_hint="install it as its manual says, and put it on PATH; qcthreads has no notes of its own about it",
    )
