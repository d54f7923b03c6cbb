from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmarks.dataset import neighbours
from landmarks.dataset.neighbours import near_pairs
from landmarks.support.errors import UsageError

HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=12)
FLIPS = st.lists(st.tuples(st.integers(0, 11), st.sets(st.integers(0, 63), max_size=14)), max_size=30)


def compared_with_all(hashes: list[int], radius: int) -> list[list[int]]:
    return [
        [i, j]
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i] ^ hashes[j]).bit_count() <= radius
    ]


@given(HASHES, FLIPS, st.integers(0, 12), st.sampled_from([0, 8192]))
@settings(max_examples=150)
def test_every_pair_is_found_and_no_other(
    hashes: list[int], flips: list[tuple[int, set[int]]], radius: int, few: int
) -> None:
    """With `few` 0 even a handful goes through the chunks."""
    for of, bits in flips:
        if of < len(hashes):
            hashes.append(hashes[of] ^ sum(1 << bit for bit in bits))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_FEW", few)
        patch.setattr(neighbours, "_cost", lambda count, radius, chunks: abs(chunks - 5 - radius % 3))
        assert near_pairs(np.array(hashes, np.uint64), radius).tolist() == compared_with_all(hashes, radius)


@pytest.mark.parametrize("radius", [0, 2, 5, 8, 11])
def test_recall_is_one_among_thousands_of_hashes_with_favourite_bits(radius: int) -> None:
    random = np.random.default_rng(radius)
    centres = random.integers(0, 2, (40, 64))
    bits = centres[random.integers(0, 40, 9000)] ^ (random.random((9000, 64)) < 0.12)
    hashes = np.packbits(bits, axis=1).view(np.uint64).ravel()
    found = near_pairs(hashes, radius)
    near = [np.flatnonzero(np.bitwise_count(hashes[i] ^ hashes[i + 1 :]) <= radius) + i + 1 for i in range(len(hashes))]
    expected = [(i, j) for i, others in enumerate(near) for j in others]
    assert len(expected) > (0 if radius else -1)
    assert np.array_equal(found, np.array(expected).reshape(-1, 2))


def test_none_and_one_hash_have_no_pairs() -> None:
    assert near_pairs(np.empty(0, np.uint64), 8).shape == (0, 2)
    assert near_pairs(np.ones(1, np.uint64), 8).shape == (0, 2)


def test_an_impossible_radius_is_refused() -> None:
    for radius in (-1, 16, 64):
        with pytest.raises(UsageError, match="impossible radius"):
            near_pairs(np.ones(2, np.uint64), radius)
