"""The recipes that ship, and recipes as TOML files, in a run's record, and as a table of settings."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from landmarks.support.errors import UsageError
from landmarks.support.files import read_record
from landmarks.support.systems import decode_text
from landmarks.training.limits import allowed
from landmarks.training.recipe import HEAD_SETTINGS, Augmentation, Recipe, settings

DEFAULT = Recipe(name="default")
"""Head training on cached features, then fine-tuning of the whole network with small learning rates.

    landmarks train DATA -o RUN --backbone mobilenetv2_100 --weights mobilenetv2_100.safetensors --image-size 160 \\
        --epochs 5 --seed SEED

On 2,510 real images of 25 landmarks (group split, two cores, 2026-11-24) seeds 0, 1 and 2 reached 96.6, 95.7 and
95.7 % of 536 validation images, and 94.5 % each of a separate test set of 677; head training alone reached about 92 %
of validation. `python benchmarks/accuracy.py` repeats this, together with `study`, fastai and timm.
"""

INSTANT = Recipe(
    name="instant",
    backbone="tf_efficientnet_lite2",
    head="linear",
    head_solver="discriminant",
    image_size=224,
    head_epochs=0,
    epochs=0,
)
"""The fastest: frozen features and a head in closed form, without a gradient step.

landmarks train DATA -o RUN --recipe instant --weights tf_efficientnet_lite2.safetensors
"""

STUDY = Recipe(
    name="study",
    head_epochs=10,
    head_patience=10,
    head_batch_size=32,
    head_weight_decay=0.0,
    epochs=10,
    patience=10,
    optimizer="adam",
    learning_rate=1e-5,
    backbone_learning_rate=1e-5,
    layer_decay=1.0,
    weight_decay=0.0,
    lr_warmup=0.0,
    min_lr_ratio=1.0,
    label_smoothing=0.0,
    max_grad_norm=None,
    augmentation=Augmentation(crop_scale=0.64, brightness=0.1, contrast=0.1, saturation=0.1),
)
"""The study's training, as far as it is known.

Known: ImageNet weights; global average pooling, dense 512 with ReLU, dense softmax; phase one trains the head alone
for 10 epochs with the backbone frozen; phase two trains everything at a small learning rate; augmentation by random
crops, flips and colours; plain cross-entropy; the baseline and its two convolutions are trained from scratch. Not
known, and set here as in Keras's guide to fine-tuning: Adam with a learning rate of 1e-3 for the head and from scratch
and of 1e-5 for everything, without a schedule, in batches of 32.

    landmarks train DATA -o RUN --recipe study --backbone xception

With `mobilenetv2_100` at 160 pixels and `--epochs 5` it reached 89.6 to 89.9 % of 536 validation images and 87.4
to 88.6 % of a separate test set of 677 (seeds 0, 1 and 2, 2026-11-24, `python benchmarks/accuracy.py`).
"""

PRETRAINED = {recipe.name: recipe for recipe in (DEFAULT, INSTANT, STUDY)}
"""By name, each recipe that ships, for a backbone with pretrained weights."""

FROM_SCRATCH = {
    "default": replace(
        DEFAULT,
        weights="none",
        epochs=30,
        patience=10,
        learning_rate=1e-3,
        augmentation=Augmentation(crop_scale=0.5),
    ),
    "study": replace(STUDY, weights="none", epochs=30, learning_rate=1e-3),
}
"""Their variants for training from scratch. `instant` has none, since features of random weights are useless."""


# ── As TOML files, in a run's record, and as a table ────────────────────────────────────────────────────────────────


COLUMNS = ("setting", "value", "may be", "means")
"""Columns of the rows of `rows_of`."""


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file or in the record of a run; `name` is "default" if it is missing.

    A file has one line per setting; those of the head are in `[head_settings]`. Raises `UsageError` for a file that is
    not a recipe.
    """
    if path.is_dir():
        if not (path / "run.json").is_file():
            what = "is a dataset, and no recipe" if (path / "dataset.json").is_file() else "holds no recipe"
            raise UsageError(f"{path} {what}", expected="a run's folder, or a TOML file")
        recorded = read_record(path / "run.json").get("recipe")
        if not isinstance(recorded, dict):
            raise UsageError(f"{path} holds no recipe", expected="a run's folder, or a TOML file")
        augmentation = recorded.pop("augmentation", {})
        return {"name": "default", **recorded, **(augmentation if isinstance(augmentation, dict) else {})}
    try:
        table = tomllib.loads(decode_text(path.read_bytes()))
    except OSError as error:
        raise UsageError(f"the recipe {path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise UsageError(f"{path} is no recipe ({error})", way_out="landmarks recipe --toml writes one") from error
    return {"name": "default", **table}


def rows_of(recipe: Recipe) -> list[tuple[str, str, str, str]]:
    """Return every setting as (name, value, allowed values, meaning), those of the heads last."""
    values = {name: json.dumps(value) for name, value in recipe.values().items()}
    values |= {f"head.{name}": json.dumps(value) for name, value in recipe.head_settings.items()}
    annotations = settings() | {f"head.{name}": annotation for name, annotation in HEAD_SETTINGS.items()}
    rules = {name: allowed(annotation) for name, annotation in annotations.items()}
    return [(name, values.get(name, ""), str(rule), rule.meaning) for name, rule in rules.items()]


def toml_of(recipe: Recipe) -> str:
    """Return a recipe as the text of a TOML file for `--recipe`; settings that are None are left out."""
    lines, tables = [f"name = {json.dumps(recipe.name)}"], []
    for name, value in recipe.values().items():
        if isinstance(value, dict):
            tables.append((name, value))
        elif value is not None:
            lines.append(f"{name} = {_toml(value)}  # {allowed(settings()[name]).meaning}")
    for name, table in tables:
        lines += [
            "",
            f"[{name}]",
            *(f"{setting} = {_toml(value)}" for setting, value in table.items()),
        ]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Return a value in TOML, which writes numbers, strings and lists as JSON does."""
    return json.dumps(value, ensure_ascii=False)
