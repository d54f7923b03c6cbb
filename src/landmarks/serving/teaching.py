"""A served run is taught: landmarks learned from images that a request brought, and forgotten again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from landmarks.dataset.images import ImageError
from landmarks.dataset.naming import plain
from landmarks.serving.batching import Answering, problem_of
from landmarks.serving.forms import Lesson
from landmarks.serving.reloading import Stamp, opened, stamp
from landmarks.serving.request_limits import RefusalError, busy
from landmarks.support.errors import BusyError, LandmarksError
from landmarks.support.files import held

if TYPE_CHECKING:
    from landmarks.recognition.learned_images import Learned
    from landmarks.recognition.recogniser import Recogniser
    from landmarks.training.run import Run

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
    images: dict[str, int]
    """Images that each learned landmark is known from, by name."""
    stamp: Stamp
    """Of the run's folder with this in it."""
    passed: tuple[Passed, ...] = ()


def require_teaching(allowed: bool, place: Path | None) -> Path:
    """Return the run's folder. Raises `RefusalError`: 403 where teaching is off, 409 for what is no run."""
    if not allowed or place is None:
        raise RefusalError(
            403, "this server is not taught", expected="a server that was started for it",
            way_out="whoever runs it can start it with: landmarks serve RUN --teach", reason="teaching",
        )  # fmt: skip
    if not place.is_dir():
        raise RefusalError(
            409, "an export cannot learn landmarks here", expected="the folder of a run",
            way_out="learn with the run that it was made from, and export again", reason="teaching",
        )  # fmt: skip
    return place


def taught(
    place: Path, lesson: Lesson, load: Callable[[], Answering], *, max_pixels: int, device: str = "auto"
) -> Taught:
    """Teach the run at `place` a landmark, and open it again; nothing is written unless an image could be read.

    Raises `RefusalError`: 422 when no image can be read, 409 for a name or id that is taken, 503 for a run that another
    process is writing.
    """
    from landmarks.recognition.learn import remembering

    passed: list[Passed] = []

    def learned(run: Run) -> Learned:
        import numpy as np

        recogniser, features = remembering(run, device=device), []
        for one in lesson.images:
            problem = problem_of(one.data, max_pixels)
            try:
                if problem is None:
                    features.append(recogniser.embed(one.data)[0])
            except ImageError as error:
                problem = str(error)
            if problem is not None:
                passed.append(Passed(one.file, problem))
        if not features:
            raise RefusalError(
                422, f'no image of "{lesson.name}" can be read', received=passed[0].problem,
                way_out="send JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF images",
            )  # fmt: skip
        changed: Recogniser = recogniser.with_features(np.stack(features), lesson.name, lesson.landmark_id)
        return changed.learned

    return _changed(place, learned, load, passed)


def forgotten(place: Path, name: str, load: Callable[[], Answering]) -> Taught:
    """Take a learned landmark out of the run at `place`. Raises `RefusalError`: 404 for one that was not learned."""
    from landmarks.recognition.learned import read_learned

    def left(run: Run) -> Learned:
        learned = read_learned(run.folder, run.digest)
        if plain(name) not in learned.names:
            raise RefusalError(
                404, "no such landmark was learned", received=plain(name)[:200],
                expected="a landmark that was taught", way_out="see GET /landmarks",
            )  # fmt: skip
        return learned.without(plain(name))

    return _changed(place, left, load, [])


def _changed(
    place: Path, change: Callable[[Run], Learned], load: Callable[[], Answering], passed: list[Passed]
) -> Taught:
    from landmarks.recognition.learned import write_learned
    from landmarks.training.run import open_run

    try:
        run = open_run(place)
        with held(run.folder):
            learned = change(run)
            write_learned(run.folder, learned, run.digest)
            seen = stamp(place)  # while nobody else may write
            recogniser = opened(load)
    except BusyError as error:
        raise busy(str(error), retry_after=RETRY_SECONDS) from error
    except LandmarksError as error:
        raise RefusalError(409, str(error), reason="teaching") from error
    counts = dict(zip(learned.names, learned.counts(), strict=True))
    return Taught(recogniser, counts, seen, tuple(passed))
