"""`serve` from an export, installed without PyTorch: size, start-up, memory, throughput, latency and overload.

    python benchmarks/serve.py EXPORT.onnx IMAGES [--environment FOLDER] [--requests 10000] [--rounds 3]

`IMAGES` is a folder of JPEG files. The base install and the extra `serve` go into an environment of their own
(`--environment` keeps it for the next time). The server and the bare loop both run there, as processes of their own, on
the same processors as the clients. The bare loop runs onnxruntime image by image, decoding included, with as many
threads as processors: no HTTP, no batches. Server and loop take turns.

All clients are in one process. Half load and overload send requests at a steady rate whatever comes back, as
independent users do; latency counts from when a request was due.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from results import run_json, save

PROJECT = Path(__file__).parents[1]

BARE = """
import json, sys, time
from pathlib import Path
import numpy as np, onnxruntime
from landmarks.dataset.images import decode
path, seconds, threads, shorter, *images = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
session = onnxruntime.InferenceSession(path, options)
outputs = ["probabilities", "known_score"]
images = [Path(image).read_bytes() for image in images]
def answer(data):
    return session.run(outputs, {"image": decode(data, min_side=int(shorter))[None]})
for data in images[:20]:
    answer(data)
done, started = 0, time.perf_counter()
while time.perf_counter() - started < float(seconds):
    answer(images[done % len(images)])
    done += 1
print(json.dumps({"rate": done / (time.perf_counter() - started)}))
"""


@dataclass
class Load:
    """What clients measured: seconds of each answer by HTTP status, and connections that failed."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    broken: Counter[str] = field(default_factory=Counter)
    wall: float = 0.0

    def count(self, status: int) -> int:
        """Return the number of answers with a status."""
        return len(self.seconds.get(status, ()))

    def milliseconds(self, share: float) -> float:
        """Return the latency that this share of the successful requests stayed below."""
        found = sorted(self.seconds.get(200, [float("nan")]))
        return 1000 * found[min(len(found) - 1, int(share * len(found)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--environment", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each measurement under load")
    chosen = parser.parse_args()
    paths = sorted(chosen.images.rglob("*.jpg"))[:200]
    images = [path.read_bytes() for path in paths]
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.environment or Path(scratch) / "environment"
        python = environment(folder)
        megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        has_torch = any(folder.glob("lib/python*/site-packages/torch"))
        bare, through = [], []
        for _ in range(chosen.rounds):
            bare.append(bare_rate(python, chosen.export, chosen.seconds, paths))
            with server(python, chosen.export) as running:
                asyncio.run(closed(running.port, images, clients=4, seconds=1))
                load = asyncio.run(closed(running.port, images, clients=16, seconds=chosen.seconds))
                through.append(load.count(200) / load.wall)
        rate = statistics.median(through)
        with server(python, chosen.export) as running:
            first, at_rest = running.first_answer(images[0]), running.megabytes()
            half = asyncio.run(steady(running.port, images, rate / 2, chosen.seconds))
            before = running.megabytes()
            over = asyncio.run(steady(running.port, images, 3 * rate, chosen.seconds))
            peak = running.megabytes()
            again = asyncio.run(steady(running.port, images, 3 * rate, chosen.seconds))
            flat = running.megabytes()
            sent = half.count(200) + over.count(200) + again.count(200)
            many = asyncio.run(closed(running.port, images, clients=16, requests=max(0, chosen.requests - sent)))
            after = running.megabytes()
            running.process.send_signal(signal.SIGTERM)
            ended = running.process.wait()
            last = running.process.stderr.read().splitlines()[-1]
    save(
        "serve",
        [
            {"what": "environment, MB", "figure": megabytes},
            {"what": "seconds to the first answer", "figure": first},
            {"what": "memory at rest, MB", "figure": at_rest},
            {"what": f"memory after {sent + many.count(200)} answers, MB", "figure": after},
            {"what": "bare loop, images/s", "figure": statistics.median(bare)},
            {"what": "server, images/s", "figure": rate},
            {"what": "ratio", "figure": statistics.median(a / b for a, b in zip(through, bare, strict=True))},
            {"what": "half load, p50 ms", "figure": half.milliseconds(0.5)},
            {"what": "half load, p99 ms", "figure": half.milliseconds(0.99)},
            {"what": "three times capacity, answered/s", "figure": over.count(200) / over.wall},
            {"what": "three times capacity, told 503/s", "figure": over.count(503) / over.wall},
            {"what": "three times capacity, p50 ms of the answered", "figure": over.milliseconds(0.5)},
            {"what": "three times capacity, p99 ms of the answered", "figure": over.milliseconds(0.99)},
            {"what": "three times capacity, neither", "figure": sum(over.broken.values()) + sum(again.broken.values())},
            {
                "what": "memory before, in and after overload, MB",
                "figure": f"{before:.0f}, {peak:.0f}, {flat:.0f}",
            },
        ],
        export=f"{chosen.export.name}, {chosen.export.stat().st_size / 1e6:.1f} MB",
        images=len(images),
        has_torch=has_torch,
        rounds={"bare": bare, "server": through},
        broken=dict(half.broken + over.broken + again.broken + many.broken),
        ended={"code": ended, "said": last},
    )


def environment(folder: Path) -> Path:
    """Return the Python of an environment with the base install and the extra `serve`, made if necessary."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"{PROJECT}[serve]"], check=True)
    return python


def bare_rate(python: Path, export: Path, seconds: float, paths: Sequence[Path]) -> float:
    """Return images per second of the bare loop."""
    record = "import sys; from landmarks.recognition.portable import open_export; "
    record += "import json; print(json.dumps(open_export(sys.argv[1]).preprocessing.shorter))"
    shorter = subprocess.run([python, "-c", record, export], capture_output=True, text=True, check=True).stdout.strip()
    threads = len(os.sched_getaffinity(0))
    return float(run_json(python, "-c", BARE, export, seconds, threads, shorter, *paths)["rate"])


class Running:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], port: int, began: float) -> None:
        self.process, self.port, self.began = process, port, began

    def first_answer(self, image: bytes) -> float:
        """Return seconds from the start of the process to its first answer."""
        load = asyncio.run(closed(self.port, [image], clients=1, requests=1))
        if load.count(200) != 1:
            raise SystemExit(f"no first answer: {load}")
        return time.perf_counter() - self.began

    def megabytes(self) -> float:
        """Return its resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s*(\d+)", status)[1]) / 1e3  # type: ignore[index]


@contextlib.contextmanager
def server(python: Path, export: Path) -> Iterator[Running]:
    """Run `landmarks serve` on any free port."""
    began = time.perf_counter()
    command = [python, "-m", "landmarks", "serve", export, "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        line = process.stderr.readline()  # type: ignore[union-attr]
        found = re.search(r":(\d+) \(", line)
        if not found:
            raise SystemExit(f"the server did not start: {line}")
        try:
            yield Running(process, int(found[1]), began)
        finally:
            process.terminate()


async def closed(
    port: int, images: Sequence[bytes], *, clients: int, requests: int = 1 << 60, seconds: float = 1e9
) -> Load:
    """Let each client send its next request after the answer to its last, until all are sent or time is up."""
    load, began, sent = Load(), time.perf_counter(), iter(range(requests))

    async def ask() -> None:
        connection = Connection(port)
        for number in sent:
            if time.perf_counter() - began > seconds:
                break
            await connection.post(images[number % len(images)], load, time.perf_counter())

    await asyncio.gather(*(ask() for _ in range(clients)))
    load.wall = time.perf_counter() - began
    return load


async def steady(port: int, images: Sequence[bytes], rate: float, seconds: float) -> Load:
    """Send `rate` requests a second, whatever comes back."""
    load, began, free, asking = Load(), time.perf_counter(), [], set()

    async def ask(number: int, due: float) -> None:
        connection = free.pop() if free else Connection(port)
        await connection.post(images[number % len(images)], load, due)
        free.append(connection)

    for number in range(int(rate * seconds)):
        due = began + number / rate
        if (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        task = asyncio.create_task(ask(number, due))
        asking.add(task)
        task.add_done_callback(asking.discard)
    await asyncio.gather(*asking)
    load.wall = time.perf_counter() - began
    return load


class Connection:
    """A client's connection, opened when it is needed and again after it was closed."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, image: bytes, load: Load, due: float) -> None:
        """Send one image and record the answer."""
        head = "POST /recognise HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
        try:
            if self.streams is None:
                self.streams = await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = self.streams
            writer.write(f"{head}Content-Length: {len(image)}\r\n\r\n".encode() + image)
            headers = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"content-length: (\d+)", headers)[1]))  # type: ignore[index]
        except (OSError, asyncio.IncompleteReadError) as error:
            load.broken[type(error).__name__] += 1
            self.streams = None
        else:
            load.seconds.setdefault(int(headers[9:12]), []).append(time.perf_counter() - due)


if __name__ == "__main__":
    main()
