"""What lets an export learn landmarks: a layer of its graph, and numbers in its record.

The layer whitens directions along the axes of `closed_form.py` and scores the run's landmarks there, by their means
and by the density of remembered images. The record contains images that learned landmarks compete for: validation
images, and images of none of the landmarks. Everything is computed from the gallery and takes a few megabytes at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp
from torch import Tensor, nn
from torch.nn import functional

from landmarks.recognition.closed_form import (
    CONCENTRATION,
    DENSITY_SHARES,
    LEAST,
    Neighbourhood,
    Weights,
    neighbourhood_of,
)
from landmarks.recognition.directions import Directions, members_of
from landmarks.recognition.gallery import Gallery, ensure_gallery, sample
from landmarks.recognition.making_ready import BATCH_SIZE, validation_of
from landmarks.recognition.portable_learning import packed, packed_floats
from landmarks.recognition.recogniser import Recogniser
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError
from landmarks.support.files import digest_of, held
from landmarks.training.discriminant import MAX_LOST_SHARE, MAX_OFFSET, Validation, class_moments, fit_scale, within_of
from landmarks.training.own_data import find_own_dataset, images_seen
from landmarks.training.run import Run

KEPT = 512
"""Most validation images, and most images of other things, in the record, at one byte per number."""


@dataclass(frozen=True, eq=False)
class Learning:
    """What an export contains for learning; K landmarks, D axes."""

    neighbourhood: Neighbourhood
    centres: NDArray[np.float32]  # (K, D)
    bias: NDArray[np.float32]  # (K,)
    weights: Weights
    record: dict[str, Any]

    def scores(self, images: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return `whitened` (N, D) and `trained_scores` (N, K) of directions (N, W), as the graph computes them."""
        near = self.neighbourhood
        whitened = images.astype(np.float64) @ near.axes - near.origin
        scores = self.weights.discriminant * (whitened @ self.centres.T + self.bias)
        if self.weights.density:
            scores = scores + self.weights.density * near.log_densities(images, len(self.centres))
        return whitened, scores


def learning_of(run: Run, recogniser: Recogniser) -> Learning:
    """Return what an export of `run` needs for learning. Raises `LandmarksError` if the run's dataset is gone."""
    own = find_own_dataset(run)
    gallery = recogniser.gallery
    if gallery is None:
        with held(run.folder):
            gallery = ensure_gallery(run, recogniser.trained, own, BATCH_SIZE)
    seen = images_seen(run, own, "val")
    seen = seen.filter(pl.Series(sample(seen["run_label"].to_numpy(), KEPT)))
    if gallery is None or not len(seen):
        raise LandmarksError(
            f"an export of {run.name} cannot learn landmarks: it remembers no images of its own",
            way_out="export it without --learning",
        )
    return learning_from(gallery, validation_of(run, recogniser, seen, gallery.images.shape[1]), len(recogniser.names))


def learning_from(gallery: Gallery, validation: Validation, classes: int) -> Learning:
    """Return what an export needs for learning, from its run's gallery and validation images."""
    moments = class_moments(gallery.images, gallery.labels, classes)
    near = neighbourhood_of(moments, gallery.images, gallery.labels)
    if near is None:
        raise LandmarksError(f"an export of {classes} landmarks cannot learn more", way_out="export without --learning")
    axes = near.axes.astype(np.float64)
    means = moments.sums / np.maximum(moments.counts, 1)[:, None]
    centres, excess = means @ axes - near.origin, float(np.trace(axes.T @ within_of(moments) @ axes))
    bias = excess / np.maximum(moments.counts, 1) / 2 - np.square(centres).sum(axis=1) / 2
    whitened = validation.images.astype(np.float64) @ axes - near.origin
    discriminant = whitened @ centres.T + bias
    densities = near.log_densities(validation.images, classes)
    weights = _weights(discriminant, densities, validation.labels)
    scores = weights.discriminant * discriminant + weights.density * densities
    logs = validation.logs.astype(np.float64)
    mean = np.logaddexp(log_softmax(logs, axis=1), log_softmax(scores, axis=1)) - np.log(2)
    correct = mean.argmax(axis=1) == validation.labels
    correct_by_head = int((logs.argmax(axis=1) == validation.labels).sum())
    unknown = np.zeros((0, axes.shape[1]))
    if gallery.unknown is not None:
        images = gallery.unknown.images[sample(np.zeros(len(gallery.unknown.images), dtype=np.int64), KEPT)]
        unknown = images.astype(np.float64) @ axes - near.origin
    record = {
        "digest": digest_of(near.axes.tobytes().hex(), near.origin.tobytes().hex()),
        "width": axes.shape[1],
        "discriminant": weights.discriminant,
        "density": weights.density,
        "excess": excess,
        "concentration": CONCENTRATION,
        "most_offset": MAX_OFFSET,
        "spare": max(0, int(correct.sum()) - correct_by_head + int(MAX_LOST_SHARE * len(correct))),
        "validation": packed(whitened[correct]),
        "evidence": packed_floats(logsumexp(scores[correct], axis=1)),
        "best": packed_floats(mean[correct].max(axis=1)),
        "others": packed(unknown),
    }
    return Learning(near, centres.astype(np.float32), bias.astype(np.float32), weights, record)


def _weights(
    discriminant: NDArray[np.floating], densities: NDArray[np.floating], labels: NDArray[np.integer]
) -> Weights:
    """Return the weights of both scores, chosen as in `closed_form.memory_of`."""
    scale, width = fit_scale(discriminant, labels).scale, fit_scale(densities, labels).scale
    logs = log_softmax(discriminant / scale, axis=1)
    fits = {share: fit_scale(logs + share * densities / width, labels) for share in DENSITY_SHARES}
    share = min(fits, key=lambda candidate: fits[candidate].loss)
    total_scale = fits[share].scale
    return Weights(1 / scale / total_scale, share / width / total_scale)


class LearningScores(nn.Module):
    """The layer that computes `whitened` (N, D) and the `trained_scores` (N, K) of features (N, W)."""

    axes: Tensor
    origin: Tensor
    centres: Tensor
    bias: Tensor
    images: Tensor
    scales: Tensor
    members: Tensor
    counts: Tensor

    def __init__(self, learning: Learning, width: int) -> None:
        super().__init__()
        near, classes = learning.neighbourhood, len(learning.centres)
        self.directions, self.weights = Directions(width), learning.weights
        self.register_buffer("axes", torch.from_numpy(near.axes))
        self.register_buffer("origin", torch.from_numpy(near.origin))
        self.register_buffer("centres", torch.from_numpy(learning.centres.T.copy()))
        self.register_buffer("bias", torch.from_numpy(learning.bias))
        scales = np.maximum(np.abs(near.images).max(axis=1), 1e-6).astype(np.float32) / 127
        integers = np.round(near.images.astype(np.float32) / scales[:, None]).astype(np.int8)
        self.register_buffer("images", torch.from_numpy(integers.T.copy()))
        self.register_buffer("scales", torch.from_numpy(scales))
        self.register_buffer("members", torch.from_numpy(members_of(near.labels, classes)))
        counts = np.maximum(np.bincount(near.labels, minlength=classes), 1)
        self.register_buffer("counts", torch.from_numpy(counts.astype(np.float32)))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, given pooled features."""
        whitened = self.directions(features.float()) @ self.axes - self.origin
        scores = self.weights.discriminant * (whitened @ self.centres + self.bias)
        if self.weights.density:
            along = functional.normalize(whitened, dim=1, eps=1e-12)
            cosines = (along @ self.images.float()) * self.scales
            kernel = functional.pad(torch.exp(CONCENTRATION * (cosines - 1)), (0, 1))
            sums = kernel[:, self.members.flatten()].reshape(-1, *self.members.shape).sum(2)
            scores = scores + self.weights.density * (sums / self.counts).clamp(min=LEAST).log()
        return whitened, scores


def note_learning(learning: Learning) -> None:
    """Print a note on what an export contains for learning."""
    count = len(learning.neighbourhood.labels)
    note(f"it can learn landmarks: {count} remembered images along {learning.record['width']} axes go with it")
