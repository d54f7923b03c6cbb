"""The state of a training, and its checkpoints: a file with everything it needs to resume, written whole or not at all.

Weights, optimizer moments and the best weights so far are tensors of one safetensors file; everything else is JSON in
its header. There are no random generators to save: every draw is keyed by seed, epoch and image.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from landmarks.models.weights import for_storage
from landmarks.support.errors import LandmarksError
from landmarks.support.files import FORMAT, refuse_other_formats, written_whole
from landmarks.training.recipe import Recipe
from landmarks.training.ridge import Probe
from landmarks.training.run import Epoch

FILE = "state.safetensors"

MAX_OVERFLOWS = 30
"""Consecutive steps that float16 may skip until the scale fits; it halves with each."""


# ── The state: everything but the tensors, and the lines that show it ───────────────────────────────────────────────


@dataclass(frozen=True)
class Best:
    """The best epoch so far; the defaults are worse than any epoch."""

    phase: str = ""  # head or finetune
    epoch: int = 0
    val_accuracy: float = -1.0
    val_loss: float = 0.0

    def is_beaten_by(self, row: Epoch) -> bool:
        """Return whether an epoch is better: by validation accuracy, then by the lower loss."""
        return (row.val_accuracy, -row.val_loss) > (self.val_accuracy, -self.val_loss)


@dataclass(frozen=True)
class HeadResult:
    """What the head training reached, in how many epochs."""

    val_accuracy: float
    val_loss: float
    epochs: int


@dataclass(frozen=True)
class PhaseOne:
    """The phase before fine-tuning: features, a linear probe in closed form, and the head training."""

    features_seconds: float = 0.0
    head_seconds: float = 0.0
    probe: Probe | None = None
    head: HeadResult | None = None


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
    best: Best = field(default_factory=Best)
    epochs_since_best: int = 0
    rows: list[Epoch] = field(default_factory=list)  # the history of both phases
    earlier: PhaseOne = field(default_factory=PhaseOne)  # for the record
    ended: str = ""  # the reason, once fine-tuning has ended
    processes: int = 1  # that took the last step
    scaler: dict[str, Any] = field(default_factory=dict)  # state of the float16 gradient scaler
    overflows: int = 0  # consecutive steps whose gradient overflowed float16

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> State:
        """Return the state of `asdict(state)`, as a checkpoint holds it."""
        earlier = record["earlier"]
        probe, head = earlier.get("probe"), earlier.get("head")
        parts = {"probe": probe and Probe(**probe), "head": head and HeadResult(**head)}
        rows = [Epoch(**row) for row in record["rows"]]
        return cls(**{**record, "best": Best(**record["best"]), "rows": rows, "earlier": PhaseOne(**earlier | parts)})


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
                way_out=_steadier(recipe),
            )
        state.loss_sum, state.correct, state.seen = state.loss_sum + loss, state.correct + correct, state.seen + size


def _steadier(recipe: Recipe) -> str:
    return "lower --learning-rate" + ("" if recipe.precision == "float32" else ", or try --precision float32")


def is_time_up(state: State, recipe: Recipe) -> bool:
    """Return whether fine-tuning has reached the recipe's time limit."""
    return recipe.time_limit is not None and state.seconds >= 60 * recipe.time_limit


def finish_epoch(state: State, val_accuracy: float, val_loss: float, recipe: Recipe) -> Epoch:
    """Advance `state` to the next epoch and return the history row of the one that ended.

    Raises `LandmarksError` if the validation loss is not finite: the last steps have ruined the network.
    """
    if not math.isfinite(val_loss):
        raise LandmarksError(
            f"training broke down in epoch {state.epoch + 1}",
            received=f"a validation loss of {val_loss:g}",
            way_out=_steadier(recipe),
        )
    loss, correct, seen = state.loss_sum, state.correct, state.seen
    state.epoch, state.loss_sum, state.correct, state.seen = state.epoch + 1, 0.0, 0.0, 0.0
    row = Epoch(
        phase="finetune",
        epoch=state.epoch,
        step=state.step,
        seconds=state.seconds,
        learning_rate=state.learning_rate,
        train_loss=loss / seen,
        train_accuracy=correct / seen,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
    )
    state.rows.append(row)
    return row


def update_best(state: State, row: Epoch, recipe: Recipe) -> bool:
    """Store the epoch with this history row in `state` if it is the best so far, and return whether it is.

    After `patience` epochs without a better one, fine-tuning ends.
    """
    if state.best.is_beaten_by(row):
        state.best, state.epochs_since_best = Best(row.phase, row.epoch, row.val_accuracy, row.val_loss), 0
        return True
    if state.epochs_since_best + 1 >= recipe.patience and not state.ended:
        state.ended = f"no better epoch in {recipe.patience}"
    else:
        state.epochs_since_best += 1
    return False


def epoch_line(row: Epoch, recipe: Recipe) -> str:
    """Return the summary line of an epoch."""
    return (
        f"epoch {row.epoch}/{recipe.epochs}: training loss {row.train_loss:.3f}, {100 * row.train_accuracy:.1f} %; "
        f"validation loss {row.val_loss:.3f}, {100 * row.val_accuracy:.1f} %; {row.seconds:.0f} s"
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


# ── Checkpoints: the state with its tensors ─────────────────────────────────────────────────────────────────────────


def tensors_of(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, best: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return weights, moments and the best weights by their names in a checkpoint."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items() if torch.is_tensor(value)}
    return tensors


def save_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], state: State) -> None:
    """Replace the checkpoint in `folder`; a kill at any instant leaves the earlier one or this one, whole."""
    with written_whole(folder / FILE) as aside:
        save_file(for_storage(tensors), aside, metadata={"format": str(FORMAT), "state": json.dumps(asdict(state))})


def load_checkpoint(
    folder: Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    own_rows: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
) -> tuple[dict[str, torch.Tensor], State] | None:
    """Restore `network` and `optimizer` from the checkpoint in `folder`; return the best weights and the state.

    `own_rows` returns what this process holds of a tensor; all of it, unless the head is split. Returns None when there
    is no checkpoint. Raises `LandmarksError` when it does not fit the network.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            refuse_other_formats(path, int(metadata["format"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            if own_rows:
                tensors = {name: own_rows(name, tensor) for name, tensor in tensors.items()}
            # Copies, since tensors are views into the file, which Windows then would not let be replaced.
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        network.load_state_dict(_under("network.", tensors))
    except (SafetensorError, RuntimeError, KeyError, OSError) as error:
        raise _checkpoint_error(path, str(error).splitlines()[0]) from error
    try:
        _load_optimizer(optimizer, _under("optimizer.", tensors))
    except (ValueError, IndexError) as error:
        raise _checkpoint_error(path, str(error)) from error
    return _under("best.", tensors), State.from_record(json.loads(metadata["state"]))


def remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a finished training; what a kill leaves, the next call removes."""
    shutil.rmtree(folder, ignore_errors=True)


def copy_of_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of all tensors of `network`, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _checkpoint_error(path: Path, reason: str) -> LandmarksError:
    return LandmarksError(
        f"{path} is damaged or of another network ({reason})",
        way_out=f"delete {path.parent.parent} to start this training anew",
    )


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, _, moment = name.partition(".")
        parameter = parameters[int(index)]
        if value.ndim:  # all but the step count
            if value.shape != parameter.shape:
                raise ValueError(f"{moment} {index} is {tuple(value.shape)}, its weights are {tuple(parameter.shape)}")
            # Moments must have the memory layout of their weights, or a fused optimizer would mix them up.
            value = torch.empty_like(parameter, device="cpu").copy_(value)  # noqa: PLW2901
        state.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
