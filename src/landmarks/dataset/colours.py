"""Numbers become the colours of a screen: more than eight bits are scaled, colour profiles are converted to sRGB."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

NEUTRAL = 3
"""Grey levels by which a profile may differ from sRGB and count as sRGB: that much do two versions of sRGB differ."""

_SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}  # Pillow's mode → the profile's, ICC.1 table 19
_SCALES = (1.0, 255.0, 65_535.0, float(2**31 - 1), float(2**32 - 1))
_LEAST_SHARE = 1 / 8


def in_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return one of Pillow's loaded images in RGB, transparent pixels on white, and its colours in sRGB.

    Where the profile is damaged or belongs to another kind of image, it is left aside, as viewers do. An alpha of zero
    in every pixel of a BMP is no transparency: programs leave that byte empty.
    """
    alpha = None
    if _deep(image):
        image = _in_eight_bits(image)
    elif image.has_transparency_data:
        whole = image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
        alpha = whole.getchannel("A")
        lowest, highest = alpha.getextrema()
        if lowest == 255 or (highest == 0 and image.format == "BMP"):
            alpha = None
        image = whole.convert("L" if whole.mode == "LA" else "RGB")
    shown = _in_srgb(image, profile)
    if alpha is None:
        return shown
    shown.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")


def pixels_in_srgb(pixels: np.ndarray[Any, Any], profile: bytes | None) -> np.ndarray[Any, Any]:
    """Return the RGB pixels `(H, W, 3)` of a JPEG in sRGB, given the profile in its file."""
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
    """Return what turns pixels of a `mode` with this profile into sRGB; None where that changes nothing."""
    if profile[16:20] != _SPACES[mode]:
        return None
    try:
        described = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(described, ImageCms.createProfile("sRGB"), mode, "RGB")
        sample = _sample(mode)
        shown = np.asarray(ImageCms.applyTransform(sample, transform), np.int16)
    except (ImageCms.PyCMSError, OSError, ImportError, ValueError):  # a profile that is none
        return None
    if mode != "CMYK" and np.abs(shown - np.asarray(sample.convert("RGB"), np.int16)).max() <= NEUTRAL:
        return None
    return transform


def _sample(mode: str) -> Image.Image:
    """Return an image of one line with colours from all over the mode's space."""
    steps = np.linspace(0, 255, 6).astype(np.uint8)
    bands = len(Image.new(mode, (1, 1)).getbands())
    colours = np.stack(np.meshgrid(*[steps] * bands), axis=-1).reshape(1, -1, bands)
    return Image.frombytes(mode, (colours.shape[1], 1), colours.tobytes())


def lost_depth(image: Image.Image) -> str:
    """Return what Pillow would lose of an image's colours of 16 bits, in words, before it has loaded it; else nothing.

    It reads planes of a TIFF that are not packed as if they had eight bits.
    """
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if tags.get(284) == 2 and tags.get(259, 1) == 1 and max(tags.get(258, (8,))) > 8 and len(image.getbands()) > 1:
        return "a TIFF of 16 bits whose colours lie one after the other"
    return ""


def too_dark(image: Image.Image, raw: str) -> bool:
    """Return whether nothing is left of an image in colours of 16 bits, as its file's form `raw` tells, but black.

    Pillow keeps their upper eight bits, and cameras and satellites write 10 or 12 bits into 16.
    """
    return ";16" in raw and not _deep(image) and max(high for _, high in _ranges(image)) < 256 * _LEAST_SHARE


def _ranges(image: Image.Image) -> list[tuple[int, int]]:
    colours = [image.getchannel(band).getextrema() for band in image.getbands() if band != "A"]
    return [(int(low), int(high)) for low, high in colours]  # type: ignore[arg-type]


def _deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Scale greys of more than eight bits, which Pillow would clip.

    Sixteen bits (or as many as a TIFF says) are cut to their upper eight, unless no pixel comes near the brightest of
    them: cameras write 10 or 12 bits into 16. There, and elsewhere, a file does not say how bright white is: of 1, 255,
    65,535 and the largest 32-bit integers it is the first that no pixel exceeds, if the brightest pixel comes near;
    else the darkest pixel becomes black and the brightest white.
    """
    tags: Any = getattr(image, "tag_v2", {}) if getattr(image, "format", None) == "TIFF" else {}
    values = np.asarray(image)
    if image.mode.startswith("I;"):
        told = tags.get(258, (16,))[0]
        bits = told if 8 < told < 16 and int(values.max(initial=0)) >> told == 0 else 16
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        dim = low < high < _LEAST_SHARE * 2**bits
        grey = _scaled(values.astype(np.float32)) if dim else (values >> (bits - 8)).astype(np.uint8)
    else:
        if image.mode == "I" and tags.get(339, (1,))[0] == 1 and tags and values.min(initial=0) < 0:
            values = values.view(np.uint32)  # a TIFF of unsigned integers, which Pillow reads as signed ones
        grey = _scaled(values.astype(np.float64 if values.dtype.kind == "u" else np.float32))
    return Image.fromarray(255 - grey if tags.get(262) == 0 else grey)  # in some TIFFs zero is white


def _scaled(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    values = np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    scale = next((scale for scale in _SCALES if high <= scale), high)
    if low < 0 or high < _LEAST_SHARE * scale:
        if high == low:
            return np.full(values.shape, 128, np.uint8)
        values, scale = values * 0.5 - low * 0.5, high * 0.5 - low * 0.5  # halves: the whole could overflow
    return np.clip(np.rint(values / scale * 255.0), 0, 255).astype(np.uint8)
