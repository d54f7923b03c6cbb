"""What there is at one moment: solids, ground, weather, and where a camera stands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from landmarks.archive.scenery.light import Weather
from landmarks.archive.scenery.solids import Floats, Mesh


@dataclass(frozen=True)
class Ground:
    """What lies under everything."""

    around: str
    """grass, sand, snow or paving"""

    paved_radius: float = 0.0
    """metres around a monument that are paved too"""

    water: str = ""
    """"river" along x, "sea" beyond `shore`, or nothing"""

    shore: float = 0.0
    turn: float = 0.0
    """direction in which the water lies or flows, in radians"""

    tint: float | Floats = 1.0
    """factor on the colour, or (3,) factors"""


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
