"""Predictions as arrays: what the metrics take, whether a run's file or somebody's submission brought them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.manifest import NO_LABEL
from landmarks.evaluation.metrics import Floats, Integers, Truth
from landmarks.evaluation.predictions import rejection_columns


@dataclass(frozen=True)
class Arrays:
    """The predictions of N photographs, whatever file they came from."""

    ids: NDArray[np.object_]
    truth: Truth
    labels: Integers  # (N, k), NO_LABEL after the last answer
    scores: Floats  # (N, k), larger is surer; probabilities when the file is ours
    groups: Integers  # (N,), -1: none
    usage: NDArray[np.object_]  # (N,), None: not told
    rejection: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # score name → (N,)
    truth_log_scores: Floats | None = None  # (N,), None: not told
    untempered: Floats | None = None  # (N,), largest probability before temperature, None: no probabilities

    @property
    def all_scores(self) -> dict[str, NDArray[np.float32]]:
        """The scores that may tell known from unknown: the best answer's own, then `rejection`."""
        name = "score" if self.untempered is None else "probability"
        return {name: self.scores[:, 0].astype(np.float32), **self.rejection}


def arrays_of(predictions: pl.DataFrame) -> Arrays:
    """Return a predictions table as arrays."""
    counts = predictions["truth"].list.len().to_numpy()
    shown = predictions["truth"].explode(empty_as_null=False).drop_nulls().to_numpy().astype(np.int64)
    rows = np.repeat(np.arange(len(predictions)), counts)
    k = int(predictions["label"].list.len().max() or 1)  # type: ignore[arg-type]
    return Arrays(
        ids=predictions["id"].to_numpy(),
        truth=Truth(rows, shown, len(predictions)),
        labels=predictions["label"].list.to_array(k).to_numpy().astype(np.int64),
        scores=predictions["score"].list.to_array(k).to_numpy(),
        groups=predictions["group"].cast(pl.Int64).fill_null(NO_LABEL).to_numpy(),
        usage=predictions["usage"].to_numpy(),
        rejection={name: predictions[name].to_numpy() for name in rejection_columns(predictions)},
        truth_log_scores=predictions["truth_score"].to_numpy(),
        untempered=predictions["untempered"].to_numpy(),
    )
