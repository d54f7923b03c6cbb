"""Phase one: the head alone, on cached features, trained until validation stops improving or solved in closed form."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from landmarks.models.heads import Head
from landmarks.models.network import Network
from landmarks.support.console import progress
from landmarks.support.errors import LandmarksError
from landmarks.support.seeds import generator
from landmarks.training.discriminant import class_moments, discriminant_of, fitted_scale
from landmarks.training.features import Rows
from landmarks.training.loader import epoch_order
from landmarks.training.recipe import Recipe
from landmarks.training.run import Epoch

BLOCK = 4096
"""Cached features classified at a time."""


@dataclass(frozen=True)
class HeadTraining:
    """The result of a head training: its best epoch, and one history row per epoch."""

    epoch: int
    val_accuracy: float
    val_loss: float
    rows: list[Epoch]


def train_head(
    network: Network,
    views: Sequence[Rows],
    labels: NDArray[np.int64],
    val_features: Rows,
    val_labels: NDArray[np.int64],
    *,
    recipe: Recipe,
) -> HeadTraining:
    """Train `network.head` on cached features and leave it at its best epoch.

    `views` are features (P, C) of the same images with `labels` (P,); each epoch uses the next of them in turn. The
    best epoch has the highest validation accuracy and, among equals, the lowest loss. Ends after `head_patience` epochs
    without a better validation accuracy or loss. Raises `LandmarksError` when a loss is no longer finite.
    """
    head = network.head
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=recipe.head_learning_rate, weight_decay=recipe.head_weight_decay
    )
    started, rows = time.monotonic(), []
    best, best_epoch, best_weights, lowest, since_better = (-1.0, 0.0), 0, head.state_dict(), float("inf"), 0
    with progress("head training", recipe.head_epochs) as advance:
        for epoch in range(1, recipe.head_epochs + 1):
            view = views[(epoch - 1) % len(views)]
            train_loss, train_accuracy = _epoch(head, optimizer, view, labels, recipe=recipe, epoch=epoch)
            val_accuracy, val_loss = validate_head(network, val_features, val_labels)
            steps = epoch * -(-len(labels) // recipe.head_batch_size)
            if not np.isfinite(train_loss + val_loss):
                raise LandmarksError(
                    f"the head training's loss became {train_loss + val_loss} in epoch {epoch}, steps up to {steps}",
                    way_out="lower head_learning_rate",
                )
            rows.append(
                Epoch(
                    phase="head",
                    epoch=epoch,
                    step=steps,
                    seconds=time.monotonic() - started,
                    learning_rate=recipe.head_learning_rate,
                    train_loss=train_loss,
                    train_accuracy=train_accuracy,
                    val_loss=val_loss,
                    val_accuracy=val_accuracy,
                )
            )
            since_better += 1
            if (val_accuracy, -val_loss) > best:
                best, best_epoch, since_better = (val_accuracy, -val_loss), epoch, 0
                best_weights = {name: tensor.clone() for name, tensor in head.state_dict().items()}
            if val_loss < lowest:
                lowest, since_better = val_loss, 0
            advance(1, f"loss {train_loss:.3f}, validation {100 * val_accuracy:.1f} %")
            if since_better >= recipe.head_patience:
                break
    head.load_state_dict(best_weights)
    return HeadTraining(best_epoch, best[0], -best[1], rows)


def _epoch(
    head: Head,
    optimizer: torch.optim.Optimizer,
    features: Rows,
    labels: NDArray[np.int64],
    *,
    recipe: Recipe,
    epoch: int,
) -> tuple[float, float]:
    """Take one step per batch of cached features; return the mean loss and accuracy of the batches."""
    head.train()
    device = next(head.parameters()).device
    weights = class_weights(labels, head.classes, recipe.balance).to(device)
    torch.manual_seed(int(generator(recipe.seed, "head training", epoch).integers(2**63)))
    order = epoch_order(len(labels), recipe.seed, -epoch)
    loss_sum = correct = 0.0
    for start in range(0, len(order), recipe.head_batch_size):
        rows = order[start : start + recipe.head_batch_size]
        inputs = torch.from_numpy(features[rows]).to(device).float()
        targets = torch.from_numpy(labels[rows]).to(device)
        loss = head.loss(inputs, targets, label_smoothing=recipe.label_smoothing, class_weights=weights)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        loss_sum += loss.item() * len(rows)
        with torch.no_grad():
            correct += float((head(inputs).argmax(1) == targets).sum())
    return loss_sum / len(labels), correct / len(labels)


SHRINKAGES = (0.1, 0.3, 0.5)
"""Candidates for the shrinkage of the within-landmark covariance; validation chooses."""

MAX_WIDTH = 8192
"""Longest features for a head in closed form: their covariance has this many rows and columns."""


@torch.no_grad()
def solve_head(
    network: Network,
    features: Rows,
    labels: NDArray[np.int64],
    val_features: Rows,
    val_labels: NDArray[np.int64],
) -> HeadTraining:
    """Set `network.head`, a linear one, to the linear discriminant of features (P, C) with labels (P,).

    No gradient step is taken. Shrinkage and scale are chosen on validation, by accuracy and then by loss. Raises
    `LandmarksError` for features longer than `MAX_WIDTH`.
    """
    started, output = time.monotonic(), cast(torch.nn.Linear, network.head.output)
    if features.shape[1] > MAX_WIDTH:
        raise LandmarksError(
            f"the features of {network.backbone_name} are too long for a head in closed form",
            received=f"{features.shape[1]:,} numbers",
            expected=f"at most {MAX_WIDTH:,}",
            way_out="train the head with --recipe default",
        )
    moments = class_moments(features, labels, network.classes)
    candidates: dict[tuple[float, float], dict[str, torch.Tensor]] = {}  # (accuracy, -loss) → weights
    for shrinkage in SHRINKAGES:
        solved = discriminant_of(moments, shrinkage)
        scores = np.concatenate([solved.scores(val_features[a : a + BLOCK]) for a in range(0, len(val_labels), BLOCK)])
        scale = fitted_scale(scores, val_labels)
        bias = np.maximum(solved.bias, -1e6 * scale)  # finite, but a landmark without images is never answered
        output.weight.copy_(torch.from_numpy(solved.weights.T / scale))
        output.bias.copy_(torch.from_numpy(bias / scale))
        accuracy, loss = validate_head(network, val_features, val_labels)
        candidates[accuracy, -loss] = {name: tensor.clone() for name, tensor in network.head.state_dict().items()}
    network.head.load_state_dict(candidates[max(candidates)])
    train_accuracy, train_loss = validate_head(network, features, labels)
    val_accuracy, val_loss = validate_head(network, val_features, val_labels)
    seconds = time.monotonic() - started
    row = Epoch("head", 1, 0, seconds, None, train_loss, train_accuracy, val_loss, val_accuracy)
    return HeadTraining(1, val_accuracy, val_loss, [row])


@torch.no_grad()
def validate_head(network: Network, features: Rows, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy of the head on cached features (P, C) with labels (P,)."""
    network.head.eval()
    device = next(network.head.parameters()).device
    correct = loss = 0.0
    for start in range(0, len(labels), BLOCK):
        logits = network.classify(torch.from_numpy(features[start : start + BLOCK]).to(device).float())
        targets = torch.from_numpy(labels[start : start + BLOCK]).to(device)
        correct += float((logits.argmax(1) == targets).sum())
        loss += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    return correct / len(labels), loss / len(labels)


def class_weights(labels: NDArray[np.int64], classes: int, balance: float) -> torch.Tensor:
    """Return the loss weight (K,) of each class: n ** -balance, scaled to a mean of 1 over the images."""
    counts = np.bincount(labels, minlength=classes)
    weights = np.where(counts, np.maximum(counts, 1) ** -float(balance), 0.0)
    return torch.from_numpy(weights * len(labels) / (weights * counts).sum()).float()
