"""The recogniser: a run's network at work, and all that is needed to say which landmark an image shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from landmarks.dataset.images import ImageError
from landmarks.dataset.manifest import NO_LABEL, Dataset
from landmarks.dataset.naming import plain
from landmarks.models.gradcam import explain_images, scaled
from landmarks.models.network import Network
from landmarks.models.rewriting import folded
from landmarks.recognition.answers import Explanation, Recognition, Recognitions, answers_of
from landmarks.recognition.gallery import Gallery, Rule, directions, open_gallery, rejection_scores, sample
from landmarks.recognition.learned import (
    Learned,
    Memory,
    learned_head,
    read_learned,
    read_memory,
    with_learned,
    without_learned,
)
from landmarks.recognition.learned_head import LearnedHead
from landmarks.recognition.reading import ImageLike, ReadImage, each_of, is_image_like, read_ahead
from landmarks.support.console import note, progress
from landmarks.support.errors import LandmarksError, StaleError, UsageError
from landmarks.support.files import digest_of, read_record, write_record
from landmarks.training.features import kept_features
from landmarks.training.loader import batches, normalised
from landmarks.training.machine import choose_device, choose_layout
from landmarks.training.own_data import images_seen
from landmarks.training.run import Run, open_run

ANSWERS = 5
"""Answers kept per image; with fewer landmarks than that, all."""

BATCH_SIZE = 32
"""Images that are answered at once."""

EXPLAINED_AT_ONCE = 8
"""Images whose heat maps are computed at once."""


@dataclass(frozen=True)
class Answers:
    """What the network says about N images, best answer first, k = 5 or the number of landmarks."""

    labels: NDArray[np.int64]  # (N, k), by score descending, equal scores by label ascending
    scores: NDArray[np.float32]  # (N, k), probabilities after temperature
    truth_log_scores: NDArray[np.float32]  # (N,), natural logarithm of the probability of `first`; NaN where none
    untempered: NDArray[np.float32]  # (N,), the largest probability before temperature
    rejection: dict[str, NDArray[np.float32]]  # score name → (N,), larger: more surely a known landmark


@dataclass(frozen=True)
class Recogniser:
    """Answers images: a network, what its answers are called, and what tells known from unknown.

    `landmarks.load` opens one from a run's folder. An image is the path of a file, a file's bytes, one of Pillow's
    images, or RGB pixels uint8 (H, W, 3); wherever one can be given, a sequence of them can.
    """

    network: Network
    names: list[str]
    """What each label is called."""
    landmark_ids: list[int]
    """What each label stands for."""
    temperature: float = 1.0
    gallery: Gallery | None = None
    """What it remembers of its training images; None: nothing."""
    rule: Rule | None = None
    """The score that is compared with `threshold`; None: it does not tell known from unknown."""
    threshold: float = 0.0
    """Below this an image shows nothing that it knows."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    memory: Memory | None = None
    """What it keeps of its own images so that landmarks can be added; None: it cannot learn."""
    learned: Learned = field(default_factory=Learned)
    """Landmarks that were added to those it was trained for; their labels stand behind the others."""

    def __repr__(self) -> str:
        told = "" if self.rule is None else ", tells known from unknown"
        return f"Recogniser({self.network.backbone_name}, {len(self.names)} landmarks, on {self.device.type}{told})"

    @property
    def seen_share(self) -> float:
        """Share of an image's shorter side that the square in its middle has which the network sees, 1 at most."""
        preprocessing = self.network.preprocessing
        return preprocessing.image_size / round(preprocessing.image_size / preprocessing.crop)

    @overload
    def recognise(self, images: ImageLike, top: int = ANSWERS) -> Recognition: ...  # type: ignore[overload-overlap]
    @overload
    def recognise(self, images: Iterable[ImageLike], top: int = ANSWERS) -> Recognitions: ...
    def recognise(self, images: ImageLike | Iterable[ImageLike], top: int = ANSWERS) -> Recognition | Recognitions:
        """Return the `top` (1 to 5) best answers to an image, or to each of several, with their probabilities.

        An image that cannot be read or decoded has a `problem` instead. Raises `UsageError` for anything that is no
        image by its type, and `StaleError` when the gallery that the threshold compares with is gone.
        """
        found = Recognitions(self.recognitions(images, top))
        return found[0] if is_image_like(images) else found

    def recognitions(self, images: ImageLike | Iterable[ImageLike], top: int = ANSWERS) -> Iterator[Recognition]:
        """Yield what `recognise` returns, image by image: for more images than fit into memory."""
        require_top(top)
        if self.rule is not None and self.gallery is None and {"knn", "mahalanobis"} & set(self.rule.weights):
            raise StaleError(
                "this recogniser has a threshold, but not the training images that it compares with",
                way_out="choose it again with: landmarks evaluate RUN --data TEST --false-acceptance RATE",
            )
        for batch in read_ahead(each_of(images), self.network.preprocessing, BATCH_SIZE):
            seen = _pixels_of(batch)
            answered = self._recognitions(seen, top) if len(seen) else iter(())
            for one in batch:
                found = Recognition(problem=one.problem) if one.pixels is None else next(answered)
                yield replace(found, path=one.path)

    def _recognitions(self, seen: NDArray[np.uint8], top: int) -> Iterator[Recognition]:
        answers = self.answer(_as_tensor(seen))
        known: list[bool | None] = [None] * len(seen)
        if self.rule is not None:
            scores = {"msp": answers.scores[:, 0], **answers.rejection}
            known = list((self.rule.apply(scores) >= self.threshold).tolist())
        for labels, probabilities, whether in zip(answers.labels.tolist(), answers.scores.tolist(), known, strict=True):
            yield Recognition(answers_of(self.names, self.landmark_ids, labels[:top], probabilities[:top]), whether)

    def transform(self, images: ImageLike | Iterable[ImageLike]) -> NDArray[np.float32]:
        """Return N images as `network` takes them, float32 (N, 3, S, S): decoded, resized, cropped and normalised.

        For torch code of one's own: `recogniser.network(torch.from_numpy(recogniser.transform(images)))` are the
        logits (N, K). Raises `ImageError` for the first image that cannot be read or decoded.
        """
        found = [np.zeros((0, 3, *[self.network.preprocessing.image_size] * 2), dtype=np.float32)]
        for pixels in self._all_pixels(images):
            found.append(normalised(_as_tensor(pixels), self.network.preprocessing).numpy())
        return np.concatenate(found)

    def _all_pixels(self, images: ImageLike | Iterable[ImageLike]) -> Iterator[NDArray[np.uint8]]:
        """Yield the images in batches, uint8 (n, S, S, 3); raise for the first that cannot be read."""
        done = 0
        for batch in read_ahead(each_of(images), self.network.preprocessing, BATCH_SIZE):
            for position, one in enumerate(batch, done):
                if one.problem is not None:
                    raise ImageError(f"{one.path or f'image {position}'} cannot be used: {one.problem}")
            done += len(batch)
            yield _pixels_of(batch)

    @torch.no_grad()
    def embed(self, images: ImageLike | Iterable[ImageLike]) -> NDArray[np.float32]:
        """Return the pooled features float32 (N, C) of N images, before the head: similar images have similar ones.

        Raises `ImageError` for the first image that cannot be read or decoded.
        """
        found = [np.zeros((0, self.network.width), dtype=np.float32)]
        for pixels in self._all_pixels(images):
            batch = normalised(_as_tensor(pixels), self.network.preprocessing, self.device)
            found.append(self.network.features(batch).float().cpu().numpy())
        return np.concatenate(found)

    @overload
    def explain(self, images: ImageLike, top: int = 4) -> Explanation: ...  # type: ignore[overload-overlap]
    @overload
    def explain(self, images: Iterable[ImageLike], top: int = 4) -> list[Explanation]: ...
    def explain(self, images: ImageLike | Iterable[ImageLike], top: int = 4) -> Explanation | list[Explanation]:
        """Return the `top` best answers to an image, or to each of several, with a heat map for each (Grad-CAM).

        An image that cannot be read or decoded has a `problem` instead. Raises `UsageError` for anything that is no
        image by its type, and `LandmarksError` for a network without maps.
        """
        found = list(self.explanations(images, top))
        return found[0] if is_image_like(images) else found

    def explanations(self, images: ImageLike | Iterable[ImageLike], top: int = 4) -> Iterator[Explanation]:
        """Yield what `explain` returns, image by image."""
        if top < 1:
            raise UsageError("that many answers cannot be explained", received=top, expected="1 or more")
        for batch in read_ahead(each_of(images), self.network.preprocessing, EXPLAINED_AT_ONCE):
            seen = _pixels_of(batch)
            explained = self._explanations(seen, top) if len(seen) else iter(())
            for one in batch:
                found = Explanation(problem=one.problem) if one.pixels is None else next(explained)
                yield replace(found, path=one.path)

    def _explanations(self, seen: NDArray[np.uint8], top: int) -> Iterator[Explanation]:
        images = normalised(_as_tensor(seen), self.network.preprocessing, self.device)
        explained = explain_images(self.network, images, top, self.temperature)
        probabilities = explained.probabilities.gather(1, explained.labels).tolist()
        maps = scaled(explained.maps).float().cpu().numpy()
        for row, labels in enumerate(explained.labels.tolist()):
            answers = answers_of(self.names, self.landmark_ids, labels, probabilities[row])
            yield Explanation(answers, maps[row], seen[row], explained.method)

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
            rejection=rejection_scores(features.cpu().numpy(), logits.cpu().numpy(), self.gallery),
        )

    def learn(self, images: ImageLike | Iterable[ImageLike], name: str, landmark_id: int | None = None) -> Recogniser:
        """Return a recogniser that knows the landmark `name` too, from one to a few `images` of it.

        In memory alone: `landmarks.learn` keeps it in the run. This one stays as it is. A landmark that was learned
        before gets these images too. Raises `LandmarksError` when it cannot learn, or was trained for a landmark of
        that name or id, and `ImageError` for what is no image.
        """
        return self.with_features(self.embed(images), name, landmark_id)

    def with_features(self, features: NDArray[np.floating], name: str, landmark_id: int | None = None) -> Recogniser:
        """Return what `learn` returns, from features `(n, C)` that `embed` gave."""
        name, trained = plain(name), len(self.names) - len(self.learned.names)
        if not name or not len(features):
            raise LandmarksError("a landmark is learned from a name and at least one image of it")
        taken = landmark_id is not None and landmark_id in self.landmark_ids and name not in self.learned.names
        if name in self.names[:trained] or taken:
            raise LandmarksError(
                f'"{name}" is a landmark that this recogniser was trained for'
                if name in self.names[:trained]
                else f"the landmark id {landmark_id} is taken",
                way_out="choose another name or id for what is to be learned",
            )
        return taught(self, self.learned.plus(directions(features), name, landmark_id))

    def forget(self, name: str) -> Recogniser:
        """Return a recogniser without the learned landmark `name`; raise `LandmarksError` when it was not learned."""
        return taught(self, self.learned.without(plain(name)))

    @property
    def digest(self) -> str:
        """Changes with whatever, beside the weights, changes the answers."""
        return digest_of(self.temperature, None if self.gallery is None else self.gallery.digest)


def load(place: Run | Path | str, *, device: str = "auto") -> Recogniser:
    """Open a run, or its folder, as a `Recogniser`: network, labels, temperature, gallery and threshold, read once.

    `device` is auto, cpu, cuda or mps. Raises `LandmarksError` when `place` is no finished run.
    """
    run = place if isinstance(place, Run) else open_run(place)
    recogniser = replace(open_recogniser(run, open_gallery(run), device), memory=read_memory(run.folder, run.digest))
    learned = read_learned(run.folder, run.digest)
    return taught(recogniser, learned) if learned.names else recogniser


def taught(recogniser: Recogniser, learned: Learned) -> Recogniser:
    """Return `recogniser` with the landmarks `learned`, and no other than these, beside those it was trained for.

    Raises `LandmarksError` when it keeps nothing of its own images, which new landmarks have to be told apart from.
    """
    network, trained = recogniser.network, len(recogniser.names) - len(recogniser.learned.names)
    if recogniser.memory is None:
        raise LandmarksError(
            "this recogniser keeps nothing of its own images, and cannot learn",
            way_out="landmarks learn RUN IMAGES --name NAME, with the run's dataset there, makes what it needs",
        )
    head = network.head.head if isinstance(network.head, LearnedHead) else network.head
    gallery = recogniser.gallery and without_learned(recogniser.gallery, trained)
    if learned.names:
        made = learned_head(head, network.width, recogniser.memory, learned, recogniser.temperature)
        head = made.to(recogniser.device).eval()
        gallery = gallery and with_learned(gallery, learned, trained)
    return replace(
        recogniser,
        network=Network(network.backbone_name, network.backbone, network.head_name, head, network.preprocessing).eval(),
        names=[*recogniser.names[:trained], *learned.names],
        landmark_ids=[*recogniser.landmark_ids[:trained], *learned.landmark_ids],
        gallery=gallery,
        learned=learned,
    )


def open_recogniser(run: Run, gallery: Gallery | None = None, device: str = "auto") -> Recogniser:
    """Load a run's network on `device` (see `choose_device`), with temperature and threshold from its `model.json`."""
    place = torch.device(choose_device(device).value)
    record: dict[str, Any] = read_record(run.folder / "model.json")
    network = folded(run.network().to(place))
    if choose_layout(network).value == "channels last":
        network.to(memory_format=torch.channels_last)
    ids = run.labels["landmark_id"].to_list()
    if network.classes != len(ids):
        raise LandmarksError(
            f"the network in {run.folder} answers other landmarks than its labels",
            received=f"{network.classes} answers",
            expected=len(ids),
        )
    temperature, rule, threshold = _calibration(run.folder / "model.json", record)
    return Recogniser(
        network=network,
        names=[str(id) if name is None else name for id, name in zip(ids, run.labels["name"], strict=True)],
        landmark_ids=ids,
        temperature=temperature,
        gallery=gallery,
        rule=rule,
        threshold=threshold,
        device=place,
    )


def _calibration(path: Path, record: dict[str, Any]) -> tuple[float, Rule | None, float]:
    """Return temperature, rule and threshold of a run's `model.json`; raise when they are no numbers to answer by."""
    rejection = record.get("rejection")
    try:
        temperature = float(record.get("temperature") or 1.0)
        rule = None if rejection is None else Rule(**rejection["rule"])
        threshold = 0.0 if rejection is None else float(rejection["threshold"])
        numbers = [threshold] if rule is None else [threshold, rule.constant, *rule.weights.values()]
        sound = 0 < temperature < math.inf and all(math.isfinite(number) for number in numbers)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise LandmarksError(f"{path} holds no temperature and threshold ({type(error).__name__}: {error})") from error
    if not sound:
        raise LandmarksError(f"{path} holds a temperature or a threshold that is no finite number")
    return temperature, rule, threshold


def require_top(top: int) -> None:
    """Raise `UsageError` unless so many answers are kept per image."""
    if not 1 <= top <= ANSWERS:
        raise UsageError("that many answers cannot be had", received=top, expected=f"1 to {ANSWERS}")


def _pixels_of(batch: list[ReadImage]) -> NDArray[np.uint8]:
    """Return the images of a batch that could be read, uint8 (n, S, S, 3); n may be 0."""
    pixels = [one.pixels for one in batch if one.pixels is not None]
    return np.stack(pixels) if pixels else np.zeros((0, 0, 0, 3), dtype=np.uint8)


def _as_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


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


# ── The temperature of a run's network: fitted once, on the validation split, and stored with the model ──────────────


MAX_BYTES = 128 * 1024**2
"""Size of the outputs that the temperature is fitted on, in half precision: 300 images of 203,094 landmarks."""


LEAST_WRONG = 3
"""Wrong answers below which no temperature is fitted: without any the best one would be 0, which says that every
answer is certain; one or two decide it alone."""


def ensure_temperature(run: Run, dataset: Dataset, recogniser: Recogniser, batch_size: int) -> Recogniser:
    """Return `recogniser` with its run's temperature, fitted now and stored in `model.json` when there is none yet.

    It is fitted on what the run was validated with in `dataset`, its own; on features that head training kept, where
    the backbone is still the same. Without validation images, or with fewer than `LEAST_WRONG` wrong answers to them,
    it stays 1, with a note. Call it while holding the run's folder.
    """
    record = read_record(run.folder / "model.json")
    if record.get("temperature") is not None:
        return recogniser
    images = images_seen(run, dataset, "val")
    if not len(images):
        note("no validation images: the temperature stays 1")
        return recogniser
    images = images.filter(pl.Series(sample(images["run_label"].to_numpy(), MAX_BYTES // (2 * len(run.labels)))))
    logits = np.empty((len(images), len(run.labels)), dtype=np.float16)
    done = 0
    with torch.no_grad(), progress("fitting the temperature", total=len(images)) as advance:
        for outputs in _outputs(run, dataset, images, recogniser, batch_size):
            logits[done : done + len(outputs)] = in_half_precision(outputs).cpu()
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
    network, device = recogniser.network, recogniser.device
    kept = kept_features(run, dataset, images)
    if kept is not None:
        for start in range(0, len(kept), batch_size):
            features = torch.from_numpy(np.asarray(kept[start : start + batch_size], dtype=np.float32))
            yield network.classify(features.to(device))
        return
    for batch in batches(dataset, images, network.preprocessing, batch_size=batch_size):
        yield network(normalised(batch.pixels, network.preprocessing, device))


def in_half_precision(logits: torch.Tensor) -> torch.Tensor:
    """Return logits (N, K) less each row's largest, which changes no probability, as float16.

    A network that has learnt little yet may answer with outputs beyond what half precision holds; what lies further
    than that below the largest has no probability anyway.
    """
    below = logits.float() - logits.float().amax(dim=1, keepdim=True)
    return below.clamp(min=torch.finfo(torch.float16).min).half()


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer], rows_at_once: int = 4096) -> float:
    """Return the temperature that minimises the log loss of `logits / temperature` `(N, K)` for `labels` `(N,)`.

    Bounded to 0.05..20: with every validation image right the best temperature would be 0. The loss is convex in
    1/temperature, so the minimum found is the only one (Guo et al., ICML 2017).
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
