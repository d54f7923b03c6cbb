"""The head training against logistic regression, and its early stop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from landmarks.models.network import build_network
from landmarks.training.discriminant import TEMPERATURES, fitted_scale
from landmarks.training.features import Rows
from landmarks.training.head_training import class_weights, solve_head, train_head, validate_head
from landmarks.training.recipe import recipe_named


def clusters(count: int, seed: int, width: int) -> tuple[Rows, np.ndarray]:
    centres = np.random.default_rng(7).normal(size=(4, width)) * 0.25
    random = np.random.default_rng(seed)
    y = random.integers(0, 4, count)
    x = (centres[y] + random.normal(size=(count, width))).astype(np.float16)
    return Rows(x, np.arange(count)), y.astype(np.int64)


def test_a_linear_head_ends_where_logistic_regression_does() -> None:
    network = build_network("test_resnet", classes=4, head="linear", weights="none", image_size=32)
    x, y = clusters(600, 0, network.width)
    x_val, y_val = clusters(400, 1, network.width)
    recipe = replace(recipe_named("default"), label_smoothing=0.0, head_learning_rate=3e-3)
    trained = train_head(network, [x], y, x_val, y_val, recipe=recipe)
    oracle = LogisticRegression(C=0.1, max_iter=500).fit(x[:].astype(float), y)
    assert trained.val_accuracy >= oracle.score(x_val[:].astype(float), y_val) - 0.02
    assert validate_head(network, x_val, y_val) == pytest.approx((trained.val_accuracy, trained.val_loss))
    assert len(trained.rows) < recipe.head_epochs  # it stopped by itself


def test_the_same_seed_gives_the_same_head_bit_for_bit() -> None:
    heads = []
    for _ in range(2):
        network = build_network("test_resnet", classes=4, weights="none", image_size=32, seed=5)
        x, y = clusters(100, 0, network.width)
        train_head(network, [x], y, x, y, recipe=recipe_named("default", head_epochs=3, seed=5))
        heads.append(network.head.state_dict())
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_class_weights_have_the_mean_one_over_the_images() -> None:
    labels = np.array([0] * 8 + [1] * 2, dtype=np.int64)
    weights = class_weights(labels, 3, balance=1.0)
    assert weights.tolist() == pytest.approx([10 / 16, 2.5, 0.0])
    assert weights[labels].mean().item() == pytest.approx(1.0)
    assert class_weights(labels, 2, balance=0.0).tolist() == pytest.approx([1.0, 1.0])


def test_a_head_that_is_solved_for_answers_as_linear_discriminant_analysis_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = build_network("test_resnet", classes=5, head="linear", weights="none", image_size=32)
    x, y = clusters(600, 0, network.width)  # of four landmarks: the fifth has no image
    x_val, y_val = clusters(400, 1, network.width)
    monkeypatch.setattr("landmarks.training.head_training.SHRINKAGES", (0.3,))
    found = solve_head(network, x, y, x_val, y_val)

    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3, priors=np.bincount(y) / len(y))
    decisions = oracle.fit(x[:].astype(float), y).decision_function(x_val[:].astype(float)) - np.log(oracle.priors_)
    with torch.no_grad():
        logits = network.classify(torch.from_numpy(x_val[:]).float()).double().numpy()
    assert (logits.argmax(1) == decisions.argmax(1)).mean() > 0.98  # but for what a mean of so many images is off
    ratios = np.diff(logits[:, :4], axis=1) / np.diff(decisions, axis=1)
    assert np.median(ratios) == pytest.approx(np.percentile(ratios, 75), rel=0.05)
    assert (found.val_accuracy, found.val_loss) == pytest.approx(validate_head(network, x_val, y_val))
    assert found.val_accuracy > 0.5 and (logits.argmax(1) < 4).all()


def test_scores_are_divided_by_what_has_the_least_loss_of_all_that_are_tried() -> None:
    random = np.random.default_rng(0)
    for spread in (0.01, 0.3, 4.0, 900.0):
        labels = random.integers(5, size=80)
        scores = spread * (np.eye(5)[labels] + random.normal(size=(80, 5)))
        losses = [-log_softmax(scores / one, axis=1)[np.arange(80), labels].mean() for one in TEMPERATURES]
        assert fitted_scale(scores, labels) == TEMPERATURES[np.argmin(losses)]


def test_scores_are_not_made_surer_where_hardly_any_is_wrong() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(60) % 5
    scores = 10 * np.eye(5)[labels] + random.normal(size=(60, 5))
    least = TEMPERATURES[TEMPERATURES >= 1][0]
    assert fitted_scale(scores, labels) == least
    for wrong in (1, 2):
        scores[wrong, (labels[wrong] + 1) % 5] = 10.5 + scores[wrong].max()
        assert fitted_scale(scores / 100, labels) == least
    scores[0, 1] = 10.5 + scores[0].max()
    assert fitted_scale(scores / 100, labels) < 0.1  # three wrong answers tell how sure the others may be
