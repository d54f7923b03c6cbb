"""Learned landmarks, and how an export learns them from its graph's outputs: in numpy here, in JavaScript in its page.

The graph whitens an image's features along a few axes (`closed_form.py`) and scores the trained landmarks there:
`whitened` w (D,) and `trained_scores` s_k (K,). A learned landmark j with n_j images w_i of mean m_j has the score
v · (wᵀm_j - |m_j|²/2 + excess/(2 n_j)) + u · log(Σ exp(concentration · (cos(w, w_i) - 1)) / n_j): the
discriminant and the density of a run's `learn` (`closed_form.py`), with the covariance of the trained landmarks. The
scores give the odds of each learned landmark against all trained ones, as in `answering.py`.

An image shows a learned landmark only if that landmark's images lie sufficiently more densely around it than the other
images that the record holds. The threshold is such that at most the share `ACCEPTED` of those would be taken for a
learned landmark.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from landmarks.dataset.manifest import NO_LABEL
from landmarks.dataset.naming import UNKNOWN, normalised_name
from landmarks.support.errors import LandmarksError, did_you_mean
from landmarks.support.files import written_whole

FIRST_ID = -2
"""Ids of learned landmarks count down from here: archives have no negative ids, and -1 stands for no label."""


def free_landmark_id(taken: Iterable[int]) -> int:
    """Return an id for a further learned landmark: the one below all that are `taken`, and below -1.

    Where the smallest integer of 64 bits is taken, it is the greatest free one below -1.
    """
    used = set(taken)
    below = min([FIRST_ID + 1, *used]) - 1
    return below if below >= -(2**63) else next(id for id in itertools.count(FIRST_ID, -1) if id not in used)


@dataclass(frozen=True)
class Learned:
    """L landmarks that were added to a recogniser, learned from m images in total."""

    names: tuple[str, ...] = ()
    landmark_ids: tuple[int, ...] = ()
    images: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    """The directions of a run's features, or an export's whitened features, (m, C)."""
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """The position, among these landmarks, of the one that each image shows, (m,)."""

    def plus(self, images: NDArray[np.float32], name: str, landmark_id: int | None = None) -> Learned:
        """Return these with `images` `(n, C)` added to the landmark `name`, which is new or was learned before.

        Images that it has already are skipped. Without a `landmark_id` a new landmark gets the next free one.
        """
        names, ids = self.names, self.landmark_ids
        if name not in names:
            free = landmark_id if landmark_id is not None else free_landmark_id(ids)
            names, ids = (*names, name), (*ids, free)
        place = names.index(name)
        present = {row.tobytes() for row in self.images[self.places == place]}
        new = list({row.tobytes(): row for row in images if row.tobytes() not in present}.values())
        if not new:
            return self
        combined = np.concatenate([self.images.reshape(-1, images.shape[1]), np.stack(new)])
        places = np.concatenate([self.places, np.full(len(new), place, dtype=np.int64)])
        return Learned(names, ids, combined.astype(np.float32), places)

    def without(self, name: str) -> Learned:
        """Return these without the landmark `name`; raise `LandmarksError` when it was not learned."""
        if name not in self.names:
            raise LandmarksError(
                f'no landmark "{name}" was learned',
                expected=", ".join(self.names) or "none was",
                way_out=did_you_mean(name, self.names),
            )
        place = self.names.index(name)
        kept = self.places != place
        places = self.places[kept]
        return Learned(
            tuple(other for other in self.names if other != name),
            tuple(id for position, id in enumerate(self.landmark_ids) if position != place),
            self.images[kept],
            places - (places > place),
        )

    def counts(self) -> list[int]:
        """Return how many images each landmark was learned from."""
        return [int(count) for count in np.bincount(self.places, minlength=len(self.names))]


# ── Learning with an export ─────────────────────────────────────────────────────────────────────────────────────────


WHITENED, TRAINED_SCORES = "whitened", "trained_scores"
"""Outputs of an export's graph that are needed for learning."""

ACCEPTED = 0.02
"""Largest share of the record's other images that may be taken for learned landmarks."""

LEAST = 1e-30
"""The smallest density."""

MAX_WIDTH, MAX_IMAGES = 4096, 4096
"""Most numbers per image, and most images, in a record."""

NUMBERS = ("discriminant", "density", "excess", "concentration", "most_offset")

FILE_FORMAT = 1
MAX_FILE_BYTES = 64 * 1024**2

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LearningRecord:
    """What an export contains for learning: V validation images of its run, U images of other things, and weights."""

    digest: str
    """Changes with the whitening of the graph; landmarks learned with another are refused."""
    width: int
    discriminant: float
    density: float
    excess: float
    concentration: float
    most_offset: float
    spare: int
    """How many validation images that are answered correctly now may be answered wrong after learning."""
    validation: Array  # (V, D), those that are answered correctly
    evidence: Array  # (V,), logsumexp of their trained scores
    best: Array  # (V,), log probability of their answer
    others: Array  # (U, D), images of none of its landmarks


def read_learning(raw: Mapping[str, Any]) -> LearningRecord:
    """Return the part `learning` of an export's record. Raises `ValueError` for sizes or values out of range."""
    width = raw["width"]
    if type(width) is not int or not 1 <= width <= MAX_WIDTH:
        raise ValueError("learning: width")
    numbers = {name: float(raw[name]) for name in NUMBERS}
    spare = raw["spare"]
    if not all(map(math.isfinite, numbers.values())) or type(spare) is not int or not 0 <= spare <= MAX_IMAGES:
        raise ValueError("learning: numbers")
    validation = _unpacked(raw["validation"], width)
    evidence, best = (_floats(raw[name]).astype(np.float64) for name in ("evidence", "best"))
    if not len(validation) == len(evidence) == len(best):
        raise ValueError("learning: validation images")
    digest = raw["digest"]
    if not isinstance(digest, str) or len(digest) > 200:
        raise ValueError("learning: digest")
    others = _unpacked(raw["others"], width)
    return LearningRecord(
        digest=digest, width=width, spare=spare, validation=validation, evidence=evidence, best=best, others=others,
        **numbers,
    )  # fmt: skip


def packed(images: NDArray[np.floating]) -> dict[str, str]:
    """Return `images` (N, D) for a record: as 8-bit integers with a scale per image, in base64."""
    scales = np.maximum(np.abs(images).max(axis=1, initial=0), 1e-12).astype("<f4") / 127
    numbers = np.round(images / scales[:, None]).astype(np.int8)
    return {"images": _base64(numbers), "scales": _base64(scales.astype("<f4"))}


def packed_floats(numbers: NDArray[np.floating]) -> str:
    """Return `numbers` as base64 of little-endian float32."""
    return _base64(np.asarray(numbers, dtype="<f4"))


def _base64(numbers: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode()


def _bytes(text: object, most: int) -> bytes:
    if not isinstance(text, str) or len(text) > most:
        raise ValueError("learning: a text is missing or too long")
    return base64.b64decode(text, validate=True)


def _floats(text: object, most: int = MAX_IMAGES) -> NDArray[np.float32]:
    numbers = np.frombuffer(_bytes(text, 8 * most), dtype="<f4").astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ValueError("learning: numbers")
    return numbers


def _unpacked(raw: Mapping[str, Any], width: int) -> Array:
    scales = _floats(raw["scales"]).astype(np.float64)
    numbers = np.frombuffer(_bytes(raw["images"], 2 * MAX_IMAGES * width), dtype=np.int8)
    if numbers.size != len(scales) * width:
        raise ValueError("learning: images")
    return numbers.reshape(len(scales), width) * scales[:, None]


# ── Answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class PortableLearner:
    """Answers with the L learned landmarks of an export."""

    record: LearningRecord
    learned: Learned
    """Its `images` (m, D) are outputs `whitened` of the graph."""
    offset: float
    """Added to their log odds so that trained landmarks lose almost no images to them."""
    threshold: float
    """The `resemblance` above which an image counts as a learned landmark."""

    def log_odds(self, whitened: NDArray[np.floating], evidence: NDArray[np.floating]) -> Array:
        """Return the log odds (N, L) of each learned landmark against all trained ones.

        `whitened` is (N, D), and `evidence` (N,) the logsumexp of the trained scores.
        """
        return _scores(self.record, self.learned, whitened) - np.asarray(evidence)[:, None] + self.offset

    def resemblance(self, whitened: NDArray[np.floating]) -> Array:
        """Return (N,) by how much images (N, D) resemble the nearest learned landmark more than other images."""
        return _resemblance(self.record, self.learned, np.asarray(whitened, dtype=np.float64))

    def probabilities(
        self, trained: NDArray[np.floating], whitened: NDArray[np.floating], scores: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Return (N, K + L): the mean of `trained` probabilities (N, K) and those of `scores`, and the learned ones."""
        scores = np.asarray(scores, dtype=np.float64)
        evidence = np.logaddexp.reduce(scores, axis=1)
        mean = (np.asarray(trained, dtype=np.float64) + np.exp(scores - evidence[:, None])) / 2
        logs = np.concatenate([np.log(np.maximum(mean, LEAST)), self.log_odds(whitened, evidence)], axis=1)
        probabilities: NDArray[np.float32] = np.exp(logs - np.logaddexp.reduce(logs, axis=1)[:, None]).astype(
            np.float32
        )
        return probabilities


def learner_of(record: LearningRecord, learned: Learned) -> PortableLearner:
    """Return the learner of one or more `learned` landmarks; offset and threshold are computed from the record."""
    offset, threshold = 0.0, math.inf
    if len(record.best):
        odds = _scores(record, learned, record.validation).max(axis=1) - record.evidence
        margins = np.sort(record.best - odds)
        offset = record.most_offset
        if record.spare < len(margins):
            offset = min(offset, float(margins[record.spare]) - 1e-6)
    others = record.others if len(record.others) else record.validation
    if len(others) > 1:
        resemblance = np.sort(_resemblance(record, learned, others, leave_one_out=True))
        threshold = float(resemblance[len(resemblance) - 1 - int(ACCEPTED * len(resemblance))])
    return PortableLearner(record, learned, offset, threshold)


def _scores(record: LearningRecord, learned: Learned, whitened: NDArray[np.floating]) -> Array:
    queries, images = np.asarray(whitened, dtype=np.float64), learned.images.astype(np.float64)
    counts = np.bincount(learned.places, minlength=len(learned.names))
    means = np.stack([images[learned.places == place].mean(axis=0) for place in range(len(counts))])
    discriminant = queries @ means.T - np.square(means).sum(axis=1) / 2 + record.excess / counts / 2
    scores: Array = record.discriminant * discriminant + record.density * _log_densities(record, learned, queries)
    return scores


def _log_densities(record: LearningRecord, learned: Learned, queries: Array) -> Array:
    kernel = _kernel(record, queries, learned.images.astype(np.float64))
    means = np.stack([kernel[:, learned.places == place].mean(axis=1) for place in range(len(learned.names))], axis=1)
    log_densities: Array = np.log(np.maximum(means, LEAST))
    return log_densities


def _resemblance(record: LearningRecord, learned: Learned, queries: Array, *, leave_one_out: bool = False) -> Array:
    """See `PortableLearner.resemblance`. With `leave_one_out` the queries are the record's other images themselves."""
    others = record.others if len(record.others) else record.validation
    kernel = _kernel(record, queries, others)
    count = len(others)
    if leave_one_out:
        np.fill_diagonal(kernel, 0)
        count -= 1
    of_others = np.log(np.maximum(kernel.sum(axis=1) / max(count, 1), LEAST))
    resemblance: Array = _log_densities(record, learned, queries).max(axis=1) - of_others
    return resemblance


def _kernel(record: LearningRecord, first: Array, second: Array) -> Array:
    cosines = _normalised(first) @ _normalised(second).T
    kernel: Array = np.exp(record.concentration * (cosines - 1))
    return kernel


def _normalised(images: Array) -> Array:
    unit: Array = images / np.maximum(np.linalg.norm(images, axis=1, keepdims=True), 1e-12)
    return unit


def is_landmark_id(value: object) -> TypeGuard[int]:
    """Return whether a value can be stored as a landmark id."""
    return type(value) is int and -(2**63) <= value < 2**63


def require_free(name: str, landmark_id: int | None, names: Sequence[str], landmark_ids: Sequence[int]) -> None:
    """Raise `LandmarksError` if `name` or `landmark_id` is taken or stands for nothing known, or the id is invalid."""
    if landmark_id is not None and not is_landmark_id(landmark_id):
        raise LandmarksError(
            "no landmark has such an id", received=repr(landmark_id)[:100], expected="a whole number of 64 bits"
        )
    if landmark_id == NO_LABEL:
        raise LandmarksError(f"no landmark has the id {NO_LABEL}, which stands for images of nothing known")
    if name == UNKNOWN:
        raise LandmarksError(
            f'no landmark has the name "{UNKNOWN}", which stands for images of nothing known',
            way_out="choose another name",
        )
    if name in names or (landmark_id is not None and landmark_id in landmark_ids):
        raise LandmarksError(
            f'"{name}" is a landmark that this recogniser was trained for'
            if name in names
            else f"the landmark id {landmark_id} is taken",
            way_out="choose another name or id for what is to be learned",
        )


# ── The file of learned landmarks: beside an export, or saved and loaded by its page ────────────────────────────────


def learned_file(export: Path) -> Path:
    """Return the path of the landmarks that an export has learned."""
    return export.with_suffix(".learned.json")


def write_learned_file(path: Path, learned: Learned, digest: str) -> None:
    """Write learned landmarks as JSON, atomically."""
    text = learned_text(learned, digest)
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


def learned_text(learned: Learned, digest: str) -> str:
    """Return the text of a file of learned landmarks, which a page contains too."""
    landmarks = [
        {
            "name": name,
            "landmark_id": id,
            "images": [packed_floats(row) for row in learned.images[learned.places == place]],
        }
        for place, (name, id) in enumerate(zip(learned.names, learned.landmark_ids, strict=True))
    ]
    return json.dumps({"format": FILE_FORMAT, "learned_with": digest, "landmarks": landmarks}, ensure_ascii=False)


def read_learned_file(path: Path, record: LearningRecord) -> Learned:
    """Return the landmarks in a file that an export, or its page, wrote. Raises `LandmarksError` if it is invalid."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError("it is too large")
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FILE_FORMAT:
            raise ValueError("it was written by another version")
        digest, learned = raw["learned_with"], Learned()
        for landmark in raw["landmarks"]:
            name, id = normalised_name(str(landmark["name"])), landmark["landmark_id"]
            images = np.stack([_floats(text, record.width) for text in landmark["images"]])
            is_duplicate = name in learned.names or id in learned.landmark_ids
            if not name or is_duplicate or not is_landmark_id(id):
                raise ValueError("a landmark's name or id")
            if images.shape[1] != record.width and digest == record.digest:
                raise ValueError("its images")
            learned = learned.plus(images, name, id)
    except OSError as error:
        raise LandmarksError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LandmarksError(
            f"{path} holds no learned landmarks ({type(error).__name__}: {str(error)[:100]})",
            expected="a file that an export's page or `landmarks learn NAME.onnx` has written",
        ) from error
    if digest != record.digest:
        raise LandmarksError(
            f"{path} was learned with another network", expected="a file learned with this export, or its page",
            way_out="learn again from the images",
        )  # fmt: skip
    return learned
