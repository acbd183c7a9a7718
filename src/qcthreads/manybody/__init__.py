"""Many-body expansions on QCManyBody: from an input to energies, through manager, planning and execution."""
