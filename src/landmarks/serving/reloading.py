"""A new recogniser put in place of the old: noticed, opened beside it, tried, and only then asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from landmarks.dataset.images import encode
from landmarks.recognition.answers import Recognition
from landmarks.recognition.portable_learning import learned_file
from landmarks.serving.batching import Answering, Batches, ServedRecogniser
from landmarks.support.console import note, plural
from landmarks.support.errors import LandmarksError

POLL_SECONDS = 1.0
"""How often the file or folder is looked at; a change is taken once two looks agree."""

RUN_FILES = (
    "model.json",
    "labels.parquet",
    "model.safetensors",
    "gallery.safetensors",
    "unknown.safetensors",
    "memory.safetensors",
    "learned.safetensors",
)
"""What decides the answers of a run's folder."""

Stamp = tuple[tuple[int, int, int] | None, ...]


def opened(load: Callable[[], Answering]) -> Answering:
    """Open a recogniser and ask it once. Raises `LandmarksError` for one that cannot be opened or does not answer."""
    try:
        recogniser = load()
        (found,) = recogniser.recognise([_grey()], top=1)
    except LandmarksError:
        raise
    except Exception as error:  # a damaged file can make a runtime raise anything
        raise LandmarksError(f"it cannot be opened ({type(error).__name__}: {str(error)[:200]})") from error
    _require_answer(found, len(recogniser.names))
    return recogniser


def _require_answer(found: Recognition, names: int) -> None:
    sure = [answer.probability for answer in found.answers]
    if found.problem is not None or not names or len(sure) != 1 or not 0 <= sure[0] <= 1:
        raise LandmarksError("it does not answer", received=found, expected="a probability from 0 to 1")


def _grey() -> bytes:
    return encode(np.full((48, 64, 3), 128, dtype=np.uint8))


def stamp(place: Path) -> Stamp:
    """Return what changes when a file, or a run's folder, is replaced: numbers of the file system, no contents."""
    if place.is_dir():
        return tuple(_stamp(place / name) for name in RUN_FILES)
    return tuple(map(_stamp, [place, learned_file(place)] if place.suffix.lower() == ".onnx" else [place]))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


async def keep_up(place: Path, load: Callable[[], Answering], batches: Batches, seen: Stamp) -> None:
    """Exchange the recogniser of `batches` whenever another one lies at `place`; runs until it is cancelled.

    `seen` is the stamp of what answers now, taken before it was opened. A recogniser that cannot be opened, or does not
    answer a grey image, is named once and not asked; the old one goes on.
    """
    before = seen
    while True:
        await asyncio.sleep(POLL_SECONDS)
        now = await asyncio.to_thread(stamp, place)
        settled, before = now == before, now
        if now == seen or not settled:
            continue
        async with batches.exchanging:
            if await asyncio.to_thread(stamp, place) != now:
                continue  # it was being taught, and is something else by now
            seen = now
            if now != batches.served.stamp:
                await _exchange(place, load, batches)


async def _exchange(place: Path, load: Callable[[], Answering], batches: Batches) -> None:
    try:
        recogniser = await asyncio.to_thread(opened, load)
    except LandmarksError as error:
        batches.served = replace(batches.served, refused=str(error))
        batches.counters.reloads.labels("refused").inc()
        note(f"{place} was replaced, but not by a recogniser that answers; the old one goes on: {error}")
        return
    batches.served = ServedRecogniser(recogniser, batches.served.generation + 1)
    batches.counters.reloads.labels("taken").inc()
    note(f"{place} was replaced: {plural(len(recogniser.names), 'landmark')}, asked from now on")
