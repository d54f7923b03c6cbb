"""The verbs `learn` and `forget`: new landmarks from a few images each, in about a second, without training.

A run keeps them in its folder, an export in a file beside it, which needs no PyTorch.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.images import ImageError
from landmarks.dataset.naming import normalised_name
from landmarks.dataset.sources import find_images
from landmarks.recognition.learned import Learned, learned_file, write_learned_file
from landmarks.recognition.portable import require_learning
from landmarks.recognition.reading import ImageLike, as_iterable
from landmarks.recognition.recogniser import Recogniser, is_export, load
from landmarks.support.console import note, plural
from landmarks.support.disk import remove_file
from landmarks.support.errors import LandmarksError, UsageError, naming_the_extra
from landmarks.support.files import held, held_beside
from landmarks.support.places import Place
from landmarks.training.run import open_run

LEARNED_TABLE = {
    "label": pl.UInt32,  # follows those of the trained landmarks
    "landmark_id": pl.Int64,  # below -1 unless one was given
    "name": pl.String,
    "images": pl.UInt32,
}
"""Columns of the table that `learn` and `forget` return, one row per learned landmark."""

Images: TypeAlias = ImageLike | Iterable[ImageLike]


@dataclass(frozen=True)
class _Lesson:
    """What to learn: images of one landmark, or a file of learned landmarks."""

    images: list[ImageLike]
    name: str
    landmark_id: int | None
    file: Path | None


def learn(
    run: Place,
    images: Images | None = None,
    *,
    name: str | None = None,
    landmark_id: int | None = None,
    from_: Place | None = None,
    device: str = "auto",
) -> pl.DataFrame:
    """Add the landmark `name` to `run`, or to an export, from `images` of it; return all learned landmarks.

    `images` are as in `Recogniser`, or folders of images. The table returned has the columns `LEARNED_TABLE`. A
    landmark that was learned before gets these images too. Images that cannot be decoded are skipped, with a note.

    A run needs its own dataset the first time, to compute what it then keeps for learning. An export must have been
    written with `learning`. It stores what it learns in `NAME.learned.json` beside it, needs no PyTorch, and also takes
    a file saved by its page (`from_`, instead of images and a name). Raises `LandmarksError` for a name or id of a
    trained landmark, and when no image can be read.
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
        from landmarks.recognition.closed_form import write_learned
        from landmarks.recognition.making_ready import ensure_memory
    with held(opened.folder):
        recogniser = ensure_memory(opened, device=device)
        vectors = _vectors_of(lesson, recogniser)
        _note_known_otherwise(vectors, recogniser, lesson.name)
        recogniser = recogniser.with_vectors(vectors, lesson.name, landmark_id)
        write_learned(opened.folder, recogniser.learned, opened.digest)
    _report(lesson, recogniser, len(vectors))
    return table_of(len(opened.labels), recogniser.learned)


def forget(run: Place, name: str) -> pl.DataFrame:
    """Remove the learned landmark `name` from `run`, or from an export; return those left, as `LEARNED_TABLE`."""
    if is_export(run):
        with _held(Path(run)):
            recogniser = load(run).forget(name)
            _keep(recogniser)
        return table_of(_trained(recogniser), recogniser.learned)
    opened = open_run(run)
    with naming_the_extra(f"forgetting with the run {opened.name}"):
        from landmarks.recognition.closed_form import read_learned, write_learned
    with held(opened.folder):
        left = read_learned(opened.folder, opened.digest).without(normalised_name(name))
        write_learned(opened.folder, left, opened.digest)
    return table_of(len(opened.labels), left)


def _lesson_of(images: Images | None, name: str | None, landmark_id: int | None, file: Place | None) -> _Lesson:
    items = [] if images is None else list(as_iterable(images))
    if file is not None:
        if items or name is not None or landmark_id is not None:
            raise UsageError("landmarks are learned from images of it, or from a file that holds names and numbers")
        return _Lesson([], "", None, Path(file))
    if not items or name is None:
        raise UsageError(
            "a landmark is learned from images of it and a name",
            received=f"{len(items)} images" if name is None else "no images",
            way_out="landmarks learn RUN IMAGES --name NAME, or landmarks learn NAME.onnx --from FILE.json",
        )
    return _Lesson(expand_paths(items), name, landmark_id, None)


def expand_paths(items: Sequence[ImageLike]) -> list[ImageLike]:
    """Return `items` with every path replaced by the image files that it names, in order."""
    paths = [item for item in items if isinstance(item, str | os.PathLike)]
    if len(paths) == len(items):  # at once, so that a file which is named twice is taken once
        return list(find_images(paths))
    return [image for item in items for image in (find_images(item) if isinstance(item, str | os.PathLike) else [item])]


def _learn_with_export(place: Path, lesson: _Lesson) -> pl.DataFrame:
    with _held(place):
        recogniser = load(place)
        require_learning(recogniser.exported)
        if lesson.file is not None:
            recogniser = recogniser.read_learned(lesson.file)
            note(f"{lesson.file} is read: {plural(len(recogniser.learned.names), 'landmark')} learned so far")
        else:
            vectors = _vectors_of(lesson, recogniser)
            _note_known_otherwise(vectors, recogniser, lesson.name)
            recogniser = recogniser.with_vectors(vectors, lesson.name, lesson.landmark_id)
            _report(lesson, recogniser, len(vectors))
        _keep(recogniser)
    return table_of(_trained(recogniser), recogniser.learned)


def _held(export: Path) -> contextlib.AbstractContextManager[Path]:
    """Lock the file of what an export has learned; raise `LandmarksError` if there is no export."""
    if not export.is_file():
        raise LandmarksError(f"there is no export {export}")
    return held_beside(learned_file(export))


def _keep(recogniser: Recogniser) -> None:
    """Write what an export's recogniser has learned beside the export; call it while holding the lock."""
    path = learned_file(recogniser.exported.path)
    if recogniser.learned.names:
        write_learned_file(path, recogniser.learned, require_learning(recogniser.exported).digest)
    else:
        remove_file(path)


def _trained(recogniser: Recogniser) -> int:
    return len(recogniser.names) - len(recogniser.learned.names)


def _vectors_of(lesson: _Lesson, recogniser: Recogniser) -> NDArray[np.float32]:
    """Return the vectors (m, D) of a lesson's images; those that cannot be read are skipped, with a note."""
    vectors = []
    for image in lesson.images:
        try:
            vectors.append(recogniser.vectors(image)[0])
        except ImageError as error:
            note(str(error))
    if not vectors:
        raise LandmarksError(f'none of the {len(lesson.images)} images of "{lesson.name}" can be read')
    return np.stack(vectors)


SAME_IMAGE = 0.99
"""Cosine from which two vectors are taken for those of one image. They are not equal: the remembered ones may come from
features cached in bfloat16."""


def _note_known_otherwise(vectors: NDArray[np.float32], recogniser: Recogniser, name: str) -> None:
    """Note how many of a lesson's images, by their `vectors` (m, D), are known as another landmark than `name`.

    A run compares them with the training images that it remembers and with those it has learned from, an export with
    the latter alone.
    """
    gallery, learned = recogniser.gallery, recogniser.learned
    if gallery is not None:
        cosines, places = gallery.index.search(vectors, 1)
        found = [recogniser.names[label] for label in gallery.labels[places[cosines > SAME_IMAGE]]]
    else:
        images = learned.images.reshape(-1, vectors.shape[1])
        same = [np.flatnonzero((images == vector).all(axis=1)) for vector in vectors]
        found = [learned.names[learned.places[rows[0]]] for rows in same if len(rows)]
    for other, count in Counter(found).most_common():
        if other != normalised_name(name):
            are = "is" if count == 1 else "are"
            note(f'{count} of the {plural(len(vectors), "image")} of "{name}" {are} known as "{other}" already')


def _report(lesson: _Lesson, recogniser: Recogniser, read: int) -> None:
    """Note what was learned, and warn when the name differs from another landmark's only in case."""
    name, learned = normalised_name(lesson.name), recogniser.learned
    skipped = f"; {len(lesson.images) - read} could not be read" if read < len(lesson.images) else ""
    note(f'"{name}" is known from {plural(learned.counts()[learned.names.index(name)], "image")}{skipped}')
    if alike := [other for other in recogniser.names if other != name and other.casefold() == name.casefold()]:
        note(f'"{name}" is a landmark of its own beside "{alike[0]}"; to take it back: landmarks forget, same name')


def table_of(trained: int, learned: Learned) -> pl.DataFrame:
    """Return learned landmarks as `LEARNED_TABLE`, given how many landmarks were `trained`."""
    labels = range(trained, trained + len(learned.names))
    rows = zip(labels, learned.landmark_ids, learned.names, learned.counts(), strict=True)
    return pl.DataFrame(list(rows), schema=LEARNED_TABLE, orient="row")
