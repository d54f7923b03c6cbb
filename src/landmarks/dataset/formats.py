"""File formats known by their bytes: other kinds of files, HEIC, and PNGs that Pillow refuses."""

from __future__ import annotations

import functools
import importlib
import zlib
from collections.abc import Iterator

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
