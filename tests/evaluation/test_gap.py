from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from landmarks.dataset.manifest import NO_LABEL
from landmarks.evaluation.gap import gap
from landmarks.evaluation.metrics import truth_of
from landmarks.support.errors import LandmarksError


def gap_of(truth: dict[str, set[int]], predictions: dict[str, tuple[int, float]]) -> float:
    ids = sorted(truth)
    answers = np.array([predictions.get(id, (NO_LABEL, 0.0))[0] for id in ids], dtype=int)
    scores = np.array([predictions.get(id, (NO_LABEL, 0.0))[1] for id in ids])
    return gap(ids, answers, scores, truth_of([truth[id] for id in ids]))


PUBLISHED = {"a": {0, 12}, "b": {100, 200, 300}, "c": {1}, "d": set[int](), "e": set[int]()}


def test_the_published_example() -> None:
    predictions = {"b": (0, 0.01), "c": (1, 10.0), "d": (150, 15.0)}
    assert gap_of(PUBLISHED, predictions) == pytest.approx(0.166667, abs=1e-6)
    without = {id: shown for id, shown in PUBLISHED.items() if shown}
    assert gap_of(without, {"b": (0, 0.01), "c": (1, 10.0)}) == pytest.approx(0.333333, abs=1e-6)


def test_no_prediction_at_all_is_zero() -> None:
    assert gap_of(PUBLISHED, {}) == 0.0


def test_no_landmark_at_all_is_no_number() -> None:
    assert np.isnan(gap_of({"a": set(), "b": set()}, {"a": (1, 0.5)}))


def test_any_of_several_landmarks_is_right() -> None:
    assert gap_of({"a": {1, 2}}, {"a": (2, 0.5)}) == 1.0


def test_equal_scores_are_taken_by_id() -> None:
    truth = {"a": set[int](), "b": {1}}
    assert gap_of(truth, {"a": (1, 0.5), "b": (1, 0.5)}) == 0.5
    assert gap_of({"a": {1}, "b": set()}, {"a": (1, 0.5), "b": (1, 0.5)}) == 1.0


def test_a_photograph_predicted_twice_is_refused() -> None:
    with pytest.raises(LandmarksError, match='"a" twice'):
        gap(["a", "a"], np.array([1, 2]), np.array([0.5, 0.4]), truth_of([[1], [1]]))


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(LandmarksError, match="1 of 1 scores"):
        gap_of({"a": {1}}, {"a": (1, float("nan"))})


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=3),
        st.tuples(st.sets(st.integers(0, 4), max_size=2), st.integers(-1, 4), st.sampled_from([0.1, 0.5, 0.9])),
        max_size=25,
    )
)
def test_gap_agrees_with_the_definition_walked_rank_by_rank(
    photographs: dict[str, tuple[set[int], int, float]],
) -> None:
    truth = {id: shown for id, (shown, _, _) in photographs.items()}
    predictions = {id: (answer, score) for id, (_, answer, score) in photographs.items() if answer != NO_LABEL}
    shown_count = sum(bool(shown) for shown in truth.values())
    ranked = sorted(predictions, key=lambda photo: (-predictions[photo][1], photo, predictions[photo][0]))
    total, right = 0.0, 0
    for rank, id in enumerate(ranked, 1):
        if predictions[id][0] in truth[id]:
            right += 1
            total += right / rank
    result = gap_of(truth, predictions)
    assert np.isnan(result) if shown_count == 0 else result == pytest.approx(total / shown_count)


@given(st.integers(0, 1000))
def test_gap_is_average_precision_times_the_share_found(seed: int) -> None:
    random = np.random.default_rng(seed)
    ids = [f"{number:03d}" for number in range(50)]
    shown = random.integers(3, size=50)
    answers = np.concatenate([shown[:25], random.integers(3, size=25)])
    scores = random.permutation(50) / 50.0
    correct = shown == answers
    expected = average_precision_score(correct, scores) * correct.sum() / 50
    assert gap(ids, answers, scores, truth_of([[int(label)] for label in shown])) == pytest.approx(expected)
