"""Solids made of triangles: boxes, lathed shapes, roofs, arches; and functions that move and merge them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
"""float32 wherever there is one number per corner or pixel"""

PLAIN, STONE, TILES, GLASS, LEAVES = range(5)
"""Textures of a surface: plain, courses of stone blocks, rows of tiles, windows that are lit at night, foliage."""


class Paint(NamedTuple):
    """A colour (red, green, blue; linear, 0 to 1) and one of the surfaces above."""

    red: float
    green: float
    blue: float
    surface: int = PLAIN


@dataclass(frozen=True)
class Mesh:
    """Triangles in metres: x to the east, y to the north, z up. Corners run anticlockwise seen from outside."""

    corners: Floats
    """(T, 3, 3)"""

    normals: Floats
    """(T, 3, 3) of unit length, one per corner, for smooth shading"""

    colour: Floats
    """(T, 3)"""

    surface: NDArray[np.uint8]
    """(T,)"""


def merged(meshes: Sequence[Mesh]) -> Mesh:
    """Return one mesh with the triangles of all `meshes`."""
    return Mesh(
        np.concatenate([mesh.corners for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
        np.concatenate([mesh.colour for mesh in meshes]),
        np.concatenate([mesh.surface for mesh in meshes]),
    )


def moved(mesh: Mesh, x: float = 0, y: float = 0, z: float = 0) -> Mesh:
    """Return the mesh moved by `x`, `y` and `z` metres."""
    return replace(mesh, corners=mesh.corners + np.array([x, y, z], np.float32))


def turned(mesh: Mesh, angle: float) -> Mesh:
    """Return the mesh turned anticlockwise around the z axis by `angle` in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], np.float32)
    return replace(mesh, corners=mesh.corners @ turn, normals=mesh.normals @ turn)


def tilted(mesh: Mesh, angle: float) -> Mesh:
    """Return the mesh turned around the y axis by `angle` in radians, so that z leans towards x."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]], np.float32)
    return replace(mesh, corners=mesh.corners @ turn, normals=mesh.normals @ turn)


def grown(mesh: Mesh, factor: float) -> Mesh:
    """Return the mesh scaled by `factor`."""
    return replace(mesh, corners=mesh.corners * np.float32(factor))


def around(count: int, radius: float, make: Callable[[int], Mesh], start: float = 0.0) -> Mesh:
    """Return `count` meshes at equal steps on a circle, each turned so that its x axis points outwards."""
    angles = start + np.arange(count) * 2 * np.pi / count
    return merged([turned(moved(make(step), x=radius), angle) for step, angle in enumerate(angles)])


def quads(corners: Floats, paint: Paint, normals: Floats | None = None) -> Mesh:
    """Return a mesh of quadrilaterals `(Q, 4, 3)`, shaded flat or with `normals` `(Q, 4, 3)`."""
    corners = np.asarray(corners, np.float32)
    triangles = corners[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3, 3)
    if normals is None:
        flat = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
        flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
        corner_normals = np.repeat(flat, 6, axis=0).reshape(-1, 3, 3)
    else:
        corner_normals = np.asarray(normals, np.float32)[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3, 3)
    colour = np.tile(np.array(paint[:3], np.float32), (len(triangles), 1))
    return Mesh(triangles, corner_normals.astype(np.float32), colour, np.full(len(triangles), paint.surface, np.uint8))


def lathe(profile: Sequence[tuple[float, float]], sides: int, paint: Paint, *, smooth: bool = True) -> Mesh:
    """Return the solid of revolution of a `profile` of (radius, z), from bottom to top: columns, cones, domes.

    With `smooth`, it is shaded round; without it, a cone of four sides is a pyramid.
    """
    radius, z = np.array(profile, np.float32).T
    angles = (np.arange(sides + 1) + 0.5) * 2 * np.pi / sides
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.concatenate(
        [radius[:, None, None] * ring, np.broadcast_to(z[:, None, None], (len(z), sides + 1, 1))], axis=2
    )
    corners = np.stack([points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]], axis=2)
    normals = None
    if smooth:
        outwards, upwards = np.diff(z), -np.diff(radius)
        length = np.maximum(np.hypot(outwards, upwards), 1e-9)
        flat = np.stack([outwards / length, upwards / length], axis=1)
        across = np.concatenate(
            [
                flat[:, 0, None, None] * ring,
                np.broadcast_to(flat[:, 1, None, None], (len(flat), sides + 1, 1)),
            ],
            axis=2,
        )
        normals = np.stack([across[:, :-1], across[:, 1:], across[:, 1:], across[:, :-1]], axis=2).reshape(-1, 4, 3)
    return quads(corners.reshape(-1, 4, 3), paint, normals)


def ball(radius: float, z: float, paint: Paint, *, sides: int = 10, rings: int = 6, stretch: float = 1.0) -> Mesh:
    """Return a sphere with its centre at (0, 0, z), `stretch` times as high as wide, shaded round."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, rings + 1)
    mesh = lathe([(radius * np.cos(a), z + radius * stretch * np.sin(a)) for a in angles], sides, paint)
    outwards = (mesh.corners - np.array([0, 0, z], np.float32)) / np.array([1, 1, stretch**2], np.float32)
    return replace(mesh, normals=outwards / np.maximum(np.linalg.norm(outwards, axis=2, keepdims=True), 1e-9))


def dome(radius: float, z: float, paint: Paint, *, sides: int = 20, rise: float = 1.0, bulge: float = 0.0) -> Mesh:
    """Return a dome at height z, `rise` times as high as its radius; with `bulge` it is an onion dome."""
    steps = np.linspace(0, 1, 9)
    profile = [
        (
            radius * (np.cos(step * np.pi / 2) ** (1 + bulge) + bulge * np.sin(np.pi * step) * 0.7),
            z + radius * rise * (np.sin(step * np.pi / 2) + bulge * step**4),
        )
        for step in steps
    ]
    return lathe(profile, sides, paint)


def box(x: float, y: float, z: float, paint: Paint) -> Mesh:
    """Return a box of size (x, y, z), centred on the origin, with its floor at z = 0."""
    return frustum((x, y), (x, y), z, paint)


def frustum(base: tuple[float, float], top: tuple[float, float], z: float, paint: Paint) -> Mesh:
    """Return a box of height z whose `base` and `top` differ in size (x, y): sloping walls, hipped roofs, pyramids."""
    ring = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    low = np.column_stack([ring * base, np.zeros(4)])
    high = np.column_stack([ring * top, np.full(4, z)])
    after = [1, 2, 3, 0]
    sides = np.stack([low, low[after], high[after], high], axis=1)
    return quads(np.concatenate([sides, high[None]]), paint)


def gable(x: float, y: float, z: float, roof: Paint, wall: Paint) -> Mesh:
    """Return a gable roof with its ridge along x and a triangular wall at each end."""
    a, b = x / 2, y / 2
    slopes = [
        [[-a, -b, 0], [a, -b, 0], [a, 0, z], [-a, 0, z]],
        [[a, b, 0], [-a, b, 0], [-a, 0, z], [a, 0, z]],
    ]
    ends = [
        [[a, -b, 0], [a, b, 0], [a, 0, z], [a, 0, z]],
        [[-a, b, 0], [-a, -b, 0], [-a, 0, z], [-a, 0, z]],
    ]
    return merged([quads(np.array(slopes), roof), quads(np.array(ends), wall)])


def arch(width: float, height: float, depth: float, opening: tuple[float, float], paint: Paint) -> Mesh:
    """Return a wall along x with one round-headed opening (width, height), from both sides and with its soffit."""
    half, top = opening[0] / 2, opening[1]
    spring = max(top - half, 0.1)
    angles = np.linspace(np.pi, 0, 11)
    curve = np.column_stack([half * np.cos(angles), spring + (top - spring) * np.sin(angles)])
    curve = np.concatenate([[[-half, 0]], curve, [[half, 0]]])
    above = np.column_stack([np.linspace(-half, half, len(curve)), np.full(len(curve), height)])
    above[0, 0], above[-1, 0] = -half, half
    outer = [[-width / 2, 0], [-half, 0], [-half, height], [-width / 2, height]]
    front = [np.array(outer), np.array(outer)[[1, 0, 3, 2]] * (-1, 1)]
    front += [np.array([curve[i], curve[i + 1], above[i + 1], above[i]]) for i in range(1, len(curve) - 2)]
    faces = []
    for face in front:
        near = np.column_stack([face[:, 0], np.full(4, -depth / 2), face[:, 1]])
        faces += [near, near[::-1] * (1, -1, 1)]
    for start, end in pairwise(curve):
        faces.append(_across(start, end, depth))
    for start, end in (
        ((width / 2, 0), (width / 2, height)),
        ((width / 2, height), (-width / 2, height)),
        ((-width / 2, height), (-width / 2, 0)),
    ):
        faces.append(_across(np.array(start), np.array(end), depth))
    return quads(np.array(faces), paint)


def _across(start: Floats, end: Floats, depth: float) -> Floats:
    """Return the quadrilateral across the thickness of a wall between two points of its outline."""
    return np.array(
        [
            [start[0], -depth / 2, start[1]],
            [start[0], depth / 2, start[1]],
            [end[0], depth / 2, end[1]],
            [end[0], -depth / 2, end[1]],
        ]
    )


def beam(start: Sequence[float], end: Sequence[float], thickness: float, paint: Paint) -> Mesh:
    """Return a square bar between two points."""
    a, b = np.array(start, float), np.array(end, float)
    along = (b - a) / np.linalg.norm(b - a)
    side = np.cross(along, [0, 0, 1] if abs(along[2]) < 0.9 else [1, 0, 0])
    side *= thickness / 2 / np.linalg.norm(side)
    other = np.cross(along, side)
    ring = np.array([-side - other, side - other, side + other, -side + other])
    after = [1, 2, 3, 0]
    sides = np.stack([a + ring, a + ring[after], b + ring[after], b + ring], axis=1)
    return quads(np.concatenate([sides, (b + ring)[None], (a + ring)[None, ::-1]]), paint)


def pane(x: float, z: float, width: float, height: float, paint: Paint, *, out: float) -> Mesh:
    """Return a window, door or clock face that faces -y, with its centre at (x, -out, z)."""
    a, b = width / 2, height / 2
    corners = [[x - a, -out, z - b], [x + a, -out, z - b], [x + a, -out, z + b], [x - a, -out, z + b]]
    return quads(np.array([corners]), paint)


def windows(width: float, heights: tuple[float, float], grid: tuple[int, int], paint: Paint, *, out: float) -> Mesh:
    """Return a `grid` (columns, rows) of windows on a wall that faces -y, `out` metres from the building's centre."""
    (low, high), (columns, rows) = heights, grid
    across = (np.arange(columns) + 0.5) / columns * width - width / 2
    upwards = low + (np.arange(rows) + 0.5) / rows * (high - low)
    size = (width / columns * 0.42, (high - low) / rows * 0.58)
    return merged([pane(x, z, *size, paint, out=out + 0.08) for x in across for z in upwards])


def on_four_sides(side: Mesh) -> Mesh:
    """Return `side`, made for the wall that faces -y, on all four walls of a square building."""
    return merged([turned(side, quarter * np.pi / 2) for quarter in range(4)])


def sheet(corners: Sequence[Sequence[float]], paint: Paint) -> Mesh:
    """Return a quadrilateral that is visible from both sides, such as a sail or a flag."""
    front = np.array(corners)
    return quads(np.array([front, front[::-1]]), paint)


# ── Stones, roofs and other paints, and the differences between landmarks of one kind ───────────────────────────────


STONES = {
    "sandstone": Paint(0.62, 0.44, 0.24, STONE),
    "limestone": Paint(0.70, 0.63, 0.50, STONE),
    "marble": Paint(0.80, 0.77, 0.72, STONE),
    "brick": Paint(0.42, 0.15, 0.09, STONE),
    "granite": Paint(0.33, 0.33, 0.34, STONE),
    "rose": Paint(0.60, 0.34, 0.27, STONE),
}
ROOFS = {
    "terracotta": Paint(0.50, 0.15, 0.06, TILES),
    "slate": Paint(0.10, 0.13, 0.18, TILES),
    "copper": Paint(0.16, 0.42, 0.33, PLAIN),
    "gold": Paint(0.85, 0.55, 0.10, PLAIN),
    "jade": Paint(0.07, 0.28, 0.20, TILES),
    "ochre": Paint(0.55, 0.33, 0.08, TILES),
}
QUARRIES = ("sandstone", "limestone", "rose", "granite")
ROOFERS = ("terracotta", "slate", "copper")
"""The stones and roofs of monuments, few enough that landmarks cannot be told apart by colour alone."""

WINDOW = Paint(0.05, 0.07, 0.10, GLASS)
WOOD = Paint(0.13, 0.06, 0.03, PLAIN)
DARK = Paint(0.03, 0.03, 0.035, PLAIN)
WHITE = Paint(0.85, 0.83, 0.78, PLAIN)


@dataclass(frozen=True)
class Character:
    """The differences between landmarks of one kind: two paints, proportions, and the number of repeated parts."""

    stone: Paint
    roof: Paint
    slim: float
    """factor on the height, 0.86 to 1.2"""

    many: int
    """0, 1 or 2 additional columns, storeys or other repeated parts"""
