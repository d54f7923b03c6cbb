"""Verification of an export: compares its answers with its run's on the same images, one by one and in a batch."""

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
from landmarks.recognition.export_scores import Learning
from landmarks.recognition.portable import ExportedNetwork, Outputs
from landmarks.recognition.recogniser import Recogniser
from landmarks.recognition.vectors import directions
from landmarks.support.console import progress
from landmarks.support.errors import DifferentAnswersError
from landmarks.training.loader import normalised

TIE = 0.005
"""Best answers count as the same if the run's probabilities of them differ by no more than this."""


@dataclass(frozen=True)
class Tolerance:
    """How much an export may differ from its run and still be written."""

    agreement: float
    """Smallest share of images with the same best answer, but for ties."""
    probability: float
    """Largest difference of any probability."""
    features: float
    """Largest relative distance of an image's features."""
    whitened: float
    """Largest relative distance of its whitened features; whitening amplifies errors of the features."""
    tie: float = TIE
    """Two answers to an image are a tie if the run's probabilities of them differ by no more than this."""


EXACT = Tolerance(agreement=1.0, probability=0.02, features=0.02, whitened=0.05, tie=0.02)
"""For single precision: the remaining difference is the rounding of grey levels in the resize.

A tie is as far apart as a single probability may be off.
"""

SMALL = Tolerance(agreement=0.99, probability=1.0, features=0.1, whitened=0.2)
"""For 8-bit integers: at most one in a hundred images may be answered differently."""


@dataclass(frozen=True)
class LearningVerification:
    """How an export's outputs for learning compare with those computed from the run's features."""

    whitened_difference: float
    """Largest relative distance of the whitened features."""
    agreement: float
    """Share of images whose best trained landmark by `trained_scores` is the same."""
    largest_difference: float
    """Of any probability computed from `trained_scores`."""


@dataclass(frozen=True)
class Verification:
    """How the answers of an export compare with its run's."""

    images: int
    agreement: float
    """Share of images with the same best answer, but for ties."""
    largest_difference: float
    """Of any probability of any image."""
    mean_difference: float
    features_difference: float
    """Largest relative distance of an image's features."""
    known_agreement: float | None
    """Share of images that are known to both, or unknown to both; None: the run has no threshold."""
    maps_difference: float | None
    """Mean difference of heat maps from 0 to 1; None: there are none."""
    data: str
    """The dataset of the images."""
    learning: LearningVerification | None = None
    """The same for what it learns with; None: it cannot learn."""


@dataclass(frozen=True)
class VerificationImages:
    """The images that run and export both answer."""

    dataset: Dataset
    images: pl.DataFrame

    def decoded(self, min_side: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the images as an export takes them, uint8 (H, W, 3)."""
        reader = ImageReader(self.dataset)
        for shard, offset, length in self.images.select("shard", "offset", "length").iter_rows():
            yield decode(reader.read(shard, offset, length), min_side=min_side)


@torch.no_grad()
def verify(
    export: ExportedNetwork,
    recogniser: Recogniser,
    images: VerificationImages,
    learning: Learning | None = None,
    *,
    tie: float = TIE,
) -> Verification:
    """Return how the answers of `export` to `images` compare with those of `recogniser`, the run it was made from.

    Answers whose probabilities differ by at most `tie` in the run count as the same. With `learning`, its outputs for
    learning are compared with those computed from the run's features. Images are answered one by one, then several of
    one size in a batch, which must not change the answers.
    """
    network, agreed, known, maps, learned = recogniser.trained, [], [], [], []
    largest = total = largest_of_features = 0.0
    with progress("verifying", total=len(images.images)) as advance:
        for pixels in images.decoded(network.preprocessing.shorter):
            outputs = export.outputs([pixels], maps=export.has_maps)
            _require_one_answer(outputs)
            square = centre_crop(pixels, network.preprocessing)
            tensor = torch.from_numpy(square[None].copy()).permute(0, 3, 1, 2)
            features = network.features(normalised(tensor, network.preprocessing))
            expected = (network.classify(features) / recogniser.temperature).softmax(1)[0].numpy()
            differences = np.abs(expected - outputs.probabilities[0])
            largest, total = max(largest, float(differences.max())), total + float(differences.mean())
            distance = float(np.linalg.norm(features.numpy() - outputs.features)) / max(float(features.norm()), 1e-12)
            largest_of_features = max(largest_of_features, distance)
            agreed.append(bool(expected.max() - expected[outputs.best[0, 0]] <= tie))
            if recogniser.rule is not None:
                score = recogniser.known_scores(recogniser.answer([square]))
                known.append(bool((score >= recogniser.threshold) == (outputs.known_score >= recogniser.threshold)))
            if learning is not None:
                learned.append(_learning_difference(learning, features.numpy(), outputs, tie))
            if outputs.maps is not None:
                maps.append(_maps_difference(recogniser, pixels, outputs.best[0], outputs.maps[0]))
            advance(1)
    of_batch = _batch_difference(export, next(images.decoded(network.preprocessing.shorter)))
    return Verification(
        images=len(agreed),
        agreement=float(np.mean(agreed)),
        largest_difference=max(largest, of_batch),
        mean_difference=total / len(agreed),
        features_difference=largest_of_features,
        known_agreement=float(np.mean(known)) if known else None,
        maps_difference=float(np.mean(maps)) if maps else None,
        data=images.dataset.folder.resolve().name,
        learning=LearningVerification(
            whitened_difference=max(one.whitened_difference for one in learned),
            agreement=float(np.mean([one.agreement for one in learned])),
            largest_difference=max(one.largest_difference for one in learned),
        )
        if learned
        else None,
    )


def _require_one_answer(outputs: Outputs) -> None:
    """Raise `DifferentAnswersError` if one image has several answers, as the batch size of the graph is fixed then."""
    answers = {len(array) for array in (outputs.probabilities, outputs.features, outputs.known_score, outputs.best)}
    if answers != {1}:
        raise DifferentAnswersError(
            "the export does not answer like its run and was not written",
            received=f"{max(answers)} answers to one image",
            expected="one: the number of images must be left open in its graph",
        )


def _learning_difference(
    learning: Learning, features: NDArray[np.float32], outputs: Outputs, tie: float
) -> LearningVerification:
    """Return the comparison for one image, whose features (1, C) in the run are given."""
    assert outputs.whitened is not None and outputs.trained_scores is not None
    whitened, scores = learning.scores(directions(features))
    expected, found = softmax(scores[0]), softmax(outputs.trained_scores[0].astype(np.float64))
    length = max(float(np.linalg.norm(whitened)), 1e-12)
    return LearningVerification(
        whitened_difference=float(np.linalg.norm(whitened - outputs.whitened)) / length,
        agreement=float(expected.max() - expected[found.argmax()] <= tie),
        largest_difference=float(np.abs(expected - found).max()),
    )


def _maps_difference(
    recogniser: Recogniser, pixels: NDArray[np.uint8], best: NDArray[np.int64], maps: NDArray[np.float32]
) -> float:
    """Return the mean difference of heat maps (A, h, w) from the run's, over the answers that both give."""
    explained = recogniser.explain(pixels, top=len(best))
    expected = {answer.label: heat for answer, heat in zip(explained.answers, explained.maps, strict=True)}
    pairs = [(expected[label], heat) for label, heat in zip(best.tolist(), maps, strict=True) if label in expected]
    return float(np.mean([np.abs(first - second).mean() for first, second in pairs])) if pairs else 1.0


def _batch_difference(export: ExportedNetwork, pixels: NDArray[np.uint8]) -> float:
    """Return the largest difference between a batch of three images and the same images one by one."""
    images = [pixels, pixels[:, ::-1].copy(), pixels[::-1].copy()]
    in_batch = export.outputs(images).probabilities
    one_by_one = np.concatenate([export.outputs([image]).probabilities for image in images])
    return float(np.abs(in_batch - one_by_one).max())


def require_within(tolerance: Tolerance, found: Verification) -> None:
    """Raise `DifferentAnswersError`, with the figures, unless `found` is within the `tolerance`."""
    fits = found.agreement >= tolerance.agreement and found.largest_difference <= tolerance.probability
    if fits and found.features_difference <= tolerance.features:
        _require_learning_within(tolerance, found)
        return
    raise DifferentAnswersError(
        "the export does not answer like its run and was not written",
        received=f"{100 * found.agreement:.1f} % agreement on {found.images} images, largest difference "
        f"{found.largest_difference:.4f} of a probability and {found.features_difference:.4f} of the features",
        expected=f"at least {100 * tolerance.agreement:g} %, at most {tolerance.probability:g} and "
        f"{tolerance.features:g}",
    )


def _require_learning_within(tolerance: Tolerance, verification: Verification) -> None:
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
