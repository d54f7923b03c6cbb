"""Everything that decides a training, in one frozen record; `recipes/` holds the ones that ship, one per file."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from landmarks.support.errors import UsageError, did_you_mean
from landmarks.training.augment import Augmentation

SHIPPED = ("default", "study")
"""Names of the recipes that ship: files of `landmarks.training.recipes`, each with PRETRAINED and FROM_SCRATCH."""

PRECISIONS = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda", "mps")
OPTIMIZERS = ("adamw", "adam", "rmsprop", "sgd")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training, complete: with the same recipe, data and machine it ends in the same weights."""

    name: str  # of the recipe file it began as
    backbone: str = "resnet50"  # any name that `landmarks networks` knows
    weights: str = "imagenet"  # imagenet (from the Hub), a file, another run's folder, or none: from scratch
    head: str = "study"  # what stands on the trunk
    head_settings: dict[str, Any] = field(default_factory=dict)  # what the head can be told: the cosine head's centres
    image_size: int | None = None  # side of the square picture in pixels; None: what the weights were made for
    seed: int = 0  # of every draw: the head's start, the order, the crops

    # Warm-up: the head alone, on features computed once. Skipped from scratch.
    warmup_epochs: int = 100  # at most, over the cached features
    warmup_patience: int = 10  # epochs without better validation after which the warm-up ends
    warmup_views: int = 1  # pictures of each photograph in the cache: the evaluation picture, then augmented ones
    warmup_batch_size: int = 64
    warmup_learning_rate: float = 1e-3
    warmup_weight_decay: float = 1e-2

    # Fine-tuning: everything.
    epochs: int = 10  # passes over the photographs; 0 keeps what the warm-up reached
    patience: int = 5  # epochs without a better validation accuracy after which it ends
    batch_size: int = 32  # photographs per step, all processes together
    micro_batch: int | None = None  # photographs per pass through the network; None: all of a process at once
    optimizer: str = "adamw"
    learning_rate: float = 1e-3  # of the head; from scratch, of every layer
    trunk_learning_rate: float = 3e-4  # of the trunk's last layer
    first_layer_share: float = 0.2  # of it, for the trunk's first layer; geometric in between, whatever the depth
    weight_decay: float = 0.05  # of matrices and kernels; never of biases and normalisation
    warmup_share: float = 0.1  # of the steps, over which the learning rate climbs
    final_share: float = 0.01  # of the learning rate, which is left at the end of the cosine
    label_smoothing: float = 0.1
    balance: float = 0.0  # loss of a landmark with n photographs is weighted by n ** -balance
    clip: float | None = 1.0  # largest norm of the gradient; None: as it comes
    frozen_statistics: bool = False  # batch normalisation keeps its running statistics
    augmentation: Augmentation = field(default_factory=Augmentation)

    # The machine: these change speed and memory, and the weights only by rounding.
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False  # compile the trunk first: some minutes once, faster steps after
    gradient_checkpointing: bool = False  # keep less on the way forth and compute it again: less memory, slower steps
    workers: int | None = None  # threads that read photographs; None: one per core
    time_limit: float | None = None  # minutes of fine-tuning, in which the cosine then ends
    tracking: str = "auto"  # auto: tensorboard where it is installed; none; or a tracker that accelerate knows

    def __post_init__(self) -> None:
        for name, wrong, expected in _limits(self):
            if wrong:
                raise UsageError(f"the recipe's {name} cannot be used", received=getattr(self, name), expected=expected)
        for name, choices in (("precision", PRECISIONS), ("device", DEVICES), ("optimizer", OPTIMIZERS)):
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(
                    f'no {name} "{value}"', expected=", ".join(choices), way_out=did_you_mean(value, choices)
                )

    @property
    def from_scratch(self) -> bool:
        """Whether nothing is known before: no warm-up, one learning rate."""
        return self.weights == "none"

    def with_learning_rate(self, learning_rate: float) -> Recipe:
        """Return this recipe with another learning rate of the head; the trunk's keeps its ratio to it."""
        trunk = self.trunk_learning_rate * learning_rate / self.learning_rate
        return replace(self, learning_rate=learning_rate, trunk_learning_rate=trunk)

    def record(self) -> dict[str, Any]:
        """Return every field as JSON."""
        return asdict(self)


def _limits(recipe: Recipe) -> list[tuple[str, bool, str]]:
    at_least_one = ("batch_size", "warmup_batch_size", "warmup_views", "patience", "warmup_patience")
    at_least_zero = ("epochs", "warmup_epochs", "weight_decay", "warmup_weight_decay", "balance")
    positive = ("learning_rate", "trunk_learning_rate", "warmup_learning_rate")
    maybe = ("micro_batch", "workers", "image_size")
    return [
        *((name, getattr(recipe, name) < 1, "1 or more") for name in at_least_one),
        *((name, getattr(recipe, name) < 0, "0 or more") for name in at_least_zero),
        *((name, not 0 < getattr(recipe, name) < float("inf"), "more than 0") for name in positive),
        *((name, getattr(recipe, name) is not None and getattr(recipe, name) < 1, "1 or more") for name in maybe),
        ("first_layer_share", not 0 < recipe.first_layer_share <= 1, "more than 0, at most 1"),
        ("label_smoothing", not 0 <= recipe.label_smoothing < 1, "from 0 to below 1"),
        ("warmup_share", not 0 <= recipe.warmup_share < 1, "from 0 to below 1"),
        ("final_share", not 0 <= recipe.final_share <= 1, "from 0 to 1"),
        ("time_limit", recipe.time_limit is not None and recipe.time_limit <= 0, "minutes, more than 0"),
        ("clip", recipe.clip is not None and recipe.clip <= 0, "more than 0"),
    ]


def recipe_named(name: str | Recipe, /, **changes: Any) -> Recipe:
    """Return the shipped recipe `name` (or a given one) with the `changes` that are not None.

    Changes are fields of `Recipe` or of its `Augmentation`. With `weights="none"` the recipe's settings for training
    from scratch are the start. Raises `UsageError` for a name or a setting that does not exist, or a wrong kind.
    """
    changes = {setting: value for setting, value in changes.items() if value is not None}
    for setting, value in changes.items():
        _require_setting(setting, value)
    if "weights" in changes:
        changes["weights"] = str(changes["weights"])
    recipe = name if isinstance(name, Recipe) else _shipped(name, from_scratch=_scratch(changes))
    pictures = {setting: changes.pop(setting) for setting in _kinds(Augmentation) if setting in changes}
    return replace(recipe, augmentation=replace(recipe.augmentation, **pictures), **changes)


def assigned(texts: Sequence[str]) -> dict[str, Any]:
    """Return settings written as `name=value`: numbers, true, false, and anything else as text.

    `head.name=value` is one of the head's own settings, and goes into `head_settings`.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, written = text.partition("=")
        if not equals:
            raise UsageError("a setting cannot be read", received=f'"{text}"', expected="name=value")
        setting, value = name.strip(), _value(written)
        if setting.startswith("head."):
            settings.setdefault("head_settings", {})[setting.removeprefix("head.")] = value
        else:
            _require_setting(setting, value)
            settings[setting] = value
    return settings


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _kinds(record: type[Any]) -> dict[str, tuple[type, ...]]:
    """Return the types that each field of `record` takes, read off its annotation."""
    kinds = {"str": (str, Path), "int": (int,), "float": (int, float), "bool": (bool,), "dict[str, Any]": (dict,)}
    return {
        known.name: kinds[word]
        for known in fields(record)
        if (word := str(known.type).removesuffix(" | None")) in kinds
    }


def _require_setting(setting: str, value: object) -> None:
    known = _kinds(Recipe) | _kinds(Augmentation)
    del known["name"]
    if setting not in known:
        raise UsageError(f'a recipe has no setting "{setting}"', way_out=did_you_mean(setting, known))
    if not isinstance(value, known[setting]) or (isinstance(value, bool) and bool not in known[setting]):
        raise UsageError(
            f"the recipe's {setting} cannot be used", received=repr(value), expected=known[setting][-1].__name__
        )


def _scratch(changes: dict[str, Any]) -> bool:
    if changes.get("backbone") == "baseline" and "weights" not in changes:
        changes["weights"] = "none"  # the study's baseline is only ever trained from scratch
    return str(changes.get("weights")) == "none"


def _shipped(name: str, *, from_scratch: bool) -> Recipe:
    if name not in SHIPPED:
        raise UsageError(f'no recipe "{name}"', expected=" or ".join(SHIPPED), way_out=did_you_mean(name, SHIPPED))
    module = importlib.import_module(f"landmarks.training.recipes.{name}")
    recipe: Recipe = module.FROM_SCRATCH if from_scratch else module.PRETRAINED
    return recipe
