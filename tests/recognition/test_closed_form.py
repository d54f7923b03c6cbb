"""Densities of remembered images around an image: scikit-learn as the oracle, in numpy and as a layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KernelDensity

from landmarks.recognition import closed_form
from landmarks.recognition.closed_form import CONCENTRATION, LogDensities, neighbourhood_of
from landmarks.recognition.vectors import directions
from landmarks.training.discriminant import class_moments, shrunk_within


def drawn(seed: int, count: int, width: int = 10) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(4, size=count)
    centres = np.random.default_rng(3).normal(size=(4, width))
    return directions(centres[labels] + random.normal(size=(count, width))), labels


def test_differences_of_log_densities_are_those_of_scikit_learns_kernel_density() -> None:
    images, labels = drawn(0, 90)
    query_images, _ = drawn(1, 30)
    moments = class_moments(images, labels, 4)
    found = neighbourhood_of(moments, images, labels)
    assert found is not None
    whitening = np.linalg.inv(np.linalg.cholesky(shrunk_within(moments)))
    origin = np.mean([images[labels == label].mean(0) for label in range(4)], axis=0)
    white, queries = ((one - origin) @ whitening.T for one in (images, query_images))
    white, queries = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (white, queries))
    expected = np.stack(
        [
            KernelDensity(bandwidth=CONCENTRATION**-0.5).fit(white[labels == label]).score_samples(queries)
            for label in range(4)
        ],
        axis=1,
    )
    got = found.log_densities(query_images, 4)
    assert got - got[:, :1] == pytest.approx(expected - expected[:, :1], abs=0.05)  # images are in half precision


def test_the_axes_kept_are_those_along_which_whitened_images_differ_most(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = drawn(0, 300)
    moments = class_moments(images, labels, 4)
    monkeypatch.setattr(closed_form, "WIDTH", 3)
    found = neighbourhood_of(moments, images, labels)
    assert found is not None and found.axes.shape == (10, 3)
    white = images @ np.linalg.inv(np.linalg.cholesky(shrunk_within(moments))).T
    largest = np.linalg.svd(white - white.mean(0), compute_uv=False)[:3]
    along = images @ found.axes
    assert np.linalg.svd(along - along.mean(0), compute_uv=False) == pytest.approx(largest, rel=1e-3)


def test_the_layer_answers_as_the_arrays_do_also_for_landmarks_that_came_later_and_for_one_without_images() -> None:
    images, labels = drawn(0, 60)
    found = neighbourhood_of(class_moments(images, labels, 4), images, labels)
    assert found is not None
    later = found.plus(drawn(2, 7)[0], np.array([6, 4, 4, 6, 4, 6, 6]))
    queries, _ = drawn(1, 20)
    expected = later.log_densities(queries, 7)
    with torch.no_grad():
        got = LogDensities(later, 7)(torch.from_numpy(queries)).numpy()
    assert got == pytest.approx(expected, abs=1e-4)
    assert (expected[:, 5] == np.log(closed_form.LEAST)).all() and (expected[:, [4, 6]] > -60).all()
    assert later.log_densities(queries, 7)[:, :4] == pytest.approx(found.log_densities(queries, 4))


def test_no_more_images_are_remembered_than_fit_and_none_where_there_are_more_landmarks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, labels = drawn(0, 200)
    moments = class_moments(images, labels, 4)
    monkeypatch.setattr(closed_form, "MAX_IMAGES", 40)
    found = neighbourhood_of(moments, images, labels)
    assert found is not None and np.bincount(found.labels).tolist() == [10] * 4
    monkeypatch.setattr(closed_form, "MAX_EACH", 6)
    found = neighbourhood_of(moments, images, labels)
    assert found is not None and np.bincount(found.labels).tolist() == [6] * 4
    monkeypatch.setattr(closed_form, "MAX_IMAGES", 3)
    assert neighbourhood_of(moments, images, labels) is None
