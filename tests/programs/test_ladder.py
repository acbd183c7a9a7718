"""The molecules of ``qcthreads calibrate``, by programs that are particular about them."""

from __future__ import annotations

from qcthreads.execution.cost_store import Kind
from qcthreads.execution.observing import Watching
from qcthreads.leases import process_book
from qcthreads.manybody.calibration import _Climb, engines_of, ladder


def test_nwchem_takes_a_lattice_with_ghosts(needs):
    """Of a cluster with a mirror plane it prints the image, which QCEngine then refuses."""
    needs("nwchem")
    rung = next(rung for rung in ladder(with_basis=True) if rung.label == "6 x water, 4 of them ghosts")
    with engines_of([1], process_book(), Watching()) as engines:
        assert _Climb(Kind("nwchem", "energy", "hf", "sto-3g"), engines, 0, {}, None).run(rung, 1).wall_s > 0
