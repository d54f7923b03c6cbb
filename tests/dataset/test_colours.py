"""Scales and colour profiles: numbers become what a viewer shows. Pillow's ImageCms is the oracle for profiles."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from landmarks.dataset.images import ImageError, decode, prepare


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ramp() -> np.ndarray:
    return np.linspace(0, 255, 64 * 48).reshape(48, 64)


def exchanged_profile() -> bytes:
    """Return an sRGB profile whose red and green are exchanged, so that nobody can overlook it."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {}
    for number in range(struct.unpack_from(">I", profile, 128)[0]):
        name, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        tags[name] = (132 + 12 * number, offset)
    (red, of_red), (green, of_green) = tags[b"rXYZ"], tags[b"gXYZ"]
    struct.pack_into(">I", profile, red + 4, of_green)
    struct.pack_into(">I", profile, green + 4, of_red)
    return bytes(profile)


@pytest.mark.parametrize("scale", [1.0, 255.0, 65535.0])
def test_floats_are_scaled_by_the_range_they_fill(scale: float) -> None:
    values = (ramp() / 255 * scale).astype(np.float32)
    image = decode(saved(Image.fromarray(values), "TIFF"))
    assert np.abs(image[..., 0] - ramp()).max() <= 1


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 0.01), (100.0, 4000.0), (0.0, 1e30), (-3e8, -1e8)])
def test_floats_of_no_known_range_go_from_black_to_white(low: float, high: float) -> None:
    values = (low + ramp() / 255 * (high - low)).astype(np.float32)
    image = decode(saved(Image.fromarray(values), "TIFF"))
    assert image.min() == 0
    assert image.max() == 255
    assert 60 < image.std() < 90


def test_what_is_no_number_is_black_and_spoils_nothing() -> None:
    values = (ramp() / 255).astype(np.float32)
    values[0, :3] = (np.nan, np.inf, -np.inf)
    image = decode(saved(Image.fromarray(values), "TIFF"))
    assert (image[0, :3] == 0).all()
    assert np.abs(image[1:, :, 0] - ramp()[1:]).max() <= 1
    assert decode(saved(Image.fromarray(np.full((4, 4), 7, np.float32)), "TIFF")).shape == (4, 4, 3)


@pytest.mark.parametrize("factor", [1, 16, 257, 2**23])
def test_integers_of_32_bits_are_scaled_and_not_clipped(factor: int) -> None:
    values = (np.round(ramp()) * factor).astype(np.int32)
    image = decode(saved(Image.fromarray(values), "TIFF"))
    assert np.abs(image[..., 0] - ramp()).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("factor", [1, 4, 16])
def test_ten_or_twelve_bits_in_sixteen_are_no_black_image(kind: str, factor: int) -> None:
    values = (np.round(ramp()) * factor).astype(np.uint16)
    assert np.abs(decode(saved(Image.fromarray(values), kind))[..., 0] - ramp()).max() <= 2
    assert decode(saved(Image.fromarray(np.zeros((40, 40), np.uint16)), kind)).max() == 0


def tiff_of_sixteen_bits(values: np.ndarray[Any, Any], *, planes: bool) -> bytes:
    """Return a TIFF of colours (H, W, 3) in 16 bits, one after the other for each pixel or in planes."""
    height, width, _ = values.shape
    data = (values.transpose(2, 0, 1) if planes else values).astype("<u2").tobytes()
    parts = 3 if planes else 1
    starts = [200 + part * len(data) // parts for part in range(parts)]
    tags = [(256, 3, [width]), (257, 3, [height]), (258, 3, [16] * 3), (259, 3, [1]), (262, 3, [2])]
    tags += [(273, 4, starts), (277, 3, [3]), (279, 4, [len(data) // parts] * parts), (284, 3, [1 + planes])]
    entries, beside, place = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, kind, content in tags:
        packed = struct.pack("<" + {3: "H", 4: "I"}[kind] * len(content), *content)
        where = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", place + len(beside))
        beside += packed if len(packed) > 4 else b""
        entries += struct.pack("<HHI", tag, kind, len(content)) + where
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + beside
    return head.ljust(200, b"\0") + data


def test_colours_of_sixteen_bits_are_read_or_refused_and_never_others() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint16)
    assert (decode(tiff_of_sixteen_bits(colours * 257, planes=False)) == colours).all()
    with pytest.raises(ImageError, match=r"colours lie one after the other.*save it as JPEG or PNG"):
        decode(tiff_of_sixteen_bits(colours * 257, planes=True))
    with pytest.raises(ImageError, match=r"uses the darkest of them alone.*scale it to 8 bits"):
        decode(tiff_of_sixteen_bits(colours * 8, planes=False))


def test_zero_is_white_where_a_tiff_says_so() -> None:
    values = (np.round(ramp()) * 257).astype(np.uint16)
    data = bytearray(saved(Image.fromarray(values), "TIFF"))
    plain = decode(bytes(data))
    entry = data.index(struct.pack("<HHI", 262, 3, 1))
    data[entry + 8] = 0
    assert (decode(bytes(data)) == 255 - plain).all()


@pytest.mark.parametrize(("kind", "side"), [("JPEG", 96), ("JPEG", 800), ("PNG", 96), ("WEBP", 96), ("TIFF", 96)])
def test_colours_are_what_the_profile_says(kind: str, side: int) -> None:
    profile = exchanged_profile()
    source = Image.new("RGB", (side, side), (250, 20, 20))
    data = saved(source, kind, icc_profile=profile)
    wanted = ImageCms.profileToProfile(source, io.BytesIO(profile), ImageCms.createProfile("sRGB"))
    assert np.abs(decode(data).astype(int) - np.asarray(wanted)).max() <= 6
    stored, image = prepare(data, 512)
    assert np.abs(image[5, 5].astype(int) - np.asarray(wanted)[5, 5]).max() <= 6
    assert np.abs(decode(stored)[5, 5].astype(int) - image[5, 5]).max() <= 3


def test_a_profile_of_srgb_a_damaged_one_and_one_of_another_kind_change_nothing() -> None:
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    plain = decode(saved(source, "PNG"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (srgb, b"none", srgb[:200], lab, bytes(500)):
        for kind in ("PNG", "TIFF"):
            assert (decode(saved(source, kind, icc_profile=profile)) == plain).all()
        assert decode(saved(source, "JPEG", icc_profile=profile)).shape == (40, 40, 3)


def test_transparent_pixels_are_white_and_the_others_in_the_profiles_colours() -> None:
    image = Image.new("RGBA", (10, 10), (250, 20, 20, 255))
    image.paste((0, 0, 0, 0), (0, 0, 5, 10))
    shown = decode(saved(image, "PNG", icc_profile=exchanged_profile()))
    assert (shown[:, :5] == 255).all()
    assert shown[0, 9, 1] > 150 > shown[0, 9, 0]


def test_an_empty_alpha_of_a_bmp_is_no_transparency() -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., :3] = (10, 120, 200)
    head = struct.pack("<2sIHHI", b"BM", 14 + 108 + pixels.size, 0, 0, 14 + 108)
    info = struct.pack("<IiiHHIIiiII", 108, 8, 8, 1, 32, 3, pixels.size, 0, 0, 0, 0)
    masks = struct.pack("<IIII", 0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000)
    body = pixels[..., [2, 1, 0, 3]].tobytes()
    data = head + info + masks + bytes(108 - 40 - 16) + body
    assert Image.open(io.BytesIO(data)).mode == "RGBA"
    assert (decode(data) == (10, 120, 200)).all()
    pixels[0, 0, 3] = 255
    assert (decode(head + info + masks + bytes(52) + pixels[..., [2, 1, 0, 3]].tobytes())[1, 1] == 255).all()


@pytest.mark.parametrize("mode", ["LA", "PA", "P", "1", "CMYK", "YCbCr", "LAB", "I;16"])
def test_every_kind_of_pixel_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (6, 4), (200, 40, 90))
    if mode == "LAB":
        image = ImageCms.applyTransform(
            image,
            ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
        )
    elif mode == "I;16":
        image = Image.fromarray(np.full((4, 6), 40_000, np.uint16))
    elif mode == "PA":
        image = image.convert("RGBA").convert("PA")
    else:
        image = image.convert(mode)
    shown = decode(saved(image, "PNG" if mode in ("P", "LA") else "TIFF")) if mode != "PA" else None
    if shown is None:
        from landmarks.dataset.images import pixels_from_pillow

        shown = pixels_from_pillow(image)
    assert shown.shape == (4, 6, 3)
    if mode in ("CMYK", "YCbCr", "LAB"):
        assert np.abs(shown.astype(int) - (200, 40, 90)).max() <= 12


def tiff(tags: dict[int, int | tuple[int, ...]], pixels: bytes) -> bytes:
    """Return an uncompressed TIFF of 8 x 8 pixels: tags 256 to 279 of TIFF 6.0, each a SHORT."""
    tags = {256: 8, 257: 8, 258: 8, 259: 1, 273: 8, 277: 1, 278: 8, 279: len(pixels), **tags}
    entries, values, start = b"", b"", 8 + len(pixels) + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        numbers = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"<{len(numbers)}H", *numbers)
        entries += struct.pack("<HHI", tag, 3, len(numbers))
        entries += packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", start + len(values))
        values += packed if len(packed) > 4 else b""
    head = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    return head + pixels + struct.pack("<H", len(tags)) + entries + bytes(4) + values


def test_what_pillow_would_read_as_other_colours_is_refused_by_name() -> None:
    pixels = bytes(range(64))
    assert decode(tiff({262: 1}, pixels))[..., 0].ravel().tolist() == list(range(64))
    palette = tuple(4 * number % 256 for number in range(256)) * 3
    bright = decode(tiff({262: 3, 320: tuple(257 * colour for colour in palette)}, pixels))
    assert bright[..., 0].ravel().tolist() == [4 * number for number in range(64)]
    with pytest.raises(ImageError, match="a TIFF whose palette has 8 bits, and not 16 is not decoded; save it as"):
        decode(tiff({262: 3, 320: palette}, pixels))
    with pytest.raises(ImageError, match="a TIFF of numbers from -128 to 127 is not decoded; save it as"):
        decode(tiff({262: 1, 339: 2}, pixels))
