"""Draw an image and its heat maps side by side, with the answers they explain."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from landmarks.support.systems import printable

INFERNO = np.array(
    [
        (0, 0, 4), (11, 7, 36), (33, 12, 74), (61, 9, 101), (87, 16, 110), (113, 25, 110), (138, 34, 106),
        (163, 44, 97), (188, 55, 84), (210, 70, 68), (228, 90, 49), (241, 115, 29), (249, 142, 9), (252, 172, 17),
        (249, 203, 53), (242, 234, 105), (252, 255, 164),
    ],
    dtype=np.float32,
)  # fmt: skip
"""Seventeen steps of the colour map "inferno" (Smith & van der Walt 2015, CC0): lightness grows evenly with heat."""

TILE = 240
"""Side of each image in a panel, in pixels."""
MARGIN = 14
CAPTION = 62
PAPER, INK, QUIET, BAR, TRUE = "#ffffff", "#1c1c1e", "#6b6b70", "#c9c9ce", "#1a7f4b"
HOTTEST = 0.78
"""Opacity of the heat map where it is 1; where it is 0 the image shows, slightly dimmed."""


@dataclass(frozen=True)
class Caption:
    """One answer under its heat map."""

    name: str
    probability: float
    is_true: bool


def colours(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the colour `(H, W, 3)`, 0..255, of each value 0..1 in `heat` `(H, W)`."""
    steps = np.linspace(0, 1, len(INFERNO))
    return np.stack([np.interp(heat, steps, INFERNO[:, channel]) for channel in range(3)], axis=-1).astype(np.float32)


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return uint8 `image` `(H, W, 3)` under a heat map `(h, w)` of values 0..1, enlarged smoothly.

    The image fades to grey where heat is low, so that only heat is colourful.
    """
    height, width = image.shape[:2]
    smooth = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    warmth = np.clip(np.asarray(smooth, dtype=np.float32), 0, 1)
    grey = (image @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    faded = 0.55 * grey + 0.35 * image
    opacity = (HOTTEST * warmth**0.7)[..., None]
    mixed = (1 - opacity) * faded + opacity * colours(warmth)
    return np.clip(mixed + 0.5, 0, 255).astype(np.uint8)


def draw_panel(
    image: NDArray[np.uint8], heats: NDArray[np.float32], answers: Sequence[Caption], title: str
) -> NDArray[np.uint8]:
    """Return a uint8 image: `image` with its `title`, then an overlay for each answer with name and probability.

    `image` is uint8 `(S, S, 3)`, `heats` `(k, h, w)` holds values 0..1.
    """
    columns = 1 + len(answers)
    width, height = columns * TILE + (columns + 1) * MARGIN, TILE + 2 * MARGIN + CAPTION
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    names = " ".join([title, *(answer.name for answer in answers)])
    _place(sheet, 0, image)
    _caption(draw, 0, names, title)
    for column, (heat, answer) in enumerate(zip(heats, answers, strict=True), start=1):
        _place(sheet, column, overlay(image, heat))
        _caption(draw, column, names, answer)
    return np.asarray(sheet)


def _left(column: int) -> int:
    return MARGIN + column * (TILE + MARGIN)


def _place(sheet: Image.Image, column: int, image: NDArray[Any]) -> None:
    tile = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.LANCZOS)
    sheet.paste(tile, (_left(column), MARGIN))


def _caption(draw: ImageDraw.ImageDraw, column: int, names: str, entry: Caption | str) -> None:
    """Write the caption under an image: an answer with its probability, or the image's title."""
    left, top = _left(column), MARGIN + TILE + 8
    answer = entry if isinstance(entry, Caption) else None
    colour = TRUE if answer is not None and answer.is_true else INK
    text, font = text_and_font(entry.name if isinstance(entry, Caption) else entry, 17, context=names)
    draw.text((left, top), shortened(text, font, TILE), fill=colour, font=font)
    second_line, small = text_and_font("image" if answer is None else _percent(answer.probability), 14)
    draw.text((left, top + 26), second_line, fill=QUIET, font=small)
    if answer is not None:
        start, end, line = left + 58, left + TILE, top + 34
        draw.line([(start, line), (end, line)], fill=BAR, width=3)
        filled = start + round((end - start) * min(max(answer.probability, 0.0), 1.0))
        if filled > start:
            draw.line([(start, line), (filled, line)], fill=colour, width=3)


def _percent(probability: float) -> str:
    percent = 100 * probability
    return "< 0.1 %" if percent < 0.1 else "> 99.9 %" if percent > 99.9 else f"{percent:.1f} %"


# Fonts: one of this machine that has all letters of a text, or Pillow's own with the nearest plain letters.


FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "Arial Unicode.ttf",
    "Arial.ttf",
    "arial.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "PingFang.ttc",
    "msyh.ttc",
)
"""Sans-serif fonts that come with operating systems, the widest alphabets first; Pillow knows their folders."""

PLAIN = str.maketrans({"ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "ß": "ss", "æ": "ae", "Æ": "Ae"})
"""Letters that Unicode does not decompose into a plain letter and an accent."""

PLAIN.update(str.maketrans({"œ": "oe", "Œ": "Oe", "þ": "th", "Þ": "Th", "ð": "d", "ı": "i", "–": "-", "—": "-"}))


def text_and_font(text: str, size: int, context: str = "") -> tuple[str, ImageFont.FreeTypeFont]:
    """Return `text` and a font of `size` pixels that can draw it, preferably one that can draw `context` as well.

    Pillow's own font, which has English letters only, is tried first, then the machine's fonts. If none has all
    letters, accents are removed, and letters that are still missing become question marks.
    """
    text = printable(text)
    for required in (text + printable(context), text):
        for font in _fonts(size):
            if _has(font, required):
                return text, font
    decomposed = unicodedata.normalize("NFKD", text.translate(PLAIN))
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    font = _fonts(size)[0]
    return "".join(letter if _has(font, letter) else "?" for letter in plain), font


def shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return `text`, cut and ended with three dots if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip(" ,(") + "..."


@lru_cache(maxsize=8)
def _fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    default = ImageFont.load_default(size)
    fonts = [default] if isinstance(default, ImageFont.FreeTypeFont) else []
    for name in FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(fonts)


def _has(font: ImageFont.FreeTypeFont, text: str) -> bool:
    return all(_has_letter(font, letter) for letter in set(text) if letter != " ")


@lru_cache(maxsize=4096)
def _has_letter(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Return whether the font draws `letter` differently from its box for missing characters."""
    return bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))
