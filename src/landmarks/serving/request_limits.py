"""Limits on requests (bytes, pixels, files and time), and the refusals of requests that exceed them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from landmarks.support.errors import UsageError

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_FILES = 32
"""Most images in one request."""


class RefusalError(Exception):
    """A request is refused: the status of the response, and the four facts in its body."""

    def __init__(
        self,
        status: int,
        what: str,
        *,
        received: object = None,
        expected: object = None,
        way_out: str | None = None,
        reason: str = "input",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(what)
        self.status = status
        self.reason = reason  # what it is counted under: input, size, slow, busy, token, stopping, fault
        self.headers = {"content-type": "application/json"}
        if retry_after is not None:
            self.headers["retry-after"] = str(retry_after)
        if status == 401:
            self.headers["www-authenticate"] = "Bearer"
        facts = {"what": what, "received": received, "expected": expected, "way_out": way_out}
        texts = {name: None if fact is None else str(fact) for name, fact in facts.items()}
        self.body = json.dumps(texts, ensure_ascii=False).encode(errors="replace")


@dataclass(frozen=True)
class Limits:
    """Limits on one request, and on all requests together."""

    max_bytes: int = 20_000_000
    """Largest body of a request, with all its images."""
    max_pixels: int = 50_000_000
    """Largest width times height of an image: that of today's phone cameras."""
    queue: int = 128
    """Most images that are accepted and not yet answered."""
    seconds: float = 30.0
    """Time to receive the headers of a request, and again to receive its body."""
    max_files: int = MAX_FILES

    def __post_init__(self) -> None:
        for name, least in (("max_bytes", 1), ("max_pixels", 1), ("queue", 1), ("max_files", 1)):
            if getattr(self, name) < least:
                raise UsageError(
                    f"--{name.replace('_', '-')} is too small",
                    received=getattr(self, name),
                    expected=f"{least} or more",
                )
        if not self.seconds > 0:
            raise UsageError("--seconds is too small", received=self.seconds, expected="more than 0")

    @property
    def most_files(self) -> int:
        """Most images in one request, never more than the queue can hold."""
        return min(self.max_files, self.queue)

    @property
    def held_bytes(self) -> int:
        """Largest total size of bodies in memory at a time."""
        return max(256_000_000, 4 * self.max_bytes)


@dataclass
class UploadMemory:
    """The bytes of all bodies in memory, which bounds simultaneous uploads together."""

    limit: int
    used: int = 0


@dataclass
class Body:
    """The body of a request, read into memory; call `release` when it is no longer needed."""

    memory: UploadMemory
    data: bytearray = field(default_factory=bytearray)
    counted: int = 0

    def add(self, chunk: bytes, max_bytes: int) -> None:
        """Append a chunk. Raises `RefusalError` if the body, or all bodies together, become too large."""
        if len(self.data) + len(chunk) > max_bytes:
            raise too_large(f"more than {max_bytes:,} bytes", max_bytes)
        if self.memory.used + len(chunk) > self.memory.limit:
            raise busy("too many uploads at once", retry_after=2)
        self.memory.used += len(chunk)
        self.counted += len(chunk)
        self.data += chunk

    def release(self) -> None:
        """Discard the data and free its share of the memory."""
        self.memory.used -= self.counted
        self.counted = 0
        self.data = bytearray()


def too_large(received: str, max_bytes: int) -> RefusalError:
    """Return the refusal of a body larger than `max_bytes`."""
    return RefusalError(
        413,
        "the request is too large",
        received=received,
        expected=f"at most {max_bytes:,} bytes",
        way_out="send fewer images at once, or smaller ones: a side of 1,000 pixels is plenty",
        reason="size",
    )


def busy(what: str, retry_after: int) -> RefusalError:
    """Return the refusal of a busy server, to be tried again in `retry_after` seconds."""
    return RefusalError(
        503,
        what,
        expected="a free place in the queue",
        way_out=f"try again in {retry_after} s",
        reason="busy",
        retry_after=retry_after,
    )


def stopping() -> RefusalError:
    """Return the refusal of a server that is stopping."""
    return RefusalError(503, "the server is stopping", way_out="try again", reason="stopping", retry_after=5)


class HungUpError(Exception):
    """The client has disconnected."""


async def read_body(receive: Receive, length: str | None, body: Body, limits: Limits, stopped: asyncio.Event) -> None:
    """Read a request's body into `body`.

    `length` is the header Content-Length; a body that is too large by it is refused unread. Raises `RefusalError` when
    the body is too large (413) or too slow (408), all bodies together are too large (503), or the server stops (503),
    and `HungUpError` when the client disconnects.
    """
    if length is not None and length.isascii() and length.isdigit() and int(length) > limits.max_bytes:
        raise too_large(f"{int(length):,} bytes", limits.max_bytes)
    reading = asyncio.ensure_future(_read_all(receive, body, limits.max_bytes))
    end = asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait((reading, end), timeout=limits.seconds, return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            reading.result()
        elif end.done():
            raise stopping()
        else:
            raise RefusalError(
                408,
                "the request came too slowly",
                received=f"{len(body.data):,} bytes in {limits.seconds:g} s",
                expected=f"all of it in {limits.seconds:g} s",
                way_out="send smaller images, or fewer at once",
                reason="slow",
            )
    finally:
        reading.cancel()
        end.cancel()


async def _read_all(receive: Receive, body: Body, max_bytes: int) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HungUpError
        body.add(message.get("body", b""), max_bytes)
        if not message.get("more_body", False):
            return
