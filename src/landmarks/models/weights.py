"""Loading a backbone's weights from the Hub, a file or another run."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landmarks.models.backbones import BASELINE, FRIENDLY, JoinedBackbone, names_of_parts, pretrained_record, timm_name
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import read_record

WRAPPERS = ("state_dict", "model", "state_dict_ema", "model_ema")
"""Keys under which training scripts store the weights in a .pth file."""


def load_weights(backbone: nn.Module, backbone_name: str, weights: str | Path) -> None:
    """Fill `backbone` in place from `weights`.

    They are `imagenet`, `none`, a .safetensors or .pth file, a run's folder, or a folder of files that are called like
    networks. Half precision becomes float32, and a classifier in the file is ignored. Raises `LandmarksError` when the
    weights are unavailable or lack a parameter of the backbone, which is then left untouched, but for those of joined
    networks that came before.
    """
    if str(weights) == "none":
        return
    is_run = (Path(weights) / "model.json").is_file()
    if isinstance(backbone, JoinedBackbone) and not is_run:
        if Path(weights).is_file():
            raise UsageError(
                "a file holds the weights of one network", received=f"{weights} for {backbone_name}",
                expected='"imagenet", "none", a run\'s folder, or a folder with a file for each, NAME.safetensors',
            )  # fmt: skip
        for part, name in zip(backbone.parts, backbone.names, strict=True):
            load_weights(part, name, weights)
        return
    path = Path(weights) if is_run else _weights_file(weights, backbone_name)
    _fill(backbone, read_weights(path), backbone_name, str(path))
    if is_run:
        epsilon = read_record(path / "model.json").get("batch_norm_epsilon")
        if not is_epsilon(epsilon, len(names_of_parts(backbone_name))):
            raise LandmarksError(
                f"{path} tells of an impossible network", received=f"batch_norm_epsilon {epsilon!r:.50}"
            )
        set_epsilon(backbone, epsilon)
    elif backbone_name != BASELINE:
        _restore_epsilon(backbone, backbone_name, path)


def _weights_file(weights: str | Path, backbone_name: str) -> Path:
    """Return the file of what is named as a network's weights: `imagenet`, a file, or a folder of files."""
    if str(weights) == "imagenet":
        if backbone_name == BASELINE:
            raise UsageError("baseline has no ImageNet weights", way_out='train it from scratch: weights "none"')
        return imagenet_file(backbone_name)
    path = Path(weights)
    if not path.exists():
        raise UsageError(f'no weights "{weights}"', way_out=f'name "imagenet", or {OTHER_CHOICES}')
    return _file_in(path, backbone_name) if path.is_dir() else path


def _file_in(folder: Path, backbone_name: str) -> Path:
    """Return the file in a folder of weights that is called like the network, in our words or in timm's."""
    names = dict.fromkeys((backbone_name, FRIENDLY.get(backbone_name, backbone_name)))
    paths = [folder / f"{name}{suffix}" for name in names for suffix in (".safetensors", ".pth")]
    for path in paths:
        if path.is_file():
            return path
    raise UsageError(
        f"{folder} is no finished run, and holds no weights of {backbone_name}",
        expected=" or ".join(path.name for path in paths),
        way_out=f'name "imagenet", or {OTHER_CHOICES}',
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return name → tensor of a .safetensors or .pth file, or of a run's backbone; no pickled code is executed."""
    if path.is_dir():
        tensors = _read_file(path / "model.safetensors")
        return {
            name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if name.startswith("backbone.")
        }
    return _read_file(path)


def for_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` as safetensors requires them: on the CPU, contiguous, and without shared memory.

    Some networks (CoaT) use one layer in several places, so that several names share its weights.
    """
    stored: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in tensors.items():
        contiguous = tensor.detach().cpu().contiguous()
        address = contiguous.untyped_storage().data_ptr()
        stored[name] = contiguous.clone() if address in addresses else contiguous
        addresses.add(address)
    return stored


def _fill(backbone: nn.Module, tensors: dict[str, Tensor], backbone_name: str, source: str) -> None:
    wanted = backbone.state_dict()
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
    if _matched(tensors, wanted, needed) != needed:
        tensors = _with_shared_names(_renamed(tensors, backbone), wanted)
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


def _with_shared_names(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` under every name that shares their memory in the backbone; a file may hold only one of them."""
    by_address: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        if name in wanted:
            by_address.setdefault(wanted[name].data_ptr(), tensor)
    shared = {name: by_address[tensor.data_ptr()] for name, tensor in wanted.items() if tensor.data_ptr() in by_address}
    return shared | tensors


def _renamed(tensors: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Return the tensors under timm's names, for files in their authors' format or made for another image size."""
    renaming = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if renaming is None:
        return tensors
    try:
        arguments = (dict(tensors), backbone)[: min(2, len(inspect.signature(renaming).parameters))]
        return dict(renaming(*arguments))
    except (KeyError, IndexError, RuntimeError, ValueError, AttributeError, AssertionError):
        return tensors  # weights of another network: the caller reports how many of them fit


def _restore_epsilon(backbone: nn.Module, backbone_name: str, path: Path) -> None:
    epsilon = TRAINED_EPSILON.get(timm_name(backbone_name).partition(".")[0])
    if epsilon is not None and is_folded(backbone, epsilon):
        unfold_epsilon(backbone, epsilon)
        note(
            f"{backbone_name}: the running variances in {path.name} are as if its epsilon of {epsilon:g} had been "
            "added to them; it is taken out again and set in the layers (the same answers, and right when fine-tuned)"
        )


READING_ERRORS = (OSError, SafetensorError, RuntimeError, EOFError, ValueError)
"""Errors whose messages say what is wrong with a file of weights."""


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are not PyTorch's; the error below is clearer
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise LandmarksError(f"there are no weights {path}") from error
    except Exception as error:  # reading any other file as a pickle raises whatever its bytes lead to
        reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        if not isinstance(error, READING_ERRORS):  # among them UnpicklingError, which advises to allow arbitrary code
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


# ── ImageNet weights by name: from timm's repository on the Hub, or from the address that timm states ───────────────


FILES = ("model.safetensors", "pytorch_model.bin")
"""File names of the weights in timm's repositories, the safer one first."""


def imagenet_file(backbone_name: str) -> Path:
    """Return the local file with the ImageNet weights of a backbone, downloaded unless it is cached.

    One request precedes the download, so that an unreachable Hub is reported at once rather than after a minute of
    retries. Raises `LandmarksError` that names the other choices.
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


OTHER_CHOICES = (
    "give a file (--weights FILE.safetensors), a folder with a file for each network, the folder of another run, or "
    '"none" to train from scratch'
)


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
    """Download into torch's cache, which timm also uses, and check the digest in the file's name."""
    name = address.rpartition("/")[2]
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not target.exists():
        note(f"downloading {address}")
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = name.partition(".")[0].rpartition("-")[2]
        torch.hub.download_url_to_file(address, str(target), digest if _hexadecimal(digest) else None, progress=False)
    return target


def _hexadecimal(text: str) -> bool:
    return len(text) >= 8 and all(letter in "0123456789abcdef" for letter in text)


# ── The epsilon of batch normalisation, for weights whose epsilon was folded into their running variances ───────────
#
# A network trained with ε = 1e-3 and run with ε = 1e-5 gives the same answers when 0.00099 is added to every running
# variance, since evaluation uses only their sum. Fine-tuning, however, replaces the variances by measured ones without
# that addition, so the normalisation would shift. Subtracting it again and setting ε to the value of the original
# training gives the same answers in evaluation mode and is right in training mode.


TRAINED_EPSILON = {"legacy_xception": 1e-3}
"""timm's name → the epsilon that its ImageNet weights were trained with, if timm builds the network with another."""


Epsilon: TypeAlias = "float | list[Epsilon] | None"
"""The epsilon of all batch normalisations; None if they differ or there are none; of joined networks a list."""


def epsilon_of(backbone: nn.Module) -> Epsilon:
    """Return the epsilon of `backbone`."""
    if isinstance(backbone, JoinedBackbone):
        return [epsilon_of(part) for part in backbone.parts]
    values = {layer.eps for layer in backbone.modules() if isinstance(layer, _BatchNorm)}
    return values.pop() if len(values) == 1 else None


def set_epsilon(backbone: nn.Module, epsilon: Epsilon) -> None:
    """Set what `epsilon_of` returned, in place; None changes nothing."""
    if isinstance(epsilon, list):
        assert isinstance(backbone, JoinedBackbone)
        for part, own in zip(backbone.parts, epsilon, strict=True):
            set_epsilon(part, own)
    elif epsilon is not None:
        for layer in backbone.modules():
            if isinstance(layer, _BatchNorm):
                layer.eps = epsilon


def is_epsilon(value: object, parts: int) -> bool:
    """Return whether a record's value can be the epsilon of a backbone that joins so many `parts` (1: joins none)."""
    if parts > 1:
        return isinstance(value, list) and len(value) == parts and all(is_epsilon(each, 1) for each in value)
    return value is None or (isinstance(value, float) and 0 < value < 1)


def is_folded(backbone: nn.Module, epsilon: float) -> bool:
    """Return whether every running variance is at least the difference between `epsilon` and the layer's epsilon.

    That is necessary but not sufficient; unfolding is exact in evaluation mode in any case.
    """
    layers = [layer for layer in backbone.modules() if isinstance(layer, _BatchNorm)]
    return bool(layers) and all(
        layer.running_var is not None and float(layer.running_var.min()) >= epsilon - layer.eps > 0 for layer in layers
    )


def unfold_epsilon(backbone: nn.Module, epsilon: float) -> None:
    """Set every epsilon in `backbone` to `epsilon` and subtract the difference from the running variances, in place.

    The answers in evaluation mode stay the same. Raises `LandmarksError` when a variance is smaller than the
    difference, because then nothing was folded in.
    """
    if not is_folded(backbone, epsilon):
        raise LandmarksError(f"no epsilon of {epsilon:g} was folded into these running variances")
    for layer in backbone.modules():
        if isinstance(layer, _BatchNorm) and layer.running_var is not None:
            layer.running_var -= epsilon - layer.eps
            layer.eps = epsilon
