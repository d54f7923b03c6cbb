"""Keyed randomness: the published generator, and rows that depend on their key alone."""

from __future__ import annotations

import numpy as np
import pytest

from landmarks.support.seeds import generator, philox, uniforms

KNOWN_ANSWERS = [  # counters, key, words: `philox4x32 10` of Random123's kat_vectors
    ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def test_the_same_keys_give_the_same_numbers_and_others_do_not() -> None:
    assert generator(0, 1, "a").integers(2**40) == generator(0, 1, "a").integers(2**40)
    numbers = {generator(seed, epoch, image).integers(2**40) for seed in (0, 1) for epoch in (0, 1) for image in "ab"}
    assert len(numbers) == 8


def test_keys_do_not_run_together() -> None:
    assert generator("1", "23").integers(2**40) != generator("12", "3").integers(2**40)


def test_the_numbers_stay_what_they_were() -> None:
    # A selection drawn today must be drawn again in years: this value changes only when every seed changes its meaning.
    assert generator(0).permutation(10).tolist() == [2, 7, 3, 8, 1, 5, 0, 9, 6, 4]


@pytest.mark.parametrize(("counters", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_its_authors_known_answers(
    counters: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert philox(np.array(counters, dtype=np.uint64), key).tolist() == list(words)


def test_a_row_depends_on_keys_and_id_not_on_the_rows_beside_it_or_on_how_many_numbers_are_drawn() -> None:
    ids = ["a", "b", "ÿ", ""]
    whole = uniforms((0, 1), ids, 26)
    assert np.array_equal(uniforms((0, 1), ids[::-1], 26)[::-1], whole)
    assert np.array_equal(uniforms((0, 1), ids[2:3], 3), whole[2:3, :3])
    for keys in ((0, 2), (1, 1), (-1, 1), (0, 11), (2**63 - 1, 1)):
        assert not np.isin(uniforms(keys, ids, 26), whole).any()


def test_uniform_numbers_are_below_one_and_spread_evenly() -> None:
    numbers = uniforms((7,), [str(number) for number in range(2000)], 5)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.abs(np.histogram(numbers, 10, (0, 1))[0] - 1000).max() < 120  # four deviations
