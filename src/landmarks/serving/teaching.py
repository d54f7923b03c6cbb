"""A served run, or export, is taught: landmarks learned from images that a request brought, and forgotten again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from landmarks.dataset.images import ImageError, decode
from landmarks.dataset.naming import plain
from landmarks.serving.batching import Answering, problem_of
from landmarks.serving.forms import Lesson
from landmarks.serving.reloading import Stamp, opened, stamp
from landmarks.serving.request_limits import RefusalError, busy
from landmarks.support.errors import BusyError, LandmarksError

RETRY_SECONDS = 2


@dataclass(frozen=True)
class Passed:
    """An image of a lesson that nothing was learned from."""

    file: str | None
    problem: str


@dataclass(frozen=True)
class Taught:
    """What a run answers with after it was changed."""

    recogniser: Answering
    stamp: Stamp
    """Of the run's folder, or the export, with this in it."""
    passed: tuple[Passed, ...] = ()


def can_be_taught(allowed: bool, place: Path | None, now: Answering) -> bool:
    """Return whether whoever may ask may teach what lies at `place`, and it can learn; it answers as `now`."""
    return allowed and place is not None and (place.is_dir() or now.can_learn)


def require_teaching(allowed: bool, place: Path | None, now: Answering) -> Path:
    """Return the run's folder, or the export. Raises `RefusalError`: 403 where teaching is off, 409 for what cannot."""
    if not allowed or place is None:
        raise RefusalError(
            403, "this server is not taught", expected="a server that was started for it",
            way_out="whoever runs it can start it with: landmarks serve RUN --teach", reason="teaching",
        )  # fmt: skip
    if not can_be_taught(allowed, place, now):
        raise RefusalError(
            409, "this export cannot learn landmarks", expected="a run, or an export that was made for it",
            way_out="landmarks export RUN -o NAME.onnx --learning", reason="teaching",
        )  # fmt: skip
    return place


def taught(
    place: Path, lesson: Lesson, load: Callable[[], Answering], *, max_pixels: int, device: str = "auto"
) -> Taught:
    """Teach the run, or export, at `place` a landmark, and open it again.

    Nothing is written unless an image could be read.

    Raises `RefusalError`: 422 when no image can be read, 409 for a name or id that is taken, 503 for a run that another
    process is writing.
    """
    import landmarks  # which brings PyTorch only where a run is to learn

    problems = [_problem(one.data, max_pixels) for one in lesson.images]
    passed = [
        Passed(one.file, problem) for one, problem in zip(lesson.images, problems, strict=True) if problem is not None
    ]
    images = [one.data for one, problem in zip(lesson.images, problems, strict=True) if problem is None]
    if not images:
        raise RefusalError(
            422, f'no image of "{lesson.name}" can be read', received=passed[0].problem,
            way_out="send JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF images",
        )  # fmt: skip
    try:
        landmarks.learn(place, images, name=lesson.name, landmark_id=lesson.landmark_id, device=device)
        return _opened_again(place, load, passed)
    except BusyError as error:
        raise busy(str(error), retry_after=RETRY_SECONDS) from error
    except LandmarksError as error:
        raise RefusalError(409, str(error), reason="teaching") from error


def forgotten(place: Path, name: str, load: Callable[[], Answering], now: Answering) -> Taught:
    """Take a learned landmark out of the run, or export, at `place`, which answers as `now`.

    Raises `RefusalError`: 404 for one that was not learned, 409 for a run that cannot be changed, 503 for one that
    another process is writing.
    """
    import landmarks

    try:
        landmarks.forget(place, name)
        return _opened_again(place, load, [])
    except BusyError as error:
        raise busy(str(error), retry_after=RETRY_SECONDS) from error
    except LandmarksError as error:
        if plain(name) in now.learned.names:
            raise RefusalError(409, str(error), reason="teaching") from error
        raise RefusalError(
            404, "no such landmark was learned", received=plain(name)[:200], expected="a landmark that was taught",
            way_out="see GET /landmarks",
        ) from error  # fmt: skip


def _opened_again(place: Path, load: Callable[[], Answering], passed: list[Passed]) -> Taught:
    seen = stamp(place)  # before it is opened: what changes in between is opened once more, and never missed
    return Taught(opened(load), seen, tuple(passed))


def _problem(data: bytes, max_pixels: int) -> str | None:
    """Return why nothing can be learned from an image; None: it can."""
    if problem := problem_of(data, max_pixels):
        return problem
    try:
        decode(data, min_side=1)
    except ImageError as error:
        return str(error)
    return None
