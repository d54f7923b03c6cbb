"""Phase two: everything is trained. Read it from top to bottom.

One process or many: each sees its share of every step's images and adds up their gradients; the sums of all
processes are added before the optimizer's step. Nothing here draws from a generator that has a state, so a training
that goes on from a checkpoint takes the same steps as one that never stopped. And no step waits for a graphics
processor: losses, right answers and the gradient's norm stay there until they are looked at, some steps later but
always before anything is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from landmarks.dataset.manifest import Dataset
from landmarks.models.network import Network
from landmarks.support.console import progress
from landmarks.support.seeds import generator
from landmarks.support.systems import interruption_waits
from landmarks.training.augmentation import EpochAugmentation
from landmarks.training.checkpoint import copy_of_weights, load_checkpoint, save_checkpoint
from landmarks.training.decoded import decoded_images
from landmarks.training.features import labels_of
from landmarks.training.feeding import on_device
from landmarks.training.head_training import class_weights
from landmarks.training.loader import Batch, as_input, batches, epoch_order, epoch_steps
from landmarks.training.machine import Machine, free_memory, is_out_of_memory, out_of_memory_error
from landmarks.training.optimizer import make_optimizer
from landmarks.training.processes import GradientSums, Statistics
from landmarks.training.recipe import Recipe
from landmarks.training.state import State, add_steps, epoch_line, finish_epoch, is_better, is_time_up, live_line
from landmarks.training.validation import validate

SECONDS_BETWEEN_CHECKPOINTS = 180.0
"""How much work, at most, a killed training repeats; one that is interrupted or asked to end (Ctrl-C, SIGTERM) keeps
what it has first."""


def finetune(
    network: Network,
    dataset: Dataset,
    train: pl.DataFrame,
    val: pl.DataFrame,
    *,
    recipe: Recipe,
    machine: Machine,
    folder: Path,
    state: State,
    watch: Callable[[State], None] = lambda state: None,
) -> State:
    """Train `network` on the images `train`, measure it on `val` after each epoch, leave it at its best epoch.

    `state` is where to begin; a checkpoint in `folder` takes its place, so that calling this again goes on. `watch` is
    called after every epoch. Raises `LandmarksError` when the loss is no longer a number.
    """
    # ── What is trained, and where it stands ──
    weights = class_weights(labels_of(train), network.classes, recipe.balance)
    features = torch.compile(network.features, dynamic=True) if recipe.compile else network.features
    decode = recipe.cache == "decoded"
    decoded = decoded_images(dataset, train, network.preprocessing, machine=machine) if decode else None
    training = Training(network, recipe, machine, weights.to(machine.device), features, decoded)
    optimizer = make_optimizer(network, recipe)
    optimizer.zero_grad(set_to_none=True)  # the last step of the head training has left its gradient in the head
    best_weights = copy_of_weights(network)
    if found := load_checkpoint(folder, network, optimizer):
        best_weights, state = found[0], State(**found[1])
        say_resumed(machine, state)
        if state.scaler:
            training.scaler.load_state_dict(state.scaler)
    state.processes, state.scaler = machine.processes, training.scaler.state_dict()

    def keep(*, averaged: bool = False) -> None:
        if not averaged:
            training.statistics.average(machine)  # all processes meet here
        if machine.is_main:
            state.scaler = training.scaler.state_dict()
            save_checkpoint(folder, network, optimizer, best_weights, asdict(state))

    machine.wait()  # every process has looked before one writes
    if not found:
        keep()

    # ── Epochs ──
    while state.epoch < recipe.epochs and not state.ended:
        train_epoch(training, optimizer, dataset, train, state=state, keep=keep)
        if is_time_up(state, recipe):
            limit = f"the time limit of {recipe.time_limit:g} minutes"
            state.ended = f"{limit} was reached in epoch {state.epoch + 1}"
        training.statistics.average(machine)
        started = time.monotonic()
        try:
            val_accuracy, val_loss = validate(network, dataset, val, machine=machine)
        except KeyboardInterrupt:
            keep(averaged=True)  # no step is taken again, and no other process is waited for
            raise
        # One clock for all processes: under a time limit the learning rate depends on it.
        state.seconds = machine.from_main(state.seconds + time.monotonic() - started)
        row = finish_epoch(state, val_accuracy, val_loss)
        if is_better(row, state.best):
            state.best, state.epochs_since_best = {name: row[name] for name in state.best}, 0
            best_weights = copy_of_weights(network)
        elif (state.epochs_since_best + 1) >= recipe.patience and not state.ended:
            state.ended = f"no better epoch in {recipe.patience}"
        else:
            state.epochs_since_best += 1
        machine.say(epoch_line(row, recipe))
        watch(state)
        keep()

    # ── The end ──
    network.load_state_dict(best_weights)
    state.ended = state.ended or (f"all {recipe.epochs} epochs" if recipe.epochs else "no fine-tuning was asked for")
    return state


def say_resumed(machine: Machine, state: State) -> None:
    """Say what is behind a training that is taken up again, and what differs from before."""
    machine.say(f"going on from a checkpoint: {state.epoch} epochs and {state.step} steps are done")
    if state.processes != machine.processes:
        machine.say(
            f"it was begun with {state.processes} processes and goes on with {machine.processes}: each image is "
            "still seen once an epoch, but batch normalisation and dropout see other parts of a step"
        )


def train_epoch(
    training: Training,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset,
    train: pl.DataFrame,
    *,
    state: State,
    keep: Callable[[], None],
) -> None:
    """Take the steps of epoch `state.epoch + 1` that `state` has not taken yet; `keep` a checkpoint now and then.

    None may be left, when a checkpoint was kept after the last one. Ends early when the time is up.
    """
    network, recipe, machine = training.network, training.recipe, training.machine
    epoch = state.epoch + 1

    # ── Which images, in an order that depends on seed and epoch alone ──
    order = epoch_order(len(train), recipe.seed, epoch)
    sizes = [len(step) for step in epoch_steps(order, recipe.batch_size)]
    taken = state.step - state.epoch * len(sizes)
    mine = epoch_steps(order, recipe.batch_size, machine.rank, machine.processes)[taken:]
    loaded = batches(
        dataset,
        train,
        network.preprocessing,
        steps=mine,
        workers=machine.workers,
        augment=EpochAugmentation(recipe.augmentation, recipe.seed, epoch),
        decoded=training.decoded,
    )
    set_training(network, freeze_bn=recipe.freeze_bn)
    seen_before, seconds_before = state.seen, state.seconds
    last_checkpoint = last = time.monotonic()
    # Under a time limit the learning rate follows the clock, so that every step is looked at.
    between = machine.steps_between_fetches if recipe.time_limit is None else 1
    unseen: list[torch.Tensor] = []  # (3,) a step, on the device: sum of losses, right answers, norm of the gradient

    with progress(f"epoch {epoch}/{recipe.epochs}", len(mine)) as advance, interruption_waits() as is_interrupted:
        for size, batch in zip(sizes[taken:], on_device(loaded, machine.device), strict=True):
            if is_time_up(state, recipe) and state.seen:  # every epoch takes a step, or there is nothing to show
                break

            # ── One step ──
            done = fraction_done(state.step, len(sizes) * recipe.epochs, state.seconds, recipe.time_limit)
            share = learning_rate_factor(done, recipe.lr_warmup, recipe.min_lr_ratio)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            state.learning_rate = optimizer.param_groups[-1]["lr"]
            torch.manual_seed(int(generator(recipe.seed, "step", state.step, machine.rank).integers(2**63)))  # dropout
            loss, correct, state.micro_batch = accumulate_gradients(training, batch, size, state.micro_batch)
            training.sums.finish()
            training.scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.max_grad_norm or math.inf)
            training.scaler.step(optimizer)  # in float16 not where the gradient overflows; else optimizer.step()
            training.scaler.update()
            optimizer.zero_grad(set_to_none=True)
            unseen.append(torch.stack([loss, correct, norm.float()]))
            state.step += 1
            if len(unseen) < between and state.step < len(sizes) * epoch:
                continue

            # ── What is shown, and what is kept ──
            now = time.monotonic()
            clock = (state.seconds + now - last, now - last_checkpoint)
            looked = machine.fetch_steps(torch.stack(unseen), clock, interrupted=is_interrupted())
            state.seconds, since_checkpoint = looked.clock
            first = state.step - state.epoch * len(sizes) - len(unseen)
            add_steps(state, looked.steps, sizes[first:], recipe)
            advance(len(unseen), live_line(state, seen_before, seconds_before, recipe, len(train)))
            unseen, last = [], now
            if looked.interrupted or since_checkpoint > SECONDS_BETWEEN_CHECKPOINTS:
                last_checkpoint = now
                keep()
            if looked.interrupted:
                machine.say(f"a checkpoint is kept after step {state.step}")
                raise KeyboardInterrupt


def set_training(network: Network, *, freeze_bn: bool) -> None:
    """Put the network into training mode; with `freeze_bn` its batch normalisation stays in evaluation mode."""
    network.train()
    if freeze_bn:
        for module in network.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()


# ── One step's gradients: in parts when memory is short, and added up over processes ────────────────────────────────


@dataclass(frozen=True)
class Training:
    """What every step works with."""

    network: Network
    recipe: Recipe
    machine: Machine
    class_weights: torch.Tensor  # (K,), of each landmark in the loss
    features: Callable[[torch.Tensor], torch.Tensor]  # the network's, perhaps compiled
    decoded: NDArray[np.uint8] | None = None  # (P, R, R, 3), the training images; None: they are decoded each epoch

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """Keeps float16's gradients large enough to be told from zero; in any other precision it changes nothing."""
        return torch.amp.GradScaler(self.machine.device.type, enabled=self.machine.precision == "float16")

    @cached_property
    def sums(self) -> GradientSums:
        """The gradients of all processes."""
        return GradientSums(self.network, self.machine)

    @cached_property
    def statistics(self) -> Statistics:
        """Batch normalisation's."""
        return Statistics(self.network)


def accumulate_gradients(
    training: Training, batch: Batch, size: int, micro_batch: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Add this process's part of the gradient of a step of `size` images to each parameter's `grad`.

    Returns the sum of losses and the number of right answers, both on the device, and the micro-batch that fitted. The
    images pass in parts of at most `micro_batch`. When memory runs out, everything the failed pass held is let go, the
    micro-batch is halved, and the step begins anew with the same images: the same gradient, but that batch
    normalisation sees smaller parts. Raises `LandmarksError` when a single image does not fit.
    """
    network = training.network
    training.statistics.remember()
    while True:
        try:
            return *_pass_through(training, batch, size, micro_batch), micro_batch
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if min(micro_batch, len(batch.ids)) <= 1:
                raise out_of_memory_error(network) from error
        # Outside of the handler the error, and with it every tensor of the failed pass, is gone.
        network.zero_grad(set_to_none=True)
        training.sums.disarm()
        training.statistics.put_back()
        free_memory()
        micro_batch = math.ceil(min(micro_batch, len(batch.ids)) / 2)
        training.machine.say(
            f"out of memory: going on with {micro_batch} images at a time, added up to the same {size} a step"
        )


def _pass_through(training: Training, batch: Batch, size: int, micro_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    network, machine, weights = training.network, training.machine, training.class_weights
    loss_sum, correct = torch.zeros((), device=machine.device), torch.zeros((), device=machine.device)
    parts = math.ceil(len(batch.ids) / micro_batch)
    for start, end in zip(*_bounds(len(batch.ids), parts), strict=True):
        part = batch.part(start, end)
        pixels, labels = as_input(part, network.preprocessing, machine.device), part.labels.to(machine.device)
        with machine.computing():
            features = training.features(pixels)
        features = features.float()
        loss = network.head.loss(
            features, labels, label_smoothing=training.recipe.label_smoothing, class_weights=weights
        )
        # The mean of a part, weighted so that the parts of all processes add up to the mean of the step.
        weighted = loss * (weights[labels].sum() / size)
        if end == len(batch.ids):
            training.sums.arm()
        torch.autograd.backward(training.scaler.scale(weighted))
        loss_sum += loss.detach() * (end - start)
        with torch.no_grad():
            correct += (network.classify(features).argmax(1) == labels).sum()
    return loss_sum, correct


def _bounds(count: int, parts: int) -> tuple[list[int], list[int]]:
    """Return starts and ends that divide `count` images into `parts` of nearly equal size."""
    edges = np.linspace(0, count, parts + 1).round().astype(int).tolist() if parts else [0]
    return edges[:-1], edges[1:]


# ── Learning rates: pure functions of how far training is, so that a resumed run needs no state for them ────────────


def learning_rate_factor(done: float, lr_warmup: float, min_lr_ratio: float) -> float:
    """Return the factor of the learning rate when the share `done` (0 … 1) of the training is behind.

    It climbs in a straight line over the first `lr_warmup`, then falls along half a cosine (Loshchilov & Hutter
    2017) to `min_lr_ratio`; with `min_lr_ratio` 1 it stays.
    """
    done = min(max(done, 0.0), 1.0)
    if done < lr_warmup:
        return done / lr_warmup
    way = (done - lr_warmup) / (1 - lr_warmup)
    return min_lr_ratio + (1 - min_lr_ratio) * (1 + math.cos(math.pi * way)) / 2


def fraction_done(steps: int, total_steps: int, seconds: float, time_limit: float | None) -> float:
    """Return the share of a training that is behind after `steps` and `seconds`, of at most `time_limit` minutes.

    Under a time limit whichever is further counts, so that the learning rate ends its fall when the time does. The
    step that is about to be taken counts as half done: neither the first nor the last has a learning rate of zero.
    """
    by_steps = (steps + 0.5) / max(total_steps, 1)
    return by_steps if time_limit is None else max(by_steps, seconds / (60 * time_limit))
