"""Landmarks that an export learns: from what its graph says of a few images, in numpy, as its page does in JavaScript.

The graph whitens an image's features along a few axes (`kernel_density.py`), and scores the landmarks that it was
trained for there: `whitened` w (D,) and `trained_scores` s_k (K,). A learned landmark j of n_j images w_i with mean m_j
has the score v · (wᵀm_j - |m_j|²/2 + excess/(2 n_j)) + u · log(Σ exp(concentration · (cos(w, w_i) - 1)) / n_j): the
discriminant and the density of a run's own `learn` (`closed_form.py`), with the covariance of the trained landmarks.
From the scores follow the odds of each learned landmark against all trained ones, as in `answering_heads.py`.

Whether an image shows a learned landmark at all is told by how much denser that landmark's images lie around it than
others do, which the record holds: at most the share `ACCEPTED` of these would be taken for any learned landmark.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from landmarks.dataset.naming import normalised_name
from landmarks.recognition.learned_images import Learned
from landmarks.support.errors import LandmarksError
from landmarks.support.files import written_whole

WHITENED, TRAINED_SCORES = "whitened", "trained_scores"
"""Outputs of an export's graph that learning needs."""

ACCEPTED = 0.02
"""Share of the images kept of other things that may be taken for learned landmarks."""

LEAST = 1e-30
"""The density of nothing."""

MAX_WIDTH, MAX_IMAGES = 4096, 4096
"""Numbers of an image, and images, that a record may hold."""

NUMBERS = ("discriminant", "density", "excess", "concentration", "most_offset")

FILE_FORMAT = 1
MAX_FILE_BYTES = 64 * 1024**2

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LearningRecord:
    """What an export keeps of its run's images so that landmarks can be added; V validation images, U others."""

    digest: str
    """Changes with the graph's whitening: what was learned with another is not read."""
    width: int
    discriminant: float
    density: float
    excess: float
    concentration: float
    most_offset: float
    spare: int
    """Validation images that may be answered wrongly which the trained landmarks alone answer rightly."""
    validation: Array  # (V, D), those that are answered rightly
    evidence: Array  # (V,) logsumexp of their trained scores
    best: Array  # (V,) logarithm of the probability of their answer
    others: Array  # (U, D) images of none of its landmarks


def read_learning(told: Mapping[str, Any]) -> LearningRecord:
    """Return the part `learning` of an export's record; every size in it is checked. Raises `ValueError`."""
    width = told["width"]
    if type(width) is not int or not 1 <= width <= MAX_WIDTH:
        raise ValueError("learning: width")
    numbers = {name: float(told[name]) for name in NUMBERS}
    spare = told["spare"]
    if not all(map(math.isfinite, numbers.values())) or type(spare) is not int or not 0 <= spare <= MAX_IMAGES:
        raise ValueError("learning: numbers")
    validation = _unpacked(told["validation"], width)
    evidence, best = (_floats(told[name]).astype(np.float64) for name in ("evidence", "best"))
    if not len(validation) == len(evidence) == len(best):
        raise ValueError("learning: validation images")
    digest = told["digest"]
    if not isinstance(digest, str) or len(digest) > 200:
        raise ValueError("learning: digest")
    others = _unpacked(told["others"], width)
    return LearningRecord(
        digest=digest, width=width, spare=spare, validation=validation, evidence=evidence, best=best, others=others,
        **numbers,
    )  # fmt: skip


def packed(images: NDArray[np.floating]) -> dict[str, str]:
    """Return `images` (N, D) for a record: whole numbers of eight bits with a scale each, in base64."""
    scales = np.maximum(np.abs(images).max(axis=1, initial=0), 1e-12).astype("<f4") / 127
    numbers = np.round(images / scales[:, None]).astype(np.int8)
    return {"images": _base64(numbers), "scales": _base64(scales.astype("<f4"))}


def packed_floats(numbers: NDArray[np.floating]) -> str:
    """Return `numbers` as base64 of float32, little end first."""
    return _base64(np.asarray(numbers, dtype="<f4"))


def _base64(numbers: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode()


def _bytes(text: object, most: int) -> bytes:
    if not isinstance(text, str) or len(text) > most:
        raise ValueError("learning: a text that is none, or too long")
    return base64.b64decode(text, validate=True)


def _floats(text: object, most: int = MAX_IMAGES) -> NDArray[np.float32]:
    numbers = np.frombuffer(_bytes(text, 8 * most), dtype="<f4").astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ValueError("learning: numbers")
    return numbers


def _unpacked(told: Mapping[str, Any], width: int) -> Array:
    scales = _floats(told["scales"]).astype(np.float64)
    numbers = np.frombuffer(_bytes(told["images"], 2 * MAX_IMAGES * width), dtype=np.int8)
    if numbers.size != len(scales) * width:
        raise ValueError("learning: images")
    return numbers.reshape(len(scales), width) * scales[:, None]


# ── What is answered ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class PortableLearner:
    """Learned landmarks of an export, L of them, ready to answer."""

    record: LearningRecord
    learned: Learned
    """Their `images` (m, D) are whitened, as the graph says them."""
    offset: float
    """What is added to their log odds, so that the trained landmarks lose next to nothing."""
    threshold: float
    """Above this an image resembles a learned landmark closely enough; see `resemblance`."""

    def log_odds(self, whitened: NDArray[np.floating], evidence: NDArray[np.floating]) -> Array:
        """Return the log odds (N, L) of each learned landmark against all trained ones.

        `whitened` is (N, D), and `evidence` (N,) the logsumexp of the trained scores.
        """
        return _scores(self.record, self.learned, whitened) - np.asarray(evidence)[:, None] + self.offset

    def resemblance(self, whitened: NDArray[np.floating]) -> Array:
        """Return (N,) how much more than other images those of the nearest learned landmark resemble these (N, D)."""
        return _resemblance(self.record, self.learned, np.asarray(whitened, dtype=np.float64))

    def probabilities(
        self, trained: NDArray[np.floating], whitened: NDArray[np.floating], scores: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Return (N, K + L): `trained` probabilities (N, K) averaged with those of `scores`, and the learned ones."""
        wide = np.asarray(scores, dtype=np.float64)
        evidence = np.logaddexp.reduce(wide, axis=1)
        mean = (np.asarray(trained, dtype=np.float64) + np.exp(wide - evidence[:, None])) / 2
        logs = np.concatenate([np.log(np.maximum(mean, LEAST)), self.log_odds(whitened, evidence)], axis=1)
        found: NDArray[np.float32] = np.exp(logs - np.logaddexp.reduce(logs, axis=1)[:, None]).astype(np.float32)
        return found


def learner_of(record: LearningRecord, learned: Learned) -> PortableLearner:
    """Return `learned` landmarks, one or more, ready to answer: offset and threshold follow from the record."""
    offset, threshold = 0.0, math.inf
    if len(record.best):
        odds = _scores(record, learned, record.validation).max(axis=1) - record.evidence
        margins = np.sort(record.best - odds)
        offset = record.most_offset
        if record.spare < len(margins):
            offset = min(offset, float(margins[record.spare]) - 1e-6)
    others = record.others if len(record.others) else record.validation
    if len(others) > 1:
        likeness = np.sort(_resemblance(record, learned, others, themselves=True))
        threshold = float(likeness[len(likeness) - 1 - int(ACCEPTED * len(likeness))])
    return PortableLearner(record, learned, offset, threshold)


def _scores(record: LearningRecord, learned: Learned, whitened: NDArray[np.floating]) -> Array:
    asked, images = np.asarray(whitened, dtype=np.float64), learned.images.astype(np.float64)
    counts = np.bincount(learned.places, minlength=len(learned.names))
    means = np.stack([images[learned.places == place].mean(axis=0) for place in range(len(counts))])
    discriminant = asked @ means.T - np.square(means).sum(axis=1) / 2 + record.excess / counts / 2
    found: Array = record.discriminant * discriminant + record.density * _log_densities(record, learned, asked)
    return found


def _log_densities(record: LearningRecord, learned: Learned, asked: Array) -> Array:
    kernel = _kernel(record, asked, learned.images.astype(np.float64))
    sums = np.stack([kernel[:, learned.places == place].mean(axis=1) for place in range(len(learned.names))], axis=1)
    found: Array = np.log(np.maximum(sums, LEAST))
    return found


def _resemblance(record: LearningRecord, learned: Learned, asked: Array, *, themselves: bool = False) -> Array:
    """`themselves`: those asked about are the record's others, each of which is compared with the rest of them."""
    others = record.others if len(record.others) else record.validation
    kernel = _kernel(record, asked, others)
    count = len(others)
    if themselves:
        np.fill_diagonal(kernel, 0)
        count -= 1
    beside = np.log(np.maximum(kernel.sum(axis=1) / max(count, 1), LEAST))
    found: Array = _log_densities(record, learned, asked).max(axis=1) - beside
    return found


def _kernel(record: LearningRecord, first: Array, second: Array) -> Array:
    cosines = _of_length_one(first) @ _of_length_one(second).T
    found: Array = np.exp(record.concentration * (cosines - 1))
    return found


def _of_length_one(images: Array) -> Array:
    found: Array = images / np.maximum(np.linalg.norm(images, axis=1, keepdims=True), 1e-12)
    return found


def is_landmark_id(value: object) -> TypeGuard[int]:
    """Return whether a value can be kept as the id of a landmark."""
    return type(value) is int and -(2**63) <= value < 2**63


def require_free(name: str, landmark_id: int | None, names: Sequence[str], landmark_ids: Sequence[int]) -> None:
    """Raise `LandmarksError` for what cannot be learned beside landmarks of these names and ids.

    What is no text or no number of 64 bits is refused too: no file would keep it.
    """
    if landmark_id is not None and not is_landmark_id(landmark_id):
        raise LandmarksError(
            "no landmark has such an id", received=repr(landmark_id)[:100], expected="a whole number of 64 bits"
        )
    if name in names or (landmark_id is not None and landmark_id in landmark_ids):
        raise LandmarksError(
            f'"{name}" is a landmark that this recogniser was trained for'
            if name in names
            else f"the landmark id {landmark_id} is taken",
            way_out="choose another name or id for what is to be learned",
        )


# ── The file that keeps them: beside an export, and out of and into its page ────────────────────────────────────────


def learned_file(export: Path) -> Path:
    """Return where the landmarks that an export has learned are kept."""
    return export.with_suffix(".learned.json")


def write_learned_file(path: Path, learned: Learned, digest: str) -> None:
    """Write learned landmarks as JSON, whole or not at all."""
    text = learned_text(learned, digest)
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


def learned_text(learned: Learned, digest: str) -> str:
    """Return what a file of learned landmarks holds; a page carries the same text."""
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
    """Return the landmarks in a file that an export, or its page, has written. Raises `LandmarksError`."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError("it is too large")
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["format"] != FILE_FORMAT:
            raise ValueError("it was written by another version")
        digest, found = told["learned_with"], Learned()
        for one in told["landmarks"]:
            name, id = normalised_name(str(one["name"])), one["landmark_id"]
            images = np.stack([_floats(text, record.width) for text in one["images"]])
            taken = name in found.names or id in found.landmark_ids
            if not name or taken or not is_landmark_id(id):
                raise ValueError("a landmark's name or id")
            if images.shape[1] != record.width and digest == record.digest:
                raise ValueError("its images")
            found = found.plus(images, name, id)
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
    return found
