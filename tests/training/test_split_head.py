"""A head that is divided among processes: trained, saved, interrupted and out of memory as a whole one is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import split_training
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from split_training import SETTINGS
from striped import make_dataset

from landmarks.dataset.manifest import Dataset
from landmarks.models.heads import build_head
from landmarks.training import split_head
from landmarks.training.loader import epoch_steps, share_sizes
from landmarks.training.recipe import recipe_named
from landmarks.training.run import open_run
from landmarks.training.split_head import is_split, numbers_elsewhere, split_choice
from landmarks.training.train import train

# ── What is split, and how ──────────────────────────────────────────────────────────────────────────────────────────


def test_shares_are_those_of_every_step() -> None:
    for size in range(1, 12):
        for processes in range(1, 5):
            steps = [epoch_steps(torch.arange(size).numpy(), size, rank, processes)[0] for rank in range(processes)]
            assert share_sizes(size, processes) == [len(step) for step in steps]


def test_only_large_cosine_heads_that_several_processes_fine_tune_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_head, "SPLIT_NUMBERS", 7 * 2 * 16)
    recipe = recipe_named("default")
    head = build_head("arcface", 8, 7, {"embedding": 16, "sub_centres": 2})
    assert is_split(head, recipe, 2)
    assert not is_split(head, recipe, 1)
    assert not is_split(head, recipe, 8)  # more processes than landmarks
    assert not is_split(head, recipe_named("default", epochs=0), 2)
    assert not is_split(build_head("linear", 1000, 7), recipe, 2)
    assert not is_split(build_head("arcface", 8, 6, {"embedding": 16, "sub_centres": 2}), recipe, 2)
    assert str(split_choice(head, 2)) == (
        "head: split over 2 processes (each holds the centres of at most 4 of 7 landmarks, their gradient and moments)"
    )
    assert numbers_elsewhere(head, recipe, 2) == 3 * 2 * 16
    assert numbers_elsewhere(head, recipe, 1) == 0


# ── Two processes ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Nine training images of three landmarks."""
    return make_dataset(tmp_path_factory.mktemp("nine"), train=3, val=2, test=0)


def launch(
    data: Dataset, weights: Path, folder: Path, *scenarios: Mapping[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Train the scenarios in two processes, one after the other."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", split_training.__file__]
    arguments = [str(data.folder), str(weights), str(folder), json.dumps([{"split": True, **one} for one in scenarios])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def kept(out: Path) -> tuple[int, int]:
    """Return the epochs and steps that the checkpoint in `out` has behind it."""
    with safe_open(out / "checkpoint" / "state.safetensors", framework="np") as file:
        state = json.loads(file.metadata()["state"])
    return state["epoch"], state["step"]


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def assert_close(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5, msg=name)


FEW = {"batch_size": 2}  # the last of five steps has one image, and the second process none
ADAM = {"optimizer": "adamw", "learning_rate": 1e-3, "backbone_learning_rate": 1e-4, "batch_size": 4}
PLACES = {"forward": 1, "softmax": 3, "gradients": 3, "backward": 1}  # place → images for which memory suffices there
SCENARIOS: list[dict[str, Any]] = [
    {"name": "whole", "split": False},
    {"name": "split"},
    {"name": "parts", "settings": {"micro_batch": 1}},
    {"name": "few whole", "split": False, "settings": FEW},
    {"name": "few", "settings": FEW},
    *({"name": f"scarce {place}", "scarce": (place, images)} for place, images in PLACES.items()),
    {"name": "adam", "settings": ADAM},
    {"name": "resumed", "settings": ADAM, "interrupt": 2},
    {"name": "resumed", "settings": ADAM, "interrupt": 3},
    {"name": "resumed", "settings": ADAM},
    {"name": "overflow", "settings": {"precision": "float16"}, "overflow": 2},
]


@pytest.fixture(scope="module")
def two(nine: Dataset, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the trainings of all scenarios in two processes."""
    folder = tmp_path_factory.mktemp("two")
    ended = launch(nine, small_weights, folder, *SCENARIOS)
    assert ended.returncode == 0, ended.stderr
    (folder / "said").write_text(ended.stderr)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("names", "settings"), [(["whole", "split", "parts"], {}), (["few whole", "few"], FEW)])
def test_one_process_and_two_with_whole_and_split_heads_learn_the_same(
    names: list[str], settings: dict[str, Any], *, two: Path, nine: Dataset, small_weights: Path, tmp_path: Path
) -> None:
    one = train(nine.folder, tmp_path / "one", weights=small_weights, **{**SETTINGS, **settings})
    for name in names:
        run = open_run(two / name)
        assert_close(weights_of(two / name), weights_of(tmp_path / "one"))
        assert run.history["train_accuracy"].to_list() == one.history["train_accuracy"].to_list()
        assert run.history["val_loss"].to_list() == pytest.approx(one.history["val_loss"].to_list(), rel=1e-4)
        assert any(choice["what"] == "head" for choice in run.record["choices"]) == ("whole" not in name)
    assert one.record["best"]["phase"] == "finetune"


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_memory_that_runs_out_in_one_process_halves_the_images_of_both(place: str, two: Path) -> None:
    assert_close(weights_of(two / f"scarce {place}"), weights_of(two / "split"))


@pytest.mark.slow
def test_memory_that_runs_out_is_told_once(two: Path) -> None:
    said = (two / "said").read_text()
    assert said.count("out of memory: going on with 2 images at a time") == len(PLACES)
    assert said.count("out of memory: going on with 1 images at a time") == len(PLACES)


@pytest.mark.slow
def test_interrupted_in_one_process_and_resumed_it_ends_in_the_same_weights(two: Path) -> None:
    assert (two / "said").read_text().count("a checkpoint is kept after step") == 2
    assert open_run(two / "resumed").digest == open_run(two / "adam").digest


@pytest.mark.slow
def test_an_overflow_in_one_process_s_centres_skips_the_step_in_both(two: Path) -> None:
    history = open_run(two / "overflow").history  # the processes themselves have compared their weights, step by step
    assert history.filter(history["phase"] == "finetune")["step"].to_list() == [2, 4]


@pytest.mark.slow
def test_killed_in_one_process_it_goes_on_in_two(two: Path, nine: Dataset, small_weights: Path, tmp_path: Path) -> None:
    killed = launch(nine, small_weights, tmp_path, {"name": "killed", "settings": ADAM, "kill": 3})
    assert killed.returncode != 0
    assert "another process of this training is gone" in killed.stderr
    assert kept(tmp_path / "killed") == (0, 2)
    assert launch(nine, small_weights, tmp_path, {"name": "killed", "settings": ADAM}).returncode == 0
    assert open_run(tmp_path / "killed").digest == open_run(two / "adam").digest


@pytest.mark.slow
def test_interrupted_in_the_validation_of_one_process_the_epoch_is_kept(
    two: Path, nine: Dataset, small_weights: Path, tmp_path: Path
) -> None:
    scenario = {"name": "interrupted", "settings": ADAM}
    ended = launch(nine, small_weights, tmp_path, {**scenario, "interrupt": "validation"})
    assert ended.stderr.count("another process of this training is gone") == 1  # the other one does not wait forever
    assert kept(tmp_path / "interrupted") == (0, 3)
    train(nine.folder, tmp_path / "interrupted", weights=small_weights, **{**SETTINGS, **ADAM})
    assert_close(weights_of(tmp_path / "interrupted"), weights_of(two / "adam"))
