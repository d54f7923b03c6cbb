"""Geometric verification: do the local features of two images match under one homography?

SIFT keypoints (Lowe, IJCV 2004) are matched where the nearest one is clearly nearer than the second nearest. Of these
matches, those count that follow one homography according to MAGSAC++ (Barath et al., CVPR 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

LONGEST = 480
"""Longer side in pixels at which images are compared."""

KEYPOINTS = 1000
"""Most keypoints kept per image, the strongest."""

RATIO = 0.8
"""Largest ratio of the distances to the best and the second best match (Lowe 2004, §7.1)."""

PIXELS = 4.0
"""Largest reprojection error of a match that follows the homography."""

LEAST = 4
"""Fewest matches that determine a homography."""


@dataclass(frozen=True)
class LocalFeatures:
    """The keypoints of an image, and the image at the size at which they were found."""

    image: NDArray[np.uint8]  # (H, W, 3), at most `LONGEST` on its longer side
    points: NDArray[np.float32]  # (n, 2), x and y
    descriptors: NDArray[np.float32]  # (n, 128), RootSIFT, of length 1


@dataclass(frozen=True)
class Match:
    """The m matching points of two images that follow one homography."""

    first: NDArray[np.float32]  # (m, 2)
    second: NDArray[np.float32]  # (m, 2)

    def __len__(self) -> int:
        return len(self.first)


def local_features(image: NDArray[np.uint8]) -> LocalFeatures:
    """Return the keypoints of an RGB image (H, W, 3)."""
    scale = min(1.0, LONGEST / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small: NDArray[np.uint8] = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    sift: Any = cv2.SIFT_create(nfeatures=KEYPOINTS)  # type: ignore[attr-defined]
    keypoints, descriptors = sift.detectAndCompute(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), None)
    if descriptors is None:
        return LocalFeatures(small, np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    roots = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-7))
    return LocalFeatures(small, np.array([keypoint.pt for keypoint in keypoints], np.float32), roots.astype(np.float32))


def match_features(first: LocalFeatures, second: LocalFeatures) -> Match:
    """Return the matching points of two images that follow one homography; none if too few match."""
    nothing = Match(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32))
    if len(first.points) < 2 or len(second.points) < 2:
        return nothing
    similarity = first.descriptors @ second.descriptors.T
    two = np.argpartition(-similarity, 1, axis=1)[:, :2]
    near = np.take_along_axis(similarity, two, axis=1)
    best = two[np.arange(len(two)), near.argmax(axis=1)]
    distances = np.sqrt(np.maximum(2 - 2 * np.sort(near, axis=1)[:, ::-1], 0))
    kept = np.flatnonzero(distances[:, 0] < RATIO * distances[:, 1])
    kept = kept[similarity[:, best[kept]].argmax(axis=0) == kept]  # mutual nearest neighbours
    if len(kept) < LEAST:
        return nothing
    source, target = first.points[kept], second.points[best[kept]]
    cv2.setRNGSeed(0)
    _, inside = cv2.findHomography(source, target, cv2.USAC_MAGSAC, PIXELS, maxIters=2000, confidence=0.999)
    if inside is None:
        return nothing
    chosen = inside.ravel().astype(bool)
    return Match(source[chosen], target[chosen]) if chosen.sum() >= LEAST else nothing


def draw_matches(first: LocalFeatures, second: LocalFeatures, match: Match) -> NDArray[np.uint8]:
    """Return both images side by side, RGB (H, W, 3), with a line between each pair of matching points."""
    height = max(len(first.image), len(second.image))
    left, gap = first.image.shape[1], 8
    canvas = np.full((height, left + gap + second.image.shape[1], 3), 255, dtype=np.uint8)
    canvas[: len(first.image), :left] = first.image
    canvas[: len(second.image), left + gap :] = second.image
    for number, (point, partner) in enumerate(zip(match.first, match.second, strict=True)):
        hue = np.array([[[179 * number // max(len(match), 1), 220, 255]]], dtype=np.uint8)
        colour = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].tolist()
        start = (round(float(point[0])), round(float(point[1])))
        end = (round(float(partner[0])) + left + gap, round(float(partner[1])))
        cv2.line(canvas, start, end, colour, 1, cv2.LINE_AA)
        cv2.circle(canvas, start, 3, colour, 1, cv2.LINE_AA)
        cv2.circle(canvas, end, 3, colour, 1, cv2.LINE_AA)
    return canvas
