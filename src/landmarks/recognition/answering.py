"""Three ways of answering: by the trained classifier, by the nearest remembered images, or by both.

`neighbours` answers by the density of remembered training images around an image (`kernel_density.py`). `both` is the
mean of the classifier's probabilities and those of the closed form (`answering_heads.py`); each is right on images that
the other gets wrong. The way with the most correct answers to validation images is stored in the run's `model.json`,
with the figures of all three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from landmarks.models.network import Network
from landmarks.recognition.answering_heads import BothHead, NeighbourHead, trained_head
from landmarks.recognition.closed_form import Memory
from landmarks.recognition.gallery import Gallery
from landmarks.recognition.kernel_density import MAX_IMAGES, Neighbourhood, neighbourhood_of
from landmarks.recognition.known_scores import FROM_ANSWERS
from landmarks.recognition.learned import learned_head
from landmarks.recognition.learned_images import Learned
from landmarks.recognition.recogniser import BOTH, CLASSIFIER, NEIGHBOURS, Recogniser
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError
from landmarks.training.discriminant import fit_scale, mean_log_probabilities

RECORD = "answers_by"
"""The key of the choice in `model.json`."""


@dataclass(frozen=True)
class Way:
    """One way of answering, measured on the validation images."""

    by: str
    accuracy: float
    log_loss: float
    scale: float
    """Divisor of its log probabilities that minimises the log loss; 1 for the classifier, which has a temperature."""


@dataclass(frozen=True)
class AnsweringChoice:
    """The way that answers the most validation images correctly, with the figures of all ways."""

    by: str
    images: int
    ways: tuple[Way, ...]

    def way(self, by: str) -> Way:
        """Return the figures of one way; raise `LandmarksError` when the run cannot answer that way."""
        for way in self.ways:
            if way.by == by:
                return way
        raise LandmarksError(
            f"this run cannot answer by {by}", expected=f"as many landmarks as images it remembers, {MAX_IMAGES}"
        )

    def __str__(self) -> str:
        accuracies = {way.by: f"{100 * way.accuracy:.1f} %" for way in self.ways}
        best = accuracies.pop(self.by)
        others = ", ".join(f"by {by} {accuracy}" for by, accuracy in accuracies.items())
        return f"answers by {self.by}: right on {best} of {self.images} validation images ({others})"


def choice_of(memory: Memory, near: Neighbourhood | None) -> AnsweringChoice | None:
    """Return the way that answers the most validation images of `memory` correctly; see `best_of` for ties.

    `near` holds the remembered images. None without validation images or remembered images.
    """
    validation = memory.validation
    if not len(validation.labels) or near is None:
        return None
    logs, truth = validation.logs.astype(np.float64), validation.labels
    closed = memory.with_learned(Learned()).scores(validation.images)
    scores_by = {
        CLASSIFIER: logs,
        NEIGHBOURS: near.log_densities(validation.images, logs.shape[1]),
        BOTH: mean_log_probabilities(logs, closed),
    }
    ways = tuple(_way(by, scores, truth) for by, scores in scores_by.items())
    return AnsweringChoice(best_of(ways).by, len(truth), ways)


def best_of(ways: Sequence[Way]) -> Way:
    """Return the most accurate way; ties go to the classifier, then to the smaller log loss."""
    return max(ways, key=lambda way: (way.accuracy, way.by == CLASSIFIER, -way.log_loss))


def _way(by: str, scores: NDArray[np.float64], truth: NDArray[np.int64]) -> Way:
    scale = 1.0 if by == CLASSIFIER else fit_scale(scores, truth).scale
    logs = log_softmax(scores / scale, axis=1)[np.arange(len(truth)), truth]
    return Way(by, float((scores.argmax(axis=1) == truth).mean()), float(-np.maximum(logs, -1e4).mean()), scale)


def neighbours_of(memory: Memory, gallery: Gallery | None) -> Neighbourhood | None:
    """Return the remembered images among which neighbours are searched; None when there are too many landmarks."""
    if memory.neighbourhood is not None or gallery is None:
        return memory.neighbourhood
    old = gallery.labels < len(memory.moments.counts)
    return neighbourhood_of(memory.moments, gallery.images[old], gallery.labels[old])


def answering_by(recogniser: Recogniser, by: str) -> Recogniser:
    """Return `recogniser` answering by classifier, neighbours or both; see `Recogniser.choice`.

    With learned landmarks, which the trained head does not know, the classifier answers as `both`.
    """
    network, learned, memory = recogniser.trained, recogniser.learned, recogniser.memory
    head, width = trained_head(network.head), network.width
    if by == CLASSIFIER and not learned.names:
        return _with_head(recogniser, head, by)
    if by != NEIGHBOURS and learned.names and not isinstance(network.head, NeighbourHead):
        return _with_head(recogniser, network.head, BOTH)
    if memory is None or recogniser.choice is None:
        raise LandmarksError(
            f"this recogniser keeps nothing of its own images, and cannot answer by {by}",
            way_out="landmarks evaluate RUN --by BY makes what it needs, with the run's dataset there",
        )
    temperature, way = recogniser.temperature, recogniser.choice.way(by)
    if by == NEIGHBOURS:
        near, old = neighbours_of(memory, recogniser.gallery), len(memory.moments.counts)
        if near is None:
            raise LandmarksError("this recogniser remembers none of its training images", way_out="evaluate it again")
        if len(learned.names):
            near = near.plus(learned.images, old + learned.places)
        by_neighbours = NeighbourHead(
            head, width, near, classes=old + len(learned.names), factor=temperature / way.scale
        )
        return _with_head(recogniser, by_neighbours.to(recogniser.device).eval(), by)
    mixed = learned_head(head, width, memory, learned, temperature)
    by_both = mixed if learned.names else BothHead(mixed, scale=way.scale)
    return _with_head(recogniser, by_both.to(recogniser.device).eval(), BOTH)


def _with_head(recogniser: Recogniser, head: Any, by: str) -> Recogniser:
    network = recogniser.trained
    changed = Network(network.backbone_name, network.backbone, network.head_name, head, network.preprocessing).eval()
    return replace(recogniser, network=changed, by=by)


def answering_as_stored(recogniser: Recogniser, record: Mapping[str, Any], by: str | None, place: Path) -> Recogniser:
    """Return `recogniser` answering `by` the given way, or by the one stored in its run's `model.json`.

    The threshold is dropped, with a note, if it was chosen on scores of another way of answering.
    """
    recogniser = replace(recogniser, choice=read_choice(record, place))
    wanted = by or (CLASSIFIER if recogniser.choice is None else recogniser.choice.by)
    if by is None and wanted != CLASSIFIER and not recogniser.learned.names and not _remembers(recogniser, wanted):
        note(f"{place.name} answers by classifier: what it remembered of its images is gone; evaluate it again")
        return recogniser
    answering = answering_by(recogniser, wanted)
    chosen_by = (record.get("rejection") or {}).get("by", CLASSIFIER)
    rule = answering.rule
    if rule is None or recogniser.learned.names or chosen_by == answering.by or not FROM_ANSWERS & set(rule.weights):
        return answering
    note(
        f"the threshold was chosen for answers by {chosen_by}: answers by {answering.by} do not tell known from unknown"
    )
    return replace(answering, rule=None, threshold=0.0)


def _remembers(recogniser: Recogniser, by: str) -> bool:
    if recogniser.memory is None:
        return False
    return by != NEIGHBOURS or neighbours_of(recogniser.memory, recogniser.gallery) is not None


def record_of(choice: AnsweringChoice) -> dict[str, Any]:
    """Return a choice as a JSON object for `model.json`."""
    return asdict(choice)


def read_choice(record: Mapping[str, Any], place: Path) -> AnsweringChoice | None:
    """Return the choice in a run's `model.json`, None if none was made. Raises `LandmarksError` for an invalid one."""
    stored = record.get(RECORD)
    if stored is None:
        return None
    invalid = f"{place / 'model.json'} holds no valid way of answering"
    try:
        ways = tuple(
            Way(str(way["by"]), float(way["accuracy"]), float(way["log_loss"]), float(way["scale"]))
            for way in stored["ways"]
        )
        choice = AnsweringChoice(str(stored["by"]), int(stored["images"]), ways)
        sound = {way.by for way in ways} <= {CLASSIFIER, NEIGHBOURS, BOTH} and choice.by in {way.by for way in ways}
        sound &= all(math.isfinite(way.scale) and way.scale > 0 for way in ways)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LandmarksError(f"{invalid} ({type(error).__name__})") from error
    if not sound:
        raise LandmarksError(invalid)
    return choice
