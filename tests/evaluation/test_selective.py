from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from landmarks.evaluation.selective import (
    auroc,
    risk_area,
    risk_coverage,
    threshold_for_false_acceptance,
    threshold_for_loss,
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
