"""Phase two: everything is trained. Read it from top to bottom.

One process or many: each sees its share of every step's images and adds up their gradients; the sums of all
processes are added before the optimizer's step, together with the numbers that are shown. Nothing here draws from a
generator that has a state, so a training that goes on from a checkpoint takes the same steps as one that never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

from landmarks.dataset.manifest import Dataset
from landmarks.models.network import Network
from landmarks.support.console import progress
from landmarks.support.errors import LandmarksError
from landmarks.support.seeds import generator
from landmarks.training.checkpoint import load_checkpoint, save_checkpoint
from landmarks.training.features import labels_of
from landmarks.training.head_training import class_weights
from landmarks.training.loader import Batch, as_input, batches, joined, normalised, order_of, shares
from landmarks.training.machine import Machine, in_parts, is_out_of_memory, release
from landmarks.training.optimizer import make_optimizer
from landmarks.training.recipe import Recipe

SECONDS_BETWEEN_CHECKPOINTS = 180.0
"""How much work, at most, a killed training repeats."""


NOTHING_YET = {"phase": "", "epoch": 0, "val_accuracy": -1.0, "val_loss": 0.0}
"""The best epoch before there is one."""


@dataclass
class State:
    """Where a training stands, beside the tensors: all of it is in every checkpoint."""

    micro_batch: int  # images per pass through the network
    epoch: int = 0  # epochs that are finished
    step: int = 0  # optimizer steps taken
    seconds: float = 0.0  # of fine-tuning so far, over all its processes' lives
    learning_rate: float = 0.0  # of the head, in the last step
    loss_sum: float = 0.0  # over the images of this epoch so far
    correct: float = 0.0  # of them, answered rightly
    seen: float = 0.0  # how many they are
    best: dict[str, Any] = field(default_factory=lambda: dict(NOTHING_YET))
    epochs_since_best: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)  # of the history, both phases
    earlier: dict[str, Any] = field(default_factory=dict)  # what the head training leaves for the record
    ended: str = ""  # why, when fine-tuning is over


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
    training = Training(network, recipe, machine, weights.to(machine.device), features)
    optimizer = make_optimizer(network, recipe)
    optimizer.zero_grad(set_to_none=True)  # the last step of the head training has left its gradient in the head
    best_weights = copy_of_weights(network)
    if found := load_checkpoint(folder, network, optimizer):
        best_weights, state = found[0], State(**found[1])
        machine.say(f"going on from a checkpoint: {state.epoch} epochs and {state.step} steps are done")

    def keep() -> None:
        average_statistics(network, machine)
        if machine.is_main:
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
        average_statistics(network, machine)
        started = time.monotonic()
        val_accuracy, val_loss = measure(network, dataset, val, recipe=recipe, machine=machine)
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
    order = order_of(len(train), recipe.seed, epoch)
    sizes = [len(step) for step in shares(order, recipe.batch_size)]
    taken = state.step - state.epoch * len(sizes)
    mine = shares(order, recipe.batch_size, machine.rank, machine.processes)[taken:]
    loaded = batches(
        dataset,
        train,
        network.preprocessing,
        order=joined(mine),
        batch_size=[len(step) for step in mine],
        workers=machine.workers,
        augment=recipe.augmentation,
        seed=recipe.seed,
        epoch=epoch,
    )
    set_training(network, freeze_bn=recipe.freeze_bn)
    seen_before, seconds_before = state.seen, state.seconds
    last_checkpoint = last = time.monotonic()

    with progress(f"epoch {epoch}/{recipe.epochs}", len(mine)) as advance:
        for size, batch in zip(sizes[taken:], loaded, strict=True):
            if is_time_up(state, recipe) and state.seen:  # every epoch takes a step, or there is nothing to show
                break

            # ── One step ──
            done = share_done(state.step, len(sizes) * recipe.epochs, state.seconds, recipe.time_limit)
            share = share_of_learning_rate(done, recipe.lr_warmup, recipe.min_lr_ratio)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            state.learning_rate = optimizer.param_groups[-1]["lr"]
            torch.manual_seed(int(generator(recipe.seed, "step", state.step, machine.rank).integers(2**63)))  # dropout
            loss, correct, state.micro_batch = add_gradients(training, batch, size, state.micro_batch)
            now = time.monotonic()
            state.seconds, last = state.seconds + now - last, now
            clock = (state.seconds, now - last_checkpoint) if machine.is_main else (0.0, 0.0)
            numbers = torch.tensor([loss, correct, len(batch.ids), *clock], dtype=torch.float64)
            loss, correct, seen, state.seconds, since_checkpoint = add_processes(network, numbers, machine).tolist()
            norm = float(torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.max_grad_norm or math.inf))
            require_finite(loss, norm, state, recipe)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state.step += 1

            # ── What is shown, and what is kept ──
            state.loss_sum, state.correct, state.seen = (
                state.loss_sum + loss,
                state.correct + correct,
                state.seen + seen,
            )
            rate = (state.seen - seen_before) / max(state.seconds - seconds_before, 1e-9)
            advance(1, live_line(state, rate, recipe, len(train)))
            if since_checkpoint > SECONDS_BETWEEN_CHECKPOINTS:
                last_checkpoint = now
                keep()


def is_time_up(state: State, recipe: Recipe) -> bool:
    """Whether fine-tuning has taken as long as the recipe allows."""
    return recipe.time_limit is not None and state.seconds >= 60 * recipe.time_limit


def finish_epoch(state: State, val_accuracy: float, val_loss: float) -> dict[str, Any]:
    """Move `state` to the next epoch and return the history's row of the one that ended."""
    loss, correct, seen = state.loss_sum, state.correct, state.seen
    state.epoch, state.loss_sum, state.correct, state.seen = state.epoch + 1, 0.0, 0.0, 0.0
    row = {
        "phase": "finetune",
        "epoch": state.epoch,
        "step": state.step,
        "seconds": state.seconds,
        "learning_rate": state.learning_rate,
        "train_loss": loss / seen,
        "train_accuracy": correct / seen,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
    }
    state.rows.append(row)
    return row


@torch.no_grad()
def measure(
    network: Network, dataset: Dataset, images: pl.DataFrame, *, recipe: Recipe, machine: Machine
) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy on `images`, each measured by one process."""
    network.eval()
    mine = shares(np.arange(len(images)), recipe.batch_size, machine.rank, machine.processes)
    sums, at_once = torch.zeros(2, dtype=torch.float64), recipe.batch_size

    def logits_of(pixels: torch.Tensor) -> torch.Tensor:
        with machine.computing():
            features = network.features(normalised(pixels, network.preprocessing, machine.device))
        return network.classify(features.float()).cpu()

    loaded = batches(
        dataset,
        images,
        network.preprocessing,
        order=joined(mine),
        batch_size=[len(step) for step in mine],
        workers=machine.workers,
    )
    for batch in loaded:
        if not batch.ids:
            continue
        logits, at_once = in_parts(logits_of, batch.pixels, at_once)
        sums[0] += (logits.argmax(1) == batch.labels).sum()
        sums[1] += F.cross_entropy(logits, batch.labels, reduction="sum")
    accuracy, loss = (machine.summed(sums) / len(images)).tolist()
    return accuracy, loss


def set_training(network: Network, *, freeze_bn: bool) -> None:
    """Put the network into training mode; with `freeze_bn` its batch normalisation stays in evaluation mode."""
    network.train()
    if freeze_bn:
        for module in network.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()


def copy_of_weights(network: Network) -> dict[str, torch.Tensor]:
    """Return all tensors of `network` as they are now, on the processor."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def is_better(row: dict[str, Any], best: dict[str, Any]) -> bool:
    """Whether an epoch beats the best so far: by validation accuracy, of equal ones by the lower loss."""
    return bool((row["val_accuracy"], -row["val_loss"]) > (best["val_accuracy"], -best["val_loss"]))


def require_finite(loss: float, norm: float, state: State, recipe: Recipe) -> None:
    """Raise when a step's loss or gradient is not a number: everything after it would be lost work."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise LandmarksError(
            f"training broke down in step {state.step + 1} (epoch {state.epoch + 1})",
            received=f"a loss of {loss:g} and a gradient of norm {norm:g}; all steps before were finite",
            way_out="lower --learning-rate" + ("" if recipe.precision == "float32" else ", or try --precision float32"),
        )


def epoch_line(row: dict[str, Any], recipe: Recipe) -> str:
    """Return the line that sums up an epoch."""
    return (
        f"epoch {row['epoch']}/{recipe.epochs}: training loss {row['train_loss']:.3f}, "
        f"{100 * row['train_accuracy']:.1f} %; validation loss {row['val_loss']:.3f}, "
        f"{100 * row['val_accuracy']:.1f} %; {row['seconds']:.0f} s"
    )


def live_line(state: State, rate: float, recipe: Recipe, images: int) -> str:
    """Return what the line of progress says: loss, accuracy, speed, and the time left until all epochs are done."""
    loss, correct, seen = state.loss_sum, state.correct, state.seen
    left = ((recipe.epochs - state.epoch) * images - seen) / max(rate, 1e-9)
    if recipe.time_limit is not None:
        left = min(left, 60 * recipe.time_limit - state.seconds)
    shown = f"loss {loss / seen:.3f}, {100 * correct / seen:.1f} %, {rate:.0f} images/s"
    return f"{shown}, {left / 60:.0f} min left in all" if left >= 90 else f"{shown}, {max(left, 0):.0f} s left in all"


# ── One step's gradients: in parts when memory is short, and added up over processes ────────────────────────────────


@dataclass(frozen=True)
class Training:
    """What every step works with."""

    network: Network
    recipe: Recipe
    machine: Machine
    class_weights: torch.Tensor  # (K,), of each landmark in the loss
    features: Callable[[torch.Tensor], torch.Tensor]  # the network's, perhaps compiled


def add_gradients(training: Training, batch: Batch, size: int, micro_batch: int) -> tuple[float, float, int]:
    """Add this process's part of the gradient of a step of `size` images to each parameter's `grad`.

    Returns the sum of losses, the number of right answers, and the micro-batch that fitted. The images pass in
    parts of at most `micro_batch`. When memory runs out, everything the failed pass held is let go, the micro-batch is
    halved, and the step begins anew with the same images: the same gradient, but that batch normalisation sees
    smaller parts. Raises `LandmarksError` when a single image does not fit.
    """
    network = training.network
    statistics = [buffer.clone() for buffer in network.buffers()]
    while True:
        try:
            return *_pass_through(training, batch, size, micro_batch), micro_batch
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if min(micro_batch, len(batch.ids)) <= 1:
                raise does_not_fit(network) from error
        # Outside of the handler the error, and with it every tensor of the failed pass, is gone.
        network.zero_grad(set_to_none=True)
        for buffer, before in zip(network.buffers(), statistics, strict=True):
            buffer.copy_(before)
        release()
        micro_batch = math.ceil(min(micro_batch, len(batch.ids)) / 2)
        training.machine.say(
            f"out of memory: going on with {micro_batch} images at a time, added up to the same {size} a step"
        )


def does_not_fit(network: Network) -> LandmarksError:
    """Return the error for a network that cannot train on a single image in the memory there is."""
    return LandmarksError(
        f"{network.backbone_name} at {network.preprocessing.image_size} pixels does not fit into memory",
        received="no room for a single image",
        way_out="--set gradient_checkpointing=true, smaller images (--image-size), or a smaller network",
    )


def _pass_through(training: Training, batch: Batch, size: int, micro_batch: int) -> tuple[float, float]:
    network, machine, weights = training.network, training.machine, training.class_weights
    loss_sum = correct = 0.0
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
        torch.autograd.backward(loss * (weights[labels].sum() / size))
        loss_sum += float(loss.detach()) * (end - start)
        with torch.no_grad():
            correct += float((network.classify(features).argmax(1) == labels).sum())
    return loss_sum, correct


def _bounds(count: int, parts: int) -> tuple[list[int], list[int]]:
    """Return starts and ends that divide `count` images into `parts` of nearly equal size."""
    edges = np.linspace(0, count, parts + 1).round().astype(int).tolist() if parts else [0]
    return edges[:-1], edges[1:]


def add_processes(network: Network, numbers: torch.Tensor, machine: Machine) -> torch.Tensor:
    """Replace gradients by their sums over all processes, and return the sums of `numbers`: one exchange a step."""
    if machine.processes == 1:
        return numbers
    parameters = list(network.parameters())
    for parameter in parameters:
        if parameter.grad is None:  # a process without images in this step
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), numbers.float().to(machine.device)])
    flat = machine.summed(flat)
    position = 0
    for gradient in gradients:
        gradient.copy_(flat[position : position + gradient.numel()].view(gradient.shape))
        position += gradient.numel()
    return flat[position:]


@torch.no_grad()
def average_statistics(network: Network, machine: Machine) -> None:
    """Replace batch normalisation's running statistics by their means over all processes."""
    if machine.processes == 1:
        return
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.copy_(machine.summed(buffer) / machine.processes)


# ── Learning rates: pure functions of how far training is, so that a resumed run needs no state for them ────────────


def share_of_learning_rate(done: float, lr_warmup: float, min_lr_ratio: float) -> float:
    """Return the factor of the learning rate when the share `done` (0 … 1) of the training is behind.

    It climbs in a straight line over the first `lr_warmup`, then falls along half a cosine (Loshchilov & Hutter
    2017) to `min_lr_ratio`; with `min_lr_ratio` 1 it stays.
    """
    done = min(max(done, 0.0), 1.0)
    if done < lr_warmup:
        return done / lr_warmup
    way = (done - lr_warmup) / (1 - lr_warmup)
    return min_lr_ratio + (1 - min_lr_ratio) * (1 + math.cos(math.pi * way)) / 2


def share_done(steps: int, total_steps: int, seconds: float, time_limit: float | None) -> float:
    """Return the share of a training that is behind after `steps` and `seconds`, of at most `time_limit` minutes.

    Under a time limit whichever is further counts, so that the learning rate ends its fall when the time does. The
    step that is about to be taken counts as half done: neither the first nor the last has a learning rate of zero.
    """
    by_steps = (steps + 0.5) / max(total_steps, 1)
    return by_steps if time_limit is None else max(by_steps, seconds / (60 * time_limit))
