"""Networks: backbones, heads and their weights."""

MIN_IMAGE_SIZE = 32
"""Smallest side of the image that a network sees, in pixels: five halvings leave nothing of less."""

MAX_IMAGE_SIZE = 8192
"""Largest side of the image that a network sees, in pixels."""
