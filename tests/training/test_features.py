"""The cache: right numbers, computed once, refused when stale, absent for anything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from striped import SMALL

from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.models.network import Network, build_network
from landmarks.support.errors import LandmarksError, StaleError
from landmarks.support.files import FORMAT
from landmarks.support.tables import write_table
from landmarks.training import features
from landmarks.training.features import cached_features
from landmarks.training.loader import batches, normalised
from landmarks.training.machine import Machine
from landmarks.training.recipe import Augmentation


@pytest.fixture
def network(small_weights: Path) -> Network:
    return build_network(SMALL, classes=3, weights=small_weights, image_size=32)


@pytest.fixture
def dataset(stripes: Dataset, tmp_path: Path) -> Dataset:
    shutil.copytree(stripes.folder, tmp_path / "data", ignore=shutil.ignore_patterns("features"))
    return open_dataset(tmp_path / "data")


def test_cached_features_are_the_backbone_s_rounded_to_half(
    network: Network, dataset: Dataset, machine: Machine
) -> None:
    images = dataset.split("val")
    cached = cached_features(network, dataset, images, machine=machine)
    batch = next(iter(batches(dataset, images, network.preprocessing, batch_size=len(images))))
    with torch.no_grad():
        expected = network.eval().features(normalised(batch.pixels, network.preprocessing)).numpy()
    assert cached.values.dtype == np.float16
    np.testing.assert_allclose(cached.values, expected, rtol=2e-3, atol=2e-3)


def test_a_second_training_computes_nothing(
    network: Network, dataset: Dataset, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached_features(network, dataset, dataset.split("val"), machine=machine)
    monkeypatch.setattr(features, "batches", None)  # nothing is read any more
    second = cached_features(network, dataset, dataset.split("val"), machine=machine)
    assert first.seconds > 0
    assert second.seconds == 0
    assert np.array_equal(first.values, second.values)


@pytest.mark.linux
def test_features_of_a_dataset_that_may_only_be_read_are_kept_in_the_users_cache(
    *,
    network: Network,
    dataset: Dataset,
    machine: Machine,
    tmp_path: Path,
    read_only: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read_only(dataset.folder)
    first = cached_features(network, dataset, dataset.split("val"), machine=machine)
    assert f"its features are kept in {tmp_path / 'cache' / 'landmarks' / 'features'}" in capsys.readouterr().err
    monkeypatch.setattr(features, "batches", None)  # nothing is read any more
    second = cached_features(network, dataset, dataset.split("val"), machine=machine)
    assert np.array_equal(first.values, second.values)
    monkeypatch.setenv("XDG_CACHE_HOME", str(dataset.folder))
    with pytest.raises(LandmarksError, match="XDG_CACHE_HOME=FOLDER"):
        cached_features(network, dataset, dataset.split("val"), machine=machine)


@pytest.mark.linux
def test_features_that_are_there_are_taken_from_a_dataset_that_may_only_be_read(
    network: Network,
    dataset: Dataset,
    machine: Machine,
    read_only: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached_features(network, dataset, dataset.split("val"), machine=machine)
    read_only(dataset.folder)
    monkeypatch.setattr(features, "batches", None)  # nothing is read any more
    assert cached_features(network, dataset, dataset.split("val"), machine=machine).seconds == 0


def test_running_statistics_are_not_moved(network: Network, dataset: Dataset, machine: Machine) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cached_features(network.train(), dataset, dataset.split("val"), machine=machine)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_other_weights_other_images_and_another_size_have_caches_of_their_own(
    network: Network, dataset: Dataset, machine: Machine, small_weights: Path
) -> None:
    cached_features(network, dataset, dataset.split("val"), machine=machine)
    larger = build_network(SMALL, classes=3, weights=small_weights, image_size=48)
    cached_features(larger, dataset, dataset.split("val"), machine=machine)
    cached_features(network, dataset, dataset.split("val")[1:], machine=machine)
    cached_features(network, dataset, dataset.split("val"), machine=machine, view=1, augment=Augmentation())
    with torch.no_grad():
        next(network.backbone.parameters()).mul_(1.01)
    cached_features(network, dataset, dataset.split("val"), machine=machine)
    assert len(list((dataset.folder / "features").iterdir())) == 5


def test_a_head_of_its_own_changes_no_cache(
    network: Network, dataset: Dataset, machine: Machine, small_weights: Path
) -> None:
    cached_features(network, dataset, dataset.split("val"), machine=machine)
    other = build_network(SMALL, classes=3, head="linear", weights=small_weights, image_size=32, seed=9)
    assert cached_features(other, dataset, dataset.split("val"), machine=machine).seconds == 0


@pytest.mark.parametrize("damage", ["key", "ids", "cut"])
def test_a_cache_that_is_not_what_its_name_says_is_refused(
    damage: str, network: Network, dataset: Dataset, machine: Machine
) -> None:
    cached_features(network, dataset, dataset.split("val"), machine=machine)
    (folder,) = (dataset.folder / "features").iterdir()
    if damage == "key":
        record = json.loads((folder / "features.json").read_text())
        record["key"]["decoder"] = "another"
        (folder / "features.json").write_text(json.dumps(record))
    elif damage == "ids":
        write_table(folder / "ids.parquet", pl.DataFrame({"image_id": ["x"] * 18}))
    else:
        whole = (folder / "features.npy").read_bytes()
        (folder / "features.npy").write_bytes(whole[:-100])
    with pytest.raises(StaleError, match="delete it"):
        cached_features(network, dataset, dataset.split("val"), machine=machine)


def test_features_that_half_precision_cannot_hold_are_an_error_and_no_cache(
    network: Network, dataset: Dataset, machine: Machine
) -> None:
    with torch.no_grad():
        for module in network.backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.mul_(1e4)
    with pytest.raises(LandmarksError, match="half precision"):
        cached_features(network, dataset, dataset.split("val"), machine=machine)
    assert not list((dataset.folder / "features").glob("*/features.*"))


def test_of_a_dataset_that_has_grown_only_the_new_images_are_computed(
    network: Network,
    dataset: Dataset,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = dataset.split("all")
    some = whole.filter(pl.int_range(pl.len()) % 3 > 0)
    first = cached_features(network, dataset, some, machine=machine)
    read: list[str] = []
    original = features.batches

    def counted(dataset: Dataset, images: pl.DataFrame, *rest: object, **options: object) -> object:
        read.extend(images["image_id"].gather(np.concatenate(options["steps"])))  # type: ignore[call-overload]
        return original(dataset, images, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(features, "batches", counted)
    grown = cached_features(network, dataset, whole, machine=machine)
    assert sorted(read) == sorted(set(whole["image_id"]) - set(some["image_id"]))
    old = whole["image_id"].is_in(some["image_id"].implode()).to_numpy()
    assert np.array_equal(grown.values[old], first.values)
    assert f"{len(some)} of {len(whole)} features are kept from before" in capsys.readouterr().err
    read.clear()
    assert cached_features(network, dataset, whole, machine=machine).seconds == 0
    part = whole.head(2)  # as of a dataset that was divided
    assert np.array_equal(cached_features(network, dataset, part, machine=machine).values, grown.values[:2])
    assert read == []
    changed = whole.with_columns(phash=pl.col("phash") ^ 1)
    cached_features(network, dataset, changed, machine=machine)
    assert len(read) == len(whole)  # another image under the same id is another image


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("features.npy", ""),
        ("features.npy", "no array"),
        ("ids.parquet", ""),
        ("features.json", f'{{"format": {FORMAT}}}'),
        ("features.json", f'{{"format": {FORMAT}, "key": null}}'),
    ],
)
def test_an_earlier_cache_that_is_damaged_is_passed_by(
    network: Network, dataset: Dataset, machine: Machine, file: str, content: str
) -> None:
    whole = dataset.split("all")
    first = cached_features(network, dataset, whole.head(3), machine=machine)
    (damaged,) = (dataset.folder / "features").glob(f"*/{file}")
    damaged.unlink()  # `first` maps it
    damaged.write_text(content, encoding="utf-8")
    assert np.array_equal(cached_features(network, dataset, whole, machine=machine).values[:3], first.values)
