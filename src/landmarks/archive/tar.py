"""Read the headers of a TAR one after the other, without trusting what they say.

`members(read)` is the only walk over a TAR: `read(position, length)` may skip forward in a stream, or request a byte
range. A member's name never becomes a path; only an image's id is taken from it.

Layouts: POSIX.1-1988 (USTAR), POSIX.1-2001 (PAX), and GNU's long names and large numbers, as documented in the manuals
of `pax` and GNU tar.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from landmarks.support.requests import MirrorError

BLOCK = 512

MAX_IMAGE_BYTES = 64 << 20
"""A larger member is not read; the archive's largest images have about 1 MB."""

_MAX_EXTRA_HEADER_BYTES = 1 << 16
_END_MARK = bytes(BLOCK)
_CHECKSUM = slice(148, 156)

_PLAIN_FILES = b"\0" + b"07"
_KINDS_WITHOUT_DATA = b"123456"  # links, devices, folders, pipes
_GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL, _GNU_SPARSE = b"LKxgS"

_OCTAL = re.compile(rb"[0-7]+")  # int() also takes signs and underscores, and of a negative size no walk would end
_IMAGE = re.compile(r"(?:\./)*(?:(?!\.\./)[^/]+/)*([0-9a-f]{16})\.jpg")

Read = Callable[[int, int], bytes]
"""`read(position, length)` returns bytes of a TAR, fewer at its end; it is called with growing positions only."""


class HeaderError(MirrorError):
    """A block where a TAR header should be is not a valid header."""


class TruncatedError(MirrorError):
    """A TAR ends in the middle."""


@dataclass(frozen=True)
class Header:
    """One header block: the member's name (with USTAR's prefix), its size in bytes, and its type flag."""

    name: str
    size: int
    kind: int


@dataclass(frozen=True)
class Member:
    """One member: the image's `id` (None for anything else), its name, and the offset and size of its bytes."""

    id: str | None
    name: str
    offset: int
    size: int

    @property
    def next(self) -> int:
        """The position of the next header."""
        return self.offset + _padded(self.size)


def members(read: Read, *, start: int = 0, damaged: list[int] | None = None) -> Iterator[Member]:
    """Yield the members of a TAR, from the header at `start` to the end.

    Without `damaged`, a header that cannot be read raises an error. With it, the position of such a header is appended
    to it, and blocks are skipped until the next valid header.

    Raises:
        HeaderError: a header's checksum is wrong, or it uses a layout that is not supported.
        TruncatedError: the TAR ends before its end mark.
    """
    position, name, size = start, "", -1  # name and size come from an extra header before the member's own, if any
    while (block := _read_exactly(read, position, BLOCK)) != _END_MARK:
        try:
            header = parse_header(block)
            _require_supported(header, position)
        except HeaderError:
            if damaged is None:
                raise
            damaged.append(position)
            next_header = _next_valid_header(read, position + BLOCK)
            if next_header is None:
                return
            position, name, size = next_header, "", -1
            continue
        data = position + BLOCK
        if header.kind in (_GNU_NAME, _PAX):
            text = _read_exactly(read, data, header.size)
            if header.kind == _GNU_NAME:
                name = text.rstrip(b"\0").decode("utf-8", "replace")
            else:
                records = parse_pax(text)
                name, size = records.get("path", name), _parse_size(records.get("size", ""))
        elif header.kind not in (_GNU_LINK, _PAX_GLOBAL):
            length = 0 if header.kind in _KINDS_WITHOUT_DATA else header.size if size < 0 else size
            name = name or header.name
            yield Member(image_id(name) if header.kind in _PLAIN_FILES else None, name, data, length)
            position, name, size = data + _padded(length), "", -1
            continue
        position = data + _padded(header.size)


def _require_supported(header: Header, position: int) -> None:
    if header.kind in (_GNU_NAME, _PAX) and header.size > _MAX_EXTRA_HEADER_BYTES:
        raise HeaderError(
            f"an extra header at byte {position} is too large",
            received=header.size,
            expected=f"at most {_MAX_EXTRA_HEADER_BYTES}",
        )
    if header.kind == _GNU_SPARSE:
        raise HeaderError(f"a sparse member at byte {position} cannot be read")


def parse_header(block: bytes) -> Header:
    """Parse a header block of 512 bytes; raise `HeaderError` when its checksum or its size is not valid."""
    stored = _parse_number(block[_CHECKSUM])
    computed = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
    computed_signed = computed - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    if stored not in (computed, computed_signed):
        raise HeaderError("a TAR header's checksum is wrong", received=computed, expected=stored)
    name = _parse_text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_parse_text(block[345:500])}/{name}"
    size = _parse_number(block[124:136])
    if size is None:
        raise HeaderError("a TAR header's size is no number", received=block[124:136])
    return Header(name, size, block[156])


def parse_pax(text: bytes) -> dict[str, str]:
    """Parse the records `<length> <key>=<value>` of a PAX extra header, one a line; invalid ones are left out."""
    records: dict[str, str] = {}
    position = 0
    while position < len(text):
        space = text.find(b" ", position, position + 20)
        length = _parse_size(text[position:space].decode("ascii", "replace")) if space > 0 else -1
        if length <= space - position:
            break
        key, equals, value = text[space + 1 : position + length - 1].partition(b"=")
        if equals:
            records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        position += length
    return records


def image_id(name: str) -> str | None:
    """Return the id in a member's name such as `a/b/c/abc0123456789def.jpg`, or None when it is no image's name.

    A leading `./` and any folders are accepted, but not `..` or an absolute path.
    """
    match = _IMAGE.fullmatch(name)
    return match.group(1) if match else None


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _read_exactly(read: Read, position: int, length: int) -> bytes:
    data = read(position, length)
    if len(data) < length:
        where = "in the middle" if data else "without the mark of its end"
        raise TruncatedError(f"the TAR ends at byte {position + len(data)}, {where}")
    return data


def _next_valid_header(read: Read, position: int) -> int | None:
    """Return the position of the next valid header, or None when there is none up to the end."""
    while len(block := read(position, BLOCK)) == BLOCK:
        if block[257:262] == b"ustar":
            with contextlib.suppress(HeaderError):
                parse_header(block)
                return position
        position += BLOCK
    return None


def _parse_text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _parse_number(field: bytes) -> int | None:
    if field[0] & 0x80:  # GNU: big-endian, for numbers with too many octal digits
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else None
    digits = field.replace(b"\0", b" ").strip()
    if not digits:
        return 0
    return int(digits, 8) if _OCTAL.fullmatch(digits) else None


def _parse_size(text: str) -> int:
    """Return the decimal number in `text`, or -1 when it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
