"""The decoded cache: training images decoded once, kept on disk at the size that training needs, and memory-mapped.

It lies in `DATA/decoded/<digest>/`, or in `$XDG_CACHE_HOME/landmarks/decoded/<digest>/` if DATA is read-only. Each
image is stretched to a square. An epoch decodes nothing: it reads 3 × side² bytes per image, and the crops are taken on
the device, by bilinear interpolation.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.images import DECODER
from landmarks.dataset.manifest import Dataset
from landmarks.models.preprocessing import Preprocessing
from landmarks.support.console import note, progress
from landmarks.support.disk import can_write, require_free_disk
from landmarks.support.errors import BusyError, StaleError
from landmarks.support.files import cache_folder, digest_of, held, read_record, write_record, written_whole
from landmarks.support.tables import array_writer, open_array
from landmarks.training.features import digest_of_images
from landmarks.training.loader import batches
from landmarks.training.machine import Machine

RECORD = "decoded.json"
"""Written last: a folder with this file holds a complete cache."""

PIXELS = "pixels.npy"

SPARE = 1.25
"""Side of the cached images relative to that of the network's input."""

BLOCK = 64
"""Images decoded at a time."""

POLL_SECONDS = 1.0
"""How often a process checks whether another one has finished the same cache."""


def decoded_images(
    dataset: Dataset, images: pl.DataFrame, preprocessing: Preprocessing, *, machine: Machine
) -> NDArray[np.uint8]:
    """Return `images` as a memory map (P, R, R, 3) in their order, from the cache if they are there.

    Raises `StaleError` when the cache does not hold what its digest says, and `LandmarksError` that names an image that
    cannot be read, or says how much disk space is missing.
    """
    stored = replace(preprocessing, image_size=round(SPARE * preprocessing.image_size))
    key = {
        "side": stored.image_size,
        "interpolation": stored.interpolation,
        "decoder": DECODER,
        "images": digest_of_images(images),
    }
    folder = machine.from_main(_folder_for(dataset, digest_of(key)) if machine.is_main else None)
    if machine.is_main:
        _fill_cache(folder, key, dataset, images, stored=stored, machine=machine)
    machine.wait()
    return _open(folder, key, len(images), stored.image_size)


def _folder_for(dataset: Dataset, digest: str) -> Path:
    own = dataset.folder / "decoded"
    if (own / digest / RECORD).exists() or can_write(own):
        return own / digest
    elsewhere = cache_folder() / "decoded" / digest
    note(f"{dataset.folder} cannot be written: its decoded images are kept in {elsewhere}")
    return elsewhere


def _fill_cache(
    folder: Path,
    key: dict[str, Any],
    dataset: Dataset,
    images: pl.DataFrame,
    *,
    stored: Preprocessing,
    machine: Machine,
) -> None:
    """Fill the cache in `folder` if it is incomplete, or wait while another process does."""
    noted = False
    while not (folder / RECORD).exists():
        try:
            with held(folder):
                if not (folder / RECORD).exists():
                    _decode(folder, dataset, images, stored, machine)
                    write_record(folder / RECORD, {"key": key, "images": len(images)}, verb="train")
        except BusyError:
            if not noted:
                note("another process is decoding the same images; waiting for it")
            noted = True
            time.sleep(POLL_SECONDS)


def _decode(folder: Path, dataset: Dataset, images: pl.DataFrame, stored: Preprocessing, machine: Machine) -> None:
    side = stored.image_size
    require_free_disk(folder, 3 * side * side * len(images) + 4096)
    shape = (len(images), side, side, 3)
    with (
        written_whole(folder / PIXELS) as aside,
        progress("decoding", len(images)) as advance,
        array_writer(aside, np.uint8, shape) as write,
    ):
        done = 0
        for batch in batches(dataset, images, stored, batch_size=BLOCK, workers=machine.workers, stretched=True):
            write(np.arange(done, done + len(batch.ids)), batch.pixels.permute(0, 2, 3, 1).numpy())
            done += len(batch.ids)
            advance(len(batch.ids))


def _open(folder: Path, key: dict[str, Any], count: int, side: int) -> NDArray[np.uint8]:
    record = read_record(folder / RECORD)
    try:
        pixels: NDArray[np.uint8] = open_array(folder / PIXELS)
    except (OSError, ValueError) as error:
        raise StaleError(f"the decoded images in {folder} cannot be read ({error})", way_out="delete it") from error
    same_key = record.get("key") == json.loads(json.dumps(key))
    if not same_key or pixels.dtype != np.uint8 or pixels.shape != (count, side, side, 3):
        raise StaleError(f"the decoded images in {folder} are other images", way_out="delete it")
    return pixels
