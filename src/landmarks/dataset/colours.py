"""Converting pixels to 8-bit sRGB: deeper colours are scaled, and colour profiles are applied."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

NEUTRAL = 3
"""Grey levels by which a profile may differ from sRGB and still count as sRGB: versions of sRGB differ that much."""

_SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}  # Pillow's mode → colour space in a profile, ICC.1 table 19
_SCALES = (1.0, 255.0, 65_535.0, float(2**31 - 1), float(2**32 - 1))
_LEAST_SHARE = 1 / 8


def in_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an image that Pillow has loaded in sRGB, with transparent pixels on white.

    A profile that is damaged or belongs to another kind of image is ignored, as by viewers. An alpha of zero in all
    pixels of a BMP is no transparency: programs leave that byte empty.
    """
    alpha = None
    if _is_deep(image):
        image = _in_eight_bits(image)
    elif image.has_transparency_data:
        with_alpha = image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
        alpha = with_alpha.getchannel("A")
        lowest, highest = alpha.getextrema()
        if lowest == 255 or (highest == 0 and image.format == "BMP"):
            alpha = None
        image = with_alpha.convert("L" if with_alpha.mode == "LA" else "RGB")
    converted = _in_srgb(image, profile)
    if alpha is None:
        return converted
    converted.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", converted.size, "white"), converted).convert("RGB")


def pixels_in_srgb(pixels: np.ndarray[Any, Any], profile: bytes | None) -> np.ndarray[Any, Any]:
    """Return the RGB pixels `(H, W, 3)` of a JPEG with a colour profile in sRGB."""
    if profile is None or profile[16:20] not in (_SPACES["RGB"], _SPACES["L"]):
        return pixels
    mode = "RGB" if profile[16:20] == _SPACES["RGB"] else "L"
    transform = _to_srgb(profile, mode)
    if transform is None or (mode == "L" and (pixels[..., :1] != pixels).any()):
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels if mode == "RGB" else pixels[..., 0]))
    return np.asarray(ImageCms.applyTransform(image, transform))


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return ImageCms.applyTransform(image, transform) or image
    if image.mode not in _SPACES:
        image = image.convert("RGB")
    to_srgb = None if profile is None else _to_srgb(profile, image.mode)
    return image.convert("RGB") if to_srgb is None else ImageCms.applyTransform(image, to_srgb) or image


@functools.lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a `mode` with this profile to sRGB; None if it would change nothing."""
    if profile[16:20] != _SPACES[mode]:
        return None
    try:
        described = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(described, ImageCms.createProfile("sRGB"), mode, "RGB")
        sample = _sample(mode)
        converted = np.asarray(ImageCms.applyTransform(sample, transform), np.int16)
    except (ImageCms.PyCMSError, OSError, ImportError, ValueError):  # the profile is invalid
        return None
    if mode != "CMYK" and np.abs(converted - np.asarray(sample.convert("RGB"), np.int16)).max() <= NEUTRAL:
        return None
    return transform


def _sample(mode: str) -> Image.Image:
    """Return an image of one line with colours from all over the mode's colour space."""
    steps = np.linspace(0, 255, 6).astype(np.uint8)
    bands = len(Image.new(mode, (1, 1)).getbands())
    colours = np.stack(np.meshgrid(*[steps] * bands), axis=-1).reshape(1, -1, bands)
    return Image.frombytes(mode, (colours.shape[1], 1), colours.tobytes())


def lost_depth(image: Image.Image) -> str:
    """Return a description of an opened image whose colours Pillow would misread; empty for any other.

    Pillow reads the separate planes of an uncompressed TIFF of 16 bits as if they had eight.
    """
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if tags.get(284) == 2 and tags.get(259, 1) == 1 and max(tags.get(258, (8,))) > 8 and len(image.getbands()) > 1:
        return "a TIFF of 16 bits whose colours lie one after the other"
    if 2 in tags.get(339, ()) and max(tags.get(258, (8,))) <= 8:  # numbers with signs, which Pillow takes for others
        return "a TIFF of numbers from -128 to 127"
    if 0 < max(tags.get(320, (0,))) < 256:  # all of it would be black
        return "a TIFF whose palette has 8 bits, and not 16"
    return ""


def too_dark(image: Image.Image, raw: str) -> bool:
    """Return whether an image of 16-bit colours is nearly black after loading; `raw` is Pillow's raw mode of its file.

    Pillow keeps the upper eight bits, but cameras and satellites store 10 or 12 bits in 16.
    """
    return ";16" in raw and not _is_deep(image) and max(high for _, high in _ranges(image)) < 256 * _LEAST_SHARE


def _ranges(image: Image.Image) -> list[tuple[int, int]]:
    colours = [image.getchannel(band).getextrema() for band in image.getbands() if band != "A"]
    return [(int(low), int(high)) for low, high in colours]  # type: ignore[arg-type]


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Scale a grey image of more than eight bits, which Pillow would clip.

    Of 16 bits (or as many as a TIFF declares) the upper eight are kept, unless all pixels are dark: cameras store 10 or
    12 bits in 16. For those and all other types the file does not say which value is white. It is taken to be the first
    of 1, 255, 65,535 and the largest 32-bit integers that no pixel exceeds, if the brightest pixel is near it.
    Otherwise the darkest pixel becomes black and the brightest white.
    """
    tags: Any = getattr(image, "tag_v2", {}) if getattr(image, "format", None) == "TIFF" else {}
    values = np.asarray(image)
    if image.mode.startswith("I;"):
        declared = tags.get(258, (16,))[0]
        bits = declared if 8 < declared < 16 and int(values.max(initial=0)) >> declared == 0 else 16
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        dim = low < high < _LEAST_SHARE * 2**bits
        grey = _scaled(values.astype(np.float32)) if dim else (values >> (bits - 8)).astype(np.uint8)
    else:
        if image.mode == "I" and tags.get(339, (1,))[0] == 1 and tags and values.min(initial=0) < 0:
            values = values.view(np.uint32)  # a TIFF of unsigned integers, which Pillow reads as signed ones
        grey = _scaled(values.astype(np.float64 if values.dtype.kind == "u" else np.float32))
    return Image.fromarray(255 - grey if tags.get(262) == 0 else grey)  # TIFF 6.0 tag 262: 0 means that zero is white


def _scaled(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    values = np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    scale = next((scale for scale in _SCALES if high <= scale), high)
    if low < 0 or high < _LEAST_SHARE * scale:
        if high == low:
            return np.full(values.shape, 128, np.uint8)
        # Halved, because the difference could overflow.
        values, scale = values * 0.5 - low * 0.5, high * 0.5 - low * 0.5
    return np.clip(np.rint(values / scale * 255.0), 0, 255).astype(np.uint8)
