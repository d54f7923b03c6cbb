"""The middleware before every path, which checks the token, adds headers and hides tracebacks; and what is counted."""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from traceback import extract_tb
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from landmarks.serving.request_limits import HungUpError, Receive, RefusalError
from landmarks.support.console import note
from landmarks.support.errors import UsageError

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
    """ASGI middleware; see the module."""

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
