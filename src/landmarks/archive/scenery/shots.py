"""What a photographer finds and chooses: the place, the hour and weather of a visit, where to stand, how to frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from landmarks.archive.scenery.camera import camera_of, develop, format_of
from landmarks.archive.scenery.light import Weather
from landmarks.archive.scenery.monuments import Monument, monument
from landmarks.archive.scenery.nowhere import nothing_in_particular
from landmarks.archive.scenery.render import render
from landmarks.archive.scenery.scene import Ground, Scene, View
from landmarks.archive.scenery.solids import LEAVES, Floats, Mesh, joined, moved
from landmarks.archive.scenery.surroundings import house, lamp_post, person, tree
from landmarks.support.seeds import generator


@dataclass(frozen=True)
class Shot:
    """One photograph to be taken. Everything about it follows from these keys, whoever takes it and in what order."""

    id: str
    seed: int
    author: str
    visit: str
    """the author's visit: photographs of one visit share the hour and the weather"""

    stand: str
    """where the author stood: photographs of a burst share it, and the passers-by"""

    landmarks: tuple[tuple[str, int], ...]
    """(kind, number) of the monument, and of a second one behind it; empty: nothing in particular"""

    size: int
    """pixels of the longer side"""


@dataclass(frozen=True)
class Season:
    """What a time of the year does to leaves and grass: factors on red, green and blue; winter lays snow."""

    leaves: tuple[float, float, float]
    grass: tuple[float, float, float]
    snow: bool = False

    def over(self, scene: Scene) -> Scene:
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
    """A monument and what always stands around it."""

    monument: Monument
    mesh: Mesh
    trees: tuple[tuple[float, float, Mesh], ...]
    houses: tuple[tuple[float, float, Mesh], ...]
    """(x, y, mesh); those that would stand in a camera's way are left out of its picture"""

    ground: Ground
    hills: Floats | None
    front: float


def take(shot: Shot) -> bytes:
    """Return the photograph as the bytes of a JPEG."""
    camera = camera_of(shot.author, shot.seed)
    visit = generator(shot.seed, "visit", shot.visit)
    weather, season = weather_of(visit), SEASONS[visit.choice(len(SEASONS), p=[0.3, 0.34, 0.2, 0.16])]
    stand = generator(shot.seed, "stand", shot.stand)
    hand = generator(shot.seed, "hand", shot.id)
    width, height = format_of(camera, shot.size, stand)
    if shot.landmarks:
        scene, view = _at_a_landmark(shot, weather, (stand, hand), (width / shot.size, height / shot.size))
    else:
        scene, view = nothing_in_particular(weather, stand, hand)
    return develop(render(season.over(scene), view, width, height), camera, hand)


def weather_of(rng: np.random.Generator) -> Weather:
    """Return the light at a likely hour of a day: most in daylight, some at sunset and by night."""
    hour = float(np.clip(rng.normal(13.2, 3.2), 5.6, 20.3)) if rng.random() > 0.17 else float(rng.uniform(19.4, 21.6))
    course = np.pi * (hour - 5.5) / 15
    return Weather(
        sun_azimuth=float(-course),
        sun_elevation=float(62 * np.sin(course)),
        clouds=float(rng.choice([0.12, 0.35, 0.5, 0.65, 1.0], p=[0.26, 0.26, 0.2, 0.16, 0.12]) * rng.uniform(0.8, 1.0)),
        haze=float(rng.choice([0.04, 0.09, 0.28], p=[0.6, 0.32, 0.08])),
        drift=float(rng.uniform(0, 512)),
    )


@lru_cache(maxsize=64)
def place_of(kind: str, number: int, seed: int) -> Place:
    """Build a landmark and its fixed surroundings."""
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
    return Place(built, joined(fixed), trees, houses, ground, hills, front=float(rng.uniform(0, 2 * np.pi)))


def _turn_of_bridge(built: Monument) -> float:
    """Return the direction in which the water of a bridge's river is narrow: along the bridge."""
    flat = built.mesh.corners[..., :2].reshape(-1, 2)
    farthest = flat[np.argmax(np.hypot(flat[:, 0], flat[:, 1]))]
    return float(np.arctan2(farthest[1], farthest[0]))


def _at_a_landmark(
    shot: Shot, weather: Weather, draws: tuple[np.random.Generator, np.random.Generator], shape: tuple[float, float]
) -> tuple[Scene, View]:
    """Return the scene of a landmark and the view from somewhere around it, a little shaken by the hand."""
    stand, hand = draws
    place = place_of(*shot.landmarks[0], shot.seed)
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
    return Scene(joined(meshes), place.ground, weather, place.hills), view


def _beside(bearing: float, along: float, aside: float) -> tuple[float, float]:
    """Return (x, y) of a point `along` metres from the middle towards `bearing` and `aside` metres to the left."""
    return (
        float(along * np.cos(bearing) - aside * np.sin(bearing)),
        float(along * np.sin(bearing) + aside * np.cos(bearing)),
    )


def _standpoint(
    place: Place, stand: np.random.Generator, hand: np.random.Generator, shape: tuple[float, float]
) -> tuple[View, float]:
    """Return a view from somewhere around the monument that has it in the picture, and the bearing of the camera.

    `shape` are the picture's width and height, the longer one 1.
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
    # The monument stands anywhere in the picture where it still has room.
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
