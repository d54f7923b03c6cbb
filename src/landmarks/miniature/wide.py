"""Landmarks that are wider than tall: temple, hall, pyramid, gate, bridge, arena, castle, cathedral, stone circle."""

from __future__ import annotations

import numpy as np

from landmarks.miniature.solids import (
    DARK,
    ROOFS,
    STONE,
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
from landmarks.support.seeds import generator


def temple(own: Character) -> Mesh:
    """Columns on a stepped platform under a low gable."""
    columns, high = 6 + own.many, 9.0 * own.slim
    steps = [moved(box(30 - 1.6 * i, 18 - 1.6 * i, 0.7, own.stone), z=0.7 * i) for i in range(3)]
    column = lathe([(1.05, 0), (0.85, 0.4), (0.68, high - 0.7), (1.0, high - 0.3), (1.0, high)], 10, own.stone)
    across = np.linspace(-12, 12, columns)
    places = [(x, y) for x in across for y in (-6.6, 6.6)] + [(x, y) for x in (-12, 12) for y in (-2.2, 2.2)]
    row = [moved(column, x, y, 2.1) for x, y in places]
    beams = [moved(box(26.5, 15.4, 1.6, own.stone), z=2.1 + high)]
    roof = moved(gable(28, 16.6, 4.0 * own.slim, own.roof, own.stone), z=3.7 + high)
    return merged([*steps, *row, *beams, roof, moved(box(19, 8, high, own.stone), z=2.1)])


def domed_hall(own: Character) -> Mesh:
    """A great dome on a drum, half domes around it, slender towers at the corners."""
    hall = [box(26, 26, 10, own.stone), moved(box(27, 27, 0.8, own.stone), z=10)]
    lights = on_four_sides(windows(22, (2.5, 9), (5, 1), WINDOW, out=13))
    drum = moved(lathe([(9.6, 0), (9.6, 4), (10, 4.2)], 24, own.stone), z=10.8)
    panes = moved(around(12, 9.62, lambda _: turned(pane(0, 2.1, 1.4, 2.6, WINDOW, out=0.05), np.pi / 2)), z=10.8)
    top = 15 + 9.6 * 1.05 * own.slim
    parts = [*hall, lights, drum, panes, dome(9.6, 15, own.roof, rise=1.05 * own.slim)]
    parts += [moved(lathe([(0.4, 0), (0.4, 2), (0, 4.5)], 8, ROOFS["gold"]), z=top - 0.4)]
    parts.append(around(4, 13, lambda _: dome(5, 10, own.roof, sides=14, rise=0.7), 0))
    tower = merged(
        [
            lathe([(1.5, 0), (1.25, 21 * own.slim), (1.9, 21.3 * own.slim), (1.9, 22.3 * own.slim)], 10, own.stone),
            moved(lathe([(1.1, 0), (1.0, 5), (1.5, 5.2), (0, 10)], 10, own.roof), z=22.3 * own.slim),
        ]
    )
    return merged([*parts, around(4, 20, lambda _: tower, np.pi / 4)])


def step_pyramid(own: Character) -> Mesh:
    """Terraces that grow smaller, a stairway on each side, a shrine on top."""
    levels = 6 + own.many
    high = 3.1 * own.slim
    terraces = [
        moved(frustum((36 - 4.4 * i, 36 - 4.4 * i), (35 - 4.4 * i, 35 - 4.4 * i), high, own.stone), z=high * i)
        for i in range(levels)
    ]
    top, height = 36 - 4.4 * levels, high * levels
    stair = []
    for i in range(levels * 3):
        y = -19.5 + (19.5 - top / 2 - 1) * (i + 0.5) / (levels * 3)
        stair.append(moved(box(5.5, 1.6, height * (i + 1) / (levels * 3), own.roof), y=y))
    rails = [beam((side, -19.5, 0), (side, -top / 2 - 1, height), 1.0, own.stone) for side in (-3, 3)]
    shrine = [box(6, 6, 5, own.stone), moved(box(7, 7, 0.8, own.roof), z=5), moved(box(4, 4, 1.6, own.roof), z=5.8)]
    shrine.append(on_four_sides(pane(0, 1.7, 2.2, 3.4, DARK, out=3.05)))
    return merged([*terraces, on_four_sides(merged([*stair, *rails])), moved(merged(shrine), z=height)])


def triumphal_arch(own: Character) -> Mesh:
    """A massive gate with three passages, an attic above and a group of riders in gold."""
    parts = [arch(11, 17 * own.slim, 8, (6.4, 12.5 * own.slim), own.stone)]
    parts += [moved(arch(7, 17 * own.slim, 8, (3.2, 7.5 * own.slim), own.stone), x=side * 9) for side in (-1, 1)]
    parts += [moved(box(26.5, 9.4, 1.0, own.stone), z=17 * own.slim)]
    parts += [
        moved(box(22, 7, 4.4, own.stone), z=17 * own.slim + 1),
        moved(box(23, 8, 0.6, own.stone), z=17 * own.slim + 5.4),
    ]
    for side in (-1, 1):
        shaft = lathe([(0.9, 0), (0.7, 0.8), (0.55, 11.5), (0.9, 12.4)], 8, own.stone)
        parts += [moved(shaft, x, side * 4.6) for x in (-11.8, -4.6, 4.6, 11.8)]
        parts.append(
            turned(pane(0, 17 * own.slim + 3.1, 12, 2.4, Paint(*own.roof[:3]), out=3.55), 0 if side < 0 else np.pi)
        )
    riders = [moved(ball(0.9, 2.6, ROOFS["gold"], stretch=1.5), x, 0) for x in np.linspace(-3, 3, 3 + own.many)]
    riders += [moved(ball(0.5, 4.4, ROOFS["gold"]), x, 0) for x in np.linspace(-3, 3, 3 + own.many)]
    return merged([*parts, moved(merged([*riders, box(9, 3, 1.4, ROOFS["gold"])]), z=17 * own.slim + 6)])


def arch_bridge(own: Character) -> Mesh:
    """Round arches over a river, towers at both ends."""
    spans = 3 + own.many
    width = 60 / spans
    parts = []
    for i in range(spans):
        x = (i + 0.5) * width - 30
        parts.append(moved(arch(width, 10.5 * own.slim, 6, (width * 0.76, 8.2 * own.slim), own.stone), x=x))
    parts += [
        moved(lathe([(2.6, 0), (2.4, 5), (0, 7)], 6, own.stone, smooth=False), (i * width) - 30, -3.2)
        for i in range(1, spans)
    ]
    parts += [
        moved(lathe([(2.6, 0), (2.4, 5), (0, 7)], 6, own.stone, smooth=False), (i * width) - 30, 3.2)
        for i in range(1, spans)
    ]
    deck = 10.5 * own.slim
    parts += [moved(box(60, 0.7, 1.2, own.stone), y=side * 3, z=deck) for side in (-1, 1)]
    parts += [
        moved(box(0.9, 0.9, 2.2, own.stone), x, side * 3, deck) for side in (-1, 1) for x in np.linspace(-24, 24, 7)
    ]
    gate = merged(
        [
            arch(8, 18 * own.slim, 8, (4, 6), own.stone),
            moved(box(9, 9, 1.2, own.stone), z=18 * own.slim),
            moved(frustum((8.6, 8.6), (0.4, 0.4), 7, own.roof), z=18 * own.slim + 1.2),
            on_four_sides(moved(windows(5, (9, 17), (2, 2), WINDOW, out=4), z=1)),
        ]
    )
    gate = moved(turned(gate, np.pi / 2), z=6)
    base = box(10, 12, 7, own.stone)
    return merged([*parts, *(moved(part, x=side * 34) for part in (gate, base) for side in (-1, 1))])


def arena(own: Character) -> Mesh:
    """An oval ring of arcades, three storeys, broken on one side."""
    bays, parts = 22 + 2 * own.many, []
    storeys = 3
    for bay in range(bays):
        angle = bay * 2 * np.pi / bays
        levels = storeys if bay % bays > bays // 4 else storeys - 1
        wide = 2 * np.pi * 22 / bays * 1.08
        for level in range(levels):
            part = arch(wide, 6.2 * own.slim, 3.0, (wide * 0.56, 5.0 * own.slim), own.stone)
            part = moved(turned(part, np.pi / 2), 22 - 0.25 * level, 0, 6.5 * own.slim * level)
            parts.append(turned(part, angle))
            ledge = moved(box(3.8, wide, 0.35 * own.slim, own.stone), 22, 0, 6.5 * own.slim * level + 6.2 * own.slim)
            parts.append(turned(ledge, angle))
    shade = Paint(own.stone[0] * 0.5, own.stone[1] * 0.5, own.stone[2] * 0.5, STONE)
    rows = [(19.6, 0), (19.6, 11 * own.slim), (12, 2.5), (11.8, 0)]
    return merged([*parts, lathe(rows, 22, shade)])


def castle(own: Character) -> Mesh:
    """Four round towers with pointed roofs, walls with battlements, a keep and its flag."""
    wall = [box(24, 2.2, 8.5, own.stone)]
    wall += [moved(box(1.3, 2.3, 1.3, own.stone), x, 0, 8.5) for x in np.linspace(-9.5, 9.5, 9)]
    wall += [pane(0, 2.2, 3.2, 4.4, WOOD, out=1.15)]
    walls = on_four_sides(moved(merged(wall), y=-12))
    tall = 14 * own.slim
    tower = merged(
        [
            lathe([(3.6, 0), (3.2, 1.5), (3.1, tall - 1), (3.8, tall), (3.8, tall + 1.2)], 14, own.stone),
            moved(lathe([(4.2, 0), (0, 7.5 * own.slim)], 14, own.roof), z=tall + 1.2),
            *(turned(pane(0, z, 0.8, 1.8, WINDOW, out=3.2), a) for z in (5.5, 10) for a in (0, 2.1, 4.2)),
        ]
    )
    towers = around(4, 12 * np.sqrt(2), lambda _: tower, np.pi / 4)
    high = 18 * own.slim
    keep = [box(9, 9, high, own.stone), moved(box(10, 10, 1.2, own.stone), z=high)]
    keep += [on_four_sides(windows(7, (8.5, high - 1), (2, 2), WINDOW, out=4.5))]
    keep += [moved(frustum((9.4, 9.4), (0.6, 0.6), 8, own.roof), z=high + 1.2)]
    keep += [beam((0, 0, high + 8), (0, 0, high + 14), 0.25, DARK)]
    flag = [[0.2, 0, high + 11.2], [4.2, 0.6, high + 11.6], [4.2, 0.6, high + 13.8], [0.2, 0, high + 13.8]]
    return merged([walls, towers, *keep, sheet(flag, Paint(*own.roof[:3]))])


def cathedral(own: Character) -> Mesh:
    """A long nave with buttresses, two western towers with spires, a rose window."""
    parts = [box(34, 10, 14, own.stone), moved(gable(35, 11.4, 6.5, own.roof, own.stone), z=14)]
    parts += [moved(box(34, 17, 7, own.stone), z=0), moved(gable(16, 10, 6.0, own.roof, own.stone), z=13)]
    transept = turned(
        merged([box(25, 9, 14, own.stone), moved(gable(26, 10, 6.0, own.roof, own.stone), z=14)]), np.pi / 2
    )
    parts += [
        moved(transept, x=6),
        turned(windows(30, (8, 13), (8, 1), WINDOW, out=5), 0),
        turned(windows(30, (8, 13), (8, 1), WINDOW, out=5), np.pi),
    ]
    parts += [turned(windows(30, (1.5, 6.2), (8, 1), WINDOW, out=8.5), turn) for turn in (0, np.pi)]
    parts += [moved(box(1.1, 3.4, 9, own.stone), x, side * 9.5) for x in np.linspace(-13, 15, 8) for side in (-1, 1)]
    tall = 23 * own.slim
    tower = [box(7, 7, tall, own.stone), on_four_sides(windows(5, (tall * 0.5, tall - 1.5), (2, 2), WINDOW, out=3.5))]
    tower += [moved(lathe([(4.3, 0), (0, 15 * own.slim)], 8, own.roof, smooth=False), z=tall)]
    tower += [
        moved(
            around(4, 4.2, lambda _: lathe([(0.6, 0), (0.6, 2), (0, 5)], 4, own.stone, smooth=False), np.pi / 4), z=tall
        )
    ]
    parts += [moved(merged(tower), -17.5, side * 5.6) for side in ((-1, 1) if own.many != 1 else (-1,))]
    front = merged(
        [
            moved(lathe([(2.4, -0.2), (2.4, 0.1), (0, 0.12)], 16, WINDOW)),
            moved(lathe([(2.9, -0.2), (2.9, 0), (2.3, 0.02)], 16, own.stone)),
        ]
    )
    rose = moved(tilted(front, -np.pi / 2), x=-17.1, z=11.5)
    door = turned(pane(0, 2.6, 2.6, 5.2, WOOD, out=17.1), -np.pi / 2)
    return merged([*parts, rose, door, moved(box(1.6, 5, 14, own.stone), x=-16.6)])


def stone_circle(own: Character) -> Mesh:
    """Standing stones with lintels, some fallen, around an altar."""
    rough = Paint(own.stone[0] * 0.75, own.stone[1] * 0.78, own.stone[2] * 0.8, STONE)
    rng = generator("stone circle", own.many, f"{own.slim:.3f}")
    parts = []
    count = 14 + own.many
    for i in range(count):
        angle, high = i * 2 * np.pi / count, 6.2 * own.slim * rng.uniform(0.88, 1.05)
        stone = frustum((1.6, 2.9), (1.2, 2.3), high, rough)
        stone = tilted(stone, rng.uniform(-0.05, 0.05))
        if i % 7 != 3:
            parts.append(turned(moved(stone, x=15), angle))
        else:
            parts.append(turned(moved(tilted(stone, 1.45), x=14, z=0.8), angle))
        if i % 7 in (0, 1, 5):
            lintel = moved(box(1.9, 6.8, 1.3, rough), 14.6, 0, 6.0 * own.slim)
            parts.append(turned(lintel, angle + np.pi / count))
    for i in range(4):
        trilithon = [moved(frustum((2.0, 2.6), (1.6, 2.2), 8.4 * own.slim, rough), y=side * 2.3) for side in (-1, 1)]
        trilithon.append(moved(box(2.3, 7.6, 1.6, rough), z=8.4 * own.slim))
        parts.append(turned(moved(merged(trilithon), x=7), i * np.pi / 2 + 0.4))
    return merged([*parts, box(4, 2, 1, rough)])
