"""A search for the head and its settings on cached features: the backbone runs once, a trial takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import polars as pl
import torch

from landmarks.dataset.manifest import open_dataset
from landmarks.models.heads import HEADS, build_head
from landmarks.models.network import build_network
from landmarks.support.console import note, print_table, progress
from landmarks.support.errors import UsageError, naming_the_extra
from landmarks.support.places import Place, in_shell
from landmarks.training.features import Rows, cached_features, labels_of, positions
from landmarks.training.head_training import train_head
from landmarks.training.limits import Range, require
from landmarks.training.machine import open_machine
from landmarks.training.own_data import check_data
from landmarks.training.recipe import Recipe, recipe_named

TRIALS = {
    "trial": pl.UInt32,  # 0 is the recipe itself
    "val_accuracy": pl.Float64,
    "val_loss": pl.Float64,
    "head": pl.String,
    "head_learning_rate": pl.Float64,
    "head_weight_decay": pl.Float64,
    "head_batch_size": pl.UInt32,
    "label_smoothing": pl.Float64,
}
"""Columns of the table that `tune` returns; the settings are fields of `Recipe`."""


LEARNING_RATES = (1e-4, 1e-2)
WEIGHT_DECAYS = (1e-5, 1.0)
BATCH_SIZES = (32, 64, 128, 256)
SMOOTHINGS = (0.0, 0.2)
"""What is searched: learning rates and weight decays by their logarithm, so that 0 is none of them."""


def tune(
    data: Place, *, recipe: Place | Recipe = "default", trials: int = 30, seed: int = 0, **settings: Any
) -> pl.DataFrame:
    """Search the head and its training settings for the best validation accuracy; return all trials, best first.

    The first trial is the recipe itself; Optuna draws the others from `seed` with a tree-structured Parzen estimator
    (Bergstra et al. 2011). Of equal accuracies the one with the lower validation loss is better. With few validation
    images the best of many trials is partly chance: expect less on a test set. Needs the extra `tune`.
    """
    with naming_the_extra("landmarks tune"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    chosen = recipe_named(recipe, **settings)
    if chosen.from_scratch:
        raise UsageError("there is nothing to tune from scratch", way_out="name pretrained weights with --weights")
    if not chosen.head_epochs:
        raise UsageError(
            "there is nothing to tune without a head training", received="head_epochs 0", expected="1 or more"
        )
    require("the number of trials", trials, Annotated[int, Range(1, 1_000_000)])
    require("the search's seed", seed, Annotated[int, Range(0, 2**32 - 1)])  # the range of numpy's seeds
    dataset = open_dataset(data)
    splits = check_data(dataset)
    machine, _ = open_machine(replace(chosen, tracking="none"), dataset.folder)
    network = build_network(
        chosen.backbone,
        classes=len(dataset.labels),
        weights=chosen.weights,
        image_size=chosen.image_size,
        seed=chosen.seed,
        average_flip=chosen.average_flip,
    ).to(machine.device)
    both = pl.concat([splits.train, splits.val]).sort("image_id")
    features = cached_features(network, dataset, both, machine=machine).values
    train, val = (Rows(features, positions(both, split)) for split in (splits.train, splits.val))
    labels, val_labels = labels_of(splits.train), labels_of(splits.val)
    rows: list[dict[str, Any]] = []

    def objective(trial: Any) -> tuple[float, float]:
        drawn = replace(
            chosen,
            head=trial.suggest_categorical("head", list(HEADS)),
            head_learning_rate=trial.suggest_float("head_learning_rate", *LEARNING_RATES, log=True),
            head_weight_decay=trial.suggest_float("head_weight_decay", *WEIGHT_DECAYS, log=True),
            head_batch_size=trial.suggest_categorical("head_batch_size", BATCH_SIZES),
            label_smoothing=trial.suggest_float("label_smoothing", *SMOOTHINGS),
        )
        candidate = chosen if trial.number == 0 else drawn  # the recipe itself may lie outside of what is searched
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(chosen.seed)
            settings = chosen.head_settings if candidate.head == chosen.head else {}
            network.head = build_head(candidate.head, network.width, network.classes, settings).to(machine.device)
            network.head.adapt(np.bincount(labels, minlength=network.classes))
        trained = train_head(network, [train], labels, val, val_labels, recipe=candidate)
        numbers = {"trial": trial.number, "val_accuracy": trained.val_accuracy, "val_loss": trained.val_loss}
        rows.append(numbers | {name: getattr(candidate, name) for name in TRIALS if name not in numbers})
        return trained.val_accuracy, trained.val_loss

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), directions=["maximize", "minimize"])
    study.enqueue_trial(_nearest_in_the_search(chosen))
    with progress("tuning", trials) as advance:

        def show(study: Any, trial: Any) -> None:
            advance(1, f"best {100 * max(row['val_accuracy'] for row in rows):.1f} % of validation")

        study.optimize(objective, n_trials=trials, callbacks=[show])
    table = pl.DataFrame(rows, schema=TRIALS)
    return table.sort("val_accuracy", "val_loss", "trial", descending=[True, False, False])


def _nearest_in_the_search(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's settings as Optuna can learn from them: those outside of what is searched at its edge."""
    return {
        "head": recipe.head,
        "head_learning_rate": float(np.clip(recipe.head_learning_rate, *LEARNING_RATES)),
        "head_weight_decay": float(np.clip(recipe.head_weight_decay, *WEIGHT_DECAYS)),
        "head_batch_size": min(BATCH_SIZES, key=lambda size: abs(size - recipe.head_batch_size)),
        "label_smoothing": float(np.clip(recipe.label_smoothing, *SMOOTHINGS)),
    }


def print_trials(table: pl.DataFrame, command: Sequence[str]) -> None:
    """Print the ten best trials, and the `command` that trains with the settings of the best one."""
    rows = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in table.head(10).rows()]
    print_table(table.columns, rows)
    best = table.drop("trial", "val_accuracy", "val_loss", "head").row(0, named=True)
    settings = [word for name, value in best.items() for word in ("--set", f"{name}={value:.3g}")]
    best_command = in_shell("landmarks", *command, "--head", table["head"][0], *settings)
    note(f"the best in a training: {best_command}")
