"""A many-body run side by side: QCManyBody serial, a naive process pool, every static split, ``qcthreads run``.

    python benchmarks/bench_run.py [--rounds 5] [--program pyscf] [--program psi4]

Every contender is a fresh process, timed from outside from start to exit, interleaved round by round. The energies of
all contenders are compared: a faster wrong answer does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import asking
import timing

WATERS = Path(__file__).parent.parent / "examples" / "water4.xyz"
JOBS = {
    "pyscf": {"method": "mp2", "basis": "cc-pvdz", "max_nbody": 3, "keywords": {}},
    "psi4": {"method": "hf", "basis": "cc-pvdz", "max_nbody": 2, "keywords": {"scf_type": "pk", "e_convergence": 1e-8}},
}


def main() -> None:
    options = asking.parser(__doc__, rounds=5)
    options.add_argument("--program", action="append", choices=sorted(JOBS))
    options.add_argument("--peer", choices=("serial", "pool"), help=argparse.SUPPRESS)
    options.add_argument("input", nargs="?", help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.peer:
        print(json.dumps(PEERS[asked.peer](json.loads(Path(asked.input).read_text()))))
        return
    for program in asked.program or sorted(JOBS):
        compare(program, asked.rounds)


def compare(program: str, rounds: int) -> None:
    """Print the table of one program."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.json"
        path.write_text(json.dumps(many_body_input(program)))
        ours = [sys.executable, "-m", "qcthreads", "run", str(path), "--json"]
        peer = [sys.executable, __file__, str(path), "--peer"]
        cpus = len(os.sched_getaffinity(0))
        contenders = {
            "QCManyBody, serial, its defaults": [*peer, "serial"],
            f"ProcessPoolExecutor({cpus}), default threads": [*peer, "pool"],
        }
        for workers in range(1, cpus + 1):
            for threads in range(1, cpus // workers + 1):
                if workers * threads in (1, cpus):
                    name = f"qcthreads run --workers {workers} --threads {threads}"
                    contenders[name] = [*ours, "--workers", str(workers), "--threads", str(threads)]
        contenders["qcthreads run (defaults)"] = ours
        timings = timing.interleave(contenders, rounds)
    job = JOBS[program]
    print(
        f"\n{program} {job['method']}/{job['basis']}, 4 waters, MBE({job['max_nbody']}), {cpus} CPUs, {rounds} rounds\n"
    )
    print(timing.table(timings, "qcthreads run (defaults)"))
    energies = {name: energy_of(one.stdout) for name, one in timings.items()}
    print(f"\nInteraction energy {energies['qcthreads run (defaults)']:.10f} hartree; ", end="")
    print(
        f"largest difference between contenders {max(energies.values()) - min(energies.values()):.1e} hartree",
        flush=True,
    )


def many_body_input(program: str) -> dict[str, object]:
    """The job as QCManyBody's own input, the same for every contender."""
    from qcelemental.models.v2 import Molecule

    job = JOBS[program]
    atoms = [line.split() for line in WATERS.read_text().splitlines()[2:] if line.strip()]
    text = "\n--\n".join("\n".join(" ".join(atom) for atom in atoms[i : i + 3]) for i in range(0, len(atoms), 3))
    molecule = Molecule.from_data(text + "\nunits angstrom", dtype="psi4")
    model = {"method": job["method"], "basis": job["basis"]}
    return {
        "schema_name": "qcschema_many_body_input",
        "schema_version": 2,
        "molecule": json.loads(molecule.model_dump_json()),
        "specification": {
            "driver": "energy",
            "program": "qcmanybody",
            "keywords": {"bsse_type": ["nocp"], "max_nbody": job["max_nbody"]},
            "specification": {
                "(auto)": {"program": program, "driver": "energy", "model": model, "keywords": job["keywords"]}
            },
        },
    }


def energy_of(stdout: str) -> float:
    """The interaction energy in what a contender printed."""
    answer = json.loads(stdout)
    return float(answer["result"]["return_result"] if isinstance(answer, dict) else answer)


def register_harnesses() -> None:
    """QCEngine has no PySCF harness and cannot drive Psi4 before 1.4: the peers get ours, so that they run at all."""
    import qcthreads.programs.harnesses.psi4
    import qcthreads.programs.harnesses.pyscf  # noqa: F401


def serial(data: dict[str, object]) -> float:
    """QCManyBody's own driver."""
    from qcmanybody.models.v2 import ManyBodyInput
    from qcmanybody.v2.computer import ManyBodyComputer

    register_harnesses()
    return float(ManyBodyComputer.from_manybodyinput(ManyBodyInput(**data)).return_result)


def pool(data: dict[str, object]) -> float:
    """What people write by hand: one process per CPU, each calculation with the program's default threads."""
    from qcmanybody.models.v2 import ManyBodyInput
    from qcmanybody.v2.computer import ManyBodyComputer

    computer = ManyBodyComputer.from_manybodyinput(ManyBodyInput(**data), build_tasks=False)
    work = [
        (label, json.loads(molecule.model_dump_json()), data["specification"]["specification"]["(auto)"])
        for _, label, molecule in computer.qcmb_core.iterate_molecules()
    ]
    # spawn, because programs that ran threads hang after fork
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as executor:
        energies = dict(executor.map(compute_energy, work))
    analysed = computer.qcmb_core.analyze({label: {"energy": energy} for label, energy in energies.items()})
    return float(analysed["ret_energy"])


def compute_energy(work: tuple[str, dict[str, object], dict[str, object]]) -> tuple[str, float]:
    """One calculation of the naive pool, in its own process."""
    import qcengine

    register_harnesses()
    label, molecule, specification = work
    job = {"molecule": molecule, "specification": specification, "schema_version": 2}
    return label, float(qcengine.compute(job, specification["program"], raise_error=True).return_result)


PEERS = {"serial": serial, "pool": pool}

if __name__ == "__main__":
    main()
