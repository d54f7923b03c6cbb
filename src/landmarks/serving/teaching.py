"""Teaching a running server: landmarks are learned from the images of a request, and forgotten again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from landmarks.dataset.images import ImageError, decode
from landmarks.dataset.naming import normalised_name
from landmarks.serving.batching import Answering, image_problem
from landmarks.serving.forms import Lesson
from landmarks.serving.reloading import Stamp, open_tested, stamp
from landmarks.serving.request_limits import RefusalError, busy
from landmarks.support.errors import BusyError, LandmarksError

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
