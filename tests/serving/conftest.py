"""A run, real servers that answer with it, and a recogniser that can be held up."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_exports import by_hand
from made_up_runs import LANDMARKS, image, make_dataset, make_run

import landmarks
from landmarks.recognition.answers import Answer, Explanation, Recognition
from landmarks.recognition.learned import Learned
from landmarks.serving.app import create_app
from landmarks.serving.front import Limits
from landmarks.serving.server import Server, bind

IMAGES = [image(LANDMARKS[number % 3], number) for number in range(12)]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run that answers three landmarks."""
    folder = tmp_path_factory.mktemp("served")
    shown = [[LANDMARKS[number % 3]] for number in range(30)]
    dataset = make_dataset(folder / "data", shown, splits=["train"] * 18 + ["val"] * 6 + ["test"] * 6)
    return make_run(folder / "run", dataset).folder


@pytest.fixture(scope="session")
def export_by_hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that a server reads in an instant, and for which it imports no PyTorch."""
    path = tmp_path_factory.mktemp("by_hand") / "hand.onnx"
    path.write_bytes(by_hand())
    return path


@pytest.fixture(scope="session")
def recogniser(run_folder: Path) -> Any:
    """The run, opened as everybody opens it."""
    return landmarks.load(run_folder, device="cpu")


class Held:
    """A recogniser that answers an image with its bytes, once it is let go; it keeps what it was asked."""

    names = ("Tower",)
    landmark_ids = (1,)
    seen_share = 1.0
    learned = Learned()
    can_learn = False

    def __init__(self, go: bool = True) -> None:
        self.go = threading.Event()
        self.batches: list[list[bytes]] = []
        self.begun = threading.Semaphore(0)
        if go:
            self.go.set()

    def recognise(self, images: Any, top: int) -> list[Recognition]:
        """Answer, when it may."""
        given = list(images)
        self.batches.append(given)
        self.begun.release()
        self.go.wait()
        if any(b"stumble" in data for data in given):
            raise ValueError("this recogniser stumbles")
        return [Recognition((Answer(0, 1, "Tower", 0.5),), known=True) for _ in given]

    def explain(self, images: Any, top: int) -> list[Explanation]:
        """Draw nothing."""
        raise landmarks.LandmarksError("this network has no maps")


class Running:
    """A server in a thread of this process, at any free port."""

    def __init__(self, app: Any, seconds: float) -> None:
        self.app = app
        self.counters = app.state.service.counters
        self.listening = bind("127.0.0.1", 0)
        self.address = self.listening.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.server = Server(app, seconds=seconds)
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],))
        self.thread.start()
        while not self.server.started and self.thread.is_alive():
            threading.Event().wait(0.01)

    def stop(self) -> None:
        """Begin to stop, as a signal does, and wait for the end."""
        self.server.should_exit = True
        self.thread.join()

    def counted(self, name: str, **labels: str) -> float:
        """Return one number of /metrics."""
        return self.counters.registry.get_sample_value(name, labels) or 0.0


Serving = Callable[..., Running]


@pytest.fixture
def serving() -> Iterator[Serving]:
    """Start servers that end with the test."""
    started: list[Running] = []

    def start(recogniser: Any, *, limits: Limits | None = None, **options: Any) -> Running:
        limits = limits or Limits()
        started.append(Running(create_app(recogniser, limits=limits, **options), limits.seconds))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@contextlib.contextmanager
def command(*words: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Run `landmarks serve` in a process of its own; yield it, its address, and the lines it has written so far."""
    process = subprocess.Popen(
        [sys.executable, "-m", "landmarks", "serve", *map(str, words), "--port", "0", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"http://\S+", line):
            break
    else:
        raise AssertionError(f"it did not start: {lines}")
    reading = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
    reading.start()
    try:
        yield process, found[0], lines
    finally:
        process.kill()
        process.wait()
        reading.join()
        process.stdout.close()
