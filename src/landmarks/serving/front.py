"""The middleware before every path: checks the token, adds headers, counts requests, and hides tracebacks."""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from traceback import extract_tb
from typing import Any, TypeAlias

from landmarks.serving.counters import Counters
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
