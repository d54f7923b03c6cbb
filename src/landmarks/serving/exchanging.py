"""Exchanging the recogniser of a running server: for one that was put in place, or was taught or forgot a landmark."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from landmarks.dataset.images import ImageError, decode, encode
from landmarks.dataset.naming import normalised_name
from landmarks.recognition.answers import Recognition
from landmarks.recognition.learned import learned_file
from landmarks.serving.batching import Answering, Batches, ServedRecogniser, image_problem
from landmarks.serving.bodies import Lesson
from landmarks.serving.front import RefusalError, busy
from landmarks.support.console import note, plural
from landmarks.support.errors import BusyError, LandmarksError

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


# ── Teaching: landmarks are learned from the images of a request, and forgotten again ───────────────────────────────


RETRY_SECONDS = 2


@dataclass(frozen=True)
class SkippedImage:
    """An image of a lesson that nothing was learned from."""

    file: str | None
    problem: str


@dataclass(frozen=True)
class TeachingResult:
    """The recogniser after a landmark was learned or forgotten."""

    recogniser: Answering
    stamp: Stamp
    """Of the run's folder, or the export, after the change."""
    skipped: tuple[SkippedImage, ...] = ()


def can_be_taught(allowed: bool, place: Path | None, recogniser: Answering) -> bool:
    """Return whether teaching is `allowed`, and the run or export at `place` (opened as `recogniser`) can learn."""
    return allowed and place is not None and (place.is_dir() or recogniser.can_learn)


def require_teaching(allowed: bool, place: Path | None, recogniser: Answering) -> Path:
    """Return `place`. Raises `RefusalError`: 403 where teaching is off, 409 for an export that cannot learn."""
    if not allowed or place is None:
        raise RefusalError(
            403, "this server is not taught", expected="a server that was started for it",
            way_out="whoever runs it can start it with: landmarks serve RUN --teach", reason="teaching",
        )  # fmt: skip
    if not can_be_taught(allowed, place, recogniser):
        raise RefusalError(
            409, "this export cannot learn landmarks", expected="a run, or an export that was made for it",
            way_out="landmarks export RUN -o NAME.onnx --learning", reason="teaching",
        )  # fmt: skip
    return place


def teach_landmark(
    place: Path, lesson: Lesson, load: Callable[[], Answering], *, max_pixels: int, device: str = "auto"
) -> TeachingResult:
    """Teach the run, or export, at `place` a landmark, and open it again.

    Nothing is written unless at least one image could be read.

    Raises `RefusalError`: 422 when no image can be read, 409 for a name or id that is taken, 503 when another process
    is writing the run.
    """
    import landmarks  # loads PyTorch only when a run learns

    problems = [_problem(image.data, max_pixels) for image in lesson.images]
    skipped = [
        SkippedImage(image.file, problem)
        for image, problem in zip(lesson.images, problems, strict=True)
        if problem is not None
    ]
    images = [image.data for image, problem in zip(lesson.images, problems, strict=True) if problem is None]
    if not images:
        raise RefusalError(
            422, f'no image of "{lesson.name}" can be read', received=skipped[0].problem,
            way_out="send JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF images",
        )  # fmt: skip
    try:
        landmarks.learn(place, images, name=lesson.name, landmark_id=lesson.landmark_id, device=device)
        return _opened_again(place, load, skipped)
    except BusyError as error:
        raise busy(str(error), retry_after=RETRY_SECONDS) from error
    except LandmarksError as error:
        raise RefusalError(409, str(error), reason="teaching") from error


def forget_landmark(place: Path, name: str, load: Callable[[], Answering], recogniser: Answering) -> TeachingResult:
    """Remove a learned landmark from the run, or export, at `place`, which is opened as `recogniser`.

    Raises `RefusalError`: 404 for a landmark that was not learned, 409 for a run that cannot be changed, 503 when
    another process is writing it.
    """
    import landmarks

    try:
        landmarks.forget(place, name)
        return _opened_again(place, load, [])
    except BusyError as error:
        raise busy(str(error), retry_after=RETRY_SECONDS) from error
    except LandmarksError as error:
        if normalised_name(name) in recogniser.learned.names:
            raise RefusalError(409, str(error), reason="teaching") from error
        raise RefusalError(
            404, "no such landmark was learned", received=normalised_name(name)[:200],
            expected="a landmark that was taught", way_out="see GET /landmarks",
        ) from error  # fmt: skip


def _opened_again(place: Path, load: Callable[[], Answering], skipped: list[SkippedImage]) -> TeachingResult:
    before = stamp(place)  # a change while it is being opened gives another stamp, and the watcher opens it once more
    return TeachingResult(open_tested(load), before, tuple(skipped))


def _problem(data: bytes, max_pixels: int) -> str | None:
    """Return why nothing can be learned from an image; None if it can be used."""
    if problem := image_problem(data, max_pixels):
        return problem
    try:
        decode(data, min_side=1)
    except ImageError as error:
        return str(error)
    return None
