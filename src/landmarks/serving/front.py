"""What stands before every path: the token, headers and refusals, limits on requests, and what is counted.

The limits are on bytes, pixels, files and time. No traceback reaches a client.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from traceback import extract_tb
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from landmarks.support.console import note
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


# ── The middleware ──────────────────────────────────────────────────────────────────────────────────────────────────


Scope: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN = "LANDMARKS_TOKEN"
"""The environment variable that holds the bearer token."""

OPEN = ("/", "/healthz", "/openapi.json")
"""Paths that need no token: the page, which asks for it, and those that reveal nothing about images."""

COUNTED = (*OPEN, "/recognise", "/landmarks", "/metrics")

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-opener-policy", b"same-origin"),
)

NOTHING_LOADS = b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""Content-Security-Policy of every response that is not a page."""


def token_of_environment() -> str | None:
    """Return the bearer token, None if none is set. Raises `UsageError` for one that no header can carry."""
    token = os.environ.get(TOKEN)
    if token is None:
        return None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"{TOKEN} is no token",
            received="an empty text" if not token else f"{len(token)} characters, not all of them ASCII without spaces",
            expected="printable ASCII without spaces or line ends",
            way_out=f"make one with: export {TOKEN}=$(openssl rand -hex 32)",
        )
    return token


class Front:
    """ASGI middleware, which checks the token, adds headers, hides tracebacks and counts."""

    def __init__(self, app: App, *, counters: Counters, token: str | None = None) -> None:
        self.app = app
        self.counters = counters
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every error becomes a body of four facts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = (
            scope["path"]
            if scope["path"] in COUNTED
            else "/landmarks/{name}"
            if scope["path"].startswith("/landmarks/")
            else "other"
        )
        began, status = time.perf_counter(), 0

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name for name, _ in message["headers"]}
                defaults = (*HEADERS, (b"content-security-policy", NOTHING_LOADS))
                added = [pair for pair in defaults if pair[0] not in present]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        try:
            self._require_token(scope)
            await self.app(scope, receive, sending)
        except RefusalError as refusal:
            await send_refusal(refusal, sending, self.counters)
        except HungUpError:
            status = 499  # the usual code for a client that disconnected; nothing was sent
        except Exception as error:
            frame = extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            note(f"error: {type(error).__name__} at {where} while answering {path} (unforeseen)")
            if status:
                raise
            await send_refusal(RefusalError(500, "the server made a mistake", reason="fault"), sending, self.counters)
        finally:
            self.counters.requests.labels(path, str(status)).inc()
            self.counters.seconds.labels(path).observe(time.perf_counter() - began)

    def _require_token(self, scope: Scope) -> None:
        if self._token is None or scope["path"] in OPEN:
            return
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, token = header.partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            raise RefusalError(
                401,
                "this server answers with a token only",
                received="another token" if header else "none",
                expected="Authorization: Bearer TOKEN",
                way_out=f"ask whoever runs it; it stands in {TOKEN} there",
                reason="token",
            )


async def send_refusal(refusal: RefusalError, send: Send, counters: Counters) -> None:
    """Send a refusal as JSON, and count it."""
    counters.refused.labels(refusal.reason).inc()
    headers = {**refusal.headers, "content-length": str(len(refusal.body))}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": refusal.body})


# ── The metrics, in the format of Prometheus ────────────────────────────────────────────────────────────────────────


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

BATCHES = (1, 2, 4, 8, 16, 32)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counters:
    """The server's metrics; none says where an image came from or what it is called."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "landmarks_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "landmarks_request_seconds",
            "Seconds from a request's headers to its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.images = Counter(
            "landmarks_images",
            "Accepted images by outcome: known, unknown, answered (no threshold), unreadable, failed, abandoned.",
            ["outcome"],
            registry=self.registry,
        )
        self.refused = Counter(
            "landmarks_refused", "Requests that were not accepted, by reason.", ["reason"], registry=self.registry
        )
        self.batch = Histogram(
            "landmarks_batch_images", "Images that were answered at once.", buckets=BATCHES, registry=self.registry
        )
        self.accepted = Gauge(
            "landmarks_accepted_images", "Images accepted and not yet answered.", registry=self.registry
        )
        self.reloads = Counter(
            "landmarks_reloads",
            "Recognisers put in place while the server ran: taken, or refused as broken.",
            ["outcome"],
            registry=self.registry,
        )
        self.lessons = Counter(
            "landmarks_lessons",
            "Changes of what the served run knows: taught, forgotten.",
            ["outcome"],
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
