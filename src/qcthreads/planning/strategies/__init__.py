"""One file per strategy; each is found through the entry-point group ``qcthreads.strategies``, ours as any other."""
