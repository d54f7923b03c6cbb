"""Augmentation that leaves a landmark recognisable: which crop to take, its colours, its mirror image.

All draws of a batch are made at once, and an image's depend on (seed, epoch, id) alone. The loader takes the crop;
colours and mirroring are one step for the whole batch on the device that trains. There is no vertical
flip: buildings stand upright. Whether to flip left and right is a choice, since some landmarks are told from others by
their handedness, and all by lettering.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from landmarks.support.seeds import uniforms
from landmarks.training.recipe import Augmentation

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""

TRIES = 10
"""Crops that are drawn until one fits into the image."""

FORM = 2
"""Raised whenever an augmented image of the same recipe, seed, epoch and id becomes another one."""


@dataclass(frozen=True)
class EpochAugmentation:
    """What an epoch draws an augmentation for each image from, and the key of its draws beside an image's id."""

    augmentation: Augmentation
    seed: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class Draws:
    """The augmentation of N images in one epoch."""

    boxes: NDArray[np.float64]  # (N, 4): left, top, right, bottom, as fractions of width and height
    factors: NDArray[np.float32]  # (N, 3): of brightness, contrast, saturation
    flips: NDArray[np.bool_]  # (N,)


@dataclass(frozen=True)
class Look:
    """What is left to do to N cropped images: their colours, and which are mirrored."""

    factors: torch.Tensor  # float32 (N, 3): of brightness, contrast, saturation
    flips: torch.Tensor  # bool (N,)
    boxes: torch.Tensor | None = None  # float32 (N, 4), of the crops in shares; None: they are taken already
    size: int = 0  # side of the crops, in pixels

    def part(self, start: int, end: int) -> Look:
        """Return the look of images `start` to `end`."""
        boxes = None if self.boxes is None else self.boxes[start:end]
        return Look(self.factors[start:end], self.flips[start:end], boxes, self.size)

    def moved(self, device: torch.device) -> Look:
        """Return it on a graphics processor, copied from pinned memory, so that nothing waits for it."""
        boxes = None if self.boxes is None else to_device(self.boxes, device)
        return Look(to_device(self.factors, device), to_device(self.flips, device), boxes, self.size)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy on a graphics processor, made while other things go on: from memory that is pinned first."""
    return tensor.pin_memory().to(device, non_blocking=True)


def draw(
    augment: EpochAugmentation, widths: NDArray[np.integer], heights: NDArray[np.integer], ids: Sequence[str]
) -> Draws:
    """Draw the augmentation of N images of `widths` × `heights` pixels (Szegedy et al. 2015 for the crop)."""
    augmentation = augment.augmentation
    numbers = uniforms((augment.seed, augment.epoch), ids, 2 * TRIES + 6)
    brightness, contrast, saturation, side = numbers[:, 2 * TRIES + 2 :].T
    reaches = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    factors = [1 + reach * (2 * u - 1) for reach, u in zip(reaches, (brightness, contrast, saturation), strict=True)]
    return Draws(
        boxes=_boxes(augmentation, widths.astype(np.float64), heights.astype(np.float64), numbers),
        factors=np.stack(factors, axis=1).astype(np.float32),
        flips=(side < 0.5) & augmentation.flip,
    )


def _boxes(
    augmentation: Augmentation, width: NDArray[np.float64], height: NDArray[np.float64], numbers: NDArray[np.float64]
) -> NDArray[np.float64]:
    tries, (left, top) = numbers[:, : 2 * TRIES], numbers[:, 2 * TRIES : 2 * TRIES + 2].T
    least = augmentation.crop_scale
    areas = (width * height)[:, None] * (least + (1 - least) * tries[:, :TRIES])
    ratios = np.exp(math.log(augmentation.aspect) * (2 * tries[:, TRIES:] - 1))
    across, down = np.sqrt(areas * ratios), np.sqrt(areas / ratios)
    fits = (across <= width[:, None]) & (down <= height[:, None])
    first, row = fits.argmax(axis=1), np.arange(len(fits))
    square = np.minimum(width, height)  # of a panorama in which no such crop fits: the largest square, somewhere
    across = np.where(fits.any(axis=1), across[row, first], square)
    down = np.where(fits.any(axis=1), down[row, first], square)
    left, top = left * (width - across), top * (height - down)
    return np.stack([left / width, top / height, (left + across) / width, (top + down) / height], axis=1)


def augmented(pixels: torch.Tensor, look: Look) -> torch.Tensor:
    """Return uint8 images (N, 3, H, W) with their `look`, as float32 of 0 … 255, not rounded, where they are.

    Brightness is scaled, then saturation, then contrast around the image's mean brightness: saturation mixes a pixel
    with its own luma, contrast with the image's mean luma.
    """
    pixels = _mirrored(pixels, look.flips).float() if look.boxes is None else _cropped(pixels.float(), look)
    factors = look.factors.to(pixels.device, non_blocking=True)[:, :, None, None, None]
    brightness, contrast, saturation = factors.unbind(1)
    luma = pixels[:, 0:1] * LUMA[0] + pixels[:, 1:2] * LUMA[1] + pixels[:, 2:3] * LUMA[2]
    constant = brightness * (1 - contrast) * luma.mean((2, 3), keepdim=True)
    grey = luma.mul_(brightness * contrast * (1 - saturation)).add_(constant)
    return pixels.mul_(brightness * contrast * saturation).add_(grey).clamp_(0, 255)


def _mirrored(pixels: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """Return `pixels` (N, 3, S, S) with the chosen ones mirrored."""
    chosen = flips.to(pixels.device, non_blocking=True)[:, None, None, None]
    return torch.where(chosen, pixels.flip(3), pixels)


def _cropped(pixels: torch.Tensor, look: Look) -> torch.Tensor:
    """Return the crops (N, 3, S, S), mirrored where that was drawn, of images (N, 3, H, W), by bilinear
    interpolation."""
    assert look.boxes is not None
    left, top, right, bottom = look.boxes.unbind(1)
    across = torch.where(look.flips, left - right, right - left)
    zero = torch.zeros_like(left)
    rows = [torch.stack([across, zero, left + right - 1], 1), torch.stack([zero, bottom - top, top + bottom - 1], 1)]
    places = torch.stack(rows, 1).to(pixels.device, non_blocking=True)
    grid = F.affine_grid(places, [len(pixels), 3, look.size, look.size], align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
