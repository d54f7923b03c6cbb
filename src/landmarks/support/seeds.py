"""Randomness keyed by what it is for, so that neither workers nor their order can change a result."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*keys: int | str) -> np.random.Generator:
    """Return a random generator that depends on `keys` alone, for example `generator(seed, epoch, image_id)`."""
    digest = hashlib.blake2b("\x1f".join(map(str, keys)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
