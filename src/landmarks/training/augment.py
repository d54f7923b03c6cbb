"""Augmentation that leaves a landmark recognisable: which crop to take, its colours, its mirror image.

A photograph's draw depends on (seed, epoch, id) alone. There is no vertical flip: buildings stand upright. Whether to
flip left and right is a choice, since some landmarks are told from others by their handedness, and all by lettering.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landmarks.training.recipe import Augmentation

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


@dataclass(frozen=True)
class Draw:
    """One photograph's augmentation in one epoch."""

    box: tuple[float, float, float, float]  # left, top, right, bottom, as fractions of width and height
    colour: NDArray[np.float32]  # (3, 4): a pixel's new red, green and blue are colour @ (red, green, blue, mean)
    flip: bool


def draw(augmentation: Augmentation, width: int, height: int, random: np.random.Generator) -> Draw:
    """Draw the augmentation of a photograph of `width` × `height` pixels (Szegedy et al. 2015 for the crop)."""
    box = _crop(augmentation, width, height, random)
    brightness, contrast, saturation = (
        float(random.uniform(1 - reach, 1 + reach))
        for reach in (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    )
    return Draw(
        box=box,
        colour=colour_matrix(brightness, contrast, saturation),
        flip=bool(augmentation.flip and random.random() < 0.5),
    )


def _crop(
    augmentation: Augmentation, width: int, height: int, random: np.random.Generator
) -> tuple[float, float, float, float]:
    reach = math.log(augmentation.aspect)
    for _ in range(10):
        area = width * height * random.uniform(augmentation.smallest_crop, 1.0)
        ratio = math.exp(random.uniform(-reach, reach))
        crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if crop_width <= width and crop_height <= height:
            break
    else:  # a panorama in which no such crop fits: the largest square, somewhere
        crop_width = crop_height = min(width, height)
    left = random.uniform(0, width - crop_width)
    top = random.uniform(0, height - crop_height)
    return left / width, top / height, (left + crop_width) / width, (top + crop_height) / height


def colour_matrix(brightness: float, contrast: float, saturation: float) -> NDArray[np.float32]:
    """Return the (3, 4) matrix that scales brightness, then saturation, then contrast around the mean brightness.

    Saturation mixes a pixel with its own luma; contrast mixes it with the picture's mean luma, the fourth input.
    """
    mixed = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * LUMA[None, :]
    matrix = np.empty((3, 4), dtype=np.float32)
    matrix[:, :3] = brightness * contrast * mixed
    matrix[:, 3] = brightness * (1 - contrast)
    return matrix


def recolour(image: NDArray[np.uint8], colour: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Apply a `colour_matrix` to a picture (H, W, 3); values are rounded and kept within 0 … 255."""
    pixels = image.reshape(-1, 3).astype(np.float32)
    constant = colour[:, 3] * float(pixels.mean(axis=0) @ LUMA) + 0.5
    pixels = pixels @ colour[:, :3].T + constant
    return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8).reshape(image.shape)
