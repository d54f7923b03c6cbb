"""Scores in closed form, which let landmarks be added, and the files in which a run remembers what they need.

The scores are the weighted sum of two closed forms. The linear discriminant (`training/discriminant.py`) represents a
landmark by its mean; an image that shows it from a rare side lies far from that mean, but near one of the images. So
the other one is the density of remembered images around the image.

Learning changes nothing that training wrote. A run keeps two more files. `memory.safetensors`, made once, holds the
moments of its training images, the directions of its validation images, and some of its training images projected onto
a few axes. `learned.safetensors` holds the directions of the images of each learned landmark. The learned head is
computed exactly from these two, so a landmark is forgotten by deleting its images; and as the files are written
atomically, an interruption leaves the run as it was.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load
from scipy.special import log_softmax
from torch import Tensor, nn
from torch.nn import functional

from landmarks.recognition.gallery import Gallery, require_labels, require_sound, sample, save_arrays
from landmarks.recognition.learned import Learned
from landmarks.recognition.vectors import members_of
from landmarks.support.errors import LandmarksError
from landmarks.support.files import digest_of
from landmarks.training.discriminant import (
    ClassMoments,
    Discriminant,
    Validation,
    discriminant_of,
    fit_scale,
    fitted_scale,
    shrunk_within,
)

DENSITY_SHARES = (0.0, 0.5, 1.0, 2.0)
"""Candidates for the weight of the log densities relative to the discriminant's; validation chooses one."""

MAX_NUMBERS = 1 << 21
"""Most scores of validation images that the weights are chosen on."""

WIDTH = 256
"""Number of axes; on the mirror as good as all 1,280 of a backbone."""

CONCENTRATION = 24.0
"""Concentration of the kernel: a cosine smaller by 1/24 reduces a neighbour's weight to 1/e."""

MAX_IMAGES = 8192
"""Most remembered training images: 4 MB. With more landmarks than this there are no densities."""

MAX_EACH = 512
"""Most remembered images of one landmark."""

LEAST = 1e-30
"""The density of a landmark without images."""

BLOCK = 1024
"""Images compared at a time."""


@dataclass(frozen=True)
class Weights:
    """Factors of the discriminant's scores and of the log densities."""

    discriminant: float
    density: float


@dataclass(frozen=True)
class ClosedForm:
    """Scores of K trained and L learned landmarks."""

    discriminant: Discriminant
    neighbourhood: Neighbourhood | None
    weights: Weights

    def scores(self, directions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the scores (N, K + L) of `directions` (N, C); larger is likelier."""
        scores = self.weights.discriminant * self.discriminant.scores(directions)
        if self.neighbourhood is None:
            return scores
        return scores + self.weights.density * self.neighbourhood.log_densities(directions, scores.shape[1])


@dataclass(frozen=True)
class Memory:
    """What a run keeps of its own images so that it can learn landmarks."""

    moments: ClassMoments
    validation: Validation
    neighbourhood: Neighbourhood | None
    weights: Weights

    def with_learned(self, learned: Learned) -> ClosedForm:
        """Return the closed form of the run's landmarks and the `learned` ones."""
        old, labels = len(self.moments.counts), len(self.moments.counts) + learned.places
        moments = self.moments.plus(learned.images, labels, old + len(learned.names))
        neighbourhood = self.neighbourhood
        if neighbourhood is not None and len(labels):
            neighbourhood = neighbourhood.plus(learned.images, labels)
        return ClosedForm(discriminant_of(moments), neighbourhood, self.weights)


def memory_of(
    moments: ClassMoments, validation: Validation, images: NDArray[np.floating], labels: NDArray[np.integer]
) -> Memory:
    """Return the memory of training images with directions `images` (M, C), `labels` (M,) and `moments`.

    Discriminant and densities are each scaled for the least log loss on the validation images; then the share of the
    densities and the scale of the sum are chosen, again for the least log loss.
    """
    neighbourhood = neighbourhood_of(moments, images, labels)
    classes = len(moments.counts)
    rows = slice(None, None, max(1, len(validation.labels) * classes // MAX_NUMBERS))
    directions, truth = validation.images[rows], validation.labels[rows]
    discriminant = discriminant_of(moments).scores(directions)
    if neighbourhood is None:
        return Memory(moments, validation, None, Weights(1 / fitted_scale(discriminant, truth), 0.0))
    weights = best_weights(discriminant, neighbourhood.log_densities(directions, classes), truth)
    return Memory(moments, validation, neighbourhood if weights.density else None, weights)


def best_weights(
    discriminant: NDArray[np.floating], densities: NDArray[np.floating], labels: NDArray[np.integer]
) -> Weights:
    """Return the weights of both scores `(V, K)` of the images with `labels` `(V,)`, as `memory_of` chooses them."""
    scale, width = fitted_scale(discriminant, labels), fitted_scale(densities, labels)
    logs = log_softmax(discriminant / scale, axis=1)
    fits = {share: fit_scale(logs + share * densities / width, labels) for share in DENSITY_SHARES}
    share = min(fits, key=lambda candidate: fits[candidate].loss)
    total_scale = fits[share].scale
    return Weights(1 / scale / total_scale, share / width / total_scale)


# ── The density of remembered images ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Neighbourhood:
    """M remembered images, sorted by label, and the axes along which they are compared.

    Directions are whitened by the differences within landmarks (`shrunk_within`), projected onto the `WIDTH` axes along
    which the training images then differ most, and normalised to length 1. Landmark k with n_k remembered images z_i
    has the density Σ exp(CONCENTRATION · (zᵀz_i - 1)) / n_k around an image z: the von Mises-Fisher kernel (Hall,
    Watson & Cabrera, Biometrika 1987). A new landmark adds its images; the axes and other images stay.
    """

    axes: NDArray[np.float32]  # (C, D)
    origin: NDArray[np.float32]  # (D,), the projected mean of the means of all landmarks
    images: NDArray[np.float16]  # (M, D), of length 1
    labels: NDArray[np.int64]  # (M,), ascending

    def projected(self, directions: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return directions (N, C) projected onto the axes and normalised to length 1, (N, D)."""
        along = directions.astype(np.float32) @ self.axes - self.origin
        return np.asarray(along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12), dtype=np.float32)

    def plus(self, directions: NDArray[np.floating], labels: NDArray[np.integer]) -> Neighbourhood:
        """Return this with the images of `directions` (m, C) appended; their `labels` (m,) follow all present ones."""
        order = np.argsort(labels, kind="stable")
        images = np.concatenate([self.images, self.projected(directions[order]).astype(np.float16)])
        return replace(self, images=images, labels=np.concatenate([self.labels, labels[order]]))

    def log_densities(self, directions: NDArray[np.floating], classes: int) -> NDArray[np.float64]:
        """Return the log densities (N, classes) of landmarks around `directions` (N, C)."""
        densities = np.zeros((len(directions), classes))
        present, starts, counts = np.unique(self.labels, return_index=True, return_counts=True)
        for start in range(0, len(directions) if len(present) else 0, BLOCK):
            rows = slice(start, start + BLOCK)
            cosines = self.projected(directions[rows]) @ self.images.astype(np.float32).T
            kernel = np.exp(CONCENTRATION * (cosines.astype(np.float64) - 1))
            densities[rows, present] = np.add.reduceat(kernel, starts, axis=1) / counts
        return np.log(np.maximum(densities, LEAST))


def neighbourhood_of(
    moments: ClassMoments, images: NDArray[np.floating], labels: NDArray[np.integer]
) -> Neighbourhood | None:
    """Return the neighbourhood of training images with directions `images` (M, C), `labels` (M,) and their `moments`.

    At most `MAX_IMAGES` are remembered, equally many of each landmark. None if there are more landmarks than that.
    """
    kept = np.flatnonzero(sample(labels, MAX_IMAGES))
    kept = kept[np.argsort(labels[kept], kind="stable")]
    kept = kept[np.arange(len(kept)) - np.searchsorted(labels[kept], labels[kept]) < MAX_EACH]
    if not len(kept):
        return None
    present = moments.counts > 0
    origin = (moments.sums[present] / moments.counts[present, None]).mean(axis=0)
    mean, total = moments.sums.sum(axis=0) / moments.counts.sum(), moments.counts.sum()
    factor = np.linalg.cholesky(shrunk_within(moments))
    centred = moments.square / total - np.outer(mean, mean)
    whitened = scipy.linalg.solve_triangular(factor, centred, lower=True, check_finite=False)
    whitened = scipy.linalg.solve_triangular(factor, whitened.T, lower=True, check_finite=False)
    width = len(whitened)
    largest = (max(0, width - WIDTH), width - 1)
    main = scipy.linalg.eigh((whitened + whitened.T) / 2, subset_by_index=largest, check_finite=False)[1]
    axes = scipy.linalg.solve_triangular(factor, main, lower=True, trans="T", check_finite=False)
    nothing = np.zeros((0, axes.shape[1]), dtype=np.float16)
    empty = Neighbourhood(
        axes.astype(np.float32), (origin @ axes).astype(np.float32), nothing, np.zeros(0, dtype=np.int64)
    )
    return empty.plus(images[kept], labels[kept])


class LogDensities(nn.Module):
    """`Neighbourhood.log_densities` as a layer, for autograd and for exports with any number of images."""

    axes: Tensor
    origin: Tensor
    images: Tensor
    members: Tensor
    counts: Tensor

    def __init__(self, neighbourhood: Neighbourhood, classes: int) -> None:
        super().__init__()
        self.register_buffer("axes", torch.from_numpy(neighbourhood.axes))
        self.register_buffer("origin", torch.from_numpy(neighbourhood.origin))
        self.register_buffer("images", torch.from_numpy(neighbourhood.images.astype(np.float32).T.copy()))
        self.register_buffer("members", torch.from_numpy(members_of(neighbourhood.labels, classes)))
        counts = np.maximum(np.bincount(neighbourhood.labels, minlength=classes), 1)
        self.register_buffer("counts", torch.from_numpy(counts.astype(np.float32)))

    def forward(self, directions: Tensor) -> Tensor:
        """Return the log densities (N, K) of landmarks around directions (N, C)."""
        along = functional.normalize(directions @ self.axes - self.origin, dim=1, eps=1e-12)
        kernel = functional.pad(torch.exp(CONCENTRATION * (along @ self.images - 1)), (0, 1))
        sums = kernel[:, self.members.flatten()].reshape(-1, *self.members.shape).sum(2)
        log_densities: Tensor = (sums / self.counts).clamp(min=LEAST).log()
        return log_densities


# ── A gallery with learned landmarks ────────────────────────────────────────────────────────────────────────────────


MEMORY, LEARNED = "memory.safetensors", "learned.safetensors"

MEMORY_ARRAYS = {
    "square": (np.float64, "CC"),
    "sums": (np.float64, "KC"),
    "counts": (np.int64, "K"),
    "images": (np.float16, "VC"),
    "labels": (np.int64, "V"),
    "logs": (np.float16, "VK"),
    "weights": (np.float64, "W"),
}
"""Type and axes of what a memory always holds: its moments, its validation images, and the weights of its scores."""

DENSITY_ARRAYS = {
    "axes": (np.float32, "CD"),
    "origin": (np.float32, "D"),
    "near_images": (np.float16, "MD"),
    "near_labels": (np.int64, "M"),
}
"""Type and axes of the fields of its `Neighbourhood`, if it has one."""

LEARNED_MARK = " and "
"""Precedes the digest of the learned landmarks in a gallery's digest."""


def with_learned(gallery: Gallery, learned: Learned, old: int) -> Gallery:
    """Return `gallery`, of `old` landmarks, with the images and centres of the learned ones appended."""
    means = np.stack([learned.images[learned.places == place].mean(axis=0) for place in range(len(learned.names))])
    return replace(
        gallery,
        images=np.concatenate([gallery.images, learned.images.astype(np.float16)]),
        labels=np.concatenate([gallery.labels, old + learned.places]),
        centres=np.concatenate([gallery.centres, (means @ gallery.within).astype(np.float32)]),
        digest=gallery.digest
        + LEARNED_MARK
        + digest_of(learned.names, [row.tobytes().hex() for row in learned.images]),
    )


def without_learned(gallery: Gallery, old: int) -> Gallery:
    """Return `gallery` without what `with_learned` appended to its `old` landmarks."""
    kept = gallery.labels < old
    if kept.all():
        return gallery
    return replace(
        gallery,
        images=gallery.images[kept],
        labels=gallery.labels[kept],
        centres=gallery.centres[: len(np.unique(gallery.labels[kept]))],
        digest=gallery.digest.partition(LEARNED_MARK)[0],
    )


# ── The two files ───────────────────────────────────────────────────────────────────────────────────────────────────


def read_memory(folder: Path, model: str) -> Memory | None:
    """Return the memory of the run in `folder`; None when it has none, or one of other weights."""
    path = folder / MEMORY
    if not path.is_file():
        return None
    try:
        arrays = load(path.read_bytes())
        if bytes(arrays["model"]).decode() != model:
            return None
        densities = DENSITY_ARRAYS if "axes" in arrays else {}
        require_sound(arrays, MEMORY_ARRAYS | densities, {"W": 2})
        moments = ClassMoments(arrays["square"], arrays["sums"], arrays["counts"])
        require_labels(arrays["labels"], len(moments.counts))
        if densities:
            require_labels(arrays["near_labels"], len(moments.counts))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise LandmarksError(
            f"{path} cannot be read ({error})",
            way_out="delete it: landmarks learn and evaluate make it again from the run's dataset",
        ) from error
    validation = Validation(arrays["images"], arrays["labels"], arrays["logs"])
    neighbourhood = Neighbourhood(*(arrays[name] for name in DENSITY_ARRAYS)) if densities else None
    return Memory(moments, validation, neighbourhood, Weights(*map(float, arrays["weights"])))


def write_memory(folder: Path, memory: Memory, model: str) -> None:
    """Write the memory of a run, made with the weights that have the digest `model`."""
    moments, validation = memory.moments, memory.validation
    arrays: dict[str, NDArray[Any]] = {"square": moments.square, "sums": moments.sums, "counts": moments.counts}
    arrays |= {"images": validation.images, "labels": validation.labels, "logs": validation.logs}
    arrays["weights"] = np.array([memory.weights.discriminant, memory.weights.density])
    if (near := memory.neighbourhood) is not None:
        arrays |= {"axes": near.axes, "origin": near.origin, "near_images": near.images, "near_labels": near.labels}
    save_arrays(folder / MEMORY, arrays, model=model)


def read_learned(folder: Path, model: str) -> Learned:
    """Return what the run in `folder` has learned. Raises `LandmarksError` if it was learned with other weights."""
    path = folder / LEARNED
    if not path.is_file():
        return Learned()
    try:
        arrays = load(path.read_bytes())
        record = json.loads(bytes(arrays["about"]))
        names, ids = tuple(map(str, record["names"])), tuple(map(int, record["landmark_ids"]))
        require_sound(arrays, {"images": (np.float32, "mC"), "places": (np.int64, "m")}, {})
        if len(names) != len(ids) or set(arrays["places"].tolist()) != set(range(len(names))):
            raise ValueError("its names do not fit its images")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise LandmarksError(f"{path} cannot be read ({error})", way_out="delete it, and learn again") from error
    if record.get("model") != model:
        raise LandmarksError(f"{path} was learned with another network", way_out="delete it, and learn again")
    return Learned(names, ids, arrays["images"], arrays["places"])


def write_learned(folder: Path, learned: Learned, model: str) -> None:
    """Write the learned landmarks of a run atomically."""
    record = {"model": model, "names": learned.names, "landmark_ids": learned.landmark_ids}
    arrays: dict[str, NDArray[Any]] = {"images": learned.images, "places": learned.places}
    save_arrays(folder / LEARNED, arrays, about=json.dumps(record, ensure_ascii=False))
