"""A run as a folder for timm and the Hugging Face Hub: `config.json`, `model.safetensors` and a model card.

`timm.create_model("local-dir:FOLDER", pretrained=True)` gives the run's logits. timm's networks end in one dense layer,
so only the head `linear` can be expressed; others are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from landmarks.models.backbones import BASELINE, names_of_parts, pretrained_record, timm_name
from landmarks.models.heads import LinearHead
from landmarks.models.network import Network
from landmarks.models.weights import for_storage
from landmarks.support.errors import LandmarksError
from landmarks.support.files import held, read_record, refuse_foreign, written_whole
from landmarks.training.run import Run

OWN = ("README.md", "config.json", "model.safetensors")
"""The files of such a folder."""

TOLERANCE = 1e-5
"""Largest difference of the folder's logits from the run's, relative to the largest logit."""

MAX_NAMED = 200
"""Most landmarks that are named in the card; `config.json` has all."""


def write_timm_folder(run: Run, record: dict[str, Any], folder: Path) -> float:
    """Write `run`, whose export has the `record`, to `folder` in the Hub's format; return the difference of the logits.

    Raises `LandmarksError` for a head or a network that timm's classifier cannot express, and when the folder does not
    answer like the run; it has no `config.json` then.
    """
    network = run.network()
    model = timm_model(network)
    config = _config(network, [label["name"] for label in record["labels"]])
    card = model_card(run, record)
    refuse_foreign(folder, (), "folder for timm", own=OWN)  # a run has a file of the same name
    with held(folder):
        (folder / "config.json").unlink(missing_ok=True)
        with written_whole(folder / "model.safetensors") as aside:
            save_file(for_storage(model.state_dict()), aside, metadata={"format": "pt"})
        with written_whole(folder / "README.md") as aside:
            aside.write_text(card, encoding="utf-8", newline="\n")
        with written_whole(folder / "config.json") as aside:
            aside.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
        difference = logits_difference(network, folder)
        if not difference <= TOLERANCE:
            (folder / "config.json").unlink()
            raise LandmarksError(
                f"timm does not answer like {run.name} from {folder}",
                received=f"logits that differ by {difference:.2g} of the largest",
                expected=f"at most {TOLERANCE:g}",
            )
    return difference


def timm_model(network: Network) -> nn.Module:
    """Return timm's own network with the weights of `network` and its head as the classifier."""
    name = network.backbone_name
    known_to_timm = name != BASELINE and len(names_of_parts(name)) == 1
    if not known_to_timm or not isinstance(network.head, LinearHead):
        what = f"the head is {network.head_name}" if known_to_timm else f"{name} is no network of timm's"
        raise LandmarksError(
            f"timm has no place for this network: {what}",
            expected="a run of a timm network with --set head=linear",
            way_out="landmarks export RUN -o NAME.onnx holds any head",
        )
    if network.preprocessing.average_flip:
        raise LandmarksError(
            "timm answers an image without its flip, so it would answer otherwise than this run",
            received="average_flip",
            way_out="landmarks export RUN -o NAME.onnx averages both",
        )
    model: nn.Module = timm.create_model(
        timm_name(name), pretrained=False, num_classes=network.classes, **_size(network)
    )
    classifier = model.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear) or classifier.in_features != network.width:
        raise LandmarksError(
            f"the classifier of timm's {name} is not one dense layer on the features",
            way_out="landmarks export RUN -o NAME.onnx holds any network",
        )
    loaded = model.load_state_dict(network.backbone.state_dict(), strict=False)
    of_classifier = {
        f"{path}.{kind}"
        for path, module in model.named_modules()
        if module is classifier
        for kind in ("weight", "bias")
    }
    if loaded.unexpected_keys or set(loaded.missing_keys) != of_classifier:
        raise LandmarksError(f"the weights of timm's {name} have other names with a classifier than without")
    with torch.no_grad():
        classifier.weight.copy_(network.head.output.weight)
        classifier.bias.copy_(network.head.output.bias)
        _keep_epsilons(network.backbone, model)
    return model.eval()


def _keep_epsilons(trained: nn.Module, model: nn.Module) -> None:
    """Add the difference of the run's epsilons and timm's to the running variances; only their sum matters."""
    layers = {path: layer for path, layer in trained.named_modules() if isinstance(layer, _BatchNorm)}
    for path, layer in model.named_modules():
        if path in layers and isinstance(layer, _BatchNorm) and layer.running_var is not None:
            layer.running_var += layers[path].eps - layer.eps


@torch.no_grad()
def logits_difference(network: Network, folder: Path) -> float:
    """Return the largest difference of logits of `folder` and `network`, relative to the largest, on two images."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    size = network.preprocessing.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected, found = network.eval()(images), model(images)
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12))


def _size(network: Network) -> dict[str, Any]:
    fixed = pretrained_record(network.backbone_name).get("fixed_input_size")
    return {"img_size": network.preprocessing.image_size} if fixed else {}


def _config(network: Network, names: list[str]) -> dict[str, Any]:
    record: Mapping[str, Any] = pretrained_record(network.backbone_name)
    preprocessing, size = network.preprocessing, network.preprocessing.image_size
    copied = {key: record[key] for key in ("first_conv", "classifier", "license", "fixed_input_size") if key in record}
    return {
        "architecture": timm_name(network.backbone_name).partition(".")[0],
        "num_classes": network.classes,
        "num_features": network.width,
        "label_names": names,
        **({"model_args": _size(network)} if _size(network) else {}),
        "pretrained_cfg": {
            **copied,
            "num_classes": network.classes,
            "input_size": [3, size, size],
            "pool_size": None,
            "crop_pct": preprocessing.crop,
            "interpolation": preprocessing.interpolation,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        },
    }


# ── The model card: landmarks, accuracy, the sources and licences of the images, and limits ─────────────────────────


def model_card(run: Run, record: dict[str, Any]) -> str:
    """Return the card as Markdown, from the record of an export and the run's metrics."""
    names = [_plain(label["name"]) for label in record["labels"]]
    licence, credits = record["licence"], record["credits"]
    lines = [
        "---",
        "library_name: timm",
        "tags: [image-classification, timm, landmarks]",
        f"license: {json.dumps(licence['weights'] or 'unknown')}",
        "---",
        "",
        f"# {_plain(run.name)}",
        "",
        f"Recognises {len(names)} landmarks in images: {record['backbone']} at {record['image_size']} pixels.",
        "",
        "```python",
        "import timm",
        "",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()   # logits; label_names in config.json',
        "```",
        "",
        f"Divide the logits by {record['temperature']:.4f} before the softmax for calibrated probabilities. "
        "The model alone does not tell other images from landmarks it knows: `landmarks export RUN -o NAME.onnx` "
        "keeps that rule.",
        "",
        "## Numbers",
        "",
        *_numbers(run),
        "",
        "## Data and licences",
        "",
        f"- Weights it started from: {_plain(licence['start']) or 'unknown'}; "
        f"licence {licence['weights'] or 'unknown'}.",
        *_data(credits),
        "",
        "## Limits",
        "",
        "- Every image gets an answer among these landmarks, also one that shows none of them.",
        "- It has seen landmarks as the images of its dataset show them: other seasons, nights, interiors and details "
        "may be answered worse than the numbers say.",
        "- The numbers hold for images like those they were measured on.",
        "",
        "## Landmarks",
        "",
        ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} others" if len(names) > MAX_NAMED else ""),
    ]
    return "\n".join(lines) + "\n"


def _numbers(run: Run) -> list[str]:
    rows = []
    for path in sorted((run.folder / "metrics").glob("*.json")):
        try:
            record = read_record(path)
        except LandmarksError:
            continue
        top1 = record.get("top1")
        if isinstance(top1, dict) and top1.get("value") is not None:
            value, low, high = (100 * top1[key] for key in ("value", "low", "high"))
            rows.append(f"| {_plain(path.stem)} | {record['known']} | {value:.1f} % ({low:.1f} to {high:.1f}) |")
    if not rows:
        return ["Not measured yet (`landmarks evaluate RUN`)."]
    return ["| images of | images | top-1 (95 % interval) |", "| --- | --- | --- |", *rows]


def _data(credits: dict[str, Any]) -> list[str]:
    if "images" not in credits:
        return ["- Whose images it was trained on is not known here: its dataset is not there."]
    licences = ", ".join(f"{_plain(name)} ({count})" for name, count in list(credits["licences"].items())[:20])
    return [
        f"- Trained on {credits['images']} images by {credits['authors_in_all']} authors; licences: {licences}.",
        "- `landmarks credits DATA` lists every author, as many licences ask.",
    ]


def _plain(text: str) -> str:
    """Return untrusted text on one line, with the characters escaped that mean something in Markdown or HTML."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join("".join(f"\\{letter}" if letter in "\\`*_[]<>|#&" else letter for letter in printable).split())
