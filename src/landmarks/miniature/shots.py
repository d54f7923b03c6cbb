"""The shots of the miniature: scenes with landmarks and without, and where the camera stands in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from landmarks.miniature.camera import camera_of, develop, format_of
from landmarks.miniature.monuments import Monument, monument
from landmarks.miniature.render import render_scene
from landmarks.miniature.scene import Ground, Scene, View, Weather, house, lamp_post, person, tower_block, tree
from landmarks.miniature.solids import (
    LEAVES,
    STONES,
    WOOD,
    Floats,
    Mesh,
    Paint,
    ball,
    box,
    lathe,
    merged,
    moved,
    turned,
)
from landmarks.support.seeds import generator

# ── Scenes without a landmark: streets, woods, the sea, people, a table with fruit ─────────────────────────────────


def scene_without_landmark(
    weather: Weather, stand: np.random.Generator, hand: np.random.Generator
) -> tuple[Scene, View]:
    """Return a scene without any landmark and a view of it, slightly shaken by `hand`."""
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
        merged(parts),
        Ground("paving"),
        View((-20.0, float(rng.uniform(-2, 2)), 1.7), target, float(rng.uniform(0.7, 1.1))),
    )


def _wood(rng: np.random.Generator) -> tuple[Mesh, Ground, View]:
    """Trees, and trees behind them."""
    places = rng.uniform((-4, -26), (55, 26), (int(rng.integers(14, 34)), 2))
    parts = [moved(tree(rng), *place) for place in places]
    around = str(rng.choice(["grass", "grass", "snow"]))
    return (
        merged(parts),
        Ground(around),
        View((-16.0, 0.0, 1.7), (20.0, float(rng.normal(0, 4)), 3.5), float(rng.uniform(0.7, 1.2))),
    )


def _shore(rng: np.random.Generator) -> tuple[Mesh, Ground, View]:
    """The sea with a sailing boat, and people who look at it."""
    hull = Paint(*rng.uniform(0.05, 0.7, 3))
    boat = [moved(turned(box(7, 2.2, 1.1, hull), 0.3)), lathe([(0.1, 1), (0.08, 8)], 6, WOOD)]
    boat.append(moved(turned(lathe([(2.4, 0), (0, 6)], 3, Paint(0.8, 0.78, 0.7), smooth=False), 0.6), z=1.6))
    parts = [moved(merged(boat), *rng.uniform((35, -16), (80, 16)))]
    parts += [moved(person(rng), *rng.uniform((-6, -5), (12, 5))) for _ in range(rng.integers(1, 4))]
    ground = Ground("sand", water="sea", shore=14.0)
    return (
        merged(parts),
        ground,
        View(
            (-14.0, 0.0, 2.2), (40.0, float(rng.normal(0, 10)), float(rng.uniform(0, 8))), float(rng.uniform(0.7, 1.3))
        ),
    )


def _crowd(rng: np.random.Generator) -> tuple[Mesh, Ground, View]:
    """People near the camera, with trees or a house far behind."""
    parts = [moved(person(rng), *rng.uniform((-2.5, -2.2), (7, 2.2))) for _ in range(rng.integers(1, 10))]
    parts += [moved(tree(rng), *rng.uniform((25, -25), (45, 25))) for _ in range(rng.integers(1, 6))]
    if rng.random() < 0.5:
        parts.append(moved(house(rng), 40, float(rng.uniform(-15, 15))))
    around = str(rng.choice(["grass", "paving", "sand"]))
    return (
        merged(parts),
        Ground(around),
        View((-6.5, 0.0, 1.6), (10.0, float(rng.normal(0, 0.6)), 1.45), float(rng.uniform(0.8, 1.5))),
    )


def _suburb(rng: np.random.Generator) -> tuple[Mesh, Ground, View]:
    """Blocks of flats behind trees."""
    parts = [moved(tower_block(rng), *rng.uniform((30, -40), (80, 40))) for _ in range(rng.integers(2, 5))]
    parts += [moved(tree(rng), *rng.uniform((-5, -20), (25, 20))) for _ in range(rng.integers(2, 7))]
    return (
        merged(parts),
        Ground("grass"),
        View((-28.0, 0.0, 1.7), (40.0, float(rng.normal(0, 8)), 12.0), float(rng.uniform(0.6, 1.0))),
    )


def _table(rng: np.random.Generator) -> tuple[Mesh, Ground, View]:
    """A stone table with fruit and a vase, in a garden."""
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
    return merged(parts), Ground("grass"), View(position, (0.0, 0.0, 0.95), float(rng.uniform(0.9, 1.3)))


def _lone_tree(rng: np.random.Generator) -> tuple[Mesh, Ground, View]:
    """One tree in a wide field, perhaps with a house and a walker."""
    parts = [moved(tree(rng), float(rng.uniform(0, 12)), float(rng.uniform(-5, 5)))]
    if rng.random() < 0.6:
        parts.append(moved(turned(house(rng), float(rng.uniform(0, 6.28))), *rng.uniform((20, -18), (40, 18))))
    if rng.random() < 0.6:
        parts.append(moved(person(rng), *rng.uniform((-9, -3), (4, 3))))
    around = str(rng.choice(["grass", "sand", "snow", "grass"]))
    return (
        merged(parts),
        Ground(around),
        View((-17.0, 0.0, 1.7), (8.0, float(rng.normal(0, 3)), float(rng.uniform(2, 5))), float(rng.uniform(0.7, 1.4))),
    )


# ── Scenes of landmarks: the place, the hour and weather of a visit, the standpoint and the framing ────────────────


@dataclass(frozen=True)
class Shot:
    """One image to render; random draws are keyed by its fields, so that the order of rendering does not matter."""

    id: str
    seed: int
    author: str
    visit: str
    """the author's visit: images of one visit have the same hour and weather"""

    stand: str
    """the author's standpoint: images of a burst have the same, and the same passers-by"""

    landmarks: tuple[tuple[str, int], ...]
    """(kind, number) of the monument, and of a second one behind it; empty for a scene without a landmark"""

    size: int
    """pixels of the longer side"""


@dataclass(frozen=True)
class Season:
    """A season: factors on the red, green and blue of leaves and grass; with `snow`, grass is covered by it."""

    leaves: tuple[float, float, float]
    grass: tuple[float, float, float]
    snow: bool = False

    def apply(self, scene: Scene) -> Scene:
        """Return the scene in this season."""
        leaves = scene.mesh.surface == LEAVES
        tinted = np.where(leaves[:, None], scene.mesh.colour * np.array(self.leaves, np.float32), scene.mesh.colour)
        around = "snow" if self.snow and scene.ground.around == "grass" else scene.ground.around
        grass = self.grass if around == "grass" else (1.0, 1.0, 1.0)
        ground = replace(scene.ground, around=around, tint=scene.ground.tint * np.array(grass, np.float32))
        return replace(scene, mesh=replace(scene.mesh, colour=tinted), ground=ground)


SEASONS = (
    Season(leaves=(1.1, 1.15, 0.9), grass=(1.0, 1.1, 0.9)),
    Season(leaves=(0.9, 0.95, 0.9), grass=(1.5, 1.12, 0.95)),
    Season(leaves=(2.7, 0.95, 0.7), grass=(1.35, 0.95, 0.8)),
    Season(leaves=(2.2, 1.9, 4.0), grass=(1.0, 1.0, 1.0), snow=True),
)


@dataclass(frozen=True)
class Place:
    """A monument with its permanent surroundings."""

    monument: Monument
    mesh: Mesh
    trees: tuple[tuple[float, float, Mesh], ...]
    houses: tuple[tuple[float, float, Mesh], ...]
    """(x, y, mesh); those that would block the view are left out of an image"""

    ground: Ground
    hills: Floats | None
    front: float


def render_shot(shot: Shot) -> bytes:
    """Return the image as the bytes of a JPEG."""
    camera = camera_of(shot.author, shot.seed)
    visit = generator(shot.seed, "visit", shot.visit)
    weather, season = weather_of(visit), SEASONS[visit.choice(len(SEASONS), p=[0.3, 0.34, 0.2, 0.16])]
    stand = generator(shot.seed, "stand", shot.stand)
    hand = generator(shot.seed, "hand", shot.id)
    width, height = format_of(camera, shot.size, stand)
    if shot.landmarks:
        scene, view = _at_a_landmark(shot, weather, (stand, hand), (width / shot.size, height / shot.size))
    else:
        scene, view = scene_without_landmark(weather, stand, hand)
    return develop(render_scene(season.apply(scene), view, width, height), camera, hand)


def weather_of(rng: np.random.Generator) -> Weather:
    """Return the weather at a random hour: mostly in daylight, sometimes at sunset or by night."""
    hour = float(np.clip(rng.normal(13.2, 3.2), 5.6, 20.3)) if rng.random() > 0.17 else float(rng.uniform(19.4, 21.6))
    angle = np.pi * (hour - 5.5) / 15
    return Weather(
        sun_azimuth=float(-angle),
        sun_elevation=float(62 * np.sin(angle)),
        clouds=float(rng.choice([0.12, 0.35, 0.5, 0.65, 1.0], p=[0.26, 0.26, 0.2, 0.16, 0.12]) * rng.uniform(0.8, 1.0)),
        haze=float(rng.choice([0.04, 0.09, 0.28], p=[0.6, 0.32, 0.08])),
        drift=float(rng.uniform(0, 512)),
    )


@lru_cache(maxsize=64)
def build_place(kind: str, number: int, seed: int) -> Place:
    """Build a landmark with its permanent surroundings; a landmark always gets the same."""
    rng = generator("place", kind, number, seed)
    built = monument(kind, number, seed)
    radius = built.radius
    ground = Ground(
        str(rng.choice(["grass", "grass", "grass", "paving"])),
        paved_radius=radius * float(rng.choice([0.0, 1.15, 1.5])),
        water="river" if kind == "arch bridge" else "sea" if built.water else "",
        shore=radius * (0.42 if kind == "arch bridge" else 0.75),
        turn=_turn_of_bridge(built) if kind == "arch bridge" else float(rng.uniform(0, 2 * np.pi)),
        tint=float(rng.uniform(0.8, 1.15)),
    )
    trees = tuple(
        (*_beside(rng.uniform(0, 2 * np.pi), radius * rng.uniform(1.15, 2.6) + 4, 0.0), tree(rng))
        for _ in range(int(rng.integers(3, 8)))
    )
    houses = tuple(
        (*_beside(rng.uniform(0, 2 * np.pi), radius * rng.uniform(2.4, 3.4) + 14, 0.0), house(rng))
        for _ in range(int(rng.choice([0, 0, 0, 2, 3, 5])))
    )
    fixed = [built.mesh]
    if rng.random() < 0.5:
        lamps = [(radius * 1.2 + 2.5, a) for a in np.arange(6) * np.pi / 3]
        fixed += [moved(lamp_post(), d * np.cos(a), d * np.sin(a)) for d, a in lamps]
    hills = rng.uniform(0, 2 * np.pi, 8) if rng.random() < 0.8 else None
    return Place(built, merged(fixed), trees, houses, ground, hills, front=float(rng.uniform(0, 2 * np.pi)))


def _turn_of_bridge(built: Monument) -> float:
    """Return the direction across a bridge's river, along the bridge, in radians."""
    flat = built.mesh.corners[..., :2].reshape(-1, 2)
    farthest = flat[np.argmax(np.hypot(flat[:, 0], flat[:, 1]))]
    return float(np.arctan2(farthest[1], farthest[0]))


def _at_a_landmark(
    shot: Shot, weather: Weather, draws: tuple[np.random.Generator, np.random.Generator], shape: tuple[float, float]
) -> tuple[Scene, View]:
    """Return the scene of a landmark and a view from somewhere around it.

    `draws` are the random generators of the standpoint and of the camera shake, `shape` the image's width and height,
    the longer one 1.
    """
    stand, hand = draws
    place = build_place(*shot.landmarks[0], shot.seed)
    built = place.monument
    view, bearing = _standpoint(place, stand, hand, shape)
    x, y, _ = view.position
    meshes = [place.mesh]
    meshes += [moved(mesh, *at) for *at, mesh in place.trees if np.hypot(at[0] - x, at[1] - y) > 9]
    distance = np.hypot(x, y)
    meshes += [
        moved(mesh, *at)
        for *at, mesh in place.houses
        if at[0] * x + at[1] * y < 0.3 * np.hypot(at[0], at[1]) * distance
    ]
    for _ in range(int(stand.choice([0, 1, 2, 4, 7], p=[0.24, 0.2, 0.24, 0.2, 0.12]))):
        share, aside = stand.uniform(0.12, 0.8), stand.normal(0, 0.16) * distance
        share = min(share, 1 - 3.4 / distance)
        meshes.append(
            moved(person(stand), *_beside(bearing, distance * share, aside * (1.1 - share) + hand.normal(0, 0.12)))
        )
    if stand.random() < 0.16:
        near = distance - stand.uniform(8, 13)
        aside = stand.choice([-1, 1]) * stand.uniform(2.4, 5.5)
        meshes.append(moved(tree(stand), *_beside(bearing, near, aside)))
    for kind, number in shot.landmarks[1:]:
        other = monument(kind, number, shot.seed)
        gap = built.radius + other.radius
        aside = float(stand.choice([-1, 1])) * gap * 0.8
        meshes.append(moved(other.mesh, *_beside(bearing, -gap * 0.7, aside)))
    return Scene(merged(meshes), place.ground, weather, place.hills), view


def _beside(bearing: float, along: float, aside: float) -> tuple[float, float]:
    """Return (x, y) of the point `along` metres from the centre towards `bearing` and `aside` metres to the left."""
    return (
        float(along * np.cos(bearing) - aside * np.sin(bearing)),
        float(along * np.sin(bearing) + aside * np.cos(bearing)),
    )


def _standpoint(
    place: Place, stand: np.random.Generator, hand: np.random.Generator, shape: tuple[float, float]
) -> tuple[View, float]:
    """Return a view of the monument from somewhere around it, and the camera's bearing from the monument.

    `shape` are the image's width and height, the longer one 1.
    """
    built = place.monument
    favourite = stand.random() < 0.25
    bearing = place.front + stand.normal(0, 0.5) if favourite else stand.uniform(0, 2 * np.pi)
    bearing = float(bearing + hand.normal(0, 0.012))
    size = max(built.height, 1.5 * built.radius)
    distance = float(built.radius + size * stand.uniform(0.5, 2.6)) * float(1 + hand.normal(0, 0.012))
    eye = 1.7 if stand.random() < 0.8 else float(stand.uniform(6, 0.8 * built.height + 8))
    wide, high = shape
    fills = float(stand.choice([0.45, 0.65, 0.85, 1.15], p=[0.2, 0.35, 0.3, 0.15]) * stand.uniform(0.9, 1.1))
    zoom = fills * distance * min(high / (1.1 * built.height), wide / (1.5 * built.radius))
    zoom = float(np.clip(zoom, 0.5, 2.6))
    # The monument may be anywhere in the image where it has enough room.
    room_aside = max(0.0, distance * wide / (2 * zoom) - 0.8 * built.radius)
    room_up = max(0.0, distance * high / (2 * zoom) - 0.5 * built.height)
    aside = stand.uniform(-0.9, 0.9) * room_aside + stand.normal(0, 0.12) * built.radius + hand.normal(0, 0.02) * size
    up = built.height / 2 + stand.uniform(-0.35, 0.6) * room_up + hand.normal(0, 0.015) * size
    view = View(
        position=(*_beside(bearing, distance, 0.0), eye),
        target=(*_beside(bearing, 0.0, float(aside)), float(up)),
        zoom=zoom,
        roll=float(stand.normal(0, 0.035) + hand.normal(0, 0.006)),
    )
    return view, bearing
