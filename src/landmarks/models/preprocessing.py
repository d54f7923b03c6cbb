"""How an image becomes a network's input: one record, from timm's description of the pretrained weights.

Training, evaluation, prediction and exports apply it alike. Nothing here needs torch.
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
    """What the evaluation image is: resized, cut from the middle, scaled to 0..1, minus `mean`, over `std`."""

    image_size: int
    """Side in pixels of the square that the network sees."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    crop: float = 1.0
    """Share of the resized image's shorter side that the square keeps, 1 at most."""

    @property
    def shorter(self) -> int:
        """Return the pixels of the resized image's shorter side, from whose middle the square is cut."""
        return round(self.image_size / self.crop)

    def record(self) -> dict[str, Any]:
        """Return this as a JSON object, which `from_record` reads back."""
        return asdict(self)


def from_record(record: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that `Preprocessing.record` wrote."""
    return Preprocessing(
        image_size=int(record["image_size"]),
        mean=_triple(record["mean"]),
        std=_triple(record["std"]),
        interpolation=str(record["interpolation"]),
        crop=float(record["crop"]),
    )


def from_pretrained(pretrained: Mapping[str, Any], image_size: int | None = None) -> Preprocessing:
    """Return the preprocessing that timm's record `pretrained` states, at `image_size` pixels instead of its own.

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
        crop=min(1.0, float(pretrained["crop_pct"])),  # timm fills a border around images for a few networks
    )


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def evaluation_image(data: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the (S, S, 3) image that evaluation sees of an image's bytes.

    The shorter side is resized to `round(image_size / crop)` and the centre cropped, in one resampling; a JPEG is
    decoded at the smallest scale that still has so many pixels.
    """
    return centre_crop(decode(data, min_side=preprocessing.shorter), preprocessing)


def centre_crop(pixels_of_one: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the (S, S, 3) image that evaluation sees of decoded pixels (H, W, 3)."""
    size = preprocessing.image_size
    shorter = round(size / preprocessing.crop)
    height, width = pixels_of_one.shape[:2]
    side = size * min(width, height) / shorter
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return resize(pixels_of_one, size, size, box, interpolation=preprocessing.interpolation)


def as_normalised(squares: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return squares uint8 (N, S, S, 3) as a network takes them, float32 (N, 3, S, S): by mean and deviation."""
    mean, std = (np.float32(255) * np.asarray(of, dtype=np.float32) for of in (preprocessing.mean, preprocessing.std))
    return np.ascontiguousarray(((squares.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2))
