"""How a selection is best fetched: for each TAR by byte ranges or by streaming, whichever costs less time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from landmarks.archive.index import TarIndex, spans
from landmarks.archive.mirror import Mirror, tar_path
from landmarks.archive.tar_to_shard import TarTask
from landmarks.support.console import plural
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.requests import MirrorError

Method = Literal["auto", "ranges", "stream"]
METHODS: tuple[Method, ...] = ("auto", "ranges", "stream")

BYTES_PER_SECOND = 100e6
"""What the line to a remote mirror is taken to carry; a folder, ten times as much."""

LEAST_GAP = 8_192
"""Bytes that always cost less than one more request: its own headers, and the work for it at both ends."""

WORTH = 0.9
"""Ranges are taken when they need less than this share of streaming's time, which has the MD5 on its side."""

MEAN_BYTES = 121_000
"""Mean size of an image of the published training set."""


@dataclass(frozen=True)
class Line:
    """What lies between a mirror and us: seconds that one request waits when all connections are busy, bytes/s."""

    wait: float
    bytes_per_second: float


@dataclass(frozen=True)
class Plan:
    """The work for each TAR, what it will cost, and why it is done so."""

    tasks: tuple[TarTask, ...]
    requests: int
    bytes: int
    disk_bytes: int
    seconds: float
    bytes_per_second: float
    why: str

    def __str__(self) -> str:
        ranged = sum(task.places is not None for task in self.tasks)
        how = f"{ranged} by byte ranges, {len(self.tasks) - ranged} streamed"
        return (
            f"{plural(len(self.tasks), 'TAR')} ({how}), {plural(self.requests, 'request')}, "
            f"{amount(self.bytes)} to move, at most {amount(self.disk_bytes)} on disk, "
            f"about {_duration(self.seconds)} of transfer at {amount(self.bytes_per_second)}/s; {self.why}"
        )

    __repr__ = __str__


def make_plan(task: TarTask, ids: np.ndarray[Any, np.dtype[np.uint64]], index: TarIndex | None, method: Method) -> Plan:
    """Decide for every TAR how it is read. `task` holds what is the same for all; `ids` are the selected images.

    Raises:
        UsageError: byte ranges are asked for without an index.
        LandmarksError: the index is of another set.
    """
    if method == "ranges" and index is None:
        raise UsageError("byte ranges need a byte index", way_out="make one with: landmarks locate MIRROR -o INDEX")
    if index is not None and index.set != task.set:
        raise LandmarksError(f"{index.path} is of another set", received=index.set, expected=task.set)
    line = _line(task.mirror, task.set)
    if index is not None and method != "stream":
        return _by_index(task, ids, index, method, line)
    why = "streaming was asked for"
    if method == "auto":
        why = "without a byte index every TAR is read whole (landmarks locate makes one)"
    tasks = _streamed(task, range(task.mirror.tar_count(task.set)))
    return _summary(tasks, len(ids), line, why)


def amount(bytes: float) -> str:
    """Write a number of bytes with the unit that suits it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes >= size:
            return f"{bytes / size:.2f} {unit}" if unit == "GB" else f"{bytes / size:.1f} {unit}"
    return f"{bytes:.0f} B"


def _by_index(task: TarTask, ids: Any, index: TarIndex, method: Method, line: Line) -> Plan:
    guarded = index.mirror == task.mirror.place  # another mirror has other ETags for the same bytes
    places = index.places(ids)
    ranged: list[TarTask] = []
    whole: list[int] = []
    saved = 0
    for tar, found in places.items():
        known = index.tars[tar]
        requests = tuple(spans(found, max(LEAST_GAP, int(line.bytes_per_second * line.wait))))
        moved = sum(span.end - span.start for span in requests)
        if method == "ranges" or _seconds(len(requests), moved, line) < WORTH * _seconds(1, known.size, line):
            etag = known.etag if guarded else None
            ranged.append(dataclasses.replace(task, tar=tar, size=known.size, etag=etag, places=found, spans=requests))
            saved += known.size - moved
        else:
            whole.append(tar)
    located = sum(map(len, places.values()))
    if located < len(ids):
        whole += index.unindexed
    tasks = sorted([*ranged, *_streamed(task, whole)], key=lambda one: one.tar)
    why = f"byte ranges move {amount(saved)} less than streaming the same TARs"
    if whole:
        why += f"; {len(whole)} TARs are streamed because that is quicker or the index lacks them"
    return _summary(tasks, len(ids), line, why)


def _seconds(requests: int, moved: float, line: Line) -> float:
    return requests * line.wait + moved / line.bytes_per_second


def _streamed(task: TarTask, tars: Sequence[int]) -> list[TarTask]:
    def described(tar: int) -> TarTask:
        try:
            size, etag = task.mirror.head(tar_path(task.set, tar))
        except MirrorError:  # the work on this TAR will meet it again, and tell
            return dataclasses.replace(task, tar=tar)
        return dataclasses.replace(task, tar=tar, size=size, etag=etag)

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(described, tars))


def _summary(tasks: Sequence[TarTask], images: int, line: Line, why: str) -> Plan:
    requests = moved = disk = 0
    for task in tasks:
        if task.places is None:
            requests += 1
            moved += task.size or 0
        else:
            requests += len(task.spans)
            moved += sum(span.end - span.start for span in task.spans)
            disk += int(task.places.lengths.sum())
            images -= len(task.places)
    streamed_bytes = sum(task.size or 0 for task in tasks if task.places is None)
    disk += min(images * MEAN_BYTES, streamed_bytes)
    return Plan(tuple(tasks), requests, moved, disk, _seconds(requests, moved, line), line.bytes_per_second, why)


def _line(mirror: Mirror, set: str) -> Line:
    """Measure what one small request takes (the quicker of two: the first opens the connection), assume the rest."""
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        mirror.exists(tar_path(set, 0))
        seconds.append(time.monotonic() - started)
    speed = BYTES_PER_SECOND * (10 if mirror.root else 1)
    return Line(min(seconds) / mirror.host.patience.connections, speed)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
