"""Making a run ready, once, while its dataset is there: the memory from which it learns, and how it answers best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import polars as pl
import torch

from landmarks.dataset.manifest import Dataset
from landmarks.recognition.answering import (
    RECORD,
    AnsweringChoice,
    answering_as_stored,
    best_of,
    choice_of,
    neighbours_of,
    read_choice,
    record_of,
)
from landmarks.recognition.closed_form import MAX_IMAGES, memory_of, read_memory, write_memory
from landmarks.recognition.gallery import ensure_gallery, open_gallery, sample
from landmarks.recognition.recogniser import CLASSIFIER, Recogniser, load
from landmarks.recognition.trained import ensure_temperature, open_recogniser, update_model
from landmarks.recognition.vectors import directions
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError
from landmarks.support.files import held, read_record
from landmarks.support.places import Place
from landmarks.training.discriminant import Validation, class_moments
from landmarks.training.features import kept_features
from landmarks.training.loader import batches, normalised
from landmarks.training.own_data import find_own_dataset, images_seen
from landmarks.training.run import Run, open_run

MAX_VALIDATION = 4096
"""Most validation images that are kept."""

MAX_NUMBERS = 1 << 24
"""Most numbers of the head's log probabilities for them, two bytes each."""

BATCH_SIZE = 32


# ── The memory: what learning needs of its own images ───────────────────────────────────────────────────────────────


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


# ── The best way of answering, chosen on its validation images and stored in the run ────────────────────────────────


def choose(run: Run, *, anew: bool = False, device: str = "auto") -> None:
    """Choose on the validation images how `run` answers, and store the choice and what the run remembers for it.

    A run with a threshold keeps the way of answering that the threshold was chosen for, unless the threshold is chosen
    `anew` too. Call it while holding the run's folder. Raises `LandmarksError` when the dataset is not there, or when
    the run has no validation images, or more landmarks than images are remembered.
    """
    if len(run.labels) > MAX_IMAGES:
        raise LandmarksError(
            f"{run.name} answers by classifier alone: it has more landmarks than images are remembered",
            received=f"{len(run.labels)} landmarks",
            expected=f"{MAX_IMAGES} at most",
        )
    ensure_memory(run, device=device)
    memory = read_memory(run.folder, run.digest)
    choice = None if memory is None else choice_of(memory, neighbours_of(memory, open_gallery(run)))
    if choice is None:
        raise LandmarksError(f"{run.name} answers by classifier alone: it has no validation images to choose on")
    _keep(run, choice, anew=anew)


def _keep(run: Run, choice: AnsweringChoice, *, anew: bool) -> None:
    """Store `choice`, with a note; without `anew`, a run with a threshold keeps the threshold's way of answering."""
    rejection, best = read_record(run.folder / "model.json").get("rejection"), choice.by
    if rejection is not None and not anew:
        choice = replace(choice, by=str(rejection.get("by", CLASSIFIER)))
    update_model(run, **{RECORD: record_of(choice)})
    note(str(choice))
    if best != choice.by:
        note(f"its threshold is for answers by {choice.by}: by {best} once evaluate --false-acceptance chooses another")


def make_ready(place: Place, *, device: str = "auto") -> None:
    """Make the run at `place` able to answer by neighbours or both: calls `choose` if that was not done yet."""
    run = place if isinstance(place, Run) else open_run(place)
    if not _is_ready(run):
        with held(run.folder):
            choose(run, device=device)


def _is_ready(run: Run) -> bool:
    has_choice = read_record(run.folder / "model.json").get(RECORD) is not None
    return has_choice and read_memory(run.folder, run.digest) is not None


def measured_by(
    run: Run, recogniser: Recogniser, by: str | None, *, may_choose: bool, anew: bool = False, device: str = "auto"
) -> Recogniser:
    """Return the recogniser of `run` as it was trained, answering `by` the given way, or as the run has chosen.

    With `may_choose` a run without a choice chooses now, if it has validation images and a gallery. `anew` says that
    the threshold is about to be chosen again. Call it while holding the run's folder.
    """
    if by == CLASSIFIER:
        return recogniser
    if by is None:
        can_choose = may_choose and recogniser.gallery is not None and len(run.labels) <= MAX_IMAGES
        if not _settled(run, can_choose=can_choose, anew=anew, device=device):
            return recogniser
    elif not _is_ready(run):
        choose(run, anew=anew, device=device)
        recogniser = replace(recogniser, gallery=open_gallery(run))
    record = read_record(run.folder / "model.json")
    return answering_as_stored(replace(recogniser, memory=read_memory(run.folder, run.digest)), record, by, run.folder)


def _settled(run: Run, *, can_choose: bool, anew: bool, device: str) -> bool:
    """Return whether `run` has a choice, making one if it `can_choose`.

    With `anew`, a run that kept another way for its threshold changes to the best one.
    """
    choice = read_choice(read_record(run.folder / "model.json"), run.folder)
    if choice is not None:
        best = best_of(choice.ways, choice.images).by
        if anew and choice.by != best:
            _keep(run, replace(choice, by=best), anew=True)
        return True
    if not can_choose:
        return False
    try:
        choose(run, anew=anew, device=device)
    except LandmarksError as error:
        note(str(error))
        return False
    return True
