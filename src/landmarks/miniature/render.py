"""Render a scene: the ground and water, the textures of surfaces, and the light that reaches each pixel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmarks.miniature.camera import Hits, Lens, Shadows, Sight
from landmarks.miniature.scene import NIGHT_LIGHT, Ground, Scene, View, Weather, hazed, noise, scatter, sky
from landmarks.miniature.solids import GLASS, LEAVES, STONE, TILES, Floats

# mypy: disable-error-code="no-any-return"
# numpy's stubs give Any for much arithmetic on arrays


DEEP = np.array([0.03, 0.10, 0.12], np.float32)
GROUNDS = {
    "grass": ((0.115, 0.20, 0.045), (0.20, 0.23, 0.07)),
    "sand": ((0.52, 0.40, 0.24), (0.62, 0.50, 0.32)),
    "snow": ((0.80, 0.83, 0.88), (0.90, 0.92, 0.95)),
    "paving": ((0.36, 0.33, 0.29), (0.43, 0.40, 0.36)),
}


# ── The ground: grass, sand, snow and paving, and water that mirrors the sky ───────────────────────────────────────


def lit_ground(scene: Scene, sight: Sight, shadows: Shadows) -> Floats:
    """Return the colour of the ground, with light, shadows and haze, `(3, P)`."""
    ground, weather = scene.ground, scene.weather
    x, y = sight.points[0], sight.points[1]
    coarse = noise(x * 1.3, y * 1.3)
    near = np.clip(1.2 - sight.pixel * 4, 0, 1)
    mixture = np.clip(coarse * 0.75 + (noise(x * 9.0, y * 9.0) - 0.5) * 0.7 * near + 0.12, 0, 1)
    low, high = (np.array(colour, np.float32)[:, None] for colour in GROUNDS[ground.around])
    colour = low + (high - low) * mixture
    if ground.paved_radius > 0 or ground.around == "paving":
        slabs = _paving(x, y, sight.pixel) * (0.88 + 0.2 * coarse)
        paved = np.hypot(x, y) < ground.paved_radius + 1.2 * np.sin(np.arctan2(y, x) * 9)
        colour = slabs if ground.around == "paving" else np.where(paved, slabs, colour)
    light = weather.sun[:, None] * (weather.towards_sun[2] * shadows.light(sight.points))
    night = weather.night * 0.34 * np.exp(-np.hypot(x, y) / 38)
    light = light + weather.ambient[:, None] * 0.92 + NIGHT_LIGHT[:, None] * night
    lit = colour * np.broadcast_to(np.float32(ground.tint), 3)[:, None] * light
    if ground.water:
        wet = np.flatnonzero(under_water(ground, sight.points))
        lit[:, wet] = _water(scene, sight.of(wet))
    return hazed(lit, sight.depth, weather)


def under_water(ground: Ground, points: Floats) -> NDArray[Any]:
    """Return whether points of the ground are in the river or sea, whose edges are slightly curved, `(P,)`."""
    along = points[0] * np.float32(np.cos(ground.turn)) + points[1] * np.float32(np.sin(ground.turn))
    edge = along + 2.2 * np.sin(points[0] * 0.11 + 1) + 1.7 * np.sin(points[1] * 0.13)
    if ground.water == "river":
        return np.abs(edge) < ground.shore
    return edge > ground.shore


def _paving(x: Floats, y: Floats, pixel: Floats) -> Floats:
    """Return the colour of slabs of 1.5 m, with joints that vanish with distance, `(3, P)`."""
    i, j = np.floor(x / 1.5), np.floor(y / 1.5)
    edge = np.maximum(np.abs(x / 1.5 - i - 0.5), np.abs(y / 1.5 - j - 0.5))
    sharp = np.clip(1.3 - pixel * 9, 0, 1)
    tone = 0.38 * (0.9 + 0.2 * scatter(i, j)) * (1 - 0.28 * sharp * (edge > 0.465))
    return np.array([1.05, 0.97, 0.87], np.float32)[:, None] * tone


def ripples(sight: Sight) -> tuple[Floats, Floats]:
    """Return the slope of the water to the east and to the north, each `(P,)`."""
    x, y, _ = sight.points
    strength = 0.045 / (1 + sight.depth / 160)
    return (noise(x * 3.1, y * 7.0) - 0.5) * strength, (noise(x * 5.0 + 70, y * 3.3) - 0.5) * strength


def _water(scene: Scene, sight: Sight) -> Floats:
    """Return the colour of water, `(3, P)`: the sky mirrored in ripples, most at grazing angles, over a dark one."""
    east, north = ripples(sight)
    x, y, z = sight.direction
    mirrored = np.stack([x + 2 * east, y + 2 * north, np.abs(z) + 0.02])
    mirrored /= np.sqrt((mirrored**2).sum(axis=0))
    share = 0.92 * (0.22 + 0.78 * (1 + z) ** 4)
    weather = scene.weather
    deep = (DEEP * (weather.ambient.mean() + weather.sun.mean() * 0.5))[:, None]
    return deep + (sky(mirrored, weather, scene.hills) - deep) * share


# ── Textures: blocks of stone, rows of tiles, leaves ───────────────────────────────────────────────────────────────


def texture(surface: NDArray[Any], sight: Sight, normal: Floats) -> Floats:
    """Return the brightness of the texture of each `surface`, `(P,)`; it fades where it is too fine to see."""
    tone = np.ones(len(surface), np.float32)
    near = np.clip(1.25 - sight.pixel * 2.2, 0.15, 1)
    for kind, pattern in ((STONE, _blocks), (TILES, _tiles), (LEAVES, _leaves)):
        chosen = np.flatnonzero(surface == kind)
        if len(chosen):
            tone[chosen] += (pattern(sight.points[:, chosen], normal[:, chosen]) - 1) * near[chosen]
    return tone


def _along_wall(points: Floats, normal: Floats) -> Floats:
    """Return the position along a wall in metres, `(P,)`, which also advances around a round one."""
    return points[1] * normal[0] - points[0] * normal[1] + 4 * np.arctan2(normal[1], normal[0])


def _blocks(points: Floats, normal: Floats) -> Floats:
    course = np.floor(points[2] / 0.95)
    along = _along_wall(points, normal) / 1.9 + 0.5 * (course % 2)
    block = np.floor(along)
    joint = (points[2] / 0.95 - course < 0.09) | (along - block < 0.05)
    weathered = noise(points[0] * 4 + points[2] * 2.3, points[1] * 4 - points[2] * 1.7)
    return 0.86 + 0.16 * scatter(course, block) + 0.16 * weathered - 0.2 * joint


def _tiles(points: Floats, normal: Floats) -> Floats:
    row = points[2] / 0.62
    along = _along_wall(points, normal) / 0.7
    return 0.84 + 0.2 * (row - np.floor(row)) + 0.2 * (scatter(np.floor(row), np.floor(along)) - 0.3)


def _leaves(points: Floats, _: Floats) -> Floats:
    clump = noise(points[0] * 19 + points[2] * 11, points[1] * 19 - points[2] * 13)
    return 0.45 + 1.05 * clump


# ── The image of a scene ────────────────────────────────────────────────────────────────────────────────────────────


BOUNCE = np.array([0.11, 0.10, 0.07], np.float32)
"""Share of the sun's light that the ground reflects."""

ROOM_LIGHT = np.array([1.25, 0.80, 0.32], np.float32)
UPSIDE_DOWN = np.array([1, 1, -1], np.float32)


def render_scene(scene: Scene, view: View, width: int, height: int) -> Floats:
    """Return the linear light (0 and up) that the camera receives, `(height, width, 3)`, from four rays per pixel."""
    lens = Lens(view, 2 * width, 2 * height)
    shadows = Shadows(scene)
    colour = _background(scene, lens, shadows)
    if scene.ground.water:
        _reflect(scene, lens, shadows, colour)
    hits = lens.meet(scene.mesh.corners)
    colour[:, hits.pixel] = _surface(scene, lens.sight(hits.pixel, 1 / hits.nearness), hits, shadows)
    rows = colour.reshape(3, height, 2, 2 * width)
    rows = rows[:, :, 0] + rows[:, :, 1]
    return ((rows[:, :, ::2] + rows[:, :, 1::2]) * np.float32(0.25)).transpose(1, 2, 0)


def _background(scene: Scene, lens: Lens, shadows: Shadows) -> Floats:
    """Return the colour of sky and ground, `(3, P)`."""
    colour = np.empty_like(lens.rays)
    below, depth = lens.ground()
    above = np.setdiff1d(np.arange(colour.shape[1]), below, assume_unique=True)
    away = lens.sight(above, np.ones(len(above), np.float32))
    colour[:, above] = sky(away.direction, scene.weather, scene.hills)
    colour[:, below] = lit_ground(scene, lens.sight(below, depth), shadows)
    return colour


def _reflect(scene: Scene, lens: Lens, shadows: Shadows, colour: Floats) -> None:
    """Draw reflections in the water into `colour`: the scene upside down, distorted by ripples."""
    below, depth = lens.ground()
    water = lens.sight(below, depth)
    wet = np.flatnonzero(under_water(scene.ground, water.points))
    below, water = below[wet], water.of(wet)
    hits = lens.meet(scene.mesh.corners[:, ::-1] * UPSIDE_DOWN)
    sunken = lens.sight(hits.pixel, 1 / hits.nearness)
    upright = replace(
        sunken, points=sunken.points * UPSIDE_DOWN[:, None], direction=sunken.direction * UPSIDE_DOWN[:, None]
    )
    mirrored = np.full_like(colour, np.nan)
    mirrored[:, hits.pixel] = _surface(scene, upright, replace(hits, weights=hits.weights[::-1]), shadows)
    rows = np.round(sum(ripples(water)) * np.float32(lens.focal * 0.5)).astype(np.int64)
    shaken = np.clip(below + rows * lens.width, 0, colour.shape[1] - 1)
    seen = np.flatnonzero(~np.isnan(mirrored[0, shaken]))
    share = 0.15 + 0.55 * (1 + water.direction[2, seen]) ** 4
    colour[:, below[seen]] += (mirrored[:, shaken[seen]] - colour[:, below[seen]]) * share


def _surface(scene: Scene, sight: Sight, hits: Hits, shadows: Shadows) -> Floats:
    """Return the colour of the mesh where it is hit, `(3, P)`."""
    mesh, weather, points = scene.mesh, scene.weather, sight.points
    normal = np.einsum("pec,ep->cp", mesh.normals[hits.triangle], hits.weights)
    normal /= np.maximum(np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2), 1e-6)
    surface = mesh.surface[hits.triangle]
    colour = mesh.colour[hits.triangle].T * texture(surface, sight, normal)
    height, up = np.clip(points[2], 0, None), normal[2]
    sun = weather.towards_sun
    facing = np.clip(normal[0] * sun[0] + normal[1] * sun[1] + up * sun[2], 0, 1)
    facing = np.where(surface == LEAVES, 0.35 + 0.65 * facing, facing)
    direct = weather.sun[:, None] * (facing * shadows.light(points + normal * np.float32(0.25)))
    around = weather.ambient[:, None] * (0.62 + 0.38 * up)
    bounced = (weather.sun * BOUNCE)[:, None] * np.clip(0.6 - 0.4 * up, 0, 1)
    open_air = 1 - 0.32 * np.exp(-height / 1.6)
    lamps = (
        (0.16 + 0.85 * np.exp(-height / 16)) * (1 - 0.55 * np.abs(up)) * np.exp(-np.hypot(points[0], points[1]) / 60)
    )
    light = direct + (around + bounced) * open_air + NIGHT_LIGHT[:, None] * (lamps * weather.night)
    lit = colour * light
    glass = np.flatnonzero(surface == GLASS)
    if len(glass):
        lit[:, glass] += _glass(sight.of(glass), normal[:, glass], weather)
    return hazed(lit, sight.depth, weather)


def _glass(sight: Sight, normal: Floats, weather: Weather) -> Floats:
    """Return the light from windows, `(3, P)`: reflected sky by day, and warm light in most of them at night."""
    direction = sight.direction
    mirrored = direction - 2 * normal * (direction * normal).sum(axis=0)
    reflected = 0.22 * sky(mirrored, weather, None) * np.clip(mirrored[2] + 0.4, 0, 1)
    x, y, z = sight.points
    lit = scatter(np.floor(x / 2.1) + 31 * np.floor(y / 2.1), np.floor(z / 2.4)) > 0.3
    return reflected + ROOM_LIGHT[:, None] * (weather.night * lit)
