"""What a training will need, estimated from a few real steps: memory, disk and hours."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import psutil
import torch
from numpy.typing import NDArray

from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.models.network import Network, build_network
from landmarks.models.rewriting import blocks, enable_gradient_checkpointing
from landmarks.support.console import print_table, show
from landmarks.support.places import Place
from landmarks.training.augmentation import EpochAugmentation
from landmarks.training.choices import set_memory_layout
from landmarks.training.finetune import Training, accumulate_gradients, set_training
from landmarks.training.loader import Batch, batches, normalised
from landmarks.training.machine import (
    Machine,
    free_memory,
    is_out_of_memory,
    open_machine,
    out_of_memory_error,
    with_readers,
)
from landmarks.training.optimizer import make_optimizer
from landmarks.training.own_data import check_data
from landmarks.training.recipe import Recipe, recipe_named
from landmarks.training.split_head import numbers_elsewhere

STEPS = 3
"""Timed steps; one before them is not timed."""

LOADED = 256
"""Images that are read and decoded to time the loader."""

IMAGES_FIRST = 2
"""Images of the first pass, from which the memory of a whole step is estimated."""

MOMENTS = {"adamw": 2, "adam": 2, "rmsprop": 1, "sgd": 1}
"""Numbers that each optimizer stores per weight."""

OUTSIDE = 0
"""The key of tensors outside of all recomputing blocks."""

TIGHT = 0.8
"""Share of the free memory beyond which a plan warns, since Python, its libraries and loaded images need some too."""

MB = 1e6


@dataclass(frozen=True)
class Plan:
    """What a training will need; megabytes are 10⁶ bytes."""

    images: dict[str, int]  # per split
    weights_mb: float  # of the network, running statistics included, as each process holds them in validation
    optimizer_mb: float  # gradients and moments; of a split head, those of one process
    activations_mb: float  # saved for the backward pass of one micro-batch
    memory_free_mb: float  # on the device, before the training
    micro_batch: int  # images per pass: the recipe's, or as many as fit
    cache_mb: float  # on disk, in the dataset's folder
    disk_mb: float  # run and checkpoint
    images_per_second: dict[str, float]  # keys: backbone (forward only), training (steps), loader
    limit: str  # the bottleneck of training: step or loader
    hours: dict[str, float]  # keys: features, epoch, total

    def __repr__(self) -> str:
        images = ", ".join(f"{count:,} of {split}" for split, count in self.images.items())
        needs = f"{self.memory_mb:,.0f} MB of memory, {self.disk_mb:,.0f} MB of disk"
        return f"Plan(images: {images}; {needs}; {self.verdict})"

    @property
    def memory_mb(self) -> float:
        """Peak memory of the training, without Python and its libraries."""
        return self.weights_mb + self.optimizer_mb + self.activations_mb

    @property
    def verdict(self) -> str:
        """A sentence that says whether the training fits into memory and how long it takes."""
        share = self.memory_mb / self.memory_free_mb
        fits = "it fits" if share < TIGHT else "memory will be tight: a smaller --batch-size or --image-size needs less"
        duration = _duration(self.hours["total"])
        return f"{fits} ({100 * share:.0f} % of the memory that is free now), and takes about {duration}"


def plan(data: Place, *, recipe: Place | Recipe = "default", **settings: Any) -> Plan:
    """Return what `train` will need with the same recipe and settings, estimated from a few real steps.

    The network starts from random weights, so nothing is downloaded; nothing is written. Raises what `train` raises
    about data and settings, and `LandmarksError` when not even one image fits into memory.
    """
    chosen = recipe_named(recipe, **settings)
    dataset = open_dataset(data)
    splits = check_data(dataset)
    machine, _ = open_machine(replace(chosen, tracking="none"), dataset.folder)
    free_mb = _free_memory(machine) / MB
    network = build_network(
        chosen.backbone,
        classes=len(dataset.labels),
        head=chosen.head,
        weights="none",
        image_size=chosen.image_size,
        seed=chosen.seed,
        head_settings=chosen.head_settings,
        average_flip=chosen.average_flip,
    ).to(machine.device)
    set_memory_layout(network)
    weights_mb = sum(t.numel() * t.element_size() for t in network.state_dict().values()) / MB
    trained = sum(parameter.numel() for parameter in network.parameters())
    own = trained - numbers_elsewhere(network.head, chosen, machine.processes)
    optimizer_mb = 4 * own * (1 + MOMENTS[chosen.optimizer]) / MB
    try:
        first = _sample_batch(dataset, splits.train, network, chosen, IMAGES_FIRST)
        activations = activation_bytes(network, first, machine, checkpointing=chosen.gradient_checkpointing)
        image_mb = activations / IMAGES_FIRST / MB
        if chosen.gradient_checkpointing:
            enable_gradient_checkpointing(network.backbone)
        micro_batch = _fitting_micro_batch(chosen, image_mb, free_mb - weights_mb - optimizer_mb)
        batch = _sample_batch(dataset, splits.train, network, chosen, micro_batch)
        rates = {
            "backbone": _backbone_rate(network, batch, machine),
            "training": _training_rate(network, batch, chosen, machine),
            "loader": _loader_rate(dataset, splits.train, network, chosen, machine),
        }
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_error(network) from error
    counts = {"train": len(splits.train), "val": len(splits.val)}
    hours = _hours(chosen, counts, rates, shared=machine.device.type == "cpu")
    views = 0 if chosen.from_scratch else chosen.head_views - 1
    cached = 0 if chosen.from_scratch else sum(counts.values()) + views * counts["train"]
    return Plan(
        images=counts,
        weights_mb=weights_mb,
        optimizer_mb=optimizer_mb,
        activations_mb=image_mb * micro_batch,
        memory_free_mb=free_mb,
        micro_batch=micro_batch,
        cache_mb=2 * cached * network.width / MB,
        # The run's weights; the checkpoint's weights, best weights and moments.
        disk_mb=3 * weights_mb + 4 * trained * MOMENTS[chosen.optimizer] / MB,
        images_per_second=rates,
        limit="loader" if rates["loader"] < rates["training"] else "step",
        hours=hours,
    )


def activation_bytes(network: Network, batch: Batch, machine: Machine, *, checkpointing: bool = False) -> int:
    """Return the bytes that a forward pass of `batch` saves for the backward pass, without the weights.

    They are counted exactly: a hook sees every tensor that autograd saves, and tensors that share memory count once.
    With `checkpointing`, the count is that of gradient checkpointing, which the network must not do yet: each block
    saves its inputs, and one block at a time everything else.
    """
    weights = {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}
    saved: dict[int, dict[int, int]] = {OUTSIDE: {}}  # block → tensor → bytes
    entered = [OUTSIDE]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[entered[-1]][storage.data_ptr()] = storage.nbytes()
        return tensor

    def enter(block: torch.nn.Module, inputs: tuple[object, ...]) -> None:
        for tensor in _tensors(inputs):
            pack(tensor)
        saved[id(block)] = {}
        entered.append(id(block))

    def leave(*_: object) -> None:
        entered.pop()

    set_training(network, freeze_bn=False)
    with contextlib.ExitStack() as stack:
        for block in blocks(network.backbone) if checkpointing else ():
            stack.callback(block.register_forward_pre_hook(enter).remove)
            stack.callback(block.register_forward_hook(leave).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        with machine.computing():
            features = network.features(normalised(batch.pixels, network.preprocessing, machine.device))
        network.head.loss(features.float(), batch.labels.to(machine.device))
    outside = saved.pop(OUTSIDE)
    return sum(outside.values()) + max((sum(block.values()) for block in saved.values()), default=0)


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """Yield the tensors among a block's inputs, which may be nested in lists, one for each branch."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _sample_batch(dataset: Dataset, images: pl.DataFrame, network: Network, recipe: Recipe, count: int) -> Batch:
    rows = np.resize(np.arange(len(images)), count)  # repeats images if there are fewer than `count`
    augment = EpochAugmentation(recipe.augmentation)
    loaded = batches(dataset, images[rows], network.preprocessing, batch_size=count, augment=augment)
    return next(iter(loaded))


def _fitting_micro_batch(recipe: Recipe, image_mb: float, free_mb: float) -> int:
    """Return the recipe's micro-batch, halved until its activations take at most 90 % of the free memory."""
    micro_batch = min(recipe.micro_batch or recipe.batch_size, recipe.batch_size)
    while micro_batch > 1 and micro_batch * image_mb > 0.9 * free_mb:
        micro_batch = math.ceil(micro_batch / 2)
    return micro_batch


def _training_rate(network: Network, batch: Batch, recipe: Recipe, machine: Machine) -> float:
    weights = torch.ones(network.classes, device=machine.device)
    training = Training(network, recipe, machine, weights, network.features)
    optimizer = make_optimizer(network, recipe)
    set_training(network, freeze_bn=recipe.freeze_bn)
    seconds = []
    for _ in range(1 + STEPS):
        started = time.monotonic()
        accumulate_gradients(training, batch, len(batch.ids), len(batch.ids))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        machine.synchronize()
        seconds.append(time.monotonic() - started)
    del optimizer
    free_memory()
    return len(batch.ids) / float(np.median(seconds[1:]))


@torch.no_grad()
def _backbone_rate(network: Network, batch: Batch, machine: Machine) -> float:
    network.eval()
    seconds = []
    for _ in range(1 + STEPS):
        started = time.monotonic()
        with machine.computing():
            features = network.features(normalised(batch.pixels, network.preprocessing, machine.device))
        features.cpu()  # waits for the device
        seconds.append(time.monotonic() - started)
    return len(batch.ids) / float(np.median(seconds[1:]))


def _loader_rate(dataset: Dataset, images: pl.DataFrame, network: Network, recipe: Recipe, machine: Machine) -> float:
    """Return the images per second that are read, decoded and cropped while nothing else runs."""
    rows = np.random.default_rng(0).permutation(len(images))[:LOADED]  # from all shards, as an epoch reads them
    with with_readers(machine) as reading:

        def read(rows: NDArray[np.int64]) -> None:
            augment = EpochAugmentation(recipe.augmentation)
            for _ in batches(dataset, images[rows], network.preprocessing, workers=reading.workers, augment=augment):
                pass

        read(rows[:32])  # waits until reader processes, if any, have started
        started = time.monotonic()
        read(rows)
        return len(rows) / (time.monotonic() - started)


def _hours(recipe: Recipe, counts: dict[str, int], rates: dict[str, float], *, shared: bool) -> dict[str, float]:
    """Return the hours of features, an epoch and all; loader and network add up if they have `shared` cores."""

    def seconds(images: int, rate: float) -> float:
        reading, computing = images / rates["loader"], images / rate
        return reading + computing if shared else max(reading, computing)

    epoch = seconds(counts["train"], rates["training"]) + seconds(counts["val"], rates["backbone"])
    features = 0.0 if recipe.from_scratch else seconds(sum(counts.values()), rates["backbone"]) * recipe.head_views
    finetune = epoch * recipe.epochs
    if recipe.time_limit is not None:
        finetune = min(finetune, 60 * recipe.time_limit)
    return {"features": features / 3600, "epoch": epoch / 3600, "total": (features + finetune) / 3600}


def _free_memory(machine: Machine) -> float:
    if machine.device.type == "cuda":
        return float(torch.cuda.mem_get_info(machine.device)[0])
    return float(psutil.virtual_memory().available)


def print_plan(found: Plan) -> None:
    """Print a plan to standard output, as a table and a sentence."""
    rows = [
        ("memory: weights", f"{found.weights_mb:,.0f} MB"),
        ("memory: gradients and moments", f"{found.optimizer_mb:,.0f} MB"),
        (f"memory: activations of {found.micro_batch} images", f"{found.activations_mb:,.0f} MB"),
        ("memory: in all, of what is free now", f"{found.memory_mb:,.0f} of {found.memory_free_mb:,.0f} MB"),
        ("disk: cached features", f"{found.cache_mb:,.0f} MB"),
        ("disk: run and checkpoint", f"{found.disk_mb:,.0f} MB"),
        ("speed: backbone alone", f"{found.images_per_second['backbone']:,.1f} images/s"),
        ("speed: training", f"{found.images_per_second['training']:,.1f} images/s"),
        ("speed: reading and decoding alone", f"{found.images_per_second['loader']:,.1f} images/s"),
        ("the limit", "reading and decoding" if found.limit == "loader" else "the network's steps"),
        ("time: features", _duration(found.hours["features"])),
        ("time: one epoch, validation included", _duration(found.hours["epoch"])),
        ("time: in all", _duration(found.hours["total"])),
    ]
    splits = " and ".join(f"{count:,} {split}" for split, count in found.images.items())
    print_table(("what", "how much"), rows, title=f"{splits} images")
    show(found.verdict)


def _duration(hours: float) -> str:
    seconds = 3600 * hours
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "less than a second"
    return f"{hours:.1f} h" if hours >= 1 else f"{seconds / 60:.1f} min"
