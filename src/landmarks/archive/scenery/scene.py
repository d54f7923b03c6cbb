"""A picture of a scene: rays through pixels, what they meet, the light that falls there and the shadows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landmarks.archive.scenery.light import Weather, noise, scatter, sky
from landmarks.archive.scenery.raster import Hits, rasterise
from landmarks.archive.scenery.solids import GLASS, LEAVES, STONE, TILES, Mesh

Floats = NDArray[np.floating]

SHADOW_PIXELS = 288
NIGHT_LIGHT = np.array([1.0, 0.62, 0.28], np.float32)


@dataclass(frozen=True)
class Ground:
    """What lies under everything: `around` grass, sand, snow or paving; paving near a monument; water beyond a shore."""

    around: str
    paved_radius: float = 0.0
    water: str = ""
    """"river" along x, "sea" beyond `shore`, or nothing"""

    shore: float = 0.0
    turn: float = 0.0
    """direction in which the water lies or flows, in radians"""

    tint: float = 1.0


@dataclass(frozen=True)
class View:
    """Where the camera stands and looks, in metres; `zoom` is the focal length in widths of the longer side."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    zoom: float
    roll: float = 0.0

    def axes(self) -> Floats:
        """Return (3, 3): the unit vectors to the right, down and forward of the picture."""
        forward = np.subtract(self.target, self.position).astype(float)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        return np.array([cos * right + sin * down, cos * down - sin * right, forward])


@dataclass(frozen=True)
class Scene:
    """Everything that is there at one moment."""

    mesh: Mesh
    ground: Ground
    weather: Weather
    hills: Floats | None


def render(scene: Scene, view: View, width: int, height: int) -> Floats:
    """Return (height, width, 3) linear light, 0 and up, of what the camera sees; four rays a pixel."""
    wide, high = 2 * width, 2 * height
    axes, focal = view.axes(), view.zoom * max(wide, high)
    rays = _rays(axes, focal, wide, high)
    shadows = Shadows(scene)
    colour = _background(scene, view, rays, focal, shadows)
    corners = _project(scene.mesh.corners, view, axes, focal, wide, high)
    hits = rasterise(corners, np.ones(corners.shape[:2], np.float32), wide, high)
    if scene.ground.water:
        _reflect(scene, view, rays, colour, focal, (wide, high), shadows)
    seen = rays[:, hits.pixel]
    points = seen / hits.nearness + np.array(view.position, np.float32)[:, None]
    colour[:, hits.pixel] = _surface(scene, points, seen, hits, focal, shadows)
    return colour.reshape(3, height, 2, width, 2).mean(axis=(2, 4)).transpose(1, 2, 0)


def _rays(axes: Floats, focal: float, width: int, height: int) -> Floats:
    """Return (3, P) directions, of length 1 along the camera's forward axis."""
    x = ((np.arange(width) + 0.5 - width / 2) / focal).astype(np.float32)
    y = ((np.arange(height) + 0.5 - height / 2) / focal).astype(np.float32)
    right, down, forward = axes.astype(np.float32)
    rays = forward[:, None, None] + right[:, None, None] * x + down[:, None, None] * y[:, None]
    return np.ascontiguousarray(rays.reshape(3, -1))


def _project(corners: Floats, view: View, axes: Floats, focal: float, width: int, height: int) -> Floats:
    """Return (T, 3, 3) homogeneous picture coordinates."""
    seen = (corners - np.array(view.position, np.float32)) @ axes.T.astype(np.float32)
    depth = seen[..., 2]
    return np.stack(
        [seen[..., 0] * focal + depth * (width / 2), seen[..., 1] * focal + depth * (height / 2), depth], axis=-1
    )


class Shadows:
    """What the sun sees: depths on a square map around the scene, to look up whether a point lies in shade."""

    def __init__(self, scene: Scene) -> None:
        sun = scene.weather.towards_sun.astype(float)
        right = np.cross([0, 0, 1], sun)
        right /= np.linalg.norm(right)
        self.axes = np.array([right, np.cross(sun, right), sun], np.float32)
        corners = scene.mesh.corners @ self.axes.T
        near = np.hypot(scene.mesh.corners[..., 0], scene.mesh.corners[..., 1]).max(axis=1) < 90
        flat = corners[near][..., :2].reshape(-1, 2) if near.any() else np.zeros((1, 2), np.float32)
        self.low = flat.min(axis=0) - 1
        self.scale = np.float32(SHADOW_PIXELS / (np.max(flat.max(axis=0) - self.low) + 1))
        # A picture's y runs downwards.
        place = (corners[..., :2] - self.low) * self.scale
        homogeneous = np.stack([place[..., 0], SHADOW_PIXELS - place[..., 1], np.ones_like(place[..., 0])], axis=-1)
        hits = rasterise(homogeneous, corners[..., 2], SHADOW_PIXELS, SHADOW_PIXELS)
        self.depth = np.full(SHADOW_PIXELS * SHADOW_PIXELS, -np.inf, np.float32)
        self.depth[hits.pixel] = hits.nearness

    def light(self, points: Floats) -> Floats:
        """Return (P,) how much of the sun reaches points (3, P), 0 to 1, soft over two pixels of the map."""
        axes = self.axes
        x = (axes[0, 0] * points[0] + axes[0, 1] * points[1] + axes[0, 2] * points[2] - self.low[0]) * self.scale
        y = (
            SHADOW_PIXELS
            - (axes[1, 0] * points[0] + axes[1, 1] * points[1] + axes[1, 2] * points[2] - self.low[1]) * self.scale
        )
        depth = axes[2, 0] * points[0] + axes[2, 1] * points[1] + axes[2, 2] * points[2]
        depth += np.float32(1.6) / self.scale + np.float32(0.12)
        total = np.zeros(points.shape[1], np.float32)
        for shift_x, shift_y in ((-0.7, -0.2), (0.2, -0.7), (0.7, 0.2), (-0.2, 0.7)):
            i = np.clip(x + np.float32(shift_x), 0, SHADOW_PIXELS - 1).astype(np.int32)
            j = np.clip(y + np.float32(shift_y), 0, SHADOW_PIXELS - 1).astype(np.int32)
            total += self.depth[j * SHADOW_PIXELS + i] <= depth
        return total / 4


def _background(scene: Scene, view: View, rays: Floats, focal: float, shadows: Shadows) -> Floats:
    """Return (3, P) sky and ground."""
    length = np.sqrt(rays[0] ** 2 + rays[1] ** 2 + rays[2] ** 2)
    colour = np.empty_like(rays)
    up = rays[2] >= -1e-3
    above, below = np.flatnonzero(up), np.flatnonzero(~up)
    colour[:, above] = sky(rays[:, above] / length[above], scene.weather, scene.hills)
    if len(below):
        depth = -np.float32(view.position[2]) / rays[2, below]
        points = rays[:, below] * depth + np.array(view.position, np.float32)[:, None]
        colour[:, below] = _ground(scene, points, rays[:, below] / length[below], depth, focal, shadows)
    return colour


def _is_water(ground: Ground, points: Floats) -> NDArray[np.bool_]:
    along = points[0] * np.float32(np.cos(ground.turn)) + points[1] * np.float32(np.sin(ground.turn))
    edge = along + 2.2 * np.sin(points[0] * 0.11 + 1) + 1.7 * np.sin(points[1] * 0.13)
    if ground.water == "river":
        return np.abs(edge) < ground.shore
    return edge > ground.shore


GROUNDS = {
    "grass": ((0.115, 0.20, 0.045), (0.20, 0.23, 0.07)),
    "sand": ((0.52, 0.40, 0.24), (0.62, 0.50, 0.32)),
    "snow": ((0.80, 0.83, 0.88), (0.90, 0.92, 0.95)),
    "paving": ((0.36, 0.33, 0.29), (0.43, 0.40, 0.36)),
}


def _ground(scene: Scene, points: Floats, direction: Floats, depth: Floats, focal: float, shadows: Shadows) -> Floats:
    """Return (3, P) the colour of the ground at points (3, P), lit, shaded and faded into the distance."""
    ground, weather = scene.ground, scene.weather
    x, y = points[0], points[1]
    coarse = noise(x * 1.3, y * 1.3)
    fine = noise(x * 9.0, y * 9.0)
    fading = np.clip(1.2 - depth * (4.0 / focal), 0, 1)
    mixture = np.clip(coarse * 0.75 + (fine - 0.5) * 0.7 * fading + 0.12, 0, 1)
    low, high = (np.array(colour, np.float32)[:, None] for colour in GROUNDS[ground.around])
    colour = (low + (high - low) * mixture) * np.float32(ground.tint)
    if ground.paved_radius > 0 or ground.around == "paving":
        slabs = _paving(x, y, depth, focal) * (0.88 + 0.2 * coarse)
        paved = np.hypot(x, y) < ground.paved_radius + 1.2 * np.sin(np.arctan2(y, x) * 9)
        colour = slabs * np.float32(ground.tint) if ground.around == "paving" else np.where(paved, slabs, colour)
    sun = weather.towards_sun[2] * shadows.light(points)
    light = weather.sun[:, None] * sun + _ambient(weather)[:, None] * 0.92
    night = weather.night * 0.34 * np.exp(-np.hypot(x, y) / 38)
    lit = colour * (light + NIGHT_LIGHT[:, None] * night)
    if ground.water:
        lit = np.where(_is_water(ground, points), _water(scene, points, direction, depth), lit)
    return _hazed(lit, depth, weather)


def _paving(x: Floats, y: Floats, depth: Floats, focal: float) -> Floats:
    """Return (3, P) slabs of 1.5 m with joints that vanish with distance."""
    i, j = np.floor(x / 1.5), np.floor(y / 1.5)
    edge = np.maximum(np.abs(x / 1.5 - i - 0.5), np.abs(y / 1.5 - j - 0.5))
    sharp = np.clip(1.3 - depth * (9.0 / focal), 0, 1)
    tone = 0.38 * (0.9 + 0.2 * scatter(i, j)) * (1 - 0.28 * sharp * (edge > 0.465))
    return np.array([1.05, 0.97, 0.87], np.float32)[:, None] * tone


def _ripples(points: Floats, depth: Floats) -> tuple[Floats, Floats]:
    """Return the slope of the water to the east and to the north."""
    strength = 0.045 / (1 + depth / 160)
    east = (noise(points[0] * 3.1, points[1] * 7.0) - 0.5) * strength
    north = (noise(points[0] * 5.0 + 70, points[1] * 3.3) - 0.5) * strength
    return east, north


def _water(scene: Scene, points: Floats, direction: Floats, depth: Floats) -> Floats:
    """Return (3, P) water: the sky mirrored on ripples, more so at a grazing angle, over a deep colour."""
    east, north = _ripples(points, depth)
    mirrored = np.stack([direction[0] + 2 * east, direction[1] + 2 * north, np.abs(direction[2]) + 0.02])
    mirrored /= np.sqrt((mirrored**2).sum(axis=0))
    share = 0.22 + 0.78 * (1 - np.clip(np.abs(direction[2]), 0, 1)) ** 4
    deep = np.array([0.03, 0.10, 0.12], np.float32)[:, None] * (
        _ambient(scene.weather).mean() + scene.weather.sun.mean() * 0.5
    )
    return deep + (sky(mirrored, scene.weather, scene.hills) - deep) * share * 0.92


def _reflect(
    scene: Scene, view: View, rays: Floats, colour: Floats, focal: float, size: tuple[int, int], shadows: Shadows
) -> None:
    """Draw into the water of `colour` what stands at it: the scene upside down below the water, shaken by ripples."""
    below = np.flatnonzero(rays[2] < -1e-3)
    depth = -np.float32(view.position[2]) / rays[2, below]
    points = rays[:, below] * depth + np.array(view.position, np.float32)[:, None]
    wet = _is_water(scene.ground, points)
    below, depth, points = below[wet], depth[wet], points[:, wet]
    sunken = scene.mesh.corners[:, ::-1] * np.array([1, 1, -1], np.float32)
    corners = _project(sunken, view, view.axes(), focal, *size)
    hits = rasterise(corners, np.ones(corners.shape[:2], np.float32), *size)
    mirrored = np.zeros_like(colour)
    there = np.zeros(colour.shape[1], bool)
    there[hits.pixel] = True
    upright = Hits(hits.pixel, hits.triangle, hits.weights[::-1], hits.nearness)
    flip = np.array([1, 1, -1], np.float32)[:, None]
    meet = rays[:, hits.pixel] / hits.nearness + np.array(view.position, np.float32)[:, None]
    mirrored[:, hits.pixel] = _surface(scene, meet * flip, rays[:, hits.pixel] * flip, upright, focal, shadows)
    east, north = _ripples(points, depth)
    shift = np.round((east + north) * focal * 0.5).astype(np.int64)
    shaken = np.clip(below + shift * size[0], 0, colour.shape[1] - 1)
    seen = there[shaken]
    share = 0.15 + 0.55 * (1 - np.clip(-rays[2, below[seen]], 0, 1)) ** 4
    colour[:, below[seen]] += (mirrored[:, shaken[seen]] - colour[:, below[seen]]) * share


def _ambient(weather: Weather) -> Floats:
    """Return (3,) the light of the whole sky on a surface that looks up."""
    return weather.zenith * 0.62 + weather.horizon * 0.42 + weather.sun * 0.06 + np.float32(0.012)


def _hazed(colour: Floats, depth: Floats, weather: Weather) -> Floats:
    clear = np.exp(depth * np.float32(np.log1p(-weather.haze) / 100))
    return weather.horizon[:, None] * np.float32(0.92) * (1 - clear) + colour * clear


def _surface(scene: Scene, points: Floats, rays: Floats, hits: Hits, focal: float, shadows: Shadows) -> Floats:
    """Return (3, P) the colour of the mesh at points (3, P), where rays (3, P) meet it."""
    mesh, weather, depth = scene.mesh, scene.weather, 1 / hits.nearness
    corner_normals = mesh.normals[hits.triangle]
    normal = np.einsum("pec,ep->cp", corner_normals, hits.weights)
    normal /= np.maximum(np.sqrt((normal**2).sum(axis=0)), 1e-6)
    surface = mesh.surface[hits.triangle]
    colour = _texture(mesh.colour[hits.triangle].T, surface, points, normal, depth, focal)
    sun = weather.towards_sun
    facing = np.clip(normal[0] * sun[0] + normal[1] * sun[1] + normal[2] * sun[2], 0, 1)
    leaves = surface == LEAVES
    facing = np.where(leaves, 0.35 + 0.65 * facing, facing)
    direct = weather.sun[:, None] * (facing * shadows.light(points + normal * np.float32(0.25)))
    ambient = _ambient(weather)[:, None] * (0.62 + 0.38 * normal[2])
    bounce = (
        weather.sun[:, None] * np.array([0.11, 0.10, 0.07], np.float32)[:, None] * np.clip(0.6 - 0.4 * normal[2], 0, 1)
    )
    grounded = 1 - 0.32 * np.exp(-np.clip(points[2], 0, None) / 1.6)
    light = direct + (ambient + bounce) * grounded
    lamps = (
        weather.night
        * (0.16 + 0.85 * np.exp(-np.clip(points[2], 0, None) / 16))
        * (0.45 + 0.55 * (1 - np.abs(normal[2])))
    )
    lamps = lamps * np.exp(-np.hypot(points[0], points[1]) / 60)
    lit = colour * (light + NIGHT_LIGHT[:, None] * lamps)
    glass = np.flatnonzero(surface == GLASS)
    if len(glass):
        lit[:, glass] = _glass(lit[:, glass], points[:, glass], rays[:, glass], normal[:, glass], weather)
    return _hazed(lit, depth, weather)


def _glass(lit: Floats, points: Floats, rays: Floats, normal: Floats, weather: Weather) -> Floats:
    """Return windows: a little of the sky by day, warm light behind most of them at night."""
    direction = rays / np.sqrt((rays**2).sum(axis=0))
    mirrored = direction - 2 * normal * (direction * normal).sum(axis=0)
    lit = lit + 0.22 * sky(mirrored * np.array([1, 1, 0.6], np.float32)[:, None], weather, None) * np.clip(
        mirrored[2] + 0.4, 0, 1
    )
    lived = scatter(np.floor(points[0] / 2.1) + 31 * np.floor(points[1] / 2.1), np.floor(points[2] / 2.4)) > 0.3
    return lit + np.array([1.25, 0.80, 0.32], np.float32)[:, None] * (weather.night * lived)


def _texture(
    colour: Floats, surface: NDArray[np.uint8], points: Floats, normal: Floats, depth: Floats, focal: float
) -> Floats:
    """Return the paint (3, P) with its blocks, tiles or leaves; patterns too fine for the distance fade out."""
    tone = np.ones(len(surface), np.float32)
    fading = np.clip(1.25 - depth * (2.2 / focal), 0.15, 1)
    for kind, pattern in ((STONE, _blocks), (TILES, _tiles), (LEAVES, _leaves)):
        chosen = np.flatnonzero(surface == kind)
        if len(chosen):
            tone[chosen] += (pattern(points[:, chosen], normal[:, chosen]) - 1) * fading[chosen]
    return colour * tone


def _along_wall(points: Floats, normal: Floats) -> Floats:
    """Return (P,) metres along the wall: across its normal, plus the way around where it is round."""
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


def _leaves(points: Floats, normal: Floats) -> Floats:
    clump = noise(points[0] * 19 + points[2] * 11, points[1] * 19 - points[2] * 13)
    return 0.45 + 1.05 * clump
