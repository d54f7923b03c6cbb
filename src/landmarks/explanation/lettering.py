"""Letters for pictures: a font of this machine that has them, or Pillow's own and the nearest plain letters."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from PIL import ImageFont

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
"""Sans-serif fonts that systems carry, the widest alphabets first; Pillow knows the folders they lie in."""

PLAIN = str.maketrans({"ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "ß": "ss", "æ": "ae", "Æ": "Ae"})
"""Letters that have no accent to take off."""

PLAIN.update(str.maketrans({"œ": "oe", "Œ": "Oe", "þ": "th", "Þ": "Th", "ð": "d", "ı": "i", "–": "-", "—": "-"}))


def lettering(text: str, size: int, beside: str = "") -> tuple[str, ImageFont.FreeTypeFont]:
    """Return `text` and a font of `size` pixels that can draw it, if possible the one for all that stands `beside` it.

    Pillow's own font comes first and has English letters only; then the machine's fonts. Where none has all letters,
    accents are taken off, and a letter that is still missing becomes a question mark.
    """
    text = printable(text)
    for wanted in (text + printable(beside), text):
        for font in _fonts(size):
            if _has(font, wanted):
                return text, font
    bare = unicodedata.normalize("NFKD", text.translate(PLAIN))
    plain = "".join(letter for letter in bare if not unicodedata.combining(letter))
    font = _fonts(size)[0]
    return "".join(letter if _has(font, letter) else "?" for letter in plain), font


def printable(text: str) -> str:
    """Return `text` on one line, without control characters: names come from strangers."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return `text`, its end replaced by three dots where it would be wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip(" ,(") + "..."


@lru_cache(maxsize=8)
def _fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    own = ImageFont.load_default(size)
    found = [own] if isinstance(own, ImageFont.FreeTypeFont) else []
    for name in FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(found)


def _has(font: ImageFont.FreeTypeFont, text: str) -> bool:
    return all(_has_letter(font, letter) for letter in set(text) if letter != " ")


@lru_cache(maxsize=4096)
def _has_letter(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Return whether the font draws `letter` as anything but the box it draws for what is no character."""
    return bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))
