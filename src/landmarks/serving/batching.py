"""Images that arrive together are answered together: a bounded queue before the recogniser, and threads behind it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from landmarks.dataset.images import ImageError, size_of
from landmarks.recognition.answers import Explanation, Recognition
from landmarks.recognition.learned_images import Learned
from landmarks.serving.counters import Counters
from landmarks.serving.request_limits import Limits, RefusalError, busy
from landmarks.support.errors import LandmarksError

MAX_BATCH = 32
"""Images that are answered at once."""

BATCH_SECONDS = 0.005
"""How long the first image of a batch waits for others while nothing else is to do."""

TOP = 5
"""Answers that a recogniser keeps of an image; a request takes as many of them as it wants."""


class Answering(Protocol):
    """What the server asks: a `Recogniser`, whatever it was opened from."""

    @property
    def names(self) -> Sequence[str]:
        """What each label is called."""

    @property
    def landmark_ids(self) -> Sequence[int]:
        """What each label stands for."""

    @property
    def seen_share(self) -> float:
        """Share of an image's shorter side that the square in its middle has which the network sees."""

    @property
    def learned(self) -> Learned:
        """Landmarks that were added to those it was trained for."""

    @property
    def can_learn(self) -> bool:
        """Whether landmarks can be added to it as it is."""

    def recognise(self, images: Iterable[bytes], top: int) -> Sequence[Recognition]:
        """Return the answers to several images."""

    def explain(self, images: Iterable[bytes], top: int) -> Sequence[Explanation]:
        """Return the answers to several images with a heat map for each."""


@dataclass(frozen=True)
class ServedRecogniser:
    """The recogniser that answers now, and what became of others that were put in its place."""

    recogniser: Answering
    generation: int = 1
    """Recognisers that have answered so far, this one included."""
    stamp: tuple[tuple[int, int, int] | None, ...] | None = None
    """Of the run's folder, where it was taught here: whoever watches the folder need not open it again."""
    refused: str | None = None
    """Why what lies in place now is not what answers."""


@dataclass(frozen=True)
class Reply:
    """What is said about one image."""

    found: Recognition
    generation: int
    """Which recogniser said it, from 1."""
    seen: tuple[float, float, float, float] | None = None
    """Left, top, right and bottom of the square that the maps cover, as shares of the upright image."""
    explained: Explanation | None = None
    """The heat maps, where they were asked for."""


@dataclass(eq=False)
class _Waiting:
    data: bytes
    top: int
    maps: bool
    reply: asyncio.Future[Reply]
    since: float = field(default_factory=time.monotonic)


class Batches:
    """The queue before a recogniser: takes images until it is full, and answers them in batches.

    One thread prepares a batch (decoding, in the recogniser's own threads) while another one answers; what arrives in
    the meantime makes up the next. `served` may be exchanged at any time: a batch keeps the one it began with.
    """

    def __init__(self, recogniser: Answering, limits: Limits, counters: Counters, *, threads: int = 2) -> None:
        self.served = ServedRecogniser(recogniser)
        self.limits = limits
        self.counters = counters
        self.exchanging = asyncio.Lock()  # held while another recogniser is opened and put in place
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._accepted = 0  # images, until they are answered
        self._seconds_per_image = 0.05  # a first guess; then what it was of late
        self._free = asyncio.Semaphore(threads)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="answers")
        self._loop_task = asyncio.get_running_loop().create_task(self._run())
        self._at_work: set[asyncio.Task[None]] = set()
        counters.accepted.set_function(lambda: self._accepted)

    def require_places(self, count: int) -> None:
        """Raise `RefusalError` (503) unless `count` more images can be accepted now."""
        if self._accepted + count > self.limits.queue:
            seconds = math.ceil(self._accepted * self._seconds_per_image)
            raise busy("too many images are waiting", retry_after=min(max(seconds, 1), 60))

    async def answer(self, images: Sequence[bytes], top: int, maps: bool) -> list[Reply]:
        """Return a reply to each image. Raises `RefusalError` (503), and accepts none, when there is no place for all.

        Cancelled, it takes those back that are not being answered yet.
        """
        self.require_places(len(images))
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(data, top, maps, loop.create_future()) for data in images]
        self._accepted += len(waiting)
        for one in waiting:
            one.reply.add_done_callback(self._answered)
        self._waiting.extend(waiting)
        self._arrived.set()
        return list(await asyncio.gather(*(one.reply for one in waiting)))

    def _answered(self, reply: asyncio.Future[Reply]) -> None:
        self._accepted -= 1
        if reply.cancelled():
            self.counters.images.labels("abandoned").inc()
        elif reply.exception() is None:
            self.counters.images.labels(_outcome(reply.result().found)).inc()
        else:
            self.counters.images.labels("failed").inc()

    async def close(self) -> None:
        """Answer what has been accepted, then end the threads."""
        while self._accepted:
            await asyncio.sleep(0.01)
        self._loop_task.cancel()
        await asyncio.gather(self._loop_task, *self._at_work, return_exceptions=True)
        self._threads.shutdown()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            await self._free.acquire()
            batch = await self._next_batch()
            if not batch:
                self._free.release()
                continue
            task = asyncio.get_running_loop().create_task(self._work(batch))
            self._at_work.add(task)
            task.add_done_callback(self._at_work.discard)

    async def _next_batch(self) -> list[_Waiting]:
        """Take what waits, at most `MAX_BATCH`; the first may wait a moment for others where none is being answered."""
        while self._waiting and self._waiting[0].reply.done():
            self._waiting.popleft()
        if self._waiting and not self._at_work and len(self._waiting) < MAX_BATCH:
            left = self._waiting[0].since + BATCH_SECONDS - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < MAX_BATCH:
            one = self._waiting.popleft()
            if not one.reply.done():  # done already: the client has gone
                batch.append(one)
        if not self._waiting:
            self._arrived.clear()
        return batch

    async def _work(self, batch: list[_Waiting]) -> None:
        began = time.monotonic()
        self.counters.batch.observe(len(batch))
        found: list[Reply | Exception]
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._threads, answer_all, self.served, batch, self.limits.max_pixels
            )
        except Exception as error:  # nobody waits for ever, whatever happened
            found = [error] * len(batch)
        finally:
            self._free.release()
        for one, reply in zip(batch, found, strict=True):
            if one.reply.done():
                continue
            if isinstance(reply, Reply):
                one.reply.set_result(reply)
            else:
                one.reply.set_exception(reply)
        seconds = (time.monotonic() - began) / len(batch)
        self._seconds_per_image += 0.1 * (seconds - self._seconds_per_image)


def answer_all(served: ServedRecogniser, batch: Sequence[_Waiting], max_pixels: int) -> list[Reply | Exception]:
    """Return a reply for each image of a batch, or the exception that answering it ended with.

    One image that the recogniser stumbles over takes no other with it: each is asked again alone.
    """
    replies: dict[int, Reply | Exception] = {}
    for at, one in enumerate(batch):
        if problem := image_problem(one.data, max_pixels):
            replies[at] = Reply(Recognition(problem=problem), served.generation)
    left = [at for at in range(len(batch)) if at not in replies]
    try:
        replies |= _ask(served, batch, left)
    except Exception as error:
        for at in left:
            try:
                replies |= _ask(served, batch, [at]) if len(left) > 1 else {at: error}
            except Exception as alone:
                replies[at] = alone
    return [replies[at] for at in range(len(batch))]


def _ask(served: ServedRecogniser, batch: Sequence[_Waiting], chosen: list[int]) -> dict[int, Reply | Exception]:
    if not chosen:
        return {}
    found = served.recogniser.recognise([batch[at].data for at in chosen], top=TOP)
    replies = {
        at: Reply(replace(one, answers=one.answers[: batch[at].top]), served.generation)
        for at, one in zip(chosen, found, strict=True)
    }
    wanted = [at for at in chosen if batch[at].maps and replies[at].found.problem is None]
    if wanted:
        top = max(batch[at].top for at in wanted)
        try:
            explained = served.recogniser.explain([batch[at].data for at in wanted], top=top)
        except LandmarksError as error:
            raise RefusalError(422, str(error), received="maps=true", way_out="ask without maps") from error
        for at, explanation in zip(wanted, explained, strict=True):
            seen = visible_square(served.recogniser, size_of(batch[at].data))
            replies[at] = replace(replies[at], explained=explanation, seen=seen)
    return {**replies}


def image_problem(data: bytes, max_pixels: int) -> str | None:
    """Return what is wrong with an image as far as its headers tell, None if nothing is."""
    try:
        width, height = size_of(data)
    except ImageError as error:
        return str(error)
    if width * height > max_pixels:
        return f"an image is too large; received {width} × {height} pixels; expected at most {max_pixels:,} pixels"
    return None


def visible_square(recogniser: Answering, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom, as shares, of the square in the middle that a recogniser sees of an image."""
    width, height = size
    side = min(width, height) * recogniser.seen_share
    left, top = (1 - side / width) / 2, (1 - side / height) / 2
    return left, top, 1 - left, 1 - top


def _outcome(found: Recognition) -> str:
    if found.problem is not None:
        return "unreadable"
    return {True: "known", False: "unknown", None: "answered"}[found.known]
