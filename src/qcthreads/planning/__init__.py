"""Tasks + machine + limits -> placements; pure functions that ask no operating system and keep no state."""
