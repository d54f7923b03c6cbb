"""Answers: a trained network, what it remembers, and what it says of images."""
