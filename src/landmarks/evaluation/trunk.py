"""What a run's trunk sees in the photographs of a part: the features that warm-up was trained on, if they are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from landmarks.dataset.manifest import Dataset
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.training.features import cached_features, positions
from landmarks.training.machine import Machine, open_machine
from landmarks.training.precision import choose_device, choose_layout
from landmarks.training.recipe import recipe_named
from landmarks.training.run import Run


def features_of(
    run: Run, dataset: Dataset, part: str, device: str = "auto"
) -> tuple[pl.DataFrame, NDArray[np.float16]]:
    """Return the photographs of `part` that show known landmarks, with their `label`, and their features `(P, C)`.

    Training keeps the features of train and val together, so both are asked for where one of them is wanted. They are
    computed as in training, in the same precision and, with `device` auto and where it is there, on the same device.
    Raises `LandmarksError` when the part shows no known landmark.
    """
    photos = _known(dataset, part)
    if not len(photos):
        raise LandmarksError(
            f"the {part} part of {dataset.folder} shows no known landmark: there is nothing to compare"
        )
    together = photos
    if part in ("train", "val"):
        together = pl.concat([_known(dataset, name) for name in ("train", "val")]).sort("id")
    machine = _machine_of(run, dataset, device)
    network = run.network().to(machine.device)
    if choose_layout(network).value == "channels last":
        network.to(memory_format=torch.channels_last)
    values = cached_features(network, dataset, together, machine=machine).values
    return photos, np.asarray(values[positions(together, photos)])


def _machine_of(run: Run, dataset: Dataset, device: str) -> Machine:
    """Open this machine as the run's training did; a device that is not here is replaced by the best there is."""
    trained = run.record.get("recipe", {})
    same = {name: trained[name] for name in ("device", "precision") if name in trained}
    recipe = recipe_named("default", **same, tracking="none")
    if device != "auto":
        recipe = replace(recipe, device=device)
    else:
        try:
            choose_device(recipe.device)
        except UsageError:
            recipe = replace(recipe, device="auto")
    return open_machine(recipe, dataset.folder)[0]


def _known(dataset: Dataset, part: str) -> pl.DataFrame:
    return dataset.part(part).filter(pl.col("label").is_not_null())
