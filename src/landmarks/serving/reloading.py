"""Replacing the recogniser of a running server: a new one is noticed, opened, tested, and only then used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from landmarks.dataset.images import encode
from landmarks.recognition.answers import Recognition
from landmarks.recognition.learned import learned_file
from landmarks.serving.batching import Answering, Batches, ServedRecogniser
from landmarks.support.console import note, plural
from landmarks.support.errors import LandmarksError

POLL_SECONDS = 1.0
"""How often the file or folder is checked; a change is taken over once two checks in a row agree."""

RUN_FILES = (
    "model.json",
    "labels.parquet",
    "model.safetensors",
    "gallery.safetensors",
    "unknown.safetensors",
    "memory.safetensors",
    "learned.safetensors",
)
"""Files of a run's folder that its answers depend on."""

Stamp = tuple[tuple[int, int, int] | None, ...]


def open_tested(load: Callable[[], Answering]) -> Answering:
    """Open a recogniser and let it answer a grey image. Raises `LandmarksError` if either fails."""
    try:
        recogniser = load()
        (recognition,) = recogniser.recognise([_grey()], top=1)
    except LandmarksError:
        raise
    except Exception as error:  # a damaged file can make a runtime raise anything
        raise LandmarksError(f"it cannot be opened ({type(error).__name__}: {str(error)[:200]})") from error
    _require_answer(recognition, len(recogniser.names))
    return recogniser


def _require_answer(recognition: Recognition, landmarks: int) -> None:
    probabilities = [answer.probability for answer in recognition.answers]
    is_valid = recognition.problem is None and landmarks > 0
    if not is_valid or len(probabilities) != 1 or not 0 <= probabilities[0] <= 1:
        raise LandmarksError("it does not answer", received=recognition, expected="a probability from 0 to 1")


def _grey() -> bytes:
    return encode(np.full((48, 64, 3), 128, dtype=np.uint8))


def stamp(place: Path) -> Stamp:
    """Return file metadata that changes when a file, or a run's folder, is replaced; no contents are read."""
    if place.is_dir():
        return tuple(_stamp(place / name) for name in RUN_FILES)
    return tuple(map(_stamp, [place, learned_file(place)] if place.suffix.lower() == ".onnx" else [place]))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


async def watch(place: Path, load: Callable[[], Answering], batches: Batches, current: Stamp) -> None:
    """Replace the recogniser of `batches` whenever another one lies at `place`; runs until it is cancelled.

    `current` is the stamp of the present recogniser, taken before it was opened. A recogniser that cannot be opened, or
    does not answer a grey image, is reported once and not used; the present one continues.
    """
    before = current
    while True:
        await asyncio.sleep(POLL_SECONDS)
        now = await asyncio.to_thread(stamp, place)
        is_settled, before = now == before, now
        if now == current or not is_settled:
            continue
        async with batches.exchanging:
            if await asyncio.to_thread(stamp, place) != now:
                continue  # it changed again, for it was being taught
            current = now
            if now != batches.served.stamp:
                await _replace(place, load, batches)


async def _replace(place: Path, load: Callable[[], Answering], batches: Batches) -> None:
    try:
        recogniser = await asyncio.to_thread(open_tested, load)
    except LandmarksError as error:
        batches.served = replace(batches.served, refused=str(error))
        batches.counters.reloads.labels("refused").inc()
        note(f"{place} was replaced, but not by a recogniser that answers; the old one goes on: {error}")
        return
    batches.served = ServedRecogniser(recogniser, batches.served.generation + 1)
    batches.counters.reloads.labels("taken").inc()
    note(f"{place} was replaced: {plural(len(recogniser.names), 'landmark')}, asked from now on")
