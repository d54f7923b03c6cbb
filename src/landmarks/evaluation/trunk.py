"""What a run's trunk sees in the photographs of a part: the features that warm-up was trained on, if they are kept."""

from __future__ import annotations

import numpy as np
import polars as pl
from accelerate import Accelerator
from numpy.typing import NDArray

from landmarks.dataset.manifest import Dataset
from landmarks.training.features import cached_features, positions
from landmarks.training.machine import Machine
from landmarks.training.precision import choose_device
from landmarks.training.run import Run


def features_of(
    run: Run, dataset: Dataset, part: str, device: str = "auto"
) -> tuple[pl.DataFrame, NDArray[np.float16]]:
    """Return the photographs of `part` that show known landmarks, with their `label`, and their features `(P, C)`.

    Training keeps the features of train and val together, so both are asked for where one of them is wanted.
    """
    photos = _known(dataset, part)
    together = photos
    if part in ("train", "val"):
        together = pl.concat([_known(dataset, name) for name in ("train", "val")]).sort("id")
    machine = Machine(Accelerator(cpu=choose_device(device).value == "cpu"))
    values = cached_features(run.network().to(machine.device), dataset, together, machine=machine).values
    return photos, np.asarray(values[positions(together, photos)])


def _known(dataset: Dataset, part: str) -> pl.DataFrame:
    return dataset.part(part).filter(pl.col("label").is_not_null())
