"""The costs of networks: parameters, input size and multiply-adds, and the licence of their weights."""

from __future__ import annotations

import contextlib
from typing import Any

import polars as pl
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from landmarks.models import MAX_IMAGE_SIZE, MIN_IMAGE_SIZE
from landmarks.models.backbones import BASELINE, STUDY, networks_like, pretrained_record, timm_name
from landmarks.models.heads import build_head
from landmarks.models.network import Network, count_parameters, empty_network, require_features
from landmarks.support.console import note, progress
from landmarks.support.errors import LandmarksError, UsageError

NETWORK_COLUMNS = {
    "network": pl.String,
    "timm": pl.String,  # timm's name; null for the baseline
    "parameters": pl.Int64,
    "trainable": pl.Int64,
    "non_trainable": pl.Int64,  # running means and variances of batch normalisation
    "image_size": pl.Int64,  # in pixels
    "gmacs": pl.Float64,  # billions of multiply-adds per image, forward
    "license": pl.String,  # of the ImageNet weights; null where nothing is stated
}
"""Columns of the table that `networks` returns."""


def networks(
    name: str | None = None, *, classes: int = 20, head: str = "mlp", image_size: int | None = None
) -> pl.DataFrame:
    """Return a table with one row per network (columns `NETWORK_COLUMNS`): of the study's networks, or of `name`.

    `name` may be any network of timm, or a pattern (`mobilenet*`) for all that match; those that cannot take images of
    `image_size` pixels, or give no features, are left out and counted in a note.

    The counts include the head for `classes` landmarks. The networks are built without allocating memory. Raises
    `UsageError` for an `image_size` that no recipe may have.
    """
    if image_size is not None and not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE:
        expected = f"a whole number ({MIN_IMAGE_SIZE:,} or more, at most {MAX_IMAGE_SIZE:,})"
        raise UsageError("the image size cannot be used", received=image_size, expected=expected)
    if name is None or not set(name) & set("*?["):
        names = STUDY if name is None else (name,)
        return pl.DataFrame([_describe(each, classes, head, image_size) for each in names], schema=NETWORK_COLUMNS)
    with torch.device("meta"):
        build_head(head, 1, classes)  # raises for what no network would change
    rows, matching = [], networks_like(name)
    with progress("counting", total=len(matching)) as advance:
        for each in matching:
            with contextlib.suppress(LandmarksError):
                rows.append(_describe(each, classes, head, image_size))
            advance(1)
    if len(rows) < len(matching):
        note(f"{len(matching) - len(rows)} of {len(matching)} networks are left out: they take no such images")
    return pl.DataFrame(rows, schema=NETWORK_COLUMNS)


def _describe(backbone: str, classes: int, head: str, image_size: int | None) -> dict[str, Any]:
    with torch.device("meta"):
        network = empty_network(backbone, classes=classes, head=head, image_size=image_size)
    counts = count_parameters(network)
    try:
        cost = gmacs(network)
    except (TypeError, RuntimeError, ValueError, AttributeError, AssertionError):
        require_features(network)  # raises an error that says why, and what to do
        raise
    return {
        "network": backbone,
        "timm": None if backbone == BASELINE else timm_name(backbone),
        "parameters": counts.total,
        "trainable": counts.trainable,
        "non_trainable": counts.non_trainable,
        "image_size": network.preprocessing.image_size,
        "gmacs": round(cost, 3),
        "license": pretrained_record(backbone)["license"],
    }


@torch.no_grad()
def gmacs(network: Network) -> float:
    """Return the billions of multiply-adds of one forward pass of one image, counted during the pass.

    Convolutions and matrix products are counted, including those of attention. A multiplication with its addition is
    one multiply-add, as in timm's tables of results; papers often call the same number FLOPs. A network on the meta
    device is counted without computation.
    """
    size, device = network.preprocessing.image_size, next(network.parameters()).device
    training = network.training
    # Fused attention is one operation that the counter knows on some devices only.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, size, size, device=device))
    network.train(training)
    return float(counter.get_total_flops()) / 2 / 1e9  # the counter takes a multiply-add as two operations
