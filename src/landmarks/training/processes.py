"""What several processes exchange: gradients, a bucket at a time during the backward pass, and running statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from landmarks.models.network import Network
from landmarks.training.machine import Machine, lost_process_error

BUCKET_BYTES = 25 * 2**20
"""Gradients that are added up at once: few enough exchanges, and the first begins while the last layers compute."""


@dataclass
class _Bucket:
    parameters: list[torch.nn.Parameter]
    missing: int = 0  # parameters whose gradient is not there yet
    flat: torch.Tensor | None = None  # what is being added up; None: not yet
    work: Any = None


@dataclass
class GradientSums:
    """Replaces gradients by their sums over all processes, and hides the exchange behind the backward pass.

    `arm` before the last backward pass of a step, `finish` after it. Every process exchanges the buckets in the same
    order, whatever order its gradients appear in, and also when it has no images in a step. A bucket that is on its way
    when memory runs out is this process's share and is not sent again.
    """

    network: Network
    machine: Machine
    buckets: list[_Bucket] = field(default_factory=list)
    armed: bool = False

    def __post_init__(self) -> None:
        if self.machine.processes == 1:
            return
        of_parameter: dict[torch.nn.Parameter, _Bucket] = {}
        size = BUCKET_BYTES
        for parameter in reversed(list(self.network.parameters())):  # about the order in which gradients appear
            if size >= BUCKET_BYTES:
                self.buckets.append(_Bucket([]))
                size = 0
            self.buckets[-1].parameters.append(parameter)
            of_parameter[parameter] = self.buckets[-1]
            size += parameter.numel() * parameter.element_size()

        def ready(parameter: torch.Tensor) -> None:
            if self.armed:
                of_parameter[parameter].missing -= 1  # type: ignore[index]  # it is one of the parameters
                self._send()

        for parameter in of_parameter:
            parameter.register_post_accumulate_grad_hook(ready)  # type: ignore[no-untyped-call]

    def arm(self) -> None:
        """Send each bucket as soon as all its gradients are there: the backward pass that follows is the last."""
        self.armed = True
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)

    def disarm(self) -> None:
        """Send nothing for now: the pass has failed."""
        self.armed = False

    def finish(self) -> None:
        """Send what is left, wait for everything, and put the sums into each parameter's `grad`."""
        self.armed = False
        for bucket in self.buckets:
            bucket.missing = 0
        self._send()
        for bucket in self.buckets:
            assert bucket.flat is not None
            try:
                bucket.work.wait()
            except RuntimeError as error:
                raise lost_process_error(error) from error
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
                    if parameter.grad is None:  # a process without images in this step, or a weight that is not used
                        parameter.grad = torch.zeros_like(parameter)
                gradients = [parameter.grad for parameter in bucket.parameters if parameter.grad is not None]
                bucket.flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
                try:
                    bucket.work = torch.distributed.all_reduce(bucket.flat, async_op=True)
                except RuntimeError as error:
                    raise lost_process_error(error) from error


class Statistics:
    """Batch normalisation's running statistics: put back after a failed pass, averaged over processes."""

    def __init__(self, network: Network) -> None:
        kinds = torch.nn.modules.batchnorm._BatchNorm
        found = [buffer for one in network.modules() if isinstance(one, kinds) for buffer in one.buffers(recurse=False)]
        self._now = [[one for one in found if one.is_floating_point() is floating] for floating in (True, False)]
        self._before = [[one.clone() for one in some] for some in self._now]

    @torch.no_grad()
    def remember(self) -> None:
        """Keep them as they are now, in memory that is there already: two kernels, whatever the network."""
        for before, now in zip(self._before, self._now, strict=True):
            if now:
                torch._foreach_copy_(before, now)

    @torch.no_grad()
    def put_back(self) -> None:
        """Make them what they were when they were remembered."""
        for before, now in zip(self._before, self._now, strict=True):
            if now:
                torch._foreach_copy_(now, before)

    @torch.no_grad()
    def average(self, machine: Machine) -> None:
        """Replace them by their means over all processes."""
        if machine.processes > 1:
            for buffer in self._now[0]:
                buffer.copy_(machine.summed(buffer) / machine.processes)
