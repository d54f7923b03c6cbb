"""Orientation in every form that viewers honour: Pillow's own `exif_transpose` is the oracle."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from landmarks.dataset.formats import jpeg_metadata
from landmarks.dataset.images import decode, prepare, size_of

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"%s</rdf:RDF></x:xmpmeta>'
)
ELEMENT = XMP % "><tiff:Orientation>6</tiff:Orientation></rdf:Description>"
ATTRIBUTE = XMP % ' tiff:Orientation="6"/>'


def arrow() -> Image.Image:
    """Wide, red on its left, blue on its right, green on top: every turn shows."""
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:, :60], pixels[:, 60:], pixels[:10] = (220, 30, 30), (30, 30, 220), (30, 200, 30)
    return Image.fromarray(pixels)


def saved(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    arrow().save(file, kind, **options)
    return file.getvalue()


def exif(order: str, kind: int, value: bytes, count: int = 1) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    entry = struct.pack(f"{order}HHI", 274, kind, count) + value
    far = struct.pack(f"{order}II", 6, 1)  # where entries of eight bytes point to
    return mark + struct.pack(f"{order}HIH", 42, 8, 1) + entry + bytes(4) + far


def with_exif(tiff: bytes) -> bytes:
    return saved("JPEG", exif=b"Exif\0\0" + tiff)


def as_pillow_turns(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def same_as_pillow(data: bytes) -> None:
    wanted, found = as_pillow_turns(data), decode(data)
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).mean() < 3
    assert size_of(data) == wanted.shape[1::-1]
    assert prepare(data, 50)[1].shape == ((50, 25, 3) if wanted.shape[0] > wanted.shape[1] else (25, 50, 3))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4, 5, 8, 9, 10, 11])
def test_every_type_of_number_turns_as_pillow_turns(order: str, kind: int) -> None:
    packed = {
        1: b"\6\0\0\0",
        3: struct.pack(f"{order}HH", 6, 0),
        4: struct.pack(f"{order}I", 6),
        5: struct.pack(f"{order}I", 26),
        8: struct.pack(f"{order}hh", 6, 0),
        9: struct.pack(f"{order}i", 6),
        10: struct.pack(f"{order}I", 26),
        11: struct.pack(f"{order}f", 6),
    }
    same_as_pillow(with_exif(exif(order, kind, packed[kind])))


@pytest.mark.parametrize("value", [0, 1, 9, 255, 65535])
def test_a_number_that_is_no_orientation_turns_nothing(value: int) -> None:
    data = with_exif(exif("<", 3, struct.pack("<HH", value, 0)))
    assert decode(data).shape == (60, 120, 3)
    same_as_pillow(data)


@pytest.mark.parametrize("extra", [b"\xff", b"\xff\xff\xff", b"\xff\xd0", b"\xff\x01"])
def test_fill_bytes_and_markers_without_a_segment_hide_no_orientation(extra: bytes) -> None:
    data = with_exif(exif("<", 3, struct.pack("<HH", 6, 0)))
    place = data.index(b"\xff\xe1")
    assert jpeg_metadata(data[:place] + extra + data[place:]).orientation == 6
    if set(extra) == {0xFF}:
        same_as_pillow(data[:place] + extra + data[place:])


def test_rubbish_between_segments_is_passed_over_as_libjpeg_does() -> None:
    data = with_exif(exif("<", 3, struct.pack("<HH", 6, 0)))
    place = data.index(b"\xff\xe1")
    assert jpeg_metadata(data[:place] + b"\0rubbish" + data[place:]).orientation == 6


@pytest.mark.parametrize("xmp", [ELEMENT, ATTRIBUTE])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_xmp_alone_turns_an_image(kind: str, xmp: str) -> None:
    if kind == "PNG":
        texts = PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", xmp)
        same_as_pillow(saved(kind, pnginfo=texts))
    elif kind == "TIFF":
        same_as_pillow(saved(kind, tiffinfo={700: xmp.encode()}))
    else:
        same_as_pillow(saved(kind, xmp=xmp.encode()))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_exif_goes_before_xmp(kind: str) -> None:
    upright = exif("<", 3, struct.pack("<HH", 1, 0))
    data = saved(kind, xmp=ELEMENT.encode(), exif=b"Exif\0\0" + upright)
    assert decode(data).shape == (60, 120, 3)
    same_as_pillow(data)


@pytest.mark.parametrize("name", ["Raw profile type exif", "Raw profile type APP1", "Raw profile type xmp"])
@pytest.mark.parametrize("zip", [True, False])
def test_raw_profiles_of_imagemagick_turn_an_image(name: str, zip: bool) -> None:
    raw = b"Exif\0\0" + exif("<", 3, struct.pack("<HH", 6, 0)) if "xmp" not in name else ELEMENT.encode()
    digits = raw.hex()
    lines = "\n".join(digits[start : start + 72] for start in range(0, len(digits), 72))
    texts = PngInfo()
    texts.add_text(name, f"\n{name.rsplit(maxsplit=1)[-1]}\n{len(raw):8d}\n{lines}\n", zip=zip)
    data = saved("PNG", pnginfo=texts)
    assert decode(data).shape == (120, 60, 3)
    assert size_of(data) == (60, 120)


def test_exif_behind_the_pixels_of_a_png_turns_it() -> None:
    data = saved("PNG")
    body = b"eXIf" + exif("<", 3, struct.pack("<HH", 6, 0))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    same_as_pillow(data[:-12] + chunk + data[-12:])


def test_a_profile_in_several_segments_is_put_together() -> None:
    profile = bytes(range(256)) * 600
    data = saved("JPEG", icc_profile=profile)
    assert data.count(b"ICC_PROFILE\0") == 3
    assert jpeg_metadata(data).profile == profile
