"""The widths of a program that are worth considering; knows no calculation."""

from __future__ import annotations

from ..programs.spec import ParallelModel, ProgramSpec

# Between them nothing is gained; as places they divide LLC domains evenly.
_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def widths_for(spec: ProgramSpec, cpus: int, narrowest: int = 1) -> tuple[int, ...]:
    """The widths of a program that are worth considering on so many CPUs."""
    serial = spec.parallel_model in (ParallelModel.SERIAL, ParallelModel.GPU)
    most = 1 if serial else min(cpus, spec.useful_width or cpus)
    listed = {width for width in (*_WIDTHS, most) if narrowest <= width <= most}
    return tuple(sorted(listed)) or (narrowest,)
