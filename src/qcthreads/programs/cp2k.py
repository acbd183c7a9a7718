"""CP2K: MPI ranks times OpenMP threads; for exec only."""

from .spec import Fact, Known, ParallelModel, ProgramSpec, Sample

_WATER = """
&GLOBAL
  PROJECT water
  RUN_TYPE ENERGY
  PRINT_LEVEL LOW
&END GLOBAL
&FORCE_EVAL
  METHOD QS
  &DFT
    BASIS_SET_FILE_NAME GTH_BASIS_SETS
    POTENTIAL_FILE_NAME GTH_POTENTIALS
    &MGRID
      CUTOFF 280
    &END MGRID
    &SCF
      EPS_SCF 1.0E-6
      SCF_GUESS ATOMIC
      MAX_SCF 200
      &OT
      &END OT
      &PRINT
        &RESTART OFF
        &END RESTART
      &END PRINT
    &END SCF
    &XC
      &XC_FUNCTIONAL PADE
      &END XC_FUNCTIONAL
    &END XC
  &END DFT
  &SUBSYS
    &CELL
      ABC 8.0 8.0 8.0
    &END CELL
    &COORD
      O 0.000  0.000  0.120
      H 0.000  0.760 -0.480
      H 0.000 -0.760 -0.480
    &END COORD
    &KIND O
      BASIS_SET DZVP-GTH
      POTENTIAL GTH-PADE-q6
    &END KIND
    &KIND H
      BASIS_SET DZVP-GTH
      POTENTIAL GTH-PADE-q1
    &END KIND
  &END SUBSYS
&END FORCE_EVAL
"""

SPEC = ProgramSpec(
    name="cp2k",
    title="CP2K",
    parallel_model=ParallelModel.MPI_OPENMP,
    in_process=False,
    qcengine=False,
    environment={"OMP_STACKSIZE": "64M"},
    command="mpirun -np {ranks} cp2k.psmp -i input.inp",
    executable="cp2k.psmp",
    version_command=("cp2k.psmp", "--version"),
    sample=Sample(input_text=_WATER),
    energy_pattern=r"ENERGY\| Total FORCE_EVAL .*:\s+(-?\d+\.\d+)",
    measured_with="2023.1 psmp and Open MPI 4.1.4",
    install_hint="on Debian: apt install cp2k, or conda install -c conda-forge cp2k",
    facts=(
        Fact(
            "threads",
            "OMP_NUM_THREADS for each rank; the names popt and sopt force one.",
            Known.SOURCE,
            "cp2k ae513bac: src/start/cp2k.F:155",
        ),
        Fact(
            "memory",
            "None but MAX_MEMORY of HFX, per process in MiB.",
            Known.SOURCE,
            "cp2k ae513bac: src/input_cp2k_hfx.F:459",
        ),
        Fact(
            "binding",
            "Open MPI binds a rank's threads to one core unless told not to: 4.72 s instead of 3.20 s with 2 threads.",
            Known.MEASURED,
            "2023.1 psmp, Open MPI 4.1.4, 2 cores",
        ),
        Fact(
            "width",
            "3.70 s with one thread, 3.20 s with two, 2.85 s with two ranks.",
            Known.MEASURED,
            "2023.1 psmp, 2 cores",
        ),
        Fact(
            "trap",
            "Its threads spin while they wait for each other: on CPUs that others kept busy two took 10 s and more "
            "where 2.6 s was due.",
            Known.MEASURED,
            "2023.1 psmp, 2 cores",
        ),
        Fact(
            "trap",
            "Threads need stack: OMP_STACKSIZE, which it reports at the start.",
            Known.SOURCE,
            "cp2k ae513bac: docs/technologies/libraries.md:49",
        ),
    ),
)
