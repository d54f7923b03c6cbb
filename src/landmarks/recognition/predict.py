"""The verb `predict`: what do these images show? Files and folders, landmarks or "not a landmark I know"."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from landmarks.dataset.images import ImageError
from landmarks.dataset.sources import SUFFIXES
from landmarks.models.network import Preprocessing
from landmarks.recognition.gallery import Rule, open_gallery
from landmarks.recognition.recogniser import ANSWERS, Answers, Recogniser, open_recogniser
from landmarks.support.console import note, progress
from landmarks.support.errors import LandmarksError, StaleError, UsageError
from landmarks.support.files import read_record, written_whole
from landmarks.support.systems import readable
from landmarks.training.loader import BATCHES_AHEAD, default_workers, evaluation_image
from landmarks.training.run import Run, open_run

NOT_KNOWN = "not a landmark I know"
"""The answer to an image whose score lies below the threshold stored with the model."""

PREDICTED = {
    "path": pl.String,  # with \x.. where a byte of it is no UTF-8
    "rank": pl.UInt32,  # from 1; null where the image could not be answered
    "landmark_id": pl.Int64,
    "name": pl.String,
    "probability": pl.Float32,
    "known": pl.Boolean,  # null: the model has no threshold (evaluate --false-acceptance chooses one)
    "problem": pl.String,  # why the image could not be answered; null: it was
}
"""Columns of the table that `predict` returns, images in the order they were named."""

BATCH_SIZE = 32
MAX_FILE_BYTES = 256 * 1024**2
"""A file beyond this size is named as a problem and not read."""


@dataclass(frozen=True)
class _Predictor:
    """A recogniser, the names of what it answers, and the threshold below which it answers "not a landmark I know"."""

    recogniser: Recogniser
    names: list[str]
    landmark_ids: list[int]
    rule: Rule | None  # None: the model has no threshold
    threshold: float
    top: int

    def rows(self, paths: Sequence[Path], read: Sequence[NDArray[np.uint8] | str]) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of `PREDICTED` of some files: their images, or why there is none."""
        pixels = [pixels_of_one for pixels_of_one in read if not isinstance(pixels_of_one, str)]
        if pixels:
            answers = self.recogniser.answer(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
            known = self._known(answers)
        places = iter(range(len(pixels)))
        for path, pixels_of_one in zip(paths, read, strict=True):
            if isinstance(pixels_of_one, str):
                yield (readable(path), None, None, None, None, None, pixels_of_one)
                continue
            place = next(places)
            best = zip(answers.labels[place], answers.scores[place], strict=True)
            for rank, (label, score) in enumerate(islice(best, self.top), 1):
                yield (readable(path), rank, self.landmark_ids[label], self.names[label], score, known[place], None)

    def _known(self, answers: Answers) -> list[bool | None]:
        if self.rule is None:
            return [None] * len(answers.labels)
        scores = {"probability": answers.scores[:, 0], **answers.rejection}
        return list((self.rule.apply(scores) >= self.threshold).tolist())


def predict(
    run: Path | str,
    images: Path | str | Sequence[Path | str],
    *,
    csv: Path | str | None = None,
    top: int = 5,
    device: str = "auto",
) -> pl.DataFrame:
    """Return the `top` best answers of `run` to each image, see `PREDICTED`; `csv` writes the table there too.

    `images` are files and folders; a folder means every image in it and below, by name. An image that cannot be
    decoded has one row that says why. `device` is auto, cpu, cuda or mps. Raises `LandmarksError` when a path does not
    exist or holds no images.
    """
    if not 1 <= top <= ANSWERS:
        raise UsageError("that many answers cannot be had", received=top, expected=f"1 to {ANSWERS}")
    opened = open_run(run)
    paths = list(find_images([images] if isinstance(images, str | Path) else images))
    predictor = _open_predictor(opened, top, device)
    preprocessing = predictor.recogniser.network.preprocessing
    rows: list[tuple[Any, ...]] = []
    with progress("answering", total=len(paths)) as advance:
        for some, pixels in _read(paths, preprocessing):
            rows += predictor.rows(some, pixels)
            advance(len(some))
    table = pl.DataFrame(rows, schema=PREDICTED, orient="row")
    if csv is not None:
        with written_whole(csv) as aside:
            table.write_csv(aside)
    return table


def find_images(places: Sequence[Path | str]) -> Iterator[Path]:
    """Yield the files among `places` and the images in the folders among them, sorted by name."""
    for place in map(Path, places):
        if place.is_dir():
            files = sorted(path for path in place.rglob("*") if path.is_file())
            pixels = [path for path in files if path.suffix.lower() in SUFFIXES]
            if not pixels:
                raise LandmarksError(f"the folder {place} holds no images", expected=" or ".join(SUFFIXES[:2]))
            if len(pixels) < len(files):
                note(f"{place}: {len(files) - len(pixels)} files that are no images by name were passed by")
            yield from pixels
        elif place.is_file():
            yield place
        else:
            raise LandmarksError(f"there is no image {place}")


def _read(
    paths: Sequence[Path], preprocessing: Preprocessing
) -> Iterator[tuple[Sequence[Path], list[NDArray[np.uint8] | str]]]:
    """Yield files batch by batch with their images, or why there is none; the next ones are read in the meantime."""
    pending: deque[tuple[Sequence[Path], list[Future[NDArray[np.uint8] | str]]]] = deque()
    with ThreadPoolExecutor(default_workers(), thread_name_prefix="images") as pool:
        for start in range(0, len(paths), BATCH_SIZE):
            some = paths[start : start + BATCH_SIZE]
            pending.append((some, [pool.submit(_image, path, preprocessing) for path in some]))
            if len(pending) > BATCHES_AHEAD:
                ready, futures = pending.popleft()
                yield ready, [future.result() for future in futures]
        for ready, futures in pending:
            yield ready, [future.result() for future in futures]


def _image(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8] | str:
    """Return the image that the network sees, or why there is none."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return f"the file is larger than {MAX_FILE_BYTES >> 20} MB"
        return evaluation_image(path.read_bytes(), preprocessing)
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _open_predictor(run: Run, top: int, device: str) -> _Predictor:
    stored = read_record(run.folder / "model.json").get("rejection")
    rule = None if stored is None else Rule(**stored["rule"])
    gallery = open_gallery(run)
    if rule is not None and gallery is None and {"nearest", "centre"} & set(rule.weights):
        raise StaleError(
            f"{run.folder} has a threshold, but not the training images that it compares with",
            way_out="choose it again with: landmarks evaluate RUN --data TEST --false-acceptance RATE",
        )
    return _Predictor(
        recogniser=open_recogniser(run, gallery, device),
        names=run.labels["name"].to_list(),
        landmark_ids=run.labels["landmark_id"].to_list(),
        rule=rule,
        threshold=0.0 if stored is None else float(stored["threshold"]),
        top=top,
    )
