"""Images between bytes and pixels: decode, size, shrink, encode; sizes are checked before they are allocated.

One decoder serves every room (fetching, caching features, training, prediction), because decoders differ by a few grey
levels. Its name stands in `DECODER`: a dataset records which were at work, and the digest of what can be computed again
from decoded pixels, such as features, holds it.
"""

from __future__ import annotations

import importlib.metadata
import io
import logging
import math
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from landmarks.dataset.beside import Beside, beside_jpeg, beside_pillow, turned_size
from landmarks.dataset.colours import in_rgb, lost_depth, pixels_in_srgb, too_dark
from landmarks.dataset.formats import heif_is_read, is_heif, kind_of_file, large_profile, text_in, without_large_texts
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints what it says of each odd file, bare

MAX_PIXELS = 89_478_485
"""No more pixels come of one image: 256 MB as RGB, Pillow's own limit. Checked before anything is allocated."""

MAX_REDUCED_PIXELS = 500_000_000
"""A JPEG up to this size is decoded at the largest reduced scale that keeps to `MAX_PIXELS`."""

MAX_PROGRESSIVE_PIXELS = 2 * MAX_PIXELS
"""The same for a progressive JPEG, all of whose coefficients are in memory at once, whatever the scale."""

LONGEST_SIDE = 65_500
"""A JPEG has no longer one."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
"""What is decoded; other plugins of Pillow stay shut, because some of them start programs."""

PIXEL_FORM = 3
"""Raised whenever `decode` gives other pixels of the same bytes."""

DECODER = (
    f"simplejpeg {importlib.metadata.version('simplejpeg')}, pillow {importlib.metadata.version('pillow')},"
    f" form {PIXEL_FORM}"
)
"""Name and version of what turns bytes into pixels."""

STORED_FORM = 3
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


_SAVE_OTHERWISE = "save it as JPEG or PNG, of 8 bits"

NO_PIXELS = "an image without pixels"


class ImageError(LandmarksError):
    """Bytes that are no image, a damaged one, or one that claims to be too large."""


def decode(data: bytes, *, min_side: int | None = None) -> np.ndarray[Any, Any]:
    """Decode an image to uint8 `(H, W, 3)` sRGB, upright; with `min_side`, a JPEG at a reduced scale.

    The reduced scale is libjpeg's smallest whose shorter side is still at least `min_side` pixels, or of a JPEG of
    more than `MAX_PIXELS` one that keeps to them. Transparent pixels are shown on white. Raises `ImageError` for
    anything that is not a whole image (a truncated JPEG too), or that claims more than can be decoded safely.
    """
    return _decoded(data, min_side)[0]


def size_of(data: bytes) -> tuple[int, int]:
    """Return `(width, height)` of the upright image in pixels, read from its headers alone where that is possible."""
    size = _jpeg_size(data)
    if size is not None:
        beside = beside_jpeg(data)
        _refuse_large_jpeg(*size, beside)
        return size[::-1] if beside.orientation >= 5 else size
    opened = _open_with_pillow(data)
    _refuse_large(*opened.size)
    try:
        return turned_size(opened, data)
    except Exception as error:  # a strange file can make Pillow's plugins raise anything
        raise ImageError(f"a damaged or truncated image ({error})") from error


def prepare(data: bytes, max_side: int | None) -> tuple[bytes, np.ndarray[Any, Any]]:
    """Return the JPEG to store for an image, and its pixels `(H, W, 3)`; no side is longer than `max_side`.

    A JPEG that is already upright and small enough is kept byte for byte; anything else is encoded anew. The image is
    decoded whole in any case, so that a damaged one is found here.
    """
    longest = min(max_side or LONGEST_SIDE, LONGEST_SIDE)
    width, height = size_of(data)
    if max(width, height) > longest:
        shorter = math.ceil(min(width, height) * longest / max(width, height))
        image = shrink(decode(data, min_side=shorter), longest)
        return encode(image), image
    image, as_it_lies = _decoded(data, None)
    return (data if as_it_lies and image.shape[:2] == (height, width) else encode(image)), image


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


def _decoded(data: bytes, min_side: int | None) -> tuple[np.ndarray[Any, Any], bool]:
    """Return what `decode` does, and whether it is a JPEG that libjpeg-turbo decoded and nothing had to turn."""
    size = _jpeg_size(data)
    if size is not None:
        beside = beside_jpeg(data)
        _refuse_large_jpeg(*size, beside)
        image, whole = _decode_jpeg(data, _least_sides(*size, min_side))
        if image is not None:
            image = _turned(pixels_in_srgb(image, beside.profile), beside.orientation)
            return image, whole and beside.orientation == 1
    return pixels_of_pillow(_open_with_pillow(data)), False


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return `(width, height)` of a JPEG as it lies; None for anything else, and for a rare subsampling."""
    if not _is_jpeg(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):
        return None
    return None if colours in ("CMYK", "YCCK") else (width, height)


def _refuse_large(width: int, height: int, most: int | None = None) -> None:
    most = MAX_PIXELS if most is None else most
    if width * height > most:
        raise ImageError(
            "an image is too large to be decoded safely",
            received=f"{width} × {height} pixels",
            expected=f"at most {most:,} pixels",
            way_out="resize it, or save it as a baseline JPEG, which is decoded at a reduced scale",
        )


def _refuse_large_jpeg(width: int, height: int, beside: Beside) -> None:
    _refuse_large(width, height, MAX_PROGRESSIVE_PIXELS if beside.progressive else MAX_REDUCED_PIXELS)


def _least_sides(width: int, height: int, min_side: int | None) -> tuple[int, int]:
    """Return the least width and height to decode to, 0 for all: as asked, and no more than `MAX_PIXELS`."""
    if width * height <= MAX_PIXELS:
        return min_side or 0, min_side or 0
    scaled = ((math.ceil(width * eighths / 8), math.ceil(height * eighths / 8)) for eighths in range(7, 0, -1))
    most = next(sides for sides in scaled if sides[0] * sides[1] <= MAX_PIXELS)
    return most if min_side is None else (min(most[0], min_side), min(most[1], min_side))


def _decode_jpeg(data: bytes, least: tuple[int, int]) -> tuple[np.ndarray[Any, Any] | None, bool]:
    """Decode with libjpeg-turbo, not yet upright; None when the file is sound but not for this decoder (CMYK, say).

    A file that lacks no more than the mark of its end has all pixels; that it is not whole is returned beside them.
    """
    sides = {"min_width": least[0], "min_height": least[1]}
    ends = data if data.endswith(_JPEG_END) else data.removesuffix(_JPEG_END[:1]) + _JPEG_END
    reason = ""
    for attempt in (data, ends):
        try:
            return np.asarray(simplejpeg.decode_jpeg(attempt, colorspace="RGB", **sides)), attempt is data
        except KeyError:
            return None, True
        except ValueError as error:
            reason = reason or str(error)
            if "remature end of JPEG file" not in str(error):
                break
    # Bytes between two markers harm nothing; every other warning about the data means lost pixels.
    if ("orrupt" in reason or "remature" in reason) and "extraneous" not in reason:
        raise ImageError(f"a damaged or truncated JPEG ({reason})")
    return None, True


_JPEG_END = b"\xff\xd9"


def _open_with_pillow(data: bytes) -> Image.Image:
    formats: tuple[str, ...] = FORMATS
    if is_heif(data):
        if not heif_is_read():
            raise ImageError(
                "not an image that is decoded here: HEIC",
                way_out='pip install "landmarks[heic]", or save it as JPEG',
            )
        formats = ("HEIF",)
    try:
        opened = Image.open(io.BytesIO(without_large_texts(data)), formats=formats)
    except UnidentifiedImageError as error:
        name = kind_of_file(data) or text_in(data)
        what = f"not an image that is decoded here: {name}" if name else "not an image"
        way_out = _SAVE_OTHERWISE if "TIFF" in name else ""
        raise ImageError(what, expected=f"one of {', '.join(FORMATS)}", way_out=way_out) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"an image is too large to be decoded safely ({error})", way_out="resize it") from error
    except Exception as error:  # a strange file can make Pillow's plugins raise anything
        raise ImageError(f"an image whose header cannot be read ({error})") from error
    if (profile := large_profile(data)) is not None:
        opened.info["icc_profile"] = profile
    return opened


def pixels_of_pillow(opened: Image.Image) -> np.ndarray[Any, Any]:
    """Return one of Pillow's images as `decode` returns them: uint8 `(H, W, 3)` sRGB, upright, on white.

    Raises `ImageError` when its pixels cannot be had, or are more than `MAX_PIXELS`.
    """
    if 0 in opened.size:
        raise ImageError(NO_PIXELS)
    _refuse_large(*opened.size)
    tiles = getattr(opened, "tile", ())
    if lost := lost_depth(opened):
        raise ImageError(f"{lost} is not decoded", way_out=_SAVE_OTHERWISE)
    try:
        opened.load()
        dark = any(too_dark(opened, str(tile[3])) for tile in tiles)
        beside = beside_pillow(opened)
        image = np.asarray(in_rgb(opened, beside.profile))
    except Exception as error:
        raise ImageError(f"a damaged or truncated image ({error})") from error
    if dark:
        raise ImageError(
            "an image of 16 bits that uses the darkest of them alone",
            expected="colours up to the brightest",
            way_out="scale it to 8 bits: it would be black",
        )
    return _turned(image, beside.orientation)


def _turned(image: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    if orientation == 1:
        return image
    return np.asarray(Image.fromarray(image).transpose(_UPRIGHT[orientation]))
