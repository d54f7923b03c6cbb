"""Where a training stands: what every checkpoint holds beside the tensors, and what is shown of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from landmarks.support.errors import LandmarksError
from landmarks.training.recipe import Recipe

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
    processes: int = 1  # that took the last step
    scaler: dict[str, Any] = field(default_factory=dict)  # of float16's gradients
    overflows: int = 0  # steps in a row whose gradient float16 could not hold


OVERFLOWS = 30
"""Steps in a row that float16 may pass by until it finds a scale that fits; the scale halves with each."""


def add_steps(state: State, steps: list[list[float]], sizes: list[int], recipe: Recipe) -> None:
    """Add steps that were looked at, (loss, right answers, norm of the gradient) each, to the sums of the epoch.

    Raises `LandmarksError` that names the first one whose loss or gradient is not a number: everything after it would
    be lost work, and nothing of it has been kept.
    """
    for number, ((loss, correct, norm), size) in enumerate(zip(steps, sizes, strict=False), state.step - len(steps)):
        overflow = bool(state.scaler) and not math.isfinite(norm)
        state.overflows = state.overflows + 1 if overflow else 0
        if not math.isfinite(loss) or not (math.isfinite(norm) or 0 < state.overflows <= OVERFLOWS):
            raise LandmarksError(
                f"training broke down in step {number + 1} (epoch {state.epoch + 1})",
                received=f"a loss of {loss:g} and a gradient of norm {norm:g}; all steps before were finite",
                way_out="lower --learning-rate"
                + ("" if recipe.precision == "float32" else ", or try --precision float32"),
            )
        state.loss_sum, state.correct, state.seen = state.loss_sum + loss, state.correct + correct, state.seen + size


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


def is_better(row: dict[str, Any], best: dict[str, Any]) -> bool:
    """Whether an epoch beats the best so far: by validation accuracy, of equal ones by the lower loss."""
    return bool((row["val_accuracy"], -row["val_loss"]) > (best["val_accuracy"], -best["val_loss"]))


def epoch_line(row: dict[str, Any], recipe: Recipe) -> str:
    """Return the line that sums up an epoch."""
    return (
        f"epoch {row['epoch']}/{recipe.epochs}: training loss {row['train_loss']:.3f}, "
        f"{100 * row['train_accuracy']:.1f} %; validation loss {row['val_loss']:.3f}, "
        f"{100 * row['val_accuracy']:.1f} %; {row['seconds']:.0f} s"
    )


def live_line(state: State, seen_before: float, seconds_before: float, recipe: Recipe, images: int) -> str:
    """Return what the line of progress says: loss, accuracy, speed, and the time left until all epochs are done.

    Speed is that of the images and seconds since `seen_before` and `seconds_before`.
    """
    loss, correct, seen = state.loss_sum, state.correct, state.seen
    rate = (seen - seen_before) / max(state.seconds - seconds_before, 1e-9)
    left = ((recipe.epochs - state.epoch) * images - seen) / max(rate, 1e-9)
    if recipe.time_limit is not None:
        left = min(left, 60 * recipe.time_limit - state.seconds)
    shown = f"loss {loss / seen:.3f}, {100 * correct / seen:.1f} %, {rate:.0f} images/s"
    return f"{shown}, {left / 60:.0f} min left in all" if left >= 90 else f"{shown}, {max(left, 0):.0f} s left in all"
