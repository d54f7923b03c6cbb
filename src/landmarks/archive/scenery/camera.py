"""Cameras and what they do to light: exposure, colour, blur, grain, JPEG, and the way up that is only noted in EXIF."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from landmarks.archive.scenery.solids import Floats
from landmarks.support.seeds import generator

ASPECTS = ((4, 3), (3, 2), (16, 9), (1, 1))
ORIENTATION_TAG = 0x0112
TURNED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""EXIF orientation → how the stored picture is turned against the upright one."""


@dataclass(frozen=True)
class Camera:
    """One photographer's camera and habits."""

    aspect: tuple[int, int]
    exposure: float
    warmth: float
    saturation: float
    contrast: float
    softness: float
    grain: float
    vignette: float
    quality: int
    notes_orientation: bool
    monochrome: float
    """share of the photographs that are made brown or grey"""


def camera_of(author: str, seed: int) -> Camera:
    """Return the camera of an author; the same author always has the same."""
    rng = generator(seed, "camera", author)
    return Camera(
        aspect=ASPECTS[rng.choice(4, p=[0.5, 0.3, 0.12, 0.08])],
        exposure=float(rng.normal(0, 0.25)),
        warmth=float(rng.normal(0, 0.09)),
        saturation=float(rng.uniform(0.8, 1.3)),
        contrast=float(rng.uniform(0.88, 1.12)),
        softness=float(rng.choice([0.0, 0.0, 0.3, 0.6])),
        grain=float(rng.choice([0.004, 0.008, 0.02])),
        vignette=float(rng.uniform(0, 0.45)),
        quality=int(rng.integers(58, 95)),
        notes_orientation=bool(rng.random() < 0.3),
        monochrome=float(rng.choice([0.0, 0.0, 0.0, 0.25])),
    )


def format_of(camera: Camera, size: int, rng: np.random.Generator) -> tuple[int, int]:
    """Return width and height in pixels, the longer side `size`; now and then upright."""
    short = round(size * camera.aspect[1] / camera.aspect[0])
    return (short, size) if rng.random() < 0.26 else (size, short)


def develop(light: Floats, camera: Camera, rng: np.random.Generator) -> bytes:
    """Return the JPEG that a camera makes of (H, W, 3) linear light."""
    height, width = light.shape[:2]
    mean = max(float(light.mean()), 1e-3)
    gain = 0.31 / mean * min(1.0, mean / 0.14) ** 0.5 * 2 ** float(camera.exposure + rng.normal(0, 0.16))
    warm = np.array([1 + camera.warmth, 1, 1 - camera.warmth], np.float32)
    exposed = light * np.float32(gain) * warm
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    exposed *= (1 - camera.vignette * 0.5 * (x * x + y * y) ** 1.2)[:, :, None]
    shown = _film(exposed * np.float32(0.7)) ** np.float32(1 / 2.2)
    shown = 0.5 + (shown - 0.5) * np.float32(camera.contrast)
    grey = shown @ np.array([0.3, 0.59, 0.11], np.float32)
    saturation = camera.saturation
    if rng.random() < camera.monochrome:
        shown = grey[:, :, None] * np.array(((1.08, 0.98, 0.80), (1, 1, 1))[rng.integers(2)], np.float32)
    else:
        shown = grey[:, :, None] + (shown - grey[:, :, None]) * np.float32(saturation)
    shown = shown + rng.normal(0, camera.grain * (1.6 if mean < 0.15 else 1), shown.shape).astype(np.float32)
    picture = Image.fromarray((np.clip(shown, 0, 1) * 255 + 0.5).astype(np.uint8))
    blur = camera.softness * 0.7 + (float(rng.uniform(0.5, 1.1)) if rng.random() < 0.07 else 0)
    if blur > 0:
        picture = picture.filter(ImageFilter.GaussianBlur(blur))
    return _stored(picture, camera, rng)


def _film(light: Floats) -> Floats:
    """Return light from 0 up as tones from 0 to 1, deep in the shadows and gentle in the highlights.

    Source: Narkowicz, ACES Filmic Tone Mapping Curve, 2015.
    """
    return np.clip(light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14), 0, 1)


def _stored(picture: Image.Image, camera: Camera, rng: np.random.Generator) -> bytes:
    """Return the picture as JPEG; upright ones of some cameras lie on their side, with a note in EXIF."""
    exif = Image.Exif()
    if camera.notes_orientation and picture.height > picture.width:
        orientation = int(rng.choice([6, 6, 8]))
    elif camera.notes_orientation and rng.random() < 0.05:
        orientation = 3
    else:
        orientation = 1
    if orientation != 1:
        picture = picture.transpose(TURNED[orientation])
        exif[ORIENTATION_TAG] = orientation
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=camera.quality, **({"exif": exif} if orientation != 1 else {}))
    return file.getvalue()
