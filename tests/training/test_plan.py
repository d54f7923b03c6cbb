"""The plan against what PyTorch itself counts, and what training then does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from striped import SMALL

from landmarks.cli.main import run as run_command
from landmarks.dataset.manifest import Dataset
from landmarks.models.network import build_network
from landmarks.support.errors import LandmarksError
from landmarks.training import plan as planning
from landmarks.training.loader import batches
from landmarks.training.machine import Machine
from landmarks.training.plan import activation_bytes, plan, print_plan


def test_weights_and_moments_are_counted_exactly(stripes: Dataset) -> None:
    found = plan(stripes.folder, backbone=SMALL, image_size=32, batch_size=8, device="cpu", precision="float32")
    network = build_network(SMALL, classes=3, weights="none", image_size=32)
    trained = sum(parameter.numel() for parameter in network.parameters())
    assert found.optimizer_mb == pytest.approx(3 * 4 * trained / 1e6)
    assert found.cache_mb == pytest.approx(2 * (48 + 18) * network.width / 1e6)
    assert found.images == {"train": 48, "val": 18}
    assert 0 < found.hours["features"] < found.hours["total"]


def test_activations_grow_with_the_images_and_hold_at_least_every_convolution_s_input(
    stripes: Dataset, machine: Machine
) -> None:
    network = build_network("baseline", classes=3, weights="none", image_size=32)

    def kept(count: int) -> int:
        loaded = batches(stripes, stripes.split("train")[:count], network.preprocessing, batch_size=count)
        return activation_bytes(network, next(iter(loaded)), machine)

    assert kept(8) == pytest.approx(2 * kept(4), rel=0.05)
    assert kept(4) >= 4 * 3 * 32 * 32 * 4


def test_from_scratch_there_is_no_cache(stripes: Dataset) -> None:
    found = plan(stripes.folder, backbone="baseline", image_size=32, device="cpu")
    assert found.cache_mb == 0
    assert found.hours["features"] == 0


def test_where_memory_is_short_a_smaller_micro_batch_is_planned(
    stripes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"backbone": SMALL, "image_size": 32, "device": "cpu", "batch_size": 32, "precision": "float32"}
    whole = plan(stripes.folder, **settings)
    scarce = (whole.weights_mb + whole.optimizer_mb + whole.activations_mb / 3) * 1e6
    monkeypatch.setattr(planning, "_free_memory", lambda machine: scarce)
    short = plan(stripes.folder, **settings)
    assert short.micro_batch == 8
    assert short.memory_mb < scarce / 1e6


def test_gradient_checkpointing_is_planned_with_less_memory(stripes: Dataset) -> None:
    settings = {"backbone": "mobilenetv2_100", "image_size": 64, "device": "cpu", "batch_size": 8}
    whole = plan(stripes.folder, **settings)
    short = plan(stripes.folder, gradient_checkpointing=True, **settings)
    assert short.activations_mb < whole.activations_mb / 2
    assert short.weights_mb == whole.weights_mb


def test_of_a_split_head_each_process_counts_its_own_centres(stripes: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"backbone": SMALL, "image_size": 32, "device": "cpu", "batch_size": 8}
    settings |= {"head": "arcface", "head_settings": {"embedding": 16}, "precision": "float32"}
    whole = plan(stripes.folder, **settings)
    monkeypatch.setattr(planning, "numbers_elsewhere", lambda head, recipe, processes: 1 * 16)  # one of three landmarks
    split = plan(stripes.folder, **settings)
    assert whole.optimizer_mb - split.optimizer_mb == pytest.approx(3 * 4 * 16 / 1e6)
    assert (split.weights_mb, split.disk_mb) == (whole.weights_mb, whole.disk_mb)


def test_a_network_that_cannot_fit_is_one_line(stripes: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(*_: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(planning, "activation_bytes", scarce)
    with pytest.raises(LandmarksError, match=r"does not fit into memory.*--image-size"):
        plan(stripes.folder, backbone=SMALL, image_size=32, device="cpu")


def test_the_plan_is_printed_for_people_and_for_programs(stripes: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(stripes.folder, backbone="baseline", image_size=32, device="cpu")
    print_plan(found)
    stdout = capsys.readouterr().out
    assert "images/s" in stdout
    assert "it fits" in stdout
    assert "0.0 min" not in stdout
    assert run_command(["plan", str(stripes.folder), "--backbone", "baseline", "--image-size", "32", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["micro_batch"], record["verdict"][:7]) == (32, "it fits")


def test_a_plan_that_needs_nearly_all_memory_says_so(stripes: Dataset) -> None:
    found = plan(stripes.folder, backbone="baseline", image_size=32, device="cpu")
    tight = replace(found, memory_free_mb=found.memory_mb / 0.9)
    assert "tight" in tight.verdict and "90 %" in tight.verdict
    assert repr(tight).startswith("Plan(images: ") and tight.verdict in repr(tight) and "\n" not in repr(tight)


@pytest.mark.parametrize(
    ("device", "seconds"), [("cpu", 48 / 10 + 48 / 5 + 18 / 10 + 18 / 20), ("card", 48 / 5 + 18 / 10)]
)
def test_reading_counts_and_the_limit_is_named(
    device: str, seconds: float, stripes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rate in (("_loader_rate", 10.0), ("_training_rate", 5.0), ("_backbone_rate", 20.0)):
        monkeypatch.setattr(planning, name, lambda *_, rate=rate: rate)
    original = planning._hours
    shared = device == "cpu"  # on a card the two do not share cores
    monkeypatch.setattr(planning, "_hours", lambda *given, **_: original(*given, shared=shared))
    settings = {"backbone": SMALL, "image_size": 32, "device": "cpu", "batch_size": 8, "precision": "float32"}
    found = plan(stripes.folder, **settings)
    assert found.hours["epoch"] == pytest.approx(seconds / 3600)
    assert found.limit == "step"
    monkeypatch.setattr(planning, "_loader_rate", lambda *_: 4.0)
    assert plan(stripes.folder, **settings).limit == "loader"
