"""What every test of training uses: a striped dataset, weights, a recipe, a machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from striped import SMALL, make_dataset

from landmarks.dataset.manifest import Dataset
from landmarks.training.machine import Machine
from landmarks.training.recipe import Recipe, recipe_named


@pytest.fixture(scope="session")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("stripes"))


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the smallest ResNet that timm has, drawn from a seed: stands for pretrained ones."""
    torch.manual_seed(0)
    backbone = timm.create_model(SMALL, pretrained=False, num_classes=0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}, path)
    return path


@pytest.fixture(scope="session")
def small_recipe(small_weights: Path) -> Recipe:
    return recipe_named(
        "default",
        backbone=SMALL,
        weights=small_weights,
        image_size=32,
        epochs=2,
        batch_size=12,
        head_epochs=5,
        tracking="none",
        workers=2,
        device="cpu",
    )


@pytest.fixture(scope="session")
def machine() -> Machine:
    return Machine(Accelerator(cpu=True), workers=2)
