"""Images from strangers: an import ends, keeps what can be shown, names what is rejected, and neither prints escapes
nor takes what is not there for pixels."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from landmarks.cli.main import run
from landmarks.dataset.manifest import Dataset, open_dataset

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow's, as without pytest


def saved(format: str, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: object) -> bytes:
    """Return noise as a file: every byte of it counts."""
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, pixels: bytes = b"", bits: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(pixels or bytes((1 + 3 * width) * height), 1))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + chunk(b"IEND", b"")


def gif(width: int, height: int, frame: bytes = b"") -> bytes:
    """Return a GIF whose screen and first frame claim a size, with data for a few pixels."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return screen + (frame or b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0") + b";"


def bmp(width: int, height: int, bits: int = 24, packing: int = 0, offset: int = 54) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packing, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 1 << 31, 0, 0, offset) + info + bytes(200)


def tiff(*entries: tuple[int, int, int, int], next: int = 0) -> bytes:
    """Return a little-endian TIFF of one directory with entries of tag, type, count and value or offset."""
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + directory + struct.pack("<I", next) + bytes(4000)


def grey(width: int, height: int, packing: int = 1) -> tuple[tuple[int, int, int, int], ...]:
    """Return the tags of a TIFF of grey levels that say its size and form, and not where its pixels are."""
    return ((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, packing), (262, 3, 1, 1))


def grey_tiff(width: int, height: int, *others: tuple[int, int, int, int], packing: int = 1, next: int = 0) -> bytes:
    strips = ((273, 4, 1, 400), (278, 4, 1, height), (279, 4, 1, width * height % 2**32))
    return tiff(*sorted((*grey(width, height, packing), *strips, *others)), next=next)


def webp(width: int, height: int) -> bytes:
    """Return an extended WebP whose canvas claims a size."""
    canvas = b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    rest = saved("WEBP", lossless=True)[12:]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + rest
    return b"RIFF" + struct.pack("<I", len(body)) + body


def with_segment(marker: int, data: bytes, times: int = 1) -> bytes:
    """Return a JPEG with further segments behind its first marker."""
    segment = b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data
    return JPEG[:2] + segment * times + JPEG[2:]


def exif(*entries: tuple[int, int, int, int], next: int = 0) -> bytes:
    return b"Exif\0\0" + tiff(*entries, next=next)[:2000]


def plain(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(file, "JPEG", progressive=True)
    return file.getvalue()


def again_and_again(data: bytes, times: int) -> bytes:
    """Return a progressive JPEG whose last scan comes many times: each is a walk over all pixels."""
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * times + data[-2:]


JPEG, PNG = saved("JPEG"), saved("PNG")
ESCAPES = b"\x1b[2J\x1b]0;x\x07"
ZIP = b"PK\3\4" + bytes(26)


@dataclass(frozen=True)
class Kind:
    """The bytes of a file, and words in the reason of its rejection; with None it is kept, in the size given."""

    data: bytes
    rejected: str | None = None
    size: tuple[int, int] = (64, 48)


TOO_LARGE, DAMAGED = "too large", "damaged|cannot be read|no image|not an image"

HOSTILE: dict[str, Kind] = {
    "a PNG bomb": Kind(png(50_000, 50_000, pixels=bytes(1_000_000)), TOO_LARGE),
    "a PNG of no width": Kind(png(0, 10), DAMAGED),
    "a PNG of more pixels than bytes": Kind(png(9000, 9000, pixels=bytes(1000)), DAMAGED),
    "a PNG with more bytes than pixels": Kind(png(64, 48, pixels=bytes(50_000_000)), None),
    "a PNG with a broken checksum": Kind(PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], DAMAGED),
    "a PNG cut short": Kind(PNG[:-2000], DAMAGED),
    "a PNG without pixels": Kind(png(64, 48)[:33] + chunk(b"IEND", b""), DAMAGED),
    "a PNG with a chunk of four gigabytes": Kind(PNG[:33] + b"\xff\xff\xff\xfftEXtx" + PNG[33:], DAMAGED),
    "a PNG with a text that is a bomb": Kind(
        png(64, 48, chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(50_000_000)))), None
    ),
    "a PNG with a profile of rubbish": Kind(png(64, 48, chunk(b"iCCP", b"x\0\0" + zlib.compress(b"rubbish"))), None),
    "a PNG with a profile that is a bomb": Kind(
        png(64, 48, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(90_000_000)))), None
    ),
    "an APNG that claims a hundred thousand frames": Kind(
        png(64, 48, chunk(b"acTL", struct.pack(">II", 100_000, 0))), None
    ),
    "an APNG of no frames": Kind(png(64, 48, chunk(b"acTL", struct.pack(">II", 0, 0))), None),
    "a PNG of 3 bits": Kind(png(64, 48, bits=3), DAMAGED),
    "a PNG with EXIF of circles": Kind(png(64, 48, chunk(b"eXIf", exif((0x8769, 4, 1, 8), next=8)[6:])), None),
    "a JPEG that claims to be huge": Kind(JPEG.replace(b"\0\x30\0\x40", b"\xff\xdc\xff\xdc", 1), TOO_LARGE),
    "a JPEG of no height": Kind(JPEG.replace(b"\0\x30\0\x40", b"\0\0\0\x40", 1), DAMAGED),
    "a JPEG of many scans": Kind(again_and_again(plain(2000), 1000), "scans"),
    "a JPEG with a segment beyond its end": Kind(JPEG[:2] + b"\xff\xe1\xff\xff" + JPEG[2:], DAMAGED),
    "a JPEG with ten thousand segments": Kind(with_segment(0xE5, b"x", 10_000)),
    "a JPEG of fill bytes": Kind(JPEG[:2] + b"\xff" * 5_000_000 + JPEG[2:]),
    "a JPEG with EXIF of circles": Kind(with_segment(0xE1, exif((0x8769, 4, 1, 8), (0x0112, 3, 1, 1), next=8))),
    "a JPEG with EXIF of four billion numbers": Kind(with_segment(0xE1, exif((0x0112, 3, 0xFFFFFFFF, 0xFFFFFFF0)))),
    "a JPEG with EXIF that divides by nothing": Kind(with_segment(0xE1, exif((0x0112, 5, 1, 100)))),
    "a JPEG with a profile of rubbish": Kind(with_segment(0xE2, b"ICC_PROFILE\0\1\1" + ESCAPES * 99)),
    "a JPEG with pieces of profiles": Kind(with_segment(0xE2, b"ICC_PROFILE\0\7\xff" + bytes(60_000), 200)),
    "a JPEG with XMP of rubbish": Kind(
        with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<tiff:Orientation" * 3000)
    ),
    "a JPEG with a comment of escapes": Kind(with_segment(0xFE, ESCAPES * 99)),
    "a JPEG with a ZIP behind it": Kind(JPEG + ZIP),
    "a JPEG with a web page behind it": Kind(JPEG + b"<script>alert(1)</script>"),
    "a JPEG with a PNG in front": Kind(PNG[:8] + JPEG, DAMAGED),
    "a GIF bomb": Kind(gif(60_000, 60_000), TOO_LARGE),
    "a GIF of no size": Kind(gif(0, 0), DAMAGED + "|without pixels"),
    "a GIF whose frame is larger than it": Kind(
        gif(64, 48, b"," + struct.pack("<HHHHB", 0, 0, 65_000, 65_000, 0) + b"\2\2\x4c\1\0"), TOO_LARGE
    ),
    "a GIF of a hundred thousand frames": Kind(
        gif(64, 48, (b"," + struct.pack("<HHHHB", 0, 0, 64, 48, 0) + b"\2\2\x4c\1\0") * 100_000), DAMAGED
    ),
    "a GIF with comments without end": Kind(gif(64, 48, b"!\xfe" + b"\xff" * 3_000_000), DAMAGED),
    "a BMP bomb": Kind(bmp(60_000, 60_000), TOO_LARGE),
    "a BMP of negative size": Kind(bmp(-64, -48), DAMAGED + "|" + TOO_LARGE),
    "a BMP of 7 bits": Kind(bmp(64, 48, bits=7), DAMAGED),
    "a BMP whose pixels lie beyond its end": Kind(bmp(64, 48, offset=1 << 30), DAMAGED),
    "a TIFF bomb": Kind(grey_tiff(60_000, 60_000), TOO_LARGE),
    "a TIFF of circles": Kind(grey_tiff(64, 48, next=8), None),
    "a TIFF of circles within": Kind(grey_tiff(64, 48, (330, 4, 1, 8), (34665, 4, 1, 8)), None),
    "a TIFF whose next page lies beyond its end": Kind(grey_tiff(64, 48, next=1 << 30), None),
    "a TIFF with a tag of four billion numbers": Kind(grey_tiff(64, 48, (270, 2, 0xFFFFFFFF, 8)), None),
    "a TIFF with four billion strips": Kind(
        tiff(
            *grey(64, 48),
            (273, 4, 0xFFFFFFFF, 8),
            (278, 4, 1, 0),
            (279, 4, 0xFFFFFFFF, 8),
        ),
        DAMAGED,
    ),
    "a TIFF with a tile of four billion pixels": Kind(
        tiff(
            *grey(64, 48),
            (322, 4, 1, 0xFFFFFFFF),
            (323, 4, 1, 0xFFFFFFFF),
            (324, 4, 1, 400),
            (325, 4, 1, 100),
        ),
        DAMAGED,
    ),
    "a TIFF of unknown packing": Kind(grey_tiff(64, 48, packing=50_000), DAMAGED + "|not decoded"),
    "a TIFF that is cut": Kind(grey_tiff(64, 48)[:100], DAMAGED),
    "a WebP that claims a large canvas": Kind(webp(1 << 14, 1 << 14), DAMAGED + "|" + TOO_LARGE),
    "a WebP cut short": Kind(saved("WEBP")[:-500], DAMAGED),
    "a WebP that claims four gigabytes": Kind(b"RIFF\xff\xff\xff\xff" + saved("WEBP")[8:], DAMAGED),
    "an AVIF cut short": Kind(saved("AVIF")[:-200], DAMAGED),
    "an AVIF of boxes in boxes": Kind(saved("AVIF")[:32] + b"\0\0\0\x08meta" * 10_000, DAMAGED),
    "a PPM bomb": Kind(b"P6 60000 60000 255\n", TOO_LARGE),
    "a PPM of negative size": Kind(b"P6 -64 -48 255\n" + bytes(9999), DAMAGED),
    "a PPM of endless digits": Kind(b"P6 " + b"9" * 100_000 + b" 9 255\n", DAMAGED + "|" + TOO_LARGE),
    "a PPM of comments": Kind(b"P6\n" + b"#" * 3_000_000, DAMAGED),
    "an SVG with entities": Kind(
        b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg">&x;</svg>',
        "SVG",
    ),
    "PostScript": Kind(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n", "PostScript"),
    "text with escapes": Kind(b"no image" + ESCAPES, DAMAGED),
    "escapes alone": Kind(ESCAPES * 9, DAMAGED),
    "nothing": Kind(b"", "an empty file"),
    "zeros": Kind(bytes(100_000), "nothing but zeros"),
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, int, str]:
    """All of them imported at once beside a sound image; the exit code, and what was printed."""
    folder, said = tmp_path_factory.mktemp("box"), io.StringIO()
    (folder / "images/landmark").mkdir(parents=True)
    for what, kind in HOSTILE.items():
        (folder / "images/landmark" / f"{what}.jpg").write_bytes(kind.data)
    (folder / "images/landmark/sound.jpg").write_bytes(JPEG)
    with redirect_stdout(said), redirect_stderr(said):
        code = run(["import", str(folder / "images"), "-o", str(folder / "data")])
    return open_dataset(folder / "data"), code, said.getvalue()


def test_all_that_is_said_is_safe_and_the_sound_one_is_kept(imported: tuple[Dataset, int, str]) -> None:
    data, code, said = imported
    assert code == 0
    assert not any(character < " " and character != "\n" for character in said)
    assert not [word for word in ("unforeseen", "Traceback", "Warning") if word in said]
    assert "sound" in {Path(id).stem for id in data.images["image_id"]}
    assert {path.name for path in data.folder.parent.iterdir()} == {"images", "data"}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_image_is_shown_as_it_is_or_rejected_by_name(what: str, imported: tuple[Dataset, int, str]) -> None:
    kind, data = HOSTILE[what], imported[0]
    rejected = pl.read_parquet(data.folder / "rejected.parquet").filter(pl.col("where").str.ends_with(f"{what}.jpg"))
    kept = data.images.filter(pl.col("image_id") == what)
    if kind.rejected is None:
        assert not len(rejected), rejected["why"].to_list()
        assert kept.select("width", "height").rows() == [kind.size]
    else:
        assert not len(kept)
        (why,) = rejected["why"].to_list()
        assert any(words in why for words in kind.rejected.split("|")), why
