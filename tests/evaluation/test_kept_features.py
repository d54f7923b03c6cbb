"""After a warm-up alone the trunk is what it was: nothing passes through it again that training kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import make_dataset
from safetensors.torch import load_file, save_file

import landmarks.evaluation.predictions as answering
import landmarks.evaluation.reference as remembering
from landmarks.dataset.manifest import Dataset
from landmarks.evaluation import tempering
from landmarks.evaluation.evaluate import evaluate
from landmarks.support.files import read_record, write_record
from landmarks.training.recipe import Recipe, recipe_named
from landmarks.training.run import Run, open_run
from landmarks.training.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    shown = [[(11, 22, 33)[number % 3]] for number in range(36)]
    parts = ["train"] * 24 + ["val"] * 6 + ["test"] * 6
    return make_dataset(tmp_path_factory.mktemp("kept") / "data", shown, parts=parts)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "small.safetensors"
    trunk = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    save_file({name: tensor.contiguous() for name, tensor in trunk.state_dict().items()}, weights)
    settings: dict[str, Any] = {"backbone": "test_resnet", "weights": weights, "image_size": 32, "batch_size": 8}
    return recipe_named("default", **settings, epochs=0, warmup_epochs=3, tracking="none", device="cpu")


@pytest.fixture(scope="module")
def warm(data: Dataset, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(data.folder, tmp_path_factory.mktemp("runs") / "warm", recipe=recipe)


@pytest.fixture
def others(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "street", [[]] * 12, first=500)


def copy_of(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder, folder)
    return open_run(folder)


def passed_through(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the photographs that pass through the network, by what for."""
    counts: dict[str, int] = {}
    for module in (answering, remembering, tempering):
        original = module.batches

        def counted(*arguments: Any, name: str = module.__name__, original: Any = original, **named: Any) -> Any:
            counts[name.rpartition(".")[2]] = len(arguments[1])
            return original(*arguments, **named)

        monkeypatch.setattr(module, "batches", counted)
    return counts


def test_a_run_without_fine_tuning_is_remembered_from_what_warm_up_kept(
    warm: Run, others: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(warm, tmp_path / "run")
    counts = passed_through(monkeypatch)
    numbers = evaluate(run.folder, others=others.folder)
    assert numbers["unknown"] == 12 and {row["score"] for row in numbers["rejection"]} >= {"nearest", "centre"}
    assert set(counts) == {"predictions"}


def test_what_was_kept_and_what_passes_through_again_say_the_same(
    warm: Run, data: Dataset, others: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, anew = copy_of(warm, tmp_path / "kept"), copy_of(warm, tmp_path / "anew")
    first = evaluate(kept.folder, others=others.folder)
    (data.folder / "features").rename(data.folder / "features.away")
    try:
        counts = passed_through(monkeypatch)
        second = evaluate(anew.folder, others=others.folder)
    finally:
        (data.folder / "features.away").rename(data.folder / "features")
    assert (counts["reference"], counts["tempering"]) == (24, 6)
    assert first["temperature"] == pytest.approx(second["temperature"], rel=0.02)
    remembered = [load_file(run.folder / "reference.safetensors") for run in (kept, anew)]
    assert torch.equal(remembered[0]["labels"], remembered[1]["labels"])
    cosines = (remembered[0]["photos"].float() * remembered[1]["photos"].float()).sum(dim=1)
    assert cosines.numpy() == pytest.approx(np.ones(24), abs=2e-3)


def test_a_fine_tuned_trunk_does_not_take_them(
    data: Dataset, recipe: Recipe, others: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(data.folder, tmp_path / "tuned", recipe=replace(recipe, epochs=1, warmup_epochs=0))
    assert run.record["best"]["phase"] == "finetune"
    counts = passed_through(monkeypatch)
    evaluate(run.folder, others=others.folder)
    assert (counts["reference"], counts["tempering"]) == (24, 6)


def test_features_kept_in_another_precision_are_those_of_the_training(
    data: Dataset, recipe: Recipe, others: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data.folder, tmp_path / "data", ignore=shutil.ignore_patterns("features"))
    run = train(tmp_path / "data", tmp_path / "half", recipe=replace(recipe, precision="bfloat16"))
    counts = passed_through(monkeypatch)
    evaluate(run.folder, others=others.folder)
    assert set(counts) == {"predictions"}


def test_damaged_features_are_passed_by(
    warm: Run, data: Dataset, others: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data.folder, tmp_path / "data")
    run = copy_of(warm, tmp_path / "run")
    record = read_record(run.folder / "run.json")
    record["data"] |= {"folder": str(tmp_path / "data"), "relative": "../data"}
    write_record(run.folder / "run.json", record, verb="train")
    for features in (tmp_path / "data" / "features").glob("*/features.npy"):
        features.write_bytes(features.read_bytes()[:64])
    counts = passed_through(monkeypatch)
    evaluate(run.folder, others=others.folder)
    assert (counts["reference"], counts["tempering"]) == (24, 6)
