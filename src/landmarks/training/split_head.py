"""A head of very many landmarks, divided among the processes of a training: each holds the centres of its landmarks.

If every process held all centres, each would also hold their gradient and moments, and sum the gradient in every step:
for 203,094 landmarks and 512 numbers per centre, 1.7 GB per process and 416 MB per step. Here a process holds, and its
optimizer updates, only the centres of its own landmarks. In every step it receives the embedded images of all processes
and computes what its centres add to their softmax (`models.heads.Shares`; Deng et al. 2019, section 3). The gradient of
its centres is then complete, and that of the images is summed over the processes.

Since all processes compute a part of a step together, they also run out of memory together: see `SplitHead.attempt`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from landmarks.models.heads import ArcFaceHead, Head, Margin, Shares, margin_loss_and_correct
from landmarks.models.network import Network
from landmarks.training.choices import Choice
from landmarks.training.loader import share_sizes
from landmarks.training.machine import Machine, exchanging, is_out_of_memory
from landmarks.training.recipe import Recipe

SPLIT_NUMBERS = 10_000_000
"""Numbers in all centres from which a head is split. Weights, gradient and two moments of 10 million take 160 MB, and
two processes on two cores took 0.5 s per step instead of 1.7 s (`benchmarks/many_classes.py`)."""


def is_split(head: Head, recipe: Recipe, processes: int) -> bool:
    """Return whether so many `processes` divide this head among them when they fine-tune it."""
    return (
        bool(recipe.epochs)
        and processes > 1
        and type(head) is ArcFaceHead  # a head that is derived from it may have another loss
        and head.centres.numel() >= SPLIT_NUMBERS
        and head.classes >= processes
    )


def split_choice(head: Head, processes: int) -> Choice:
    """Return the choice to divide this head, with the reason."""
    most = share_sizes(head.classes, processes)[0]
    why = f"each holds the centres of at most {most:,} of {head.classes:,} landmarks, their gradient and moments"
    return Choice("head", f"split over {processes} processes", why)


def numbers_elsewhere(head: Head, recipe: Recipe, processes: int) -> int:
    """Return how many of the head's weights a process does not train, because the others do."""
    if not (isinstance(head, ArcFaceHead) and is_split(head, recipe, processes)):
        return 0
    return head.centres[share_sizes(head.classes, processes)[0] :].numel()


def split_head(head: Head, recipe: Recipe, machine: Machine) -> SplitHead | None:
    """Divide this head among the processes of `machine`; return None, and leave it, where `is_split` is false."""
    if isinstance(head, ArcFaceHead) and is_split(head, recipe, machine.processes):
        return SplitHead(head, machine)
    return None


class WholeHead:
    """A head that each process holds as a whole; its gradient is summed over processes as that of all weights is."""

    is_split = False
    own = None

    def __init__(self, head: Head) -> None:
        self.head = head

    def shares_of(self, size: int, images: int) -> list[int]:
        """Return [`images`], of this process's part of a step: it computes their loss alone."""
        return [images]

    def attempt(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def can_repeat(self, error: BaseException) -> bool:
        """Return whether a step that ended in `error` can be repeated with fewer images at a time."""
        return is_out_of_memory(error)

    def loss_and_correct(
        self,
        features: Tensor,
        labels: Tensor,
        images: Sequence[int],
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean loss (scalar) of features (N, C), which of them are answered correctly (N,), and `labels`."""
        settings: dict[str, Any] = {"label_smoothing": label_smoothing, "class_weights": class_weights}
        return *self.head.loss_and_correct(features, labels, **settings), labels

    def clip_grad_norm(self, network: Network, max_norm: float) -> Tensor:
        """Scale all gradients down to `max_norm`, and return their norm before."""
        return torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)

    def spread_overflow(self) -> None:
        """Do nothing: summed gradients overflow in every process."""

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def join(self) -> None:
        """Do nothing."""

    def whole_tensors(self, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint as they are."""
        return tensors

    def own_rows(self, optimizer: torch.optim.Optimizer) -> Callable[[str, Tensor], Tensor]:
        """Return a function that returns the tensor of a checkpoint as it is."""
        return lambda name, tensor: tensor


class OutOfMemoryTogetherError(torch.OutOfMemoryError):
    """Memory ran out in a process, and every process has been told."""


class SplitHead:
    """An ArcFace head whose `centres` are, from now on, only those of this process's landmarks.

    Every process must call each of its methods, in the same order.
    """

    is_split = True

    def __init__(self, head: ArcFaceHead, machine: Machine) -> None:
        self.head, self.machine = head, machine
        self.edges: list[int] = list(accumulate(share_sizes(head.classes, machine.processes), initial=0))
        self.rows = slice(*self.edges[machine.rank : machine.rank + 2])
        self.own = torch.nn.Parameter(head.centres.detach()[self.rows].clone())
        self.shares = Shares(self.rows.start, self._highest, machine.summed, self.attempt)
        # A group of its own, so that attempts may lie between sums of gradients; on the CPU, so that no GPU must wait.
        self.attempts: Any = torch.distributed.new_group(backend="gloo")
        head.centres = self.own

    # ── One part of a step ──

    def shares_of(self, size: int, images: int) -> list[int]:
        """Return the images of each process in a step of `size` images: they compute their loss together."""
        return share_sizes(size, self.machine.processes)

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Let every process end the block, or raise `OutOfMemoryTogetherError` in all if memory runs out in one.

        A block must not exchange anything outside of attempts of its own, since one process may not get so far.
        """
        failed = False
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        number = torch.tensor(int(failed))
        with exchanging():
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self.attempts)
        if number.item():
            raise OutOfMemoryTogetherError("out of memory in this process or another")

    def can_repeat(self, error: BaseException) -> bool:
        """Return whether a step that ended in `error` can be repeated: not if this process alone knows."""
        return isinstance(error, OutOfMemoryTogetherError)

    def loss_and_correct(
        self,
        features: Tensor,
        labels: Tensor,
        images: Sequence[int],
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean loss (scalar) of all processes' images, and which of this one's (n,) are answered correctly.

        The third result are the labels (N,) of all. `images` is the number n of features (n, C) and labels (n,) of each
        process, which may be 0. Every process must call the backward pass of the loss, too.
        """
        with self.attempt():
            embedded = self.head.embedding(features)
        margin = Margin(self.head.scale, self.head.margins, label_smoothing, class_weights, shares=self.shares)
        all_labels = self._gathered(labels, images)
        all_embedded = _Gathered.apply(embedded, self, images)
        loss, correct = margin_loss_and_correct(all_embedded, self.head.centres, all_labels, margin)
        return loss, correct[_rows_of(self.machine.rank, images)], all_labels

    def _gathered(self, rows: Tensor, images: Sequence[int]) -> Tensor:
        """Return the rows (N, …) of all processes, of which this one has n: `rows` (n, …)."""
        padded = rows.new_zeros(max(images), *rows.shape[1:])
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in images]
        with exchanging():
            torch.distributed.all_gather(received, padded)
        return torch.cat([theirs[:count] for theirs, count in zip(received, images, strict=True)])

    def _highest(self, numbers: Tensor) -> Tensor:
        highest = numbers.clone()
        with exchanging():
            torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
        return highest

    # ── One step ──

    def clip_grad_norm(self, network: Network, max_norm: float) -> Tensor:
        """Scale all gradients down to `max_norm`, and return their norm before, which counts all centres."""
        copied = [weight.grad for weight in network.parameters() if weight is not self.own and weight.grad is not None]
        assert self.own.grad is not None
        squares = self.machine.summed(self.own.grad.norm().square())
        norm = (torch.nn.utils.get_total_norm(copied).square() + squares).sqrt()
        torch.nn.utils.clip_grads_with_norm_(network.parameters(), max_norm, norm)
        return norm

    def spread_overflow(self) -> None:
        """Let an overflow of float16 in one process's centres be seen in all, so that they skip the same steps."""
        gradient = self.own.grad
        assert gradient is not None
        overflows = self.machine.summed((~gradient.norm().isfinite()).float())
        gradient[0] = torch.where(overflows > 0, torch.inf, gradient[0])

    # ── The whole head: for validation, checkpoints and the result ──

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Give the head all centres within the block, which must not train them."""
        self.join()
        try:
            yield
        finally:
            self.head.centres = self.own

    def join(self) -> None:
        """Give the head all centres, in every process."""
        centres = self._joined(self.own, self.machine.device)
        assert centres is not None
        self.head.centres = torch.nn.Parameter(centres)

    def whole_tensors(self, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint with all centres and their moments; only the main process gets them."""
        device = torch.device("cpu") if self.machine.is_main else None
        is_divided = self._is_divided(optimizer)
        divided = {name: self._joined(rows, device) for name, rows in tensors.items() if is_divided(name, rows)}
        return tensors | {name: tensor for name, tensor in divided.items() if tensor is not None}

    def own_rows(self, optimizer: torch.optim.Optimizer) -> Callable[[str, Tensor], Tensor]:
        """Return a function from name and tensor of a checkpoint to what this process holds of the tensor."""
        is_divided = self._is_divided(optimizer)
        return lambda name, tensor: tensor[self.rows] if is_divided(name, tensor) else tensor

    def _is_divided(self, optimizer: torch.optim.Optimizer) -> Callable[[str, Tensor], bool]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        place = next(place for place, parameter in enumerate(parameters) if parameter is self.own)
        names = ("network.head.centres", "best.head.centres", f"optimizer.{place}.")
        return lambda name, tensor: name.startswith(names) and tensor.ndim > 0  # all but the optimizer's step count

    def _joined(self, rows: Tensor, device: torch.device | None) -> Tensor | None:
        """Return on `device` the tensor (K, …) of which each process has its `rows` (k, …); None if `device` is None.

        Besides the result, this takes memory for the rows of one process.
        """
        rows = rows.detach().to(self.machine.device).contiguous()
        whole = None if device is None else rows.new_empty(self.head.classes, *rows.shape[1:], device=device)
        for rank, (start, end) in enumerate(pairwise(self.edges)):
            theirs = rows if rank == self.machine.rank else rows.new_empty(end - start, *rows.shape[1:])
            with exchanging():
                torch.distributed.broadcast(theirs, rank)
            if whole is not None:
                whole[start:end] = theirs
        return whole


class _Gathered(torch.autograd.Function):
    """The rows of all processes (N, D) from those of this one (n, D)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, split: SplitHead, images: Sequence[int]) -> Tensor:
        ctx.split, ctx.own = split, _rows_of(split.machine.rank, images)
        return split._gathered(rows, images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.split.machine.summed(gradients[0].contiguous())[ctx.own], None, None


def _rows_of(rank: int, images: Sequence[int]) -> slice:
    start = sum(images[:rank])
    return slice(start, start + images[rank])
