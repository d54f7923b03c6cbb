"""Unknown images that a run remembers: an image that resembles them is unlikely to show a known landmark.

The winners of the recognition challenge lowered an answer's score by its similarity to images without landmarks (Henkel
& Singer, arXiv:2010.01650). `evaluate --false-acceptance` remembers the unknown images that the threshold is chosen on,
in a separate file beside the gallery. When a run is evaluated on these images, none is compared with itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmarks.support.errors import LandmarksError
from landmarks.support.files import digest_of, written_whole

FILE = "unknown.safetensors"

MAX_IMAGES = 1024
"""Most unknown images that are remembered: 2.6 MB of 1,280 half-precision numbers."""

LEAST_IMAGES = 2
"""Fewest unknown images that are remembered, since each is compared with the others."""


@dataclass(frozen=True)
class UnknownImages:
    """The directions (U, C) of unknown images, and for each a key that identifies it and its dataset."""

    images: NDArray[np.float16]
    keys: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """A digest of the keys."""
        return digest_of(self.keys)

    def places_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each of `keys` among these images (N,), -1 for a key that is not there."""
        places = {key: place for place, key in enumerate(self.keys)}
        return np.array([places.get(key, -1) for key in keys], dtype=np.int64)


def key_of(content_digest: str | None, image_id: str) -> str:
    """Return the key of an image of the dataset with this digest."""
    return f"{content_digest} {image_id}"


def read_unknown(folder: Path, model: str, width: int) -> UnknownImages | None:
    """Return the unknown images, with directions of length `width`, that the run in `folder` remembers.

    None when there are none, or only those of other weights than `model`. Raises `LandmarksError` for a damaged file.
    """
    from safetensors import SafetensorError  # not part of the base install, which needs only the keys
    from safetensors.numpy import load

    path = folder / FILE
    if not path.is_file():
        return None
    try:
        arrays = load(path.read_bytes())
        record: dict[str, Any] = json.loads(bytes(arrays["about"]))
        images, keys = arrays["images"], tuple(map(str, record["keys"]))
        fits = images.dtype == np.float16 and images.shape == (len(keys), width) and len(keys) >= LEAST_IMAGES
        if not fits or not np.isfinite(images).all():
            raise ValueError("what it holds does not fit together")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LandmarksError(f"{path} cannot be read ({error})", way_out="delete it, and choose again") from error
    return UnknownImages(images, keys) if record.get("model") == model else None


def write_unknown(folder: Path, unknown: UnknownImages, model: str) -> None:
    """Write the unknown images of a run atomically."""
    from safetensors.numpy import save_file

    record = json.dumps({"model": model, "keys": unknown.keys}, ensure_ascii=False).encode()
    arrays: dict[str, NDArray[Any]] = {"images": np.ascontiguousarray(unknown.images)}
    arrays["about"] = np.frombuffer(record, dtype=np.uint8)
    with written_whole(folder / FILE) as aside:
        save_file(arrays, aside)
