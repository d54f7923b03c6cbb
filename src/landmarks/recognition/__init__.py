"""The recogniser: its answers, its memory of images, learning, search, and export."""
