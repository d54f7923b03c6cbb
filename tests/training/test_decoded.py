"""The decoded cache: the same crops as from the shards, decoded once, refused when stale, whole or not there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.models.preprocessing import Preprocessing
from landmarks.support.errors import StaleError
from landmarks.training import decoded as decoding
from landmarks.training import finetune as finetuning
from landmarks.training.augmentation import EpochAugmentation
from landmarks.training.decoded import decoded_images
from landmarks.training.loader import as_input, batches
from landmarks.training.machine import Machine
from landmarks.training.recipe import Augmentation, Recipe
from landmarks.training.train import train

SMALL = Preprocessing(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear")


@pytest.fixture
def dataset(stripes: Dataset, tmp_path: Path) -> Dataset:
    shutil.copytree(stripes.folder, tmp_path / "data", ignore=shutil.ignore_patterns("features", "decoded"))
    return open_dataset(tmp_path / "data")


class Killed(BaseException):
    """Stands for a kill."""


def test_crops_are_those_of_the_shards_but_for_a_little_blur(dataset: Dataset, machine: Machine) -> None:
    images = dataset.split("train")
    kept = decoded_images(dataset, images, SMALL, machine=machine)
    assert kept.shape == (48, 40, 40, 3) and not kept.flags.writeable
    augment = EpochAugmentation(Augmentation(), 2, 3)
    steps = np.array_split(np.random.default_rng(0).permutation(48), 3)
    ways = [
        torch.cat(
            [as_input(one, SMALL) for one in batches(dataset, images, SMALL, steps=steps, decoded=way, augment=augment)]
        )
        for way in (None, kept)
    ]
    assert ways[1].shape == (48, 3, 32, 32)
    smooth = [torch.nn.functional.avg_pool2d(way, 4) for way in ways]  # what noise there is, each way blurs differently
    assert (smooth[0] - smooth[1]).abs().mean() < 0.06  # 0.6 between one image's and another's
    assert (smooth[0] - smooth[1].roll(1, 0)).abs().mean() > 0.3


def test_a_second_training_decodes_nothing_and_another_size_finds_no_cache(
    dataset: Dataset, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = dataset.split("train")
    first = decoded_images(dataset, images, SMALL, machine=machine)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "batches", None)
        assert np.array_equal(decoded_images(dataset, images, SMALL, machine=machine), first)
    decoded_images(dataset, images, replace(SMALL, image_size=16), machine=machine)
    decoded_images(dataset, images[:9], SMALL, machine=machine)
    assert len(list((dataset.folder / "decoded").iterdir())) == 3


def test_a_cache_of_other_images_is_refused(dataset: Dataset, machine: Machine) -> None:
    decoded_images(dataset, dataset.split("train"), SMALL, machine=machine)
    (folder,) = (dataset.folder / "decoded").iterdir()
    np.save(folder / "pixels.npy", np.zeros((2, 40, 40, 3), dtype=np.uint8))
    with pytest.raises(StaleError, match="other images"):
        decoded_images(dataset, dataset.split("train"), SMALL, machine=machine)


@pytest.mark.parametrize("name", ["pixels.npy", "decoded.json"])
def test_killed_while_it_is_made_it_is_made_again(
    name: str, dataset: Dataset, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = Path.replace

    def mortal(aside: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise Killed
        return replaced(aside, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", mortal)
        decoded_images(dataset, dataset.split("train"), SMALL, machine=machine)
    assert not list((dataset.folder / "decoded").rglob("decoded.json"))
    assert len(decoded_images(dataset, dataset.split("train"), SMALL, machine=machine)) == 48


def test_a_training_from_it_that_is_killed_ends_in_the_same_weights(
    dataset: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(small_recipe, cache="decoded", micro_batch=7, head_learning_rate=1e-6)
    whole = train(dataset.folder, tmp_path / "whole", recipe=recipe)
    monkeypatch.setattr(finetuning, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    original, calls = finetuning.accumulate_gradients, iter(range(1, 100))

    def mortal(*arguments: object) -> object:
        if next(calls) == 6:
            raise Killed
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(finetuning, "accumulate_gradients", mortal)
    with pytest.raises(Killed):
        train(dataset.folder, tmp_path / "run", recipe=recipe)
    shutil.rmtree(dataset.folder / "decoded")  # made again, it holds the same
    again = train(dataset.folder, tmp_path / "run", recipe=recipe)
    assert again.digest == whole.digest
