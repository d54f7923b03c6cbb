"""The recogniser behind HTTP, and the page that asks it."""
