"""The widths of a program that are worth considering; knows no calculation."""

from __future__ import annotations

from ..planning.model import usual_widths
from ..programs.spec import ParallelModel, ProgramSpec


def widths_for(spec: ProgramSpec, cpus: int, narrowest: int = 1) -> tuple[int, ...]:
    """The widths of a program that are worth considering on so many CPUs."""
    serial = spec.parallel_model in (ParallelModel.SERIAL, ParallelModel.GPU)
    most = 1 if serial else min(cpus, spec.useful_width or cpus)
    return tuple(width for width in usual_widths(most) if width >= narrowest) or (narrowest,)
