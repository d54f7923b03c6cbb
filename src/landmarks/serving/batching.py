"""Batching: a bounded queue collects the images that arrive, and threads answer them in batches."""

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
from landmarks.recognition.learned import Learned
from landmarks.serving.front import Counters, Limits, RefusalError, busy
from landmarks.support.errors import LandmarksError

MAX_BATCH = 32
"""Most images in a batch."""

BATCH_SECONDS = 0.005
"""How long the first image of a batch waits for others while the threads are idle."""

TOP = 5
"""Answers computed per image; a request returns as many of them as it asks for."""


class Answering(Protocol):
    """What the server needs of a `Recogniser`."""

    @property
    def names(self) -> Sequence[str]:
        """The name of each label."""

    @property
    def landmark_ids(self) -> Sequence[int]:
        """The landmark id of each label."""

    @property
    def seen_share(self) -> float:
        """Side of the central square that the network sees, as a share of an image's shorter side."""

    @property
    def learned(self) -> Learned:
        """Landmarks added to those it was trained for."""

    @property
    def can_learn(self) -> bool:
        """Whether landmarks can be added to it."""

    def recognise(self, images: Iterable[bytes], top: int) -> Sequence[Recognition]:
        """Return the answers to several images."""

    def explain(self, images: Iterable[bytes], top: int) -> Sequence[Explanation]:
        """Return the answers to several images, with a heat map for each answer."""


@dataclass(frozen=True)
class ServedRecogniser:
    """The recogniser that answers now."""

    recogniser: Answering
    generation: int = 1
    """1 for the first recogniser of a server, 2 for the one that replaced it, and so on."""
    stamp: tuple[tuple[int, int, int] | None, ...] | None = None
    """Of the run's folder after teaching, so that the watcher does not open it again."""
    refused: str | None = None
    """Why a newer recogniser was not accepted; None: there is none."""


@dataclass(frozen=True)
class Reply:
    """The answer to one image."""

    recognition: Recognition
    generation: int
    """Of the recogniser that answered."""
    seen: tuple[float, float, float, float] | None = None
    """Left, top, right and bottom of the square that the maps cover, as shares of the upright image."""
    explanation: Explanation | None = None
    """The heat maps, if they were requested."""


@dataclass(eq=False)
class _Request:
    """An image in the queue."""

    data: bytes
    top: int
    maps: bool
    reply: asyncio.Future[Reply]
    since: float = field(default_factory=time.monotonic)


class Batches:
    """The queue of a recogniser: accepts images until it is full, and answers them in batches.

    While one thread's batch is being decoded (in the recogniser's own threads), another's is being answered; images
    that arrive meanwhile form the next batch. `served` may be replaced at any time; a batch keeps the recogniser that
    it started with.
    """

    def __init__(self, recogniser: Answering, limits: Limits, counters: Counters, *, threads: int = 2) -> None:
        self.served = ServedRecogniser(recogniser)
        self.limits = limits
        self.counters = counters
        self.exchanging = asyncio.Lock()  # held while the recogniser is being replaced
        self._waiting: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._accepted = 0  # images not yet answered
        self._seconds_per_image = 0.05  # an initial guess, then a moving average
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
        """Return a reply to each image. Raises `RefusalError` (503), accepting none, unless there is room for all.

        When cancelled, it withdraws the images that are not being answered yet.
        """
        self.require_places(len(images))
        loop = asyncio.get_running_loop()
        requests = [_Request(data, top, maps, loop.create_future()) for data in images]
        self._accepted += len(requests)
        for request in requests:
            request.reply.add_done_callback(self._on_reply)
        self._waiting.extend(requests)
        self._arrived.set()
        return list(await asyncio.gather(*(request.reply for request in requests)))

    def _on_reply(self, reply: asyncio.Future[Reply]) -> None:
        self._accepted -= 1
        if reply.cancelled():
            self.counters.images.labels("abandoned").inc()
        elif reply.exception() is None:
            self.counters.images.labels(_outcome(reply.result().recognition)).inc()
        else:
            self.counters.images.labels("failed").inc()

    async def close(self) -> None:
        """Answer what has been accepted, then stop the threads."""
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

    async def _next_batch(self) -> list[_Request]:
        """Take at most `MAX_BATCH` waiting requests; if no batch is being answered, wait a moment for more."""
        while self._waiting and self._waiting[0].reply.done():
            self._waiting.popleft()
        if self._waiting and not self._at_work and len(self._waiting) < MAX_BATCH:
            left = self._waiting[0].since + BATCH_SECONDS - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
        batch: list[_Request] = []
        while self._waiting and len(batch) < MAX_BATCH:
            request = self._waiting.popleft()
            if not request.reply.done():  # cancelled if the client has disconnected
                batch.append(request)
        if not self._waiting:
            self._arrived.clear()
        return batch

    async def _work(self, batch: list[_Request]) -> None:
        began = time.monotonic()
        self.counters.batch.observe(len(batch))
        replies: list[Reply | Exception]
        try:
            replies = await asyncio.get_running_loop().run_in_executor(
                self._threads, answer_all, self.served, batch, self.limits.max_pixels
            )
        except Exception as error:  # whatever happened, every request gets a reply
            replies = [error] * len(batch)
        finally:
            self._free.release()
        for request, reply in zip(batch, replies, strict=True):
            if request.reply.done():
                continue
            if isinstance(reply, Reply):
                request.reply.set_result(reply)
            else:
                request.reply.set_exception(reply)
        seconds = (time.monotonic() - began) / len(batch)
        self._seconds_per_image += 0.1 * (seconds - self._seconds_per_image)


def answer_all(served: ServedRecogniser, batch: Sequence[_Request], max_pixels: int) -> list[Reply | Exception]:
    """Return for each image of a batch a reply, or the exception that answering it raised.

    If the batch as a whole fails, its images are answered one by one, so that one of them cannot spoil the others.
    """
    replies: dict[int, Reply | Exception] = {}
    for at, request in enumerate(batch):
        if problem := image_problem(request.data, max_pixels):
            replies[at] = Reply(Recognition(problem=problem), served.generation)
    left = [at for at in range(len(batch)) if at not in replies]
    try:
        replies |= _answer(served, batch, left)
    except Exception as error:
        for at in left:
            try:
                replies |= _answer(served, batch, [at]) if len(left) > 1 else {at: error}
            except Exception as own_error:
                replies[at] = own_error
    return [replies[at] for at in range(len(batch))]


def _answer(served: ServedRecogniser, batch: Sequence[_Request], chosen: list[int]) -> dict[int, Reply | Exception]:
    if not chosen:
        return {}
    recognitions = served.recogniser.recognise([batch[at].data for at in chosen], top=TOP)
    replies = {
        at: Reply(replace(recognition, answers=recognition.answers[: batch[at].top]), served.generation)
        for at, recognition in zip(chosen, recognitions, strict=True)
    }
    with_maps = [at for at in chosen if batch[at].maps and replies[at].recognition.problem is None]
    if with_maps:
        top = max(batch[at].top for at in with_maps)
        try:
            explanations = served.recogniser.explain([batch[at].data for at in with_maps], top=top)
        except LandmarksError as error:
            raise RefusalError(422, str(error), received="maps=true", way_out="ask without maps") from error
        for at, explanation in zip(with_maps, explanations, strict=True):
            seen = visible_square(served.recogniser, size_of(batch[at].data))
            replies[at] = replace(replies[at], explanation=explanation, seen=seen)
    return {**replies}


def image_problem(data: bytes, max_pixels: int) -> str | None:
    """Return what is wrong with an image according to its header; None if nothing is."""
    try:
        width, height = size_of(data)
    except ImageError as error:
        return str(error)
    if width * height > max_pixels:
        return f"an image is too large; received {width} × {height} pixels; expected at most {max_pixels:,} pixels"
    return None


def visible_square(recogniser: Answering, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom, as shares, of the central square of an image that a recogniser sees."""
    width, height = size
    side = min(width, height) * recogniser.seen_share
    left, top = (1 - side / width) / 2, (1 - side / height) / 2
    return left, top, 1 - left, 1 - top


def _outcome(recognition: Recognition) -> str:
    if recognition.problem is not None:
        return "unreadable"
    return {True: "known", False: "unknown", None: "answered"}[recognition.known]
