"""The feature cache: pooled features of images, computed once per backbone and preprocessing, and kept on disk.

They lie in `DATA/features/<digest>/` in half precision and are memory-mapped. The digest covers everything that the
features depend on, so another backbone or decoder finds no cache rather than a wrong one. If DATA is read-only, they
lie in `$XDG_CACHE_HOME/landmarks/features/<digest>/`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from landmarks.dataset.images import DECODER
from landmarks.dataset.manifest import Dataset, digest_of_rows
from landmarks.dataset.shards import require_images
from landmarks.models.network import Network
from landmarks.support.console import note, progress
from landmarks.support.disk import can_write, require_free_disk
from landmarks.support.errors import BusyError, LandmarksError, StaleError
from landmarks.support.files import cache_folder, digest_of, held, read_record, write_record, written_whole
from landmarks.support.tables import array_writer, open_array, read_table, write_table
from landmarks.training.augmentation import FORM as AUGMENTED_FORM
from landmarks.training.augmentation import EpochAugmentation
from landmarks.training.loader import as_input, batches, epoch_steps, on_device
from landmarks.training.machine import Machine, compute_in_parts
from landmarks.training.recipe import Augmentation

if TYPE_CHECKING:
    from landmarks.training.run import Run


RECORD = "features.json"
"""Written last: a folder with this file holds a complete cache."""

CONTENT = ("length", "width", "height", "phash")
"""Columns of a dataset's images that describe the content of an image, whatever its id."""

POLL_SECONDS = 1.0
"""How often a process checks whether another one has finished the same cache."""


_Write = Callable[[NDArray[np.int64], torch.Tensor], None]


@dataclass(frozen=True)
class CachedView:
    """Which version of each image is cached: 0 is the evaluation image, others are augmented by (seed, -number)."""

    number: int = 0
    augment: Augmentation | None = None
    seed: int = 0


@dataclass(frozen=True)
class _Work:
    network: Network
    dataset: Dataset
    images: pl.DataFrame
    machine: Machine
    view: CachedView


@dataclass(frozen=True)
class Features:
    """Pooled features of some images, in the order of the images."""

    values: NDArray[np.float16]  # (P, C), a memory map
    seconds: float  # to compute them; 0 if they were cached


@dataclass(frozen=True)
class Rows:
    """Some rows of cached features, read from disk when indexed: `rows[a:b]` and `rows[array]` are (n, C)."""

    values: NDArray[np.floating]
    positions: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows and their length C."""
        return len(self.positions), self.values.shape[1]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, which: slice | NDArray[np.int64]) -> NDArray[np.floating]:
        return self.values[self.positions[which]]


def cached_features(
    network: Network,
    dataset: Dataset,
    images: pl.DataFrame,
    *,
    machine: Machine,
    view: int = 0,
    augment: Augmentation | None = None,
    seed: int = 0,
) -> Features:
    """Return the features of `images`, from the cache if they are there; leaves the network in evaluation mode.

    `view` 0 is the evaluation image; other views are augmented, each drawn from (seed, view, id). Raises `StaleError`
    when the cache does not hold what its digest says.
    """
    cached_view = CachedView(view, augment, seed) if view and augment else CachedView()
    work = _Work(network, dataset, images, machine, cached_view)
    key = cache_key(network, images, machine.precision, cached_view)
    folder = machine.from_main(_folder_for(dataset, digest_of(key)) if machine.is_main else None)
    started, missing = time.monotonic(), not (folder / RECORD).exists()
    machine.wait()  # every process has looked before one writes
    if missing and machine.is_main:
        _compute_in(folder, key, work)
    elif missing:
        _compute(None, work)
    machine.wait()
    return Features(_open(folder, key, images), time.monotonic() - started if missing else 0.0)


def kept_features(run: Run, dataset: Dataset, images: pl.DataFrame) -> Rows | None:
    """Return the features of `images` that the head training of `run` cached, or None; nothing is computed or written.

    `images` are some of the images that the run saw, sorted by id. The cache key changes with the backbone, so a
    fine-tuned run has no such features.
    """
    seen = run.seen
    if seen is None or not any(folder.is_dir() for folder in _cache_folders(dataset)):
        return None
    own = seen.filter(pl.col("through").is_null()).sort("image_id")
    network = run.network()
    choices = run.record.get("choices") or []
    precisions = {choice.get("value") for choice in choices if choice.get("what") == "precision"}
    for precision in ("float32", *sorted(precisions - {"float32"})):
        key = cache_key(network, own, precision, CachedView())
        for caches in _cache_folders(dataset):
            folder = caches / digest_of(key)
            if (folder / RECORD).exists():
                try:
                    return Rows(_open(folder, key, own), positions(own, images))
                except LandmarksError as error:
                    note(f"{error}; the features are computed again")
    return None


def _cache_folders(dataset: Dataset) -> tuple[Path, Path]:
    """Return where a dataset's features may be cached: in its folder, or in the user's cache folder."""
    return dataset.folder / "features", cache_folder() / "features"


def _folder_for(dataset: Dataset, digest: str) -> Path:
    """Return the folder of the cache with this digest: in the dataset's folder, unless that is read-only."""
    own, user_cache = _cache_folders(dataset)
    if (own / digest / RECORD).exists() or can_write(own):
        return own / digest
    elsewhere = user_cache / digest
    note(f"{dataset.folder} cannot be written: its features are kept in {elsewhere}")
    return elsewhere


def cache_key(network: Network, images: pl.DataFrame, precision: str, view: CachedView) -> dict[str, Any]:
    """Return everything that cached features depend on, as JSON."""
    return {
        "weights": backbone_digest(network),
        "backbone": network.backbone_name,
        "preprocessing": json.loads(json.dumps(network.preprocessing.record())),  # as it is read back from the file
        "decoder": DECODER,
        "precision": precision,
        "images": digest_of_images(images),
        "view": asdict(view) | ({"form": AUGMENTED_FORM} if view.number else {}),
    }


def digest_of_images(images: pl.DataFrame) -> str:
    """Return a digest of the ids and contents of `images`."""
    return digest_of_rows(images.select("image_id", *CONTENT))


def backbone_digest(network: Network) -> str:
    """Return 32 hex digits that change with any weight of the backbone."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(network.backbone.state_dict().items()):
        if not name.endswith("num_batches_tracked"):  # a step counter, without influence
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _compute_in(folder: Path, key: dict[str, Any], work: _Work) -> None:
    """Fill the cache in `folder`, or wait while another process does."""
    noted = False
    while not (folder / RECORD).exists():
        try:
            with held(folder):
                if not (folder / RECORD).exists():
                    require_free_disk(folder, 2 * len(work.images) * work.network.width + 4096)
                    earlier = _from_earlier_cache(key, work) if work.machine.processes == 1 else None
                    _compute(folder, work, earlier)
                    write_table(folder / "ids.parquet", work.images.select("image_id", *CONTENT))
                    write_record(folder / RECORD, {"key": key, "images": len(work.images)}, verb="train")
        except BusyError:
            if work.machine.processes > 1:  # the others have already begun to compute
                raise
            if not noted:
                note("another process is computing the same features; waiting for it")
            noted = True
            time.sleep(POLL_SECONDS)


@torch.no_grad()  # not inference_mode: the head is trained on what comes from here
def _compute(folder: Path | None, work: _Work, earlier: _EarlierFeatures | None = None) -> None:
    """Pass the images through the backbone, divided among the processes; the one with a `folder` writes.

    Features that an `earlier` cache holds are copied instead.
    """
    network, machine, view = work.network.eval(), work.machine, work.view
    rows_to_compute = np.arange(len(work.images)) if earlier is None else earlier.missing
    images = work.images if earlier is None else work.images[earlier.missing]
    if folder is not None:
        require_images(work.dataset, images["shard"], "computing features")
    steps_by_rank = [
        epoch_steps(np.arange(len(images)), machine.images_at_once * machine.processes, rank, machine.processes)
        for rank in range(machine.processes)
    ]
    loaded = batches(
        work.dataset,
        images,
        network.preprocessing,
        steps=steps_by_rank[machine.rank],
        workers=machine.workers,
        augment=None if view.augment is None else EpochAugmentation(view.augment, view.seed, -view.number),
    )
    rows_per_process = at_once = max((len(step) for steps in steps_by_rank for step in steps), default=0)

    def features_of(inputs: torch.Tensor) -> torch.Tensor:
        with machine.computing():
            return network.features(inputs)

    with _writer(folder, (len(work.images), network.width), view) as write:
        if write and earlier is not None:
            for start in range(0, len(earlier.rows), 4096):
                block = slice(start, start + 4096)
                write(earlier.rows[block], torch.from_numpy(np.array(earlier.values[earlier.positions[block]])))
        for step, batch in enumerate(on_device(loaded, machine.device)):
            features = torch.zeros(rows_per_process, network.width, device=machine.device)
            if batch.ids:
                features[: len(batch.ids)], at_once = compute_in_parts(
                    features_of, as_input(batch, network.preprocessing, machine.device), at_once
                )
            gathered = machine.accelerator.gather(features) if machine.processes > 1 else features
            if write:
                for steps, rows in zip(steps_by_rank, gathered.cpu().split(rows_per_process), strict=False):
                    write(rows_to_compute[steps[step]], rows[: len(steps[step])])


@dataclass(frozen=True)
class _EarlierFeatures:
    """Features of some of the images from an earlier cache, as when a dataset has grown."""

    rows: NDArray[np.int64]  # of the images
    positions: NDArray[np.int64]  # of these images in `values`
    values: NDArray[np.float16]
    missing: NDArray[np.int64]  # rows of the images that it does not hold


def _from_earlier_cache(key: dict[str, Any], work: _Work) -> _EarlierFeatures | None:
    """Return the features in the cache that holds most of the images, or None if no cache holds any.

    Weights, preprocessing, decoder, precision and view must be the same, and so must an image's id, size and hash:
    features depend on nothing else.
    """
    best: _EarlierFeatures | None = None
    images = work.images.select("image_id", *CONTENT).with_row_index("row")
    for caches in _cache_folders(work.dataset):
        for record in sorted(caches.glob(f"*/{RECORD}")):
            with contextlib.suppress(LandmarksError, OSError, ValueError):
                of_cache = read_record(record).get("key")
                if not isinstance(of_cache, dict) or {**of_cache, "images": ""} != {**key, "images": ""}:
                    continue
                cached = read_table(record.parent / "ids.parquet")
                values: NDArray[np.float16] = open_array(record.parent / "features.npy")
                if not {"image_id", *CONTENT} <= set(cached.columns):
                    continue
                if values.shape != (len(cached), work.network.width) or values.dtype != np.float16:
                    continue
                matched = images.join(cached.with_row_index("position"), on=["image_id", *CONTENT], how="inner")
                if len(matched) > (0 if best is None else len(best.rows)):
                    rows = matched["row"].to_numpy().astype(np.int64)
                    missing = np.setdiff1d(np.arange(len(images)), rows)
                    best = _EarlierFeatures(rows, matched["position"].to_numpy().astype(np.int64), values, missing)
    if best is not None:
        note(f"{len(best.rows):,} of {len(images):,} features are kept from before, {len(best.missing):,} computed")
    return best


@contextlib.contextmanager
def _writer(folder: Path | None, shape: tuple[int, int], view: CachedView) -> Iterator[_Write | None]:
    """Yield a function that writes features (n, C) at rows (n,) and advances the bar; None without a `folder`."""
    if folder is None:
        yield None
        return
    what = "features" if not view.number else f"features, augmented view {view.number}"
    with (
        written_whole(folder / "features.npy") as aside,
        progress(what, shape[0]) as advance,
        array_writer(aside, np.float16, shape) as store,
    ):
        started, done = time.monotonic(), 0

        def write(rows: NDArray[np.int64], features: torch.Tensor) -> None:
            nonlocal done
            half = features.half()
            if not bool(torch.isfinite(half).all()):
                raise LandmarksError(
                    "the backbone gives features that half precision cannot hold", way_out="try --precision float32"
                )
            store(rows, half.numpy())
            done += len(rows)
            advance(len(rows), f"{done / (time.monotonic() - started):.0f} images/s")

        yield write


def _open(folder: Path, key: dict[str, Any], images: pl.DataFrame) -> NDArray[np.float16]:
    """Map a cache into memory; raise `StaleError` when it is not the one of `key` and `images`."""
    record = read_record(folder / RECORD)
    try:
        values: NDArray[np.float16] = open_array(folder / "features.npy")
    except (OSError, ValueError) as error:
        raise StaleError(f"the cached features in {folder} cannot be read ({error})", way_out="delete it") from error
    ids = read_table(folder / "ids.parquet", {"image_id": pl.String})["image_id"]
    fits = record.get("key") == key and values.dtype == np.float16 and values.ndim == 2 and len(values) == len(images)
    if not fits or not ids.equals(images["image_id"]):
        raise StaleError(
            f"the cached features in {folder} belong to another backbone or other images", way_out="delete it"
        )
    return values


def positions(images: pl.DataFrame, split: pl.DataFrame) -> NDArray[np.int64]:
    """Return the rows of `images` that are in `split`; both are sorted by id."""
    return np.flatnonzero(images["image_id"].is_in(split["image_id"].implode()).to_numpy())


def labels_of(images: pl.DataFrame) -> NDArray[np.int64]:
    """Return the labels (P,) of `images`, all of which show known landmarks."""
    return images["label"].to_numpy().astype(np.int64)
