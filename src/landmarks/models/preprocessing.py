"""How an image becomes a network's input, by timm's description of the pretrained weights.

Training, evaluation, prediction and exports use the same record. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmarks.dataset.images import decode, resize
from landmarks.support.errors import UsageError


@dataclass(frozen=True)
class Preprocessing:
    """The steps to the evaluation image: resize, centre crop, scale to 0..1, subtract `mean`, divide by `std`."""

    image_size: int
    """Side in pixels of the square that the network sees."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    crop: float = 1.0
    """Side of the square relative to the shorter side of the resized image, at most 1."""
    average_flip: bool = False
    """Whether answers come from the mean features of the image and its horizontal flip."""

    @property
    def shorter(self) -> int:
        """The shorter side, in pixels, of the resized image that the square is cropped from."""
        return round(self.image_size / self.crop)

    def record(self) -> dict[str, Any]:
        """Return this as a JSON object, which `from_record` reads back."""
        record = asdict(self)
        if not self.average_flip:  # so that features cached before there was this choice are found again
            del record["average_flip"]
        return record


def from_record(record: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing of a `Preprocessing.record`."""
    return Preprocessing(
        image_size=int(record["image_size"]),
        mean=_triple(record["mean"]),
        std=_triple(record["std"]),
        interpolation=str(record["interpolation"]),
        crop=float(record["crop"]),
        average_flip=bool(record.get("average_flip", False)),
    )


def from_pretrained(pretrained: Mapping[str, Any], image_size: int | None = None) -> Preprocessing:
    """Return the preprocessing of timm's record `pretrained`, at `image_size` pixels instead of its own if given.

    `pretrained` is a `pretrained_cfg` as a mapping: `input_size` (3, H, W), `mean`, `std`, `interpolation`, `crop_pct`.
    """
    size = int(pretrained["input_size"][-1]) if image_size is None else image_size
    if size < 1:
        raise UsageError("the image size must be positive", received=size)
    return Preprocessing(
        image_size=size,
        mean=_triple(pretrained["mean"]),
        std=_triple(pretrained["std"]),
        interpolation=str(pretrained["interpolation"]),
        crop=min(1.0, float(pretrained["crop_pct"])),  # above 1 for a few networks, for which timm pads images
    )


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def evaluation_image(data: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the image (S, S, 3) that evaluation sees, from an encoded image.

    The shorter side is resized to `round(image_size / crop)` and the centre is cropped, in one resampling. A JPEG is
    decoded at the smallest scale that still has that many pixels.
    """
    return centre_crop(decode(data, min_side=preprocessing.shorter), preprocessing)


def centre_crop(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the image (S, S, 3) that evaluation sees, from decoded pixels (H, W, 3)."""
    size = preprocessing.image_size
    height, width = pixels.shape[:2]
    side = size * min(width, height) / preprocessing.shorter
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return resize(pixels, size, size, box, interpolation=preprocessing.interpolation)


def as_normalised(squares: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return uint8 squares (N, S, S, 3) as a network takes them: normalised float32 (N, 3, S, S)."""
    mean, std = (np.float32(255) * np.asarray(of, dtype=np.float32) for of in (preprocessing.mean, preprocessing.std))
    return np.ascontiguousarray(((squares.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2))
