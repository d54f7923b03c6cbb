"""Which triangle each pixel sees: a depth buffer in numpy, all triangles at once."""

# mypy: disable-error-code="no-any-return"
# numpy's stubs give Any for much arithmetic on arrays
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landmarks.archive.scenery.solids import Floats

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Hits:
    """The pixels that a triangle covers, in the order of their position in the picture."""

    pixel: Integers
    """(P,) position y · width + x."""

    triangle: Integers
    """(P,) row of the nearest triangle."""

    weights: Floats
    """(3, P) barycentric weights of the triangle's corners."""

    nearness: Floats
    """(P,) the interpolated `keys`; the largest at a pixel won."""


def rasterise(corners: Floats, keys: Floats, width: int, height: int) -> Hits:
    """Return what every pixel of a `width` × `height` picture sees of triangles.

    `corners` (T, 3, 3) are homogeneous picture coordinates (x·w, y·w, w) and `keys` (T, 3) the corners' nearness
    divided by w-free weights: ones for a perspective picture (nearness is then 1 / depth), minus the depth where w
    is 1. The picture's y runs downwards; triangles whose corners a viewer sees run clockwise face away and
    are left out. Corners may lie behind
    the camera (w ≤ 0). Method: edge functions in homogeneous coordinates (Olano & Greer, Triangle Scan Conversion
    using 2D Homogeneous Coordinates, 1997), filled in spans of rows.
    """
    edges, kept = _edge_functions(corners.astype(np.float64))
    triangle, row, first, last = _spans(edges, _bounds(corners[kept], width, height), width)
    count = np.maximum(last - first + 1, 0)
    span = np.repeat(np.arange(len(count)), count)
    x = np.arange(len(span)) - np.repeat(np.cumsum(count) - count, count) + first[span]
    plane = np.einsum("tec,te->tc", edges, keys[kept].astype(np.float64))[triangle]
    start = plane[:, 1] * (row + 0.5) + plane[:, 2] + plane[:, 0] * 0.5
    nearness = (start[span] + plane[span, 0] * x).astype(np.float32)
    pixel = row[span] * width + x
    best = np.full(width * height, -np.inf, np.float32)
    np.maximum.at(best, pixel, nearness)
    winners = np.flatnonzero(nearness == best[pixel])
    owner = np.full(width * height, -1, np.int64)
    owner[pixel[winners]] = triangle[span[winners]]
    seen = np.flatnonzero(owner >= 0)
    chosen = owner[seen]
    return Hits(seen, kept[chosen], _weights(edges[chosen], seen % width + 0.5, seen // width + 0.5), best[seen])


def _edge_functions(corners: Floats) -> tuple[Floats, Integers]:
    """Return (K, 3, 3) functions of (x, y, 1), each positive on the inner side of one edge, and the rows kept."""
    first, second, third = corners[:, 0], corners[:, 1], corners[:, 2]
    cross = np.stack([np.cross(second, third), np.cross(third, first), np.cross(first, second)], axis=1)
    determinant = np.einsum("tc,tc->t", first, cross[:, 0])
    kept = np.flatnonzero((determinant < -1e-9) & (corners[:, :, 2] > 0).any(axis=1))
    return cross[kept] / determinant[kept, None, None], kept


def _bounds(corners: Floats, width: int, height: int) -> Integers:
    """Return (K, 2) the first row that a triangle may touch and the row after the last."""
    depth = corners[:, :, 2]
    y = corners[:, :, 1] / np.where(depth > 1e-6, depth, 1)
    behind = (depth <= 1e-6).any(axis=1)
    low = np.where(behind, 0, np.clip(np.floor(y.min(axis=1)), 0, height))
    high = np.where(behind, height, np.clip(np.ceil(y.max(axis=1)) + 1, 0, height))
    x = corners[:, :, 0] / np.where(depth > 1e-6, depth, 1)
    outside = ~behind & ((x.max(axis=1) < 0) | (x.min(axis=1) > width))
    return np.stack([low, np.where(outside, low, high)], axis=1).astype(np.int64)


def _spans(edges: Floats, bounds: Integers, width: int) -> tuple[Integers, Integers, Integers, Integers]:
    """Return triangle, row, first and last x of every stretch of a row whose pixel centres lie in a triangle."""
    rows = np.maximum(bounds[:, 1] - bounds[:, 0], 0)
    triangle = np.repeat(np.arange(len(rows)), rows)
    row = np.arange(len(triangle)) - np.repeat(np.cumsum(rows) - rows, rows) + bounds[triangle, 0]
    low, high = np.zeros(len(row)), np.full(len(row), float(width))
    outside = np.zeros(len(row), bool)
    for edge in range(3):
        slope = edges[triangle, edge, 0]
        offset = edges[triangle, edge, 1] * (row + 0.5) + edges[triangle, edge, 2]
        crossing = -offset / np.where(slope == 0, 1, slope)
        np.maximum(low, crossing, out=low, where=slope > 0)
        np.minimum(high, crossing, out=high, where=slope < 0)
        outside |= (slope == 0) & (offset < 0)
    first = np.ceil(np.minimum(low, width) - 0.5).astype(np.int64)
    last = np.floor(np.maximum(high, 0) - 0.5).astype(np.int64)
    seen = np.flatnonzero((first <= last) & ~outside)
    return triangle[seen], row[seen], first[seen], last[seen]


def _weights(edges: Floats, x: Floats, y: Floats) -> Floats:
    """Return (3, P) how near each corner of its triangle (P, 3, 3) a point of the picture lies; they sum to 1."""
    inside = [edges[:, corner, 0] * x + edges[:, corner, 1] * y + edges[:, corner, 2] for corner in range(3)]
    return (np.stack(inside) / (inside[0] + inside[1] + inside[2])).astype(np.float32)
