"""Requests for ranges: they hold every image, and never move more than they may."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from landmarks.archive.index import MAX_OVERHEAD, MAX_SPAN_BYTES, Places, spans
from landmarks.archive.tar import BLOCK


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
