"""What holds for every test: a Ctrl-C that a test sends arrives, also where the suite itself runs in the background."""

import signal

# A shell without job control starts background jobs with SIGINT ignored, which every child would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
