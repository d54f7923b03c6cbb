"""The recipe: every setting of a training in one frozen dataclass; `recipes.py` holds those that ship."""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from landmarks.models import MAX_IMAGE_SIZE, MIN_IMAGE_SIZE
from landmarks.support.console import html_table
from landmarks.support.errors import UsageError, did_you_mean
from landmarks.support.places import Place
from landmarks.training.limits import OneOf, Range, annotations_of, require, require_fields, short_repr

SHIPPED = ("default", "instant", "study")
"""Names of the recipes that ship, see `landmarks.training.recipes`."""

PRECISIONS = ("auto", "float32", "tf32", "bfloat16", "float16")
CACHES = ("none", "decoded")
DEVICES = ("auto", "cpu", "cuda", "mps")
OPTIMIZERS = ("adamw", "adam", "rmsprop", "sgd")
HEAD_SOLVERS = ("gradient", "discriminant")

Count = Annotated[int, Range(1, 1_000_000)]
CountFromZero = Annotated[int, Range(0, 1_000_000)]
Rate = Annotated[float, Range(0, 1000, above=True)]
Decay = Annotated[float, Range(0, 1000)]

HEAD_SETTINGS = {
    "embedding": Annotated[int, Range(0, 8192), "arcface: width of the embedding; 0: the features themselves"],
    "sub_centres": Annotated[int, Range(1, 255), "arcface: centres per landmark"],
    "scale": Annotated[float, Range(0, 1000, above=True), "arcface: factor of the cosines"],
    "margin": Annotated[
        float,
        Range(0, 1.5, unit="radians"),
        "arcface: angular margin of the true landmark, larger for rare ones",
    ],
}
"""Settings of the heads that ship; a custom head checks its other settings itself."""

SETTINGS_OF = {"mlp": (), "linear": (), "arcface": tuple(HEAD_SETTINGS)}
"""Head that ships → its settings."""

SYNONYMS = {
    "learning_rate": "lr base_lr",
    "backbone_learning_rate": "backbone_lr trunk_learning_rate",
    "head_learning_rate": "head_lr",
    "weight_decay": "wd decay",
    "layer_decay": "llrd layerwise_decay first_layer_share",
    "batch_size": "bs batch",
    "micro_batch": "accumulation gradient_accumulation",
    "backbone": "model arch network",
    "weights": "pretrained checkpoint",
    "head": "loss",
    "head=arcface": "arcface cosface",
    "head.margin": "margin",
    "head.scale": "scale",
    "head.embedding": "embedding",
    "head.sub_centres": "sub_centers sub_centres centres",
    "image_size": "img_size imgsz size resolution",
    "epochs": "num_epochs",
    "lr_warmup": "warmup warmup_ratio",
    "average_flip": "tta hflip_test test_time_augmentation",
    "max_grad_norm": "clip clip_grad gradient_clipping",
    "label_smoothing": "smoothing",
    "balance": "class_weight class_weights class_balance balanced",
    "precision": "amp fp16 bf16 mixed_precision",
    "patience": "early_stopping",
    "workers": "num_workers",
    "flip": "hflip horizontal_flip",
    "brightness": "color_jitter",
    "crop_scale": "smallest_crop",
    "seed": "random_state",
    "optimizer": "opt",
    "time_limit": "max_minutes",
}
"""Setting, or the option that has its effect → its names in other programs."""


class FromRecipe(enum.Enum):
    """The type of `FROM_RECIPE`."""

    FROM_RECIPE = "as the recipe has it"


FROM_RECIPE = FromRecipe.FROM_RECIPE
"""The default of a setting that is left out; None is a value that some settings can have."""


@dataclass(frozen=True)
class Augmentation:
    """How strongly training images are augmented."""

    crop_scale: Annotated[float, Range(0.01, 1), "a random crop keeps at least this share of the image's area"] = 0.35
    aspect: Annotated[float, Range(1, 10), "a random crop is at most this much wider or taller than a square"] = 4 / 3
    brightness: Annotated[float, Range(0, 1), "brightness is multiplied by a factor from 1 - x to 1 + x"] = 0.2
    contrast: Annotated[float, Range(0, 1), "contrast likewise"] = 0.2
    saturation: Annotated[float, Range(0, 1), "saturation likewise"] = 0.2
    flip: Annotated[bool, "mirror every second image, left and right"] = True

    def __post_init__(self) -> None:
        require_fields(self, "the recipe's")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training: the same recipe, data and machine give the same weights.

    Each field is defined here once, with its type, limits and meaning; a value outside the limits is a `UsageError`.
    """

    name: Annotated[str, "name of the recipe"]
    backbone: Annotated[str, "the network; `landmarks networks` lists them, and A+B joins two"] = "resnet50"
    weights: Annotated[
        str,
        "where it starts from: imagenet (the Hub), a file, a folder of files, another run, or none: from scratch",
    ] = "imagenet"
    head: Annotated[str, "the classifier on the backbone: mlp, linear or arcface"] = "mlp"
    head_settings: Annotated[dict[str, Any], "settings of the head, as --set head.margin=0.3"] = field(
        default_factory=dict
    )
    image_size: (
        Annotated[
            int,
            Range(MIN_IMAGE_SIZE, MAX_IMAGE_SIZE),
            "side of the square image in pixels; null: what the weights were made for",
        ]
        | None
    ) = None
    average_flip: Annotated[
        bool, "answer by the mean features of an image and its horizontal flip, in twice the time"
    ] = False
    seed: Annotated[
        int, Range(0, 2**63 - 1), "seed of all random numbers: the head's initial weights, the order, the crops"
    ] = 0

    # Head training: the head alone, on features computed once. Skipped from scratch.
    head_solver: Annotated[
        str, OneOf(HEAD_SOLVERS), "how the head is trained; discriminant: in closed form, for the linear head alone"
    ] = "gradient"
    head_epochs: Annotated[CountFromZero, "passes of the head training over the cached features, at most"] = 100
    head_patience: Annotated[Count, "epochs without better validation after which the head training ends"] = 10
    head_views: Annotated[int, Range(1, 1000), "versions of each image in the cache: as evaluated, then augmented"] = 1
    head_batch_size: Annotated[Count, "images per step of the head training"] = 64
    head_learning_rate: Annotated[Rate, "learning rate of the head training"] = 1e-3
    head_weight_decay: Annotated[Decay, "weight decay of the head training"] = 1e-2

    # Fine-tuning: everything.
    epochs: Annotated[CountFromZero, "passes over the images; 0 keeps what the head training reached"] = 10
    patience: Annotated[Count, "epochs without a better validation accuracy after which it ends"] = 5
    batch_size: Annotated[Count, "images per step, all processes together"] = 32
    micro_batch: Annotated[Count, "images per pass through the network; null: all of a process at once"] | None = None
    optimizer: Annotated[str, OneOf(OPTIMIZERS), "optimizer of fine-tuning"] = "adamw"
    learning_rate: Annotated[
        Rate, "learning rate of the head in fine-tuning, the backbone's keeps its ratio; from scratch, of every layer"
    ] = 1e-3
    backbone_learning_rate: Annotated[Rate, "learning rate of the backbone's last layer"] = 3e-4
    layer_decay: Annotated[
        float, Range(0, 1, above=True), "learning rate of each layer relative to the one above it"
    ] = 0.9
    weight_decay: Annotated[Decay, "weight decay, except of biases, normalisation and position embeddings"] = 0.05
    lr_warmup: Annotated[float, Range(0, 1, below=True), "share of the steps over which the learning rate rises"] = 0.1
    min_lr_ratio: Annotated[float, Range(0, 1), "learning rate at the end of the cosine, relative to its peak"] = 0.01
    label_smoothing: Annotated[
        float, Range(0, 1, below=True), "share of the truth that is spread over all landmarks"
    ] = 0.1
    balance: Annotated[
        float,
        Range(0, 2),
        "the loss of a landmark with n images counts n ** -balance; 1 gives every landmark the same weight",
    ] = 0.0
    max_grad_norm: (
        Annotated[float, Range(0, 1_000_000, above=True), "longer gradients are scaled down to this norm; null: none"]
        | None
    ) = 1.0
    freeze_bn: Annotated[bool, "keep the running statistics of batch normalisation"] = False
    augmentation: Augmentation = field(default_factory=Augmentation)

    cache: Annotated[
        str, OneOf(CACHES), "decoded: training images are kept decoded on disk, and crops taken on the device"
    ] = "none"

    # The machine: these change speed and memory, and the weights only by rounding.
    device: Annotated[str, OneOf(DEVICES), "the device; auto: a GPU if there is one"] = "auto"
    precision: Annotated[
        str, OneOf(PRECISIONS), "precision of the computation; auto: the fastest that keeps the results"
    ] = "auto"
    deterministic: Annotated[
        bool, "on CUDA the same bits each time, by slower algorithms; elsewhere they are the same anyway"
    ] = False
    compile: Annotated[bool, "compile the backbone first: some minutes once, faster steps after"] = False
    gradient_checkpointing: Annotated[bool, "recompute activations in the backward pass: less memory, slower steps"] = (
        False
    )
    workers: Annotated[int, Range(1, 1024), "threads that read images; null: one per core"] | None = None
    threads: Annotated[int, Range(1, 1024), "threads that compute on the CPU; null: one per core"] | None = None
    time_limit: (
        Annotated[float, Range(0, 1_000_000, above=True, unit="minutes"), "limit of fine-tuning in minutes; null: none"]
        | None
    ) = None
    tracking: Annotated[str, "auto: tensorboard where it is installed; none; or a tracker that accelerate knows"] = (
        "auto"
    )

    def __post_init__(self) -> None:
        require_fields(self, "the recipe's")
        for setting, value in self.head_settings.items():
            _require_head_setting(setting, value)
            if setting not in SETTINGS_OF.get(self.head, (setting,)):
                possible = SETTINGS_OF[self.head]
                raise UsageError(
                    f'the head {self.head} has no setting "{setting}"',
                    expected=", ".join(possible) or "none",
                    way_out=did_you_mean(setting, possible) or "the head arcface has most: --head arcface",
                )
        if self.head_solver == "discriminant" and self.head != "linear":
            raise UsageError(
                "only the linear head can be solved for in closed form",
                received=f"head {self.head}",
                way_out="choose --head linear, or --set head_solver=gradient",
            )
        solved = self.head_solver == "discriminant"
        if not self.epochs and (self.from_scratch or not (self.head_epochs or solved)):
            raise UsageError(
                "this recipe trains nothing",
                received=f"epochs 0 {'from scratch' if self.from_scratch else 'and head_epochs 0'}",
                expected="epochs of 1 or more" + ("" if self.from_scratch else ", or of the head training"),
            )

    @property
    def from_scratch(self) -> bool:
        """Whether training starts from random weights: no head training, one learning rate."""
        return self.weights == "none"

    def with_learning_rate(self, learning_rate: float) -> Recipe:
        """Return this recipe with another learning rate of the head; the backbone's keeps its ratio to it."""
        backbone = self.backbone_learning_rate * learning_rate / self.learning_rate
        return replace(self, learning_rate=learning_rate, backbone_learning_rate=backbone)

    def record(self) -> dict[str, Any]:
        """Return every field as JSON."""
        return asdict(self)

    def values(self) -> dict[str, Any]:
        """Return the value of every setting, those of the augmentation included."""
        record = self.record()
        return {setting: {**record, **record["augmentation"]}[setting] for setting in settings()}

    def _repr_html_(self) -> str:
        from landmarks.training.recipes import COLUMNS, rows_of

        return html_table(COLUMNS, rows_of(self), f"recipe {self.name}")


def recipe_named(name: Place | Recipe, /, **changes: Any) -> Recipe:
    """Return the recipe `name` with `changes`, ignoring those that are `FROM_RECIPE`.

    `name` is a recipe, or the name of one that ships, a TOML file or a run. Changes are fields of `Recipe` or of its
    `Augmentation`. A `learning_rate` without a `backbone_learning_rate` scales the latter in proportion. With
    `weights="none"` the recipe's variant for training from scratch is used. Raises `UsageError` for a name or a setting
    that does not exist, and for a value that a setting cannot have.
    """
    changes = {setting: value for setting, value in changes.items() if value is not FROM_RECIPE}
    if not isinstance(name, Recipe) and is_file_or_run(name):
        from landmarks.training.recipes import read_recipe

        stored = read_recipe(Path(name))
        name, changes = stored.pop("name"), stored | changes
    if isinstance(changes.get("weights"), os.PathLike):
        changes["weights"] = os.fspath(changes["weights"])
    for setting, value in changes.items():
        _require_setting(setting, value)
    recipe = name if isinstance(name, Recipe) else _shipped(str(name), from_scratch=_begins_from_scratch(changes))
    if "learning_rate" in changes and "backbone_learning_rate" not in changes:
        recipe = recipe.with_learning_rate(changes.pop("learning_rate"))
    augmentation = {setting: changes.pop(setting) for setting in annotations_of(Augmentation) if setting in changes}
    return replace(recipe, augmentation=replace(recipe.augmentation, **augmentation), **changes)


def command_line_settings(options: Mapping[str, Any], texts: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the settings of a command line: `options` that are not None, overridden by the assignments in `texts`."""
    return {option: value for option, value in options.items() if value is not None} | parse_assignments(texts or ())


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Return settings written as `name=value`: numbers, true, false, null, or else text.

    `head.name=value` is a setting of the head, and goes into `head_settings`.
    """
    parsed: dict[str, Any] = {}
    for text in texts:
        name, equals, written = text.partition("=")
        if not equals:
            raise UsageError("a setting cannot be read", received=f'"{text}"', expected="name=value")
        setting, value = name.strip(), _value(written)
        if setting.startswith("head."):
            _require_head_setting(setting.removeprefix("head."), value)
            earlier = parsed.get("head_settings", {})
            parsed["head_settings"] = {**earlier, setting.removeprefix("head."): value}
        else:
            _require_setting(setting, value)
            parsed[setting] = value
    return parsed


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def settings() -> dict[str, Any]:
    """Return the annotation of every setting, those of the augmentation included."""
    fields = {**annotations_of(Recipe), **annotations_of(Augmentation)}
    return {setting: fields[setting] for setting in fields if setting not in ("name", "augmentation")}


def _require_setting(setting: str, value: object) -> None:
    annotations = settings()
    if setting not in annotations:
        raise UsageError(f'a recipe has no setting "{setting}"', way_out=setting_hint(setting))
    require(f"the recipe's {setting}", value, annotations[setting])


def setting_hint(setting: str) -> str:
    """Return a hint for a setting that no recipe has: its name here, a similar one, or how to list all."""
    name = setting.replace("-", "_").casefold()
    ours = next((ours for ours, theirs in SYNONYMS.items() if name in theirs.split()), None)
    hint = f"it is called {ours} here" if ours else did_you_mean(setting, settings())
    return hint or "landmarks recipe lists all"


def _require_head_setting(setting: object, value: object) -> None:
    if not isinstance(setting, str) or not setting.isidentifier():
        raise UsageError("a head's setting has no such name", received=short_repr(setting), expected="a word")
    what = f"the recipe's head.{setting}"
    if setting in HEAD_SETTINGS:
        require(what, value, HEAD_SETTINGS[setting])
    elif isinstance(value, str | bool):
        require(what, value, type(value))
    else:
        require(what, value, Annotated[float, Range(-1e9, 1e9)])


def _begins_from_scratch(changes: dict[str, Any]) -> bool:
    if changes.get("backbone") == "baseline" and "weights" not in changes:
        changes["weights"] = "none"  # the study's baseline is only ever trained from scratch
    return str(changes.get("weights")) == "none"


def is_file_or_run(name: Place) -> bool:
    """Return whether `name` is a TOML file or a run's folder rather than the name of a recipe that ships."""
    return not isinstance(name, str) or name.endswith(".toml") or (name not in SHIPPED and Path(name).is_dir())


def _shipped(name: str, *, from_scratch: bool) -> Recipe:
    if name not in SHIPPED:
        raise UsageError(
            f'no recipe "{name}"',
            expected=f"{', '.join(SHIPPED)}, a TOML file, or a run's folder",
            way_out=did_you_mean(name, SHIPPED),
        )
    from landmarks.training.recipes import FROM_SCRATCH, PRETRAINED

    recipe = (FROM_SCRATCH if from_scratch else PRETRAINED).get(name)
    if recipe is None:
        raise UsageError(
            f'the recipe "{name}" trains no backbone, and cannot begin from scratch',
            way_out="name weights with --weights, or choose --recipe default",
        )
    return recipe


def recipe(name: Place = "default", **changes: Any) -> Recipe:
    """Return a recipe that ships, or that of a TOML file or a run, with `changes`; a notebook shows it as a table.

    `changes` are any fields of `Recipe` or `Augmentation`. Raises `UsageError` for unknown names and impossible values.
    """
    return recipe_named(name, **changes)
