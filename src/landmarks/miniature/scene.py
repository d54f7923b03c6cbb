"""The parts of a made-up scene: light and weather, the ground, houses, trees, lamps and people."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from landmarks.miniature.solids import (
    DARK,
    GLASS,
    LEAVES,
    ROOFS,
    STONES,
    WHITE,
    WINDOW,
    WOOD,
    Floats,
    Mesh,
    Paint,
    ball,
    box,
    gable,
    grown,
    lathe,
    merged,
    moved,
    on_four_sides,
    pane,
    turned,
    windows,
)
from landmarks.support.seeds import generator

# mypy: disable-error-code="no-any-return"
# numpy's stubs give Any for much arithmetic on arrays


NIGHT_LIGHT = np.array([1.0, 0.62, 0.28], np.float32)
"""Colour of floodlights and street lamps."""

AZIMUTHS = 4096
"""Steps around the horizon at which the height of hills is computed."""

_ELEVATION = (-14.0, -5.0, 0.0, 7.0, 22.0, 65.0)
_ZENITH = (
    (0.008, 0.012, 0.04),
    (0.03, 0.05, 0.16),
    (0.13, 0.20, 0.42),
    (0.17, 0.32, 0.66),
    (0.14, 0.34, 0.80),
    (0.11, 0.32, 0.86),
)
_HORIZON = (
    (0.02, 0.03, 0.07),
    (0.20, 0.15, 0.22),
    (0.85, 0.46, 0.26),
    (0.86, 0.70, 0.50),
    (0.66, 0.77, 0.88),
    (0.62, 0.78, 0.94),
)
_SUN = (
    (0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0),
    (0.75, 0.26, 0.08),
    (1.55, 0.86, 0.42),
    (1.75, 1.45, 1.08),
    (1.85, 1.72, 1.50),
)


@dataclass(frozen=True)
class Weather:
    """Sun, clouds and haze: `sun_azimuth` in radians from east, `sun_elevation` in degrees above the horizon."""

    sun_azimuth: float
    sun_elevation: float
    clouds: float
    """0 none … 1 overcast"""

    haze: float
    """share of an object's colour that the air replaces over 100 m"""

    drift: float
    """metres that the clouds have moved"""

    @property
    def towards_sun(self) -> Floats:
        """(3,) unit vector; a sun below the horizon, whose light is black anyway, is raised to the horizon."""
        up = np.radians(max(self.sun_elevation, 1.5))
        flat = np.cos(up)
        return np.array([flat * np.cos(self.sun_azimuth), flat * np.sin(self.sun_azimuth), np.sin(up)], np.float32)

    @property
    def sun(self) -> Floats:
        """(3,) the sun's light through the clouds."""
        return self._at(_SUN) * np.float32(1 - 0.9 * self.clouds**2)

    @property
    def zenith(self) -> Floats:
        """(3,) the sky overhead."""
        return self._greyed(self._at(_ZENITH))

    @property
    def horizon(self) -> Floats:
        """(3,) the sky near the horizon, into which distant objects fade."""
        return self._greyed(self._at(_HORIZON))

    @property
    def night(self) -> float:
        """From 0 by day to 1 at night, when lamps and windows are lit."""
        return float(np.clip((3.0 - self.sun_elevation) / 7.0, 0, 1))

    @property
    def ambient(self) -> Floats:
        """(3,) the light of the whole sky on a surface that faces up."""
        return self.zenith * 0.62 + self.horizon * 0.42 + self.sun * 0.06 + np.float32(0.012)

    def _at(self, colours: tuple[tuple[float, float, float], ...]) -> Floats:
        table = np.array(colours)
        return np.array([np.interp(self.sun_elevation, _ELEVATION, table[:, c]) for c in range(3)], np.float32)

    def _greyed(self, colour: Floats) -> Floats:
        grey = colour.mean() * np.array([0.98, 1.0, 1.03], np.float32)
        return colour + (grey * (0.95 - 0.1 * self.clouds) - colour) * np.float32(self.clouds**1.5 * 0.9)


@lru_cache(maxsize=1)
def clouds_texture() -> Floats:
    """Return smooth noise of several octaves, from 0 to 1, that tiles, `(512, 512)`."""
    rng = generator("noise")
    total = np.zeros((512, 512), np.float32)
    for octave, weight in ((4, 0.42), (8, 0.27), (16, 0.17), (32, 0.1), (64, 0.06), (128, 0.04)):
        total += weight * _smooth(rng.random((octave, octave), np.float32), 512)
    ranks = total.ravel().argsort(kind="stable").argsort(kind="stable")
    return (ranks.reshape(512, 512) / np.float32(512 * 512)).astype(np.float32)


def _smooth(grid: Floats, size: int) -> Floats:
    """Return the grid enlarged to `size`, with smooth interpolation and wrapped edges."""
    position = np.arange(size) / size * len(grid)
    cell = position.astype(int)
    blend = (position - cell).astype(np.float32)
    blend = blend * blend * (3 - 2 * blend)
    after = (cell + 1) % len(grid)
    rows = grid[cell] * (1 - blend)[:, None] + grid[after] * blend[:, None]
    return rows[:, cell] * (1 - blend) + rows[:, after] * blend


def noise(u: Floats, v: Floats) -> Floats:
    """Return the cloud texture at (u, v) in texels, interpolated bilinearly."""
    texture = clouds_texture()
    low_u, low_v = np.floor(u), np.floor(v)
    blend_u, blend_v = (u - low_u).astype(np.float32), (v - low_v).astype(np.float32)
    i, j = low_u.astype(np.int32) & 511, low_v.astype(np.int32) & 511
    k, m = (i + 1) & 511, (j + 1) & 511
    top = texture[i, j] + (texture[i, m] - texture[i, j]) * blend_v
    low = texture[k, j] + (texture[k, m] - texture[k, j]) * blend_v
    return top + (low - top) * blend_u


def sky(direction: Floats, weather: Weather, hills: Floats | None) -> Floats:
    """Return the colour of the sky, `(3, P)`, in unit directions `(3, P)`, with clouds, sun, stars and distant hills.

    `hills` are the phases `(8,)` that shape the ridges, or None for no hills.
    """
    height = direction[2]
    up = np.clip(height, 0, 1)
    share = (1 - up) ** 4 * 0.86 + 0.07
    colour = weather.zenith[:, None] + (weather.horizon - weather.zenith)[:, None] * share
    sun = weather.towards_sun
    towards = np.clip(direction[0] * sun[0] + direction[1] * sun[1] + height * sun[2], 0, 1)
    glow = weather.sun[:, None] * (0.28 * towards**10 + 0.5 * towards**90)
    colour = (
        colour + glow + weather.sun[:, None] * (6.0 * np.clip((towards - 0.9991) / 0.0004, 0, 1)) * (1 - weather.clouds)
    )
    if weather.clouds > 0.03:
        colour = _clouded(colour, direction, weather, towards)
    if weather.night > 0.7:
        place = direction * 190
        star = scatter(np.floor(place[0]), np.floor(place[1]) + 57 * np.floor(place[2])) > 0.9965
        colour = colour + star * (0.55 * weather.night * (1 - weather.clouds) * np.clip(height * 4, 0, 1))
    if hills is not None:
        colour = _hilly(colour, direction, weather, hills)
    return colour.astype(np.float32)


def _clouded(colour: Floats, direction: Floats, weather: Weather, towards: Floats) -> Floats:
    """Return the sky with a layer of clouds, brighter where they are thin and towards the sun."""
    distance = 1 / (np.clip(direction[2], 0, 1) + 0.09)
    u = direction[0] * distance * 34 + weather.drift
    v = direction[1] * distance * 34 + weather.drift * 0.4
    thick = noise(u, v) * 0.72 + noise(u * 2.7 + 90, v * 2.7) * 0.28
    cover = np.clip((thick - (0.86 - 0.95 * weather.clouds)) * 3.6, 0, 1)
    cover = cover * cover * (3 - 2 * cover) * np.clip(direction[2] * 9, 0, 1)
    lit = (
        weather.horizon[:, None] * 0.5
        + weather.sun[:, None] * (0.34 + 0.3 * towards**6)
        + weather.zenith[:, None] * 0.25
    )
    shade = 1.12 - 0.55 * np.clip((thick - 0.5) * 1.6, 0, 1)
    return colour + (lit * shade - colour) * cover


def _hilly(colour: Floats, direction: Floats, weather: Weather, hills: Floats) -> Floats:
    """Return the sky with two ranges of hills in front, the farther one paler."""
    place = (np.arctan2(direction[1], direction[0]) * np.float32(AZIMUTHS / (2 * np.pi))).astype(np.int32) % AZIMUTHS
    for ridge, fade in zip(_ridges(hills), (0.72, 0.5), strict=True):
        cover = np.clip((ridge[place] - direction[2]) * np.float32(320), 0, 1)
        wood = np.array([0.10, 0.15, 0.10], np.float32) * (weather.zenith.mean() + 0.5 * weather.sun.mean() + 0.1)
        far = (weather.horizon * 0.82 + weather.zenith * 0.12) * fade + wood * (1 - fade)
        covered = np.flatnonzero(cover)
        colour[:, covered] += (far[:, None] - colour[:, covered]) * cover[covered]
    return colour


def _ridges(hills: Floats) -> Floats:
    """Return the height of the farther and the nearer hills as the sine of their elevation, `(2, AZIMUTHS)`."""
    azimuth = np.arange(AZIMUTHS) * 2 * np.pi / AZIMUTHS
    waves = [
        0.55 + 0.3 * np.sin(azimuth * 2 + a) + 0.22 * np.sin(azimuth * 5 + b) + 0.1 * np.sin(azimuth * 13 + c)
        for a, b, c, _ in hills.reshape(2, 4)
    ]
    edges = [0.006 * np.sin(azimuth * 47 + d) for d in hills.reshape(2, 4)[:, 3]]
    return (np.array([[0.075], [0.035]]) * waves + edges).astype(np.float32)


def scatter(i: Floats, j: Floats) -> Floats:
    """Return pseudo-random numbers from 0 to 1 that depend only on the integers (i, j), `(P,)`."""
    hashed = i.astype(np.int64) * 374761393 + j.astype(np.int64) * 668265263
    hashed = (hashed ^ (hashed >> 13)) * 1274126177
    return ((hashed ^ (hashed >> 16)) & 0xFFFF).astype(np.float32) / np.float32(65535)


def hazed(colour: Floats, depth: Floats, weather: Weather) -> Floats:
    """Return a colour seen through haze, `(3, P)`, at a `depth` in metres, `(P,)`."""
    clear = np.exp(depth * np.float32(np.log1p(-weather.haze) / 100))
    return weather.horizon[:, None] * np.float32(0.92) * (1 - clear) + colour * clear


# ── A scene: solids, ground and weather; and the view of a camera ───────────────────────────────────────────────────


@dataclass(frozen=True)
class Ground:
    """The ground, with the water on it."""

    around: str
    """grass, sand, snow or paving"""

    paved_radius: float = 0.0
    """metres around a monument that are paved too"""

    water: str = ""
    """"river" along x, "sea" beyond `shore`, or nothing"""

    shore: float = 0.0
    turn: float = 0.0
    """direction towards the sea, or across the river, in radians"""

    tint: float | Floats = 1.0
    """factor on the colour, or (3,) factors"""


@dataclass(frozen=True)
class View:
    """The camera's position and target in metres; `zoom` is the focal length in units of the image's longer side."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    zoom: float
    roll: float = 0.0

    def axes(self) -> Floats:
        """Return the unit vectors that point right, down and forward in the image, `(3, 3)`."""
        forward = np.subtract(self.target, self.position).astype(float)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        return np.array([cos * right + sin * down, cos * down - sin * right, forward])


@dataclass(frozen=True)
class Scene:
    """Everything that an image can show; `hills` as in `sky`."""

    mesh: Mesh
    ground: Ground
    weather: Weather
    hills: Floats | None


# ── Around a landmark and in front of it: trees, houses, lamp posts, passers-by ─────────────────────────────────────


GREENS = (
    Paint(0.10, 0.20, 0.04, LEAVES),
    Paint(0.16, 0.25, 0.05, LEAVES),
    Paint(0.06, 0.15, 0.06, LEAVES),
    Paint(0.38, 0.22, 0.04, LEAVES),
    Paint(0.48, 0.20, 0.22, LEAVES),
)
"""Two greens of summer, pines, autumn, cherry blossom."""

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
        mesh = merged([trunk, *(rough(blob, 0.2, rng) for blob in crown)])
    elif kind == 1:
        mesh = merged(
            [trunk, *(moved(lathe([(2.3 - 0.5 * i, 0), (0, 3.2)], 9, GREENS[2]), z=1.4 + 1.7 * i) for i in range(4))]
        )
    else:
        mesh = merged([trunk, rough(ball(1.0, 5.0, GREENS[2], sides=8, rings=8, stretch=4.2), 0.08, rng)])
    return turned(grown(mesh, float(rng.uniform(0.8, 1.5))), float(rng.uniform(0, 6.28)))


def rough(mesh: Mesh, amount: float, rng: np.random.Generator) -> Mesh:
    """Return the mesh with its corners shifted by waves of `amount` metres; shared corners stay together."""
    phase = rng.uniform(0, 6.28, 3)
    waves = np.sin(mesh.corners[..., [1, 2, 0]] * 2.9 + phase) + np.sin(mesh.corners[..., [2, 0, 1]] * 5.3 + phase)
    return replace(mesh, corners=(mesh.corners + amount * waves).astype(np.float32))


def person(rng: np.random.Generator) -> Mesh:
    """Return a standing or walking person, 1.5 to 1.9 m tall."""
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
    return turned(grown(merged(parts), float(rng.uniform(0.9, 1.1))), float(rng.uniform(0, 6.28)))


def house(rng: np.random.Generator) -> Mesh:
    """Return an ordinary house."""
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
    return merged(parts)


def lamp_post() -> Mesh:
    """Return a street lamp, which is lit when windows are."""
    lamp = Paint(0.9, 0.8, 0.5, GLASS)
    return merged([lathe([(0.16, 0), (0.07, 0.6), (0.06, 3.8)], 6, DARK), ball(0.28, 4.0, lamp, sides=8, rings=5)])


def tower_block(rng: np.random.Generator) -> Mesh:
    """Return a plain tall block of flats."""
    wall = Paint(*(np.full(3, 0.45) * rng.uniform(0.7, 1.3, 3)))
    side, high = float(rng.uniform(10, 16)), float(rng.uniform(18, 45))
    glazing = on_four_sides(windows(side * 0.95, (1, high - 1), (5, int(high / 3.5)), WINDOW, out=side / 2))
    return merged([box(side, side, high, wall), glazing])
