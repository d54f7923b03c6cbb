"""Label checks and the luck of a draw see what training saw, where training saw it, without computing it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from landmarks.dataset.manifest import Dataset
from landmarks.evaluation import trunk
from landmarks.evaluation.luck import luck
from landmarks.evaluation.suspects import suspects
from landmarks.support.errors import LandmarksError
from landmarks.training import features
from landmarks.training.machine import Machine
from landmarks.training.recipe import Recipe
from landmarks.training.run import Run
from landmarks.training.train import train

SMALL = "test_resnet"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = timm.create_model(SMALL, pretrained=False, num_classes=0)
    save_file(network.state_dict(), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


@pytest.fixture
def trained(own_data: Dataset, weights: Path, tmp_path: Path) -> Callable[..., Run]:
    def training(**settings: Any) -> Run:
        settings = {"epochs": 0, "warmup_epochs": 1, "tracking": "none", **settings}
        return train(own_data.folder, tmp_path / "small", backbone=SMALL, weights=weights, image_size=32, **settings)

    return training


@pytest.mark.parametrize("flags", [(), ("avx512_bf16",)], ids=["without bfloat16", "with bfloat16"])
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_after_a_training_nothing_is_computed_again(
    precision: str,
    flags: tuple[str, ...],
    *,
    trained: Callable[..., Run],
    own_data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("landmarks.training.precision.processor_flags", lambda: frozenset(flags))
    run = trained(precision=precision, device="cpu")
    monkeypatch.setattr(features, "batches", None)  # no photograph is read for its features any more
    suspects(run.folder, tmp_path / "wrong.csv")
    luck(run.folder, 2, draws=3)
    assert len(list((own_data.folder / "features").iterdir())) == 1


def test_a_trunk_that_was_fine_tuned_looks_once(
    trained: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(epochs=1, batch_size=6)
    suspects(run.folder, tmp_path / "wrong.csv")
    monkeypatch.setattr(features, "batches", None)
    suspects(run.folder, tmp_path / "again.csv")
    luck(run.folder, 2, draws=3)


class Elsewhere(Machine):
    """A machine whose tensors lie on another device than the processor."""

    device = torch.device("meta")


@pytest.mark.parametrize("use", ["suspects", "luck"])
def test_the_network_goes_where_the_photographs_go(
    use: str, run: Run, own_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[torch.device]] = []

    def looked(network: torch.nn.Module, _: Dataset, photos: Any, *, machine: Machine) -> features.Features:
        tensors = [*network.parameters(), *network.buffers()]
        seen.append({machine.device, *(tensor.device for tensor in tensors)})
        return features.Features(np.ones((len(photos), 4), dtype=np.float16), 0.0)

    monkeypatch.setattr(trunk, "open_machine", lambda recipe, out: (Elsewhere(None), []))  # type: ignore[arg-type]
    monkeypatch.setattr(trunk, "cached_features", looked)
    suspects(run.folder, tmp_path / "wrong.csv") if use == "suspects" else luck(run.folder, 2, draws=3)
    assert seen == [{Elsewhere.device}]


def test_where_the_training_s_device_is_missing_another_is_taken(
    trained: Callable[..., Run], own_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run.record["recipe"]["device"] = "cuda"
    photos, values = trunk.features_of(run, own_data, "train")
    assert len(photos) == len(values) == 18


@pytest.mark.parametrize(
    ("asked", "trained_on", "opened"), [("auto", "cpu", "cpu"), ("mps", "cpu", "mps"), ("auto", "auto", "auto")]
)
def test_the_device_is_the_one_asked_for_or_else_the_training_s(
    asked: str, trained_on: str, opened: str, *, run: Run, own_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes: list[Recipe] = []

    def looked_at(recipe: Recipe, _: Path) -> tuple[Machine, list[object]]:
        recipes.append(recipe)
        return Elsewhere(None), []  # type: ignore[arg-type]

    run.record["recipe"] = {"device": trained_on, "precision": "bfloat16", "tracking": "wandb"}
    monkeypatch.setattr(trunk, "open_machine", looked_at)
    monkeypatch.setattr(trunk, "cached_features", lambda *_, **__: features.Features(np.ones((24, 4)), 0.0))
    trunk.features_of(run, own_data, "train", asked)
    assert [(recipe.device, recipe.precision, recipe.tracking) for recipe in recipes] == [(opened, "bfloat16", "none")]


def test_a_part_without_known_landmarks_is_told(run: Run, own_data: Dataset) -> None:
    assert own_data.split is not None
    without = replace(own_data, split=own_data.split.filter(own_data.split["part"] != "test"))
    with pytest.raises(LandmarksError, match=r"the test part of .* shows no known landmark"):
        trunk.features_of(run, without, "test")
