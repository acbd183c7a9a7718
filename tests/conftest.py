"""What holds for every test: no test fails because the machine is busy, and a Ctrl-C that a test sends arrives."""

import signal

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell without job control starts background jobs with SIGINT ignored, which every child would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
