"""Memory that runs out while images are only looked at: half as many at a time, the same numbers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import timm
import torch

from landmarks.support.errors import UsageError
from landmarks.training.choices import (
    choose_device,
    choose_layout,
    choose_precision,
    cores_used_by_others,
    prepare_for_inference,
)
from landmarks.training.machine import (
    compute_in_parts,
    images_per_process,
    is_out_of_memory,
    open_machine,
    peak_memory_mb,
)
from landmarks.training.recipe import recipe_named


def test_images_pass_in_halves_until_they_fit_and_the_number_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    images, sizes = torch.arange(13.0)[:, None], []

    def compute(some: torch.Tensor) -> torch.Tensor:
        sizes.append(len(some))
        if len(some) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * some

    doubled, at_once = compute_in_parts(compute, images, 32)
    assert torch.equal(doubled, 2 * images)
    assert at_once == 4
    assert sizes == [13, 7, 4, 4, 4, 1]
    assert capsys.readouterr().err.count("out of memory") == 2


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("shapes do not match")])
def test_one_image_that_does_not_fit_and_other_errors_are_raised(error: Exception) -> None:
    def compute(some: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(type(error)):
        compute_in_parts(compute, torch.zeros(3, 1), 3)


@pytest.mark.parametrize(
    "message",
    [
        "MPS backend out of memory (MPS allocated: 17.99 GB, other allocations: 100 KB, max allowed: 18.13 GB).",
        "Invalid buffer size: 24.00 GB",
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to …",
        "[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried to …",
    ],
)
def test_every_devices_words_for_no_memory_are_known(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(ValueError(message))


def test_the_peak_of_memory_is_told_where_the_system_counts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = peak_memory_mb()
    monkeypatch.setitem(sys.modules, "resource", None)
    assert 0 < peak_memory_mb() <= 1.2 * counted  # what is held now is at most the peak, but for what is held since


# ── Choices of device, precision and layout, and their reasons ──────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("flags", "value", "why"),
    [
        ({"avx2", "amx_bf16"}, "bfloat16", "amx_bf16"),
        ({"avx512_bf16"}, "bfloat16", "avx512_bf16"),
        ({"avx2", "avx512f"}, "float32", "neither"),
        (set(), "float32", "neither"),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_computes_it(
    flags: set[str], value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("landmarks.training.choices.processor_flags", lambda: frozenset(flags))
    choice = choose_precision("auto", "cpu")
    assert choice.value == value
    assert why in choice.why


def test_what_is_asked_for_is_taken() -> None:
    assert choose_precision("float32", "cpu").value == "float32"
    assert choose_device("cpu").value == "cpu"


def test_a_device_that_is_not_there_is_named_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match=r"no device cuda; expected .*cpu"):
        choose_device("cuda")


def test_a_device_that_nobody_has_is_named_with_those_there_are() -> None:
    with pytest.raises(UsageError, match='no device "cuda:0"; expected auto, cuda, mps, cpu; did you mean "cuda"'):
        choose_device("cuda:0")


def test_apples_processor_is_the_best_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert choose_device("auto").value == "mps"


@pytest.mark.parametrize(("name", "layout"), [("test_resnet", "channels last"), ("test_vit", "channels first")])
def test_convolutions_get_channels_last(name: str, layout: str) -> None:
    assert choose_layout(timm.create_model(name)).value == layout


def test_a_tracker_that_is_not_installed_is_not_passed_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(UsageError, match=r'"tensorboard", whose package is not installed.*landmarks\[tracking\]'):
        open_machine(recipe_named("default", tracking="tensorboard", device="cpu"), tmp_path)


def test_other_programs_use_no_more_cores_than_there_are() -> None:
    used = cores_used_by_others(0.02)
    assert 0 <= used <= (os.cpu_count() or 1)


def test_batch_normalisation_by_few_images_a_process_is_said_with_the_way_out():
    recipe = recipe_named("default", batch_size=64)
    assert images_per_process(recipe, 4) == "each sees its share of every 64 images"
    few = images_per_process(recipe, 8)
    assert "goes by 8 images at a time" in few and "--batch-size 128 or --set freeze_bn=true" in few
    assert "batch normalisation" not in images_per_process(recipe_named("default", batch_size=64, freeze_bn=True), 8)


def test_answers_are_computed_in_tf32_on_an_nvidia_card_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = torch.get_float32_matmul_precision()
    try:
        prepare_for_inference(torch.device("cpu"))
        assert torch.get_float32_matmul_precision() == before and not torch.backends.cudnn.allow_tf32
        prepare_for_inference(torch.device("cuda"))
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
