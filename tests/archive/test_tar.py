"""TAR headers: what Python's own tarfile writes is walked to the byte, and what is damaged or hostile is refused."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tar_mirror import made_up_id, member_name, tar_of

from landmarks.archive.tar import BLOCK, HeaderError, Member, TruncatedError, image_id, members, parse_header, parse_pax

FORMATS = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)


def walk(data: bytes, damaged: list[int] | None = None, start: int = 0) -> list[Member]:
    return list(members(lambda position, length: data[position : position + length], damaged=damaged, start=start))


names = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="/"), min_size=1, max_size=90)


@given(
    st.lists(st.tuples(st.lists(names, min_size=1, max_size=3), st.binary(max_size=1500)), max_size=5),
    st.sampled_from(FORMATS),
)
def test_members_lie_where_tarfile_says(contents: list[tuple[list[str], bytes]], format: int) -> None:
    if format == tarfile.USTAR_FORMAT:  # its names are short and fit into two fields
        contents = [([name[:15] for name in path], data) for path, data in contents]
    data = tar_of([("/".join(path), data) for path, data in contents], format)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(one.name, one.offset_data, one.size) for one in tar]
    assert [(one.name, one.offset, one.size) for one in walk(data)] == expected


@pytest.mark.parametrize("format", FORMATS)
def test_long_names_and_folders_and_links_are_understood(format: int) -> None:
    id = made_up_id(1)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=format) as tar:
        folder = tarfile.TarInfo("./a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "x" * 90
        tar.addfile(link)
        image = tarfile.TarInfo("./" + "d" * 80 + "/" + "e" * 40 + f"/{id}.jpg")
        image.size = 700
        tar.addfile(image, io.BytesIO(b"p" * 700))
    found = [one for one in walk(whole.getvalue()) if one.id]
    assert [one.id for one in found] == [id]
    assert whole.getvalue()[found[0].offset :][: found[0].size] == b"p" * 700


def test_a_large_size_in_base_256_is_read() -> None:
    info = tarfile.TarInfo("large")
    info.size = 9 << 30
    assert parse_header(info.tobuf(tarfile.GNU_FORMAT)).size == 9 << 30


def test_a_walk_can_begin_at_any_header() -> None:
    data = tar_of([(member_name(made_up_id(seed)), bytes(seed * 100)) for seed in range(5)])
    all_of_them = walk(data)
    assert walk(data, start=all_of_them[1].next) == all_of_them[2:]


@given(st.integers(0, BLOCK - 1), st.integers(1, 255))
def test_any_changed_byte_of_a_header_is_noticed(position: int, change: int) -> None:
    header = bytearray(tarfile.TarInfo("a/b/c.jpg").tobuf(tarfile.GNU_FORMAT))
    if header[position] == 0 and 148 <= position < 156:
        return  # the end of the checksum's own field may be a zero or a space
    before = parse_header(bytes(header))
    header[position] ^= change
    try:
        after = parse_header(bytes(header))
    except HeaderError:
        return
    assert 148 <= position < 156 and after == before


@given(st.binary(min_size=BLOCK, max_size=BLOCK))
def test_noise_is_no_header(block: bytes) -> None:
    if any(block):
        with pytest.raises(HeaderError):
            parse_header(block)


@given(st.binary(max_size=200))
def test_odd_extra_headers_end_quietly(text: bytes) -> None:
    assert isinstance(parse_pax(text), dict)


def test_a_damaged_header_ends_the_walk_or_is_stepped_over() -> None:
    data = bytearray(tar_of([(member_name(made_up_id(seed)), bytes(600)) for seed in range(4)]))
    broken = walk(bytes(data))[1].offset - BLOCK
    data[broken + 3] ^= 0xFF
    with pytest.raises(HeaderError, match="checksum"):
        walk(bytes(data))
    damaged: list[int] = []
    assert [one.id for one in walk(bytes(data), damaged)] == [made_up_id(seed) for seed in (0, 2, 3)]
    assert damaged == [broken]


@pytest.mark.parametrize("cut", [100, 512, 900, 2048])
def test_a_truncated_tar_is_noticed(cut: int) -> None:
    data = tar_of([(member_name(made_up_id(seed)), bytes(1000)) for seed in range(2)])
    with pytest.raises(TruncatedError):
        walk(data[:cut])


@pytest.mark.parametrize("size", [b"-0000001000", b"+0000001000", b"0000001_000", b"0o000001000", b"00000000008"])
def test_a_size_that_is_not_octal_alone_is_refused(size: bytes) -> None:
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size + b"\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(HeaderError, match="size is no number"):
        parse_header(bytes(header))


def test_an_extra_header_that_claims_gigabytes_is_refused_unread() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 32
    lengths: list[int] = []

    def read(position: int, length: int) -> bytes:
        lengths.append(length)
        return info.tobuf(tarfile.GNU_FORMAT)[position : position + length]

    with pytest.raises(HeaderError, match="too large"):
        list(members(read))
    assert max(lengths) == BLOCK


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("0/1/2/0123456789abcdef.jpg", "0123456789abcdef"),
        ("./0/1/2/0123456789abcdef.jpg", "0123456789abcdef"),
        ("train/0/1/2/0123456789abcdef.jpg", "0123456789abcdef"),
        ("0123456789abcdef.jpg", "0123456789abcdef"),
        ("../../0123456789abcdef.jpg", None),
        ("0/../0123456789abcdef.jpg", None),
        ("/0123456789abcdef.jpg", None),
        ("0/1/2/0123456789ABCDEF.jpg", None),
        ("0/1/2/0123456789abcde.jpg", None),
        ("0/1/2/0123456789abcdef.jpg/", None),
        ("0/1/2/0123456789abcdef.jpg\n", None),
        ("0/1/2/.0123456789abcdef.jpg", None),
        ("", None),
    ],
)
def test_only_a_images_name_has_an_id(name: str, id: str | None) -> None:
    assert image_id(name) == id
