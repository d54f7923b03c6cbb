"""Photographs of nothing in particular: streets, woods, the sea, people, a table with fruit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from landmarks.archive.scenery.light import Weather
from landmarks.archive.scenery.materials import STONES, WOOD
from landmarks.archive.scenery.scene import Ground, Scene, View
from landmarks.archive.scenery.solids import Mesh, Paint, ball, box, joined, lathe, moved, turned
from landmarks.archive.scenery.surroundings import house, lamp_post, person, tower_block, tree


def nothing_in_particular(
    weather: Weather, stand: np.random.Generator, hand: np.random.Generator
) -> tuple[Scene, View]:
    """Return a scene without any landmark and a view of it, a little shaken by `hand`."""
    kinds: tuple[Callable[[np.random.Generator], tuple[Mesh, Ground, View]], ...] = (
        _street,
        _wood,
        _shore,
        _crowd,
        _suburb,
        _table,
        _lone_tree,
    )
    mesh, ground, view = kinds[stand.integers(len(kinds))](stand)
    hills = stand.uniform(0, 2 * np.pi, 8) if stand.random() < 0.7 else None
    shake = hand.normal(0, 0.15, 3)
    target = (view.target[0] + shake[0], view.target[1] + shake[1], view.target[2] + 0.4 * shake[2])
    return Scene(mesh, ground, weather, hills), View(view.position, target, view.zoom, float(hand.normal(0, 0.02)))


def _street(rng: np.random.Generator) -> tuple[Mesh, Ground, View]:
    """Two rows of houses, lamps and people along the x axis."""
    parts = []
    for side in (-1, 1):
        x = -30.0
        while x < 70:
            parts.append(moved(turned(house(rng), np.pi if side < 0 else 0.0), x, side * rng.uniform(9, 11)))
            x += float(rng.uniform(11, 17))
    parts += [moved(lamp_post(), x, 4.6) for x in (0, 18, 36)]
    parts += [moved(person(rng), *rng.uniform((-14, -3.5), (30, 3.5))) for _ in range(rng.integers(1, 7))]
    target = (25.0, float(rng.normal(0, 7)), float(rng.uniform(2, 5)))
    return (
        joined(parts),
        Ground("paving"),
        View((-20.0, float(rng.uniform(-2, 2)), 1.7), target, float(rng.uniform(0.7, 1.1))),
    )


def _wood(rng: np.random.Generator) -> tuple[Mesh, Ground, View]:
    """Trees, and trees behind them."""
    places = rng.uniform((-4, -26), (55, 26), (int(rng.integers(14, 34)), 2))
    parts = [moved(tree(rng), *place) for place in places]
    around = str(rng.choice(["grass", "grass", "snow"]))
    return (
        joined(parts),
        Ground(around),
        View((-16.0, 0.0, 1.7), (20.0, float(rng.normal(0, 4)), 3.5), float(rng.uniform(0.7, 1.2))),
    )


def _shore(rng: np.random.Generator) -> tuple[Mesh, Ground, View]:
    """The sea, a boat with a sail, somebody who looks at it."""
    hull = Paint(*rng.uniform(0.05, 0.7, 3))
    boat = [moved(turned(box(7, 2.2, 1.1, hull), 0.3)), lathe([(0.1, 1), (0.08, 8)], 6, WOOD)]
    boat.append(moved(turned(lathe([(2.4, 0), (0, 6)], 3, Paint(0.8, 0.78, 0.7), smooth=False), 0.6), z=1.6))
    parts = [moved(joined(boat), *rng.uniform((35, -16), (80, 16)))]
    parts += [moved(person(rng), *rng.uniform((-6, -5), (12, 5))) for _ in range(rng.integers(1, 4))]
    ground = Ground("sand", water="sea", shore=14.0)
    return (
        joined(parts),
        ground,
        View(
            (-14.0, 0.0, 2.2), (40.0, float(rng.normal(0, 10)), float(rng.uniform(0, 8))), float(rng.uniform(0.7, 1.3))
        ),
    )


def _crowd(rng: np.random.Generator) -> tuple[Mesh, Ground, View]:
    """People near the camera, some trees or a house far behind."""
    parts = [moved(person(rng), *rng.uniform((-2.5, -2.2), (7, 2.2))) for _ in range(rng.integers(1, 10))]
    parts += [moved(tree(rng), *rng.uniform((25, -25), (45, 25))) for _ in range(rng.integers(1, 6))]
    if rng.random() < 0.5:
        parts.append(moved(house(rng), 40, float(rng.uniform(-15, 15))))
    around = str(rng.choice(["grass", "paving", "sand"]))
    return (
        joined(parts),
        Ground(around),
        View((-6.5, 0.0, 1.6), (10.0, float(rng.normal(0, 0.6)), 1.45), float(rng.uniform(0.8, 1.5))),
    )


def _suburb(rng: np.random.Generator) -> tuple[Mesh, Ground, View]:
    """Blocks of flats behind trees."""
    parts = [moved(tower_block(rng), *rng.uniform((30, -40), (80, 40))) for _ in range(rng.integers(2, 5))]
    parts += [moved(tree(rng), *rng.uniform((-5, -20), (25, 20))) for _ in range(rng.integers(2, 7))]
    return (
        joined(parts),
        Ground("grass"),
        View((-28.0, 0.0, 1.7), (40.0, float(rng.normal(0, 8)), 12.0), float(rng.uniform(0.6, 1.0))),
    )


def _table(rng: np.random.Generator) -> tuple[Mesh, Ground, View]:
    """A stone table in a garden with fruit and a vase."""
    parts = [
        moved(box(1.8, 1.3, 0.1, STONES[str(rng.choice(sorted(STONES)))]), z=0.75),
        box(0.3, 0.3, 0.75, STONES["granite"]),
    ]
    for _ in range(int(rng.integers(3, 9))):
        size = float(rng.uniform(0.07, 0.15))
        colour = Paint(
            *np.array([(0.7, 0.08, 0.05), (0.75, 0.4, 0.04), (0.3, 0.5, 0.07), (0.3, 0.05, 0.25)])[rng.integers(4)]
        )
        parts.append(moved(ball(size, 0.85 + size, colour, sides=14, rings=10), *rng.uniform((-0.6, -0.5), (0.6, 0.5))))
    vase = Paint(*rng.uniform(0.05, 0.7, 3))
    parts.append(moved(lathe([(0.1, 0), (0.17, 0.15), (0.07, 0.36), (0.11, 0.45)], 16, vase), 0.2, 0.3, 0.85))
    parts += [moved(tree(rng), *rng.uniform((9, -10), (20, 10))) for _ in range(rng.integers(1, 5))]
    angle = float(rng.normal(0, 0.5))
    position = (-2.3 * float(np.cos(angle)), -2.3 * float(np.sin(angle)), float(rng.uniform(1.25, 1.9)))
    return joined(parts), Ground("grass"), View(position, (0.0, 0.0, 0.95), float(rng.uniform(0.9, 1.3)))


def _lone_tree(rng: np.random.Generator) -> tuple[Mesh, Ground, View]:
    """One tree in a wide field, perhaps with a house and a walker."""
    parts = [moved(tree(rng), float(rng.uniform(0, 12)), float(rng.uniform(-5, 5)))]
    if rng.random() < 0.6:
        parts.append(moved(turned(house(rng), float(rng.uniform(0, 6.28))), *rng.uniform((20, -18), (40, 18))))
    if rng.random() < 0.6:
        parts.append(moved(person(rng), *rng.uniform((-9, -3), (4, 3))))
    around = str(rng.choice(["grass", "sand", "snow", "grass"]))
    return (
        joined(parts),
        Ground(around),
        View((-17.0, 0.0, 1.7), (8.0, float(rng.normal(0, 3)), float(rng.uniform(2, 5))), float(rng.uniform(0.7, 1.4))),
    )
