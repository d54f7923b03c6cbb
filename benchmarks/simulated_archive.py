"""A simulated archive of the true size: any byte of 500 TARs of about 1 GB is computed when it is requested.

    python benchmarks/simulated_archive.py --port 8000 --latency-ms 20 --metadata FOLDER

serves `train/images_000.tar` to `_499.tar` (4,132,914 images), their MD5 files and, with `--metadata`, the CSV
files that `simulated_tables.py` wrote. Everything is derived from a seed. Each image is a real JPEG of 800 pixels,
padded to its size with comment segments. `/-/counts` returns the counts of requests since `/-/reset`;
`/-/latency?ms=80` sets the delay of every answer.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import functools
import hashlib
import io
import json
import multiprocessing
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.special import ndtri

IMAGES = 4_132_914
TARS = 500
MEAN_BYTES = 121_000
SPREAD = 0.5
"""Standard deviation of the logarithm of an image's size."""

LEAST_BYTES, MOST_BYTES = 30_000, 900_000
BLOCK = 512
TRAILER = 2 * BLOCK

_MASK = (1 << 64) - 1
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_GAMMA = 0x9E3779B97F4A7C15


def scrambled(numbers: np.ndarray) -> np.ndarray:
    """Return 64 pseudorandom bits for every number, distinct for distinct numbers (splitmix64; Steele et al. 2014)."""
    bits = numbers.astype(np.uint64)
    with np.errstate(over="ignore"):
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(_MULTIPLIERS[0])
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(_MULTIPLIERS[1])
    return bits ^ (bits >> np.uint64(31))


def unscrambled(bits: int) -> int:
    """Return the number that `scrambled` turned into `bits`."""
    for shift, multiplier in ((31, _MULTIPLIERS[1]), (27, _MULTIPLIERS[0]), (30, 1)):
        original = bits
        for _ in range(64 // shift):
            original = bits ^ (original >> shift)
        bits = original * pow(multiplier, -1, 1 << 64) & _MASK
    return bits


@dataclass(frozen=True)
class Layout:
    """The contents of one TAR: ids of its images, their sizes, the positions of their headers, and its own size."""

    ids: np.ndarray  # (n,) uint64
    sizes: np.ndarray  # (n,) int64, bytes of each JPEG
    headers: np.ndarray  # (n,) int64
    bytes: int


@dataclass(frozen=True)
class Archive:
    """Images distributed over TARs; an image's number determines its id, TAR, size and pixels."""

    seed: int = 0
    images: int = IMAGES
    tars: int = TARS

    def ids(self, first: int = 0, end: int | None = None) -> np.ndarray:
        """Return the ids of images `first` up to `end` (exclusive), as integers of 64 bits."""
        numbers = np.arange(first, self.images if end is None else end, dtype=np.uint64)
        return scrambled(numbers + np.uint64((self.seed + 1) * _GAMMA & _MASK))

    def number(self, id: int) -> int:
        """Return the number of the image with that id."""
        return (unscrambled(id) - (self.seed + 1) * _GAMMA) & _MASK

    def first(self, tar: int) -> int:
        """Return the number of a TAR's first image."""
        return self.images * tar // self.tars

    @functools.lru_cache(maxsize=TARS)  # noqa: B019  an archive lives as long as its process
    def layout(self, tar: int) -> Layout:
        """Return the layout of a TAR."""
        ids = self.ids(self.first(tar), self.first(tar + 1))
        chance = (scrambled(ids ^ np.uint64(0x5EED)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        sizes = np.exp(np.log(MEAN_BYTES) - SPREAD**2 / 2 + SPREAD * ndtri(chance + 2.0**-54))
        sizes = np.clip(sizes, LEAST_BYTES, MOST_BYTES).astype(np.int64)
        with_header = BLOCK + -(-sizes // BLOCK) * BLOCK
        ends = np.cumsum(with_header)
        return Layout(ids, sizes, ends - with_header, int(ends[-1]) + TRAILER)

    def image(self, id: int, size: int) -> bytes:
        """Return an image's JPEG of exactly `size` bytes."""
        sizes, images = _images()
        jpeg = images[bisect.bisect_right(sizes, size - 4) - 1 - id % 4]
        return b"".join((jpeg[:2], _comments(size - len(jpeg)), jpeg[2:]))

    def read(self, tar: int, start: int, end: int) -> bytes:
        """Return the bytes of a TAR from `start` up to `end` (exclusive)."""
        return b"".join(self.files(tar, start, end))

    def files(self, tar: int, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a TAR from `start` up to `end` (exclusive), an image at a time."""
        layout = self.layout(tar)
        end = min(end, layout.bytes)
        member = int(np.searchsorted(layout.headers, start, side="right")) - 1
        position = start
        while position < end and member < len(layout.ids):
            first, size = int(layout.headers[member]), int(layout.sizes[member])
            data = first + BLOCK
            following = data + -(-size // BLOCK) * BLOCK
            if position < data:
                head = header(int(layout.ids[member]), size)[position - first : end - first]
                yield head
                position += len(head)
            if data <= position < min(end, following):
                body = self.image(int(layout.ids[member]), size) + bytes(following - data - size)
                yield (body := body[position - data : end - data])
                position += len(body)
            member += 1
        if position < end:
            yield bytes(end - position)

    def md5(self, tar: int) -> str:
        """Return the true MD5 of a TAR (about two seconds per gigabyte)."""
        digest = hashlib.md5(usedforsecurity=False)
        for piece in self.files(tar, 0, self.layout(tar).bytes):
            digest.update(piece)
        return digest.hexdigest()


def header(id: int, size: int) -> bytes:
    """Return the USTAR header of an image (POSIX.1-2001, pax, "ustar interchange format")."""
    name = f"{id:016x}"
    path = f"{name[0]}/{name[1]}/{name[2]}/{name}.jpg".encode()
    block = bytearray(_HEADER)
    block[: len(path)] = path
    block[124:135] = b"%011o" % size
    block[148:156] = b"%06o\0 " % (sum(block) + 8 * 32)
    return bytes(block)


def _empty_header() -> bytes:
    block = bytearray(BLOCK)
    for start, text in ((100, b"0000644\0"), (108, b"0001750\0"), (116, b"0001750\0"), (136, b"13405260000\0")):
        block[start : start + len(text)] = text
    block[156:157] = b"0"
    block[257:265] = b"ustar\x0000"
    return bytes(block)


_HEADER = _empty_header()


@functools.cache
def _images() -> tuple[list[int], list[bytes]]:
    """Return the sizes and bytes of JPEGs of 800 x 600 pixels with increasing detail, from 13 to about 250 kB."""
    noise = np.random.default_rng(7)
    images = []
    for detail in np.geomspace(0.6, 60.0, 12):
        for kind in range(4):
            wide = kind % 2 == 0
            height, width = (600, 800) if wide else (800, 600)
            coarse = noise.integers(0, 256, (6, 8, 3) if wide else (8, 6, 3), dtype=np.uint8)
            image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
            image += noise.normal(0.0, detail, (height // 2, width // 2, 3)).repeat(2, 0).repeat(2, 1)
            file = io.BytesIO()
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=80)
            images.append(file.getvalue())
    images.sort(key=len)
    return [len(jpeg) for jpeg in images], images


def _comments(length: int) -> bytes:
    """Return comment segments of a JPEG, `length` bytes in total (none below 4)."""
    segments = []
    while length >= 4:
        size = min(length, 65_537)
        if 0 < length - size < 4:
            size -= 4
        segments.append(b"\xff\xfe" + (size - 2).to_bytes(2, "big") + bytes(size - 4))
        length -= size
    return b"".join(segments)


@dataclass
class Counts:
    """What the server answered since the last reset."""

    requests: int = 0
    bytes: int = 0  # of bodies
    bytes_with_headers: int = 0
    connections: int = 0
    most_at_once: int = 0
    statuses: dict[int, int] = field(default_factory=dict)


class Content:
    """The archive, its CSV files, the latency of answers and the counts, shared by all connections of a server."""

    def __init__(self, archive: Archive, metadata: Path | None, latency_ms: float, true_md5: frozenset[int]) -> None:
        self.archive = archive
        self.metadata = metadata
        self.latency_seconds = latency_ms / 1000
        self.counts = Counts()
        self.under_way = 0
        self._true_md5 = true_md5
        self._md5: dict[int, str] = {}

    def size(self, path: str) -> int | None:
        """Return the size of a file, or None if it does not exist."""
        if match := _TAR.fullmatch(path):
            return self.archive.layout(int(match[1])).bytes if int(match[1]) < self.archive.tars else None
        if match := _MD5.fullmatch(path):
            return len(self._md5_line(0)) if int(match[1]) < self.archive.tars else None
        file = self._file(path)
        return file.stat().st_size if file is not None else None

    def files(self, path: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of an existing file from `start` up to `end` (exclusive)."""
        if match := _TAR.fullmatch(path):
            yield from self.archive.files(int(match[1]), start, end)
        elif match := _MD5.fullmatch(path):
            yield self._md5_line(int(match[1]))[start:end]
        elif file := self._file(path):
            with open(file, "rb") as stream:
                stream.seek(start)
                while start < end and (piece := stream.read(min(1 << 18, end - start))):
                    start += len(piece)
                    yield piece

    def _md5_line(self, tar: int) -> bytes:
        if tar not in self._md5:
            text = hashlib.md5(f"{self.archive.seed} {tar}".encode(), usedforsecurity=False).hexdigest()
            self._md5[tar] = self.archive.md5(tar) if tar in self._true_md5 else text
        return f"{self._md5[tar]}  images_{tar:03d}.tar\n".encode()

    def _file(self, path: str) -> Path | None:
        if self.metadata is None or ".." in path:
            return None
        file = self.metadata / path
        return file if file.is_file() else None


_TAR = re.compile(r"train/images_([0-9]{3})\.tar")
_MD5 = re.compile(r"md5sum/train/md5\.images_([0-9]{3})\.txt")
_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")
_REASONS = {
    200: "OK",
    206: "Partial Content",
    404: "Not Found",
    405: "Method Not Allowed",
    416: "Range Not Satisfiable",
}


class HttpConnection(asyncio.Protocol):
    """A keep-alive connection of HTTP/1.1, whose requests are answered one after the other."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._received = b""
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._waiting: asyncio.Queue[tuple[str, str, str]] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start answering requests."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._content.counts.connections += 1
        self._answering = asyncio.ensure_future(self._answer_all())

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop answering."""
        self._answering.cancel()
        self._flowing.set()

    def pause_writing(self) -> None:
        """Pause, as the client reads more slowly than this writes."""
        self._flowing.clear()

    def resume_writing(self) -> None:
        """Continue writing."""
        self._flowing.set()

    def data_received(self, data: bytes) -> None:
        """Queue the requests that have arrived completely."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            first, *lines = self._received[:end].decode("latin-1").split("\r\n")
            self._received = self._received[end + 4 :]
            method, target, _ = first.split(" ", 2)
            fields = dict(line.lower().split(":", 1) for line in lines if ":" in line)
            self._waiting.put_nowait((method, target.lstrip("/"), fields.get("range", "").strip()))

    async def _answer_all(self) -> None:
        content = self._content
        while True:
            method, target, wanted = await self._waiting.get()
            content.under_way += 1
            content.counts.most_at_once = max(content.counts.most_at_once, content.under_way)
            try:
                if content.latency_seconds and not target.startswith("-/"):
                    await asyncio.sleep(content.latency_seconds)
                await self._answer(method, target, wanted)
            finally:
                content.under_way -= 1

    async def _answer(self, method: str, target: str, wanted: str) -> None:
        if target.startswith("-/"):
            self._answer_control(target)
            return
        size = self._content.size(target)
        if size is None or method not in ("GET", "HEAD"):
            self._head(404 if size is None else 405, 0, "")
            return
        status, start, end = _range_of(wanted, size)
        fields = f"Content-Range: bytes {start}-{end - 1}/{size}\r\n" if status == 206 else ""
        fields += f'ETag: "{self._content.archive.seed}-{size:x}"\r\n'
        if status == 416:
            self._head(416, 0, f"Content-Range: bytes */{size}\r\n")
            return
        self._head(status, end - start, fields)
        if method == "GET":
            for piece in self._content.files(target, start, end):
                self._content.counts.bytes += len(piece)
                self._content.counts.bytes_with_headers += len(piece)
                self._transport.write(piece)
                await self._flowing.wait()

    def _head(self, status: int, length: int, fields: str) -> None:
        counts = self._content.counts
        counts.requests += 1
        counts.statuses[status] = counts.statuses.get(status, 0) + 1
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Length: {length}\r\nAccept-Ranges: bytes\r\n"
            f"Last-Modified: Tue, 01 Oct 2019 00:00:00 GMT\r\n{fields}\r\n"
        ).encode()
        counts.bytes_with_headers += len(head)
        self._transport.write(head)

    def _answer_control(self, target: str) -> None:
        if target == "-/reset":
            self._content.counts = Counts()
        elif target.startswith("-/latency?ms="):
            self._content.latency_seconds = float(target.partition("=")[2]) / 1000
        body = json.dumps(vars(self._content.counts)).encode()
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def _range_of(wanted: str, size: int) -> tuple[int, int, int]:
    """Return (status, start, end) for the answer to a Range header."""
    match = _RANGE.fullmatch(wanted)
    if match is None or not (match[1] or match[2]):
        return 200, 0, size
    if not match[1]:
        return 206, max(0, size - int(match[2])), size
    start, end = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
    return (206, start, end) if start < end else (416, 0, 0)


async def _serve(content: Content, port: int, ready: Connection | None) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: HttpConnection(content), "127.0.0.1", port, backlog=1024)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    if ready is None:
        print(address, flush=True)
    else:
        ready.send(address)
    await server.serve_forever()


def _serve_in_child(content: Content, ready: Connection) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(content, 0, ready))


class Simulated:
    """Context manager: a server of the simulated archive at `address`, in a process of its own."""

    def __init__(self, archive: Archive, metadata: Path | None = None, true_md5: frozenset[int] = frozenset()) -> None:
        self._content = Content(archive, metadata, 0.0, true_md5)

    def __enter__(self) -> Simulated:
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve_in_child, args=(self._content, sender), daemon=True)
        self._process.start()
        self.address = receiver.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def reset(self) -> None:
        """Reset the counts."""
        self._request("reset")

    def counts(self) -> dict[str, int]:
        """Return the counts since the last reset."""
        return self._request("counts")

    def latency(self, milliseconds: float) -> None:
        """Delay every answer from now on."""
        self._request(f"latency?ms={milliseconds}")

    def seconds_of_processor(self) -> float:
        """Return the processor time that the server has used, in seconds."""
        import psutil

        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def _request(self, path: str) -> dict[str, int]:
        with urllib.request.urlopen(f"{self.address}/-/{path}") as answer:
            return dict(json.load(answer))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--images", type=int, default=IMAGES)
    options.add_argument("--tars", type=int, default=TARS)
    options.add_argument("--latency-ms", type=float, default=0.0)
    options.add_argument("--metadata", type=Path, help="a folder with metadata/*.csv")
    options.add_argument(
        "--true-md5", type=int, nargs="*", default=[], help="TARs whose true MD5 is computed when requested"
    )
    chosen = options.parse_args()
    archive = Archive(chosen.seed, chosen.images, chosen.tars)
    content = Content(archive, chosen.metadata, chosen.latency_ms, frozenset(chosen.true_md5))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(content, chosen.port, None))


if __name__ == "__main__":
    main()
