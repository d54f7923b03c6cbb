"""The verb `serve`: answers images over HTTP until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from landmarks.serving.app import Service, create_app
from landmarks.serving.batching import Answering
from landmarks.serving.exchanging import open_tested
from landmarks.serving.front import TOKEN, Limits, token_of_environment
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.places import Place
from landmarks.support.systems import usable_processors

LINGER_SECONDS = 5.0
"""How long the rest of a body is read and discarded after a response that did not wait for it."""

CONNECTIONS = 900
"""Most connections at a time; more are answered 503 and closed. Most systems allow a process 1,024 open files."""

FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


@dataclass(frozen=True)
class Served:
    """What a server did until it was stopped."""

    accepted: int
    """Images that were accepted into the queue."""
    answered: int
    """Images that were answered, including those that could not be read."""
    refused: int
    """Requests that were refused."""


def serve(
    place: Place,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int | None = None,
    queue: int = Limits.queue,
    max_bytes: int = Limits.max_bytes,
    max_pixels: int = Limits.max_pixels,
    seconds: float = Limits.seconds,
    allow_origin: str | Sequence[str] = (),
    device: str = "auto",
    teach: bool = False,
) -> Served:
    """Answer images over HTTP with the run or export at `place` until SIGTERM or an interruption, then finish.

    `threads` batches are answered at a time (by default as many as there are processors). At most `queue` images wait;
    further requests are refused with 503. A request may have `max_bytes`, an image `max_pixels`, and the headers and
    the body of a request may take `seconds` each to arrive. `allow_origin` names web origins whose pages may send
    requests. `device` is auto, cpu, cuda or mps. The environment variable LANDMARKS_TOKEN, if set, is the token that
    requests must carry. If the run or export at `place` is replaced, the new one answers from then on. With `teach`,
    clients may also teach landmarks to the run, or to an export that can learn, and make it forget them
    (`POST /landmarks`, `DELETE /landmarks/NAME`).

    Returns what was done, after SIGTERM. Raises `KeyboardInterrupt` after an interruption, once everything accepted has
    been answered, and `LandmarksError` when `place` cannot be opened or the address is not available.
    """
    if _is_in_event_loop():
        raise LandmarksError(
            "a server cannot be started where an event loop is running already, as in a notebook",
            way_out="start it in a terminal with: landmarks serve RUN, or in a thread: "
            "threading.Thread(target=landmarks.serve, args=[RUN], daemon=True).start()",
        )
    if threads is not None and threads < 1:
        raise UsageError("--threads is too small", received=threads, expected="1 or more")
    limits = Limits(max_bytes=max_bytes, max_pixels=max_pixels, queue=queue, seconds=seconds)
    token = token_of_environment()
    origins = [allow_origin] if isinstance(allow_origin, str) else list(allow_origin)
    with contextlib.closing(bind(host, port)) as listening:
        load = _loader(Path(place), device)
        recogniser = open_tested(load)
        app = create_app(
            recogniser,
            limits=limits,
            threads=usable_processors() if threads is None else threads,
            token=token,
            allow_origin=origins,
            place=Path(place),
            load=load,
            teach=teach,
            device=device,
        )
        address = _address(listening)

        def ready() -> None:
            note(f"answering with {len(recogniser.names)} landmarks at {address} (Ctrl-C ends it)")
            if token is None and not is_private(host):
                note(f"no {TOKEN} is set: everybody who can reach {address} may ask this server")

        server = Server(app, seconds=limits.seconds, ready=ready)
        server.run([listening])
    done = totals_of(app)
    note(f"stopped: {done.answered} of {done.accepted} accepted images answered, {done.refused} requests refused")
    if server.ended_by == signal.SIGINT:
        raise KeyboardInterrupt
    return done


def _is_in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _loader(place: Path, device: str) -> Callable[[], Answering]:
    def load() -> Answering:
        import landmarks

        return cast(Answering, landmarks.load(place, device=device))

    return load


def is_private(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, not listening yet. Raises `LandmarksError` if it is not available."""
    if not 0 <= port <= 65535:
        raise UsageError("no such port", received=port, expected="0 to 65535 (0: any that is free)")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise LandmarksError(
            f"no address {host}", received=error, expected="a name or number of this machine"
        ) from error
    try:
        if os.name == "posix":  # on Windows this would share a port with another program
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise LandmarksError(
            f"{host} port {port} is not available ({error.strerror})", way_out="choose another one: --port 0 takes any"
        ) from error
    return listening


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def totals_of(app: FastAPI) -> Served:
    """Return the totals of an application's counters."""
    service: Service = app.state.service
    outcomes = {sample.labels["outcome"]: sample.value for sample in _samples(service.counters.images)}
    lost = outcomes.get("failed", 0) + outcomes.get("abandoned", 0)
    accepted = sum(outcomes.values())
    refused = sum(sample.value for sample in _samples(service.counters.refused))
    return Served(int(accepted), int(accepted - lost), int(refused))


def _samples(counter: Any) -> list[Any]:
    return [sample for metric in counter.collect() for sample in metric.samples if sample.name.endswith("_total")]


class Server(uvicorn.Server):
    """Uvicorn's server; it finishes what was accepted, and `ended_by` tells which signal ended it."""

    def __init__(self, app: FastAPI, *, seconds: float, ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_protocol(seconds),
                loop="asyncio",
                ws="none",
                lifespan="on",
                interface="asgi3",
                log_config=None,
                log_level="error",
                access_log=False,  # clients' addresses and queries are not logged
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=15,
            )
        )
        self.ended_by: int | None = None
        self._ready = ready
        self._service: Service = app.state.service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGINT and SIGTERM, without raising them again afterwards as Uvicorn does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGBREAK] if hasattr(signal, "SIGBREAK") else [])]
        handlers = {number: signal.signal(number, self._stop) for number in signals}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        self.ended_by = number if self.ended_by is None else self.ended_by
        self.handle_exit(number, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, then call `ready`."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing new, answer what has been accepted, and end."""
        self._service.stopped.set()  # refuses requests whose bodies are still arriving
        await super().shutdown(sockets)


def _protocol(seconds: float) -> type[asyncio.Protocol]:
    """Return an HTTP/1.1 protocol whose connections no slow client can keep open."""

    class Connection(H11Protocol):
        """Uvicorn's protocol, with time limits for headers, discarded bodies and responses that are not read."""

        _timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(cast(asyncio.Transport, transport))
            if len(self.connections) > CONNECTIONS:
                self.transport.write(FULL)
                self.transport.close()
            self._timer = self.loop.call_later(seconds, self._too_slow)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._timer is not None and self.cycle is not None and not self.cycle.response_complete:
                self._timer.cancel()  # the headers have arrived; `read_body` limits the time for the body
                self._timer = None

        def on_response_complete(self) -> None:
            self._stop_timer()
            rest = self.conn.their_state is h11.SEND_BODY
            self._timer = self.loop.call_later(LINGER_SECONDS if rest else seconds, self._too_slow)
            super().on_response_complete()

        def _too_slow(self) -> None:
            begun, _ = self.conn.trailing_data
            if begun and self.conn.their_state is h11.IDLE:
                self.transport.write(SLOW)
            self.transport.close()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._write_timer = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._write_timer is not None:
                self._write_timer.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            if self._write_timer is not None:
                self._write_timer.cancel()
            super().connection_lost(exc)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Connection
