"""Random numbers keyed by their purpose, so that workers and their order do not change a result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def generator(*keys: int | str) -> np.random.Generator:
    """Return a random generator that depends only on `keys`, for example `generator(seed, epoch, image_id)`."""
    digest = hashlib.blake2b("\x1f".join(map(str, keys)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def uniforms(keys: Sequence[int | str], ids: Sequence[str], count: int) -> NDArray[np.float64]:
    """Return numbers 0 ≤ u < 1 `(N, count)` for N `ids`; row i depends only on `keys` and `ids[i]`.

    One call serves many images: `philox` is keyed by `keys`, and each id is a position in its sequence.
    """
    key = _digest("\x1f".join(map(str, keys)))
    places = np.fromiter((_digest(id) for id in ids), dtype=np.uint64, count=len(ids))
    blocks = -(-count // 4)
    counters = np.empty((len(ids), blocks, 4), dtype=np.uint64)
    counters[..., 0] = np.arange(blocks, dtype=np.uint64)
    counters[..., 1] = 0
    counters[..., 2], counters[..., 3] = (places & _LOW)[:, None], (places >> _HALF)[:, None]
    words = philox(counters, (key & 0xFFFFFFFF, key >> 32))
    return words.reshape(len(ids), 4 * blocks)[:, :count] / 2.0**32


def philox(counters: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Return the Philox4x32-10 words (…, 4) of 32 bits at `counters` (…, 4) under `key` (Salmon et al., SC 2011)."""
    first, second, third, fourth = (counters[..., word] for word in range(4))
    low, high = key
    for _ in range(_ROUNDS):
        one, two = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        first, third = (two >> _HALF) ^ second ^ np.uint64(low), (one >> _HALF) ^ fourth ^ np.uint64(high)
        second, fourth = two & _LOW, one & _LOW
        low, high = (low + _WEYL[0]) & 0xFFFFFFFF, (high + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([first, second, third, fourth], axis=-1)


def _digest(text: str) -> int:
    """Return a 64-bit digest of `text`."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
