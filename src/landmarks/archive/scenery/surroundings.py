"""What stands around a landmark and in front of it: trees, houses, lamp posts, passers-by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from landmarks.archive.scenery.materials import DARK, ROOFS, STONES, WHITE, WINDOW, WOOD
from landmarks.archive.scenery.solids import (
    GLASS,
    LEAVES,
    Mesh,
    Paint,
    ball,
    box,
    gable,
    grown,
    joined,
    lathe,
    moved,
    on_four_sides,
    pane,
    turned,
    windows,
)

GREENS = (
    Paint(0.10, 0.20, 0.04, LEAVES),
    Paint(0.16, 0.25, 0.05, LEAVES),
    Paint(0.06, 0.15, 0.06, LEAVES),
    Paint(0.38, 0.22, 0.04, LEAVES),
    Paint(0.48, 0.20, 0.22, LEAVES),
)
"""Summer twice, pines, autumn, cherry blossom."""

CLOTHES = (
    (0.55, 0.06, 0.05),
    (0.07, 0.16, 0.45),
    (0.70, 0.52, 0.08),
    (0.06, 0.06, 0.07),
    (0.75, 0.73, 0.70),
    (0.10, 0.35, 0.28),
    (0.55, 0.22, 0.40),
    (0.30, 0.22, 0.14),
)
SKINS = ((0.62, 0.40, 0.28), (0.42, 0.24, 0.15), (0.20, 0.10, 0.06), (0.70, 0.48, 0.36))


def tree(rng: np.random.Generator) -> Mesh:
    """Return a broad-leaved tree, a conifer or a cypress, 5 to 13 m high."""
    kind = rng.choice(3, p=[0.6, 0.22, 0.18])
    paint = GREENS[rng.choice(5, p=[0.38, 0.34, 0.1, 0.1, 0.08])]
    trunk = lathe([(0.42, 0), (0.26, 2.6)], 6, WOOD)
    if kind == 0:
        crown = [
            moved(
                ball(rng.uniform(1.5, 2.4), rng.uniform(3.6, 5.6), paint, sides=9, rings=6), *rng.uniform(-1.3, 1.3, 2)
            )
            for _ in range(4)
        ]
        whole = joined([trunk, *(rough(blob, 0.2, rng) for blob in crown)])
    elif kind == 1:
        whole = joined(
            [trunk, *(moved(lathe([(2.3 - 0.5 * i, 0), (0, 3.2)], 9, GREENS[2]), z=1.4 + 1.7 * i) for i in range(4))]
        )
    else:
        whole = joined([trunk, rough(ball(1.0, 5.0, GREENS[2], sides=8, rings=8, stretch=4.2), 0.08, rng)])
    return turned(grown(whole, float(rng.uniform(0.8, 1.5))), float(rng.uniform(0, 6.28)))


def rough(mesh: Mesh, amount: float, rng: np.random.Generator) -> Mesh:
    """Return the mesh with its corners shifted by waves of `amount` metres, the same shift for shared corners."""
    phase = rng.uniform(0, 6.28, 3)
    waves = np.sin(mesh.corners[..., [1, 2, 0]] * 2.9 + phase) + np.sin(mesh.corners[..., [2, 0, 1]] * 5.3 + phase)
    return replace(mesh, corners=(mesh.corners + amount * waves).astype(np.float32))


def person(rng: np.random.Generator) -> Mesh:
    """Return somebody who stands or walks by, 1.5 to 1.9 m tall."""
    coat, legs = Paint(*CLOTHES[rng.integers(8)]), Paint(*CLOTHES[rng.integers(8)])
    skin, hair = Paint(*SKINS[rng.integers(4)]), Paint(*SKINS[2])
    stride = float(rng.uniform(0.08, 0.2))
    parts = [moved(lathe([(0.08, 0), (0.11, 0.85)], 6, legs), x=side * stride, y=side * 0.09) for side in (-1, 1)]
    parts.append(lathe([(0.22, 0.8), (0.2, 1.1), (0.25, 1.35), (0.1, 1.48)], 8, coat))
    parts += [moved(lathe([(0.06, 0.75), (0.08, 1.35)], 5, coat), y=side * 0.29) for side in (-1, 1)]
    parts += [
        ball(0.125, 1.6, skin, sides=8, rings=6, stretch=1.2),
        ball(0.135, 1.66, hair, sides=8, rings=4, stretch=0.8),
    ]
    if rng.random() < 0.12:
        parts.append(moved(lathe([(0.75, 0), (0.5, 0.25), (0, 0.4)], 8, coat), z=1.75))
    return turned(grown(joined(parts), float(rng.uniform(0.9, 1.1))), float(rng.uniform(0, 6.28)))


def house(rng: np.random.Generator) -> Mesh:
    """Return an ordinary house such as stands anywhere."""
    wall = Paint(*(np.array(rng.choice([*STONES.values()], axis=0)[:3]) * rng.uniform(0.7, 1.15)))
    wall = wall if rng.random() < 0.6 else WHITE
    roof = ROOFS[str(rng.choice(["terracotta", "terracotta", "slate"]))]
    x, y, storeys = float(rng.uniform(7, 13)), float(rng.uniform(6, 9)), int(rng.integers(1, 4))
    high = 3.1 * storeys
    parts = [box(x, y, high, wall)]
    if rng.random() < 0.75:
        parts += [moved(gable(x + 0.8, y + 0.9, y * float(rng.uniform(0.35, 0.6)), roof, wall), z=high)]
        parts += [moved(box(0.8, 0.8, 3.4, STONES["brick"]), x * 0.2, y * 0.15, high)]
    else:
        parts += [moved(box(x + 0.3, y + 0.3, 0.6, STONES["granite"]), z=high)]
    for turn, width, out in ((0, x, y / 2), (np.pi, x, y / 2), (np.pi / 2, y, x / 2), (-np.pi / 2, y, x / 2)):
        parts.append(
            turned(windows(width * 0.9, (0.3, high), (max(2, int(width / 2.6)), storeys), WINDOW, out=out), turn)
        )
    parts.append(pane(0.1 * x, 1.1, 1.1, 2.2, WOOD, out=y / 2 + 0.12))
    return joined(parts)


def lamp_post() -> Mesh:
    """Return a lamp that is lit when windows are."""
    lamp = Paint(0.9, 0.8, 0.5, GLASS)
    return joined([lathe([(0.16, 0), (0.07, 0.6), (0.06, 3.8)], 6, DARK), ball(0.28, 4.0, lamp, sides=8, rings=5)])


def tower_block(rng: np.random.Generator) -> Mesh:
    """Return a plain tall block of flats."""
    wall = Paint(*(np.full(3, 0.45) * rng.uniform(0.7, 1.3, 3)))
    side, high = float(rng.uniform(10, 16)), float(rng.uniform(18, 45))
    glazing = on_four_sides(windows(side * 0.95, (1, high - 1), (5, int(high / 3.5)), WINDOW, out=side / 2))
    return joined([box(side, side, high, wall), glazing])
