"""A run as one HTML page that opens anywhere and asks no network for anything; measures nothing, decides nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ...errors import MachineError
from ..record import RunRecord


def write(record: RunRecord, path: Path) -> None:
    """Write the page of ``record`` to ``path``: the same bytes for the same record and version of plotly.

    Raises
    ------
    MachineError
        Plotly, whose script draws the plots and becomes part of the page, is not installed.
    OSError
        The file cannot be written.
    """
    require_plotly()
    from plotly.offline import get_plotlyjs

    from .page import page

    path.write_text(page(record, get_plotlyjs()), encoding="utf-8")


def require_plotly() -> None:
    """Raise MachineError where plotly is not installed; for those who must know before a run, and not after."""
    if importlib.util.find_spec("plotly") is None:
        raise MachineError("a report needs plotly, which is not installed; pip install 'qcthreads[report]'")
