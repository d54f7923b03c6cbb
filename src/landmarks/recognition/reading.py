"""Reading images given as paths, bytes, open files, Pillow images or arrays, prepared as the network takes them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from landmarks.dataset.images import NO_PIXELS, ImageError, decode, pixels_from_pillow
from landmarks.dataset.sources import way_out_of_name
from landmarks.models.preprocessing import Preprocessing, centre_crop, evaluation_image
from landmarks.support.errors import UsageError
from landmarks.support.places import as_given
from landmarks.support.systems import usable_processors

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8]
"""An image: a file's path, its bytes, a file opened in binary mode, a Pillow image, or RGB pixels (H, W, 3)."""

MAX_FILE_BYTES = 256 * 1024**2
"""Larger files are not read, and reported as a problem."""

_TOO_LARGE = f"the file is larger than {MAX_FILE_BYTES >> 20} MB"

BATCHES_AHEAD = 3
"""Batches read ahead: enough to hide a slow image, few enough to use little memory."""

WHOLE_AT_ONCE = 8
"""Largest batch of whole images, which take more memory than cropped ones; only one batch is read ahead then."""

EXPECTED = "a path, bytes, an open file, a Pillow image, a uint8 array (H, W, 3), or a sequence of these"


@dataclass(frozen=True)
class ReadImage:
    """An image as the network takes it, uint8, cropped (S, S, 3) or for an export whole (H, W, 3); or its problem."""

    path: str | None
    pixels: NDArray[np.uint8] | None
    problem: str | None = None


def is_image_like(images: object) -> bool:
    """Return whether `images` is a single image rather than several."""
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray):
        return True
    return _is_open_file(images)


def _is_open_file(image: object) -> bool:
    """Return whether `image` is an open file, which as an iterable would be mistaken for several images."""
    return callable(getattr(image, "read", None))


def as_iterable(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """Return one or several `images` as an iterable; raise `UsageError` when it is neither."""
    if is_image_like(images):
        return [images]  # type: ignore[list-item]
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise _wrong(images)
    return images  # type: ignore[return-value]


def read_ahead(
    images: Iterable[ImageLike], preprocessing: Preprocessing, batch_size: int, *, whole: bool = False
) -> Iterator[list[ReadImage]]:
    """Yield images in batches, in order, while the next ones are read and decoded by threads.

    With `whole` they are decoded but not resized and cropped, and a batch has at most `WHOLE_AT_ONCE` images. Raises
    `UsageError` for an object that is not an image. Images that cannot be read or decoded are yielded with a problem.
    """
    pending: deque[list[Future[ReadImage]]] = deque()
    remaining = iter(images)
    batch_size, ahead = (min(batch_size, WHOLE_AT_ONCE), 1) if whole else (batch_size, BATCHES_AHEAD)
    with ThreadPoolExecutor(min(16, usable_processors()), thread_name_prefix="images") as pool:
        while batch_images := list(islice(remaining, batch_size)):
            sources = [_thread_safe(image) for image in batch_images]
            pending.append([pool.submit(_read, source, preprocessing, whole) for source in sources])
            if len(pending) > ahead:
                yield [future.result() for future in pending.popleft()]
        for batch in pending:
            yield [future.result() for future in batch]


_Source: TypeAlias = Path | bytes | NDArray[np.uint8] | ImageError


def _thread_safe(image: object) -> _Source:
    """Return an image in a form that any thread can read; Pillow images, which load lazily, become arrays."""
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        if isinstance(path, str):
            return Path(path)
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        try:
            return pixels_from_pillow(image)
        except ImageError as error:
            return error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image if image.size else ImageError(NO_PIXELS)
    if _is_open_file(image):
        return _bytes_of_open_file(image)
    raise _wrong(image)


def _bytes_of_open_file(image: Any) -> _Source:
    """Return all bytes of an open file, from its beginning as Pillow does."""
    try:
        if callable(getattr(image, "seekable", None)) and image.seekable():
            image.seek(0)
        data = image.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        return ImageError(f"it cannot be read ({getattr(error, 'strerror', None) or error})")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise _wrong(image)  # opened as text
    return bytes(data) if len(data) <= MAX_FILE_BYTES else ImageError(_TOO_LARGE)


def _read(image: _Source, preprocessing: Preprocessing, whole: bool) -> ReadImage:
    path = as_given(image) if isinstance(image, Path) else None
    try:
        return ReadImage(path, _prepared(image, preprocessing, whole))
    except ImageError as error:
        return ReadImage(path, None, str(error))
    except FileNotFoundError:
        return ReadImage(path, None, str(ImageError("there is no such file", way_out=way_out_of_name(str(path)))))
    except OSError as error:
        return ReadImage(path, None, f"it cannot be read ({error.strerror})")


def _prepared(image: _Source, preprocessing: Preprocessing, whole: bool) -> NDArray[np.uint8]:
    if isinstance(image, ImageError):
        raise image
    if isinstance(image, np.ndarray):
        return image if whole else centre_crop(image, preprocessing)
    if isinstance(image, Path):
        image = _bytes_of(image)
    return decode(image, min_side=preprocessing.shorter) if whole else evaluation_image(image, preprocessing)


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(_TOO_LARGE)
        return path.read_bytes()
    except ValueError as error:  # no file can have a name with a null character
        raise ImageError(f"it cannot be read ({error})") from error


def _wrong(received: object) -> UsageError:
    kind = type(received)
    what = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    if isinstance(received, np.ndarray):
        what = f"a {received.dtype} array {received.shape}"
    return UsageError("that is no image", received=what, expected=EXPECTED)
