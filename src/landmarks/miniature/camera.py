"""The camera: rasterised triangles, lens, shadows, and the developed image."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from landmarks.miniature.scene import Scene, View
from landmarks.miniature.solids import Floats
from landmarks.support.seeds import generator

# mypy: disable-error-code="no-any-return"
# numpy's stubs give Any for much arithmetic on arrays


Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Hits:
    """The P pixels that triangles cover, in the order of their position in the image."""

    pixel: Integers
    """(P,) position y · width + x."""

    triangle: Integers
    """(P,) row of the nearest triangle."""

    weights: Floats
    """(3, P) barycentric weights of the triangle's corners."""

    nearness: Floats
    """(P,) the interpolated `keys`; the largest at a pixel won."""


def rasterise(corners: Floats, keys: Floats, width: int, height: int) -> Hits:
    """Return the nearest triangle at each pixel of a `width` × `height` image.

    `corners` `(T, 3, 3)` are homogeneous image coordinates (x·w, y·w, w), with y downwards. `keys` `(T, 3)` determine
    which triangle is nearest: ones for a perspective image (nearness is then 1 / depth), minus the depth where w is 1.
    Triangles whose corners appear clockwise face away and are left out. Corners may be behind the camera (w ≤ 0).

    Method: edge functions in homogeneous coordinates (Olano & Greer, Triangle Scan Conversion using 2D Homogeneous
    Coordinates, 1997), filled in spans of rows.
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
    """Return functions of (x, y, 1), each positive inside one edge, `(K, 3, 3)`, and the rows of their triangles."""
    first, second, third = corners[:, 0], corners[:, 1], corners[:, 2]
    cross = np.stack([np.cross(second, third), np.cross(third, first), np.cross(first, second)], axis=1)
    determinant = np.einsum("tc,tc->t", first, cross[:, 0])
    kept = np.flatnonzero((determinant < -1e-9) & (corners[:, :, 2] > 0).any(axis=1))
    return cross[kept] / determinant[kept, None, None], kept


def _bounds(corners: Floats, width: int, height: int) -> Integers:
    """Return the first image row that each triangle may touch, and the row after the last, `(K, 2)`."""
    depth = corners[:, :, 2]
    y = corners[:, :, 1] / np.where(depth > 1e-6, depth, 1)
    behind = (depth <= 1e-6).any(axis=1)
    low = np.where(behind, 0, np.clip(np.floor(y.min(axis=1)), 0, height))
    high = np.where(behind, height, np.clip(np.ceil(y.max(axis=1)) + 1, 0, height))
    x = corners[:, :, 0] / np.where(depth > 1e-6, depth, 1)
    outside = ~behind & ((x.max(axis=1) < 0) | (x.min(axis=1) > width))
    return np.stack([low, np.where(outside, low, high)], axis=1).astype(np.int64)


def _spans(edges: Floats, bounds: Integers, width: int) -> tuple[Integers, Integers, Integers, Integers]:
    """Return triangle, row, first and last x of every span of pixels whose centres are in a triangle."""
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
    """Return the barycentric weights, `(3, P)`, of image points in triangles with the edge functions `(P, 3, 3)`."""
    inside = [edges[:, corner, 0] * x + edges[:, corner, 1] * y + edges[:, corner, 2] for corner in range(3)]
    return (np.stack(inside) / (inside[0] + inside[1] + inside[2])).astype(np.float32)


# ── Rays through pixels, and the projection of points to the image ──────────────────────────────────────────────────


@dataclass(frozen=True)
class Sight:
    """The points that P pixels look at."""

    points: Floats
    """(3, P) in metres"""

    direction: Floats
    """(3, P) of unit length, from the camera"""

    depth: Floats
    """(P,) metres along the camera's axis"""

    pixel: Floats
    """(P,) metres that a pixel covers there; finer patterns are not drawn"""

    def of(self, chosen: NDArray[Any]) -> Sight:
        """Return the sight of some of the pixels."""
        return Sight(self.points[:, chosen], self.direction[:, chosen], self.depth[chosen], self.pixel[chosen])


class Lens:
    """A view and the size of its image in pixels."""

    def __init__(self, view: View, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.focal = view.zoom * max(width, height)
        self.axes = view.axes().astype(np.float32)
        self.position = np.array(view.position, np.float32)
        x = ((np.arange(width) + 0.5 - width / 2) / self.focal).astype(np.float32)
        y = ((np.arange(height) + 0.5 - height / 2) / self.focal).astype(np.float32)
        right, down, forward = self.axes
        rays = forward[:, None, None] + right[:, None, None] * x + down[:, None, None] * y[:, None]
        self.rays = np.ascontiguousarray(rays.reshape(3, -1))
        """(3, P) of length 1 along the camera's axis"""

    def meet(self, corners: Floats) -> Hits:
        """Return which of the triangles `(T, 3, 3)` each pixel hits."""
        from_camera = (corners - self.position) @ self.axes.T
        depth = from_camera[..., 2]
        x = from_camera[..., 0] * self.focal + depth * (self.width / 2)
        y = from_camera[..., 1] * self.focal + depth * (self.height / 2)
        return rasterise(np.stack([x, y, depth], axis=-1), np.ones_like(depth), self.width, self.height)

    def sight(self, pixels: NDArray[Any], depth: Floats) -> Sight:
        """Return the points that `pixels` look at, at a distance of `depth`."""
        rays = self.rays[:, pixels]
        direction = rays / np.sqrt(rays[0] ** 2 + rays[1] ** 2 + rays[2] ** 2)
        return Sight(rays * depth + self.position[:, None], direction, depth, depth / np.float32(self.focal))

    def ground(self) -> tuple[NDArray[Any], Floats]:
        """Return the pixels below the horizon, and the depth of the ground there."""
        below = np.flatnonzero(self.rays[2] < -1e-3)
        return below, -self.position[2] / self.rays[2, below]


# ── Developing an image: exposure, colour, blur, grain, JPEG, and the orientation in EXIF ───────────────────────────


ASPECTS = ((4, 3), (3, 2), (16, 9), (1, 1))
ORIENTATION_TAG = 0x0112
TURNED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""EXIF orientation → the transposition from the upright image to the stored one."""


@dataclass(frozen=True)
class Camera:
    """An author's camera and habits."""

    aspect: tuple[int, int]
    exposure: float
    warmth: float
    saturation: float
    contrast: float
    softness: float
    grain: float
    vignette: float
    quality: int
    notes_orientation: bool
    monochrome: float
    """share of images that are made sepia or grey"""


def camera_of(author: str, seed: int) -> Camera:
    """Return the camera of an author, who always uses the same one."""
    rng = generator(seed, "camera", author)
    return Camera(
        aspect=ASPECTS[rng.choice(4, p=[0.5, 0.3, 0.12, 0.08])],
        exposure=float(rng.normal(0, 0.25)),
        warmth=float(rng.normal(0, 0.09)),
        saturation=float(rng.uniform(0.8, 1.3)),
        contrast=float(rng.uniform(0.88, 1.12)),
        softness=float(rng.choice([0.0, 0.0, 0.3, 0.6])),
        grain=float(rng.choice([0.004, 0.008, 0.02])),
        vignette=float(rng.uniform(0, 0.45)),
        quality=int(rng.integers(58, 95)),
        notes_orientation=bool(rng.random() < 0.3),
        monochrome=float(rng.choice([0.0, 0.0, 0.0, 0.25])),
    )


def format_of(camera: Camera, size: int, rng: np.random.Generator) -> tuple[int, int]:
    """Return width and height in pixels, with `size` the longer side, sometimes in portrait orientation."""
    short = round(size * camera.aspect[1] / camera.aspect[0])
    return (short, size) if rng.random() < 0.26 else (size, short)


def develop(light: Floats, camera: Camera, rng: np.random.Generator) -> bytes:
    """Return the JPEG that a camera makes of linear light, `(H, W, 3)`."""
    height, width = light.shape[:2]
    mean = max(float(light.mean()), 1e-3)
    gain = 0.31 / mean * min(1.0, mean / 0.14) ** 0.5 * 2 ** float(camera.exposure + rng.normal(0, 0.16))
    warm = np.array([1 + camera.warmth, 1, 1 - camera.warmth], np.float32)
    exposed = light * np.float32(gain) * warm
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    exposed *= (1 - camera.vignette * 0.5 * (x * x + y * y) ** 1.2)[:, :, None]
    shown = _film(exposed * np.float32(0.7)) ** np.float32(1 / 2.2)
    shown = 0.5 + (shown - 0.5) * np.float32(camera.contrast)
    grey = shown @ np.array([0.3, 0.59, 0.11], np.float32)
    saturation = camera.saturation
    if rng.random() < camera.monochrome:
        shown = grey[:, :, None] * np.array(((1.08, 0.98, 0.80), (1, 1, 1))[rng.integers(2)], np.float32)
    else:
        shown = grey[:, :, None] + (shown - grey[:, :, None]) * np.float32(saturation)
    shown = shown + rng.normal(0, camera.grain * (1.6 if mean < 0.15 else 1), shown.shape).astype(np.float32)
    image = Image.fromarray((np.clip(shown, 0, 1) * 255 + 0.5).astype(np.uint8))
    blur = camera.softness * 0.7 + (float(rng.uniform(0.5, 1.1)) if rng.random() < 0.07 else 0)
    if blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    return _encode(image, camera, rng)


def _film(light: Floats) -> Floats:
    """Return light from 0 up as tones from 0 to 1, with deep shadows and soft highlights.

    Source: Narkowicz, ACES Filmic Tone Mapping Curve, 2015.
    """
    return np.clip(light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14), 0, 1)


def _encode(image: Image.Image, camera: Camera, rng: np.random.Generator) -> bytes:
    """Return the image as JPEG; some cameras store portrait images rotated, with the orientation in EXIF."""
    exif = Image.Exif()
    if camera.notes_orientation and image.height > image.width:
        orientation = int(rng.choice([6, 6, 8]))
    elif camera.notes_orientation and rng.random() < 0.05:
        orientation = 3
    else:
        orientation = 1
    if orientation != 1:
        image = image.transpose(TURNED[orientation])
        exif[ORIENTATION_TAG] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=camera.quality, **({"exif": exif} if orientation != 1 else {}))
    return file.getvalue()


# ── Shadows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


SHADOW_PIXELS = 288


class Shadows:
    """A shadow map: the depths of the scene as seen from the sun, by which a point is found to be in shade."""

    def __init__(self, scene: Scene) -> None:
        sun = scene.weather.towards_sun.astype(float)
        right = np.cross([0, 0, 1], sun)
        right /= np.linalg.norm(right)
        self.axes = np.array([right, np.cross(sun, right), sun], np.float32)
        corners = scene.mesh.corners @ self.axes.T
        near = np.hypot(scene.mesh.corners[..., 0], scene.mesh.corners[..., 1]).max(axis=1) < 90
        flat = corners[near][..., :2].reshape(-1, 2) if near.any() else np.zeros((1, 2), np.float32)
        self.low = flat.min(axis=0) - 1
        self.scale = np.float32(SHADOW_PIXELS / (np.max(flat.max(axis=0) - self.low) + 1))
        # An image's y runs downwards.
        place = (corners[..., :2] - self.low) * self.scale
        homogeneous = np.stack([place[..., 0], SHADOW_PIXELS - place[..., 1], np.ones_like(place[..., 0])], axis=-1)
        hits = rasterise(homogeneous, corners[..., 2], SHADOW_PIXELS, SHADOW_PIXELS)
        self.depth = np.full(SHADOW_PIXELS * SHADOW_PIXELS, -np.inf, np.float32)
        self.depth[hits.pixel] = hits.nearness

    def light(self, points: Floats) -> Floats:
        """Return how much of the sun reaches points `(3, P)`, from 0 to 1, `(P,)`; shadow edges are two pixels soft."""
        axes = self.axes
        x = (axes[0, 0] * points[0] + axes[0, 1] * points[1] + axes[0, 2] * points[2] - self.low[0]) * self.scale
        y = (
            SHADOW_PIXELS
            - (axes[1, 0] * points[0] + axes[1, 1] * points[1] + axes[1, 2] * points[2] - self.low[1]) * self.scale
        )
        depth = axes[2, 0] * points[0] + axes[2, 1] * points[1] + axes[2, 2] * points[2]
        depth += np.float32(1.6) / self.scale + np.float32(0.12)
        total = np.zeros(points.shape[1], np.float32)
        for shift_x, shift_y in ((-0.7, -0.2), (0.2, -0.7), (0.7, 0.2), (-0.2, 0.7)):
            i = np.clip(x + np.float32(shift_x), 0, SHADOW_PIXELS - 1).astype(np.int32)
            j = np.clip(y + np.float32(shift_y), 0, SHADOW_PIXELS - 1).astype(np.int32)
            total += self.depth[j * SHADOW_PIXELS + i] <= depth
        return total / 4
