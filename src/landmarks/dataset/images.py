"""Decoding, resizing and encoding images; their sizes are checked before memory is allocated.

Everything uses this one decoder (fetching, features, training, prediction), because decoders differ by a few grey
levels. Datasets record its name, `DECODER`, and the digests of what is computed from pixels, such as features, include
it.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import logging
import math
import warnings
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from landmarks.dataset.colours import in_rgb, lost_depth, pixels_in_srgb, too_dark
from landmarks.dataset.formats import (
    ImageMetadata,
    heif_is_read,
    is_heif,
    jpeg_metadata,
    kind_of_file,
    large_profile,
    pillow_metadata,
    scans_in,
    text_in,
    upright_size,
    without_large_texts,
)
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean

# Or Python prints what Pillow says about odd files, which are rejected by name or decoded all the same.
logging.getLogger("PIL").addHandler(logging.NullHandler())
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_PIXELS = 89_478_485
"""An image is decoded to at most this many pixels: 256 MB as RGB, Pillow's own limit."""

MAX_REDUCED_PIXELS = 500_000_000
"""A JPEG of at most this many pixels is decoded, at the largest reduced scale that keeps within `MAX_PIXELS`."""

MAX_PROGRESSIVE_PIXELS = 2 * MAX_PIXELS
"""The same for a progressive JPEG, whose coefficients are all in memory at once, whatever the scale."""

MAX_SCANS = 100
"""The most scans of a JPEG; usual are 1 to 10. Each takes ten bytes in the file, and is a walk over all pixels."""

LONGEST_SIDE = 65_500
"""The format's limit for the sides of a JPEG, in pixels."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
"""The formats that are decoded. Pillow's other plugins are not used, because some of them start programs."""

PIXEL_FORM = 3
"""To be raised whenever `decode` returns other pixels for the same bytes."""

DECODER = (
    f"simplejpeg {importlib.metadata.version('simplejpeg')}, pillow {importlib.metadata.version('pillow')},"
    f" form {PIXEL_FORM}"
)
"""Names and versions of the decoders."""

STORED_FORM = 3
"""To be raised whenever `prepare` returns something else for the same image, other than a decoder's grey levels."""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_TRANSPOSITIONS = {  # EXIF orientation (TIFF 6.0 tag 274) → transposition that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_SAVE_AS = "save it as JPEG or PNG, of 8 bits"

NO_PIXELS = "an image without pixels"


class ImageError(LandmarksError):
    """Bytes are no image, or an image that is damaged or too large."""


def decode(data: bytes, *, min_side: int | None = None) -> np.ndarray[Any, Any]:
    """Decode an image to uint8 `(H, W, 3)` sRGB, upright, with transparent pixels on white.

    With `min_side`, a JPEG is decoded at the smallest of libjpeg's reduced scales whose shorter side still has at least
    `min_side` pixels. A JPEG of more than `MAX_PIXELS` is decoded at a scale that keeps within them.

    Raises `ImageError` for anything that is not an intact image (a truncated JPEG too) or is too large.
    """
    return _decoded(data, min_side)[0]


def size_of(data: bytes) -> tuple[int, int]:
    """Return `(width, height)` of the upright image in pixels, if possible from its headers alone."""
    size = _jpeg_size(data)
    if size is not None:
        metadata = jpeg_metadata(data)
        _require_jpeg_size(*size, metadata)
        return size[::-1] if metadata.orientation >= 5 else size
    opened = _open_with_pillow(data)
    _require_size(*opened.size)
    try:
        return upright_size(opened, data)
    except Exception as error:  # on damaged files Pillow's plugins can raise anything
        raise ImageError(f"a damaged or truncated image ({error})") from error


def holds_several(data: bytes) -> bool:
    """Return whether a file holds further images after the first: the frames of an animation, or pages.

    Pages of reduced resolution and masks in a TIFF (6.0, tag 254) do not count, and neither do previews in a JPEG.
    """
    if _is_jpeg(data):
        return False
    try:
        opened: Any = _open_with_pillow(data)
        if opened.format != "TIFF":
            return bool(getattr(opened, "is_animated", False))
        for page in range(1, _MOST_PAGES):  # `n_frames` would read all, which may be a hundred thousand
            opened.seek(page)
            if not opened.tag_v2.get(254, 0) & 0b101:
                return True
    except Exception:  # there is no further page; what is damaged is rejected where it is decoded
        return False
    return False


_MOST_PAGES = 100


def prepare(data: bytes, max_side: int | None) -> tuple[bytes, np.ndarray[Any, Any]]:
    """Return the JPEG to store for an image, and its pixels `(H, W, 3)`; no side is longer than `max_side`.

    A JPEG that is upright and small enough is kept byte for byte; anything else is encoded again. The image is always
    decoded, so that a damaged one is noticed.
    """
    longest = min(max_side or LONGEST_SIDE, LONGEST_SIDE)
    width, height = size_of(data)
    if max(width, height) > longest:
        shorter = math.ceil(min(width, height) * longest / max(width, height))
        image = shrink(decode(data, min_side=shorter), longest)
        return encode(image), image
    image, unchanged = _decoded(data, None)
    return (data if unchanged and image.shape[:2] == (height, width) else encode(image)), image


def shrink(image: np.ndarray[Any, Any], max_side: int) -> np.ndarray[Any, Any]:
    """Shrink `(H, W, 3)` so that its longer side has `max_side` pixels; a smaller image is returned unchanged."""
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
    """Encode uint8 `(H, W, 3)` RGB as a JPEG with 4:2:0 chroma subsampling."""
    return bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420")
    )


def data_uri(jpeg: bytes) -> str:
    """Return JPEG bytes as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _is_jpeg(data: bytes) -> bool:
    return data[:3] == b"\xff\xd8\xff"


def _decoded(data: bytes, min_side: int | None) -> tuple[np.ndarray[Any, Any], bool]:
    """Return what `decode` returns, and whether it comes from an intact, upright JPEG that libjpeg-turbo decoded."""
    size = _jpeg_size(data)
    _require_few_scans(data)
    if size is not None:
        metadata = jpeg_metadata(data)
        _require_jpeg_size(*size, metadata)
        image, complete = _decode_jpeg(data, _min_sides(*size, min_side))
        if image is not None:
            image = _upright(pixels_in_srgb(image, metadata.profile), metadata.orientation)
            return image, complete and metadata.orientation == 1
    return pixels_from_pillow(_open_with_pillow(data)), False


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return `(width, height)` of a JPEG as stored; None for anything else, for CMYK and for rare subsamplings."""
    if not _is_jpeg(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):
        return None
    return None if colours in ("CMYK", "YCCK") else (width, height)


def _require_size(width: int, height: int, most: int | None = None) -> None:
    most = MAX_PIXELS if most is None else most
    if width * height > most:
        raise ImageError(
            "an image is too large to be decoded safely",
            received=f"{width} × {height} pixels",
            expected=f"at most {most:,} pixels",
            way_out="resize it, or save it as a baseline JPEG, which is decoded at a reduced scale",
        )


def _require_jpeg_size(width: int, height: int, metadata: ImageMetadata) -> None:
    _require_size(width, height, MAX_PROGRESSIVE_PIXELS if metadata.progressive else MAX_REDUCED_PIXELS)


def _require_few_scans(data: bytes) -> None:
    if _is_jpeg(data) and data.count(b"\xff\xda") > MAX_SCANS and scans_in(data, MAX_SCANS) > MAX_SCANS:
        raise ImageError(
            f"a JPEG of more than {MAX_SCANS} scans would take too long to decode", way_out="save it as a baseline JPEG"
        )


def _min_sides(width: int, height: int, min_side: int | None) -> tuple[int, int]:
    """Return the least width and height to decode to, 0 for full size, so that `MAX_PIXELS` is not exceeded."""
    if width * height <= MAX_PIXELS:
        return min_side or 0, min_side or 0
    scaled = ((math.ceil(width * eighths / 8), math.ceil(height * eighths / 8)) for eighths in range(7, 0, -1))
    most = next(sides for sides in scaled if sides[0] * sides[1] <= MAX_PIXELS)
    return most if min_side is None else (min(most[0], min_side), min(most[1], min_side))


def _decode_jpeg(data: bytes, least: tuple[int, int]) -> tuple[np.ndarray[Any, Any] | None, bool]:
    """Decode with libjpeg-turbo; return the pixels as stored, and whether the file is complete.

    The pixels are None if the file is valid but not for this decoder (CMYK, for example). A file that lacks only its
    end marker has all pixels, but is not complete.
    """
    sides = {"min_width": least[0], "min_height": least[1]}
    with_end = data if data.endswith(_JPEG_END) else data.removesuffix(_JPEG_END[:1]) + _JPEG_END
    reason = ""
    for attempt in (data, with_end):
        try:
            return np.asarray(simplejpeg.decode_jpeg(attempt, colorspace="RGB", **sides)), attempt is data
        except KeyError:
            return None, True
        except ValueError as error:
            reason = reason or str(error)
            if "remature end of JPEG file" not in str(error):
                break
    # Extraneous bytes between markers and pieces of a profile are harmless; other warnings mean lost pixels.
    harmless = "extraneous" in reason or "bad ICC marker" in reason
    if ("orrupt" in reason or "remature" in reason) and not harmless:
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
        way_out = _SAVE_AS if "TIFF" in name else ""
        raise ImageError(what, expected=f"one of {', '.join(FORMATS)}", way_out=way_out) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"an image is too large to be decoded safely ({error})", way_out="resize it") from error
    except Exception as error:  # on damaged files Pillow's plugins can raise anything
        raise ImageError(f"an image whose header cannot be read ({error})") from error
    if (profile := large_profile(data)) is not None:
        opened.info["icc_profile"] = profile
    return opened


def pixels_from_pillow(opened: Image.Image) -> np.ndarray[Any, Any]:
    """Return the pixels of one of Pillow's images as `decode` does: uint8 `(H, W, 3)` sRGB, upright, on white.

    Raises `ImageError` if it cannot be decoded or has more than `MAX_PIXELS`.
    """
    if 0 in opened.size:
        raise ImageError(NO_PIXELS)
    _require_size(*opened.size)
    tiles = getattr(opened, "tile", ())
    if lost := lost_depth(opened):
        raise ImageError(f"{lost} is not decoded", way_out=_SAVE_AS)
    try:
        opened.load()
        dark = any(too_dark(opened, str(tile[3])) for tile in tiles)
        metadata = pillow_metadata(opened)
        image = np.asarray(in_rgb(opened, metadata.profile))
    except Exception as error:
        raise ImageError(f"a damaged or truncated image ({error})") from error
    if dark:
        raise ImageError(
            "an image of 16 bits that uses the darkest of them alone",
            expected="colours up to the brightest",
            way_out="scale it to 8 bits: it would be black",
        )
    return _upright(image, metadata.orientation)


def _upright(image: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    if orientation == 1:
        return image
    return np.asarray(Image.fromarray(image).transpose(_TRANSPOSITIONS[orientation]))
