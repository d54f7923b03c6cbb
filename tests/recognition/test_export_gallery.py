"""The scores of an export that compare with remembered images: in full, and in a quarter of the room."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from landmarks.recognition.directions import directions
from landmarks.recognition.export_gallery import KEPT, GalleryScores, main_axes
from landmarks.recognition.gallery import Gallery, UnknownImages, make_gallery, rejection_scores, with_unknown_images
from landmarks.recognition.known_scores import COMPARING, KNN, MAHALANOBIS
from landmarks.support.errors import LandmarksError

WIDTH = 256


def made_up(images: int, noise: float, landmarks: int = 6) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features that go together, as a network's do, of so many images of a few landmarks."""
    random = np.random.default_rng(0)
    mixing = random.normal(0, 0.05, (WIDTH, WIDTH)) * np.logspace(0.5, -1.5, WIDTH) + np.eye(WIDTH) * 0.05
    labels = np.arange(images) % landmarks
    centres = 3 * random.normal(size=(landmarks, WIDTH))
    features = (centres[labels] + random.normal(0, noise, (images, WIDTH))) @ mixing
    return np.maximum(features, 0).astype(np.float32), labels


def gallery_with_unknown(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Gallery:
    unknown = directions(np.random.default_rng(1).gamma(1, size=(40, WIDTH)).astype(np.float32)).astype(np.float16)
    gallery = make_gallery(directions(features), labels, "digest")
    return with_unknown_images(gallery, UnknownImages(unknown, tuple(map(str, range(len(unknown))))))


def room_of(module: GalleryScores) -> int:
    return sum(one.numel() * one.element_size() for one in module.buffers())


def scores_of(module: GalleryScores, features: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    return {name: one.numpy() for name, one in module(torch.from_numpy(features)).items()}


def test_in_full_and_in_little_room_it_scores_as_the_gallery_does() -> None:
    features, labels = made_up(900, 1.0)
    gallery = gallery_with_unknown(features[:600], labels[:600])
    wanted = rejection_scores(features[600:], np.zeros((300, 6), dtype=np.float32), gallery)
    whole, compact = (GalleryScores(gallery, COMPARING, WIDTH, compact=one) for one in (False, True))
    assert room_of(compact) < 0.35 * room_of(whole)
    for module, correlation, off in ((whole, 0.9999, 0.01), (compact, 0.9, 0.3)):
        found = scores_of(module, features[600:])
        assert set(found) == COMPARING
        for name in COMPARING:
            assert np.corrcoef(wanted[name], found[name])[0, 1] > correlation, name
            assert abs(np.mean(wanted[name] - found[name])) < off * wanted[name].std(), name


@pytest.mark.parametrize("images", [3, 8])
def test_few_images_are_compared_too(images: int) -> None:
    features, labels = made_up(images, 1.0, landmarks=2)
    gallery = gallery_with_unknown(features, labels)
    queries, _ = made_up(100, 2.0)
    wanted = rejection_scores(queries, np.zeros((100, 2), dtype=np.float32), gallery)
    found = scores_of(GalleryScores(gallery, COMPARING, WIDTH, compact=True), queries)
    for name in COMPARING:
        assert np.corrcoef(wanted[name], found[name])[0, 1] > 0.95, name


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("landmarks", [1, 20])
def test_distances_too_large_for_half_precision_are_compared_too(landmarks: int, compact: bool) -> None:
    """Where every landmark has a single image, the covariance within landmarks is almost nothing."""
    features, labels = made_up(landmarks, 1.0, landmarks)
    gallery = gallery_with_unknown(features, labels)
    queries, _ = made_up(100, 2.0)
    expected = rejection_scores(queries, np.zeros((100, landmarks), dtype=np.float32), gallery)
    found = scores_of(GalleryScores(gallery, COMPARING, WIDTH, compact=compact), queries)
    for name in COMPARING - {MAHALANOBIS} if landmarks == 1 else COMPARING:  # of one image it is 0
        assert np.isfinite(found[name]).all(), name
        assert np.corrcoef(expected[name], found[name])[0, 1] > 0.9, name
    assert np.isfinite(found[MAHALANOBIS]).all()


def test_only_what_a_score_needs_is_kept() -> None:
    features, labels = made_up(60, 1.0)
    nearest = GalleryScores(make_gallery(directions(features), labels, "digest"), {KNN}, WIDTH, compact=True)
    assert {name.partition(".")[0] for name in nearest.state_dict()} <= {"axes", "images", "labels", "directions"}


def test_scores_that_need_unknown_images_are_refused_without_them() -> None:
    features, labels = made_up(60, 1.0)
    with pytest.raises(LandmarksError, match="not the images that it compares with; choose it again"):
        GalleryScores(make_gallery(directions(features), labels, "digest"), COMPARING, WIDTH, compact=True)


def test_main_axes_hold_what_they_promise_and_no_more() -> None:
    images = torch.randn(300, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images *= torch.logspace(0, -2, 40, dtype=torch.float64)
    axes = main_axes(images)
    torch.testing.assert_close(axes.T @ axes, torch.eye(axes.shape[1], dtype=torch.float64))
    squares = (images @ axes).square().sum(0) / images.square().sum()
    assert squares.sum() >= KEPT > squares[:-1].sum()
