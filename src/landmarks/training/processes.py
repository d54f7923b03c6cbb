"""What processes do together: sum gradients, in buckets during the backward pass, average statistics, and validate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

from landmarks.dataset.manifest import Dataset
from landmarks.models.network import Network
from landmarks.training.loader import batches, epoch_steps, normalised, on_device
from landmarks.training.machine import Machine, compute_in_parts, exchanging

BUCKET_BYTES = 25 * 2**20
"""Size of a bucket of gradients: few exchanges, the first of which still begins during the backward pass."""


@dataclass
class _Bucket:
    parameters: list[torch.nn.Parameter]
    missing: int = 0  # parameters whose gradient is not ready
    flat: torch.Tensor | None = None  # the gradients being summed; None before they are sent
    work: Any = None


@dataclass
class GradientSums:
    """Replaces gradients by their sums over all processes, overlapping the exchange with the backward pass.

    Call `arm` before the last backward pass of a step and `finish` after it. Every process exchanges the buckets in the
    same order, whatever order its gradients appear in, and even without images in a step. A bucket already sent when
    memory runs out counts as this process's share and is not sent again.
    """

    network: Network
    machine: Machine
    own: torch.nn.Parameter | None = None  # of a split head: its gradient is complete, and not summed
    buckets: list[_Bucket] = field(default_factory=list)
    armed: bool = False

    def __post_init__(self) -> None:
        if self.machine.processes == 1:
            return
        bucket_of: dict[torch.nn.Parameter, _Bucket] = {}
        size = BUCKET_BYTES
        for parameter in reversed(list(self.network.parameters())):  # about the order in which gradients appear
            if parameter is self.own:
                continue
            if size >= BUCKET_BYTES:
                self.buckets.append(_Bucket([]))
                size = 0
            self.buckets[-1].parameters.append(parameter)
            bucket_of[parameter] = self.buckets[-1]
            size += parameter.numel() * parameter.element_size()

        def ready(parameter: torch.Tensor) -> None:
            if self.armed:
                bucket_of[parameter].missing -= 1  # type: ignore[index]  # it is a Parameter
                self._send()

        for parameter in bucket_of:
            parameter.register_post_accumulate_grad_hook(ready)  # type: ignore[no-untyped-call]

    def arm(self) -> None:
        """From now on, send each bucket as soon as its gradients are ready: the next backward pass is the last."""
        self.armed = True
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)

    def disarm(self, *, together: bool = False) -> None:
        """Stop sending, because the pass has failed: here or, with `together`, in some process.

        Then all of them send the rest first, so that each gets what it waits for, and none of it counts.
        """
        if together and self.armed:
            self.finish()
        self.armed = False

    def finish(self) -> None:
        """Send the remaining buckets, wait for all, and store the sums in the `grad` of each parameter."""
        self.armed = False
        for bucket in self.buckets:
            bucket.missing = 0
        self._send()
        for bucket in self.buckets:
            assert bucket.flat is not None
            with exchanging():
                bucket.work.wait()
            sums = torch.split(bucket.flat, [parameter.numel() for parameter in bucket.parameters])
            for parameter, total in zip(bucket.parameters, sums, strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(total.view_as(parameter.grad))
            bucket.flat = bucket.work = None

    def _send(self) -> None:
        for bucket in self.buckets:
            if bucket.missing > 0:
                return
            if bucket.flat is None:
                for parameter in bucket.parameters:
                    if parameter.grad is None:  # no images in this step, or an unused weight
                        parameter.grad = torch.zeros_like(parameter)
                gradients = [parameter.grad for parameter in bucket.parameters if parameter.grad is not None]
                bucket.flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
                with exchanging():
                    bucket.work = torch.distributed.all_reduce(bucket.flat, async_op=True)


class Statistics:
    """The running statistics of batch normalisation: restored after a failed pass, averaged over processes."""

    def __init__(self, network: Network) -> None:
        kinds = torch.nn.modules.batchnorm._BatchNorm
        layers = [module for module in network.modules() if isinstance(module, kinds)]
        buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
        floating = [buffer for buffer in buffers if buffer.is_floating_point()]
        counters = [buffer for buffer in buffers if not buffer.is_floating_point()]
        self._current = [floating, counters]
        self._saved = [[buffer.clone() for buffer in group] for group in self._current]

    @torch.no_grad()
    def save(self) -> None:
        """Save a copy of the statistics, into existing memory and with two kernels, whatever the network."""
        for saved, current in zip(self._saved, self._current, strict=True):
            if current:
                torch._foreach_copy_(saved, current)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the saved statistics."""
        for saved, current in zip(self._saved, self._current, strict=True):
            if current:
                torch._foreach_copy_(current, saved)

    @torch.no_grad()
    def average(self, machine: Machine) -> None:
        """Replace the statistics by their means over all processes."""
        if machine.processes > 1:
            for buffer in self._current[0]:
                buffer.copy_(machine.summed(buffer) / machine.processes)


@torch.no_grad()
def validate(network: Network, dataset: Dataset, images: pl.DataFrame, *, machine: Machine) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy on `images`, which are divided among the processes."""
    network.eval()
    at_once = machine.images_at_once
    steps = epoch_steps(np.arange(len(images)), at_once * machine.processes, machine.rank, machine.processes)
    sums = torch.zeros(2, device=machine.device)

    def logits_of(pixels: torch.Tensor) -> torch.Tensor:
        with machine.computing():
            features = network.features(normalised(pixels, network.preprocessing))
        return network.classify(features.float())

    loaded = batches(
        dataset,
        images,
        network.preprocessing,
        steps=steps,
        workers=machine.workers,
    )
    for batch in on_device(loaded, machine.device):
        if batch.ids:
            logits, at_once = compute_in_parts(logits_of, batch.pixels, at_once)
            sums[0] += (logits.argmax(1) == batch.labels).sum()
            sums[1] += F.cross_entropy(logits, batch.labels, reduction="sum")
    accuracy, loss = (machine.summed(sums).cpu().double() / len(images)).tolist()
    return accuracy, loss
