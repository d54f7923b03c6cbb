"""Whether an export answers as its run does: both are asked about the same images, one by one and together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from landmarks.dataset.images import decode
from landmarks.dataset.manifest import Dataset
from landmarks.dataset.shards import ImageReader
from landmarks.models.preprocessing import centre_crop
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


EXACT = Tolerance(agreement=1.0, probability=0.02, features=0.02)
"""Single precision: what is left is the rounding of grey levels in the resize."""

SMALL = Tolerance(agreement=0.99, probability=1.0, features=0.1)
"""Whole numbers of eight bits: one in a hundred images may be answered otherwise, no more."""

TIE = 0.005
"""Two best answers whose probabilities the run holds for equal, within so much, agree whichever comes first."""


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


@dataclass(frozen=True)
class Shown:
    """Images that run and export are asked about."""

    dataset: Dataset
    images: pl.DataFrame

    def decoded(self, min_side: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the images as they are handed to an export, uint8 (H, W, 3)."""
        reader = ImageReader(self.dataset)
        for shard, offset, length in self.images.select("shard", "offset", "length").iter_rows():
            yield decode(reader.read(shard, offset, length), min_side=min_side)


@torch.no_grad()
def verify(export: ExportedNetwork, recogniser: Recogniser, shown: Shown) -> Verification:
    """Return how `export` answers the images beside `recogniser`, the run that it was made of.

    Images are asked one by one, and then several of one size together, which must change nothing.
    """
    network, agreed, known, maps = recogniser.trained, [], [], []
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
        return
    raise DifferentAnswersError(
        "the export does not answer like its run and was not written",
        received=f"{100 * found.agreement:.1f} % agreement on {found.images} images, largest difference "
        f"{found.largest_difference:.4f} of a probability and {found.features_difference:.4f} of the features",
        expected=f"at least {100 * tolerance.agreement:g} %, at most {tolerance.probability:g} and "
        f"{tolerance.features:g}",
    )
