"""Images that lie at an address are trained on as if they lay here: the same batches, the same weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faulty_server import serving

from landmarks.dataset.joining import join
from landmarks.dataset.manifest import Dataset
from landmarks.models.preprocessing import Preprocessing
from landmarks.training.augmentation import EpochAugmentation
from landmarks.training.loader import batches
from landmarks.training.readers import Readers
from landmarks.training.recipe import Augmentation, Recipe
from landmarks.training.train import train

SMALL = Preprocessing(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def elsewhere(stripes: Dataset, tmp_path: Path) -> Iterator[Dataset]:
    """The images of `stripes` on a web server, half of which may be kept here."""
    shutil.copytree(stripes.folder, tmp_path / "www" / "data", ignore=shutil.ignore_patterns("features", "copies"))
    half = float(stripes.images["length"].sum()) / 2e9
    with serving(tmp_path / "www") as server:
        yield join([f"{server.address}/data"], tmp_path / "data", by_reference=True, cache_gb=half)


def test_a_training_ends_in_the_same_weights(
    stripes: Dataset, elsewhere: Dataset, small_recipe: Recipe, tmp_path: Path
) -> None:
    here = train(stripes.folder, tmp_path / "here", recipe=small_recipe)
    run_elsewhere = train(elsewhere.folder, tmp_path / "there", recipe=small_recipe)
    assert run_elsewhere.digest == here.digest


def test_processes_read_them_too(stripes: Dataset, elsewhere: Dataset) -> None:
    readers = Readers(2)
    try:
        pairs = zip(
            batches(stripes, stripes.split("train"), SMALL, batch_size=12, augment=EpochAugmentation(Augmentation())),
            batches(
                elsewhere,
                elsewhere.split("train"),
                SMALL,
                batch_size=12,
                augment=EpochAugmentation(Augmentation()),
                workers=readers,
            ),
            strict=True,
        )
        for ours, theirs in pairs:
            assert ours.ids == theirs.ids
            assert torch.equal(ours.pixels, theirs.pixels)
    finally:
        readers.close()
