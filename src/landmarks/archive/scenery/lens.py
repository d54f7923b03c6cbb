"""From the camera to the world and back: rays through pixels, and where on the picture a point falls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmarks.archive.scenery.raster import Hits, rasterise
from landmarks.archive.scenery.scene import View
from landmarks.archive.scenery.solids import Floats


@dataclass(frozen=True)
class Sight:
    """What some pixels look at."""

    points: Floats
    """(3, P) in metres"""

    direction: Floats
    """(3, P) of unit length, from the camera"""

    depth: Floats
    """(P,) metres along the camera's axis"""

    pixel: Floats
    """(P,) how many metres a pixel covers there; patterns finer than that are not drawn"""

    def of(self, chosen: NDArray[Any]) -> Sight:
        """Return the sight of some of the pixels."""
        return Sight(self.points[:, chosen], self.direction[:, chosen], self.depth[chosen], self.pixel[chosen])


class Lens:
    """A view and the size of its picture in pixels."""

    def __init__(self, view: View, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.focal = view.zoom * max(width, height)
        self.axes = view.axes().astype(np.float32)
        self.position = np.array(view.position, np.float32)
        x = ((np.arange(width) + 0.5 - width / 2) / self.focal).astype(np.float32)
        y = ((np.arange(height) + 0.5 - height / 2) / self.focal).astype(np.float32)
        right, down, forward = self.axes
        rays = forward[:, None, None] + right[:, None, None] * x + down[:, None, None] * y[:, None]
        self.rays = np.ascontiguousarray(rays.reshape(3, -1))
        """(3, P) of length 1 along the camera's axis"""

    def meet(self, corners: Floats) -> Hits:
        """Return which of the triangles (T, 3, 3) each pixel sees."""
        seen = (corners - self.position) @ self.axes.T
        depth = seen[..., 2]
        x = seen[..., 0] * self.focal + depth * (self.width / 2)
        y = seen[..., 1] * self.focal + depth * (self.height / 2)
        return rasterise(np.stack([x, y, depth], axis=-1), np.ones_like(depth), self.width, self.height)

    def sight(self, pixels: NDArray[Any], depth: Floats) -> Sight:
        """Return what `pixels` look at, when they look as far as `depth`."""
        rays = self.rays[:, pixels]
        direction = rays / np.sqrt(rays[0] ** 2 + rays[1] ** 2 + rays[2] ** 2)
        return Sight(rays * depth + self.position[:, None], direction, depth, depth / np.float32(self.focal))

    def ground(self) -> tuple[NDArray[Any], Floats]:
        """Return the pixels that look below the horizon, and how far away the ground is there."""
        below = np.flatnonzero(self.rays[2] < -1e-3)
        return below, -self.position[2] / self.rays[2, below]
