"""What each quantum-chemistry program needs to run the threads it was given; nothing else in the package names a program."""
