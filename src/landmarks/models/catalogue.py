"""What a network costs before it is built: parameters, input size, multiply-adds, and the licence of its weights."""

from __future__ import annotations

import contextlib
from typing import Any

import polars as pl
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from landmarks.models.backbones import BASELINE, STUDY, networks_like, pretrained_record, timm_name
from landmarks.models.network import Network, count_parameters, empty_network, require_features
from landmarks.support.console import note, progress
from landmarks.support.errors import LandmarksError

COLUMNS = {
    "network": pl.String,
    "timm": pl.String,  # the name timm has for it; null for our own
    "parameters": pl.Int64,
    "trainable": pl.Int64,
    "non_trainable": pl.Int64,  # running means and variances of batch normalisation
    "image_size": pl.Int64,  # in pixels
    "gmacs": pl.Float64,  # billions of multiply-adds for one image forward
    "license": pl.String,  # of the ImageNet weights; null where nothing is stated
}
"""Columns of the table that `networks` returns."""


def networks(
    name: str | None = None, *, classes: int = 20, head: str = "mlp", image_size: int | None = None
) -> pl.DataFrame:
    """Return one row per network, `COLUMNS`: the study's seven, or the one called `name` (any of timm's too).

    A `name` with a star (`mobilenet*`) is all of timm's that are called so; those that take no image of that size, or
    give no features, are counted in a note.

    Counts include the head for `classes` landmarks. Nothing is allocated: the networks are built without memory.
    """
    if name is None or not set(name) & set("*?["):
        names = STUDY if name is None else (name,)
        return pl.DataFrame([_describe(each, classes, head, image_size) for each in names], schema=COLUMNS)
    rows, found = [], networks_like(name)
    with progress("counting", total=len(found)) as advance:
        for each in found:
            with contextlib.suppress(LandmarksError):
                rows.append(_describe(each, classes, head, image_size))
            advance(1)
    if len(rows) < len(found):
        note(f"{len(found) - len(rows)} of {len(found)} networks are left out: they take no such images")
    return pl.DataFrame(rows, schema=COLUMNS)


def _describe(backbone: str, classes: int, head: str, image_size: int | None) -> dict[str, Any]:
    with torch.device("meta"):
        network = empty_network(backbone, classes=classes, head=head, image_size=image_size)
    counts = count_parameters(network)
    try:
        cost = gmacs(network)
    except (TypeError, RuntimeError, ValueError, AttributeError, AssertionError):
        require_features(network)  # which says why, and what to do
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
    """Return the billions of multiply-adds of one image's way forward, counted while it goes through.

    Convolutions and matrix products are counted, those of attention too. A multiplication and the addition that goes
    with it are one multiply-add, as in timm's tables of results; papers often call the same number FLOPs. A network on
    the meta device is counted without being computed.
    """
    size, device = network.preprocessing.image_size, next(network.parameters()).device
    training = network.training
    # Fused attention is one operation that the counter knows on some devices only.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, size, size, device=device))
    network.train(training)
    return float(counter.get_total_flops()) / 2 / 1e9  # it counts a multiply-add as two operations
