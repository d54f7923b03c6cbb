from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from landmarks.evaluation.intervals import group_places, macro_interval, mean_interval, wilson


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(counts: tuple[int, int]) -> None:
    correct, images = counts
    expected = binomtest(correct, images).proportion_ci(method="wilson")
    low, high = wilson(np.array([correct]), np.array([images]))
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high))


def test_no_images_could_be_any_share() -> None:
    low, high = wilson(np.array([0]), np.array([0]))
    assert (low[0], high[0]) == (0, 1)


def test_independent_images_give_about_the_binomial_interval() -> None:
    correct = np.arange(400) % 4 != 0
    low, high, _ = mean_interval(correct, None)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - half, abs=0.006)
    assert high == pytest.approx(0.75 + half, abs=0.006)


def test_series_of_the_same_image_widen_the_interval() -> None:
    correct = np.repeat(np.arange(40) % 4 != 0, 10)
    groups = np.repeat(np.arange(40), 10)
    low, high, _ = mean_interval(correct, groups)
    alone_low, alone_high, _ = mean_interval(correct, None)
    assert (high - low) / (alone_high - alone_low) == pytest.approx(np.sqrt(10), rel=0.15)


def test_images_without_a_group_stand_alone() -> None:
    places = group_places(np.array([5, -1, 5, -1]), 4)
    assert places[0] == places[2]
    assert len(set(places.tolist())) == 3


def test_the_same_seed_gives_the_same_interval() -> None:
    correct = np.arange(50) % 3 == 0
    assert mean_interval(correct, None, seed=4) == mean_interval(correct, None, seed=4)
    assert mean_interval(correct, None, seed=4) != mean_interval(correct, None, seed=5)


def test_macro_interval_of_balanced_landmarks_is_that_of_the_mean() -> None:
    first = np.repeat(np.arange(4), 100)
    correct = np.tile(np.arange(100) % 4 != 0, 4)
    low, high, _ = macro_interval(first, correct, None)
    plain_low, plain_high, _ = mean_interval(correct, None)
    assert (low, high) == pytest.approx((plain_low, plain_high), abs=0.01)


@given(st.integers(1, 300), st.booleans())
def test_all_alike_has_wilsons_interval_and_never_one_of_no_width(images: int, right: bool) -> None:
    expected = binomtest(images if right else 0, images).proportion_ci(method="wilson")
    found = mean_interval(np.full(images, right), None, draws=20)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.low < found.high
    assert "Wilson" in found.method
    macro = macro_interval(np.arange(images) % 3, np.full(images, right), None, draws=20)
    assert macro == found


def test_a_single_group_says_next_to_nothing() -> None:
    found = mean_interval(np.arange(10) < 7, np.zeros(10, dtype=int))
    assert found.low < 0.2
    assert found.high > 0.9
    assert "1 group," in found.method


def test_two_runs_that_answer_alike_on_few_images_may_differ_on_others() -> None:
    few = mean_interval(np.zeros(9), None, least=-1)
    many = mean_interval(np.zeros(900), None, least=-1)
    assert few.low == -few.high < -0.25
    assert -0.01 < many.low < many.high < 0.01
