"""Phase two: fine-tuning of the whole network. Read it from top to bottom.

It runs in one process or in many. Each process sees its share of the images of every step, and the gradients of all
processes are summed before the optimizer's step. A head of very many landmarks is divided among the processes
(`split_head.py`). No random generator here has a state, so a training that resumes from a checkpoint takes the same
steps as one that never stopped. And no step waits for the GPU: losses, correct answers and gradient norms stay there
and are fetched every few steps, and always before a checkpoint is saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from landmarks.dataset.manifest import Dataset
from landmarks.models.network import Network
from landmarks.support.console import plural, progress
from landmarks.support.seeds import generator
from landmarks.support.systems import delayed_interruption
from landmarks.training.augmentation import EpochAugmentation
from landmarks.training.checkpoint import (
    State,
    add_steps,
    copy_of_weights,
    epoch_line,
    finish_epoch,
    is_time_up,
    live_line,
    load_checkpoint,
    save_checkpoint,
    tensors_of,
    update_best,
)
from landmarks.training.decoded import decoded_images
from landmarks.training.features import labels_of
from landmarks.training.head_training import class_weights
from landmarks.training.loader import Batch, as_input, batches, epoch_order, epoch_steps, on_device
from landmarks.training.machine import Machine, free_memory, out_of_memory_error, too_few_values_error
from landmarks.training.optimizer import make_optimizer
from landmarks.training.processes import GradientSums, Statistics, validate
from landmarks.training.recipe import Recipe
from landmarks.training.split_head import SplitHead, WholeHead, split_head

SECONDS_BETWEEN_CHECKPOINTS = 180.0
"""The most work that a killed training repeats; after Ctrl-C or SIGTERM a checkpoint is saved first."""


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
    """Train `network` on the images `train`, validate it on `val` after each epoch, and leave it at its best epoch.

    Training starts from `state`, or from the checkpoint in `folder` if there is one: call it again to resume. `watch`
    is called after every epoch. Raises `LandmarksError` when the loss is no longer finite.
    """
    # ── Network, optimizer and checkpoint ──
    weights = class_weights(labels_of(train), network.classes, recipe.balance)
    features = torch.compile(network.features, dynamic=True) if recipe.compile else network.features
    decoded = (
        decoded_images(dataset, train, network.preprocessing, machine=machine) if recipe.cache == "decoded" else None
    )
    split = split_head(network.head, recipe, machine)
    training = Training(network, recipe, machine, weights.to(machine.device), features, decoded, split)
    head, optimizer = training.head, make_optimizer(network, recipe)
    optimizer.zero_grad(set_to_none=True)  # the head training leaves its last gradient in the head
    best_weights = copy_of_weights(network)
    if checkpoint := load_checkpoint(folder, network, optimizer, head.own_rows(optimizer)):
        best_weights, state = checkpoint
        say_resumed(machine, state)
        if state.scaler:
            training.scaler.load_state_dict(state.scaler)
    state.processes, state.scaler = machine.processes, training.scaler.state_dict()

    def save(*, averaged: bool = False) -> None:
        if not averaged:
            training.statistics.average(machine)  # every process must take part
        tensors = head.whole_tensors(tensors_of(network, optimizer, best_weights), optimizer)  # here, too
        if machine.is_main:
            state.scaler = training.scaler.state_dict()
            save_checkpoint(folder, tensors, state)

    machine.wait()  # every process has looked for a checkpoint before one is written
    if not checkpoint:
        save()

    # ── Epochs ──
    while state.epoch < recipe.epochs and not state.ended:
        train_epoch(training, optimizer, dataset, train, state=state, save=save)
        if is_time_up(state, recipe):
            state.ended = f"the time limit of {recipe.time_limit:g} minutes was reached in epoch {state.epoch + 1}"
        training.statistics.average(machine)
        if head.is_split:
            save(averaged=True)  # now, since a process that is interrupted in the validation waits for no other
        started = time.monotonic()
        try:
            with head.whole():
                val_accuracy, val_loss = validate(network, dataset, val, machine=machine)
        except KeyboardInterrupt:
            if not head.is_split:
                save(averaged=True)  # so that no step is repeated
            raise
        # All processes use one clock: under a time limit the learning rate depends on it.
        state.seconds = machine.from_main(state.seconds + time.monotonic() - started)
        row = finish_epoch(state, val_accuracy, val_loss, recipe)
        if update_best(state, row, recipe):
            best_weights = copy_of_weights(network)
        machine.say(epoch_line(row, recipe))
        watch(state)
        save()

    # ── Result ──
    network.load_state_dict(best_weights)
    head.join()
    state.ended = state.ended or _all_epochs(recipe.epochs)
    return state


def _all_epochs(epochs: int) -> str:
    if epochs == 0:
        return "no fine-tuning was asked for"
    return "its only epoch" if epochs == 1 else f"all {epochs:,} epochs"


def say_resumed(machine: Machine, state: State) -> None:
    """Report where a resumed training stands, and what has changed since it was interrupted."""
    machine.say(f"going on from a checkpoint: {plural(state.epoch, 'epoch')} and {plural(state.step, 'step')} are done")
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
    save: Callable[[], None],
) -> None:
    """Take the remaining steps of epoch `state.epoch + 1`, and `save` a checkpoint now and then.

    No step remains if the checkpoint was saved after the last one. Ends early when the time is up.
    """
    network, recipe, machine = training.network, training.recipe, training.machine
    epoch = state.epoch + 1

    # ── Images, in an order that depends on seed and epoch alone ──
    order = epoch_order(len(train), recipe.seed, epoch)
    sizes = [len(step) for step in epoch_steps(order, recipe.batch_size)]
    steps_done = state.step - state.epoch * len(sizes)
    steps = epoch_steps(order, recipe.batch_size, machine.rank, machine.processes)[steps_done:]
    loaded = batches(
        dataset,
        train,
        network.preprocessing,
        steps=steps,
        workers=machine.workers,
        augment=EpochAugmentation(recipe.augmentation, recipe.seed, epoch),
        decoded=training.decoded,
    )
    set_training(network, freeze_bn=recipe.freeze_bn)
    seen_before, seconds_before = state.seen, state.seconds
    last_checkpoint = last_fetch = time.monotonic()
    # Under a time limit the learning rate follows the clock, so every step is fetched.
    steps_between_fetches = machine.steps_between_fetches if recipe.time_limit is None else 1
    pending: list[torch.Tensor] = []  # (3,) per step, on the device: sum of losses, correct answers, gradient norm

    with progress(f"epoch {epoch}/{recipe.epochs}", len(steps)) as advance, delayed_interruption() as is_interrupted:
        for size, batch in zip(sizes[steps_done:], on_device(loaded, machine.device), strict=True):
            if is_time_up(state, recipe) and state.seen:  # every epoch takes at least one step
                break

            # ── One step ──
            done = fraction_done(state.step, len(sizes) * recipe.epochs, state.seconds, recipe.time_limit)
            factor = learning_rate_factor(done, recipe.lr_warmup, recipe.min_lr_ratio)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            state.learning_rate = optimizer.param_groups[-1]["lr"]
            torch.manual_seed(int(generator(recipe.seed, "step", state.step, machine.rank).integers(2**63)))  # dropout
            loss, correct, state.micro_batch = accumulate_gradients(training, batch, size, state.micro_batch)
            training.sums.finish()
            if training.scaler.is_enabled():
                training.head.spread_overflow()
            training.scaler.unscale_(optimizer)
            norm = training.head.clip_grad_norm(network, recipe.max_grad_norm or math.inf)
            training.scaler.step(optimizer)  # optimizer.step(), skipped if a float16 gradient overflows
            training.scaler.update()
            optimizer.zero_grad(set_to_none=True)
            pending.append(torch.stack([loss, correct, norm.float()]))
            state.step += 1
            if len(pending) < steps_between_fetches and state.step < len(sizes) * epoch:
                continue

            # ── Progress and checkpoint ──
            now = time.monotonic()
            clock = (state.seconds + now - last_fetch, now - last_checkpoint)
            fetched = machine.fetch_steps(torch.stack(pending), clock, interrupted=is_interrupted())
            state.seconds, since_checkpoint = fetched.clock
            first = state.step - state.epoch * len(sizes) - len(pending)
            add_steps(state, fetched.steps, sizes[first:], recipe)
            advance(len(pending), live_line(state, seen_before, seconds_before, recipe, len(train)))
            pending, last_fetch = [], now
            if fetched.interrupted or since_checkpoint > SECONDS_BETWEEN_CHECKPOINTS:
                last_checkpoint = now
                save()
            if fetched.interrupted:
                machine.say(f"a checkpoint is kept after step {state.step}")
                raise KeyboardInterrupt


def set_training(network: Network, *, freeze_bn: bool) -> None:
    """Set the network to training mode; with `freeze_bn` its batch normalisation stays in evaluation mode."""
    network.train()
    if freeze_bn:
        for module in network.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()


# ── The gradients of one step: in micro-batches if memory is short, summed over processes ───────────────────────────


@dataclass(frozen=True)
class Training:
    """What every step uses."""

    network: Network
    recipe: Recipe
    machine: Machine
    class_weights: torch.Tensor  # (K,), the weight of each landmark in the loss
    features: Callable[[torch.Tensor], torch.Tensor]  # `network.features`, perhaps compiled
    decoded: NDArray[np.uint8] | None = None  # (P, R, R, 3), the training images; None: decode them in each epoch
    split: SplitHead | None = None  # None: each process holds the whole head

    @cached_property
    def head(self) -> WholeHead | SplitHead:
        """The network's head, as it is trained by the processes."""
        return self.split or WholeHead(self.network.head)

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """Keeps float16 gradients from underflowing; has no effect in any other precision."""
        return torch.amp.GradScaler(self.machine.device.type, enabled=self.machine.precision == "float16")

    @cached_property
    def sums(self) -> GradientSums:
        """Sums the gradients over processes."""
        return GradientSums(self.network, self.machine, self.head.own)

    @cached_property
    def statistics(self) -> Statistics:
        """The running statistics of batch normalisation."""
        return Statistics(self.network)


def accumulate_gradients(
    training: Training, batch: Batch, size: int, micro_batch: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Add this process's part of the gradient of a step of `size` images to the `grad` of each parameter.

    Returns the sum of losses and the number of correct answers, both on the device, and the micro-batch that fitted.
    The images are processed at most `micro_batch` at a time. When memory runs out, the failed pass is freed, the
    micro-batch is halved, and the step is repeated with the same images. The gradient is the same, except that batch
    normalisation sees smaller batches. With a split head, all processes do this together. Raises `LandmarksError` when
    not even a single image fits.
    """
    network, head = training.network, training.head
    shares = head.shares_of(size, len(batch.ids))
    training.statistics.save()
    while True:
        try:
            return *_forward_and_backward(training, batch, size, shares, micro_batch), micro_batch
        except (RuntimeError, MemoryError) as error:
            if not head.can_repeat(error):
                raise
            if min(micro_batch, max(shares)) <= 1:
                raise out_of_memory_error(network) from error
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise too_few_values_error(network, min(micro_batch, len(batch.ids))) from error
        # Only outside the handler are the error, and with it every tensor of the failed pass, released.
        training.sums.disarm(together=head.is_split)
        network.zero_grad(set_to_none=True)
        training.statistics.restore()
        free_memory()
        micro_batch = math.ceil(min(micro_batch, max(shares)) / 2)
        training.machine.say(
            f"out of memory: going on with {micro_batch} images at a time, added up to the same {size} a step"
        )


def _forward_and_backward(
    training: Training, batch: Batch, size: int, shares: list[int], micro_batch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of losses and the number of correct answers of this process's images.

    `shares` are the images of each process that computes losses together with this one, which has `batch`.
    """
    machine, head, weights = training.machine, training.head, training.class_weights
    loss_sum, correct = torch.zeros((), device=machine.device), torch.zeros((), device=machine.device)
    parts = math.ceil(max(shares) / micro_batch)
    edges = np.array([_edges(share, parts) for share in shares])  # (processes, parts + 1)
    for number, (start, end) in enumerate(pairwise(_edges(len(batch.ids), parts))):
        part, images = batch.part(start, end), edges[:, number + 1] - edges[:, number]
        with head.attempt():
            features = _features(training, part)
        loss, is_correct, labels = head.loss_and_correct(
            features,
            part.labels.to(machine.device),
            images.tolist(),
            label_smoothing=training.recipe.label_smoothing,
            class_weights=weights,
        )
        # `loss` is the mean of a part; weighted like this, all parts of all processes add up to the mean of the step.
        weighted = loss * (weights[labels].sum() / size)
        if number == parts - 1:
            training.sums.arm()
        with head.attempt():
            torch.autograd.backward(training.scaler.scale(weighted))
        loss_sum += loss.detach() * (end - start)
        correct += is_correct.sum()
    return loss_sum, correct


def _features(training: Training, part: Batch) -> torch.Tensor:
    """Return the features (N, C) of the images of `part`; none, of which there still is a gradient, if it is empty."""
    network, machine = training.network, training.machine
    if not part.ids:
        return torch.zeros(0, network.width, device=machine.device, requires_grad=True)
    with machine.computing():
        features = training.features(as_input(part, network.preprocessing, machine.device))
    return features.float()


def _edges(count: int, parts: int) -> list[int]:
    """Return the edges (parts + 1) of the parts of nearly equal size that `count` images are divided into."""
    edges: list[int] = np.linspace(0, count, parts + 1).round().astype(int).tolist()
    return edges


# ── The learning rate: a pure function of progress, so that a resumed run needs no state for it ─────────────────────


def learning_rate_factor(done: float, lr_warmup: float, min_lr_ratio: float) -> float:
    """Return the factor of the learning rate after the fraction `done` (0 … 1) of the training.

    It rises linearly over the first `lr_warmup`, then falls along half a cosine (Loshchilov & Hutter 2017) to
    `min_lr_ratio`; with a `min_lr_ratio` of 1 it stays constant.
    """
    done = min(max(done, 0.0), 1.0)
    if done < lr_warmup:
        return done / lr_warmup
    decay = (done - lr_warmup) / (1 - lr_warmup)
    return min_lr_ratio + (1 - min_lr_ratio) * (1 + math.cos(math.pi * decay)) / 2


def fraction_done(steps: int, total_steps: int, seconds: float, time_limit: float | None) -> float:
    """Return the fraction of a training that is done after `steps` and `seconds`; `time_limit` is in minutes.

    Under a time limit the larger of both fractions counts, so that the learning rate reaches its end in time. The step
    about to be taken counts as half done: neither the first nor the last step has a learning rate of zero.
    """
    by_steps = (steps + 0.5) / max(total_steps, 1)
    return by_steps if time_limit is None else max(by_steps, seconds / (60 * time_limit))
