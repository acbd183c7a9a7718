"""Measures the cost models that come with qcthreads, on this machine, and writes them into its source tree.

    python benchmarks/measure_shipped.py [--seconds 60] [PROGRAM ...]

Of each program, method and basis below that is installed here: the ladder of `qcthreads calibrate`, at all widths.
Best on a machine that does nothing else. A file that is there keeps nothing of what it held. The table of them in
docs/reference/costs.md is written anew, too.
"""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import replace
from pathlib import Path

import asking

from qcthreads.execution.cost_store import Kind, document_of, file_name, shipped
from qcthreads.execution.observing import Watching
from qcthreads.host.profiles import cpu_model
from qcthreads.leases import process_book
from qcthreads.manybody.calibration import calibrate, engines_of, widths_of
from qcthreads.planning.costs import Observation
from qcthreads.programs import registry

WHERE = Path(__file__).parents[1] / "src" / "qcthreads" / "execution" / "measured"
MODELS = {
    "pyscf": (("hf", "cc-pvdz"), ("mp2", "cc-pvdz")),
    "psi4": (("hf", "cc-pvdz"), ("mp2", "cc-pvdz")),
    "nwchem": (("hf", "cc-pvdz"), ("mp2", "cc-pvdz")),
    "xtb": (("GFN2-xTB", ""),),
    "tblite": (("GFN2-xTB", ""),),
    "mopac": (("PM7", ""),),
}
DOCUMENT = Path(__file__).parents[1] / "docs" / "reference" / "costs.md"
BEGIN, END = "<!-- as benchmarks/measure_shipped.py writes it -->\n", "<!-- until here -->\n"


def main() -> None:
    """Measure what was named, or all."""
    parser = asking.parser(__doc__)
    parser.add_argument("programs", nargs="*", default=list(MODELS), metavar="PROGRAM", help=", ".join(MODELS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each method and basis")
    args = parser.parse_args()
    book = process_book()
    for program in args.programs:
        if registry.find(registry.get(program)) is None:
            print(f"{program}: not installed here, left out")
            continue
        known: dict[str, list[Observation]] = {}
        for method, basis in MODELS[program]:
            kind, watching = Kind(program, "energy", method, basis), Watching()
            with engines_of(widths_of(program, len(book.usable)), book, watching) as engines:
                measured = calibrate(kind, engines, args.seconds, watching=watching)
            if any(one.disturbed for one in measured):
                sys.exit(f"{program}: others use the CPUs; measure on a machine that does nothing else")
            known[kind.key] = [one.observation for one in measured]
            print(f"{program} {method} {basis}: {len(known[kind.key])} calculations", flush=True)
        on = f"{cpu_model() or 'an unnamed CPU'}, {datetime.date.today().isoformat()}"
        path = WHERE / file_name(program)
        path.write_text(json.dumps(document_of(program, on, known), indent=1) + "\n", encoding="utf-8")
    shipped.cache_clear()
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(text.replace(table_in(text), table()), encoding="utf-8")


def table() -> str:
    """Of what comes with qcthreads, for the documentation."""
    rows = ["| program | method | sizes | measured on |", "|---|---|---|---|"]
    for path in sorted(WHERE.glob("*.json")):
        found = shipped(path.stem)
        written = {method.lower(): method for method, _ in MODELS[path.stem]}
        for key, seen in found.observations.items():
            kind = Kind.of_key(path.stem, key)
            kind = replace(kind, method=written[kind.method])
            sizes = [one.size.basis_functions for one in seen]
            of = "functions" if kind.basis else "electrons"
            title = registry.get(kind.program).title
            rows.append(f"| {title} | {kind.model} | {min(sizes)} to {max(sizes)} {of} | {found.measured_on} |")
    return "\n".join(rows) + "\n"


def table_in(text: str) -> str:
    """The table of a text."""
    return text.partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    main()
