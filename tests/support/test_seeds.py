from __future__ import annotations

from landmarks.support.seeds import generator


def test_the_same_keys_give_the_same_numbers_and_others_do_not() -> None:
    assert generator(0, 1, "a").integers(2**40) == generator(0, 1, "a").integers(2**40)
    numbers = {generator(seed, epoch, image).integers(2**40) for seed in (0, 1) for epoch in (0, 1) for image in "ab"}
    assert len(numbers) == 8


def test_keys_do_not_run_together() -> None:
    assert generator("1", "23").integers(2**40) != generator("12", "3").integers(2**40)


def test_the_numbers_stay_what_they_were() -> None:
    # A selection drawn today must be drawn again in years: this value changes only when every seed changes its meaning.
    assert generator(0).permutation(10).tolist() == [2, 7, 3, 8, 1, 5, 0, 9, 6, 4]
