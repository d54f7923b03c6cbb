"""Aligning two small images, one of which may be a part of the other, and comparing them.

It is known roughly which box of the first image corresponds to the second. Gauss-Newton steps move its four sides until
the grey levels agree best (Lucas & Kanade, IJCAI 1981; Baker & Matthews, IJCV 2004), with contrast and brightness free,
and with little weight on pixels that differ, such as lettering. Then the images are compared block by block: of two
copies nearly every block with texture agrees, of two images of one place some do, of others hardly any.
"""

from __future__ import annotations

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from landmarks.dataset.sketches import SKETCH_SIDE
from landmarks.support.systems import usable_processors

Floats = NDArray[np.float32]

STEPS = ((4, 6), (2, 5), (1, 3))
"""Stages from coarse to fine: pixels averaged along each side, and Gauss-Newton steps at that size."""

BLOCKS = 8
"""Blocks along each side that are compared."""

LIKELY = 0.5
"""Correlation of the coarsest images below which two are not compared further; of 200 cropped copies with text on them
two had less than 0.6."""

DOUBTFUL = 0.3
"""Agreement at the middle size below which steps also begin at the given box: those at the coarsest size lead away from
it when an image is smooth, or shown small within another."""

HOPEFUL, WELL_CORRELATED = 0.1, 0.85
"""Pairs that reach neither this agreement nor this correlation at the middle size are not compared further. A small
image within another is too blurred at that size for its blocks to agree, so that the correlation counts as well."""

START_SHIFT = 0.04
"""How far each side is shifted to find a better start, as a share of the image's side."""

COMPARED_AT = 2
"""Pixels averaged along each side before blocks are compared."""

TEXTURE = 2.5
"""Least standard deviation, in grey levels, of a block with texture."""

ALIKE = 0.75
"""Least correlation of a block that agrees."""

MIN_BLOCKS = 8
"""Least number of blocks with texture; if there are fewer, the missing ones count as not agreeing."""

OTHER_IMAGE = 0.22
"""Mean correlation of the blocks of a box below which two images differ in it, even if their surroundings agree: the
words of one app, the border of a card. Lettering over an image leaves more correlation."""

MIN_IN_BOX, MIN_IN_CENTRE = 13, 6
"""Least number of blocks with texture in such a box, which is at least half as wide and high as the image; and in the
box in the middle."""

AT_ONCE = 128
"""Number of pairs that are compared together."""


def agreements(
    first: NDArray[np.uint8], second: NDArray[np.uint8], corners: NDArray[np.floating]
) -> tuple[Floats, Floats]:
    """Return how well each of `first` (P, S, S) agrees with `second` (P, S, S), and where.

    `corners` (P, 4) are the left, top, right and bottom of the part of the first that corresponds to the second, as
    shares of its sides. Returned are the share (P,) of the blocks with texture that agree, 0 for pairs that were given
    up early, and the corners (P, 4) at which they agree best.
    """
    agreement, sides = np.zeros(len(first), np.float32), corners.astype(np.float32)

    def align(start: int) -> None:
        some = slice(start, start + AT_ONCE)
        agreement[some], sides[some] = _aligned(first[some], second[some], sides[some])

    with ThreadPoolExecutor(usable_processors()) as pool:
        list(pool.map(align, range(0, len(first), AT_ONCE)))
    return agreement, sides


def _aligned(first: NDArray[np.uint8], second: NDArray[np.uint8], given: Floats) -> tuple[Floats, Floats]:
    """Return what `agreements` does; `given` (P, 4) are the corners from which the steps begin."""
    agreement, sides = np.zeros(len(first), np.float32), given.copy()
    alive = np.arange(len(first))
    for averaged, steps in STEPS:
        if not len(alive):
            break
        one, other = _downsampled(first[alive], averaged), _downsampled(second[alive], averaged)
        if averaged == STEPS[0][0]:
            sides[alive], _, _, alike = _best(one, other, sides[alive], steps, shifted=True)
            alive = alive[alike >= LIKELY]
            continue
        agreement[alive], sides[alive], alike = _compared(one, other, sides[alive], steps, averaged)
        if averaged > 1:
            if (doubtful := agreement[alive] < DOUBTFUL).any():
                some = alive[doubtful]
                anew, elsewhere, new_alike = _compared(one[doubtful], other[doubtful], given[some], steps, averaged)
                better = anew > agreement[some]
                agreement[some[better]], sides[some[better]] = anew[better], elsewhere[better]
                alike[doubtful] = np.where(better, new_alike, alike[doubtful])
            given_up = (agreement[alive] < HOPEFUL) & (alike < WELL_CORRELATED)
            agreement[alive[given_up]] = 0
            alive = alive[~given_up]
    return agreement, sides


def _compared(first: Floats, second: Floats, sides: Floats, steps: int, averaged: int) -> tuple[Floats, Floats, Floats]:
    """Return the agreement (P,) of images (P, n, n), and the sides (P, 4) and correlation (P,) that steps lead to.

    The steps begin at `sides`. `averaged` is how many pixels of a sketch were averaged along each side.
    """
    sides, values, inside, alike = _best(first, second, sides, steps, shifted=False)
    by = COMPARED_AT // averaged
    return _agreement(_downsampled(values, by), _downsampled(second, by), inside[:, ::by, ::by]), sides, alike


def _best(
    first: Floats, second: Floats, sides: Floats, steps: int, *, shifted: bool
) -> tuple[Floats, Floats, NDArray[np.bool_], Floats]:
    """Return the part of `first` that correlates best with `second`: that at `sides`, or that to which steps lead.

    With `shifted`, steps also begin at the best of the parts around `sides`. Returned are the sides of the part, its
    pixels, which of these lie in the image, and the correlation.
    """
    values, inside = _part_pixels(first, sides)
    alike = _correlation(values, second, inside)
    for start in (sides, _best_shifted(first, second, sides)) if shifted else (sides,):
        moved = start
        for _ in range(steps):
            moved = _gauss_newton_step(first, second, moved)
        new_values, new_inside = _part_pixels(first, moved)
        new_alike = _correlation(new_values, second, new_inside)
        better = new_alike > alike
        sides = np.where(better[:, None], moved, sides)
        values = np.where(better[:, None, None], new_values, values)
        inside = np.where(better[:, None, None], new_inside, inside)
        alike = np.where(better, new_alike, alike)
    return sides, values, inside, alike


def _downsampled(images: NDArray[np.uint8] | Floats, by: int) -> Floats:
    count, height, width = images.shape
    blocks = images.reshape(count, height // by, by, width // by, by)
    return np.asarray(blocks.mean(axis=(2, 4), dtype=np.float32))


def _sample_places(sides: Floats, size: int) -> tuple[Floats, Floats, Floats]:
    """Return the positions of a part's pixels in the image, across and down (P, n), and in the part itself (n,)."""
    along = ((np.arange(size) + 0.5) / size).astype(np.float32)
    left, top, right, bottom = (sides[:, side, None] for side in range(4))
    half = np.float32(0.5)
    return (left + (right - left) * along) * size - half, (top + (bottom - top) * along) * size - half, along


def _weights(places: Floats, size: int) -> Floats:
    """Return the weights (P, n, size) that interpolate a line of pixels linearly at `places` (P, n)."""
    away = np.abs(places[:, :, None] - np.arange(size, dtype=np.float32))
    return np.asarray(np.maximum(1 - away, 0), dtype=np.float32)


def _part_pixels(images: Floats, sides: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the pixels of a part of each image (P, n, n), and which of them lie in the image."""
    size = images.shape[1]
    across, down, _ = _sample_places(sides, size)
    inside = [(place >= -0.5) & (place <= size - 0.5) for place in (across, down)]
    clipped = [np.asarray(np.clip(place, 0, size - 1), dtype=np.float32) for place in (across, down)]
    values = _weights(clipped[1], size) @ images @ _weights(clipped[0], size).transpose(0, 2, 1)
    return np.asarray(values, dtype=np.float32), inside[1][:, :, None] & inside[0][:, None, :]


def _gauss_newton_step(first: Floats, second: Floats, sides: Floats) -> Floats:
    """Return the sides after one weighted Gauss-Newton step."""
    count, size = first.shape[:2]
    values, inside = _part_pixels(first, sides)
    along = _sample_places(sides, size)[2]
    down, across = np.gradient(values, axis=1), np.gradient(values, axis=2)
    width = np.maximum(sides[:, 2] - sides[:, 0], 0.1)[:, None, None]
    height = np.maximum(sides[:, 3] - sides[:, 1], 0.1)[:, None, None]
    across, down = across * size / width, down * size / height
    columns = np.stack(
        [
            across * (1 - along)[None, None, :],
            down * (1 - along)[None, :, None],
            across * along[None, None, :],
            down * along[None, :, None],
            -second,
            -np.ones_like(second),
        ],
        axis=1,
    ).reshape(count, 6, -1)
    flat, other = values.reshape(count, -1), second.reshape(count, -1)
    within = inside.reshape(count, -1).astype(np.float32)
    contrast, brightness = _fit_lines(other, flat, within)
    residual = flat - contrast[:, None] * other - brightness[:, None]
    spread = 1.5 * np.median(np.abs(residual), axis=1, keepdims=True) + 1.0
    weights = within / (1 + np.square(residual / spread))
    weighted = columns * weights[:, None]
    squares = weighted @ columns.transpose(0, 2, 1)
    # The residual accounts for the best contrast and brightness already; columns 4 and 5 let these change too.
    squares += np.eye(6) * (1e-3 * np.trace(squares[:, :4, :4], axis1=1, axis2=2)[:, None, None] / 4 + 1e-3)
    step = np.linalg.solve(squares, (weighted @ residual[:, :, None]).astype(np.float64))[:, :4, 0]
    return np.asarray(sides - np.clip(step, -0.05, 0.05), dtype=np.float32)


def _fit_lines(x: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return the slopes and offsets (P,) of the weighted least-squares lines through points (P, n)."""
    total = np.maximum(weights.sum(axis=1), 1)
    mean_x, mean_y = (weights * x).sum(axis=1) / total, (weights * y).sum(axis=1) / total
    from_x = x - mean_x[:, None]
    slope = (weights * from_x * (y - mean_y[:, None])).sum(axis=1) / np.maximum(
        (weights * from_x * from_x).sum(axis=1), 1e-6
    )
    return slope, mean_y - slope * mean_x


def _best_shifted(first: Floats, second: Floats, sides: Floats) -> Floats:
    """Return the best correlated of `sides` (P, 4) and of these with some sides shifted by `START_SHIFT`."""
    first, second = _downsampled(first, 2), _downsampled(second, 2)
    size = first.shape[1]
    pairs = np.array(list(itertools.product((0, -START_SHIFT, START_SHIFT), repeat=2)), np.float32)
    found = []
    for at in (1, 0):  # down, then across
        ends = sides[:, None, (at, at + 2)] + pairs
        along = ((np.arange(size) + 0.5) / size).astype(np.float32)
        places = (ends[..., :1] + (ends[..., 1:] - ends[..., :1]) * along) * size - np.float32(0.5)
        inside = (places >= -0.5) & (places <= size - 0.5)
        clipped = np.asarray(np.clip(places, 0, size - 1).reshape(-1, size), dtype=np.float32)
        found.append((ends, inside, _weights(clipped, size).reshape(len(first), len(pairs), size, size)))
    (down, rows, weights_down), (across, columns, weights_across) = found
    turned = weights_across.transpose(0, 1, 3, 2)
    values: Floats = np.asarray((weights_down @ first[:, None])[:, :, None] @ turned[:, None], dtype=np.float32)
    within = rows[:, :, None, :, None] & columns[:, None, :, None, :]
    shape = (len(first) * len(pairs) ** 2, size, size)
    other = np.broadcast_to(second[:, None, None], values.shape).reshape(shape)
    alike = _correlation(values.reshape(shape), other, within.reshape(shape)).reshape(len(first), -1)
    which_down, which_across = np.divmod(alike.argmax(axis=1), len(pairs))
    every = np.arange(len(first))
    top_bottom, left_right = down[every, which_down], across[every, which_across]
    return np.stack([left_right[:, 0], top_bottom[:, 0], left_right[:, 1], top_bottom[:, 1]], axis=1)


def _agreement(values: Floats, second: Floats, inside: NDArray[np.bool_]) -> Floats:
    """Return the share (P,) of the blocks with texture that agree; 0 if a large box shows another image.

    Gradients of brightness, straight lines and smooth patterns do not count as texture.
    """
    count, block = len(values), SKETCH_SIDE // COMPARED_AT // BLOCKS

    def blocks(images: NDArray[np.floating] | NDArray[np.bool_]) -> Floats:
        cut = images.reshape(count, BLOCKS, block, BLOCKS, block).transpose(0, 1, 3, 2, 4)
        return np.asarray(cut.reshape(count, BLOCKS * BLOCKS, -1), dtype=np.float32)

    one, other, whole = blocks(values), blocks(second), blocks(inside).min(axis=2) > 0
    one, other = (_without_smooth_parts(each, block) for each in (one, other))
    spread_one, spread_other = np.sqrt((one**2).mean(axis=2)), np.sqrt((other**2).mean(axis=2))
    correlation = (one * other).mean(axis=2) / np.maximum(spread_one * spread_other, 1e-6)
    shown = whole & (np.maximum(spread_one, spread_other) >= TEXTURE)
    agreeing = (shown & (correlation >= ALIKE)).sum(axis=1)
    agreement = agreeing / np.maximum(shown.sum(axis=1), MIN_BLOCKS)
    return np.asarray(np.where(_shows_another_image(shown, correlation), 0, agreement), dtype=np.float32)


def _shows_another_image(shown: NDArray[np.bool_], correlation: Floats) -> NDArray[np.bool_]:
    """Return in which pairs (P,) a large box of blocks shows another image.

    `shown` (P, B) are the blocks with texture.
    """
    boxes, least = _boxes()
    show, alike = (blocks.astype(np.float32) @ boxes.T for blocks in (shown, shown * correlation))
    return np.asarray(((show >= least) & (alike < OTHER_IMAGE * show)).any(axis=1))


@functools.cache
def _boxes() -> tuple[Floats, Floats]:
    """Return the blocks (K, B) of all boxes at least half as wide and high as the image.

    Also returned is the least number (K,) of blocks with texture in each.
    """
    half, quarter = BLOCKS // 2, BLOCKS // 4
    spans = [(start, end) for start in range(BLOCKS) for end in range(start + half, BLOCKS + 1)]
    boxes = np.zeros((len(spans) ** 2, BLOCKS, BLOCKS), np.float32)
    least = np.full(len(boxes), MIN_IN_BOX, np.float32)
    for box, ((top, bottom), (left, right)) in enumerate(itertools.product(spans, repeat=2)):
        boxes[box, top:bottom, left:right] = 1
        if (top, bottom, left, right) == (quarter, quarter + half, quarter, quarter + half):
            least[box] = MIN_IN_CENTRE
    return boxes.reshape(len(boxes), -1), least


def _without_smooth_parts(blocks: Floats, side: int) -> Floats:
    """Return blocks (P, B, side²) without what is constant along rows or along columns, or bends evenly across both.

    This removes gradients, such as those of skies, and straight edges, in which all images in one kind of frame agree;
    and what any two smooth patterns have in common once their sides are free to move.
    """
    square = blocks.reshape(*blocks.shape[:2], side, side)
    rows, columns = square.mean(axis=3, keepdims=True), square.mean(axis=2, keepdims=True)
    residual = (square - rows - columns + square.mean(axis=(2, 3), keepdims=True)).reshape(blocks.shape)
    along = np.arange(side, dtype=np.float32) - (side - 1) / 2
    bend = np.outer(along, along).ravel() / np.square(along).sum()
    return np.asarray(residual - (residual @ bend)[..., None] * bend, dtype=np.float32)


def _correlation(values: Floats, second: Floats, inside: NDArray[np.bool_]) -> Floats:
    weights = inside.reshape(len(values), -1).astype(np.float32)
    x, y = second.reshape(len(values), -1), values.reshape(len(values), -1)
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    x, y = x - (weights * x).sum(axis=1, keepdims=True) / total, y - (weights * y).sum(axis=1, keepdims=True) / total
    together = (weights * x * y).sum(axis=1)
    return np.asarray(together / np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1) + 1e-6))
