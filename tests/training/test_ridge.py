"""The probe against scikit-learn's ridge regression."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from landmarks.dataset.manifest import Dataset
from landmarks.support.errors import LandmarksError
from landmarks.training import ridge
from landmarks.training import ridge as probe
from landmarks.training.features import Rows
from landmarks.training.recipe import Recipe
from landmarks.training.ridge import PENALTY, ridge_scores
from landmarks.training.train import train


def rows(values: np.ndarray) -> Rows:
    return Rows(values, np.arange(len(values)))


def drawn(images: int, width: int, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    y = random.integers(0, classes, images)
    x = random.normal(size=(classes, width))[y] * 0.8 + random.normal(size=(images, width)) + 3
    return x.astype(np.float16), y


@pytest.mark.parametrize("width", [12, 199, 200, 201, 900])
@pytest.mark.parametrize("block_bytes", [1, 8 * 40 * 900, 1 << 25])
def test_the_probe_answers_as_ridge_regression_does(
    monkeypatch: pytest.MonkeyPatch, width: int, block_bytes: int
) -> None:
    x, y = drawn(300, width)
    x_val, y_val, x, y = x[200:], y[200:], x[:200], y[:200]
    monkeypatch.setattr(probe, "PENALTIES", (0.1,))
    monkeypatch.setattr(ridge, "BLOCK_BYTES", block_bytes)
    found = probe.ridge_probe(rows(x), y, rows(x_val), y_val, 5)
    assert found is not None

    wide = x.astype(float)
    scale = np.trace((wide - wide.mean(0)).T @ (wide - wide.mean(0))) / width
    oracle = Ridge(alpha=0.1 * scale).fit(wide, 2 * np.eye(5)[y] - 1)
    expected = oracle.predict(x_val.astype(float))
    assert found.val_accuracy == (expected.argmax(1) == y_val).mean()
    if width * block_bytes > 100_000:
        oracle = Ridge(alpha=PENALTY * scale).fit(wide, 2 * np.eye(5)[y] - 1)
        scores = ridge_scores(wide, y, x_val.astype(float), 5)
        assert scores == pytest.approx(oracle.predict(x_val.astype(float)), abs=1e-8)


def test_a_landmark_without_images_is_never_answered() -> None:
    random = np.random.default_rng(1)
    y = random.integers(0, 2, 60)
    x = np.eye(2)[y] + random.normal(size=(60, 2)) * 0.1
    found = probe.ridge_probe(rows(x), y, rows(x), y, classes=4)
    assert found is not None and found.val_accuracy == 1.0


def test_features_as_long_as_the_baselines_need_no_square_of_their_length() -> None:
    x, y = drawn(60, 50_176)
    tracemalloc.start()
    found = probe.ridge_probe(rows(x), y, rows(x), y, classes=5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is not None and found.val_accuracy == 1.0
    assert peak < 300e6  # the square alone would be 20 GB


def test_too_many_long_features_are_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "MAX_SIDE", 50)
    x, y = drawn(60, 70)
    assert probe.ridge_probe(rows(x), y, rows(x), y, classes=5) is None
    assert probe.ridge_probe(rows(x[:50]), y[:50], rows(x), y, classes=5) is not None
    with pytest.raises(LandmarksError, match="received 70 numbers, 60 images"):
        ridge_scores(x, y, x, 5)


def test_a_training_without_a_probe_says_so_and_goes_on(
    stripes: Dataset,
    small_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ridge, "MAX_SIDE", 10)
    run = train(stripes.folder, tmp_path / "run", recipe=replace(small_recipe, epochs=0, head_epochs=1))
    assert run.record["head"]["probe"] is None
    assert "no linear probe" in capfd.readouterr().err
    monkeypatch.undo()
    run = train(stripes.folder, tmp_path / "probed", recipe=replace(small_recipe, epochs=0, head_epochs=1))
    assert run.record["head"]["probe"]["val_accuracy"] > 1 / 3
