from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, recall_score, top_k_accuracy_score
from sklearn.metrics import log_loss as sklearn_log_loss

from landmarks.evaluation import metrics
from landmarks.support.errors import LandmarksError


def test_answers_and_truths_worked_by_hand() -> None:
    truth = metrics.truth_of([[3], [5, 9], [], [2]])
    labels = np.array([[3, 1], [9, 5], [3, 4], [1, 2]])
    assert metrics.correct_answers(labels, truth).tolist() == [
        [True, False],
        [True, True],
        [False, False],
        [False, True],
    ]
    assert metrics.top_k(labels, truth, 1).tolist() == [True, True, False, False]
    assert metrics.top_k(labels, truth, 2).tolist() == [True, True, False, True]
    assert truth.known.tolist() == [True, True, False, True]
    assert truth.first.tolist() == [3, 5, metrics.NO_LABEL, 2]


def test_truth_of_chosen_photographs_is_renumbered() -> None:
    truth = metrics.truth_of([[3], [5, 9], [], [2]]).of(np.array([False, True, True, True]))
    assert truth.photographs == 3
    assert truth.rows.tolist() == [0, 0, 2]
    assert truth.labels.tolist() == [5, 9, 2]


def test_no_answer_is_never_right() -> None:
    truth = metrics.truth_of([[1], []])
    assert not metrics.correct_answers(np.full((2, 5), metrics.NO_LABEL), truth).any()


@given(st.integers(0, 10_000))
def test_top_k_macro_log_loss_and_confusion_agree_with_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    photographs, landmarks = 60, 7
    first = np.concatenate([np.arange(landmarks), random.integers(landmarks, size=photographs - landmarks)])
    scores = random.random((photographs, landmarks))
    scores /= scores.sum(axis=1, keepdims=True)
    labels = np.argsort(-scores, axis=1)
    truth = metrics.truth_of([[int(label)] for label in first])
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(first, scores, k=k)
        assert metrics.top_k(labels, truth, k).mean() == pytest.approx(expected)
    correct = metrics.top_k(labels, truth, 1)
    assert metrics.macro_accuracy(first, correct) == pytest.approx(recall_score(first, labels[:, 0], average="macro"))
    log_scores = np.log(scores[np.arange(photographs), first])
    assert metrics.log_loss(log_scores) == pytest.approx(sklearn_log_loss(first, scores))
    dense = np.zeros((landmarks, landmarks), dtype=int)
    shown, answer, count = metrics.confusion(first, labels[:, 0], correct)
    dense[shown, answer] = count
    assert (dense == confusion_matrix(first, labels[:, 0])).all()


@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 9), max_size=3), st.lists(st.integers(-1, 9), min_size=3, max_size=3)),
        max_size=30,
    )
)
def test_correct_answers_agree_with_a_slow_plain_version(photographs: list[tuple[set[int], list[int]]]) -> None:
    truth = metrics.truth_of([shown for shown, _ in photographs])
    labels = np.array([answers for _, answers in photographs], dtype=int).reshape(-1, 3)
    slow = [[answer in shown for answer in answers] for shown, answers in photographs]
    assert metrics.correct_answers(labels, truth).tolist() == slow


def test_a_right_answer_that_is_not_the_first_landmark_shown_is_no_confusion() -> None:
    truth = metrics.truth_of([[5, 9], [5, 9]])
    answers = np.array([9, 4])
    correct = metrics.top_k(answers[:, None], truth, 1)
    shown, answer, count = metrics.confusion(truth.first, answers, correct)
    assert list(zip(shown, answer, count, strict=True)) == [(5, 4, 1), (9, 9, 1)]


def test_most_confused_pairs_come_most_frequent_first_and_ties_by_label() -> None:
    first = np.array([1, 1, 2, 2, 3, 3, 3])
    answers = np.array([2, 2, 1, 1, 3, 1, 2])
    shown, answer, count = metrics.confusion(first, answers, first == answers)
    assert metrics.most_confused(shown, answer, count, 3) == [(1, 2, 2), (2, 1, 2), (3, 1, 1)]


def test_labels_need_not_be_small_numbers() -> None:
    truth = metrics.truth_of([[2**40], [7]])
    assert metrics.correct_answers(np.array([[2**40], [2**40]]), truth).tolist() == [[True], [False]]


def test_a_probability_that_is_no_number_is_refused() -> None:
    with pytest.raises(LandmarksError, match="1 of 2"):
        metrics.log_loss(np.array([-0.1, np.nan]))


def test_nothing_known_gives_no_number_rather_than_zero() -> None:
    empty = np.array([], dtype=int)
    assert np.isnan(metrics.macro_accuracy(empty, empty.astype(bool)))
    assert np.isnan(metrics.log_loss(np.array([])))
