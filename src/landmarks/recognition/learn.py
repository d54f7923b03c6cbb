"""The verbs `learn` and `forget`: new landmarks from a few images each, in about a second, without training.

A run keeps them in its folder, an export in a file beside it, which needs no PyTorch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.images import ImageError
from landmarks.dataset.naming import plain
from landmarks.dataset.sources import find_images
from landmarks.recognition.learned_images import Learned
from landmarks.recognition.portable_answers import require_learning
from landmarks.recognition.portable_learning import learned_file, write_learned_file
from landmarks.recognition.reading import ImageLike, as_iterable
from landmarks.recognition.recogniser import Recogniser, is_export, load
from landmarks.support.console import note, plural
from landmarks.support.disk import remove_file
from landmarks.support.errors import LandmarksError, UsageError, naming_the_extra
from landmarks.support.files import held, held_beside
from landmarks.support.places import Place
from landmarks.training.run import open_run

LEARNED_TABLE = {
    "label": pl.UInt32,  # behind those that it was trained for
    "landmark_id": pl.Int64,  # below -1 unless one was given
    "name": pl.String,
    "images": pl.UInt32,
}
"""Columns of what `learn` and `forget` return, one row for each learned landmark."""

Given: TypeAlias = ImageLike | Iterable[ImageLike]


@dataclass(frozen=True)
class _Lesson:
    """What is to be learned: images of one landmark, or a file of landmarks."""

    images: list[ImageLike]
    name: str
    landmark_id: int | None
    file: Path | None


def learn(
    run: Place,
    images: Given | None = None,
    *,
    name: str | None = None,
    landmark_id: int | None = None,
    from_: Place | None = None,
    device: str = "auto",
) -> pl.DataFrame:
    """Add the landmark `name` to `run`, or to an export, from `images` of it; return all that it learned so far.

    An image is as in `Recogniser`, or one of those in a folder. For what is returned see `LEARNED_TABLE`. A
    landmark that was learned before gets these images too. Images that cannot be decoded are named and passed by. A
    run's own dataset must be there the first time: what is kept of it is made then. An export must have been written
    with `learning`; it keeps what it learns in `NAME.learned.json` beside it, needs no PyTorch, and takes a file that
    its page has saved too (`from_`, instead of images and a name). Raises `LandmarksError` for a name or id that it was
    trained for, and when no image can be read.
    """
    lesson = _lesson_of(images, name, landmark_id, from_)
    if is_export(run):
        return _learn_with_export(Path(run), lesson)
    if lesson.file is not None:
        raise UsageError(
            f"{run} is a run, and only an export takes what its page has saved", received=f"from {lesson.file}",
            way_out="give the images and a name, or name the export",
        )  # fmt: skip
    opened = open_run(run)
    with naming_the_extra(f"learning with the run {opened.name}"):
        from landmarks.recognition.learned import write_learned
        from landmarks.recognition.remembering import remembering
    with held(opened.folder):
        recogniser = remembering(opened, device=device)
        vectors = _each(lesson, recogniser.vectors)
        taught = recogniser.with_vectors(vectors, lesson.name, landmark_id)
        learned = taught.learned
        write_learned(opened.folder, learned, opened.digest)
    _say(lesson, taught, len(vectors))
    return table_of(len(opened.labels), learned)


def forget(run: Place, name: str) -> pl.DataFrame:
    """Take the learned landmark `name` out of `run`, or of an export, again; return those left, see `LEARNED_TABLE`."""
    if is_export(run):
        with _held(Path(run)):
            recogniser = load(run).forget(name)
            _keep(recogniser)
        return table_of(_trained(recogniser), recogniser.learned)
    opened = open_run(run)
    with naming_the_extra(f"forgetting with the run {opened.name}"):
        from landmarks.recognition.learned import read_learned, write_learned
    with held(opened.folder):
        left = read_learned(opened.folder, opened.digest).without(plain(name))
        write_learned(opened.folder, left, opened.digest)
    return table_of(len(opened.labels), left)


def _lesson_of(images: Given | None, name: str | None, landmark_id: int | None, file: Place | None) -> _Lesson:
    given = [] if images is None else list(as_iterable(images))
    if file is not None:
        if given or name is not None or landmark_id is not None:
            raise UsageError("landmarks are learned from images of it, or from a file that holds names and numbers")
        return _Lesson([], "", None, Path(file))
    if not given or name is None:
        raise UsageError(
            "a landmark is learned from images of it and a name",
            received=f"{len(given)} images" if name is None else "no images",
            way_out="landmarks learn RUN IMAGES --name NAME, or landmarks learn NAME.onnx --from FILE.json",
        )
    return _Lesson(each_image(given), name, landmark_id, None)


def each_image(given: Sequence[ImageLike]) -> list[ImageLike]:
    """Return images in memory and files among `given`, and the images in the folders among them, in their order."""
    return [image for one in given for image in (find_images(one) if isinstance(one, str | os.PathLike) else [one])]


def _learn_with_export(place: Path, lesson: _Lesson) -> pl.DataFrame:
    with _held(place):
        recogniser = load(place)
        require_learning(recogniser.exported)
        if lesson.file is not None:
            recogniser = recogniser.read_learned(lesson.file)
            note(f"{lesson.file} is read: {plural(len(recogniser.learned.names), 'landmark')} learned so far")
        else:
            vectors = _each(lesson, recogniser.vectors)
            recogniser = recogniser.with_vectors(vectors, lesson.name, lesson.landmark_id)
            _say(lesson, recogniser, len(vectors))
        _keep(recogniser)
    return table_of(_trained(recogniser), recogniser.learned)


def _held(export: Path) -> contextlib.AbstractContextManager[Path]:
    """Hold what an export has learned; raise `LandmarksError` where there is no export."""
    if not export.is_file():
        raise LandmarksError(f"there is no export {export}")
    return held_beside(learned_file(export))


def _keep(recogniser: Recogniser) -> None:
    """Write what an export's recogniser has learned beside the export; call it while holding that file."""
    path = learned_file(recogniser.exported.path)
    if recogniser.learned.names:
        write_learned_file(path, recogniser.learned, require_learning(recogniser.exported).digest)
    else:
        remove_file(path)


def _trained(recogniser: Recogniser) -> int:
    return len(recogniser.names) - len(recogniser.learned.names)


def _each(lesson: _Lesson, ask: Callable[[ImageLike], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return what `ask` says of each image (m, D); those that cannot be read are named and passed by."""
    found = []
    for one in lesson.images:
        try:
            found.append(ask(one)[0])
        except ImageError as error:
            note(str(error))
    if not found:
        raise LandmarksError(f'none of the {len(lesson.images)} images of "{lesson.name}" can be read')
    return np.stack(found)


def _say(lesson: _Lesson, taught: Recogniser, read: int) -> None:
    """Say what a lesson came to, and where its landmark is hardly another than one there was."""
    name, learned = plain(lesson.name), taught.learned
    passed = f"; {len(lesson.images) - read} could not be read" if read < len(lesson.images) else ""
    note(f'"{name}" is known from {plural(learned.counts()[learned.names.index(name)], "image")}{passed}')
    if alike := [one for one in taught.names if one != name and one.casefold() == name.casefold()]:
        note(f'"{name}" is a landmark of its own beside "{alike[0]}"; to take it back: landmarks forget, same name')


def table_of(trained: int, learned: Learned) -> pl.DataFrame:
    """Return what was learned beside so many trained landmarks as `LEARNED_TABLE`."""
    labels = range(trained, trained + len(learned.names))
    rows = zip(labels, learned.landmark_ids, learned.names, learned.counts(), strict=True)
    return pl.DataFrame(list(rows), schema=LEARNED_TABLE, orient="row")
