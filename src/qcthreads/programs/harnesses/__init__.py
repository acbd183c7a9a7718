"""QCEngine harnesses of ours; importing one registers it, importing this does nothing."""
