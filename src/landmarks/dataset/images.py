"""Images between bytes and pixels: decode, size, shrink, encode; sizes are checked before they are allocated.

One decoder serves every room (fetching, caching features, training, prediction), because decoders differ by a few grey
levels. Its name stands in `DECODER`: a dataset records which were at work, and the digest of what can be computed again
from decoded pixels, such as features, holds it.
"""

from __future__ import annotations

import importlib.metadata
import io
import math
import struct
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from landmarks.support.errors import LandmarksError, UsageError, did_you_mean

MAX_PIXELS = 89_478_485
"""An image that claims more is refused before anything is allocated: 256 MB as RGB, Pillow's own limit."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is decoded; other plugins of Pillow stay shut, because some of them start programs."""

DECODER = f"simplejpeg {importlib.metadata.version('simplejpeg')}, pillow {importlib.metadata.version('pillow')}"
"""Name and version of what turns bytes into pixels."""

STORED_FORM = 1
"""Raised whenever `prepare` would store something else of the same image; another decoder's grey levels are not."""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_UPRIGHT = {  # EXIF orientation → what makes the image upright, TIFF 6.0 tag 274
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(LandmarksError):
    """Bytes that are no image, a damaged one, or one that claims to be too large."""


def decode(data: bytes, *, min_side: int | None = None) -> np.ndarray[Any, Any]:
    """Decode an image to uint8 `(H, W, 3)` RGB, upright; with `min_side`, a JPEG at a reduced scale.

    The reduced scale is libjpeg's smallest whose shorter side is still at least `min_side` pixels. Transparent pixels
    are shown on white. Raises `ImageError` for anything that is not a whole image (a truncated JPEG too), or that
    claims more than `MAX_PIXELS`.
    """
    size_of(data)
    image = _decode_jpeg(data, min_side) if _is_jpeg(data) else None
    return _decode_with_pillow(data) if image is None else _turned(image, _jpeg_orientation(data))


def size_of(data: bytes) -> tuple[int, int]:
    """Return `(width, height)` of the upright image in pixels, read from its headers alone."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        orientation = _jpeg_orientation(data)
    except (ValueError, KeyError):  # no JPEG, or one that is subsampled in a rare way
        opened = _open_with_pillow(data)
        width, height = opened.size
        orientation = _pillow_orientation(opened)
    _refuse_large(width, height)
    return (height, width) if orientation >= 5 else (width, height)


def prepare(data: bytes, max_side: int | None) -> tuple[bytes, np.ndarray[Any, Any]]:
    """Return the JPEG to store for an image, and its pixels `(H, W, 3)`; no side is longer than `max_side`.

    A JPEG that is already upright and small enough is kept byte for byte; anything else is encoded anew. The image is
    decoded whole in any case, so that a damaged one is found here.
    """
    width, height = size_of(data)
    fits = max_side is None or max(width, height) <= max_side
    if fits and _is_jpeg(data) and _jpeg_orientation(data) == 1:
        image = _decode_jpeg(data, None)
        if image is not None:
            return data, image
    if fits:
        image = decode(data)
    else:
        assert max_side is not None
        shorter = math.ceil(min(width, height) * max_side / max(width, height))
        image = shrink(decode(data, min_side=shorter), max_side)
    return encode(image), image


def shrink(image: np.ndarray[Any, Any], max_side: int) -> np.ndarray[Any, Any]:
    """Shrink `(H, W, 3)` so that its longer side has `max_side` pixels; a smaller image is returned as it is."""
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer <= max_side:
        return image
    width, height = (max(1, round(side * max_side / longer)) for side in (width, height))
    return resize(image, width, height, interpolation="lanczos")


def resize(
    image: np.ndarray[Any, Any],
    width: int,
    height: int,
    box: tuple[float, float, float, float] | None = None,
    *,
    interpolation: str = "bicubic",
) -> np.ndarray[Any, Any]:
    """Crop `image` to `box` (left, top, right, bottom in pixels) and resize it to `(height, width, 3)`, antialiased."""
    if interpolation not in INTERPOLATIONS:
        raise UsageError(
            f'no interpolation "{interpolation}"',
            expected=", ".join(INTERPOLATIONS),
            way_out=did_you_mean(interpolation, INTERPOLATIONS),
        )
    opened = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(opened.resize((width, height), INTERPOLATIONS[interpolation], box=box))


def encode(image: np.ndarray[Any, Any], quality: int = 92) -> bytes:
    """Encode uint8 `(H, W, 3)` RGB as a JPEG with colours at half resolution."""
    return bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420")
    )


def _is_jpeg(data: bytes) -> bool:
    return data[:3] == b"\xff\xd8\xff"


def _refuse_large(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            "an image is too large to be decoded safely",
            received=f"{width} × {height} pixels",
            expected=f"at most {MAX_PIXELS:,} pixels",
        )


def _decode_jpeg(data: bytes, min_side: int | None) -> np.ndarray[Any, Any] | None:
    """Decode with libjpeg-turbo, not yet upright; None when the file is sound but not for this decoder (CMYK, say)."""
    try:
        return np.asarray(
            simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=min_side or 0, min_width=min_side or 0)
        )
    except KeyError:
        return None
    except ValueError as error:
        reason = str(error)
        # Bytes between two markers harm nothing; every other warning about the data means lost pixels.
        if ("orrupt" in reason or "remature" in reason) and "extraneous" not in reason:
            raise ImageError(f"a damaged or truncated JPEG ({reason})") from error
        return None


def _jpeg_orientation(data: bytes) -> int:
    """Return the EXIF orientation (1 to 8) of a JPEG; 1 where there is none or it cannot be understood."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:  # the image itself begins
            break
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            return _exif_orientation(data[position + 10 : position + 2 + length])
        position += 2 + length
    return 1


def _exif_orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2], "")
    try:
        if not order:
            return 1
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
            if tag == 0x0112 and kind == 3:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def _pillow_orientation(opened: Image.Image) -> int:
    if opened.format == "TIFF":  # Pillow turns these by itself
        return 1
    exif = opened.info.get("exif", b"")
    return _exif_orientation(exif.removeprefix(b"Exif\0\0")) if isinstance(exif, bytes) else 1


def _open_with_pillow(data: bytes) -> Image.Image:
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError("not an image", expected=f"one of {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"an image is too large to be decoded safely ({error})") from error
    except Exception as error:  # a strange file can make Pillow's plugins raise anything
        raise ImageError(f"an image whose header cannot be read ({error})") from error
    return opened


def _decode_with_pillow(data: bytes) -> np.ndarray[Any, Any]:
    return pixels_of_pillow(_open_with_pillow(data))


def pixels_of_pillow(opened: Image.Image) -> np.ndarray[Any, Any]:
    """Return one of Pillow's images as `decode` returns them: uint8 `(H, W, 3)` RGB, upright, on white.

    Raises `ImageError` when its pixels cannot be had, or are more than `MAX_PIXELS`.
    """
    _refuse_large(*opened.size)
    orientation = _pillow_orientation(opened)
    try:
        opened.load()
        if opened.mode.startswith("I;16"):  # Pillow would clip sixteen bits to eight instead of scaling them
            opened = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))
        if opened.has_transparency_data:
            shown = opened.convert("RGBA")
            opened = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
        image = np.asarray(opened.convert("RGB"))
    except Exception as error:
        raise ImageError(f"a damaged or truncated image ({error})") from error
    return _turned(image, orientation)


def _turned(image: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    if orientation == 1:
        return image
    return np.asarray(Image.fromarray(image).transpose(_UPRIGHT[orientation]))
