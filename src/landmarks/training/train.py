"""Train a run from a dataset and a recipe: head training, fine-tuning, and the folder that later verbs read."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.shards import require_images
from landmarks.models.backbones import pretrained_record
from landmarks.models.network import Network, build_network
from landmarks.models.preprocessing import from_pretrained
from landmarks.models.rewriting import enable_gradient_checkpointing
from landmarks.support.files import held, read_record, write_record
from landmarks.support.places import Place, in_shell
from landmarks.training.checkpoint import FILE as CHECKPOINT
from landmarks.training.checkpoint import Best, HeadResult, PhaseOne, State, remove_checkpoint
from landmarks.training.choices import Choice, choose_layout
from landmarks.training.features import Rows, backbone_digest, cached_features, labels_of, positions
from landmarks.training.finetune import finetune
from landmarks.training.head_training import solve_head, train_head
from landmarks.training.machine import Machine, benchmark_convolutions, open_machine, with_readers
from landmarks.training.own_data import TrainingImages, check_data, seen_in_training
from landmarks.training.recipe import FROM_RECIPE, FromRecipe, Recipe, recipe_named
from landmarks.training.record import (
    check_folder,
    finished_run,
    identity,
    percent,
    recipe_choices,
    record_start,
    result_sentence,
    run_record,
)
from landmarks.training.ridge import ridge_probe
from landmarks.training.run import RECORD, Epoch, Run, open_run, write_run
from landmarks.training.split_head import is_split, split_choice
from landmarks.training.timing import LAYOUTS, choose_by_timing

MACHINE = "machine.json"
"""In `checkpoint/`: the number format and memory layout chosen for this training."""

PROBE_CLASSES = 20_000
"""Landmarks beyond which the closed-form probe takes longer than it is worth."""


def train(
    data: Place,
    out: Place,
    *,
    recipe: Place | Recipe = "default",
    backbone: str | FromRecipe = FROM_RECIPE,
    weights: Place | FromRecipe = FROM_RECIPE,
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
    cache: str | FromRecipe = FROM_RECIPE,
    deterministic: bool | FromRecipe = FROM_RECIPE,
    **settings: Any,
) -> Run:
    """Train a network on the dataset folder `data` and return the run written to the folder `out`.

    Settings that are left out come from the `recipe`. `settings` are any other fields of `Recipe`; None is a valid
    value of some (`max_grad_norm`). `learning_rate` is that of the head and scales the backbone's in proportion, unless
    `backbone_learning_rate` is set too. `time_limit` is in minutes of fine-tuning. Called again after a kill, it
    resumes and reaches the same weights; called on a finished run, it returns that run.

    Raises `UsageError` for unknown names and impossible values, and `LandmarksError` for data that cannot be trained
    on, or a folder that holds something else.
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
        cache=cache,
        deterministic=deterministic,
        **settings,
    )
    size = from_pretrained(pretrained_record(chosen.backbone), chosen.image_size).image_size
    return _train(open_dataset(data), Path(out), replace(chosen, image_size=size))


def _train(dataset: Dataset, out: Path, recipe: Recipe) -> Run:
    splits = check_data(dataset)
    check_folder(out)
    machine, choices = open_machine(recipe, out)
    with held(out) if machine.is_main else contextlib.nullcontext(), contextlib.ExitStack() as stack:
        machine.wait()
        wanted = identity(recipe, dataset)
        if (out / RECORD).exists():
            return finished_run(out, wanted, machine)
        checkpoint = out / "checkpoint"
        if recipe.epochs and not (checkpoint / CHECKPOINT).exists():  # one that resumes begins by reading them
            require_images(
                dataset,
                [*splits.val["shard"], *(splits.train["shard"] if recipe.cache == "none" else ())],
                "fine-tuning",
                "--epochs 0 trains the head alone, on features that are cached",
            )
        machine = stack.enter_context(with_readers(machine))
        for line in splits.notes:
            machine.say(line)
        if recipe.epochs and recipe.batch_size > len(splits.train):
            machine.say(f"a batch is all {len(splits.train)} images of train; {recipe.batch_size:,} were asked for")
        seen = seen_in_training(splits.train, splits.val, recipe.weights, machine)
        network = build_network(
            recipe.backbone,
            classes=len(dataset.labels),
            head=recipe.head,
            weights=recipe.weights,
            image_size=recipe.image_size,
            seed=recipe.seed,
            head_settings=recipe.head_settings,
            average_flip=recipe.average_flip,
        ).to(machine.device)
        network.head.adapt(np.bincount(labels_of(splits.train), minlength=network.classes))
        record_start(checkpoint, wanted, backbone_digest(network), machine)
        machine, format_choices = choose_format(network, machine, recipe, checkpoint, choices)
        choices = [choice for choice in choices if choice.what != "precision"]
        choices += [*format_choices, *recipe_choices(recipe)]
        if recipe.gradient_checkpointing:
            count = enable_gradient_checkpointing(network.backbone)
            choices.append(Choice("gradient checkpointing", f"{count} blocks", "asked for: less memory, slower steps"))
        if is_split(network.head, recipe, machine.processes):
            choices.append(split_choice(network.head, machine.processes))
        for choice in choices:
            machine.say(str(choice))
        benchmark_convolutions(machine, recipe, recipe.epochs * math.ceil(len(splits.train) / recipe.batch_size))

        state = State(micro_batch=recipe.micro_batch or recipe.batch_size)
        if not recipe.from_scratch and not machine.from_main((checkpoint / CHECKPOINT).exists()):
            state = train_head_from_cache(network, dataset, splits, recipe, machine)
        with open_tracker(machine, recipe, out, state) as watch:
            state = finetune(
                network,
                dataset,
                splits.train,
                splits.val,
                recipe=recipe,
                machine=machine,
                folder=checkpoint,
                state=state,
                watch=watch,
            )
        sentence = ""
        if machine.is_main:
            record = run_record(network, dataset, recipe=recipe, machine=machine, choices=choices, state=state, out=out)
            record |= {"validated_on": len(splits.val), "identity": wanted}
            sentence = result_sentence(out, record, state.rows)  # first, since a run that is written counts as finished
            write_run(out, network, dataset.labels, state.rows, record, seen=seen)
            remove_checkpoint(checkpoint)
        machine.wait()
        run = open_run(out)
        machine.say(sentence)
        machine.close()
        return run


def train_head_from_cache(
    network: Network, dataset: Dataset, splits: TrainingImages, recipe: Recipe, machine: Machine
) -> State:
    """Run phase one: compute the features once, fit the probe, and train the head.

    The main process trains; every process gets its head.
    """
    both = pl.concat([splits.train, splits.val]).sort("image_id")
    features = [cached_features(network, dataset, both, machine=machine)]
    features += [
        cached_features(
            network, dataset, splits.train, machine=machine, view=view, augment=recipe.augmentation, seed=recipe.seed
        )
        for view in range(1, recipe.head_views)
    ]
    state = State(micro_batch=recipe.micro_batch or recipe.batch_size)
    if machine.is_main:
        started = time.monotonic()
        train = Rows(features[0].values, positions(both, splits.train))
        val = Rows(features[0].values, positions(both, splits.val))
        labels, val_labels = labels_of(splits.train), labels_of(splits.val)
        probe = head = None
        if network.classes <= PROBE_CLASSES:
            probe = ridge_probe(train, labels, val, val_labels, network.classes)
            if probe is None:
                machine.say(f"no linear probe: {train.shape[1]:,} features of {len(train):,} images are too many")
            else:
                machine.say(f"a linear probe in closed form: {percent(probe.val_accuracy)} of validation")
        if recipe.head_epochs or recipe.head_solver == "discriminant":
            if recipe.head_solver == "discriminant":
                trained = solve_head(network, train, labels, val, val_labels)
            else:
                views = [train, *(Rows(view.values, np.arange(len(labels))) for view in features[1:])]
                trained = train_head(network, views, labels, val, val_labels, recipe=recipe)
            state.rows = trained.rows
            state.best = Best("head", trained.epoch, trained.val_accuracy, trained.val_loss)
            head = HeadResult(trained.val_accuracy, trained.val_loss, len(trained.rows))
            how = f"in epoch {trained.epoch} of {len(trained.rows)}"
            if recipe.head_solver == "discriminant":
                how = "in closed form, without a gradient step"
            machine.say(f"head training: {percent(trained.val_accuracy)} of validation {how}")
        seconds = sum(view.seconds for view in features)
        state.earlier = PhaseOne(seconds, time.monotonic() - started, probe, head)
    network.head.load_state_dict(machine.from_main(network.head.state_dict()))
    return cast(State, machine.from_main(state))


@contextlib.contextmanager
def open_tracker(machine: Machine, recipe: Recipe, out: Path, state: State) -> Iterator[Callable[[State], None]]:
    """Yield a function that logs the last epoch to the tracker (TensorBoard or another) as `phase/name`.

    The epochs of head training that `state` holds are logged at once.
    """
    accelerator = machine.accelerator
    if accelerator.log_with:
        tracker = "tensorboard" if recipe.tracking == "auto" else recipe.tracking
        accelerator.init_trackers(tracker)
        if tracker == "tensorboard":
            machine.say(f"curves while it trains: tensorboard --logdir {in_shell(out)}")

    def log(row: Epoch, step: int) -> None:
        numbers = {f"{row.phase}/{name}": value for name, value in asdict(row).items() if isinstance(value, float)}
        accelerator.log(numbers, step=step)

    def watch(state: State) -> None:
        if accelerator.log_with:
            log(state.rows[-1], state.rows[-1].step)

    if accelerator.log_with:
        for row in state.rows:
            if row.phase == "head":
                log(row, row.epoch)  # by epoch: head training takes no steps of the whole network

    yield watch
    for tracker in accelerator.trackers:  # not end_training(), which would also end the process group
        tracker.finish()


def choose_format(
    network: Network, machine: Machine, recipe: Recipe, checkpoint: Path, choices: list[Choice]
) -> tuple[Machine, list[Choice]]:
    """Choose number format and memory layout by a short timing; return the machine and the choices.

    The returned machine has the chosen precision, and `network` the chosen layout. Without fine-tuning, or with a
    precision set by the user, nothing is timed and the precision in `choices` is kept. A resumed training keeps the
    format it began with.
    """
    path = checkpoint / MACHINE
    if recipe.precision != "auto" or not recipe.epochs:
        chosen = [*(choice for choice in choices if choice.what == "precision"), choose_layout(network)]
    elif machine.from_main(path.exists()):
        chosen = [Choice(**choice) for choice in machine.from_main(read_record(path)["choices"])]
    else:
        at_once = recipe.micro_batch or recipe.batch_size
        timing = choose_by_timing(network, machine, at_once) if machine.is_main else None
        chosen = machine.from_main(timing.choices() if timing else None)
        if machine.is_main:
            write_record(path, {"choices": [choice.record() for choice in chosen]}, verb="train")
    precision, layout = chosen
    network.to(memory_format=LAYOUTS[layout.value])
    return replace(machine, precision=precision.value), chosen
