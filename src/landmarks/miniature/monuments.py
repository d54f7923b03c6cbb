"""Landmarks that are taller than wide: pagoda, obelisk, lighthouse, windmill, iron tower, campanile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from landmarks.miniature.solids import (
    DARK,
    GLASS,
    QUARRIES,
    ROOFERS,
    ROOFS,
    STONE,
    STONES,
    WHITE,
    WINDOW,
    WOOD,
    Character,
    Mesh,
    Paint,
    arch,
    around,
    ball,
    beam,
    box,
    dome,
    frustum,
    gable,
    lathe,
    merged,
    moved,
    on_four_sides,
    pane,
    sheet,
    tilted,
    turned,
    windows,
)
from landmarks.miniature.wide import (
    arch_bridge,
    arena,
    castle,
    cathedral,
    domed_hall,
    step_pyramid,
    stone_circle,
    temple,
    triumphal_arch,
)
from landmarks.support.seeds import generator


def pagoda(own: Character) -> Mesh:
    """Storeys with wide curved eaves, smaller towards the gilded finial."""
    storeys = 5 + own.many
    parts = [box(17, 17, 1.4, STONES["granite"])]
    z, wide = 1.4, 10.5
    for _ in range(storeys):
        high = 3.5 * own.slim
        parts.append(moved(box(wide, wide, high, own.stone), z=z))
        parts.append(moved(on_four_sides(windows(wide * 0.8, (0.5, high * 0.8), (3, 1), WINDOW, out=wide / 2)), z=z))
        eaves = [(wide * 0.95, 0.5), (wide * 0.99, 0.75), (wide * 0.72, 1.15), (wide * 0.5, 2.1)]
        under = [(wide * 0.5, 0.9), (wide * 0.95, 0.5)]
        parts.append(moved(lathe([*under, *eaves[1:]], 4, own.roof, smooth=False), z=z + high - 0.9))
        z, wide = z + high + 0.9, wide * 0.86
    tip = [(0.5, 0), (0.25, 1), (0.9, 1.3), (0.2, 1.6), (0.8, 2.4), (0.2, 2.7), (0.6, 3.4), (0.15, 3.7), (0, 7)]
    return merged([*parts, moved(lathe(tip, 8, ROOFS["gold"]), z=z - 0.6)])


def obelisk(own: Character) -> Mesh:
    """A needle on a stepped base with four guardians."""
    parts = [moved(box(18 - 3 * i, 18 - 3 * i, 0.8, STONES["granite"]), z=0.8 * i) for i in range(3)]
    parts.append(moved(box(5.5, 5.5, 4, own.stone), z=2.4))
    parts.append(moved(box(6.2, 6.2, 0.7, own.stone), z=6.4))
    tall = 27 * own.slim
    parts.append(moved(frustum((3.8, 3.8), (2.3, 2.3), tall, own.stone), z=7.1))
    parts.append(moved(frustum((2.3, 2.3), (0.1, 0.1), 3, ROOFS["gold"]), z=7.1 + tall))
    parts.append(moved(on_four_sides(pane(0, 4.4, 3, 2, Paint(*own.roof[:3]), out=2.8)), z=0))
    guard = merged(
        [
            box(3.4, 1.8, 1.4, STONES["granite"]),
            moved(ball(0.9, 1.9, own.roof, stretch=0.9), x=-0.4),
            moved(ball(0.65, 3.0, own.roof), x=0.7),
        ]
    )
    return merged([*parts, around(4, 9.2, lambda _: guard, np.pi / 4)])


def lighthouse(own: Character) -> Mesh:
    """A banded tower on a rock with a lantern and the keeper's house."""
    parts = [lathe([(11, 0), (9.5, 1.4), (7, 2.4), (0.1, 2.8)], 11, Paint(0.24, 0.22, 0.2, STONE), smooth=False)]
    bands, high = 5 + 2 * (own.many % 2), 24 * own.slim
    radii = np.linspace(3.4, 2.2, bands + 1)
    band = Paint(*own.roof[:3])
    for i in range(bands):
        profile = [(radii[i], high * i / bands), (radii[i + 1], high * (i + 1) / bands)]
        parts.append(moved(lathe(profile, 18, WHITE if i % 2 else band), z=2.4))
    z = 2.4 + high
    parts.append(moved(lathe([(2.2, 0), (3.2, 0.3), (3.2, 0.7), (1.7, 0.8)], 18, DARK), z=z))
    parts.append(moved(around(10, 3.05, lambda _: box(0.12, 0.12, 1.2, WHITE)), z=z + 0.7))
    lamp = Paint(0.95, 0.75, 0.3, GLASS)
    parts.append(moved(lathe([(1.55, 0), (1.55, 2.6)], 12, lamp), z=z + 0.8))
    parts.append(moved(lathe([(2.0, 0), (1.5, 0.8), (0.3, 1.6), (0.2, 2.6), (0, 3.4)], 14, band), z=z + 3.4))
    for i in range(3):
        parts.append(moved(pane(0, 6 + 6.5 * own.slim * i, 0.9, 1.5, WINDOW, out=3.25 - 0.28 * i)))
    house = merged(
        [
            box(7, 5, 3.2, WHITE),
            moved(gable(7.8, 5.8, 2.4, own.roof, WHITE), z=3.2),
            windows(6, (0.6, 3), (3, 1), WINDOW, out=2.5),
            turned(windows(6, (0.6, 3), (3, 1), WINDOW, out=2.5), np.pi),
            moved(box(0.8, 0.8, 2, STONES["brick"]), 2, 0, 4.6),
        ]
    )
    return merged([*parts, moved(house, 5.2, 3.0, 1.6)])


def windmill(own: Character) -> Mesh:
    """A round mill with a cap and four lattice sails."""
    tall = 13.5 * own.slim
    parts = [lathe([(5.2, 0), (4.6, 3), (3.4, tall)], 16, own.stone)]
    parts.append(moved(lathe([(6.2, 0), (6.2, 0.4), (4, 0.5)], 16, WOOD), z=4.0))
    parts.append(moved(around(14, 6.0, lambda _: box(0.15, 0.15, 1.1, WOOD)), z=4.4))
    parts.append(dome(3.8, tall, own.roof, sides=16, rise=1.05))
    parts += [
        turned(pane(0, z, 1.1, 1.7, WINDOW, out=out), turn)
        for turn in (0, 2.1, 4.0)
        for z, out in ((2.3, 4.9), (7.2, 4.35))
    ]
    parts.append(pane(0, 1.5, 1.6, 3, WOOD, out=5.15))
    sail = [beam((0, 0, 0), (0, 0, 10.5), 0.4, WOOD)]
    sail += [beam((0, 0, 1.6 + 0.95 * i), (2.1, 0, 1.6 + 0.95 * i), 0.16, WOOD) for i in range(10)]
    sail += [beam((2.1, 0, 1.6), (2.1, 0, 10.2), 0.16, WOOD)]
    cloth = [[0.2, 0, 1.7], [2.0, 0, 1.7], [2.0, 0, 10.1], [0.2, 0, 10.1]]
    canvas = Paint(0.72, 0.66, 0.52)
    sail += [sheet(cloth, canvas)]
    wheel = merged([tilted(merged(sail), 0.35 + i * np.pi / 2) for i in range(4)])
    hub = beam((0, 1.5, 0), (0, -1.6, 0), 1.0, WOOD)
    return merged([*parts, moved(merged([moved(wheel, y=-1.0), hub]), y=-3.9, z=tall + 1.2)])


def iron_tower(own: Character) -> Mesh:
    """Four lattice legs that meet far up, three platforms."""
    iron = Paint(own.roof.red * 0.6 + 0.05, own.roof.green * 0.6 + 0.05, own.roof.blue * 0.6 + 0.05)
    heights = np.array([0, 9, 17, 26, 36, 47]) * own.slim
    spread = np.array([11.5, 7.6, 5.2, 3.3, 1.9, 0.8])
    side = []
    for i in range(5):
        (z, up), (a, b) = heights[i : i + 2], spread[i : i + 2]
        thick = 1.1 - 0.14 * i
        side.append(beam((-a, -a, z), (-b, -b, up), thick, iron))
        if i:
            side += [beam((-a, -a, z), (b, -b, up), 0.34, iron), beam((a, -a, z), (-b, -b, up), 0.34, iron)]
        else:
            side += [beam((-a + 3.4, -a, 0), (-b, -b, up), 0.6, iron), beam((-a, -a + 3.4, 0), (-b, -b, up), 0.6, iron)]
    angles = np.linspace(np.pi, 0, 9)
    curve = [(8.6 * np.cos(t), -9.6 + 1.6 * np.sin(t), 1.2 + 6.4 * np.sin(t)) for t in angles]
    side += [beam(start, end, 0.5, iron) for start, end in pairwise(curve)]
    parts = [on_four_sides(merged(side))]
    parts += [moved(box(2 * spread[i] + 2.2, 2 * spread[i] + 2.2, 1.2, iron), z=heights[i]) for i in (1, 2, 4)]
    parts += [
        moved(dome(1.4, heights[5], own.roof, sides=10)),
        beam((0, 0, heights[5]), (0, 0, heights[5] + 7), 0.3, iron),
    ]
    parts += [moved(box(4.6, 4.6, 2.2, own.stone), x, y) for x in (-11, 11) for y in (-11, 11)]
    return merged(parts)


def campanile(own: Character) -> Mesh:
    """A tall square bell tower beside a low hall, with clocks on all sides."""
    tall = 30 * own.slim
    tower = [box(7.5, 7.5, tall, own.stone), moved(box(8.5, 8.5, 0.9, WHITE), z=tall)]
    tower += [on_four_sides(windows(3.4, (5, tall - 7), (1, 4), WINDOW, out=3.75))]
    clock = merged(
        [
            pane(0, tall - 3.6, 4.4, 4.4, WHITE, out=3.85),
            pane(0, tall - 2.9, 0.35, 1.9, DARK, out=3.95),
            pane(0.5, tall - 3.6, 1.4, 0.35, DARK, out=3.95),
        ]
    )
    belfry = on_four_sides(moved(arch(7, 6, 1.2, (1.9 * 2, 5), own.stone), y=-2.9))
    tower += [on_four_sides(clock), moved(belfry, z=tall + 0.9), moved(box(8.2, 8.2, 0.8, WHITE), z=tall + 6.9)]
    tower += [
        moved(frustum((7.4, 7.4), (0.2, 0.2), 9 * own.slim, own.roof), z=tall + 7.7),
        moved(ball(0.7, tall + 17 * own.slim, ROOFS["gold"])),
    ]
    hall = [box(26, 10, 8, own.stone), moved(gable(27, 11.4, 4.2, own.roof, own.stone), z=8)]
    hall += [turned(windows(24, (1.2, 7), (7, 2), WINDOW, out=5), turn) for turn in (0, np.pi)]
    return merged([*tower, moved(merged(hall), x=17, y=1.0)])


# ── The kinds of landmarks, and one landmark made from its kind, number and seed ───────────────────────────────────


KINDS: dict[str, Callable[[Character], Mesh]] = {
    "temple": temple,
    "domed hall": domed_hall,
    "step pyramid": step_pyramid,
    "triumphal arch": triumphal_arch,
    "arch bridge": arch_bridge,
    "pagoda": pagoda,
    "obelisk": obelisk,
    "arena": arena,
    "lighthouse": lighthouse,
    "windmill": windmill,
    "castle": castle,
    "cathedral": cathedral,
    "iron tower": iron_tower,
    "campanile": campanile,
    "stone circle": stone_circle,
}

AT_THE_WATER = ("arch bridge", "lighthouse", "castle")


@dataclass(frozen=True)
class Monument:
    """A built landmark: its mesh, height and radius in metres, and whether it stands by the water."""

    mesh: Mesh
    height: float
    radius: float
    water: bool


@lru_cache(maxsize=64)
def monument(kind: str, number: int, seed: int) -> Monument:
    """Build landmark `number` of a kind, counting from 0; the same arguments always give the same landmark.

    Landmarks of the same kind differ in stone and roof.
    """
    shared, rng = generator("monument", kind, seed), generator("monument", kind, seed, number)
    own = Character(
        stone=STONES[QUARRIES[(int(shared.integers(len(QUARRIES))) + number) % len(QUARRIES)]],
        roof=ROOFS[ROOFERS[(int(shared.integers(len(ROOFERS))) + number) % len(ROOFERS)]],
        slim=float(rng.uniform(0.86, 1.2)),
        many=int(rng.integers(3)),
    )
    mesh = turned(KINDS[kind](own), float(rng.uniform(0, 2 * np.pi)))
    return Monument(
        mesh,
        height=float(mesh.corners[..., 2].max()),
        radius=float(np.hypot(mesh.corners[..., 0], mesh.corners[..., 1]).max()),
        water=kind in AT_THE_WATER,
    )
