"""Three ways of answering: by the trained classifier, by the nearest remembered images, or by both.

`neighbours` answers by the density of remembered training images around an image. `both` is the mean of the
classifier's probabilities and those of the closed form (`closed_form.py`); each is right on images that the other gets
wrong. The way with the most correct answers to validation images is stored in the run's `model.json`, with the figures
of all three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import Tensor

from landmarks.models.heads import Head
from landmarks.models.network import Network
from landmarks.recognition.answers import FROM_ANSWERS
from landmarks.recognition.closed_form import (
    MAX_IMAGES,
    ClosedForm,
    LogDensities,
    Memory,
    Neighbourhood,
    neighbourhood_of,
)
from landmarks.recognition.gallery import Gallery
from landmarks.recognition.learned import Learned
from landmarks.recognition.recogniser import BOTH, CLASSIFIER, NEIGHBOURS, Recogniser
from landmarks.recognition.vectors import Directions
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError
from landmarks.training.discriminant import fit_scale, mean_log_probabilities, new_landmark_offset

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
    """The way of answering that validation chose (`best_of`), with the figures of all ways."""

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
        own = self.way(self.by).accuracy
        rest = [way for way in self.ways if way.by != self.by]
        others = ", ".join(f"by {way.by} {100 * way.accuracy:.1f} %" for way in rest)
        text = f"answers by {self.by}: right on {100 * own:.1f} % of {self.images} validation images ({others})"
        if any(way.by == NEIGHBOURS and way.accuracy > own for way in rest):
            text += "; neighbours must be better by more than a standard error"
        return text


def choice_of(memory: Memory, near: Neighbourhood | None) -> AnsweringChoice | None:
    """Return the way that answers the validation images of `memory` best: see `best_of`.

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
    return AnsweringChoice(best_of(ways, len(truth)).by, len(truth), ways)


def best_of(ways: Sequence[Way], images: int) -> Way:
    """Return the most accurate way on so many validation `images`; ties go to the classifier, then to the smaller loss.

    Neighbours must be better than both others by more than a standard error of the difference: validation images often
    come from the same albums as the remembered ones, as new images do not.
    """
    best, *others = sorted(ways, key=lambda way: (way.accuracy, way.by == CLASSIFIER, -way.log_loss), reverse=True)
    if best.by != NEIGHBOURS or not others:
        return best
    variance = sum(way.accuracy * (1 - way.accuracy) for way in (best, others[0])) / images
    return best if best.accuracy - others[0].accuracy > math.sqrt(variance) else others[0]


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
        sound &= all(math.isfinite(way.scale) and way.scale > 0 and 0 <= way.accuracy <= 1 for way in ways)
        sound &= choice.images > 0
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LandmarksError(f"{invalid} ({type(error).__name__})") from error
    if not sound:
        raise LandmarksError(invalid)
    return choice


# ── The heads that answer so ────────────────────────────────────────────────────────────────────────────────────────
# They return logits whose sum of exponentials over the old landmarks equals that of the trained head, so that
# temperature, energy, heat maps and exports work unchanged.


class LearnedHead(Head):
    """A trained `head` mixed with a closed form, and the logits of the landmarks that only the closed form knows.

    Let p_k be the trained head's probabilities of the old (trained) landmarks, after temperature, and q_k those from
    the scores of the closed form; let o_j be the odds, from the scores, of new (learned) landmark j against all old
    ones together. Then, up to a common divisor, P(old k) is the mean of p_k and q_k, and P(new j) is o_j.
    """

    weights: Tensor
    bias: Tensor

    def __init__(self, head: Head, width: int, closed: ClosedForm, *, temperature: float, offset: float) -> None:
        """Take features of length `width`; `offset` is added to the log odds of the new landmarks."""
        super().__init__()
        discriminant, self.density_weight = closed.discriminant, closed.weights.density
        self.head, self.old, self.classes = head, head.classes, discriminant.weights.shape[1]
        self.settings = {"learned": self.classes - self.old}
        self.temperature, self.offset = temperature, offset
        self.directions = Directions(width)
        near = closed.neighbourhood
        self.densities = None if near is None else LogDensities(near, self.classes)
        self.register_buffer("weights", torch.from_numpy(discriminant.weights * closed.weights.discriminant).float())
        self.register_buffer("bias", torch.from_numpy(discriminant.bias * closed.weights.discriminant).float())

    def scores(self, features: Tensor) -> Tensor:
        """Return the scores (N, K + L) of pooled features (N, C)."""
        directions = self.directions(features.float())
        scores: Tensor = directions @ self.weights + self.bias
        return scores if self.densities is None else scores + self.density_weight * self.densities(directions)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K + L) of pooled features (N, C): K old landmarks, then L new ones."""
        scaled = self.head(features).float() / self.temperature
        scores = self.scores(features)
        old, new = scores[:, : self.old], scores[:, self.old :]
        mean = torch.logaddexp(torch.log_softmax(scaled, 1), torch.log_softmax(old, 1)) - math.log(2)
        odds = new - torch.logsumexp(old, 1, keepdim=True) + self.offset
        logits: Tensor = torch.logsumexp(scaled, 1, keepdim=True) + torch.cat([mean, odds], 1)
        return self.temperature * logits


class NeighbourHead(Head):
    """Answers by the density of each landmark's remembered images around an image; `head` is kept, but not used."""

    def __init__(self, head: Head, width: int, near: Neighbourhood, *, classes: int, factor: float) -> None:
        """Take features of length `width`; logits are `factor` times the log densities of `classes` landmarks."""
        super().__init__()
        self.head, self.classes, self.settings, self.factor = head, classes, {}, factor
        self.directions, self.densities = Directions(width), LogDensities(near, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K) of pooled features (N, C)."""
        logits: Tensor = self.factor * self.densities(self.directions(features.float()))
        return logits


class BothHead(Head):
    """Answers by the mean probabilities of the trained head and the closed form; heat maps are the trained head's."""

    def __init__(self, mixed: LearnedHead, *, scale: float) -> None:
        """Take a head without new landmarks; its log probabilities are divided by `scale`."""
        super().__init__()
        self.mixed, self.classes, self.settings, self.scale = mixed, mixed.classes, {}, scale

    @property
    def head(self) -> Head:
        """The trained head."""
        return self.mixed.head

    @property
    def explained_head(self) -> Head:
        """The trained head, from whose gradient heat maps are computed."""
        return self.mixed.head

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K) of pooled features (N, C)."""
        # The sum of exponentials stays that of the trained head, as in `LearnedHead`, so that energy keeps its meaning.
        logits = self.mixed(features) / self.mixed.temperature
        total = torch.logsumexp(logits, 1, keepdim=True)
        shares = torch.log_softmax((logits - total) / self.scale, 1)
        scaled: Tensor = self.mixed.temperature * (total + shares)
        return scaled


def learned_head(head: Head, width: int, memory: Memory, learned: Learned, temperature: float) -> LearnedHead:
    """Return a head that knows the `learned` landmarks in addition to those of the trained `head`."""
    closed = memory.with_learned(learned)
    offset = new_landmark_offset(closed.scores(memory.validation.images), memory.validation)
    return LearnedHead(head, width, closed, temperature=temperature, offset=offset)


def trained_head(head: Head) -> Head:
    """Return the head that training made, without the heads around it."""
    while isinstance(head, NeighbourHead | BothHead | LearnedHead):
        head = head.head
    return head
