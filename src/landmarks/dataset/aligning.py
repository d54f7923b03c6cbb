"""Is one small image a part of another? They are laid over one another as exactly as they can be, and compared.

Which box of the first is all of the second is known roughly. Gauss-Newton steps move its four sides until the grey
levels agree best (Lucas & Kanade, IJCAI 1981; Baker & Matthews, IJCV 2004), with any contrast and brightness, and with
little weight on what differs, such as lettering. Then the images are compared block by block: of two copies nearly
every block that shows anything agrees, of two images of one place some, of others hardly any.
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
"""Pixels averaged along each side, and steps at that size, one after another."""

BLOCKS = 8
"""Blocks along each side that are compared."""

LIKELY = 0.65
"""Correlation of the smallest images below which two are not compared further; of 400 copies one had less than 0.73."""

HOPEFUL, WELL = 0.1, 0.75
"""Agreement at the middle size, and correlation there, of which two that are compared further have either: an image
that was small within another is too blurred there for its blocks to agree."""

BESIDE = 0.04
"""How far from where a part is said to begin and end it is looked for first, in shares of a side."""

COMPARED = 2
"""Pixels averaged along each side before images are compared."""

TEXTURE = 3.0
"""Standard deviation in grey levels from which a block shows something."""

ALIKE = 0.8
"""Correlation from which a block agrees."""

LEAST_SHOWN = 8
"""Blocks that must show something; where fewer do, the others count as not agreeing."""

OTHER_IMAGE = 0.22
"""Mean correlation of the blocks of a box below which two show different images in it, whatever surrounds both: the
words of one app, the border of a card. Lettering over an image leaves more of it."""

LEAST_IN_BOX, LEAST_IN_CENTRE = 13, 6
"""Blocks that must show something in such a box, which is at least half as wide and high as all; and in the middle."""

AT_ONCE = 128
"""Pairs that are compared together."""


def agreements(
    first: NDArray[np.uint8], second: NDArray[np.uint8], corners: NDArray[np.floating]
) -> tuple[Floats, Floats]:
    """Return how well each of `first` (P, S, S) agrees with `second` (P, S, S), and where.

    `corners` (P, 4) say which part of the first is about all of the second: left, top, right, bottom, in shares of
    its sides. What is returned is the share of the blocks that show something and agree (P,), 0 for pairs that were
    given up early, and the corners where they agree best (P, 4).
    """
    agreement, sides = np.zeros(len(first), np.float32), corners.astype(np.float32)

    def align(start: int) -> None:
        some = slice(start, start + AT_ONCE)
        agreement[some], sides[some] = _aligned(first[some], second[some], sides[some])

    with ThreadPoolExecutor(usable_processors()) as pool:
        list(pool.map(align, range(0, len(first), AT_ONCE)))
    return agreement, sides


def _aligned(first: NDArray[np.uint8], second: NDArray[np.uint8], sides: Floats) -> tuple[Floats, Floats]:
    agreement, sides = np.zeros(len(first), np.float32), sides.copy()
    alive = np.arange(len(first))
    for averaged, steps in STEPS:
        if not len(alive):
            break
        one, other = _averaged(first[alive], averaged), _averaged(second[alive], averaged)
        moved, values, inside, alike = _best(one, other, sides[alive], steps, beside=averaged == STEPS[0][0])
        sides[alive] = moved
        if averaged == STEPS[0][0]:
            alive = alive[alike >= LIKELY]
            continue
        by = COMPARED if averaged == 1 else 1
        agreement[alive] = _compared(_averaged(values, by), _averaged(other, by), inside[:, ::by, ::by])
        if averaged > 1:
            given_up = (agreement[alive] < HOPEFUL) & (alike < WELL)
            agreement[alive[given_up]] = 0
            alive = alive[~given_up]
    return agreement, sides


def _best(
    first: Floats, second: Floats, sides: Floats, steps: int, *, beside: bool
) -> tuple[Floats, Floats, NDArray[np.bool_], Floats]:
    """Return the best correlated of the parts at `sides` and where steps from there, or from `beside`, lead to.

    Returned are its sides, its pixels, which of them the image has, and the correlation.
    """
    values, inside = _part(first, sides)
    alike = _correlation(values, second, inside)
    for start in (sides, _best_beside(first, second, sides)) if beside else (sides,):
        moved = start
        for _ in range(steps):
            moved = _moved(first, second, moved)
        values_there, inside_there = _part(first, moved)
        alike_there = _correlation(values_there, second, inside_there)
        better = alike_there > alike
        sides = np.where(better[:, None], moved, sides)
        values, inside = (
            np.where(better[:, None, None], there, here)
            for there, here in ((values_there, values), (inside_there, inside))
        )
        alike = np.where(better, alike_there, alike)
    return sides, values, inside, alike


def _averaged(images: NDArray[np.uint8] | Floats, by: int) -> Floats:
    count, height, width = images.shape
    blocks = images.reshape(count, height // by, by, width // by, by)
    return np.asarray(blocks.mean(axis=(2, 4), dtype=np.float32))


def _places(sides: Floats, size: int) -> tuple[Floats, Floats, Floats]:
    """Return where the pixels of a part lie in an image, across and down (P, n), and in the part itself (n,)."""
    along = ((np.arange(size) + 0.5) / size).astype(np.float32)
    left, top, right, bottom = (sides[:, side, None] for side in range(4))
    half = np.float32(0.5)
    return (left + (right - left) * along) * size - half, (top + (bottom - top) * along) * size - half, along


def _weights(places: Floats, size: int) -> Floats:
    """Return what interpolates pixels of a line of this `size` at `places` (P, n): (P, n, size)."""
    away = np.abs(places[:, :, None] - np.arange(size, dtype=np.float32))
    return np.asarray(np.maximum(1 - away, 0), dtype=np.float32)


def _part(images: Floats, sides: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return a part of each image (P, n, n), and which of its pixels the image has."""
    size = images.shape[1]
    across, down, _ = _places(sides, size)
    inside = [(place >= -0.5) & (place <= size - 0.5) for place in (across, down)]
    clipped = [np.asarray(np.clip(place, 0, size - 1), dtype=np.float32) for place in (across, down)]
    values = _weights(clipped[1], size) @ images @ _weights(clipped[0], size).transpose(0, 2, 1)
    return np.asarray(values, dtype=np.float32), inside[1][:, :, None] & inside[0][:, None, :]


def _moved(first: Floats, second: Floats, sides: Floats) -> Floats:
    """Return the sides after one weighted Gauss-Newton step."""
    count, size = first.shape[:2]
    values, inside = _part(first, sides)
    along = _places(sides, size)[2]
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
    contrast, brightness = _fitted(other, flat, within)
    rest = flat - contrast[:, None] * other - brightness[:, None]
    spread = 1.5 * np.median(np.abs(rest), axis=1, keepdims=True) + 1.0
    weights = within / (1 + np.square(rest / spread))
    weighted = columns * weights[:, None]
    squares = weighted @ columns.transpose(0, 2, 1)
    # The contrast and brightness that fit now are in the rest already; columns 4 and 5 let them move with the sides.
    squares += np.eye(6) * (1e-3 * np.trace(squares[:, :4, :4], axis1=1, axis2=2)[:, None, None] / 4 + 1e-3)
    step = np.linalg.solve(squares, (weighted @ rest[:, :, None]).astype(np.float64))[:, :4, 0]
    return np.asarray(sides - np.clip(step, -0.05, 0.05), dtype=np.float32)


def _fitted(x: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return slope and offset (P,) of the lines through points (P, n)."""
    total = np.maximum(weights.sum(axis=1), 1)
    mean_x, mean_y = (weights * x).sum(axis=1) / total, (weights * y).sum(axis=1) / total
    from_x = x - mean_x[:, None]
    slope = (weights * from_x * (y - mean_y[:, None])).sum(axis=1) / np.maximum(
        (weights * from_x * from_x).sum(axis=1), 1e-6
    )
    return slope, mean_y - slope * mean_x


def _best_beside(first: Floats, second: Floats, sides: Floats) -> Floats:
    """Return the best correlated of the parts of which each side lies at `sides` (P, 4) or `BESIDE` it."""
    first, second = _averaged(first, 2), _averaged(second, 2)
    size = first.shape[1]
    pairs = np.array(list(itertools.product((0, -BESIDE, BESIDE), repeat=2)), np.float32)
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


def _compared(values: Floats, second: Floats, inside: NDArray[np.bool_]) -> Floats:
    """Return the share (P,) of the blocks of texture that agree; slopes of brightness and straight lines are none.

    It is 0 where a large box shows something else.
    """
    count, block = len(values), SKETCH_SIDE // COMPARED // BLOCKS

    def blocks(images: NDArray[np.floating] | NDArray[np.bool_]) -> Floats:
        cut = images.reshape(count, BLOCKS, block, BLOCKS, block).transpose(0, 1, 3, 2, 4)
        return np.asarray(cut.reshape(count, BLOCKS * BLOCKS, -1), dtype=np.float32)

    one, other, whole = blocks(values), blocks(second), blocks(inside).min(axis=2) > 0
    one, other = (_without_lines(each, block) for each in (one, other))
    spread_one, spread_other = np.sqrt((one**2).mean(axis=2)), np.sqrt((other**2).mean(axis=2))
    correlation = (one * other).mean(axis=2) / np.maximum(spread_one * spread_other, 1e-6)
    shown = whole & (np.maximum(spread_one, spread_other) >= TEXTURE)
    agreeing = (shown & (correlation >= ALIKE)).sum(axis=1)
    agreement = agreeing / np.maximum(shown.sum(axis=1), LEAST_SHOWN)
    return np.asarray(np.where(_another_image(shown, correlation), 0, agreement), dtype=np.float32)


def _another_image(shown: NDArray[np.bool_], correlation: Floats) -> NDArray[np.bool_]:
    """Return in which pairs (P,) a large box of blocks `(P, B)` shows something else."""
    boxes, least = _boxes()
    show, alike = (blocks.astype(np.float32) @ boxes.T for blocks in (shown, shown * correlation))
    return np.asarray(((show >= least) & (alike < OTHER_IMAGE * show)).any(axis=1))


@functools.cache
def _boxes() -> tuple[Floats, Floats]:
    """Return which blocks (K, B) boxes hold that are at least half as wide and high as all, and how many must show
    something (K,)."""
    half, quarter = BLOCKS // 2, BLOCKS // 4
    spans = [(start, end) for start in range(BLOCKS) for end in range(start + half, BLOCKS + 1)]
    boxes = np.zeros((len(spans) ** 2, BLOCKS, BLOCKS), np.float32)
    least = np.full(len(boxes), LEAST_IN_BOX, np.float32)
    for box, ((top, bottom), (left, right)) in enumerate(itertools.product(spans, repeat=2)):
        boxes[box, top:bottom, left:right] = 1
        if (top, bottom, left, right) == (quarter, quarter + half, quarter, quarter + half):
            least[box] = LEAST_IN_CENTRE
    return boxes.reshape(len(boxes), -1), least


def _without_lines(blocks: Floats, side: int) -> Floats:
    """Return blocks (P, B, side²) without what is the same along their rows, and along their columns.

    That takes away slopes, as skies have them, and straight edges, in which all images in one kind of frame agree.
    """
    square = blocks.reshape(*blocks.shape[:2], side, side)
    rows, columns = square.mean(axis=3, keepdims=True), square.mean(axis=2, keepdims=True)
    rest = square - rows - columns + square.mean(axis=(2, 3), keepdims=True)
    return np.asarray(rest.reshape(blocks.shape), dtype=np.float32)


def _correlation(values: Floats, second: Floats, inside: NDArray[np.bool_]) -> Floats:
    weights = inside.reshape(len(values), -1).astype(np.float32)
    x, y = second.reshape(len(values), -1), values.reshape(len(values), -1)
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    x, y = x - (weights * x).sum(axis=1, keepdims=True) / total, y - (weights * y).sum(axis=1, keepdims=True) / total
    together = (weights * x * y).sum(axis=1)
    return np.asarray(together / np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1) + 1e-6))
