from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve

from landmarks.evaluation.calibration import calibration_error, reliability
from landmarks.evaluation.tempering import fit_temperature
from landmarks.support.errors import LandmarksError


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


def test_with_every_photograph_right_the_temperature_stays_in_its_bounds() -> None:
    assert 0.05 <= fit_temperature(np.eye(4) * 10, np.arange(4)) < 1


def test_a_confidence_beyond_one_is_refused() -> None:
    with pytest.raises(LandmarksError, match="no probability"):
        calibration_error(np.array([1.5]), np.array([True]))
