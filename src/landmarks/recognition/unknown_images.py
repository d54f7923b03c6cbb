"""Images of nothing known that a run remembers: what resembles them is surely no landmark.

The winners of the recognition challenge lowered an answer's score by its similarity to images without landmarks (Henkel
& Singer, arXiv:2010.01650). `evaluate --false-acceptance` remembers the unknown images that the threshold is chosen on,
in a file of their own beside the gallery. While a run is measured, an image is not compared with itself.
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
"""Unknown images that are remembered: 2.6 MB of 1,280 half-precision numbers."""

LEAST_IMAGES = 2
"""Below this none are remembered: each is compared with the others."""


@dataclass(frozen=True)
class UnknownImages:
    """The directions (U, C) of unknown images, and a key for each that says which image of which dataset it is."""

    images: NDArray[np.float16]
    keys: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """Changes with the images."""
        return digest_of(self.keys)

    def places_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Return which of these images each of `keys` is (N,), -1 where none."""
        places = {key: place for place, key in enumerate(self.keys)}
        return np.array([places.get(key, -1) for key in keys], dtype=np.int64)


def key_of(content_digest: str | None, image_id: str) -> str:
    """Return the key of an image in the dataset of that digest."""
    return f"{content_digest} {image_id}"


def read_unknown(folder: Path, model: str, width: int) -> UnknownImages | None:
    """Return the unknown images, of directions of length `width`, that the run in `folder` remembers.

    None when there are none, or those of other weights than `model`; raises `LandmarksError` for a damaged file.
    """
    from safetensors import SafetensorError  # not in the base install, which asks for keys alone
    from safetensors.numpy import load

    path = folder / FILE
    if not path.is_file():
        return None
    try:
        kept = load(path.read_bytes())
        about: dict[str, Any] = json.loads(bytes(kept["about"]))
        images, keys = kept["images"], tuple(map(str, about["keys"]))
        fits = images.dtype == np.float16 and images.shape == (len(keys), width) and len(keys) >= LEAST_IMAGES
        if not fits or not np.isfinite(images).all():
            raise ValueError("what it holds does not fit together")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LandmarksError(f"{path} cannot be read ({error})", way_out="delete it, and choose again") from error
    return UnknownImages(images, keys) if about.get("model") == model else None


def write_unknown(folder: Path, unknown: UnknownImages, model: str) -> None:
    """Write the unknown images of a run, whole or not at all."""
    from safetensors.numpy import save_file

    about = json.dumps({"model": model, "keys": unknown.keys}, ensure_ascii=False).encode()
    kept: dict[str, NDArray[Any]] = {"images": np.ascontiguousarray(unknown.images)}
    kept["about"] = np.frombuffer(about, dtype=np.uint8)
    with written_whole(folder / FILE) as aside:
        save_file(kept, aside)
