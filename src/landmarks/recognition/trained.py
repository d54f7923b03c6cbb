"""Answers from a run: its PyTorch network, its gallery of remembered images, and its fitted temperature."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from landmarks.dataset.manifest import NO_LABEL, Dataset
from landmarks.dataset.shards import missing_files
from landmarks.models.gradcam import explain_images, scale_maps
from landmarks.models.network import Network
from landmarks.models.rewriting import fold_batch_norm
from landmarks.recognition.answering import answering_as_stored, answering_by, learned_head, trained_head
from landmarks.recognition.answers import Answers, Explanation, KnownRule, answers_of, best_answers
from landmarks.recognition.closed_form import read_learned, read_memory, with_learned, without_learned
from landmarks.recognition.gallery import Gallery, open_gallery, rejection_scores, sample
from landmarks.recognition.learned import Learned
from landmarks.recognition.recogniser import BOTH, CLASSIFIER, NEIGHBOURS, Recogniser
from landmarks.recognition.vectors import directions
from landmarks.support.console import note, progress
from landmarks.support.errors import LandmarksError
from landmarks.support.files import read_record, write_record
from landmarks.training.choices import choose_device, prepare_for_inference, set_memory_layout
from landmarks.training.discriminant import LEAST_WRONG
from landmarks.training.features import kept_features
from landmarks.training.loader import batches, normalised
from landmarks.training.own_data import images_seen
from landmarks.training.run import Run


@torch.no_grad()
def answers_to_images(
    recogniser: Recogniser,
    images: Sequence[NDArray[np.uint8]],
    truth: NDArray[np.int64],
    answers: int,
    excluded: NDArray[np.int64] | None = None,
) -> Answers:
    """Answer cropped squares uint8 (S, S, 3) by a run's network, as `Recogniser.answer` does."""
    network, device, temperature = recogniser.trained, recogniser.device, recogniser.temperature
    features = network.features(_normalised(recogniser, images)).float()
    logits = network.classify(features).float()
    probabilities = torch.softmax(logits / temperature, dim=1)
    labels, scores = best_answers(probabilities.cpu().numpy(), answers)
    columns = torch.from_numpy(np.maximum(truth, 0)).to(device)
    rows = torch.arange(len(columns), device=device)
    truth_logs = torch.log_softmax(logits / temperature, dim=1)[rows, columns].cpu().numpy()
    return Answers(
        labels=labels,
        scores=scores,
        truth_log_scores=np.where(truth == NO_LABEL, np.nan, truth_logs).astype(np.float32),
        untempered=torch.softmax(logits, dim=1).amax(dim=1).cpu().numpy(),
        rejection=rejection_scores(features.cpu().numpy(), logits.cpu().numpy(), recogniser.gallery, excluded),
    )


@torch.no_grad()
def features_of_images(recogniser: Recogniser, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return the pooled features float32 (N, C) of cropped squares uint8 (S, S, 3)."""
    features: NDArray[np.float32] = recogniser.trained.features(_normalised(recogniser, images)).float().cpu().numpy()
    return features


def vectors_of_images(recogniser: Recogniser, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return the directions (N, D) of the features of cropped squares uint8 (S, S, 3), which a run learns from."""
    return directions(features_of_images(recogniser, images))


def explanations_of_images(
    recogniser: Recogniser, images: Sequence[NDArray[np.uint8]], top: int
) -> Iterator[Explanation]:
    """Yield the `top` best answers to cropped squares uint8 (S, S, 3), with heat maps."""
    explained = explain_images(recogniser.trained, _normalised(recogniser, images), top, recogniser.temperature)
    probabilities = explained.probabilities.gather(1, explained.labels).tolist()
    maps = scale_maps(explained.maps).float().cpu().numpy()
    for row, labels in enumerate(explained.labels.tolist()):
        answers = answers_of(recogniser.names, recogniser.landmark_ids, labels, probabilities[row])
        yield Explanation(answers, maps[row], images[row], explained.method)


def _normalised(recogniser: Recogniser, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return normalised(pixels, recogniser.trained.preprocessing, recogniser.device)


def open_trained(run: Run, device: str = "auto", by: str | None = None) -> Recogniser:
    """Load a run with its gallery and learned landmarks; see `open_recogniser`.

    It answers `by` classifier, neighbours or both; by default the way that validation chose.
    """
    opened, record = _opened(run, open_gallery(run), device)
    recogniser = replace(opened, memory=read_memory(run.folder, run.digest))
    learned = read_learned(run.folder, run.digest)
    recogniser = with_landmarks(recogniser, learned) if learned.names else recogniser
    return answering_as_stored(recogniser, record, by, run.folder)


def with_landmarks(recogniser: Recogniser, learned: Learned) -> Recogniser:
    """Return `recogniser` with exactly the landmarks `learned` in addition to those it was trained for.

    Raises `LandmarksError` when it has no memory of its own images, which new landmarks are told apart from.
    """
    network, trained = recogniser.trained, len(recogniser.names) - len(recogniser.learned.names)
    if recogniser.memory is None:
        raise LandmarksError(
            "this recogniser keeps nothing of its own images, and cannot learn",
            way_out="landmarks learn RUN IMAGES --name NAME, with the run's dataset there, makes what it needs",
        )
    head = trained_head(network.head)
    gallery = recogniser.gallery and without_learned(recogniser.gallery, trained)
    if learned.names:
        mixed = learned_head(head, network.width, recogniser.memory, learned, recogniser.temperature)
        head = mixed.to(recogniser.device).eval()
        gallery = gallery and with_learned(gallery, learned, trained)
    changed = replace(
        recogniser,
        network=Network(network.backbone_name, network.backbone, network.head_name, head, network.preprocessing).eval(),
        names=[*recogniser.names[:trained], *learned.names],
        landmark_ids=[*recogniser.landmark_ids[:trained], *learned.landmark_ids],
        gallery=gallery,
        learned=learned,
        by=BOTH if learned.names else CLASSIFIER,
    )
    if recogniser.choice is None or (learned.names and recogniser.by != NEIGHBOURS):
        return changed
    return answering_by(changed, recogniser.choice.by if recogniser.learned.names else recogniser.by)


def open_recogniser(run: Run, gallery: Gallery | None = None, device: str = "auto") -> Recogniser:
    """Load a run's network on `device` (see `choose_device`), with temperature and threshold from its `model.json`."""
    return _opened(run, gallery, device)[0]


def _opened(run: Run, gallery: Gallery | None, device: str) -> tuple[Recogniser, dict[str, Any]]:
    place = torch.device(choose_device(device).value)
    record: dict[str, Any] = read_record(run.folder / "model.json")
    network = fold_batch_norm(run.network().to(place))
    set_memory_layout(network)
    prepare_for_inference(place)
    ids = run.labels["landmark_id"].to_list()
    if network.classes != len(ids):
        raise LandmarksError(
            f"the network in {run.folder} answers other landmarks than its labels",
            received=f"{network.classes} answers",
            expected=len(ids),
        )
    temperature, rule, threshold = _calibration(run.folder / "model.json", record)
    recogniser = Recogniser(
        network=network,
        names=[str(id) if name is None else name for id, name in zip(ids, run.labels["name"], strict=True)],
        landmark_ids=ids,
        temperature=temperature,
        gallery=gallery,
        rule=rule,
        threshold=threshold,
        device=place,
    )
    return recogniser, record


def _calibration(path: Path, record: dict[str, Any]) -> tuple[float, KnownRule | None, float]:
    """Return temperature, rule and threshold of a run's `model.json`. Raises `LandmarksError` for invalid ones."""
    rejection = record.get("rejection")
    try:
        temperature = float(record.get("temperature") or 1.0)
        rule = None if rejection is None else KnownRule(**rejection["rule"])
        threshold = 0.0 if rejection is None else float(rejection["threshold"])
        numbers = [threshold] if rule is None else [threshold, rule.constant, *rule.weights.values()]
        sound = 0 < temperature < math.inf and all(math.isfinite(number) for number in numbers)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise LandmarksError(f"{path} holds no temperature and threshold ({type(error).__name__}: {error})") from error
    if not sound:
        raise LandmarksError(f"{path} holds a temperature or a threshold that is no finite number")
    return temperature, rule, threshold


def update_model(run: Run, **changes: object) -> None:
    """Update `changes` in the run's `model.json`, keeping everything else, including the verb that wrote it."""
    path = run.folder / "model.json"
    record = {**read_record(path), **changes}
    verb, inputs = record.pop("verb", "train"), record.pop("inputs", "")
    write_record(path, record, verb=verb, inputs=inputs)


# ── The temperature: fitted once, on the validation split, and stored with the model ─────────────────────────────────


MAX_BYTES = 128 * 1024**2
"""Size of the logits that the temperature is fitted on, in half precision: 300 images of 203,094 landmarks."""


def ensure_temperature(run: Run, dataset: Dataset, recogniser: Recogniser, batch_size: int) -> Recogniser:
    """Return `recogniser` with its run's temperature, which is fitted now and stored in `model.json` if it has none.

    It is fitted on the run's validation images in `dataset`, its own, from the features that head training cached if
    the backbone has not changed since. Without validation images, or with fewer than `LEAST_WRONG` wrong answers to
    them, it stays 1, with a note; it is not stored if the images are gone. Call it while holding the run's folder.
    """
    record = read_record(run.folder / "model.json")
    if record.get("temperature") is not None:
        return recogniser
    images = images_seen(run, dataset, "val")
    if not len(images):
        note("no validation images: the temperature stays 1")
        return recogniser
    images = images.filter(pl.Series(sample(images["run_label"].to_numpy(), MAX_BYTES // (2 * len(run.labels)))))
    missing, _ = missing_files(dataset, images["shard"])
    if missing and kept_features(run, dataset, images) is None:
        note(f"the validation images are not there any more, such as {missing[0]}: the temperature stays 1")
        return recogniser
    logits = np.empty((len(images), len(run.labels)), dtype=np.float16)
    done = 0
    with torch.no_grad(), progress("fitting the temperature", total=len(images)) as advance:
        for outputs in _outputs(run, dataset, images, recogniser, batch_size):
            logits[done : done + len(outputs)] = in_half_precision(outputs).cpu().numpy()
            done += len(outputs)
            advance(len(outputs))
    labels = images["run_label"].to_numpy()
    wrong = int((logits.argmax(axis=1) != labels).sum())
    if wrong < LEAST_WRONG:
        update_model(run, temperature=1.0)
        note(
            f"the temperature stays 1: {wrong or 'none'} of {len(images)} validation images "
            f"{'is' if wrong == 1 else 'are'} answered wrong, too few to fit it to; read probabilities with care"
        )
        return replace(recogniser, temperature=1.0)
    temperature = fit_temperature(logits, labels)
    update_model(run, temperature=temperature)
    note(f"temperature {temperature:.3f}, fitted on {len(images)} validation images")
    return replace(recogniser, temperature=temperature)


def _outputs(
    run: Run, dataset: Dataset, images: pl.DataFrame, recogniser: Recogniser, batch_size: int
) -> Iterator[torch.Tensor]:
    network, device = recogniser.trained, recogniser.device
    kept = kept_features(run, dataset, images)
    if kept is not None:
        for start in range(0, len(kept), batch_size):
            features = torch.from_numpy(np.asarray(kept[start : start + batch_size], dtype=np.float32))
            yield network.classify(features.to(device))
        return
    for batch in batches(dataset, images, network.preprocessing, batch_size=batch_size):
        yield network(normalised(batch.pixels, network.preprocessing, device))


def in_half_precision(logits: torch.Tensor) -> torch.Tensor:
    """Return logits (N, K) minus each row's largest, as float16; the probabilities stay the same.

    A network that has learnt little may have logits beyond the range of half precision. Those that are clamped lie so
    far below the largest that their probability is 0 anyway.
    """
    below = logits.float() - logits.float().amax(dim=1, keepdim=True)
    return below.clamp(min=torch.finfo(torch.float16).min).half()


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer], rows_at_once: int = 4096) -> float:
    """Return the temperature that minimises the log loss of `logits / temperature` `(N, K)` for `labels` `(N,)`.

    Bounded to 0.05..20, since with every validation image right the best temperature would be 0. The loss is convex in
    1/temperature, so the minimum is unique (Guo et al., ICML 2017).
    """
    if not len(labels):
        raise LandmarksError("no validation images to fit the temperature on")

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
