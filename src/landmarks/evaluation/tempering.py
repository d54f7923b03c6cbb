"""The temperature of a run's network: fitted once, on the validation part, and stored with the model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.recogniser import Recogniser, update_model
from landmarks.evaluation.reference import sample
from landmarks.support.console import note, progress
from landmarks.support.errors import LandmarksError
from landmarks.support.files import read_record
from landmarks.training.features import kept_features
from landmarks.training.own_data import photographs_seen
from landmarks.training.photos import batches, normalised
from landmarks.training.run import Run

MAX_BYTES = 128 * 1024**2
"""Size of the outputs that the temperature is fitted on, in half precision: 300 photographs of 203,094 landmarks."""


def ensure_temperature(run: Run, dataset: Dataset, recogniser: Recogniser, batch_size: int) -> Recogniser:
    """Return `recogniser` with its run's temperature, fitted now and stored in `model.json` when there is none yet.

    It is fitted on what the run was validated with in `dataset`, its own; on features that warm-up kept, where the
    trunk is still the same. Without validation photographs it stays 1, with a note. Call it while holding the run's
    folder.
    """
    record = read_record(run.folder / "model.json")
    if record.get("temperature") is not None:
        return recogniser
    photos = photographs_seen(run, dataset, "val")
    if not len(photos):
        note("no validation photographs: the temperature stays 1")
        return recogniser
    photos = photos.filter(pl.Series(sample(photos["run_label"].to_numpy(), MAX_BYTES // (2 * len(run.labels)))))
    logits = np.empty((len(photos), len(run.labels)), dtype=np.float16)
    done = 0
    with torch.no_grad(), progress("fitting the temperature", total=len(photos)) as advance:
        for outputs in _outputs(run, dataset, photos, recogniser, batch_size):
            logits[done : done + len(outputs)] = in_half_precision(outputs).cpu()
            done += len(outputs)
            advance(len(outputs))
    temperature = fit_temperature(logits, photos["run_label"].to_numpy())
    update_model(run, temperature=temperature)
    note(f"temperature {temperature:.3f}, fitted on {len(photos)} validation photographs")
    return replace(recogniser, temperature=temperature)


def _outputs(
    run: Run, dataset: Dataset, photos: pl.DataFrame, recogniser: Recogniser, batch_size: int
) -> Iterator[torch.Tensor]:
    network, device = recogniser.network, recogniser.device
    kept = kept_features(run, dataset, photos)
    if kept is not None:
        for start in range(0, len(kept), batch_size):
            features = torch.from_numpy(np.asarray(kept[start : start + batch_size], dtype=np.float32))
            yield network.classify(features.to(device))
        return
    for batch in batches(dataset, photos, network.preprocessing, batch_size=batch_size):
        yield network(normalised(batch.images, network.preprocessing, device))


def in_half_precision(logits: torch.Tensor) -> torch.Tensor:
    """Return logits (N, K) less each row's largest, which changes no probability, as float16.

    A network that has learnt little yet may answer with outputs beyond what half precision holds; what lies further
    than that below the largest has no probability anyway.
    """
    below = logits.float() - logits.float().amax(dim=1, keepdim=True)
    return below.clamp(min=torch.finfo(torch.float16).min).half()


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer], rows_at_once: int = 4096) -> float:
    """Return the temperature that minimises the log loss of `logits / temperature` `(N, K)` for `labels` `(N,)`.

    Bounded to 0.05..20: with every validation photograph right the best temperature would be 0. The loss is convex in
    1/temperature, so the minimum found is the only one (Guo et al., ICML 2017).
    """
    if not len(labels):
        raise LandmarksError("no validation photographs to fit the temperature on")

    def loss(log_inverse: float) -> float:
        inverse, total = math.exp(log_inverse), 0.0
        for start in range(0, len(labels), rows_at_once):
            scaled = logits[start : start + rows_at_once].astype(np.float64) * inverse
            true = scaled[np.arange(len(scaled)), labels[start : start + rows_at_once]]
            total += float(np.sum(logsumexp(scaled, axis=1) - true))
        return total / len(labels)

    found = minimize_scalar(
        loss, bounds=(math.log(1 / 20), math.log(1 / 0.05)), method="bounded", options={"xatol": 1e-5}
    )
    return math.exp(-found.x)
