"""What is computed in is chosen by figures, and choosing leaves no trace in the network."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from landmarks.dataset.manifest import Dataset
from landmarks.models.network import Network, build_network
from landmarks.support.files import read_record
from landmarks.training import finetune as finetuning
from landmarks.training import timing
from landmarks.training.choices import choose_precision
from landmarks.training.machine import Machine
from landmarks.training.recipe import Recipe
from landmarks.training.timing import ComputeFormat, choose_by_timing
from landmarks.training.train import train


@pytest.fixture
def network() -> Network:
    return build_network("test_resnet", classes=3, weights="none", image_size=32)


def timed(monkeypatch: pytest.MonkeyPatch, rates: dict[ComputeFormat, float]) -> list[ComputeFormat]:
    """Let each format have its images per second, without a pass; return the formats that are timed."""
    tried: list[ComputeFormat] = []

    def seconds(network: Network, machine: Machine, layout: str, count: int, limit: float = 0) -> float | None:
        tried.append(ComputeFormat(machine.precision, layout))
        return count / rates[tried[-1]] if tried[-1] in rates else None

    monkeypatch.setattr(timing, "_seconds", seconds)
    return tried


LAST, FIRST = "channels last", "channels first"


@pytest.mark.parametrize(
    ("flags", "bfloat16", "chosen"),
    [
        ({"amx_bf16", "avx512_bf16"}, 15.0, "bfloat16"),
        ({"avx512_bf16"}, 11.0, "bfloat16"),  # the flag's own format stays, where it costs nothing
        ({"avx512_bf16"}, 6.0, "float32"),
        (set(), 1.0, "float32"),
        (set(), 11.0, "float32"),  # a tenth is chance
        (set(), 20.0, "bfloat16"),  # a processor whose flags are not known
    ],
)
def test_the_faster_format_is_chosen_whatever_the_flags_say(
    flags: set[str],
    bfloat16: float,
    chosen: str,
    *,
    network: Network,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("landmarks.training.choices.processor_flags", lambda: frozenset(flags))
    usual = replace(machine, precision=choose_precision("auto", "cpu").value)
    rates = {ComputeFormat("float32", LAST): 10.0, ComputeFormat("bfloat16", LAST): bfloat16}
    timed(monkeypatch, rates | {ComputeFormat("float32", FIRST): 4.0, ComputeFormat("bfloat16", FIRST): 2.0})
    found = choose_by_timing(network, usual, 32)
    assert found.best == ComputeFormat(chosen, LAST)
    precision, layout = found.choices()
    assert (precision.value, layout.value) == (chosen, LAST)
    assert (
        "10 images/s in float32, channels last" in precision.why and f"{bfloat16:.3g} images/s in bf" in precision.why
    )


def test_other_formats_are_timed_in_the_better_layout_alone(
    network: Network, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = timed(
        monkeypatch,
        {
            ComputeFormat("float32", LAST): 10.0,
            ComputeFormat("float32", FIRST): 30.0,
            ComputeFormat("bfloat16", FIRST): 50.0,
        },
    )
    assert choose_by_timing(network, machine, 32).best == ComputeFormat("bfloat16", FIRST)
    assert tried == [ComputeFormat("float32", LAST), ComputeFormat("float32", FIRST), ComputeFormat("bfloat16", FIRST)]
    assert next(network.backbone.parameters()).is_contiguous()


def test_a_small_network_is_timed_with_more_images(
    network: Network, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def seconds(network: Network, machine: Machine, layout: str, count: int, limit: float = 0) -> float:
        counts.append(count)  # two images tell only what the layers cost by themselves: nothing of the format
        return 0.05 + (0.01 if machine.precision == "float32" else 0.02) * (count - 2)

    monkeypatch.setattr(timing, "_seconds", seconds)
    found = choose_by_timing(network, replace(machine, precision="bfloat16"), 32)
    assert found.best.precision == "float32" and counts == [2, 32, 32, 32, 32]
    counts.clear()
    found = choose_by_timing(network, replace(machine, precision="bfloat16"), 16)  # as --set micro_batch=16 says
    assert counts == [2] and "too quick" in found.choices()[0].why


def test_what_takes_an_instant_is_not_compared(
    network: Network, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = timed(monkeypatch, {ComputeFormat("float32", LAST): 1e4})
    found = choose_by_timing(network, machine, 32)
    assert set(tried) == {ComputeFormat("float32", LAST)} == {found.best}
    assert "too quick" in found.choices()[0].why


def test_a_format_that_does_not_fit_into_memory_is_not_chosen(
    network: Network, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, {ComputeFormat("float32", FIRST): 5.0, ComputeFormat("bfloat16", FIRST): 1.0})
    assert choose_by_timing(network, machine, 32).best == ComputeFormat("float32", FIRST)


def test_real_passes_leave_weights_statistics_and_gradients_as_they_were(
    network: Network, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "TOO_QUICK", 0.0)
    before = copy.deepcopy(network.eval()).state_dict()
    found = choose_by_timing(network, machine, 32)
    assert {way.precision for way in found.rates} == {"float32", "bfloat16"} and min(found.rates.values()) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters()) and not network.training


class Killed(BaseException):
    """Stands for a kill."""


def test_a_training_that_goes_on_computes_as_it_began(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        timed(
            patch,
            {
                ComputeFormat("float32", LAST): 10.0,
                ComputeFormat("bfloat16", LAST): 30.0,
                ComputeFormat("float32", FIRST): 1.0,
            },
        )
        patch.setattr(finetuning, "accumulate_gradients", die)
        train(stripes.folder, tmp_path / "run", recipe=small_recipe)
    kept = read_record(tmp_path / "run" / "checkpoint" / "machine.json")["choices"]
    assert [one["value"] for one in kept] == ["bfloat16", LAST]
    tried = timed(monkeypatch, {})
    run = train(stripes.folder, tmp_path / "run", recipe=small_recipe)
    assert tried == []
    assert [one for one in run.record["choices"] if one["what"] in ("precision", "memory layout")] == kept


def test_float16_trains_with_a_scale_that_the_checkpoint_keeps(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Products of matrices: a CPU computes convolutions in float16 more slowly by an order of magnitude.
    backbone, weights = timm.create_model("test_vit", num_classes=0, img_size=32), tmp_path / "vit.safetensors"
    save_file(backbone.state_dict(), weights)
    recipe = replace(
        small_recipe, backbone="test_vit", weights=str(weights), precision="float16", head_learning_rate=1e-6
    )
    whole = train(stripes.folder, tmp_path / "whole", recipe=recipe)
    assert whole.history["train_loss"].is_finite().all()
    monkeypatch.setattr(finetuning, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    original, calls = finetuning.accumulate_gradients, iter(range(1, 100))

    def mortal(*arguments: object) -> object:
        if next(calls) == 6:
            raise Killed
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(finetuning, "accumulate_gradients", mortal)
    with pytest.raises(Killed):
        train(stripes.folder, tmp_path / "run", recipe=recipe)
    assert train(stripes.folder, tmp_path / "run", recipe=recipe).digest == whole.digest
