"""A run's network at work: pictures in, its five best answers and the scores that tell known from unknown out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from landmarks.dataset.manifest import NO_LABEL
from landmarks.evaluation.rejection import Reference, rejection_scores
from landmarks.networks.folding import folded
from landmarks.networks.network import Network
from landmarks.support.files import digest_of, read_record, write_record
from landmarks.training.photos import normalised
from landmarks.training.precision import choose_device, choose_layout
from landmarks.training.run import Run

ANSWERS = 5
"""Answers kept per photograph; with fewer landmarks than that, all."""


@dataclass(frozen=True)
class Answers:
    """What the network says about N photographs, best answer first, k = 5 or the number of landmarks."""

    labels: NDArray[np.int64]  # (N, k), by score descending, equal scores by label ascending
    scores: NDArray[np.float32]  # (N, k), probabilities after temperature
    truth_log_scores: NDArray[np.float32]  # (N,), natural logarithm of the probability of `first`; NaN where none
    untempered: NDArray[np.float32]  # (N,), the largest probability before temperature
    rejection: dict[str, NDArray[np.float32]]  # score name → (N,), larger: more surely a known landmark


@dataclass(frozen=True)
class Recogniser:
    """A network, its temperature, and what it remembers of its training photographs (None: nothing)."""

    network: Network
    temperature: float = 1.0
    reference: Reference | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @torch.no_grad()
    def answer(self, images: torch.Tensor, first: NDArray[np.int64] | None = None) -> Answers:
        """Answer uint8 `images` (N, 3, S, S); `first` (N,) is what each shows, `NO_LABEL` where nothing known."""
        features = self.network.features(normalised(images, self.network.preprocessing, self.device)).float()
        logits = self.network.classify(features).float()
        probabilities = torch.softmax(logits / self.temperature, dim=1)
        labels, scores = best_answers(probabilities.cpu().numpy(), ANSWERS)
        first = np.full(len(images), NO_LABEL) if first is None else first
        truth = torch.from_numpy(np.maximum(first, 0)).to(self.device)
        logs = (
            torch.log_softmax(logits / self.temperature, dim=1)[torch.arange(len(truth), device=self.device), truth]
            .cpu()
            .numpy()
        )
        return Answers(
            labels=labels,
            scores=scores,
            truth_log_scores=np.where(first == NO_LABEL, np.nan, logs).astype(np.float32),
            untempered=torch.softmax(logits, dim=1).amax(dim=1).cpu().numpy(),
            rejection=rejection_scores(features.cpu().numpy(), logits.cpu().numpy(), self.reference),
        )

    @property
    def digest(self) -> str:
        """Changes with whatever, beside the weights, changes the answers."""
        return digest_of(self.temperature, None if self.reference is None else self.reference.digest)


def open_recogniser(run: Run, reference: Reference | None = None, device: str = "auto") -> Recogniser:
    """Load a run's network on `device` (see `choose_device`), with the temperature its `model.json` holds."""
    place = torch.device(choose_device(device).value)
    record: dict[str, Any] = read_record(run.folder / "model.json")
    network = folded(run.network().to(place))
    if choose_layout(network).value == "channels last":
        network.to(memory_format=torch.channels_last)
    return Recogniser(network, float(record.get("temperature") or 1.0), reference, place)


def update_model(run: Run, **changes: object) -> None:
    """Rewrite the run's `model.json` with `changes`, keeping all else, what wrote it included."""
    path = run.folder / "model.json"
    record = {**read_record(path), **changes}
    verb, inputs = record.pop("verb", "train"), record.pop("inputs", "")
    write_record(path, record, verb=verb, inputs=inputs)


def best_answers(probabilities: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return `(labels, scores)` `(N, k)` of the `k` largest of `probabilities` `(N, K)`; equal ones by label ascending.

    Linear in K: only rows whose k-th value occurs more often than there is room for it are sorted whole.
    """
    k = min(k, probabilities.shape[1])
    chosen = np.argpartition(-probabilities, k - 1, axis=1)[:, :k].astype(np.int64)
    worst = np.take_along_axis(probabilities, chosen, axis=1).min(axis=1)
    for row in np.flatnonzero((probabilities >= worst[:, None]).sum(axis=1) > k):
        chosen[row] = np.argsort(-probabilities[row], kind="stable")[:k]
    chosen.sort(axis=1)
    scores = np.take_along_axis(probabilities, chosen, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1), np.take_along_axis(scores, order, axis=1)
