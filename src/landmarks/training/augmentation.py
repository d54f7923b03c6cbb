"""Augmentation that keeps a landmark recognisable: random crop, colours and horizontal flip.

Random numbers are drawn for a whole batch at once; those of an image depend on (seed, epoch, id) alone. The loader
takes the crop; colours and flips are applied to the whole batch on the device that trains. There is no vertical flip:
buildings stand upright. The horizontal flip is optional: it mirrors lettering, and some landmarks are told apart by
which side is which.
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
"""Weights of red, green and blue in the luma of a pixel (ITU-R BT.601)."""

TRIES = 10
"""Crops drawn for each image; the first that fits into the image is taken."""

FORM = 2
"""Increased whenever the same recipe, seed, epoch and id give another augmented image."""


@dataclass(frozen=True)
class EpochAugmentation:
    """The augmentation of an epoch; with an image's id, `seed` and `epoch` are the key of its random numbers."""

    augmentation: Augmentation
    seed: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class AugmentationDraw:
    """The augmentation drawn for N images in one epoch."""

    boxes: NDArray[np.float64]  # (N, 4): left, top, right, bottom, as fractions of width and height
    factors: NDArray[np.float32]  # (N, 3): of brightness, contrast, saturation
    flips: NDArray[np.bool_]  # (N,)


@dataclass(frozen=True)
class DeviceAugmentation:
    """The part of the augmentation of N images that is applied on the device: colours, flips, perhaps crops."""

    factors: torch.Tensor  # float32 (N, 3): of brightness, contrast, saturation
    flips: torch.Tensor  # bool (N,)
    boxes: torch.Tensor | None = None  # float32 (N, 4), of the crops, as fractions; None: already cropped
    size: int = 0  # side of the crops, in pixels

    def part(self, start: int, end: int) -> DeviceAugmentation:
        """Return the augmentation of images `start` to `end`."""
        boxes = None if self.boxes is None else self.boxes[start:end]
        return DeviceAugmentation(self.factors[start:end], self.flips[start:end], boxes, self.size)

    def to_gpu(self, device: torch.device) -> DeviceAugmentation:
        """Return a copy on a GPU; the copy is asynchronous, from pinned memory."""
        boxes = None if self.boxes is None else copy_to_gpu(self.boxes, device)
        return DeviceAugmentation(copy_to_gpu(self.factors, device), copy_to_gpu(self.flips, device), boxes, self.size)


def copy_to_gpu(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return an asynchronous copy of `tensor` on a GPU; its memory is pinned first."""
    return tensor.pin_memory().to(device, non_blocking=True)


def draw_augmentation(
    augment: EpochAugmentation, widths: NDArray[np.integer], heights: NDArray[np.integer], ids: Sequence[str]
) -> AugmentationDraw:
    """Draw the augmentation of N images of `widths` × `heights` pixels; the crop is that of Szegedy et al. 2015."""
    augmentation = augment.augmentation
    numbers = uniforms((augment.seed, augment.epoch), ids, 2 * TRIES + 6)
    *colours, side = numbers[:, 2 * TRIES + 2 :].T
    ranges = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    factors = [1 + extent * (2 * u - 1) for extent, u in zip(ranges, colours, strict=True)]
    return AugmentationDraw(
        boxes=_boxes(augmentation, widths.astype(np.float64), heights.astype(np.float64), numbers),
        factors=np.stack(factors, axis=1).astype(np.float32),
        flips=(side < 0.5) & augmentation.flip,
    )


def _boxes(
    augmentation: Augmentation, width: NDArray[np.float64], height: NDArray[np.float64], numbers: NDArray[np.float64]
) -> NDArray[np.float64]:
    tries, (left, top) = numbers[:, : 2 * TRIES], numbers[:, 2 * TRIES : 2 * TRIES + 2].T
    scale = augmentation.crop_scale
    areas = (width * height)[:, None] * (scale + (1 - scale) * tries[:, :TRIES])
    ratios = np.exp(math.log(augmentation.aspect) * (2 * tries[:, TRIES:] - 1))
    crop_widths, crop_heights = np.sqrt(areas * ratios), np.sqrt(areas / ratios)
    fits = (crop_widths <= width[:, None]) & (crop_heights <= height[:, None])
    first, row = fits.argmax(axis=1), np.arange(len(fits))
    square = np.minimum(width, height)  # of a panorama in which no crop fits, the largest square is taken
    crop_width = np.where(fits.any(axis=1), crop_widths[row, first], square)
    crop_height = np.where(fits.any(axis=1), crop_heights[row, first], square)
    left, top = left * (width - crop_width), top * (height - crop_height)
    return np.stack([left / width, top / height, (left + crop_width) / width, (top + crop_height) / height], axis=1)


def augmented(pixels: torch.Tensor, augmentation: DeviceAugmentation) -> torch.Tensor:
    """Return uint8 images (N, 3, H, W), augmented, as float32 in 0 … 255, not rounded, on their own device.

    Brightness is scaled first, then saturation, then contrast: saturation mixes a pixel with its own luma, contrast
    with the mean luma of the image.
    """
    if augmentation.boxes is None:
        pixels = _mirrored(pixels, augmentation.flips).float()
    else:
        pixels = _cropped(pixels.float(), augmentation.boxes, augmentation)
    factors = augmentation.factors.to(pixels.device, non_blocking=True)[:, :, None, None, None]
    brightness, contrast, saturation = factors.unbind(1)
    luma = pixels[:, 0:1] * LUMA[0] + pixels[:, 1:2] * LUMA[1] + pixels[:, 2:3] * LUMA[2]
    constant = brightness * (1 - contrast) * luma.mean((2, 3), keepdim=True)
    grey = luma.mul_(brightness * contrast * (1 - saturation)).add_(constant)
    return pixels.mul_(brightness * contrast * saturation).add_(grey).clamp_(0, 255)


def _mirrored(pixels: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """Return `pixels` (N, 3, S, S) with the chosen ones mirrored."""
    chosen = flips.to(pixels.device, non_blocking=True)[:, None, None, None]
    return torch.where(chosen, pixels.flip(3), pixels)


def _cropped(pixels: torch.Tensor, boxes: torch.Tensor, augmentation: DeviceAugmentation) -> torch.Tensor:
    """Return the crops (N, 3, S, S) `boxes` of images (N, 3, H, W), bilinear, some of them mirrored."""
    left, top, right, bottom = boxes.unbind(1)
    width = torch.where(augmentation.flips, left - right, right - left)
    zero = torch.zeros_like(left)
    rows = [torch.stack([width, zero, left + right - 1], 1), torch.stack([zero, bottom - top, top + bottom - 1], 1)]
    affine = torch.stack(rows, 1).to(pixels.device, non_blocking=True)
    grid = F.affine_grid(affine, [len(pixels), 3, augmentation.size, augmentation.size], align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
