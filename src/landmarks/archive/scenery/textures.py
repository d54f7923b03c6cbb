"""Surfaces seen from near: blocks of stone, rows of tiles, leaves."""

# mypy: disable-error-code="no-any-return"
# numpy's stubs give Any for much arithmetic on arrays
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmarks.archive.scenery.lens import Sight
from landmarks.archive.scenery.light import noise, scatter
from landmarks.archive.scenery.solids import LEAVES, STONE, TILES, Floats


def texture(surface: NDArray[Any], sight: Sight, normal: Floats) -> Floats:
    """Return (P,) how bright the paint of each `surface` is: blocks, tiles, leaves; fading where too fine to see."""
    tone = np.ones(len(surface), np.float32)
    near = np.clip(1.25 - sight.pixel * 2.2, 0.15, 1)
    for kind, pattern in ((STONE, _blocks), (TILES, _tiles), (LEAVES, _leaves)):
        chosen = np.flatnonzero(surface == kind)
        if len(chosen):
            tone[chosen] += (pattern(sight.points[:, chosen], normal[:, chosen]) - 1) * near[chosen]
    return tone


def _along_wall(points: Floats, normal: Floats) -> Floats:
    """Return (P,) metres along the wall: across its normal, plus the way around where it is round."""
    return points[1] * normal[0] - points[0] * normal[1] + 4 * np.arctan2(normal[1], normal[0])


def _blocks(points: Floats, normal: Floats) -> Floats:
    course = np.floor(points[2] / 0.95)
    along = _along_wall(points, normal) / 1.9 + 0.5 * (course % 2)
    block = np.floor(along)
    joint = (points[2] / 0.95 - course < 0.09) | (along - block < 0.05)
    weathered = noise(points[0] * 4 + points[2] * 2.3, points[1] * 4 - points[2] * 1.7)
    return 0.86 + 0.16 * scatter(course, block) + 0.16 * weathered - 0.2 * joint


def _tiles(points: Floats, normal: Floats) -> Floats:
    row = points[2] / 0.62
    along = _along_wall(points, normal) / 0.7
    return 0.84 + 0.2 * (row - np.floor(row)) + 0.2 * (scatter(np.floor(row), np.floor(along)) - 0.3)


def _leaves(points: Floats, _: Floats) -> Floats:
    clump = noise(points[0] * 19 + points[2] * 11, points[1] * 19 - points[2] * 13)
    return 0.45 + 1.05 * clump
