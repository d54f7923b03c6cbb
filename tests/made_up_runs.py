"""A dataset of a few dozen striped images and a run of the baseline network, both made in a second."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from landmarks.dataset import copies
from landmarks.dataset.images import encode
from landmarks.dataset.manifest import Dataset, write_dataset
from landmarks.dataset.naming import identified_by
from landmarks.dataset.shards import ShardWriter
from landmarks.models.network import build_network, save_network
from landmarks.support.files import file_digest, write_record
from landmarks.support.tables import write_table
from landmarks.training.own_data import location_record, seen_rows
from landmarks.training.run import SEEN_FILE, Run, open_run

LANDMARKS = (11, 22, 33)


@functools.cache
def image(landmark: int, number: int) -> bytes:
    """One image: stripes whose direction and colour tell the landmark, noise that tells the image."""
    random = np.random.default_rng(landmark * 1000 + number)
    rows, columns = np.mgrid[:48, :64]
    wave = np.sin((rows * (landmark % 5) + columns * (landmark % 7)) / 6)
    colours = np.array([landmark * 37 % 255, landmark * 91 % 255, landmark * 53 % 255])
    image = 128 + 60 * wave[..., None] * (colours / 255) + random.normal(0, 12, (48, 64, 3))
    return encode(np.clip(image, 0, 255).astype(np.uint8))


def make_dataset(
    folder: Path,
    shown: list[list[int]],
    *,
    splits: list[str] | None = None,
    usage: list[str] | None = None,
    first: int = 0,
) -> Dataset:
    """Write a dataset whose image `i` shows the landmarks `shown[i]`, the first of them mainly.

    Ids count from `first`: images of one number in two datasets are one.
    """
    rows = []
    with ShardWriter(folder / "shards" / "0.tar") as shard:
        for number, landmarks in enumerate(shown, first):
            id = f"{number:016x}"
            offset, length = shard.add(id, image(landmarks[0] if landmarks else 1 + number % 3, number))
            landmark = landmarks[0] if landmarks else None
            rows.append((id, landmark, offset, length, landmarks if len(landmarks) > 1 else None, number // 2))
    images = pl.DataFrame(
        rows,
        schema={
            "image_id": pl.String,
            "landmark_id": pl.Int64,
            "offset": pl.UInt64,
            "length": pl.UInt32,
            "landmarks": pl.List(pl.Int64),
            "group": pl.UInt32,
        },
        orient="row",
    ).with_columns(
        shard=pl.lit("0.tar"),
        width=pl.lit(64),
        height=pl.lit(48),
        phash=pl.Series(np.random.default_rng(first).integers(2**63, size=len(shown)), dtype=pl.UInt64),
        author=pl.lit(None, pl.String),
        license=pl.lit(None, pl.String),
        title=pl.lit(None, pl.String),
        usage=pl.Series(usage or [None] * len(shown), dtype=pl.String),
    )
    known = sorted({landmark for landmarks in shown for landmark in landmarks})
    labels = pl.DataFrame(
        {
            "label": range(len(known)),
            "landmark_id": known,
            "name": [f"Tower {landmark}" for landmark in known],
            "category": [None] * len(known),
            "images": [sum(landmarks[:1] == [landmark] for landmarks in shown) for landmark in known],
        },
        schema={
            "label": pl.UInt32,
            "landmark_id": pl.Int64,
            "name": pl.String,
            "category": pl.String,
            "images": pl.UInt32,
        },
    )
    rejected = pl.DataFrame(schema={"image_id": pl.String, "where": pl.String, "why": pl.String})
    if splits is not None:
        split = pl.DataFrame({"image_id": images["image_id"], "split": splits})
        write_table(folder / "splits.parquet", split, rule="by hand", seed=0)
    return write_dataset(
        folder, verb="import", images=images, labels=labels, rejected=rejected, record={"set": "train"}
    )


def make_run(folder: Path, dataset: Dataset, *, seed: int = 0) -> Run:
    """Write a run of an untrained baseline network that answers the landmarks of `dataset`."""
    network = build_network("baseline", classes=len(dataset.labels), weights="none", image_size=32, seed=seed)
    folder.mkdir(parents=True)
    save_network(network, folder)
    write_table(folder / "labels.parquet", dataset.labels)
    known = [dataset.split(split).filter(pl.col("label").is_not_null()) for split in ("train", "val")]
    write_table(folder / SEEN_FILE, pl.concat([seen_rows(known[0], "train"), seen_rows(known[1], "val")]))
    data = {
        **location_record(dataset.folder, relative_to=folder),
        "digest": dataset.digest,
        "content_digest": dataset.content_digest,
        "identified_by": identified_by(dataset.record, dataset.labels),
        "images": {split: len(dataset.split(split)) for split in ("train", "val", "test")},
        "seen": file_digest(folder / SEEN_FILE),
    }
    write_record(folder / "run.json", {"data": data}, verb="train")
    return open_run(folder)


@pytest.fixture(autouse=True)
def _short_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline's features are longer than is compared; covariances of 2,048 numbers would cost a second a test."""
    monkeypatch.setattr("landmarks.recognition.vectors.MAX_WIDTH", 128)


@pytest.fixture(scope="session", autouse=True)
def _compared_once() -> Iterator[None]:
    """Which images are copies is asked of the same images in test after test, and takes most of a test's time."""
    real, known = copies.agreements, dict[bytes, tuple[NDArray[Any], NDArray[Any]]]()

    def agreements(*given: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        parts = [f"{one.dtype} {one.shape}".encode() + one.tobytes() for one in given]
        digest = hashlib.sha256(b"".join(parts)).digest()
        if digest not in known:
            known[digest] = real(*given)
        return known[digest]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copies, "agreements", agreements)
        yield


@pytest.fixture
def own_data(tmp_path: Path) -> Dataset:
    """Thirty images of three landmarks: 18 to train, 6 to validate, 6 to test."""
    shown = [[LANDMARKS[number % 3]] for number in range(30)]
    return make_dataset(tmp_path / "data", shown, splits=["train"] * 18 + ["val"] * 6 + ["test"] * 6)


@pytest.fixture
def run(tmp_path: Path, own_data: Dataset) -> Run:
    """An untrained run on `own_data`."""
    return make_run(tmp_path / "run", own_data)


@pytest.fixture
def test_data(tmp_path: Path) -> Dataset:
    """Sixty images: known, known twice over, of a landmark the run has never heard of, and of nothing at all."""
    shown = [[[11], [22, 33], [44], []][number % 4] for number in range(60)]
    usage = ["Public" if number % 8 < 4 else "Private" for number in range(60)]
    return make_dataset(tmp_path / "elsewhere", shown, usage=usage, first=1000)
