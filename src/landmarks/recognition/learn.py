"""The verbs `learn` and `forget`: new landmarks from a few images each, in about a second, without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

from landmarks.dataset.images import ImageError
from landmarks.dataset.manifest import Dataset
from landmarks.dataset.naming import plain
from landmarks.dataset.sources import find_images
from landmarks.recognition.closed_form import memory_of
from landmarks.recognition.directions import directions
from landmarks.recognition.gallery import ensure_gallery, sample
from landmarks.recognition.learned import (
    read_learned,
    read_memory,
    write_learned,
    write_memory,
)
from landmarks.recognition.learned_images import Learned
from landmarks.recognition.recogniser import Recogniser, load
from landmarks.recognition.trained import ensure_temperature, open_recogniser
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError
from landmarks.support.files import held
from landmarks.training.discriminant import Validation, moments_of
from landmarks.training.features import kept_features
from landmarks.training.loader import batches, normalised
from landmarks.training.own_data import find_own, images_seen
from landmarks.training.run import Run, open_run

MAX_VALIDATION = 4096
"""Validation images that new landmarks are held against."""

MAX_NUMBERS = 1 << 24
"""Of the head's answers to them that are kept, two bytes each."""

BATCH_SIZE = 32

LEARNED_TABLE = {
    "label": pl.UInt32,  # behind those that the run was trained on
    "landmark_id": pl.Int64,  # below -1 unless one was given
    "name": pl.String,
    "images": pl.UInt32,
}
"""Columns of what `learn` and `forget` return, one row for each learned landmark."""


def learn(
    run: Path | str,
    images: Path | str | bytes | Sequence[Path | str | bytes],
    *,
    name: str,
    landmark_id: int | None = None,
    device: str = "auto",
) -> pl.DataFrame:
    """Add the landmark `name` to `run` from `images` of it; return all that it learned so far.

    An image is a file, a file's bytes, or one of those in a folder. For what is returned see `LEARNED_TABLE`. A
    landmark that was learned before gets these images too. Images that cannot be decoded are named and passed by. The
    first time, the run's own dataset must be there: what is kept of it is made then. Raises `LandmarksError` for a
    name or id that the run was trained on, and when no image can be read.
    """
    opened, given = open_run(run), each_image([images] if isinstance(images, str | Path | bytes) else images)
    with held(opened.folder):
        recogniser = remembering(opened, device=device)
        features, failed = [], 0
        for one in given:
            try:
                features.append(recogniser.embed(one)[0])
            except ImageError as error:
                failed += 1
                note(str(error))
        if not features:
            raise LandmarksError(f'none of the {len(given)} images of "{name}" can be read')
        learned = recogniser.with_features(np.stack(features), name, landmark_id).learned
        write_learned(opened.folder, learned, opened.digest)
    place = learned.names.index(plain(name))
    passed = f"; {failed} could not be read" if failed else ""
    note(f'"{name}" is known from {learned.counts()[place]} images{passed}')
    return table_of(opened, learned)


def each_image(places: Sequence[Path | str | bytes]) -> list[Path | bytes]:
    """Return files and files' bytes among `places`, and the images in the folders among them, in their order."""
    return [image for one in places for image in ([one] if isinstance(one, bytes) else find_images([one]))]


def forget(run: Path | str, name: str) -> pl.DataFrame:
    """Take the learned landmark `name` out of `run` again; return those that are left, see `LEARNED_TABLE`."""
    opened = open_run(run)
    with held(opened.folder):
        left = read_learned(opened.folder, opened.digest).without(plain(name))
        write_learned(opened.folder, left, opened.digest)
    return table_of(opened, left)


def table_of(run: Run, learned: Learned) -> pl.DataFrame:
    """Return what was learned as `LEARNED_TABLE`."""
    labels = range(len(run.labels), len(run.labels) + len(learned.names))
    rows = zip(labels, learned.landmark_ids, learned.names, learned.counts(), strict=True)
    return pl.DataFrame(list(rows), schema=LEARNED_TABLE, orient="row")


def remembering(run: Run, *, device: str = "auto") -> Recogniser:
    """Return `run` as a recogniser that can learn: what it keeps of its own images is made now when it is not there.

    Call it while holding the run's folder. Raises `LandmarksError` when that is needed and its dataset is not there.
    """
    if read_memory(run.folder, run.digest) is None:
        recogniser, own = open_recogniser(run, device=device), find_own(run)
        recogniser = ensure_temperature(run, own, recogniser, BATCH_SIZE)
        gallery = ensure_gallery(run, recogniser.trained, own, BATCH_SIZE)
        if gallery is None:
            raise LandmarksError(f"{run.name} cannot learn landmarks: it remembers none of its training images")
        moments = moments_of(gallery.images, gallery.labels, len(run.labels))
        seen = images_seen(run, own, "val")
        limit = max(1, min(MAX_VALIDATION, MAX_NUMBERS // len(run.labels)))
        seen = seen.filter(pl.Series(sample(seen["run_label"].to_numpy(), limit)))
        validation = validation_of(run, recogniser, seen, gallery.images.shape[1])
        memory = memory_of(moments, validation, gallery.images, gallery.labels)
        write_memory(run.folder, memory, run.digest)
    return load(run, device=device)


def validation_of(run: Run, recogniser: Recogniser, seen: pl.DataFrame, width: int) -> Validation:
    """Return what the run's head says of its validation images `seen`, from kept features where there are any."""
    own, network, done = find_own(run), recogniser.trained, 0
    images = np.empty((len(seen), width), dtype=np.float16)
    logs = np.empty((len(seen), network.classes), dtype=np.float16)
    with torch.no_grad():
        for features in _features(run, recogniser, own, seen):
            said = torch.log_softmax(network.classify(features).float() / recogniser.temperature, dim=1)
            rows = slice(done, done + len(features))
            images[rows] = directions(features.cpu().numpy())
            logs[rows] = said.clamp(min=-6e4).cpu().numpy()  # what half precision holds
            done += len(features)
    return Validation(images, seen["run_label"].cast(pl.Int64).to_numpy(), logs)


def _features(run: Run, recogniser: Recogniser, own: Dataset, seen: pl.DataFrame) -> Iterator[torch.Tensor]:
    kept = kept_features(run, own, seen)
    if kept is not None:
        for start in range(0, len(kept), BATCH_SIZE):
            rows = np.asarray(kept[start : start + BATCH_SIZE], dtype=np.float32)
            yield torch.from_numpy(rows).to(recogniser.device)
        return
    preprocessing = recogniser.trained.preprocessing
    for batch in batches(own, seen, preprocessing, batch_size=BATCH_SIZE):
        yield recogniser.trained.features(normalised(batch.pixels, preprocessing, recogniser.device)).float()
