"""The headers of a TAR: walking from one to the next, without ever trusting what they say.

`members(read)` is the one walk that everything shares: `read(position, length)` may skip forward in a stream, or be a
request for a range. A member's name never becomes a path; all that is taken from it is an image's id.

Layouts: POSIX.1-1988 (USTAR), POSIX.1-2001 (PAX) and GNU's long names and large numbers, as told in the manuals of
`pax` and GNU tar.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from landmarks.support.requests import MirrorError

BLOCK = 512

MOST_BYTES_OF_A_IMAGE = 64 << 20
"""The archive's largest have about 1 MB; a member that claims more than this is not read."""

_MOST_BYTES_OF_A_NAME = 1 << 16
_EMPTY = bytes(BLOCK)
_CHECKSUM = slice(148, 156)

_PLAIN_FILES = b"\0" + b"07"
_WITHOUT_DATA = b"123456"  # links, devices, folders, pipes
_GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL, _GNU_SPARSE = b"LKxgS"

_IMAGE = re.compile(r"(?:\./)*(?:(?!\.\./)[^/]+/)*([0-9a-f]{16})\.jpg")

Read = Callable[[int, int], bytes]
"""`read(position, length)` returns those bytes of a TAR, or fewer where it ends; positions only grow."""


class HeaderError(MirrorError):
    """A block that should be a TAR's header is none."""


class TruncatedError(MirrorError):
    """A TAR ends in the middle."""


@dataclass(frozen=True)
class Header:
    """One header block: its name (with USTAR's prefix), size in bytes and type."""

    name: str
    size: int
    kind: int


@dataclass(frozen=True)
class Member:
    """One member: the image's `id` (None: something else), where its bytes lie, and where the next header is."""

    id: str | None
    name: str
    offset: int
    size: int

    @property
    def next(self) -> int:
        """Where the header after this member stands."""
        return self.offset + _padded(self.size)


def members(read: Read, *, start: int = 0, damaged: list[int] | None = None) -> Iterator[Member]:
    """Yield the members of a TAR, from the header at `start` to the end.

    Without `damaged`, a damaged header ends the walk with an error. With it, the header's position is appended and the
    walk goes on at the next sound one: whole blocks are read until one is a header again.

    Raises:
        HeaderError: a header's checksum is wrong, or it uses a layout that no published TAR does.
        TruncatedError: the TAR ends before its end mark.
    """
    position, name, size = start, "", -1  # name and size: told by an extra header, for the next member
    while (block := _read_exactly(read, position, BLOCK)) != _EMPTY:
        try:
            header = parse_header(block)
        except HeaderError:
            if damaged is None:
                raise
            damaged.append(position)
            sound = _next_sound(read, position + BLOCK)
            if sound is None:
                return
            position, name, size = sound, "", -1
            continue
        data = position + BLOCK
        if header.kind in (_GNU_NAME, _PAX):
            text = _read_exactly(read, data, _bounded(header.size, position))
            if header.kind == _GNU_NAME:
                name = text.rstrip(b"\0").decode("utf-8", "replace")
            else:
                records = parse_pax(text)
                name, size = records.get("path", name), _whole_number(records.get("size", ""))
        elif header.kind not in (_GNU_LINK, _PAX_GLOBAL):
            if header.kind == _GNU_SPARSE:
                raise HeaderError(f"a sparse member at byte {position} cannot be read")
            length = 0 if header.kind in _WITHOUT_DATA else header.size if size < 0 else size
            name = name or header.name
            yield Member(image_id(name) if header.kind in _PLAIN_FILES else None, name, data, length)
            position, name, size = data + _padded(length), "", -1
            continue
        position = data + _padded(header.size)


def parse_header(block: bytes) -> Header:
    """Read one header block of 512 bytes; `HeaderError` when its checksum or its numbers are wrong."""
    told = _number(block[_CHECKSUM])
    counted = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
    if told != counted and told != counted - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        raise HeaderError("a TAR header's checksum is wrong", received=counted, expected=told)
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    size = _number(block[124:136])
    if size is None:
        raise HeaderError("a TAR header's size is no number", received=block[124:136])
    return Header(name, size, block[156])


def parse_pax(text: bytes) -> dict[str, str]:
    """Read the records of a PAX extra header, each `<length> <key>=<value>` and a new line; what is odd is left out."""
    records: dict[str, str] = {}
    position = 0
    while position < len(text):
        space = text.find(b" ", position, position + 20)
        length = _whole_number(text[position:space].decode("ascii", "replace")) if space > 0 else -1
        if length <= space - position:
            break
        key, equals, value = text[space + 1 : position + length - 1].partition(b"=")
        if equals:
            records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        position += length
    return records


def image_id(name: str) -> str | None:
    """Return the id in a member's name such as `a/b/c/abc0123456789def.jpg`; None when it names no image.

    `./` in front and any folders are accepted; a name that climbs (`..`) or starts at the root is not.
    """
    match = _IMAGE.fullmatch(name)
    return match.group(1) if match else None


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _read_exactly(read: Read, position: int, length: int) -> bytes:
    data = read(position, length)
    if len(data) < length:
        raise TruncatedError(f"the TAR ends at byte {position + len(data)}, in the middle")
    return data


def _next_sound(read: Read, position: int) -> int | None:
    """Return where the next sound header stands; None when there is none up to the end."""
    while len(block := read(position, BLOCK)) == BLOCK:
        if block[257:262] == b"ustar":
            with contextlib.suppress(HeaderError):
                parse_header(block)
                return position
        position += BLOCK
    return None


def _bounded(size: int, position: int) -> int:
    if size > _MOST_BYTES_OF_A_NAME:
        raise HeaderError(
            f"an extra header at byte {position} is too large",
            received=size,
            expected=f"at most {_MOST_BYTES_OF_A_NAME}",
        )
    return size


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _number(field: bytes) -> int | None:
    if field[0] & 0x80:  # GNU: big-endian, for what octal digits cannot hold
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else None
    digits = field.replace(b"\0", b" ").strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return None


def _whole_number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
