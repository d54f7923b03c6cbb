"""Where a backbone's weights come from: the Hub, a file, another run, or nowhere; and whether they fit."""

from __future__ import annotations

import inspect
import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landmarks.models.backbones import BASELINE, pretrained_record, timm_name
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import read_record

WRAPPERS = ("state_dict", "model", "state_dict_ema", "model_ema")
"""Names under which training scripts put the weights in a .pth file."""


def load_weights(backbone: nn.Module, backbone_name: str, weights: str | Path) -> None:
    """Fill `backbone` in place from `weights`: `imagenet`, `none`, a .safetensors or .pth file, or a run's folder.

    Half precision becomes float32. A classifier in the file is left out. Raises `LandmarksError` when the weights
    cannot be had, or when not every parameter of the backbone is in them; then the backbone is untouched.
    """
    if str(weights) == "none":
        return
    if str(weights) == "imagenet":
        if backbone_name == BASELINE:
            raise UsageError("baseline has no ImageNet weights", way_out='train it from scratch: weights "none"')
        path = imagenet_file(backbone_name)
    else:
        path = Path(weights)
    if not path.exists():
        raise UsageError(f'no weights "{weights}"', way_out=f'name "imagenet", or {OTHER_CHOICES}')
    _fill(backbone, read_weights(path), backbone_name, str(path))
    if path.is_dir():
        epsilon = read_record(path / "model.json").get("batch_norm_epsilon")
        if epsilon is not None:
            set_epsilon(backbone, float(epsilon))
    elif backbone_name != BASELINE:
        _restore_epsilon(backbone, backbone_name, path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return name → tensor of a .safetensors or .pth file, or of a run's backbone; pickled code is never run."""
    if path.is_dir():
        tensors = _read_file(path / "model.safetensors")
        return {
            name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if name.startswith("backbone.")
        }
    return _read_file(path)


def for_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` as a file can hold them: on the processor, each whole and with memory of its own.

    Some networks (CoaT) use one layer in several places, and know its weights under several names.
    """
    stored: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        place = whole.untyped_storage().data_ptr()
        stored[name] = whole.clone() if place in places else whole
        places.add(place)
    return stored


def _fill(backbone: nn.Module, tensors: dict[str, Tensor], backbone_name: str, source: str) -> None:
    wanted = backbone.state_dict()
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
    if _matched(tensors, wanted, needed) != needed:
        tensors = _with_namesakes(_renamed(tensors, backbone), wanted)
    matched = _matched(tensors, wanted, needed)
    if matched != needed:
        first = sorted(needed - matched)[0]
        why = f"has the shape {tuple(tensors[first].shape)}" if first in tensors else "is not there"
        raise LandmarksError(
            f"{source} does not fit the network {backbone_name}",
            received=f"{len(matched)} of its {len(needed)} tensors by name and shape",
            expected=f"all of them, but {first} {why}",
            way_out="name the network that these weights were made for",
        )
    backbone.load_state_dict({name: tensors[name].to(wanted[name].dtype) for name in wanted if name in tensors}, False)


def _matched(tensors: dict[str, Tensor], wanted: dict[str, Tensor], needed: set[str]) -> set[str]:
    return {name for name in needed if name in tensors and tensors[name].shape == wanted[name].shape}


def _with_namesakes(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` under every name that the backbone has for the same memory; a file may hold one of them only."""
    by_place: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        if name in wanted:
            by_place.setdefault(wanted[name].data_ptr(), tensor)
    others = {name: by_place[tensor.data_ptr()] for name, tensor in wanted.items() if tensor.data_ptr() in by_place}
    return others | tensors


def _renamed(tensors: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Return the tensors under timm's own names, for files in their authors' layout or made for another image size."""
    renaming = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if renaming is None:
        return tensors
    try:
        arguments = (dict(tensors), backbone)[: min(2, len(inspect.signature(renaming).parameters))]
        return dict(renaming(*arguments))
    except (KeyError, IndexError, RuntimeError, ValueError, AttributeError, AssertionError):
        return tensors  # weights of another network: the caller says how much of them fits


def _restore_epsilon(backbone: nn.Module, backbone_name: str, path: Path) -> None:
    epsilon = TRAINED_WITH.get(timm_name(backbone_name).partition(".")[0])
    if epsilon is not None and is_folded(backbone, epsilon):
        unfold_epsilon(backbone, epsilon)
        note(
            f"{backbone_name}: the running variances in {path.name} are as if its epsilon of {epsilon:g} had been "
            f"added to "
            "them; it is taken out again and set in the layers (the same answers, and right when fine-tuned)"
        )


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are not torch's: the error below says it better
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise LandmarksError(f"there are no weights {path}") from error
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # whose words advise to run what the file says
            reason = "it is no file of PyTorch's, or holds more than tensors"
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


# ImageNet weights by name: from timm's place on the Hub, kept in the Hub's cache, or from the address timm states.


FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm's repositories call the weights, the safer first."""


def imagenet_file(backbone_name: str) -> Path:
    """Return the local file that holds the ImageNet weights of `backbone`, downloaded when it is not cached yet.

    The Hub is asked once before anything is downloaded, so that one out of reach is told at once rather than after a
    minute of retries. Raises `LandmarksError` that names the other choices.
    """
    record = pretrained_record(backbone_name)
    try:
        if record.get("hf_hub_id"):
            return _from_hub(str(record["hf_hub_id"]), record.get("hf_hub_filename"))
        if record.get("url"):
            return _from_address(str(record["url"]))
    except Exception as error:  # the Hub's client and its HTTP library raise a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LandmarksError(
            f"the ImageNet weights of {backbone_name} could not be fetched ({reason})", way_out=OTHER_CHOICES
        ) from error
    raise LandmarksError(f"timm knows no weights of {backbone_name}", way_out=OTHER_CHOICES)


OTHER_CHOICES = 'give a file (--weights FILE.safetensors), the folder of another run, or "none" to train from scratch'


def _from_hub(repository: str, file: Any) -> Path:
    repository, _, revision = repository.partition("@")
    version = revision or None
    files = (str(file),) if file else FILES
    for name in files:
        cached = try_to_load_from_cache(repository, name, revision=version)
        if isinstance(cached, str):
            return Path(cached)
    for name in files:
        try:
            found = get_hf_file_metadata(hf_hub_url(repository, name, revision=version))
        except EntryNotFoundError:
            continue
        note(f"downloading {repository}/{name} from the Hub, {(found.size or 0) / 1e6:.0f} MB")
        return Path(hf_hub_download(repository, name, revision=version))
    raise FileNotFoundError(f"{repository} holds none of {', '.join(files)}")


def _from_address(address: str) -> Path:
    """Download into torch's cache, where timm looks too; the digest that stands in the file's name is checked."""
    name = address.rpartition("/")[2]
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not target.exists():
        note(f"downloading {address}")
        target.parent.mkdir(parents=True, exist_ok=True)
        stated = name.partition(".")[0].rpartition("-")[2]
        torch.hub.download_url_to_file(address, str(target), stated if _hexadecimal(stated) else None, progress=False)
    return target


def _hexadecimal(text: str) -> bool:
    return len(text) >= 8 and all(letter in "0123456789abcdef" for letter in text)


# ── The epsilon of batch normalisation, for weights whose epsilon was folded into their running variances ───────────
#
# A network trained with ε = 1e-3 and run with ε = 1e-5 gives the same answers when 0.00099 is added to every running
# variance, since evaluation only uses their sum. Fine-tuning however replaces the variances by measured ones, which
# hold no such addition, so the normalisation would shift. Taking the addition out again and setting ε to what the
# network was trained with is the same in evaluation mode and right in training mode.


TRAINED_WITH = {"legacy_xception": 1e-3}
"""timm's name → the epsilon its ImageNet weights were trained with, where timm builds the network with another one."""


def epsilon_of(backbone: nn.Module) -> float | None:
    """Return the epsilon that all batch normalisations of `backbone` share, or None when there is no such number."""
    values = {layer.eps for layer in backbone.modules() if isinstance(layer, _BatchNorm)}
    return values.pop() if len(values) == 1 else None


def set_epsilon(backbone: nn.Module, epsilon: float) -> None:
    """Set the epsilon of every batch normalisation in `backbone`, in place."""
    for layer in backbone.modules():
        if isinstance(layer, _BatchNorm):
            layer.eps = epsilon


def is_folded(backbone: nn.Module, epsilon: float) -> bool:
    """Return whether every running variance is large enough to hold the difference between `epsilon` and the layer's.

    That is a necessary sign, not a proof; unfolding is exact in evaluation mode either way.
    """
    layers = [layer for layer in backbone.modules() if isinstance(layer, _BatchNorm)]
    return bool(layers) and all(
        layer.running_var is not None and float(layer.running_var.min()) >= epsilon - layer.eps > 0 for layer in layers
    )


def unfold_epsilon(backbone: nn.Module, epsilon: float) -> None:
    """Set every epsilon in `backbone` to `epsilon` and subtract the difference from the running variances, in place.

    The answers in evaluation mode stay the same. Raises `LandmarksError` when a variance is smaller than the
    difference: then nothing was folded in.
    """
    if not is_folded(backbone, epsilon):
        raise LandmarksError(f"no epsilon of {epsilon:g} was folded into these running variances")
    for layer in backbone.modules():
        if isinstance(layer, _BatchNorm) and layer.running_var is not None:
            layer.running_var -= epsilon - layer.eps
            layer.eps = epsilon
