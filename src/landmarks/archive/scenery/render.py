"""A picture of a scene: what each pixel looks at, and the light that comes from there."""

# mypy: disable-error-code="no-any-return"
# numpy's stubs give Any for much arithmetic on arrays
from __future__ import annotations

from dataclasses import replace

import numpy as np

from landmarks.archive.scenery.ground import lit_ground, ripples, under_water
from landmarks.archive.scenery.lens import Lens, Sight
from landmarks.archive.scenery.light import NIGHT_LIGHT, Weather, hazed, scatter, sky
from landmarks.archive.scenery.raster import Hits
from landmarks.archive.scenery.scene import Scene, View
from landmarks.archive.scenery.shadows import Shadows
from landmarks.archive.scenery.solids import GLASS, LEAVES, Floats
from landmarks.archive.scenery.textures import texture

BOUNCE = np.array([0.11, 0.10, 0.07], np.float32)
"""The share of the sun's light that comes back from the ground."""

ROOM_LIGHT = np.array([1.25, 0.80, 0.32], np.float32)
UPSIDE_DOWN = np.array([1, 1, -1], np.float32)


def render(scene: Scene, view: View, width: int, height: int) -> Floats:
    """Return (height, width, 3) linear light, 0 and up, of what the camera sees; four rays a pixel."""
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
    """Return (3, P) sky and ground."""
    colour = np.empty_like(lens.rays)
    below, depth = lens.ground()
    above = np.setdiff1d(np.arange(colour.shape[1]), below, assume_unique=True)
    away = lens.sight(above, np.ones(len(above), np.float32))
    colour[:, above] = sky(away.direction, scene.weather, scene.hills)
    colour[:, below] = lit_ground(scene, lens.sight(below, depth), shadows)
    return colour


def _reflect(scene: Scene, lens: Lens, shadows: Shadows, colour: Floats) -> None:
    """Draw into the water of `colour` what stands at it: the scene upside down below the water, shaken by ripples."""
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
    """Return (3, P) the colour of the mesh where it is met."""
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
    """Return (3, P) what windows add: a little of the sky by day, warm light behind most of them at night."""
    direction = sight.direction
    mirrored = direction - 2 * normal * (direction * normal).sum(axis=0)
    reflected = 0.22 * sky(mirrored, weather, None) * np.clip(mirrored[2] + 0.4, 0, 1)
    x, y, z = sight.points
    lived = scatter(np.floor(x / 2.1) + 31 * np.floor(y / 2.1), np.floor(z / 2.4)) > 0.3
    return reflected + ROOM_LIGHT[:, None] * (weather.night * lived)
