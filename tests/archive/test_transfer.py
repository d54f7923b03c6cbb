"""Images out of a TAR: streamed under its MD5, or by ranges under their headers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faulty_server import Fault, serving, weather
from hypothesis import given
from hypothesis import strategies as st
from tar_mirror import HASTY, STALLING, image, made_up_id, make_mirror, put_tar, tar_of

from landmarks.archive.locate import walk_headers
from landmarks.archive.mirror import Mirror, open_mirror
from landmarks.archive.tar import BLOCK, TruncatedError
from landmarks.archive.transfer import (
    MAX_OVERHEAD,
    MAX_SPAN_BYTES,
    ChangedError,
    Contents,
    FetchedImage,
    ForwardReader,
    Places,
    WrongMd5Error,
    membership_test,
    request_images,
    spans,
    stream_images,
)
from landmarks.support.requests import RangesRefusedError

TAR = "train/images_000.tar"


def quiet(bytes: int, images: int) -> None:
    pass


def streamed_from(mirror: Mirror, md5: str, wanted: set[str]) -> list[FetchedImage]:
    contents = Contents()
    return list(stream_images(mirror, TAR, md5=md5, wanted=wanted.__contains__, contents=contents, report=quiet))


def places_in(mirror: Mirror) -> Places:
    size, etag = mirror.head(TAR)
    rows = [(int(one.id or "0", 16), one.offset, one.size) for one in walk_headers(mirror, TAR, size, etag)]
    ids, offsets, lengths = zip(*rows, strict=True)
    return Places(np.array(ids, np.uint64), np.array(offsets, np.uint64), np.array(lengths, np.uint32))


def ranged_from(mirror: Mirror, places: Places, same: bool = True) -> Iterator[FetchedImage]:
    requests = spans(places, 0)
    return request_images(mirror, TAR, places=places, spans=requests, is_indexed_tar=lambda _: same, report=quiet)


@given(
    st.binary(max_size=3000),
    st.lists(st.integers(1, 700)),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900))),
)
def test_a_forward_reader_reads_like_a_slice(data: bytes, cuts: list[int], steps: list[tuple[int, int]]) -> None:
    def chunks() -> Iterator[bytes]:
        position = 0
        for cut in cuts:
            if data[position : position + cut]:
                yield data[position : position + cut]
            position += cut
        if data[position:]:
            yield data[position:]

    reader, position = ForwardReader(chunks(), quiet), 0
    for skip, length in steps:
        position += skip
        assert reader(position, length) == data[position : position + length]
        position += length
    assert reader.finish() == hashlib.md5(data).hexdigest()


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.integers(0, 2**64 - 1))
def test_membership_is_that_of_a_set(ids: list[int], other: int) -> None:
    wanted = membership_test(np.array(sorted(set(ids)), np.uint64))
    assert all(wanted(f"{id:016x}") for id in ids)
    assert wanted(f"{other:016x}") == (other in ids)


def test_streaming_and_ranges_give_the_same_images(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path, tars=1, each=8)
    with serving(tmp_path) as server:
        mirror = open_mirror(server.address, patience=HASTY)
        by_streaming = streamed_from(mirror, mirror.md5("train", 0), set(ids))
        assert list(ranged_from(mirror, places_in(mirror))) == by_streaming
    assert by_streaming == [FetchedImage(id, image(seed)) for seed, id in enumerate(ids)]


def test_only_what_is_wanted_comes_out(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path, tars=1, each=8)
    mirror = open_mirror(tmp_path)
    found = streamed_from(mirror, mirror.md5("train", 0), {ids[5], ids[2]})
    assert [one.id for one in found] == [ids[2], ids[5]]


def test_a_wrong_md5_is_an_error_at_the_end(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path, tars=1)
    with pytest.raises(WrongMd5Error, match="wrong MD5"):
        streamed_from(open_mirror(tmp_path), "0" * 32, set(ids))


def test_a_member_that_claims_gigabytes_is_never_allocated(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path, tars=1, each=2)
    data = bytearray((tmp_path / TAR).read_bytes())
    data[124:136] = b"77777777777\0"  # 8 GiB, and the checksum that goes with it
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    put_tar(tmp_path, 0, bytes(data))
    mirror = open_mirror(tmp_path)
    assert streamed_from(mirror, mirror.md5("train", 0), set(ids)) == [
        FetchedImage(ids[0], None, "claims 8589934591 bytes")
    ]
    with pytest.raises(TruncatedError, match="ends at byte"):  # with another MD5 the end may have been lost on the way
        streamed_from(mirror, "0" * 32, set(ids))


def test_answers_from_another_tar_are_noticed(tmp_path: Path) -> None:
    make_mirror(tmp_path, tars=1)
    mirror = open_mirror(tmp_path)
    places = places_in(mirror)
    with pytest.raises(ChangedError, match="not the file that was indexed"):
        list(ranged_from(mirror, places, same=False))
    moved = Places(places.ids[::-1].copy(), places.offsets, places.lengths)
    with pytest.raises(ChangedError, match="is not where the index says"):
        list(ranged_from(mirror, moved))
    shifted = Places(places.ids, places.offsets + np.uint64(512), places.lengths)
    with pytest.raises(ChangedError, match=r"header of .* is damaged"):
        list(ranged_from(mirror, shifted))


def test_ranges_survive_bad_weather_and_notice_a_server_without_them(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path, tars=1, each=30)
    faults = (None, Fault(status=503), Fault(cut_after=700), Fault(shift_range=512), Fault(stall_after=9))
    with serving(tmp_path) as calm:
        places = places_in(open_mirror(calm.address, patience=HASTY))
    every_other = Places(places.ids[::2], places.offsets[::2], places.lengths[::2])
    with serving(tmp_path, weather(*faults)) as bad:
        mirror = open_mirror(bad.address, patience=STALLING)
        found = list(ranged_from(mirror, every_other))
        assert mirror.host.retries > 0
    assert found == [FetchedImage(ids[seed], image(seed)) for seed in range(0, 30, 2)]
    with (
        serving(tmp_path, lambda request: Fault(ignore_range=True) if request.number > 4 else None) as forgetful,
        pytest.raises(RangesRefusedError),
    ):
        list(ranged_from(open_mirror(forgetful.address, patience=HASTY), every_other))


def test_other_members_are_noted_and_nothing_else(tmp_path: Path) -> None:
    id = made_up_id(1)
    put_tar(tmp_path, 0, tar_of([("../../evil", b"x"), (f"../{id}.jpg", b"y"), (f"./{id}.jpg", image(1))]))
    mirror, contents = open_mirror(tmp_path), Contents()
    found = list(
        stream_images(mirror, TAR, md5=mirror.md5("train", 0), wanted=lambda _: True, contents=contents, report=quiet)
    )
    assert found == [FetchedImage(id, image(1))]
    assert contents.other_members == ["../../evil", f"../{id}.jpg"]


# ── Requests for ranges hold every image, and never move more than they may ─────────────────────────────────────────


def places_of(sizes: list[int], gaps: list[int]) -> Places:
    offsets, position = [], 0
    for size, gap in zip(sizes, gaps, strict=True):
        position += gap + BLOCK
        offsets.append(position)
        position += size + -size % BLOCK
    count = len(sizes)
    return Places(np.arange(count, dtype=np.uint64), np.array(offsets, np.uint64), np.array(sizes, np.uint32))


rows = st.lists(st.tuples(st.integers(1, 300_000), st.integers(0, 2_000).map(lambda n: n * BLOCK)), min_size=1)


@given(rows, st.integers(0, 1_000_000))
def test_every_image_lies_in_one_request_with_its_header(found: list[tuple[int, int]], gap: int) -> None:
    places = places_of([size for size, _ in found], [gap for _, gap in found])
    requests = spans(places, gap)
    assert [row for one in requests for row in range(one.first, one.last)] == list(range(len(places)))
    for one in requests:
        for row in range(one.first, one.last):
            assert one.start <= int(places.offsets[row]) - BLOCK
            assert int(places.offsets[row]) + int(places.lengths[row]) <= one.end


@given(rows, st.integers(0, 1_000_000))
def test_merging_moves_at_most_its_share_and_asks_at_most_once_each(found: list[tuple[int, int]], gap: int) -> None:
    places = places_of([size for size, _ in found], [gap for _, gap in found])
    requests = spans(places, gap)
    wanted = int(places.lengths.sum())
    headers = BLOCK * len(places)
    moved = sum(one.end - one.start for one in requests)
    assert len(requests) <= len(places)
    assert moved <= max((1 + MAX_OVERHEAD) * wanted, wanted + headers)
    assert all(one.end - one.start <= MAX_SPAN_BYTES for one in requests if one.last - one.first > 1)


def test_the_smallest_gaps_are_closed_first() -> None:
    places = places_of([100_000] * 4, [0, 40_960, 4_096, 40_960])
    assert [(one.first, one.last) for one in spans(places, 1 << 20)] == [(0, 3), (3, 4)]  # the budget ends there
    assert [(one.first, one.last) for one in spans(places, 8_192)] == [(0, 1), (1, 3), (3, 4)]
    assert len(spans(places, 0)) == 4


def test_neighbours_without_a_gap_always_share_a_request() -> None:
    places = places_of([99_840] * 6, [0] * 6)
    assert len(spans(places, 0)) == 1
