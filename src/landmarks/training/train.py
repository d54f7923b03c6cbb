"""From a dataset and a recipe to a run: warm-up, fine-tuning, and the folder that every later verb reads."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.networks.backbones import pretrained_record
from landmarks.networks.network import Network, build_network
from landmarks.networks.preprocessing import from_pretrained
from landmarks.support.files import held
from landmarks.training.checkpoint import FILE as CHECKPOINT
from landmarks.training.checks import Parts, begin, check_data, check_folder, finished, identity
from landmarks.training.features import Rows, cached_features, labels_of, positions, trunk_digest
from landmarks.training.finetune import State, finetune
from landmarks.training.machine import Machine, open_machine
from landmarks.training.precision import Choice, choose_layout
from landmarks.training.probe import ridge_probe
from landmarks.training.recipe import FROM_RECIPE, FromRecipe, Recipe, recipe_named
from landmarks.training.recompute import checkpoint_gradients
from landmarks.training.record import choices_of, last_sentence, percent, record_of
from landmarks.training.run import RECORD, Run, open_run, write_run
from landmarks.training.seen import seen_in_training
from landmarks.training.warmup import warm_up

PROBE_CLASSES = 20_000
"""With more landmarks than this the closed-form probe would take longer than it is worth."""


def train(
    data: Path | str,
    out: Path | str,
    *,
    recipe: str | Recipe = "default",
    backbone: str | FromRecipe = FROM_RECIPE,
    weights: str | Path | FromRecipe = FROM_RECIPE,
    head: str | FromRecipe = FROM_RECIPE,
    image_size: int | FromRecipe | None = FROM_RECIPE,
    epochs: int | FromRecipe = FROM_RECIPE,
    batch_size: int | FromRecipe = FROM_RECIPE,
    learning_rate: float | FromRecipe = FROM_RECIPE,
    seed: int | FromRecipe = FROM_RECIPE,
    flip: bool | FromRecipe = FROM_RECIPE,
    workers: int | FromRecipe | None = FROM_RECIPE,
    time_limit: float | FromRecipe | None = FROM_RECIPE,
    precision: str | FromRecipe = FROM_RECIPE,
    device: str | FromRecipe = FROM_RECIPE,
    **settings: Any,
) -> Run:
    """Train a network on the dataset folder `data` and return the run written to the folder `out`.

    What is not given comes from the `recipe`; `settings` are any other fields of `Recipe`, and None is one of the
    things that some of them can be (`clip`). `learning_rate` is the head's and moves the trunk's along, unless
    `trunk_learning_rate` is given too; `time_limit` is in minutes of fine-tuning. Called again after a kill it goes on
    to the same weights; called on a finished run it returns that. Raises `UsageError` for unknown names and impossible
    values, and `LandmarksError` for data that cannot be trained on, or a folder that holds something else.
    """
    chosen = recipe_named(
        recipe,
        backbone=backbone,
        weights=weights,
        head=head,
        image_size=image_size,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        flip=flip,
        workers=workers,
        time_limit=time_limit,
        precision=precision,
        device=device,
        **settings,
    )
    size = from_pretrained(pretrained_record(chosen.backbone), chosen.image_size).image_size
    return _train(open_dataset(data), Path(out), replace(chosen, image_size=size))


def _train(dataset: Dataset, out: Path, recipe: Recipe) -> Run:
    parts = check_data(dataset)
    check_folder(out)
    machine, choices = open_machine(recipe, out)
    with held(out) if machine.is_main else contextlib.nullcontext():
        machine.wait()
        wanted = identity(recipe, dataset)
        if (out / RECORD).exists():
            return finished(out, wanted, machine)
        checkpoint = out / "checkpoint"
        for text in parts.notes:
            machine.say(text)
        seen = seen_in_training(parts.train, parts.val, recipe.weights, machine)
        network = build_network(
            recipe.backbone,
            classes=len(dataset.labels),
            head=recipe.head,
            weights=recipe.weights,
            image_size=recipe.image_size,
            seed=recipe.seed,
            head_settings=recipe.head_settings,
        ).to(machine.device)
        network.head.adapt(np.bincount(labels_of(parts.train), minlength=network.classes))
        begin(checkpoint, wanted, trunk_digest(network), machine)
        layout = choose_layout(network)
        if layout.value == "channels last":
            network.to(memory_format=torch.channels_last)
        choices = [*choices, layout, *choices_of(recipe)]
        if recipe.gradient_checkpointing:
            count = checkpoint_gradients(network.trunk)
            choices.append(Choice("gradient checkpointing", f"{count} blocks", "asked for: less memory, slower steps"))
        for choice in choices:
            machine.say(str(choice))

        state = State(micro_batch=recipe.micro_batch or recipe.batch_size)
        if not recipe.from_scratch and not machine.from_main((checkpoint / CHECKPOINT).exists()):
            state = warm_up_from_cache(network, dataset, parts, recipe, machine)
        with tracked(machine, recipe) as watch:
            state = finetune(
                network,
                dataset,
                parts.train,
                parts.val,
                recipe=recipe,
                machine=machine,
                folder=checkpoint,
                state=state,
                watch=watch,
            )
        sentence = ""
        if machine.is_main:
            record = record_of(network, dataset, recipe=recipe, machine=machine, choices=choices, state=state, out=out)
            record |= {"validated_on": len(parts.val), "identity": wanted}
            sentence = last_sentence(out, record)  # whatever may fail comes first: what is written is finished
            write_run(out, network, dataset.labels, state.rows, record, seen=seen)
            shutil.rmtree(checkpoint, ignore_errors=True)  # killed just before this, the next call does it
        machine.wait()
        run = open_run(out)
        machine.say(sentence)
        machine.part()
        return run


def warm_up_from_cache(network: Network, dataset: Dataset, parts: Parts, recipe: Recipe, machine: Machine) -> State:
    """Run phase one: features once, the probe, and the head to convergence; every process gets the main one's head."""
    together = pl.concat([parts.train, parts.val]).sort("id")
    features = [cached_features(network, dataset, together, machine=machine)]
    features += [
        cached_features(
            network, dataset, parts.train, machine=machine, view=view, augment=recipe.augmentation, seed=recipe.seed
        )
        for view in range(1, recipe.warmup_views)
    ]
    state = State(micro_batch=recipe.micro_batch or recipe.batch_size)
    if machine.is_main:
        started = time.monotonic()
        train = Rows(features[0].values, positions(together, parts.train))
        val = Rows(features[0].values, positions(together, parts.val))
        labels, val_labels = labels_of(parts.train), labels_of(parts.val)
        state.earlier = {"features_seconds": sum(view.seconds for view in features)}
        if network.classes <= PROBE_CLASSES:
            probe = ridge_probe(train, labels, val, val_labels, network.classes)
            if probe is None:
                machine.say(f"no linear probe: {train.shape[1]:,} features of {len(train):,} photographs are too many")
            else:
                state.earlier["probe"] = {"val_accuracy": probe.val_accuracy, "penalty": probe.penalty}
                machine.say(f"a linear probe in closed form: {percent(probe.val_accuracy)} of validation")
        if recipe.warmup_epochs:
            views = [train, *(Rows(view.values, np.arange(len(labels))) for view in features[1:])]
            warmed = warm_up(network, views, labels, val, val_labels, recipe=recipe)
            state.rows = warmed.rows
            numbers = {"val_accuracy": warmed.val_accuracy, "val_loss": warmed.val_loss}
            state.best = {"phase": "warmup", "epoch": warmed.epoch, **numbers}
            state.earlier["warmup"] = {**numbers, "epochs": len(warmed.rows)}
            machine.say(
                f"warm-up: {percent(warmed.val_accuracy)} of validation in epoch {warmed.epoch} of {len(warmed.rows)}"
            )
        state.earlier["warmup_seconds"] = time.monotonic() - started
    network.head.load_state_dict(machine.from_main(network.head.state_dict()))
    return State(**machine.from_main(asdict(state)))


@contextlib.contextmanager
def tracked(machine: Machine, recipe: Recipe) -> Iterator[Callable[[State], None]]:
    """Give a function that sends an epoch's numbers to the tracker, TensorBoard or another."""
    accelerator = machine.accelerator
    if accelerator.log_with:
        accelerator.init_trackers("tensorboard" if recipe.tracking == "auto" else recipe.tracking)

    def watch(state: State) -> None:
        if accelerator.log_with:
            row = state.rows[-1]
            accelerator.log({name: value for name, value in row.items() if isinstance(value, float)}, step=row["step"])

    yield watch
    for tracker in accelerator.trackers:  # not end_training(), which would also part the processes
        tracker.finish()
