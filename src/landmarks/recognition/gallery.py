"""The gallery: what a run remembers of its training images, and of unknown images, in files of its folder.

The training images are remembered once, in bounded number. The winners of the recognition challenge lowered an answer's
score by its similarity to images without landmarks (Henkel & Singer, arXiv:2010.01650): an image that resembles them is
unlikely to show a known landmark. `evaluate --false-acceptance` remembers the unknown images that the threshold is
chosen on, in a separate file beside the gallery. When a run is evaluated on these images, none is compared with itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save_file
from scipy.special import logsumexp

from landmarks.dataset.manifest import Dataset
from landmarks.dataset.shards import missing_files
from landmarks.models.network import Network
from landmarks.recognition.vectors import compared_width, directions
from landmarks.support.console import note, progress
from landmarks.support.errors import LandmarksError
from landmarks.support.files import digest_of, written_whole
from landmarks.support.seeds import generator
from landmarks.training.features import Rows, kept_features
from landmarks.training.loader import batches, normalised
from landmarks.training.own_data import images_seen
from landmarks.training.run import Run

FILE = "gallery.safetensors"

MAX_BYTES = 128 * 1024**2
"""Size of the remembered features: 50,000 images of 1,280 half-precision numbers."""

ARRAYS = {
    "images": (np.float16, "MC"),
    "labels": (np.int64, "M"),
    "mean": (np.float32, "C"),
    "centres": (np.float32, "LC"),
    "within": (np.float32, "CC"),
    "overall": (np.float32, "CC"),
}
"""Type and axes of what the file holds, as `Gallery` names them."""


def open_gallery(run: Run) -> Gallery | None:
    """Return the gallery of `run`; None when it has none, or one made with other weights."""
    path = run.folder / FILE
    if not path.exists():
        return None
    try:
        arrays = load(path.read_bytes())
        if bytes(arrays["model"]).decode() != run.digest:
            return None
        require_sound(arrays, ARRAYS, {"L": len(run.labels)})
        require_labels(arrays["labels"], len(run.labels))
        if not len(arrays["labels"]):
            raise ValueError("it holds no images")
        images, labels, mean, centres, within, overall = (arrays[name] for name in ARRAYS)
        gallery = Gallery(images, labels, mean, centres, within, overall, bytes(arrays["digest"]).decode())
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise LandmarksError(f"{path} cannot be read as a gallery ({error})", way_out="delete it") from error
    unknown = read_unknown(run.folder, run.digest, gallery.images.shape[1])
    return gallery if unknown is None else with_unknown_images(gallery, unknown)


def ensure_gallery(run: Run, network: Network, dataset: Dataset, batch_size: int) -> Gallery | None:
    """Return the run's gallery, made now from its training images in `dataset` (its own) if it has none yet.

    Uses the features that head training cached if the backbone has not changed since. None, with a note, when there are
    more landmarks than images fit, or the images are gone. Call it while holding the run's folder.
    """
    gallery = open_gallery(run)
    if gallery is not None:
        return gallery
    limit = MAX_BYTES // (2 * compared_width(network.width))
    images = images_seen(run, dataset, "train")
    if not len(images):
        note(f"none of the images that {run.name} was trained on is in {dataset.folder}: not compared")
        return None
    if images["run_label"].n_unique() > limit:
        note(f"{images['label'].n_unique()} landmarks do not fit into {MAX_BYTES >> 20} MB of features: not compared")
        return None
    chosen = images.filter(pl.Series(sample(images["run_label"].to_numpy(), limit)))
    if len(chosen) < len(images):
        note(f"remembering {len(chosen)} of {len(images)} training images, the same number of each landmark")
    kept = kept_features(run, dataset, chosen)
    missing, _ = missing_files(dataset, chosen["shard"])
    if kept is None and missing:
        note(f"the training images of {run.name} are not there any more, such as {missing[0]}: not compared")
        return None
    values = _directions_of_images(network, dataset, chosen, batch_size) if kept is None else _directions_of(kept)
    digest = digest_of(run.digest, chosen["image_id"].to_list())
    gallery = make_gallery(values, chosen["run_label"].cast(pl.Int64).to_numpy(), digest)
    arrays = {name: getattr(gallery, name) for name in ARRAYS}
    save_arrays(run.folder / FILE, arrays, model=run.digest, digest=gallery.digest)
    return gallery


def sample(labels: NDArray[np.integer], limit: int, seed: int = 0) -> NDArray[np.bool_]:
    """Return the mask `(N,)` of at most `limit` images to keep, spread as evenly as possible over `labels`."""
    if len(labels) <= limit:
        return np.ones(len(labels), dtype=bool)
    shuffled = generator(seed, "reference").permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    each = int(np.searchsorted(np.cumsum([(counts > n).sum() for n in range(counts.max())]), limit, side="right"))
    return rank < each


@torch.no_grad()
def _directions_of_images(
    network: Network, dataset: Dataset, images: pl.DataFrame, batch_size: int
) -> NDArray[np.float16]:
    device = next(network.parameters()).device
    values = np.empty((len(images), compared_width(network.width)), dtype=np.float16)
    done = 0
    with progress("remembering training images", total=len(images)) as advance:
        for batch in batches(dataset, images, network.preprocessing, batch_size=batch_size):
            pixels = normalised(batch.pixels, network.preprocessing, device)
            values[done : done + len(batch.ids)] = directions(network.features(pixels).float().cpu().numpy())
            done += len(batch.ids)
            advance(len(batch.ids))
    return values


def _directions_of(features: Rows) -> NDArray[np.float16]:
    """Return the directions of cached features, computed in blocks, as features may be wider than directions."""
    values = np.empty((len(features), compared_width(features.shape[1])), dtype=np.float16)
    for start in range(0, len(features), 4096):
        values[start : start + 4096] = directions(features[start : start + 4096])
    return values


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], **texts: str) -> None:
    """Write arrays, and texts as their bytes, to a safetensors file, atomically."""
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    tensors |= {name: np.frombuffer(text.encode(), dtype=np.uint8) for name, text in texts.items()}
    with written_whole(path) as aside:
        save_file(tensors, aside)


def require_sound(
    arrays: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[type, str]], lengths: Mapping[str, int]
) -> None:
    """Raise `ValueError` unless `arrays` have the `expected` types and axes, and finite values.

    Axes of one letter must have one length, which may be given in `lengths`. Raises `KeyError` for a missing array.
    """
    found = dict(lengths)
    for name, (kind, axes) in expected.items():
        array = arrays[name]
        fits = array.dtype == kind and array.ndim == len(axes) and bool(np.isfinite(array).all())
        if not fits or any(found.setdefault(axis, size) != size for axis, size in zip(axes, array.shape, strict=True)):
            raise ValueError(f"{name} does not fit")


def require_labels(labels: NDArray[np.integer], landmarks: int) -> None:
    """Raise `ValueError` unless all `labels` (N,) are from 0 to `landmarks` - 1."""
    if not ((labels >= 0) & (labels < landmarks)).all():
        raise ValueError(f"labels of other landmarks than the {landmarks} of the run")


# ── Does an image show a landmark that the run knows? ───────────────────────────────────────────────────────────────
#
# The scores, larger for known landmarks, come from one pass of the network: `msp` and `energy` from its outputs alone;
# `knn` and `mahalanobis` compare an image's features with those of the training images (`Gallery`). A threshold is set
# on a `KnownRule`: one score, or a weighted sum.


NEIGHBOURS = 10
"""Nearest training images that vote for landmarks."""

WARMTH = 0.05
"""Decrease in cosine that reduces a neighbour's vote to 1/e."""

SHRINKAGE = 0.1
"""Share of an isotropic covariance mixed into the measured one, which has more entries than there are images."""


@dataclass(frozen=True)
class Gallery:
    """M remembered training images of L landmarks, as directions of length C."""

    images: NDArray[np.float16]  # (M, C), the `directions` of their features
    labels: NDArray[np.int64]  # (M,)
    mean: NDArray[np.float32]  # (C,)
    centres: NDArray[np.float32]  # (L, C), means of landmarks, whitened by `within`
    within: NDArray[np.float32]  # (C, C), whitens the differences within landmarks
    overall: NDArray[np.float32]  # (C, C), whitens the differences among all images
    digest: str
    unknown: UnknownImages | None = None  # images of no known landmark, if a threshold was chosen with them

    @cached_property
    def index(self) -> Any:
        """A faiss index of `images` for exact search by inner product, in half precision."""
        index = faiss.IndexScalarQuantizer(
            self.images.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        for start in range(0, len(self.images), 4096):
            index.add(self.images[start : start + 4096].astype(np.float32))
        return index


def make_gallery(images: NDArray[np.floating], labels: NDArray[np.integer], digest: str) -> Gallery:
    """Return the `Gallery` of training images, given their `directions` as `images` `(M, C)`, and `labels` `(M,)`."""
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    width = images.shape[1]
    sums, squares = np.zeros((len(counts), width)), np.zeros((width, width))
    for start in range(0, len(images), 4096):
        block = images[start : start + 4096].astype(np.float32)
        np.add.at(sums, places[start : start + 4096], block)
        squares += block.T @ block
    squares /= len(images)
    mean, centres = sums.sum(axis=0) / len(images), sums / counts[:, None]
    overall = _whitening(squares - np.outer(mean, mean))
    within = _whitening(squares - (centres * (counts / len(images))[:, None]).T @ centres)
    whitened = (centres @ within).astype(np.float32)
    half = images.astype(np.float16, copy=False)
    return Gallery(half, labels.astype(np.int64), mean.astype(np.float32), whitened, within, overall, digest)


def rejection_scores(
    features: NDArray[np.float32],
    logits: NDArray[np.float32],
    gallery: Gallery | None,
    excluded: NDArray[np.int64] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Return score name → `(N,)` for `features` `(N, C)` and `logits` `(N, K)`; see `SCORE_DEFINITIONS`.

    Without a `gallery` there are only the scores that come from the outputs. `excluded` `(N,)` is the row of each image
    among the gallery's unknown images, -1 for an image that is not there; it is not compared with itself.
    """
    scores = {"energy": logsumexp(logits, axis=1).astype(np.float32)}
    if gallery is not None:
        images = directions(features)
        scores["knn"] = _knn(images, gallery)
        scores["mahalanobis"] = _mahalanobis(images, gallery)
        if gallery.unknown is not None:
            excluded = np.full(len(images), -1) if excluded is None else excluded
            scores["knn_unknown"] = _knn_unknown(images, gallery.unknown, excluded)
            scores["contrast"] = _contrast(images, gallery, gallery.unknown, excluded)
    return scores


def _knn(images: NDArray[np.float32], gallery: Gallery) -> NDArray[np.float32]:
    cosines, places = gallery.index.search(images, min(NEIGHBOURS, len(gallery.labels)))
    labels = gallery.labels[places]
    same = labels[:, :, None] == labels[:, None, :]
    votes = np.where(same, np.exp((cosines[:, None, :] - 1) / WARMTH), 0).sum(axis=2)
    return np.asarray(np.log(np.maximum(votes.max(axis=1), 1e-30)), dtype=np.float32)


def _mahalanobis(images: NDArray[np.float32], gallery: Gallery) -> NDArray[np.float32]:
    overall = np.square((images - gallery.mean) @ gallery.overall).sum(axis=1)
    return np.asarray(overall - _to_nearest(images @ gallery.within, gallery), dtype=np.float32)


def _to_nearest(white: NDArray[np.float32], gallery: Gallery) -> NDArray[np.float32]:
    """Return the squared distance (N,) of whitened images (N, C) to the nearest landmark's mean."""
    squares = np.square(gallery.centres).sum(axis=1)
    nearest = np.square(white).sum(axis=1) + (squares - 2 * white @ gallery.centres.T).min(axis=1)
    return np.asarray(nearest, dtype=np.float32)


def _knn_unknown(
    images: NDArray[np.float32], unknown: UnknownImages, excluded: NDArray[np.int64]
) -> NDArray[np.float32]:
    cosines = images @ unknown.images.astype(np.float32).T
    rows = np.flatnonzero(excluded >= 0)
    cosines[rows, excluded[rows]] = -np.inf
    nearest = np.partition(cosines, -min(NEIGHBOURS, cosines.shape[1]), axis=1)[:, -NEIGHBOURS:]
    votes = np.exp((nearest - 1) / WARMTH).sum(axis=1)
    return np.asarray(-np.log(np.maximum(votes, 1e-30)), dtype=np.float32)


def _contrast(
    images: NDArray[np.float32], gallery: Gallery, unknown: UnknownImages, excluded: NDArray[np.int64]
) -> NDArray[np.float32]:
    white, count = images @ gallery.within, len(unknown.keys)
    to_unknown = np.square(white - centre_of_unknown(gallery, unknown)).sum(axis=1)
    to_unknown[excluded >= 0] *= (count / (count - 1)) ** 2  # the distance from the mean of the other images
    return np.asarray(to_unknown - _to_nearest(white, gallery), dtype=np.float32)


def centre_of_unknown(gallery: Gallery, unknown: UnknownImages) -> NDArray[np.float32]:
    """Return the mean (C,) of the unknown images, whitened within landmarks."""
    mean: NDArray[np.float32] = unknown.images.astype(np.float32).mean(axis=0) @ gallery.within
    return mean


def _whitening(covariance: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return W `(C, C)` such that `W @ W.T` is the inverse of the shrunk `covariance` `(C, C)`."""
    size = len(covariance)
    spread = max(float(np.trace(covariance)), 1e-3)  # at most 1; 0 if every landmark has a single image
    isotropic = spread / size * np.eye(size)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * isotropic
    return np.asarray(np.linalg.cholesky(np.linalg.inv(shrunk)), dtype=np.float32)


# ── Unknown images that a run remembers ─────────────────────────────────────────────────────────────────────────────


UNKNOWN_FILE = "unknown.safetensors"

UNKNOWN_MARK = " unknown "
"""Precedes the digest of the unknown images in a gallery's digest."""

MAX_UNKNOWN = 1024
"""Most unknown images that are remembered: 2.6 MB of 1,280 half-precision numbers."""

LEAST_UNKNOWN = 2
"""Fewest unknown images that are remembered, since each is compared with the others."""


@dataclass(frozen=True)
class UnknownImages:
    """The directions (U, C) of unknown images, and for each a key that identifies it and its dataset."""

    images: NDArray[np.float16]
    keys: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """A digest of the keys."""
        return digest_of(self.keys)

    def places_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each of `keys` among these images (N,), -1 for a key that is not there."""
        places = {key: place for place, key in enumerate(self.keys)}
        return np.array([places.get(key, -1) for key in keys], dtype=np.int64)


def with_unknown_images(gallery: Gallery, unknown: UnknownImages) -> Gallery:
    """Return `gallery` with exactly these unknown images."""
    base = gallery.digest.partition(UNKNOWN_MARK)[0]
    return replace(gallery, unknown=unknown, digest=base + UNKNOWN_MARK + unknown.digest)


def read_unknown(folder: Path, model: str, width: int) -> UnknownImages | None:
    """Return the unknown images, with directions of length `width`, that the run in `folder` remembers.

    None when there are none, or only those of other weights than `model`. Raises `LandmarksError` for a damaged file.
    """
    path = folder / UNKNOWN_FILE
    if not path.is_file():
        return None
    try:
        arrays = load(path.read_bytes())
        record: dict[str, Any] = json.loads(bytes(arrays["about"]))
        keys = tuple(map(str, record["keys"]))
        require_sound(arrays, {"images": (np.float16, "UC")}, {"U": len(keys), "C": width})
        if len(keys) < LEAST_UNKNOWN:
            raise ValueError("it holds fewer than two images")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LandmarksError(f"{path} cannot be read ({error})", way_out="delete it, and choose again") from error
    return UnknownImages(arrays["images"], keys) if record.get("model") == model else None


def write_unknown(folder: Path, unknown: UnknownImages, model: str) -> None:
    """Write the unknown images of a run atomically."""
    record = {"model": model, "keys": unknown.keys}
    save_arrays(folder / UNKNOWN_FILE, {"images": unknown.images}, about=json.dumps(record, ensure_ascii=False))
