from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, confusion_matrix, recall_score, roc_auc_score, top_k_accuracy_score
from sklearn.metrics import log_loss as sklearn_log_loss

from landmarks.dataset.manifest import NO_LABEL
from landmarks.evaluation import metrics
from landmarks.evaluation.metrics import (
    auroc,
    calibration_error,
    global_average_precision,
    reliability,
    risk_area,
    risk_coverage,
    threshold_for_false_acceptance,
    threshold_for_loss,
    truth_of,
)
from landmarks.recognition.trained import fit_temperature
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


def test_truth_of_chosen_images_is_renumbered() -> None:
    truth = metrics.truth_of([[3], [5, 9], [], [2]]).subset(np.array([False, True, True, True]))
    assert truth.images == 3
    assert truth.rows.tolist() == [0, 0, 2]
    assert truth.labels.tolist() == [5, 9, 2]


def test_no_answer_is_never_right() -> None:
    truth = metrics.truth_of([[1], []])
    assert not metrics.correct_answers(np.full((2, 5), metrics.NO_LABEL), truth).any()


@given(st.integers(0, 10_000))
def test_top_k_macro_log_loss_and_confusion_agree_with_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    images, landmarks = 60, 7
    first = np.concatenate([np.arange(landmarks), random.integers(landmarks, size=images - landmarks)])
    scores = random.random((images, landmarks))
    scores /= scores.sum(axis=1, keepdims=True)
    labels = np.argsort(-scores, axis=1)
    truth = metrics.truth_of([[int(label)] for label in first])
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(first, scores, k=k)
        assert metrics.top_k(labels, truth, k).mean() == pytest.approx(expected)
    correct = metrics.top_k(labels, truth, 1)
    assert metrics.macro_accuracy(first, correct) == pytest.approx(recall_score(first, labels[:, 0], average="macro"))
    log_scores = np.log(scores[np.arange(images), first])
    assert metrics.log_loss(log_scores) == pytest.approx(sklearn_log_loss(first, scores))
    dense = np.zeros((landmarks, landmarks), dtype=int)
    shown, answer, count = metrics.confusion_pairs(first, labels[:, 0], correct)
    dense[shown, answer] = count
    assert (dense == confusion_matrix(first, labels[:, 0])).all()


@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 9), max_size=3), st.lists(st.integers(-1, 9), min_size=3, max_size=3)),
        max_size=30,
    )
)
def test_correct_answers_agree_with_a_slow_plain_version(images: list[tuple[set[int], list[int]]]) -> None:
    truth = metrics.truth_of([shown for shown, _ in images])
    labels = np.array([answers for _, answers in images], dtype=int).reshape(-1, 3)
    slow = [[answer in shown for answer in answers] for shown, answers in images]
    assert metrics.correct_answers(labels, truth).tolist() == slow


def test_a_right_answer_that_is_not_the_first_landmark_shown_is_no_confusion() -> None:
    truth = metrics.truth_of([[5, 9], [5, 9]])
    answers = np.array([9, 4])
    correct = metrics.top_k(answers[:, None], truth, 1)
    shown, answer, count = metrics.confusion_pairs(truth.first, answers, correct)
    assert list(zip(shown, answer, count, strict=True)) == [(5, 4, 1), (9, 9, 1)]


def test_most_confused_pairs_come_most_frequent_first_and_ties_by_label() -> None:
    first = np.array([1, 1, 2, 2, 3, 3, 3])
    answers = np.array([2, 2, 1, 1, 3, 1, 2])
    shown, answer, count = metrics.confusion_pairs(first, answers, first == answers)
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


def gap_of(truth: dict[str, set[int]], predictions: dict[str, tuple[int, float]]) -> float:
    ids = sorted(truth)
    answers = np.array([predictions.get(id, (NO_LABEL, 0.0))[0] for id in ids], dtype=int)
    scores = np.array([predictions.get(id, (NO_LABEL, 0.0))[1] for id in ids])
    return global_average_precision(ids, answers, scores, truth_of([truth[id] for id in ids]))


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


def test_an_image_predicted_twice_is_refused() -> None:
    with pytest.raises(LandmarksError, match='"a" twice'):
        global_average_precision(["a", "a"], np.array([1, 2]), np.array([0.5, 0.4]), truth_of([[1], [1]]))


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
    images: dict[str, tuple[set[int], int, float]],
) -> None:
    truth = {id: shown for id, (shown, _, _) in images.items()}
    predictions = {id: (answer, score) for id, (_, answer, score) in images.items() if answer != NO_LABEL}
    shown_count = sum(bool(shown) for shown in truth.values())
    ranked = sorted(predictions, key=lambda image: (-predictions[image][1], image, predictions[image][0]))
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
    assert global_average_precision(ids, answers, scores, truth_of([[int(label)] for label in shown])) == pytest.approx(
        expected
    )


scores = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]), min_size=1, max_size=30)


def test_risk_and_coverage_worked_by_hand() -> None:
    coverage, risk = risk_coverage(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert risk_area(risk) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=7))
def test_ties_share_their_mistakes_whatever_the_order_of_the_rows(rows: list[tuple[float, bool]]) -> None:
    confidence, correct = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    forwards, backwards = risk_coverage(confidence, correct), risk_coverage(confidence[::-1], correct[::-1])
    assert forwards[1] == pytest.approx(backwards[1])
    random = np.random.default_rng(0)
    orders = [np.lexsort((random.random(len(rows)), -confidence)) for _ in range(400)]
    mean = np.mean([np.cumsum(~correct[order]) / np.arange(1, len(rows) + 1) for order in orders], axis=0)
    assert forwards[1] == pytest.approx(mean, abs=0.15)


@given(scores, scores)
def test_auroc_agrees_with_scikit_learn_ties_included(known: list[float], unknown: list[float]) -> None:
    expected = roc_auc_score([1] * len(known) + [0] * len(unknown), known + unknown)
    assert auroc(np.array(known), np.array(unknown)) == pytest.approx(expected)


@given(scores, st.floats(0, 1))
def test_the_threshold_for_false_acceptance_is_the_smallest_that_keeps_its_promise(
    unknown: list[float], rate: float
) -> None:
    values = np.array(unknown)
    threshold = threshold_for_false_acceptance(values, rate)
    assert np.mean(values >= threshold) <= rate
    if np.isfinite(threshold):
        assert np.mean(values >= np.nextafter(threshold, -np.inf)) > rate


@given(scores, st.floats(0, 0.99))
def test_the_threshold_for_a_loss_is_the_largest_that_keeps_its_promise(known: list[float], share: float) -> None:
    values = np.array(known)
    threshold = threshold_for_loss(values, share)
    assert np.mean(values < threshold) <= share
    assert np.mean(values < np.nextafter(threshold, np.inf)) > share


def test_calibration_error_worked_by_hand() -> None:
    confidence = np.array([0.9, 0.9, 0.3, 0.3])
    correct = np.array([True, False, False, True])
    assert calibration_error(confidence, correct) == pytest.approx(0.5 * 0.4 + 0.5 * 0.2)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_and_the_ends_have_a_bin() -> None:
    means, _, counts = reliability(np.array([0.0, 0.5, 0.51, 1.0]), np.ones(4, dtype=bool), bins=2)
    assert counts.tolist() == [2, 2]
    assert means.tolist() == [0.25, 0.755]


@given(st.integers(0, 1000))
def test_the_reliability_curve_agrees_with_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    confidence = random.random(200)
    correct = random.random(200) < confidence
    means, accuracy, _ = reliability(confidence, correct)
    expected_accuracy, expected_means = calibration_curve(correct, confidence, n_bins=15)
    assert means == pytest.approx(expected_means)
    assert accuracy == pytest.approx(expected_accuracy)


def test_the_calibration_error_agrees_with_a_slow_plain_version() -> None:
    random = np.random.default_rng(0)
    confidence, correct = random.random(300), random.random(300) < 0.6
    slow = 0.0
    for bin in range(15):
        inside = [i for i in range(300) if bin / 15 < confidence[i] <= (bin + 1) / 15]
        if inside:
            slow += abs(sum(confidence[i] - correct[i] for i in inside)) / 300
    assert calibration_error(confidence, correct) == pytest.approx(slow)


def test_the_temperature_of_sharpened_outputs_is_found_again() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(size=(5000, 6)) * 2
    labels = np.array([random.choice(6, p=row) for row in softmax(logits, axis=1)])
    assert fit_temperature(logits * 2.5, labels) == pytest.approx(2.5, rel=0.1)


def test_no_other_temperature_on_a_fine_grid_has_a_smaller_log_loss() -> None:
    random = np.random.default_rng(2)
    logits, labels = random.normal(size=(200, 4)) * 5, random.integers(4, size=200)
    logits[np.arange(200), labels] += 4

    def loss(temperature: float) -> float:
        return float(-log_softmax(logits / temperature, axis=1)[np.arange(200), labels].mean())

    best = min(loss(temperature) for temperature in np.geomspace(0.05, 20, 3000))
    assert loss(fit_temperature(logits, labels, rows_at_once=7)) <= best + 1e-7


def test_with_every_image_right_the_temperature_stays_in_its_bounds() -> None:
    assert 0.05 <= fit_temperature(np.eye(4) * 10, np.arange(4)) < 1


def test_a_confidence_beyond_one_is_refused() -> None:
    with pytest.raises(LandmarksError, match="no probability"):
        calibration_error(np.array([1.5]), np.array([True]))
