"""Choices of device, precision and layout, and their reasons."""

from __future__ import annotations

import pytest
import timm

from landmarks.support.errors import UsageError
from landmarks.training import precision
from landmarks.training.precision import choose_device, choose_layout, choose_precision


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
    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset(flags))
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
