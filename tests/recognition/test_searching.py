"""Whether two images show the same thing: a turned and shrunk copy does, another picture does not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from landmarks.recognition.searching import LONGEST, draw_matches, local_features, match_features


def scene(seed: int, size: tuple[int, int] = (300, 400)) -> np.ndarray:
    """Boxes of random places, sizes and colours: corners as on a facade."""
    random = np.random.default_rng(seed)
    picture = np.full((*size, 3), 200, dtype=np.uint8)
    for _ in range(120):
        top, left = random.integers(0, size[0] - 20), random.integers(0, size[1] - 20)
        height, width = random.integers(6, 40, size=2)
        picture[top : top + height, left : left + width] = random.integers(0, 255, size=3)
    return cv2.GaussianBlur(picture, (3, 3), 0)


def test_a_turned_and_shrunk_copy_agrees_in_many_points_that_lie_where_it_was_moved() -> None:
    picture = scene(0)
    move = cv2.getRotationMatrix2D((200, 150), 25, 0.8)
    copy = cv2.warpAffine(picture, move, (400, 300), borderValue=(90, 90, 90))
    first, second = local_features(picture), local_features(copy)
    match = match_features(first, second)
    assert len(match) > 40
    expected = match.first @ move[:, :2].T + move[:, 2]
    assert np.median(np.linalg.norm(expected - match.second, axis=1)) < 1.5
    picture_of_both = draw_matches(first, second, match)
    assert picture_of_both.shape == (300, 808, 3)
    assert (picture_of_both[:, :400] != picture).any()


@pytest.mark.parametrize("other", [scene(1), np.full((50, 60, 3), 127, np.uint8), np.zeros((1, 1, 3), np.uint8)])
def test_another_picture_agrees_in_next_to_none(other: np.ndarray) -> None:
    assert len(match_features(local_features(scene(0)), local_features(other))) < 8


def test_a_large_image_is_compared_at_a_bounded_size() -> None:
    assert max(local_features(scene(2, (1200, 700))).image.shape) == LONGEST
