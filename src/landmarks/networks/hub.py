"""ImageNet weights by name: from timm's place on the Hub, kept in the Hub's cache, or from the address timm states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError

from landmarks.networks.backbones import pretrained_record
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError

FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm's repositories call the weights, the safer first."""


def imagenet_file(backbone: str) -> Path:
    """Return the local file that holds the ImageNet weights of `backbone`, downloaded when it is not cached yet.

    The Hub is asked once before anything is downloaded, so that one out of reach is told at once rather than after a
    minute of retries. Raises `LandmarksError` that names the other choices.
    """
    record = pretrained_record(backbone)
    try:
        if record.get("hf_hub_id"):
            return _from_hub(str(record["hf_hub_id"]), record.get("hf_hub_filename"))
        if record.get("url"):
            return _from_address(str(record["url"]))
    except Exception as error:  # the Hub's client and its HTTP library raise a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LandmarksError(
            f"the ImageNet weights of {backbone} could not be fetched ({reason})", way_out=OTHER_CHOICES
        ) from error
    raise LandmarksError(f"timm knows no weights of {backbone}", way_out=OTHER_CHOICES)


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
