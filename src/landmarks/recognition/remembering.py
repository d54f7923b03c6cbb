"""The memory of a run: what learning needs of its own images, made once while its dataset is there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
import torch

from landmarks.dataset.manifest import Dataset
from landmarks.recognition.closed_form import memory_of
from landmarks.recognition.directions import directions
from landmarks.recognition.gallery import ensure_gallery, sample
from landmarks.recognition.learned import read_memory, write_memory
from landmarks.recognition.recogniser import Recogniser, load
from landmarks.recognition.trained import ensure_temperature, open_recogniser
from landmarks.support.errors import LandmarksError
from landmarks.training.discriminant import Validation, class_moments
from landmarks.training.features import kept_features
from landmarks.training.loader import batches, normalised
from landmarks.training.own_data import find_own_dataset, images_seen
from landmarks.training.run import Run

MAX_VALIDATION = 4096
"""Most validation images that are kept."""

MAX_NUMBERS = 1 << 24
"""Most numbers of the head's log probabilities for them, two bytes each."""

BATCH_SIZE = 32


def ensure_memory(run: Run, *, device: str = "auto") -> Recogniser:
    """Return the recogniser of `run`, which can learn; its memory is made now if it does not exist.

    Call it while holding the run's folder. Raises `LandmarksError` when the dataset is needed and not there.
    """
    if read_memory(run.folder, run.digest) is None:
        recogniser, own = open_recogniser(run, device=device), find_own_dataset(run)
        recogniser = ensure_temperature(run, own, recogniser, BATCH_SIZE)
        gallery = ensure_gallery(run, recogniser.trained, own, BATCH_SIZE)
        if gallery is None:
            raise LandmarksError(f"{run.name} cannot learn landmarks: it remembers none of its training images")
        moments = class_moments(gallery.images, gallery.labels, len(run.labels))
        seen = images_seen(run, own, "val")
        limit = max(1, min(MAX_VALIDATION, MAX_NUMBERS // len(run.labels)))
        seen = seen.filter(pl.Series(sample(seen["run_label"].to_numpy(), limit)))
        validation = validation_of(run, recogniser, seen, gallery.images.shape[1])
        memory = memory_of(moments, validation, gallery.images, gallery.labels)
        write_memory(run.folder, memory, run.digest)
    return load(run, device=device)


def validation_of(run: Run, recogniser: Recogniser, seen: pl.DataFrame, width: int) -> Validation:
    """Return the head's log probabilities for the validation images `seen`, from cached features if there are any."""
    own, network, done = find_own_dataset(run), recogniser.trained, 0
    images = np.empty((len(seen), width), dtype=np.float16)
    logs = np.empty((len(seen), network.classes), dtype=np.float16)
    with torch.no_grad():
        for features in _features(run, recogniser, own, seen):
            batch_logs = torch.log_softmax(network.classify(features).float() / recogniser.temperature, dim=1)
            rows = slice(done, done + len(features))
            images[rows] = directions(features.cpu().numpy())
            logs[rows] = batch_logs.clamp(min=-6e4).cpu().numpy()  # the range of half precision
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
