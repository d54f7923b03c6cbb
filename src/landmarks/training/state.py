"""The state of a training: everything but the tensors that a checkpoint holds, and the lines that show it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from landmarks.support.errors import LandmarksError
from landmarks.training.recipe import Recipe

NOTHING_YET = {"phase": "", "epoch": 0, "val_accuracy": -1.0, "val_loss": 0.0}
"""The best epoch, before the first one."""


@dataclass
class State:
    """The state of a training without its tensors; every checkpoint holds all of it."""

    micro_batch: int  # images per pass through the network
    epoch: int = 0  # finished epochs
    step: int = 0  # optimizer steps taken
    seconds: float = 0.0  # of fine-tuning so far, including before interruptions
    learning_rate: float = 0.0  # of the head, in the last step
    loss_sum: float = 0.0  # over the images seen in this epoch
    correct: float = 0.0  # correct answers among them
    seen: float = 0.0  # images seen in this epoch
    best: dict[str, Any] = field(default_factory=lambda: dict(NOTHING_YET))
    epochs_since_best: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)  # the history of both phases
    earlier: dict[str, Any] = field(default_factory=dict)  # results of the head training, for the record
    ended: str = ""  # the reason, once fine-tuning has ended
    processes: int = 1  # that took the last step
    scaler: dict[str, Any] = field(default_factory=dict)  # state of the float16 gradient scaler
    overflows: int = 0  # consecutive steps whose gradient overflowed float16


MAX_OVERFLOWS = 30
"""Consecutive steps that float16 may skip until the scale fits; it halves with each."""


def add_steps(state: State, steps: list[list[float]], sizes: list[int], recipe: Recipe) -> None:
    """Add fetched steps (loss, correct answers, gradient norm) of `sizes` images to the sums of the epoch.

    Raises `LandmarksError` that names the first step whose loss or gradient is not finite. Nothing after it is worth
    anything, and none of it has been saved.
    """
    for number, ((loss, correct, norm), size) in enumerate(zip(steps, sizes, strict=False), state.step - len(steps)):
        overflow = bool(state.scaler) and not math.isfinite(norm)
        state.overflows = state.overflows + 1 if overflow else 0
        if not math.isfinite(loss) or not (math.isfinite(norm) or 0 < state.overflows <= MAX_OVERFLOWS):
            raise LandmarksError(
                f"training broke down in step {number + 1} (epoch {state.epoch + 1})",
                received=f"a loss of {loss:g} and a gradient of norm {norm:g}; all steps before were finite",
                way_out="lower --learning-rate"
                + ("" if recipe.precision == "float32" else ", or try --precision float32"),
            )
        state.loss_sum, state.correct, state.seen = state.loss_sum + loss, state.correct + correct, state.seen + size


def is_time_up(state: State, recipe: Recipe) -> bool:
    """Return whether fine-tuning has reached the recipe's time limit."""
    return recipe.time_limit is not None and state.seconds >= 60 * recipe.time_limit


def finish_epoch(state: State, val_accuracy: float, val_loss: float) -> dict[str, Any]:
    """Advance `state` to the next epoch and return the history row of the one that ended."""
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
    """Return whether an epoch beats the best so far: by validation accuracy, then by the lower loss."""
    return bool((row["val_accuracy"], -row["val_loss"]) > (best["val_accuracy"], -best["val_loss"]))


def epoch_line(row: dict[str, Any], recipe: Recipe) -> str:
    """Return the summary line of an epoch."""
    return (
        f"epoch {row['epoch']}/{recipe.epochs}: training loss {row['train_loss']:.3f}, "
        f"{100 * row['train_accuracy']:.1f} %; validation loss {row['val_loss']:.3f}, "
        f"{100 * row['val_accuracy']:.1f} %; {row['seconds']:.0f} s"
    )


def live_line(state: State, seen_before: float, seconds_before: float, recipe: Recipe, images: int) -> str:
    """Return the text of the progress bar: loss, accuracy, speed, and the time left for all epochs.

    The speed is measured since `seen_before` images and `seconds_before`.
    """
    loss, correct, seen = state.loss_sum, state.correct, state.seen
    rate = (seen - seen_before) / max(state.seconds - seconds_before, 1e-9)
    left = ((recipe.epochs - state.epoch) * images - seen) / max(rate, 1e-9)
    if recipe.time_limit is not None:
        left = min(left, 60 * recipe.time_limit - state.seconds)
    text = f"loss {loss / seen:.3f}, {100 * correct / seen:.1f} %, {rate:.0f} images/s"
    return f"{text}, {left / 60:.0f} min left in all" if left >= 90 else f"{text}, {max(left, 0):.0f} s left in all"
