"""Sketches of images, by which copies are found: a small luminance image, and hashes of parts of it.

A copy that was cropped, framed or shown on a screen holds only a part of the image, or the image is a part of it. So
each image is hashed as a whole and in parts: cropped a little in many ways, inside what may be a frame, and mirrored.
If one image is about the same as a part of another, the hash of that part is near the hash of the whole image.

All parts are boxes of the same small image, so that the lowest frequencies of one take two products of matrices.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dct

from landmarks.dataset.groups import FADING, FLATTEST, LOWEST, NO_HASH, SIDE

SKETCH_FORM = 2
"""To be raised whenever `make_sketch` returns something else for the same image."""

SKETCH_SIDE = 96
"""Pixels along each side of the luminance image; it is square whatever the image's proportions."""

CROP = 0.08
"""Share of a side that a crop leaves out; the hash tolerates about half of it more or less."""

LARGEST_MARGIN = 0.65
"""Largest share of a side that the margin of a frame or a screenshot takes."""

MARGIN_ENDS = 5
"""Number of lines at each side that are tried as the end of a margin, from the innermost outwards."""

_FREQUENCIES = 12

Corners = tuple[float, float, float, float]
"""A part of an image: left, top, right and bottom as shares of its width and height."""

WHOLE: Corners = (0.0, 0.0, 1.0, 1.0)

CROPS: tuple[Corners, ...] = tuple(
    (left, top, 1 - right, 1 - bottom) for top, bottom, left, right in itertools.product((0.0, CROP), repeat=4)
)
"""The whole image, and the image cropped at one to four sides."""

MIRRORED: tuple[Corners, ...] = (WHOLE, (CROP, CROP, 1 - CROP, 1 - CROP))
"""Parts of the mirrored image that are hashed."""


@dataclass(frozen=True)
class Sketch:
    """The sketch of one image."""

    pixels: NDArray[np.uint8]  # (SKETCH_SIDE, SKETCH_SIDE) luminance
    whole: int  # hash of the whole image, 64 bits; `NO_HASH` if it has no structure
    parts: NDArray[np.uint64]  # (P,) hashes of `corners`, `CROPS` first, then `MIRRORED`
    corners: NDArray[np.float32]  # (P, 4)


def make_sketch(image: NDArray[np.uint8]) -> Sketch:
    """Return the sketch of an RGB image (H, W, 3)."""
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L")
    pixels = np.asarray(grey.resize((SKETCH_SIDE, SKETCH_SIDE), Image.Resampling.BOX))
    corners = [*CROPS, *MIRRORED, *inner_boxes(pixels)]
    if pixels.std() < FLATTEST:
        return Sketch(pixels, NO_HASH, np.zeros(len(corners), np.uint64), np.array(corners, np.float32))
    values = pixels.astype(np.float32)
    waves = np.stack([_waves(values, part) for part in corners])
    waves[len(CROPS) : len(CROPS) + len(MIRRORED)] *= _MIRROR_SIGNS
    parts = _hashes(waves)
    return Sketch(pixels, int(parts[0]), parts, np.array(corners, np.float32))


def shape_vectors(pixels: NDArray[np.uint8], corners: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return unit vectors (P, 64) of the parts `corners` (P, 4) of a sketch's `pixels`: their lowest frequencies.

    Hashes are made from the signs of these. Two hashes are expected to differ in 64 times the angle between their
    vectors, in half turns.
    """
    values = pixels.astype(np.float32)
    waves = np.stack([_waves(values, tuple(part)) for part in corners.tolist()])
    waves[len(CROPS) : len(CROPS) + len(MIRRORED)] *= _MIRROR_SIGNS
    lowest = waves[:, LOWEST[0], LOWEST[1]]
    return np.asarray(lowest / np.maximum(np.linalg.norm(lowest, axis=1, keepdims=True), 1e-6), dtype=np.float32)


def _waves(pixels: NDArray[np.float32], part: Corners) -> NDArray[np.float32]:
    """Return the lowest frequencies (12, 12) of a part without its mean and with its edges faded out."""
    across, mean_across = _axis(part[0], part[2])
    down, mean_down = _axis(part[1], part[3])
    mean = mean_down @ pixels @ mean_across
    return np.asarray(down @ pixels @ across.T - mean * _WINDOW_WAVES, dtype=np.float32)


@functools.lru_cache(maxsize=4096)
def _axis(start: float, end: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the matrices that compute the low frequencies (12,) and the weighted mean of a line's pixels.

    They use the pixels from `start` to `end`, which are first averaged into `SIDE` values as in `perceptual_hash`.
    """
    edges = np.linspace(start * SKETCH_SIDE, end * SKETCH_SIDE, SIDE + 1)
    pixel = np.arange(SKETCH_SIDE)
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    averaging = np.clip(covered, 0, None)
    averaging /= averaging.sum(axis=1, keepdims=True)
    weights = FADING / FADING.sum()
    return (_COSINES @ (FADING[:, None] * averaging)).astype(np.float32), (weights @ averaging).astype(np.float32)


def _hashes(waves: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return the hashes (P,) of low frequencies (P, 12, 12): which of the 64 lowest are above their median."""
    lowest = waves[:, LOWEST[0], LOWEST[1]].round(2)
    above = np.packbits(lowest > np.median(lowest, axis=1, keepdims=True), axis=1)
    return np.ascontiguousarray(above).view(">u8")[:, 0].astype(np.uint64)


_COSINES = dct(np.eye(SIDE), axis=0, norm="ortho")[:_FREQUENCIES]
_WINDOW_WAVES = np.outer(_COSINES @ FADING, _COSINES @ FADING)
_MIRROR_SIGNS = np.where(np.arange(_FREQUENCIES) % 2, -1, 1).astype(np.float32)  # a mirror image's odd frequencies


# ── Images within an image: inside a border, on a card, on a screen ─────────────────────────────────────────────────


PLAIN = 0.8
"""Least share of the pixels in the last line of a margin that have the same shade."""

SHADES = 8
"""Grey levels within which shades are the same."""

STEP = 0.3
"""Least share of the pixels that change their shade at the end of a margin."""


def inner_boxes(pixels: NDArray[np.uint8]) -> list[Corners]:
    """Return boxes of a square luminance image that may hold another image.

    A margin ends with a plain line, beyond which much of the shade changes at once. Bars and captions end in the same
    way, so a few ends are tried at each side, the innermost first.
    """
    levels = pixels.astype(np.int16)
    top, bottom = _ends(levels)[:1] or [0.0], _ends(levels[::-1])[:1] or [0.0]
    if SKETCH_SIDE - top[0] - bottom[0] < SKETCH_SIDE / 4:
        top = bottom = [0.0]
    between = levels[int(top[0]) : SKETCH_SIDE - int(bottom[0])].T
    sides = [(0.0, 0.0), *itertools.product(_ends(between)[:2], _ends(between[::-1])[:2])]
    found: dict[Corners, None] = {}
    for left, right in sides:
        if SKETCH_SIDE - left - right < SKETCH_SIDE / 4:
            continue
        between = levels[:, int(left) : SKETCH_SIDE - int(right)]
        for above, below in itertools.product([0.0, *_ends(between)], [0.0, *_ends(between[::-1])]):
            if SKETCH_SIDE - above - below >= SKETCH_SIDE / 4 and (left or right or above or below):
                box = (left, above, SKETCH_SIDE - right, SKETCH_SIDE - below)
                found[tuple(value / SKETCH_SIDE for value in box)] = None  # type: ignore[index]
    return list(found)


def _ends(lines: NDArray[np.int16]) -> list[float]:
    """Return the possible widths of a margin that begins at line 0 of `lines` (n, m), the innermost end first.

    The line in which it ends is blurred, and half of it counts as margin.
    """
    most = int(LARGEST_MARGIN * SKETCH_SIDE)
    head = lines[: most + 2]
    shade = np.sort(head, axis=1)[:, head.shape[1] // 2]
    plain = (np.abs(head - shade[:, None]) <= SHADES).mean(axis=1)[:most] >= PLAIN
    step = np.where(plain, (np.abs(head[2:] - head[:-2]) > SHADES).mean(axis=1), 0)
    before, after = np.append(0, step[:-1]), np.append(step[1:], 0)
    ends = np.flatnonzero((step >= STEP) & (step >= before) & (step > after))[::-1]
    return [float(end) + 1.5 for end in ends[:MARGIN_ENDS]]
