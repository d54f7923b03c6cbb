"""How a photograph becomes a network's input: one record, taken from timm's description of the pretrained weights.

`training.photos` applies it, for training, evaluation and prediction alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from landmarks.support.errors import UsageError


@dataclass(frozen=True)
class Preprocessing:
    """What the evaluation picture is: resized, cut from the middle, scaled to 0..1, minus `mean`, over `std`."""

    image_size: int
    """Side in pixels of the square that the network sees."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    crop: float = 1.0
    """Share of the resized picture's shorter side that the square keeps, 1 at most."""

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
        crop=min(1.0, float(pretrained["crop_pct"])),  # timm fills a border around pictures for a few networks
    )


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
