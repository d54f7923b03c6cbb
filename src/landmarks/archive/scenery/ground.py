"""What lies under everything: grass, sand, snow and paving, and water that mirrors the sky."""

# mypy: disable-error-code="no-any-return"
# numpy's stubs give Any for much arithmetic on arrays
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmarks.archive.scenery.lens import Sight
from landmarks.archive.scenery.light import NIGHT_LIGHT, hazed, noise, scatter, sky
from landmarks.archive.scenery.scene import Ground, Scene
from landmarks.archive.scenery.shadows import Shadows
from landmarks.archive.scenery.solids import Floats

DEEP = np.array([0.03, 0.10, 0.12], np.float32)
GROUNDS = {
    "grass": ((0.115, 0.20, 0.045), (0.20, 0.23, 0.07)),
    "sand": ((0.52, 0.40, 0.24), (0.62, 0.50, 0.32)),
    "snow": ((0.80, 0.83, 0.88), (0.90, 0.92, 0.95)),
    "paving": ((0.36, 0.33, 0.29), (0.43, 0.40, 0.36)),
}


def lit_ground(scene: Scene, sight: Sight, shadows: Shadows) -> Floats:
    """Return (3, P) the colour of the ground, lit, shaded and faded into the distance."""
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
    """Return (P,) whether points of the ground lie in the river or in the sea, whose edges wind a little."""
    along = points[0] * np.float32(np.cos(ground.turn)) + points[1] * np.float32(np.sin(ground.turn))
    edge = along + 2.2 * np.sin(points[0] * 0.11 + 1) + 1.7 * np.sin(points[1] * 0.13)
    if ground.water == "river":
        return np.abs(edge) < ground.shore
    return edge > ground.shore


def _paving(x: Floats, y: Floats, pixel: Floats) -> Floats:
    """Return (3, P) slabs of 1.5 m with joints that vanish with distance."""
    i, j = np.floor(x / 1.5), np.floor(y / 1.5)
    edge = np.maximum(np.abs(x / 1.5 - i - 0.5), np.abs(y / 1.5 - j - 0.5))
    sharp = np.clip(1.3 - pixel * 9, 0, 1)
    tone = 0.38 * (0.9 + 0.2 * scatter(i, j)) * (1 - 0.28 * sharp * (edge > 0.465))
    return np.array([1.05, 0.97, 0.87], np.float32)[:, None] * tone


def ripples(sight: Sight) -> tuple[Floats, Floats]:
    """Return the slope of the water to the east and to the north, (P,) each."""
    x, y, _ = sight.points
    strength = 0.045 / (1 + sight.depth / 160)
    return (noise(x * 3.1, y * 7.0) - 0.5) * strength, (noise(x * 5.0 + 70, y * 3.3) - 0.5) * strength


def _water(scene: Scene, sight: Sight) -> Floats:
    """Return (3, P) water: the sky mirrored on ripples, more so at a grazing angle, over a deep colour."""
    east, north = ripples(sight)
    x, y, z = sight.direction
    mirrored = np.stack([x + 2 * east, y + 2 * north, np.abs(z) + 0.02])
    mirrored /= np.sqrt((mirrored**2).sum(axis=0))
    share = 0.92 * (0.22 + 0.78 * (1 + z) ** 4)
    weather = scene.weather
    deep = (DEEP * (weather.ambient.mean() + weather.sun.mean() * 0.5))[:, None]
    return deep + (sky(mirrored, weather, scene.hills) - deep) * share
