"""What an export remembers of training images, in full and in little room."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from landmarks.recognition.directions import directions
from landmarks.recognition.export_graph import KEPT, _GalleryScores, _main_axes
from landmarks.recognition.gallery import make_gallery
from landmarks.recognition.known_scores import KNN, MAHALANOBIS


@pytest.mark.parametrize(("images", "noise", "has_axes"), [(400, 0.1, True), (8, 2.0, False)])
def test_a_compact_gallery_scores_as_the_whole_one_in_less_room(images: int, noise: float, has_axes: bool) -> None:
    random = np.random.default_rng(0)
    centres = np.maximum(random.normal(size=(8, 256)), 0)
    labels = np.arange(images) % 8
    features = np.maximum(centres[labels] + random.normal(0, noise, (images, 256)), 0).astype(np.float32)
    gallery = make_gallery(directions(features), labels, "digest")
    whole, compact = (_GalleryScores(gallery, {KNN}, 256, compact=one) for one in (False, True))
    assert compact.has_axes == has_axes
    room = [sum(one.numel() * one.element_size() for one in module.buffers()) for module in (whole, compact)]
    assert room[1] < (0.4 if has_axes else 1) * room[0]
    asked = torch.from_numpy(np.maximum(centres[np.resize(labels, 20)] + random.normal(0, 0.3, (20, 256)), 0)).float()
    wanted, found = (module(asked)[KNN].numpy() for module in (whole, compact))
    assert np.abs(wanted - found).mean() < 0.1 and np.corrcoef(wanted, found)[0, 1] > 0.98


def test_distances_are_the_same_with_a_whitening_in_eight_bits_beside_its_diagonal() -> None:
    random = np.random.default_rng(0)
    mixing = random.normal(0, 0.05, (256, 256)) + np.eye(256)  # features that go together, as a network's do
    labels = np.arange(600) % 6
    centres = np.maximum(random.normal(size=(6, 256)), 0)
    features = np.maximum((centres[labels] + random.normal(0, 0.5, (600, 256))) @ mixing, 0).astype(np.float32)
    gallery = make_gallery(directions(features), labels, "digest")
    whole, compact = (_GalleryScores(gallery, {MAHALANOBIS}, 256, compact=one) for one in (False, True))
    wanted, found = (module(torch.from_numpy(features[:200]))[MAHALANOBIS].numpy() for module in (whole, compact))
    assert np.abs(wanted - found).mean() < 0.05 * wanted.std() and np.corrcoef(wanted, found)[0, 1] > 0.998
    room = [sum(one.numel() * one.element_size() for one in module.buffers()) for module in (whole, compact)]
    assert room[1] < 0.6 * room[0]


def test_main_axes_hold_what_they_promise_and_no_more() -> None:
    images = torch.randn(40, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images *= torch.logspace(0, -2, 40, dtype=torch.float64)[:, None]
    axes = _main_axes(images)
    torch.testing.assert_close(axes.T @ axes, torch.eye(axes.shape[1], dtype=torch.float64))
    squares = (axes.T @ images).square().sum(1) / images.square().sum()
    assert squares.sum() >= KEPT > squares[:-1].sum()
