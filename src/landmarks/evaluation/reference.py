"""What a run remembers of its training photographs: made once after training, kept in the run's folder, bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.rejection import Reference, compared_width, directions, make_reference
from landmarks.networks.network import Network
from landmarks.support.console import note, progress
from landmarks.support.files import digest_of, written_whole
from landmarks.support.seeds import generator
from landmarks.training.features import Rows, kept_features
from landmarks.training.own_data import photographs_seen
from landmarks.training.photos import batches, normalised
from landmarks.training.run import Run

FILE = "reference.safetensors"

MAX_BYTES = 128 * 1024**2
"""Size of the features that are remembered: 50,000 photographs of 1,280 half-precision numbers."""

PARTS = ("photos", "labels", "mean", "centres", "within", "overall")


def open_reference(run: Run) -> Reference | None:
    """Return what `run` remembers of its training photographs; None when it holds nothing, or of other weights."""
    path = run.folder / FILE
    if not path.exists():
        return None
    tensors = load_file(path)
    if bytes(tensors.pop("model")).decode() != run.digest:
        return None
    return Reference(**{name: tensors[name] for name in PARTS}, digest=bytes(tensors["digest"]).decode())


def ensure_reference(run: Run, network: Network, dataset: Dataset, batch_size: int) -> Reference | None:
    """Return the run's reference, made now from what it was trained on in `dataset` (its own) when it holds none yet.

    The features are those that warm-up kept, where the trunk is still the same. None, with a note, when there are more
    landmarks than photographs fit. Call it while holding the run's folder.
    """
    known = open_reference(run)
    if known is not None:
        return known
    limit = MAX_BYTES // (2 * compared_width(network.width))
    photos = photographs_seen(run, dataset, "train")
    if not len(photos):
        note(f"none of the photographs that {run.name} was trained on is in {dataset.folder}: not compared")
        return None
    if photos["run_label"].n_unique() > limit:
        note(f"{photos['label'].n_unique()} landmarks do not fit into {MAX_BYTES >> 20} MB of features: not compared")
        return None
    chosen = photos.filter(pl.Series(sample(photos["run_label"].to_numpy(), limit)))
    if len(chosen) < len(photos):
        note(f"remembering {len(chosen)} of {len(photos)} training photographs, the same number of each landmark")
    kept = kept_features(run, dataset, chosen)
    values = _directions(network, dataset, chosen, batch_size) if kept is None else _directions_of(kept)
    digest = digest_of(run.digest, chosen["id"].to_list())
    reference = make_reference(values, chosen["run_label"].cast(pl.Int64).to_numpy(), digest)
    _save(run.folder / FILE, reference, run.digest)
    return reference


def sample(labels: NDArray[np.integer], limit: int, seed: int = 0) -> NDArray[np.bool_]:
    """Return `(N,)`: which photographs to keep so that at most `limit` remain, as evenly over `labels` as can be."""
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
def _directions(network: Network, dataset: Dataset, photos: pl.DataFrame, batch_size: int) -> NDArray[np.float16]:
    device = next(network.parameters()).device
    values = np.empty((len(photos), compared_width(network.width)), dtype=np.float16)
    done = 0
    with progress("remembering training photographs", total=len(photos)) as advance:
        for batch in batches(dataset, photos, network.preprocessing, batch_size=batch_size):
            pictures = normalised(batch.images, network.preprocessing, device)
            values[done : done + len(batch.ids)] = directions(network.features(pictures).float().cpu().numpy())
            done += len(batch.ids)
            advance(len(batch.ids))
    return values


def _directions_of(features: Rows) -> NDArray[np.float16]:
    """Return the directions of kept features, some at a time: they may be wider than what is compared."""
    values = np.empty((len(features), compared_width(features.shape[1])), dtype=np.float16)
    for start in range(0, len(features), 4096):
        values[start : start + 4096] = directions(features[start : start + 4096])
    return values


def _save(path: Path, reference: Reference, model: str) -> None:
    tensors = {name: np.ascontiguousarray(getattr(reference, name)) for name in PARTS}
    for name, text in {"model": model, "digest": reference.digest}.items():
        tensors[name] = np.frombuffer(text.encode(), dtype=np.uint8)
    with written_whole(path) as aside:
        save_file(tensors, aside)
