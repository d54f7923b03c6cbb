"""Whether an export answers as its run does: both are asked about the same images, one by one and together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from landmarks.dataset.images import decode
from landmarks.dataset.manifest import Dataset
from landmarks.dataset.shards import ImageReader
from landmarks.models.preprocessing import centre_crop
from landmarks.recognition.directions import directions
from landmarks.recognition.export_learning import Learning
from landmarks.recognition.portable import ExportedNetwork, Outputs
from landmarks.recognition.recogniser import Recogniser
from landmarks.support.console import progress
from landmarks.support.errors import DifferentAnswersError
from landmarks.training.loader import normalised


@dataclass(frozen=True)
class Tolerance:
    """What an export may differ by from its run and still be written."""

    agreement: float
    """Least share of images with the same best answer."""
    probability: float
    """Largest difference of any probability."""
    features: float
    """Largest distance of an image's features, of their length."""
    whitened: float
    """Largest distance of what landmarks are learned from, of its length: whitening enlarges what features are off."""


EXACT = Tolerance(agreement=1.0, probability=0.02, features=0.02, whitened=0.05)
"""Single precision: what is left is the rounding of grey levels in the resize."""

SMALL = Tolerance(agreement=0.99, probability=1.0, features=0.1, whitened=0.2)
"""Whole numbers of eight bits: one in a hundred images may be answered otherwise, no more."""

TIE = 0.005
"""Two best answers whose probabilities the run holds for equal, within so much, agree whichever comes first."""


@dataclass(frozen=True)
class LearningVerification:
    """How what an export learns with agreed with what the run's images and features give."""

    whitened_difference: float
    """Largest distance of what landmarks are learned from, of its length."""
    agreement: float
    """Share of images whose best trained landmark by `trained_scores` is the same."""
    largest_difference: float
    """Of any probability by `trained_scores`."""


@dataclass(frozen=True)
class Verification:
    """How an export answered the images that its run answered beside it."""

    images: int
    agreement: float
    """Share of images with the same best answer."""
    largest_difference: float
    """Of any probability of any image."""
    mean_difference: float
    features_difference: float
    """Largest distance of an image's features, of their length."""
    known_agreement: float | None
    """Share of images that both call known, or both unknown; None: the run has no threshold."""
    maps_difference: float | None
    """Mean difference of heat maps from 0 to 1; None: there are none."""
    data: str
    """The dataset of the images."""
    learning: LearningVerification | None = None
    """What it is taught with; None: it cannot learn."""


@dataclass(frozen=True)
class VerificationImages:
    """Images that run and export are asked about."""

    dataset: Dataset
    images: pl.DataFrame

    def decoded(self, min_side: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the images as they are handed to an export, uint8 (H, W, 3)."""
        reader = ImageReader(self.dataset)
        for shard, offset, length in self.images.select("shard", "offset", "length").iter_rows():
            yield decode(reader.read(shard, offset, length), min_side=min_side)


@torch.no_grad()
def verify(
    export: ExportedNetwork, recogniser: Recogniser, shown: VerificationImages, learning: Learning | None = None
) -> Verification:
    """Return how `export` answers the images beside `recogniser`, the run that it was made of.

    What it learns with is compared with what `learning`, of the run, gives of the run's features.

    Images are asked one by one, and then several of one size together, which must change nothing.
    """
    network, agreed, known, maps, learned = recogniser.trained, [], [], [], []
    largest = total = features_apart = 0.0
    with progress("verifying", total=len(shown.images)) as advance:
        for pixels in shown.decoded(network.preprocessing.shorter):
            said = export.outputs([pixels], maps=export.has_maps)
            _require_one_answer(said)
            seen = centre_crop(pixels, network.preprocessing)
            tensor = torch.from_numpy(seen[None].copy()).permute(0, 3, 1, 2)
            features = network.features(normalised(tensor, network.preprocessing))
            wanted = (network.classify(features) / recogniser.temperature).softmax(1)[0].numpy()
            apart = np.abs(wanted - said.probabilities[0])
            largest, total = max(largest, float(apart.max())), total + float(apart.mean())
            length = max(float(features.norm()), 1e-12)
            features_apart = max(features_apart, float(np.linalg.norm(features.numpy() - said.features)) / length)
            agreed.append(bool(wanted.max() - wanted[said.best[0, 0]] <= TIE))
            if recogniser.rule is not None:
                score = recogniser.known_scores(recogniser.answer([seen]))
                known.append(bool((score >= recogniser.threshold) == (said.known_score >= recogniser.threshold)))
            if learning is not None:
                learned.append(_learning_apart(learning, features.numpy(), said))
            if said.maps is not None:
                maps.append(_maps_apart(recogniser, pixels, said.best[0], said.maps[0]))
            advance(1)
    together = _batch_apart(export, next(shown.decoded(network.preprocessing.shorter)))
    return Verification(
        images=len(agreed),
        agreement=float(np.mean(agreed)),
        largest_difference=max(largest, together),
        mean_difference=total / len(agreed),
        features_difference=features_apart,
        known_agreement=float(np.mean(known)) if known else None,
        maps_difference=float(np.mean(maps)) if maps else None,
        data=shown.dataset.folder.resolve().name,
        learning=LearningVerification(
            whitened_difference=max(one.whitened_difference for one in learned),
            agreement=float(np.mean([one.agreement for one in learned])),
            largest_difference=max(one.largest_difference for one in learned),
        )
        if learned
        else None,
    )


def _require_one_answer(said: Outputs) -> None:
    """Raise where an export answers one image with several answers: the batch of its graph is frozen."""
    answers = {len(one) for one in (said.probabilities, said.features, said.known_score, said.best)}
    if answers != {1}:
        raise DifferentAnswersError(
            "the export does not answer like its run and was not written",
            received=f"{max(answers)} answers to one image",
            expected="one: the number of images must be left open in its graph",
        )


def _learning_apart(learning: Learning, features: NDArray[np.float32], said: Outputs) -> LearningVerification:
    """Return how far apart both are for the features (1, C) of one image."""
    assert said.whitened is not None and said.trained_scores is not None
    whitened, scores = learning.scores(directions(features))
    wanted, found = softmax(scores[0]), softmax(said.trained_scores[0].astype(np.float64))
    length = max(float(np.linalg.norm(whitened)), 1e-12)
    return LearningVerification(
        whitened_difference=float(np.linalg.norm(whitened - said.whitened)) / length,
        agreement=float(wanted.max() - wanted[found.argmax()] <= TIE),
        largest_difference=float(np.abs(wanted - found).max()),
    )


def _maps_apart(
    recogniser: Recogniser, pixels: NDArray[np.uint8], best: NDArray[np.int64], maps: NDArray[np.float32]
) -> float:
    """Return the mean difference of heat maps (A, h, w) from the run's, for answers that both give."""
    explained = recogniser.explain(pixels, top=len(best))
    wanted = {answer.label: map_of_one for answer, map_of_one in zip(explained.answers, explained.maps, strict=True)}
    pairs = [(wanted[label], one) for label, one in zip(best.tolist(), maps, strict=True) if label in wanted]
    return float(np.mean([np.abs(first - second).mean() for first, second in pairs])) if pairs else 1.0


def _batch_apart(export: ExportedNetwork, pixels: NDArray[np.uint8]) -> float:
    """Return the largest difference of a batch of three images from the same images one by one."""
    several = [pixels, pixels[:, ::-1].copy(), pixels[::-1].copy()]
    together = export.outputs(several).probabilities
    alone = np.concatenate([export.outputs([one]).probabilities for one in several])
    return float(np.abs(together - alone).max())


def refuse_beyond(tolerance: Tolerance, found: Verification) -> None:
    """Raise `DifferentAnswersError`, with both figures, where `found` is beyond the `tolerance`."""
    fits = found.agreement >= tolerance.agreement and found.largest_difference <= tolerance.probability
    if fits and found.features_difference <= tolerance.features:
        _refuse_to_teach_beyond(tolerance, found)
        return
    raise DifferentAnswersError(
        "the export does not answer like its run and was not written",
        received=f"{100 * found.agreement:.1f} % agreement on {found.images} images, largest difference "
        f"{found.largest_difference:.4f} of a probability and {found.features_difference:.4f} of the features",
        expected=f"at least {100 * tolerance.agreement:g} %, at most {tolerance.probability:g} and "
        f"{tolerance.features:g}",
    )


def _refuse_to_teach_beyond(tolerance: Tolerance, verification: Verification) -> None:
    found = verification.learning
    if found is None:
        return
    fits = found.agreement >= tolerance.agreement and found.largest_difference <= tolerance.probability
    if fits and found.whitened_difference <= tolerance.whitened:
        return
    raise DifferentAnswersError(
        "the export does not learn like its run and was not written",
        received=f"{100 * found.agreement:.1f} % agreement by what landmarks are learned with, on "
        f"{verification.images} images, largest difference {found.largest_difference:.4f} of a probability and "
        f"{found.whitened_difference:.4f} of the whitened features",
        expected=f"at least {100 * tolerance.agreement:g} %, at most {tolerance.probability:g} and "
        f"{tolerance.whitened:g}",
    )
