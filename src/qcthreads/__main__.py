"""``python -m qcthreads``: the command line where the script is not on PATH; holds nothing else."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
