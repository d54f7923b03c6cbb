"""Where a trunk's weights come from: the Hub, a file, another run, or nowhere; and whether they fit."""

from __future__ import annotations

import inspect
import pickle
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from landmarks.networks.backbones import timm_name
from landmarks.support.errors import LandmarksError, UsageError

CHOICES = 'a file (--weights FILE.safetensors), the folder of another run, or "none" to train from scratch'

WRAPPERS = ("state_dict", "model", "state_dict_ema", "model_ema")
"""Names under which training scripts put the weights in a .pth file."""


def load_weights(trunk: nn.Module, backbone: str, weights: str | Path) -> None:
    """Fill `trunk` in place from `weights`: `imagenet`, `none`, a .safetensors or .pth file, or a run's folder.

    Half precision becomes float32. A classifier in the file is left out. Raises `LandmarksError` when the weights
    cannot be had, or when not every parameter of the trunk is in them; then the trunk is untouched.
    """
    if str(weights) == "none":
        return
    if str(weights) == "imagenet":
        tensors = _from_hub(backbone)
        fill(trunk, tensors, backbone, "timm's ImageNet weights")
        return
    path = Path(weights)
    if not path.exists():
        raise UsageError(f'no weights "{weights}"', expected=f'"imagenet", {CHOICES}')
    fill(trunk, read_weights(path), backbone, str(path))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return name → tensor of a .safetensors or .pth file, or of a run's trunk; pickled code is never run."""
    if path.is_dir():
        tensors = _read_file(path / "model.safetensors")
        return {name.removeprefix("trunk."): tensor for name, tensor in tensors.items() if name.startswith("trunk.")}
    return _read_file(path)


def fill(trunk: nn.Module, tensors: dict[str, Tensor], backbone: str, source: str) -> None:
    """Copy `tensors` into `trunk` by name; every tensor of the trunk must be there in its shape."""
    wanted = trunk.state_dict()
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
    if not _fits(tensors, wanted, needed):
        tensors = _renamed(tensors, trunk)
    matched = {name for name in needed if name in tensors and tensors[name].shape == wanted[name].shape}
    if matched != needed:
        missing = sorted(needed - matched)
        raise LandmarksError(
            f"{source} does not fit the network {backbone}",
            received=f"{len(matched)} of its {len(needed)} tensors by name and shape",
            expected=f"all, but {missing[0]}{_shape_of(tensors.get(missing[0]))} does not fit",
            way_out="name the network that these weights were made for",
        )
    kept = {name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items() if name in wanted}
    trunk.load_state_dict(kept, strict=False)


def _fits(tensors: dict[str, Tensor], wanted: dict[str, Tensor], needed: set[str]) -> bool:
    return all(name in tensors and tensors[name].shape == wanted[name].shape for name in needed)


def _shape_of(tensor: Tensor | None) -> str:
    return "" if tensor is None else f" of shape {tuple(tensor.shape)}"


def _renamed(tensors: dict[str, Tensor], trunk: nn.Module) -> dict[str, Tensor]:
    """Return the tensors under timm's own names, for files in their authors' layout or of another image size."""
    renaming = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)
    if renaming is None:
        return tensors
    try:
        arguments = (dict(tensors), trunk)[: min(2, len(inspect.signature(renaming).parameters))]
        return dict(renaming(*arguments))
    except (KeyError, IndexError, RuntimeError, ValueError, AttributeError, AssertionError):
        return tensors  # weights of another network: the caller says how much of them fits


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise LandmarksError(f"there are no weights {path}") from error
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LandmarksError(
            f"{path} cannot be read as weights ({reason})", expected="a .safetensors file, or a .pth of tensors alone"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise LandmarksError(f"{path} holds no weights", expected="names and their tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _from_hub(backbone: str) -> dict[str, Tensor]:
    name = timm_name(backbone)
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the Hub's client raises a dozen kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LandmarksError(
            f"the ImageNet weights of {backbone} could not be fetched from the Hub ({reason})",
            way_out=f"give {CHOICES}",
        ) from error
    return dict(model.state_dict())
