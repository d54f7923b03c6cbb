"""Checkpoints: one file with everything a training needs to resume, written whole or not at all.

Weights, optimizer moments and the best weights so far are tensors of one safetensors file; everything else is JSON in
its header. There are no random generators to save: every draw is keyed by seed, epoch and image.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from landmarks.models.weights import for_storage
from landmarks.support.errors import LandmarksError
from landmarks.support.files import FORMAT, refuse_other_formats, written_whole

FILE = "state.safetensors"


def save_checkpoint(
    folder: Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, torch.Tensor],
    state: dict[str, Any],
) -> None:
    """Replace the checkpoint in `folder`; a kill at any instant leaves the earlier one or this one, whole."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items() if torch.is_tensor(value)}
    with written_whole(folder / FILE) as aside:
        save_file(for_storage(tensors), aside, metadata={"format": str(FORMAT), "state": json.dumps(state)})


def load_checkpoint(
    folder: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Restore `network` and `optimizer` from the checkpoint in `folder`; return the best weights and the state.

    Returns None when there is no checkpoint. Raises `LandmarksError` when it does not fit the network.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            refuse_other_formats(path, int(metadata["format"]))
            # Copies, since tensors are views into the file, which Windows then would not let be replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        network.load_state_dict(_under("network.", tensors))
    except (SafetensorError, RuntimeError, KeyError, OSError) as error:
        raise _checkpoint_error(path, str(error).splitlines()[0]) from error
    try:
        _load_optimizer(optimizer, _under("optimizer.", tensors))
    except (ValueError, IndexError) as error:
        raise _checkpoint_error(path, str(error)) from error
    return _under("best.", tensors), json.loads(metadata["state"])


def remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a finished training; what a kill leaves, the next call removes."""
    shutil.rmtree(folder, ignore_errors=True)


def copy_of_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of all tensors of `network`, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _checkpoint_error(path: Path, reason: str) -> LandmarksError:
    return LandmarksError(
        f"{path} is damaged or of another network ({reason})",
        way_out=f"delete {path.parent.parent} to start this training anew",
    )


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, _, moment = name.partition(".")
        parameter = parameters[int(index)]
        if value.ndim:  # all but the step count
            if value.shape != parameter.shape:
                raise ValueError(f"{moment} {index} is {tuple(value.shape)}, its weights are {tuple(parameter.shape)}")
            # Moments must have the memory layout of their weights, or a fused optimizer would mix them up.
            value = torch.empty_like(parameter, device="cpu").copy_(value)  # noqa: PLW2901
        state.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
