"""Which byte ranges to ask for: near ones are merged where moving the gap is cheaper than one more request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from landmarks.archive.tarheader import BLOCK

MOST_OVERHEAD = 0.15
"""Gaps and headers together never move more than this share of the wanted bytes."""

MOST_BYTES_OF_A_SPAN = 1 << 20
"""A merged range is no larger than this, so that little is held in memory and little repeated after a fault."""


@dataclass(frozen=True)
class Places:
    """Where photographs lie in one TAR, in the TAR's order: ids (as integers), offsets and lengths in bytes, `(P,)`."""

    ids: np.ndarray[Any, np.dtype[np.uint64]]
    offsets: np.ndarray[Any, np.dtype[np.uint64]]
    lengths: np.ndarray[Any, np.dtype[np.uint32]]

    def __len__(self) -> int:
        return len(self.ids)

    def id_of(self, row: int) -> str:
        """Return the photograph's id as 16 hex digits."""
        return f"{int(self.ids[row]):016x}"


@dataclass(frozen=True)
class Span:
    """One request: bytes `start` up to `end` of the TAR, which hold the places `first` up to `last`."""

    start: int
    end: int
    first: int
    last: int


def spans(places: Places, largest_gap: int) -> list[Span]:
    """Return the requests for all places, each with its header in front.

    Two neighbours share a request when at most `largest_gap` bytes lie between them; the smallest gaps are closed
    first, as long as everything that moves stays within 1 + `MOST_OVERHEAD` times the photographs' own bytes.
    """
    starts = places.offsets.astype(np.int64) - BLOCK
    ends = places.offsets.astype(np.int64) + places.lengths
    gaps = np.maximum(starts[1:] - ends[:-1], 0)
    budget = MOST_OVERHEAD * float(places.lengths.sum()) - BLOCK * len(places)
    closed = np.zeros(len(gaps), bool)
    order = np.argsort(gaps, kind="stable")
    affordable = (gaps[order] <= largest_gap) & (np.cumsum(gaps[order]) <= max(0.0, budget))
    closed[order[affordable]] = True
    result: list[Span] = []
    for row in range(len(places)):
        start, end = int(starts[row]), int(ends[row])
        before = result[-1] if result else None
        if before is not None and closed[row - 1] and end - before.start <= MOST_BYTES_OF_A_SPAN:
            result[-1] = Span(before.start, max(end, before.end), before.first, row + 1)
        else:
            result.append(Span(start, end, row, row + 1))
    return result
