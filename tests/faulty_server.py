"""A real HTTP server on this machine that serves a folder, and breaks in the ways it is told to."""

from __future__ import annotations

import contextlib
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """What was asked for.

    All counts begin at 0: `number` is of all requests of the server, `nth` of those for this path, `again` of those for
    this path from this byte on by this method. Where several readers are at work, only `again` does not depend on
    which of them was faster.
    """

    number: int
    nth: int
    again: int
    method: str
    path: str
    start: int | None
    headers: dict[str, str]


@dataclass(frozen=True)
class Fault:
    """How an answer goes wrong; what is left out stays right."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: Callable[[bytes], bytes] | None = None  # other bytes, told and sent as if they were right
    cut_after: int | None = None  # bytes of the body, then the connection is closed
    stall_after: int | None = None  # bytes of the body, then nothing more until `Server.stalls_end`
    ignore_range: bool = False
    shift_range: int = 0
    etag: str | None = None
    raw: Callable[[bytes], bytes] | None = None  # of the whole answer, head and body: what is sent instead, to the end
    endless: bool = False  # after the body come zeros until the client hangs up


Plan = Callable[[Request], Fault | None]


def weather(*faults: Fault | None) -> Plan:
    """Return a plan that breaks the first answer to each request, and lets it succeed when it is made again.

    Which fault it is, or with None among them whether there is one, depends on what is asked for and not on what was
    asked before: threads may come in any order.
    """

    def plan(request: Request) -> Fault | None:
        place = zlib.crc32(f"{request.method} {request.path} {request.start}".encode())
        return None if request.again else faults[place % len(faults)]

    return plan


class Server(ThreadingHTTPServer):
    """Serves `folder`; `plan(request)` returns the fault of each answer, or None."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path, plan: Plan | None = None, *, etags: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.plan, self.etags = folder, plan or (lambda _: None), etags
        self.requests: list[Request] = []
        self.sent = 0
        self.lock = threading.Lock()
        self.stalls_end = threading.Event()  # set when the server ends, or before by a test

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are part of the play."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the body waits 40 ms for the acknowledgement of the headers
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = re.sub(r"^https?://[^/]*", "", self.path).lstrip("/")
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        with self.server.lock:
            past = self.server.requests
            start = int(ranged.group(1)) if ranged else None
            nth = sum(one.path == path for one in past)
            again = sum((one.method, one.path, one.start) == (self.command, path, start) for one in past)
            request = Request(len(past), nth, again, self.command, path, start, dict(self.headers))
            past.append(request)
        fault = self.server.plan(request) or Fault()
        file = self.server.folder / path
        if fault.status is not None or not file.is_file():
            headers = fault.headers if fault.status is not None else {}
            self._answer(fault.status or 404, headers, b"", fault if fault.raw else None)
            return
        data = file.read_bytes()
        if fault.body is not None:
            data = fault.body(data)
        headers = {"ETag": fault.etag or f'"{file.stat().st_mtime_ns:x}"'} if self.server.etags else {}
        headers |= fault.headers
        if ranged and not fault.ignore_range and int(ranged.group(1)) >= len(data):
            self._answer(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
        elif ranged and not fault.ignore_range:
            first = int(ranged.group(1)) + fault.shift_range
            last = min(int(ranged.group(2) or len(data)) + fault.shift_range, len(data) - 1)
            headers.setdefault("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self._answer(206, headers, data[first : last + 1], fault)
        else:
            self._answer(200, headers, data, fault)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None) -> None:
        fault = fault or Fault()
        if fault.raw is not None:
            self._answer_raw(status, headers, body, fault)
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = next((end for end in (fault.cut_after, fault.stall_after) if end is not None), len(body))
        self.wfile.write(body[:end])
        with self.server.lock:
            self.server.sent += len(body[:end])
        if fault.stall_after is not None:
            self.wfile.flush()
            self.server.stalls_end.wait()
        if end < len(body):
            self.close_connection = True
        while fault.endless and not self.server.stalls_end.is_set():
            self.wfile.write(bytes(1 << 16))

    def _answer_raw(self, status: int, headers: dict[str, str], body: bytes, fault: Fault) -> None:
        assert fault.raw is not None
        self.close_connection = True
        head = [f"HTTP/1.1 {status} {self.responses[status][0]}"]
        # A client that was not told would send its next request into a connection that is closed meanwhile.
        headers = {"Content-Length": str(len(body)), "Connection": "close", **headers}
        head += [f"{name}: {value}" for name, value in headers.items()]
        answer = "\r\n".join([*head, "", ""]).encode("latin-1") + (b"" if self.command == "HEAD" else body)
        self.wfile.write(fault.raw(answer))
        if fault.stall_after is not None:
            self.wfile.flush()
            self.server.stalls_end.wait()


@contextlib.contextmanager
def serving(folder: Path, plan: Plan | None = None, *, etags: bool = True) -> Iterator[Server]:
    """Serve `folder` while the block runs."""
    server = Server(folder, plan, etags=etags)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stalls_end.set()
        server.shutdown()
        server.server_close()
        thread.join()
