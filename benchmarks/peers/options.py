"""What a peer that fine-tunes is told on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path


def options() -> argparse.Namespace:
    """Return the folders, the start, the size of images, and how long and from which seed to train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()
