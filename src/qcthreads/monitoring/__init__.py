"""Samples what runs, and turns samples into statistics and findings; changes nothing it looks at."""
