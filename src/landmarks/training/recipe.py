"""Everything that decides a training, in one frozen record; `recipes/` holds the ones that ship, one per file."""

from __future__ import annotations

import enum
import functools
import importlib
import json
import types
import typing
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from landmarks.support.errors import UsageError, did_you_mean

LONGEST = 80
"""Characters of a refused value that are shown."""


@dataclass(frozen=True)
class Within:
    """Limits of a number, which are allowed themselves unless `above` or `below` is set; never NaN or infinite."""

    least: float
    most: float
    above: bool = False  # more than `least`
    below: bool = False  # less than `most`
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        enough = value > self.least if self.above else value >= self.least
        return enough and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        least = f"more than {self.least:,}" if self.above else f"{self.least:,} or more"
        most = f"below {self.most:,}" if self.below else f"at most {self.most:,}"
        return f"{self.unit}, {least}, {most}".removeprefix(", ")


@dataclass(frozen=True)
class OneOf:
    """The words that a setting may be."""

    words: tuple[str, ...]


def require_fields(record: object, what: str) -> None:
    """Raise `UsageError` for the first field of the dataclass `record` that is not what its annotation allows."""
    for name, annotation in annotations_of(type(record)).items():  # type: ignore[arg-type]  # it is a class
        require(f"{what} {name}", getattr(record, name), annotation)


@functools.cache
def annotations_of(kind: type[Any]) -> dict[str, Any]:
    """Return the annotations of the fields of the dataclass `kind`, limits included."""
    return typing.get_type_hints(kind, include_extras=True)


def require(what: str, value: Any, annotation: Any) -> None:
    """Raise `UsageError` unless `value` is of the kind, and within the limits, that `annotation` names."""
    kind, limit, nullable = _parts(annotation)
    if value is None and nullable:
        return
    if isinstance(limit, OneOf) and isinstance(value, str) and value not in limit.words:
        raise UsageError(
            f"{what} cannot be {shown(value)}",
            expected=", ".join(limit.words),
            way_out=did_you_mean(value, limit.words),
        )
    if not _is(value, kind) or (isinstance(limit, Within) and value not in limit):
        limits = f" ({limit})" if isinstance(limit, Within) else " (a line, not empty)" if kind is str else ""
        expected = f"{getattr(kind, '__name__', kind)}{limits}{' or null' if nullable else ''}"
        raise UsageError(f"{what} cannot be used", received=shown(value), expected=expected)


def _parts(annotation: Any) -> tuple[Any, object, bool]:
    """Return kind, limit (None where there is none), and whether None is allowed."""
    nullable = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = (each for each in typing.get_args(annotation) if each is not type(None))
        nullable = True
    if typing.get_origin(annotation) is Annotated:
        kind, limit = typing.get_args(annotation)[:2]
        return kind, limit, nullable
    return annotation, None, nullable


def _is(value: object, kind: Any) -> bool:
    """Whether `value` is of `kind`: a bool is no number, a whole number is a float, a text is one line."""
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str) and value != "" and not any(unicodedata.category(c) == "Cc" for c in value)
    return isinstance(value, typing.get_origin(kind) or kind)


def shown(value: object) -> str:
    """Return `value` as an error shows it: in one short line, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in a list in a list …
        return f"a {type(value).__name__} too long to be shown"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


# Everything that decides a training, in one frozen record; `recipes/` holds the ones that ship, one per file.


SHIPPED = ("default", "instant", "study")
"""Names of the recipes that ship: files of `landmarks.training.recipes`, each with PRETRAINED and FROM_SCRATCH."""

PRECISIONS = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda", "mps")
OPTIMIZERS = ("adamw", "adam", "rmsprop", "sgd")
HEAD_SOLVERS = ("gradient", "ridge")


Count = Annotated[int, Within(1, 1_000_000)]
CountFromZero = Annotated[int, Within(0, 1_000_000)]
Rate = Annotated[float, Within(0, 1000, above=True)]
Decay = Annotated[float, Within(0, 1000)]

HEAD_SETTINGS = {
    "embedding": Annotated[int, Within(0, 8192)],
    "centres": Annotated[int, Within(1, 255)],
    "scale": Annotated[float, Within(0, 1000, above=True)],
    "margin": Annotated[float, Within(0, 1.5, unit="radians")],
}
"""What the settings of the heads that ship may be; a head of one's own checks what else it is told."""


class FromRecipe(enum.Enum):
    """The type of `FROM_RECIPE`."""

    FROM_RECIPE = "as the recipe has it"


FROM_RECIPE = FromRecipe.FROM_RECIPE
"""Stands for a setting that is not given, as None is something that some settings can be."""


@dataclass(frozen=True)
class Augmentation:
    """How far a training image may stray from its image."""

    crop_scale: Annotated[float, Within(0.01, 1)] = 0.35  # of the image's area
    aspect: Annotated[float, Within(1, 10)] = 4 / 3  # a crop is at most this much wider or taller than a square
    brightness: Annotated[float, Within(0, 1)] = 0.2  # factors are drawn from 1 - x … 1 + x
    contrast: Annotated[float, Within(0, 1)] = 0.2
    saturation: Annotated[float, Within(0, 1)] = 0.2
    flip: bool = True  # left and right, every second time

    def __post_init__(self) -> None:
        require_fields(self, "the recipe's")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training, complete: with the same recipe, data and machine it ends in the same weights.

    Every field stands here once, with its kind, its limits and what it means; a value outside is a `UsageError`.
    """

    name: str  # of the recipe file it began as
    backbone: str = "resnet50"  # any name that `landmarks networks` knows
    weights: str = "imagenet"  # imagenet (from the Hub), a file, another run's folder, or none: from scratch
    head: str = "mlp"  # what stands on the backbone
    head_settings: dict[str, Any] = field(default_factory=dict)  # what the head can be told: the arcface head's centres
    image_size: Annotated[int, Within(1, 8192)] | None = None  # in pixels; None: what the weights were made for
    seed: Annotated[int, Within(0, 2**63 - 1)] = 0  # of every draw: the head's start, the order, the crops

    # Head training: the head alone, on features computed once. Skipped from scratch.
    head_solver: Annotated[str, OneOf(HEAD_SOLVERS)] = "gradient"  # ridge: in closed form, for the linear head alone
    head_epochs: CountFromZero = 100  # at most, over the cached features; none where the head is solved for
    head_patience: Count = 10  # epochs without better validation after which the head training ends
    head_views: Annotated[int, Within(1, 1000)] = 1  # of each image in the cache: as evaluated, then augmented
    head_batch_size: Count = 64
    head_learning_rate: Rate = 1e-3
    head_weight_decay: Decay = 1e-2

    # Fine-tuning: everything.
    epochs: CountFromZero = 10  # passes over the images; 0 keeps what the head training reached
    patience: Count = 5  # epochs without a better validation accuracy after which it ends
    batch_size: Count = 32  # images per step, all processes together
    micro_batch: Count | None = None  # images per pass through the network; None: all of a process at once
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "adamw"
    learning_rate: Rate = 1e-3  # of the head; from scratch, of every layer
    backbone_learning_rate: Rate = 3e-4  # of the backbone's last layer
    layer_decay: Annotated[float, Within(0, 1, above=True)] = 0.9  # of it per layer, from the last to the first
    weight_decay: Decay = 0.05  # of matrices and kernels; never of biases, normalisation and positions
    lr_warmup: Annotated[float, Within(0, 1, below=True)] = 0.1  # of the steps, over which the learning rate climbs
    min_lr_ratio: Annotated[float, Within(0, 1)] = 0.01  # of the learning rate, which is left at the end of the cosine
    label_smoothing: Annotated[float, Within(0, 1, below=True)] = 0.1
    balance: Annotated[float, Within(0, 2)] = 0.0  # the loss of a landmark with n images counts n ** -balance
    max_grad_norm: Annotated[float, Within(0, 1_000_000, above=True)] | None = 1.0  # of the gradient; None: any
    freeze_bn: bool = False  # batch normalisation keeps its running statistics
    augmentation: Augmentation = field(default_factory=Augmentation)

    # The machine: these change speed and memory, and the weights only by rounding.
    device: Annotated[str, OneOf(DEVICES)] = "auto"
    precision: Annotated[str, OneOf(PRECISIONS)] = "auto"
    compile: bool = False  # compile the backbone first: some minutes once, faster steps after
    gradient_checkpointing: bool = False  # keep less on the way forth and compute it again: less memory, slower steps
    workers: Annotated[int, Within(1, 1024)] | None = None  # threads that read images; None: one per core
    time_limit: Annotated[float, Within(0, 1_000_000, above=True, unit="minutes")] | None = None  # of fine-tuning
    tracking: str = "auto"  # auto: tensorboard where it is installed; none; or a tracker that accelerate knows

    def __post_init__(self) -> None:
        require_fields(self, "the recipe's")
        for setting, value in self.head_settings.items():
            _require_head_setting(setting, value)
        if self.head_solver == "ridge" and self.head != "linear":
            raise UsageError(
                "only the linear head can be solved for in closed form",
                received=f"head {self.head}",
                way_out="choose --head linear, or --set head_solver=gradient",
            )
        solved = self.head_solver == "ridge"
        if not self.epochs and (self.from_scratch or not (self.head_epochs or solved)):
            raise UsageError(
                "this recipe trains nothing",
                received=f"epochs 0 {'from scratch' if self.from_scratch else 'and head_epochs 0'}",
                expected="epochs of 1 or more" + ("" if self.from_scratch else ", or of the head training"),
            )

    @property
    def from_scratch(self) -> bool:
        """Whether nothing is known before: no head training, one learning rate."""
        return self.weights == "none"

    def with_learning_rate(self, learning_rate: float) -> Recipe:
        """Return this recipe with another learning rate of the head; the backbone's keeps its ratio to it."""
        backbone = self.backbone_learning_rate * learning_rate / self.learning_rate
        return replace(self, learning_rate=learning_rate, backbone_learning_rate=backbone)

    def record(self) -> dict[str, Any]:
        """Return every field as JSON."""
        return asdict(self)


def recipe_named(name: str | Recipe, /, **changes: Any) -> Recipe:
    """Return the shipped recipe `name` (or a given one) with `changes`, but for those that are `FROM_RECIPE`.

    Changes are fields of `Recipe` or of its `Augmentation`. A `learning_rate` given without `backbone_learning_rate`
    moves the latter along. With `weights="none"` the recipe's settings for training from scratch are the start. Raises
    `UsageError` for a name or a setting that does not exist, and for a value that a setting cannot have.
    """
    changes = {setting: value for setting, value in changes.items() if value is not FROM_RECIPE}
    if isinstance(changes.get("weights"), Path):
        changes["weights"] = str(changes["weights"])
    for setting, value in changes.items():
        _require_setting(setting, value)
    recipe = name if isinstance(name, Recipe) else _shipped(name, from_scratch=_scratch(changes))
    if "learning_rate" in changes and "backbone_learning_rate" not in changes:
        recipe = recipe.with_learning_rate(changes.pop("learning_rate"))
    images = {setting: changes.pop(setting) for setting in annotations_of(Augmentation) if setting in changes}
    return replace(recipe, augmentation=replace(recipe.augmentation, **images), **changes)


def given(options: Mapping[str, Any], texts: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what a command line gives: the `options` that are not None, and the settings in `texts`, which win."""
    return {option: value for option, value in options.items() if value is not None} | assigned(texts or ())


def assigned(texts: Sequence[str]) -> dict[str, Any]:
    """Return settings written as `name=value`: numbers, true, false, null, and anything else as text.

    `head.name=value` is one of the head's own settings, and goes into `head_settings`.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, written = text.partition("=")
        if not equals:
            raise UsageError("a setting cannot be read", received=f'"{text}"', expected="name=value")
        setting, value = name.strip(), _value(written)
        if setting.startswith("head."):
            _require_head_setting(setting.removeprefix("head."), value)
            earlier = settings.get("head_settings", {})
            settings["head_settings"] = {**earlier, setting.removeprefix("head."): value}
        else:
            _require_setting(setting, value)
            settings[setting] = value
    return settings


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _settings() -> dict[str, Any]:
    """Return every setting that can be changed, with its annotation."""
    fields = {**annotations_of(Recipe), **annotations_of(Augmentation)}
    return {setting: fields[setting] for setting in fields if setting not in ("name", "augmentation")}


def _require_setting(setting: str, value: object) -> None:
    known = _settings()
    if setting not in known:
        raise UsageError(f'a recipe has no setting "{setting}"', way_out=did_you_mean(setting, known))
    require(f"the recipe's {setting}", value, known[setting])


def _require_head_setting(setting: object, value: object) -> None:
    if not isinstance(setting, str) or not setting.isidentifier():
        raise UsageError("a head's setting has no such name", received=shown(setting), expected="a word")
    what = f"the recipe's head.{setting}"
    if setting in HEAD_SETTINGS:
        require(what, value, HEAD_SETTINGS[setting])
    elif isinstance(value, str | bool):
        require(what, value, type(value))
    else:
        require(what, value, Annotated[float, Within(-1e9, 1e9)])


def _scratch(changes: dict[str, Any]) -> bool:
    if changes.get("backbone") == "baseline" and "weights" not in changes:
        changes["weights"] = "none"  # the study's baseline is only ever trained from scratch
    return str(changes.get("weights")) == "none"


def _shipped(name: str, *, from_scratch: bool) -> Recipe:
    if name not in SHIPPED:
        name = str(name)
        raise UsageError(f'no recipe "{name}"', expected=" or ".join(SHIPPED), way_out=did_you_mean(name, SHIPPED))
    module = importlib.import_module(f"landmarks.training.recipes.{name}")
    recipe: Recipe | None = module.FROM_SCRATCH if from_scratch else module.PRETRAINED
    if recipe is None:
        raise UsageError(
            f'the recipe "{name}" trains no backbone, and cannot begin from scratch',
            way_out="name weights with --weights, or choose --recipe default",
        )
    return recipe
