"""What each quantum-chemistry program needs to run the threads it was given; nothing else here names a program."""
