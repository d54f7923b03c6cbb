"""What the sun sees, to know which points lie in shade."""

from __future__ import annotations

import numpy as np

from landmarks.archive.scenery.raster import rasterise
from landmarks.archive.scenery.scene import Scene
from landmarks.archive.scenery.solids import Floats

SHADOW_PIXELS = 288


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
