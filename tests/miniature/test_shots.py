"""The made-up world: depth buffer against ray by ray, closed solids, shadows, cameras."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from landmarks.miniature.camera import camera_of, develop, rasterise
from landmarks.miniature.make import NAMES, landmark_name
from landmarks.miniature.monuments import KINDS, monument
from landmarks.miniature.render import render_scene
from landmarks.miniature.scene import Ground, Scene, View, Weather, noise, scatter
from landmarks.miniature.solids import Mesh, Paint, arch, ball, box, frustum, gable, lathe, moved

WHITE = Paint(0.8, 0.8, 0.8)
NOON = Weather(sun_azimuth=0.0, sun_elevation=45.0, clouds=0.0, haze=0.01, drift=0.0)


def nearest_by_ray(corners: np.ndarray, width: int, height: int) -> np.ndarray:
    """One pixel and one triangle after the other (Möller & Trumbore, 1997): which is met first, -1 for none."""
    owner, best = np.full(width * height, -1), np.full(width * height, np.inf)
    for pixel in range(width * height):
        ray = np.array([pixel % width + 0.5, pixel // width + 0.5, 1.0])
        for number, (a, b, c) in enumerate(corners):
            across = np.cross(ray, c - a)
            determinant = (b - a) @ across
            if abs(determinant) < 1e-12 or a @ np.cross(b, c) > 0:
                continue
            u = -a @ across / determinant
            v = ray @ np.cross(-a, b - a) / determinant
            depth = (c - a) @ np.cross(-a, b - a) / determinant
            if u >= 0 and v >= 0 and u + v <= 1 and 0 < depth < best[pixel]:
                owner[pixel], best[pixel] = number, depth
    return owner


@pytest.mark.parametrize("seed", range(4))
def test_the_depth_buffer_sees_what_rays_meet_also_behind_the_camera(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = 12, 9
    depth = rng.uniform(-0.6 if seed % 2 else 0.5, 3, (24, 3, 1))
    corners = np.concatenate([rng.uniform(-6, 18, (24, 3, 2)) * np.abs(depth), depth], axis=2)
    hits = rasterise(corners, np.ones((24, 3)), width, height)
    owner = np.full(width * height, -1)
    owner[hits.pixel] = hits.triangle
    assert (owner == nearest_by_ray(corners, width, height)).all()
    np.testing.assert_allclose(hits.weights.sum(axis=0), 1, atol=1e-4)


def volume(mesh: Mesh) -> float:
    """Volume between a mesh and the ground by the divergence theorem; negative when it is inside out."""
    a, b, c = (mesh.corners[:, i].astype(float) for i in range(3))
    return float((np.cross(b - a, c - a)[:, 2] / 2 * (a + b + c)[:, 2] / 3).sum())


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        (box(2, 3, 4, WHITE), 24),
        (frustum((4, 4), (0, 0), 3, WHITE), 16),
        (gable(5, 4, 3, WHITE, WHITE), 30),
        (arch(6, 5, 2, (2, 3), WHITE), (30 - 2 * 2 - np.pi / 2) * 2),
        (ball(2, 3, WHITE, sides=40, rings=30), 4 / 3 * np.pi * 8),
        (lathe([(1, 0), (0, 3)], 60, WHITE), np.pi),
    ],
)
def test_solids_are_closed_and_look_outwards(mesh: Mesh, expected: float) -> None:
    assert volume(mesh) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_monument_stands_on_the_ground_and_fills_what_it_says(kind: str) -> None:
    for number in range(3):
        built = monument(kind, number, 0)
        corners = built.mesh.corners
        assert np.isfinite(corners).all()
        assert corners[..., 2].min() > -0.5
        assert 5 < built.height < 70
        assert 5 < built.radius < 60
        lengths = np.linalg.norm(built.mesh.normals, axis=2)
        assert ((np.abs(lengths - 1) < 1e-3) | (lengths < 1e-3)).all()


def test_a_box_throws_its_shadow_away_from_the_sun() -> None:
    scene = Scene(box(4, 4, 6, WHITE), Ground("sand"), NOON, None)
    above = View((0.0, -0.1, 40.0), (0.0, 0.0, 0.0), 1.0)
    image = render_scene(scene, above, 80, 80).mean(axis=2)
    sunny, shady = image[40, 40 + 16], image[40, 40 - 8]  # the sun stands in the east, on the right
    assert shady < 0.6 * sunny


def test_water_mirrors_what_stands_at_it() -> None:
    red = Paint(0.8, 0.02, 0.02)
    view = View((0.0, -30.0, 2.0), (0.0, 0.0, 2.0), 1.0)
    ground = Ground("grass", water="sea", shore=-25.0, turn=np.pi / 2)
    with_tower = render_scene(Scene(box(4, 4, 8, red), ground, NOON, None), view, 60, 60)
    without = render_scene(Scene(moved(box(4, 4, 8, red), y=-90), ground, NOON, None), view, 60, 60)
    below = (slice(38, 44), slice(28, 32))
    redness = (with_tower[..., 0] - with_tower[..., 2] - without[..., 0] + without[..., 2])[below]
    assert redness.mean() > 0.03


def test_night_is_darker_than_day_but_windows_are_lit() -> None:
    built = monument("cathedral", 0, 0)
    view = View((60.0, 0.0, 2.0), (0.0, 0.0, 12.0), 1.0)
    night = Weather(sun_azimuth=0.0, sun_elevation=-10.0, clouds=0.0, haze=0.03, drift=0.0)
    day, dark = (render_scene(Scene(built.mesh, Ground("grass"), at, None), view, 64, 48) for at in (NOON, night))
    assert dark.mean() < 0.5 * day.mean()
    assert dark.max() > 0.5


def test_images_that_lie_on_their_side_say_so_in_exif() -> None:
    light = np.tile(np.linspace(0.02, 0.8, 60, dtype=np.float32)[:, None, None], (1, 40, 3))
    cameras = {author: camera_of(author, 0) for author in map(str, range(40))}
    orientations = set()
    for author, camera in cameras.items():
        image = Image.open(io.BytesIO(develop(light, camera, np.random.default_rng(int(author)))))
        orientations.add(image.getexif().get(0x0112, 1))
        upright = np.asarray(ImageOps.exif_transpose(image).convert("L"), float)
        assert upright.shape == (60, 40)
        assert upright[:6].mean() < upright[-6:].mean()
    assert {1, 6} <= orientations


def test_noise_tiles_and_spreads_from_0_to_1() -> None:
    rng = np.random.default_rng(0)
    u, v = rng.uniform(-900, 900, (2, 5000)).astype(np.float32)
    np.testing.assert_allclose(noise(u, v), noise(u + 512, v - 512), atol=2e-3)
    values = noise(u, v)
    assert 0 <= values.min() < 0.1
    assert 0.9 < values.max() <= 1
    scattered = scatter(np.arange(10_000), np.arange(10_000) % 7)
    assert abs(scattered.mean() - 0.5) < 0.02


def test_names_never_repeat_however_many_landmarks_share_a_kind() -> None:
    names = [landmark_name(kind, number) for kind in NAMES for number in range(40)]
    assert len(set(names)) == len(names)
