"""Heat maps: which pixels an answer rests on, and whether to believe it."""
