"""The probe against scikit-learn's ridge regression."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge

from landmarks.training import probe
from landmarks.training.features import Rows


def rows(values: np.ndarray) -> Rows:
    return Rows(values, np.arange(len(values)))


def test_the_probe_answers_as_ridge_regression_does(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(0)
    centres = random.normal(size=(5, 12)) * 0.8
    y = random.integers(0, 5, 300)
    x = (centres[y] + random.normal(size=(300, 12)) + 3).astype(np.float16)
    x_val, y_val = x[200:], y[200:]
    x, y = x[:200], y[:200]
    monkeypatch.setattr(probe, "PENALTIES", (0.1,))
    monkeypatch.setattr(probe, "BLOCK", 64)
    found = probe.ridge_probe(rows(x), y, rows(x_val), y_val, 5)

    wide = x.astype(float)
    scale = np.trace((wide - wide.mean(0)).T @ (wide - wide.mean(0))) / 12
    oracle = Ridge(alpha=0.1 * scale).fit(wide, 2 * np.eye(5)[y] - 1)
    assert found.val_accuracy == (oracle.predict(x_val.astype(float)).argmax(1) == y_val).mean()


def test_a_landmark_without_photographs_is_never_answered() -> None:
    random = np.random.default_rng(1)
    y = random.integers(0, 2, 60)
    x = np.eye(2)[y] + random.normal(size=(60, 2)) * 0.1
    assert probe.ridge_probe(rows(x), y, rows(x), y, classes=4).val_accuracy == 1.0
