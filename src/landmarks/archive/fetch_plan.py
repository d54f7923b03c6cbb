"""Plan how to fetch a selection: for each TAR by byte ranges or by streaming, whichever takes less time."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from landmarks.archive.locate import TarIndex
from landmarks.archive.mirror import PUBLISHED_BYTES, Mirror, tar_path
from landmarks.archive.tar_to_shard import TarTask
from landmarks.archive.transfer import spans
from landmarks.support.console import plural
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.requests import MirrorError

Method = Literal["auto", "ranges", "stream"]
METHODS: tuple[Method, ...] = ("auto", "ranges", "stream")

BYTES_PER_SECOND = 100e6
"""Assumed throughput of a connection to a remote mirror; that of a folder is ten times as much."""

MIN_GAP_BYTES = 8_192
"""A gap of this size always costs less than one more request, with its headers and the work at both ends."""

MAX_TIME_SHARE_OF_RANGES = 0.9
"""Ranges are chosen when they take less than this share of the time of streaming, which can check the MD5."""


@dataclass(frozen=True)
class Throughput:
    """What a mirror delivers through all its connections: seconds that each request adds, and bytes per second."""

    seconds_per_request: float
    bytes_per_second: float

    def seconds(self, requests: int, bytes: float) -> float:
        """Return how many seconds `requests` take that transfer `bytes` in all."""
        return requests * self.seconds_per_request + bytes / self.bytes_per_second


@dataclass(frozen=True)
class FetchPlan:
    """The work on each TAR, its cost, and the reason for the chosen methods."""

    tasks: tuple[TarTask, ...]
    requests: int
    bytes: int
    disk_bytes: int
    seconds: float
    bytes_per_second: float
    why: str

    def __str__(self) -> str:
        ranged = sum(task.places is not None for task in self.tasks)
        methods = f"{ranged} by byte ranges, {len(self.tasks) - ranged} streamed"
        return (
            f"{plural(len(self.tasks), 'TAR')} ({methods}), {plural(self.requests, 'request')}, "
            f"{amount(self.bytes)} to move, at most {amount(self.disk_bytes)} on disk, "
            f"about {_duration(self.seconds)} of transfer at {amount(self.bytes_per_second)}/s; {self.why}"
        )

    __repr__ = __str__


def make_plan(
    template: TarTask, ids: np.ndarray[Any, np.dtype[np.uint64]], index: TarIndex | None, method: Method
) -> FetchPlan:
    """Decide how to read each TAR, to fetch the images `ids`, `(N,)`; `template` has the fields that all tasks share.

    Raises:
        UsageError: `method` is "ranges", but there is no index.
        LandmarksError: the index is of another set.
    """
    if method == "ranges" and index is None:
        raise UsageError("byte ranges need a byte index", way_out="make one with: landmarks locate MIRROR -o INDEX")
    if index is not None and index.set != template.set:
        raise LandmarksError(f"{index.path} is of another set", received=index.set, expected=template.set)
    throughput = _estimate_throughput(template.mirror, template.set)
    if index is not None and method != "stream":
        return _plan_by_index(template, ids, index, method, throughput)
    why = "streaming was asked for"
    if method == "auto":
        why = "without a byte index every TAR is read whole (landmarks locate makes one)"
    tasks = _streaming_tasks(template, range(template.mirror.tar_count(template.set)))
    return _plan_of(tasks, len(ids), throughput, why)


def amount(bytes: float) -> str:
    """Return a number of bytes as text with a suitable unit, such as `1.5 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes >= size:
            return f"{bytes / size:.2f} {unit}" if unit == "GB" else f"{bytes / size:.1f} {unit}"
    return f"{bytes:.0f} B"


def _plan_by_index(template: TarTask, ids: Any, index: TarIndex, method: Method, throughput: Throughput) -> FetchPlan:
    same_mirror = index.mirror == template.mirror.place  # another mirror has other ETags for the same bytes
    largest_gap = max(MIN_GAP_BYTES, int(throughput.bytes_per_second * throughput.seconds_per_request))
    places_by_tar = index.places(ids)
    ranged: list[TarTask] = []
    streamed: list[int] = []
    saved_bytes = 0
    for tar, places in places_by_tar.items():
        indexed = index.tars[tar]
        requests = tuple(spans(places, largest_gap))
        moved = sum(span.end - span.start for span in requests)
        longest = MAX_TIME_SHARE_OF_RANGES * throughput.seconds(1, indexed.size)
        if method == "ranges" or throughput.seconds(len(requests), moved) < longest:
            etag = indexed.etag if same_mirror else None
            ranged.append(
                dataclasses.replace(template, tar=tar, size=indexed.size, etag=etag, places=places, spans=requests)
            )
            saved_bytes += indexed.size - moved
        else:
            streamed.append(tar)
    indexed_ids = [places.ids for places in places_by_tar.values()]
    if not indexed_ids or len(np.unique(np.concatenate(indexed_ids))) < len(ids):
        streamed += index.unindexed
    tasks = sorted([*ranged, *_streaming_tasks(template, streamed)], key=lambda task: task.tar)
    why = f"byte ranges move {amount(saved_bytes)} less than streaming the same TARs"
    if streamed:
        why += f"; {plural(len(streamed), 'TAR', 'are')} streamed because that is quicker or the index lacks them"
    return _plan_of(tasks, len(ids), throughput, why)


def _streaming_tasks(template: TarTask, tars: Sequence[int]) -> list[TarTask]:
    def task_of(tar: int) -> TarTask:
        try:
            size, etag = template.mirror.head(tar_path(template.set, tar))
        except MirrorError:  # the work on this TAR will report it
            return dataclasses.replace(template, tar=tar)
        return dataclasses.replace(template, tar=tar, size=size, etag=etag)

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(task_of, tars))


def _plan_of(tasks: Sequence[TarTask], images: int, throughput: Throughput, why: str) -> FetchPlan:
    """Return the plan of the tasks, with their total cost. `images` is the number of selected images."""
    requests = moved = disk = 0
    for task in tasks:
        if task.places is None:
            requests += 1
            moved += task.size or 0
        else:
            requests += len(task.spans)
            moved += sum(span.end - span.start for span in task.spans)
            disk += int(task.places.lengths.sum())
            images -= len(task.places)  # below zero where images lie twice
    streamed_bytes = sum(task.size or 0 for task in tasks if task.places is None)
    disk += min(max(images, 0) * PUBLISHED_BYTES["train"], streamed_bytes)
    return FetchPlan(
        tasks=tuple(tasks),
        requests=requests,
        bytes=moved,
        disk_bytes=disk,
        seconds=throughput.seconds(requests, moved),
        bytes_per_second=throughput.bytes_per_second,
        why=why,
    )


def _estimate_throughput(mirror: Mirror, set: str) -> Throughput:
    """Measure the time of a small request (the quicker of two, as the first connects); assume the bytes per second.

    Where that request fails, which the work on this TAR will report, it is the time that the failure took.
    """
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        with contextlib.suppress(MirrorError):
            mirror.exists(tar_path(set, 0))
        seconds.append(time.monotonic() - started)
    bytes_per_second = BYTES_PER_SECOND * (10 if mirror.root else 1)
    return Throughput(min(seconds) / mirror.host.patience.connections, bytes_per_second)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
