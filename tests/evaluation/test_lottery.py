from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from landmarks.evaluation.closed_form import PENALTY, ridge_scores
from landmarks.evaluation.lottery import describe, learning_curves, lottery, place_of
from landmarks.support.errors import UsageError


def made_up(landmarks: int = 30, each: int = 30, width: int = 12, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(landmarks), each)
    return random.normal(0, spread, (landmarks, width))[labels] + random.normal(0, 1, (len(labels), width)), labels


def test_the_closed_form_is_scikit_learns_ridge_regression() -> None:
    x, y = made_up(4, 20)
    asked = x[::3] + 0.1
    centred = x - x.mean(axis=0)
    penalty = PENALTY * np.trace(centred.T @ centred) / x.shape[1]
    expected = Ridge(alpha=penalty).fit(x, 2 * np.eye(4)[y] - 1).predict(asked)
    assert ridge_scores(x, y, asked, 4) == pytest.approx(expected)


def test_features_without_any_difference_give_an_answer_all_the_same() -> None:
    assert np.isfinite(ridge_scores(np.ones((4, 3)), np.array([0, 0, 1, 1]), np.ones((2, 3)), 2)).all()


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    features, labels = made_up()
    first = lottery(features, labels, landmarks=5, draws=10, seed=1)
    assert (first == lottery(features, labels, landmarks=5, draws=10, seed=1)).all()
    assert (first != lottery(features, labels, landmarks=5, draws=10, seed=2)).any()


def test_the_order_of_the_photographs_of_a_draw_does_not_reach_beyond_it() -> None:
    features, labels = made_up()
    assert (
        lottery(features, labels, landmarks=5, draws=3) == lottery(features, labels, landmarks=5, draws=9)[:3]
    ).all()


def test_clear_landmarks_are_always_told_apart_and_noise_never() -> None:
    features, labels = made_up(spread=20)
    assert lottery(features, labels, landmarks=10, draws=5).min() == 1.0
    noise = np.random.default_rng(0).normal(size=features.shape)
    assert lottery(noise, labels, landmarks=10, draws=20).mean() == pytest.approx(0.1, abs=0.03)


def test_more_photographs_help_and_more_landmarks_hurt() -> None:
    features, labels = made_up()
    curves = learning_curves(features, labels, photographs=(1, 5, 20, 500), landmarks=(5, 10, 30, 99), at=10, draws=5)
    grown = curves.filter(varied="photographs")
    fallen = curves.filter(varied="landmarks")
    assert grown["value"].to_list() == [1, 5, 20]
    assert grown["mean"].is_sorted()
    assert fallen["value"].to_list() == [5, 10, 30]
    assert fallen["mean"].is_sorted(descending=True)


def test_where_one_draw_lies() -> None:
    accuracies = np.array([0.8, 0.85, 0.9, 0.9])
    assert place_of(0.9, accuracies) == 0.75
    assert place_of(0.7, accuracies) == 0.0
    assert describe(accuracies)["q50"] == pytest.approx(0.875)


def test_more_landmarks_than_there_are_cannot_be_drawn() -> None:
    features, labels = made_up(3)
    with pytest.raises(UsageError, match="2 to 3"):
        lottery(features, labels, landmarks=20)
