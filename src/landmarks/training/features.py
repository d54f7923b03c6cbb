"""The cache: pooled features of images, computed once per backbone, preprocessing and images, kept on disk.

Half precision, read by memory map, in `DATA/features/<digest>/`: the digest covers everything the numbers depend on,
so that another backbone or another decoder finds no cache rather than a wrong one. Where DATA may only be read they
are in `$XDG_CACHE_HOME/landmarks/features/<digest>/`.
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
from landmarks.dataset.manifest import Dataset
from landmarks.models.network import Network
from landmarks.support.arrays import array_writer, mapped
from landmarks.support.console import note, progress
from landmarks.support.disk import can_write, require_free_disk
from landmarks.support.errors import BusyError, LandmarksError, StaleError
from landmarks.support.files import cache_folder, digest_of, held, read_record, write_record, written_whole
from landmarks.support.tables import read_table, write_table
from landmarks.training.augmentation import FORM as AUGMENTED_FORM
from landmarks.training.augmentation import EpochAugmentation
from landmarks.training.feeding import on_device
from landmarks.training.loader import as_input, batches, epoch_steps
from landmarks.training.machine import Machine, compute_in_parts
from landmarks.training.recipe import Augmentation

if TYPE_CHECKING:
    from landmarks.training.run import Run


RECORD = "features.json"
"""Written last: a folder that holds it holds a whole cache."""

CONTENT = ("length", "width", "height", "phash")
"""What an image is, beside its id: columns of a dataset's images."""

SECONDS_BETWEEN_LOOKS = 1.0
"""How often a process looks whether another one has finished the same cache."""


_Write = Callable[[NDArray[np.int64], torch.Tensor], None]


@dataclass(frozen=True)
class CachedView:
    """Which image of each image: 0 the evaluation image, later ones augmented, drawn from (seed, -number)."""

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
    """Pooled features of some images, in the order they were asked for."""

    values: NDArray[np.float16]  # (P, C), a memory map
    seconds: float  # it took to compute them; 0 when they were there


@dataclass(frozen=True)
class Rows:
    """Some rows of cached features, read from disk when they are asked for: `rows[a:b]` or `rows[array]` is (n, C)."""

    values: NDArray[np.floating]
    positions: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """How many rows, and the length C of each."""
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
    """Return the features of `images`, from the cache when they are there; the network is in evaluation mode after.

    `view` 0 is the evaluation image; later views are augmented, each drawn from (seed, view, id). Raises
    `StaleError` when a cache is there but not what its name says.
    """
    drawn = CachedView(view, augment, seed) if view and augment else CachedView()
    work = _Work(network, dataset, images, machine, drawn)
    key = cache_key(network, images, machine.precision, drawn)
    folder = machine.from_main(_folder_for(dataset, digest_of(key)) if machine.is_main else None)
    started, missing = time.monotonic(), not (folder / RECORD).exists()
    machine.wait()  # all have looked before one writes
    if missing and machine.is_main:
        _compute_in(folder, key, work)
    elif missing:
        _compute(None, work)
    machine.wait()
    return Features(_open(folder, key, images), time.monotonic() - started if missing else 0.0)


def kept_features(run: Run, dataset: Dataset, images: pl.DataFrame) -> Rows | None:
    """Return the features that head training kept of `images`, some of what `run` saw, sorted by id; None if there
    are none.

    They lie under a key that changes with the backbone: a run that was fine-tuned has another backbone than they are
    of. Nothing is computed, and nothing is written.
    """
    seen = run.seen
    if seen is None or not any(place.is_dir() for place in _places_of(dataset)):
        return None
    together = seen.filter(pl.col("through").is_null()).sort("image_id")
    network = run.network()
    asked_for = {one.get("value") for one in run.record.get("choices") or [] if one.get("what") == "precision"}
    for precision in ("float32", *sorted(asked_for - {"float32"})):
        key = cache_key(network, together, precision, CachedView())
        for place in _places_of(dataset):
            folder = place / digest_of(key)
            if (folder / RECORD).exists():
                try:
                    return Rows(_open(folder, key, together), positions(together, images))
                except LandmarksError as error:
                    note(f"{error}; the features are computed again")
    return None


def _places_of(dataset: Dataset) -> tuple[Path, Path]:
    """Return where caches of a dataset's features may lie: beside the images, or in the person's own cache."""
    return dataset.folder / "features", cache_folder() / "features"


def _folder_for(dataset: Dataset, digest: str) -> Path:
    """Return where the cache of this digest lies or will lie: beside the images, unless that cannot be written."""
    own, others = _places_of(dataset)
    if (own / digest / RECORD).exists() or can_write(own):
        return own / digest
    elsewhere = others / digest
    note(f"{dataset.folder} cannot be written: its features are kept in {elsewhere}")
    return elsewhere


def cache_key(network: Network, images: pl.DataFrame, precision: str, view: CachedView) -> dict[str, Any]:
    """Return everything that cached features depend on, as JSON."""
    return {
        "weights": backbone_digest(network),
        "backbone": network.backbone_name,
        "preprocessing": json.loads(json.dumps(network.preprocessing.record())),  # as the file will have it
        "decoder": DECODER,
        "precision": precision,
        "images": digest_of_images(images),
        "view": asdict(view) | ({"form": AUGMENTED_FORM} if view.number else {}),
    }


def digest_of_images(images: pl.DataFrame) -> str:
    """Return the digest of which images these are, a slice at a time: as Python's objects, millions are gigabytes."""
    digest = hashlib.blake2b(digest_size=16)
    for rows in images.select("image_id", "length", "width", "height", "phash").iter_slices(100_000):
        digest.update(rows.write_csv(include_header=False).encode())
    return digest.hexdigest()


def backbone_digest(network: Network) -> str:
    """Return 32 hex digits that change with any weight of the backbone."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(network.backbone.state_dict().items()):
        if not name.endswith("num_batches_tracked"):  # counts steps, changes nothing
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _compute_in(folder: Path, key: dict[str, Any], work: _Work) -> None:
    """Fill the cache in `folder`; another process that is filling it is waited for."""
    told = False
    while not (folder / RECORD).exists():
        try:
            with held(folder):
                if not (folder / RECORD).exists():
                    require_free_disk(folder, 2 * len(work.images) * work.network.width + 4096)
                    kept = _kept_before(key, work) if work.machine.processes == 1 else None
                    _compute(folder, work, kept)
                    write_table(folder / "ids.parquet", work.images.select("image_id", *CONTENT))
                    write_record(folder / RECORD, {"key": key, "images": len(work.images)}, verb="train")
        except BusyError:
            if work.machine.processes > 1:  # the others have already begun to compute
                raise
            if not told:
                note("another process is computing the same features; waiting for it")
            told = True
            time.sleep(SECONDS_BETWEEN_LOOKS)


@torch.no_grad()  # not inference_mode: the head is trained on what comes from here
def _compute(folder: Path | None, work: _Work, kept: _Kept | None = None) -> None:
    """Pass images through the backbone, a share per process; the main process, which has a `folder`, writes.

    What is `kept` from an earlier cache is copied, and not computed.
    """
    network, machine, view = work.network.eval(), work.machine, work.view
    places = np.arange(len(work.images)) if kept is None else kept.missing
    images = work.images if kept is None else work.images[kept.missing]
    every = [
        epoch_steps(np.arange(len(images)), machine.images_at_once * machine.processes, rank, machine.processes)
        for rank in range(machine.processes)
    ]
    mine = every[machine.rank]
    loaded = batches(
        work.dataset,
        images,
        network.preprocessing,
        steps=mine,
        workers=machine.workers,
        augment=None if view.augment is None else EpochAugmentation(view.augment, view.seed, -view.number),
    )
    rows_per_process = at_once = max((len(step) for steps in every for step in steps), default=0)

    def features_of(inputs: torch.Tensor) -> torch.Tensor:
        with machine.computing():
            return network.features(inputs)

    with _writer(folder, (len(work.images), network.width), view) as write:
        if write and kept is not None:
            for start in range(0, len(kept.rows), 4096):
                some = slice(start, start + 4096)
                write(kept.rows[some], torch.from_numpy(np.array(kept.values[kept.positions[some]])))
        for step, batch in enumerate(on_device(loaded, machine.device)):
            features = torch.zeros(rows_per_process, network.width, device=machine.device)
            if batch.ids:
                features[: len(batch.ids)], at_once = compute_in_parts(
                    features_of, as_input(batch, network.preprocessing, machine.device), at_once
                )
            together = machine.accelerator.gather(features) if machine.processes > 1 else features
            if write:
                for rank, rows in enumerate(together.cpu().split(rows_per_process)):
                    write(places[every[rank][step]], rows[: len(every[rank][step])])


@dataclass(frozen=True)
class _Kept:
    """Features of some of the asked images that an earlier cache holds, as when a dataset has grown."""

    rows: NDArray[np.int64]  # of the asked images
    positions: NDArray[np.int64]  # in `values`
    values: NDArray[np.float16]
    missing: NDArray[np.int64]  # of the asked images


def _kept_before(key: dict[str, Any], work: _Work) -> _Kept | None:
    """Return what the cache that knows most of the asked images holds of them; None where none knows any.

    It must be of the same weights, preprocessing, decoder, precision and view, and an image the same in id, size and
    hash: all that its features depend on.
    """
    best: _Kept | None = None
    asked = work.images.select("image_id", *CONTENT).with_row_index("row")
    for place in _places_of(work.dataset):
        for record in sorted(place.glob(f"*/{RECORD}")):
            with contextlib.suppress(LandmarksError, OSError, ValueError):
                if {**read_record(record)["key"], "images": ""} != {**key, "images": ""}:
                    continue
                known = read_table(record.parent / "ids.parquet")
                values: NDArray[np.float16] = mapped(record.parent / "features.npy")
                if not {"image_id", *CONTENT} <= set(known.columns) or values.shape != (len(known), work.network.width):
                    continue
                met = asked.join(known.with_row_index("position"), on=["image_id", *CONTENT], how="inner")
                if values.dtype == np.float16 and len(met) > (0 if best is None else len(best.rows)):
                    rows = met["row"].to_numpy().astype(np.int64)
                    missing = np.setdiff1d(np.arange(len(asked)), rows)
                    best = _Kept(rows, met["position"].to_numpy().astype(np.int64), values, missing)
    if best is not None:
        note(f"{len(best.rows):,} of {len(asked):,} features are kept from before, {len(best.missing):,} computed")
    return best


@contextlib.contextmanager
def _writer(folder: Path | None, shape: tuple[int, int], view: CachedView) -> Iterator[_Write | None]:
    """Give a function that stores features (n, C) at rows (n,) and moves the bar; none to a process without folder."""
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
    """Map a cache into memory; raise `StaleError` when it is not what `key` and `images` ask for."""
    record = read_record(folder / RECORD)
    try:
        values: NDArray[np.float16] = mapped(folder / "features.npy")
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
    """Return where in `images` the images of `split` stand, both sorted by id."""
    return np.flatnonzero(images["image_id"].is_in(split["image_id"].implode()).to_numpy())


def labels_of(images: pl.DataFrame) -> NDArray[np.int64]:
    """Return the labels (P,) of images that show known landmarks."""
    return images["label"].to_numpy().astype(np.int64)
