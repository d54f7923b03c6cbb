"""The study as a sequence of runs, and the walk through the miniature archive."""
