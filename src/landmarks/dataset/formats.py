"""What the bytes of an image file tell before it is decoded: its kind, its orientation and its colour profile.

The orientation is read in every form that Pillow and the usual viewers understand: EXIF of any integer type, even if a
JPEG has fill bytes or garbage between its segments; in PNG as a chunk or as ImageMagick's raw profile; and XMP if EXIF
has none.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

_SIGNATURES = {
    b"": "an empty file",
    b"\xff\xd8\xff": "a damaged JPEG",
    b"\x89PNG": "a damaged PNG",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"II*\0": "a TIFF or camera's raw file of a kind that is not decoded",
    b"MM\0*": "a TIFF or camera's raw file of a kind that is not decoded",
    b"IIU\0": "a camera's raw file",
    b"IIRO": "a camera's raw file",
    b"IIRS": "a camera's raw file",
    b"MMOR": "a camera's raw file",
    b"FOVb": "a camera's raw file",
    b"FUJIFILMCCD-RAW": "a camera's raw file",
    b"\0\0\1\0": "an icon (ICO)",
    b"DDS ": "DDS",
    b"P7\n": "PAM",
    b"gimp xcf": "a GIMP file",
    b"v/1\1": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"SIMPLE  =": "FITS",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "a NumPy array",
    b"\x1aE\xdf\xa3": "a video",
    b"\0\5\x16\7": "a Mac's AppleDouble file, which lies beside the image",
    b"version https://git-lfs": "a pointer of Git LFS: git lfs pull fetches the image",
    b"<svg": "SVG",
    b"<?xml": "XML",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
}

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
_MOST_TEXT = 1 << 20  # Pillow refuses a PNG with a text of more bytes


def is_heif(data: bytes) -> bool:
    """Return whether these bytes begin like HEIC (HEIF)."""
    if data[4:8] != b"ftyp" or data[8:12] in (b"avif", b"avis"):
        return False
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    return data[8:12] in _HEIF_BRANDS and b"avif" not in brands


def _kind_by_mark(data: bytes) -> str | None:
    """Return the kind of a file that is marked behind its first bytes; None if there is no mark."""
    if data[4:8] == b"ftyp" and data[8:11] == b"crx":
        return "a camera's raw file"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return "damaged AVIF"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "a video"
    if data[128:132] == b"DICM":
        return "DICOM"
    if data[257:262] == b"ustar":
        return "a TAR archive"
    return "SVG" if data[:1] in b"\xef<" and b"<svg" in data[:1024].lower() else None


def kind_of_file(data: bytes) -> str:
    """Return the kind of a file that is not decoded, judged by its first bytes; empty if they do not tell."""
    if (name := _kind_by_mark(data)) is not None:
        return name
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower() if data[:1] in b"\xef <\t\r\n" else data[:64]
    for signature, name in _SIGNATURES.items():
        if start.startswith(signature) and (signature or not data):
            return name
    if is_heif(data):
        return "damaged HEIC"
    if data[4:8] == b"ftyp":
        return "a video, or an image in a video's container"
    return "nothing but zeros" if not any(data[:4096]) else ""


def text_in(data: bytes) -> str:
    """Return for example `text ("404 Not Found")` if a file is plain text, such as a server's error; else empty."""
    start = data[:40].decode("ascii", errors="replace").strip()
    plain = start and all((letter.isprintable() and letter != "\ufffd") or letter in "\r\n\t" for letter in start)
    return f'text ("{" ".join(start.split())}")' if plain else ""


@functools.lru_cache(maxsize=1)
def heif_is_read() -> bool:
    """Register HEIC with Pillow if the extra for it is installed, and return whether it is."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def without_large_texts(data: bytes) -> bytes:
    """Return a PNG without texts and profiles larger than `_MOST_TEXT` bytes, because Pillow refuses files with these.

    Anything else is returned unchanged.
    """
    packed = any(kind in data[:_MOST_TEXT] for kind in (b"zTXt", b"iTXt", b"iCCP"))
    if not data.startswith(b"\x89PNG") or (len(data) < _MOST_TEXT and not packed):
        return data
    kept, left_out = [data[:8]], False
    total = 0
    for kind, chunk in _chunks(data):
        size = _text_bytes(kind, chunk) if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") else 0
        total += size
        if size >= _MOST_TEXT or (size and total >= 16 * _MOST_TEXT):
            left_out = True
        else:
            kept.append(chunk)
    return b"".join(kept) if left_out else data


def large_profile(data: bytes) -> bytes | None:
    """Return the colour profile of a PNG that `without_large_texts` removes, if it has at most 16 MB; else None."""
    for kind, chunk in _chunks(data) if data.startswith(b"\x89PNG") and b"iCCP" in data[:_MOST_TEXT] else ():
        if kind == b"IDAT":
            break
        if kind == b"iCCP" and _text_bytes(kind, chunk) >= _MOST_TEXT:
            packed = chunk[8:-4].partition(b"\0")[2][1:]
            unpacking = zlib.decompressobj()
            profile = unpacking.decompress(packed, 16 * _MOST_TEXT)
            return None if unpacking.unconsumed_tail else profile
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and the bytes of each chunk of a PNG; the last may be truncated."""
    position = 8
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        yield data[position + 4 : position + 8], data[position:end]
        position = end


def _text_bytes(kind: bytes, chunk: bytes) -> int:
    """Return the number of bytes in a chunk's text; a compressed one is counted up to a little over `_MOST_TEXT`."""
    body = chunk[8:-4]
    keyword, _, rest = body.partition(b"\0")
    packed = rest[1:] if kind in (b"zTXt", b"iCCP") else None
    if kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]
    if packed is None:
        return len(body)
    try:
        return len(keyword) + len(zlib.decompressobj().decompress(packed, _MOST_TEXT + 1))
    except zlib.error:
        return len(body)


# ── Orientation (EXIF, XMP) and colour profile ──────────────────────────────────────────────────────────────────────


ORIENTATION = 0x0112
"""TIFF 6.0 tag 274: 1 is upright, 2 to 8 are mirrored or rotated."""

_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_IN_XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([0-9])")
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # neither stuffed bytes and restarts among pixels nor fill bytes
_INLINE_TYPES = {3: "H", 4: "I", 8: "h", 9: "i", 11: "f"}  # TIFF types whose value is in the entry itself
_OFFSET_TYPES = {5: "II", 10: "ii", 12: "d"}  # types of eight bytes, to which the entry holds an offset
_RAW_PROFILES = ("Raw profile type exif", "Raw profile type APP1", "Raw profile type app1", "Raw profile type xmp")
_LATE_IN_PNG = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type")


@dataclass(frozen=True)
class ImageMetadata:
    """Metadata of an image file."""

    orientation: int = 1  # 1 to 8
    profile: bytes | None = None  # ICC
    progressive: bool = False  # a JPEG whose coefficients must all be in memory until its end is read


def jpeg_metadata(data: bytes) -> ImageMetadata:
    """Read the metadata in the segments before a JPEG's pixels, which are found as libjpeg finds them."""
    exif = xmp = None
    pieces: dict[int, bytes] = {}
    progressive = False
    for marker, start, end in _segments(data):
        if marker == 0xE1 and exif is None and data.startswith(_EXIF, start):
            exif = data[start + len(_EXIF) : end]
        elif marker == 0xE1 and xmp is None and data.startswith(_XMP, start):
            xmp = data[start + len(_XMP) : end]
        elif marker == 0xE2 and data.startswith(_ICC, start) and end - start > len(_ICC) + 2:
            pieces.setdefault(data[start + len(_ICC)], data[start + len(_ICC) + 2 : end])
        elif marker in (0xC2, 0xC6, 0xCA, 0xCE):
            progressive = True
    profile = b"".join(pieces[number] for number in sorted(pieces)) or None
    return ImageMetadata(_orientation(exif, xmp), profile, progressive)


def pillow_metadata(opened: Image.Image) -> ImageMetadata:
    """Return the metadata of an image that Pillow has loaded."""
    profile = opened.info.get("icc_profile")
    return ImageMetadata(_pillow_orientation(opened), profile if isinstance(profile, bytes) and profile else None)


def upright_size(opened: Image.Image, data: bytes) -> tuple[int, int]:
    """Return `(width, height)` of the upright image in a file that Pillow opened, if possible without decoding it."""
    width, height = opened.size
    if opened.format == "PNG" and not any(mark in data for mark in _LATE_IN_PNG):
        return width, height  # to read EXIF, Pillow would decode the whole image
    if opened.format == "TIFF":  # Pillow rotates these itself; it has swapped the sides already, but not for XMP
        early = getattr(opened, "tag_v2", {}).get(ORIENTATION)
        return (height, width) if early is None and _exif_orientation(opened) >= 5 else (width, height)
    if opened.format == "PNG":
        opened.load()
    return (height, width) if _pillow_orientation(opened) >= 5 else (width, height)


def _pillow_orientation(opened: Image.Image) -> int:
    return 1 if opened.format == "TIFF" else _exif_orientation(opened)


def _exif_orientation(opened: Image.Image) -> int:
    value = None
    with contextlib.suppress(Exception):  # damaged EXIF can make Pillow raise anything
        value = opened.getexif().get(ORIENTATION)
    if value is not None:
        return _valid_orientation(value)
    for name in _RAW_PROFILES:
        text = opened.info.get(name)
        if isinstance(text, str):
            with contextlib.suppress(ValueError):
                raw = bytes.fromhex("".join(text.split("\n")[3:]))
                found = _orientation(raw.removeprefix(_EXIF), raw)
                if found != 1:
                    return found
    return 1


def _orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the orientation in EXIF, or else in XMP."""
    value = None if exif is None else _tiff_orientation(exif)
    if value is None and xmp is not None:
        found = _IN_XMP.search(xmp)
        value = None if found is None else int(found.group(1))
    return 1 if value is None else _valid_orientation(value)


def _valid_orientation(value: object) -> int:
    if not isinstance(value, (int, float)) and not hasattr(value, "numerator"):
        return 1
    return next((turn for turn in range(2, 9) if turn == value), 1)


def _tiff_orientation(tiff: bytes) -> float | None:
    """Return the orientation in the first directory of EXIF's TIFF as it is, even if invalid; None if there is none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2], "")
    if not order:
        return None
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(entries):
            place = start + 2 + 12 * entry
            tag, kind, count, at = struct.unpack_from(f"{order}HHII", tiff, place)
            if tag != ORIENTATION:
                continue
            if count == 1 and kind in _INLINE_TYPES:
                return float(struct.unpack_from(f"{order}{_INLINE_TYPES[kind]}", tiff, place + 8)[0])
            if count == 1 and kind in _OFFSET_TYPES:
                parts = struct.unpack_from(f"{order}{_OFFSET_TYPES[kind]}", tiff, at)
                return float(parts[0]) if len(parts) == 1 else parts[0] / parts[1] if parts[1] else None
            return 1
    return None


def scans_in(data: bytes, most: int) -> int:
    """Return the number of scans in a JPEG up to its end, counted up to a little over `most`."""
    scans, position = 0, 2
    while scans <= most and (found := _MARKER.search(data, position)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        position = found.end()
        if found[1] not in b"\x01\xd8":  # which have no segment
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return scans


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of the segments before the pixels; bytes between segments are skipped."""
    position = 2
    while (position := data.find(b"\xff", position)) >= 0:
        while position < len(data) and data[position] == 0xFF:  # fill bytes
            position += 1
        if position + 3 > len(data):
            return
        marker = data[position]
        position += 1
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # a marker without a segment
            continue
        if marker in (0xD9, 0xDA):  # the end, or the pixels themselves
            return
        length = max(2, int.from_bytes(data[position : position + 2], "big"))
        yield marker, position + 2, min(position + length, len(data))
        position += length
