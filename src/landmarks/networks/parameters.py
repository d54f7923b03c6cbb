"""Parameters counted as Keras counts them: running means and variances are parameters that are not trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True)
class Counts:
    """How many numbers a network holds: those that training changes, and batch normalisation's running statistics."""

    trainable: int
    non_trainable: int

    @property
    def total(self) -> int:
        """Return both together, which Keras prints as "Total params"."""
        return self.trainable + self.non_trainable


def count_parameters(network: nn.Module) -> Counts:
    """Return the counts of `network`, which may live on the meta device; frozen layers count as trainable ones."""
    return Counts(
        trainable=sum(parameter.numel() for parameter in network.parameters()),
        non_trainable=sum(
            buffer.numel() for name, buffer in network.named_buffers() if name.rpartition(".")[2] in RUNNING
        ),
    )
