"""What a recogniser returns for an image: answers, scores that tell known from unknown, and heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from landmarks.dataset.images import ImageError, data_uri, decode, encode, shrink
from landmarks.support.systems import printable

NOT_KNOWN = "not a landmark I know"
"""The answer to an image whose score lies below the threshold stored with the model."""


@dataclass(frozen=True)
class Answer:
    """One landmark that an image may show."""

    label: int
    """The landmark's position among those that the recogniser knows, from 0."""
    landmark_id: int
    name: str
    probability: float


@dataclass(frozen=True)
class Recognition:
    """The answers to one image, best first; a notebook shows them as a table with bars."""

    answers: tuple[Answer, ...] = ()
    known: bool | None = None
    """Whether the image shows a landmark that the recogniser knows; None if it has no threshold."""
    problem: str | None = None
    """Why there are no answers: the image cannot be read or decoded."""
    path: str | None = None
    r"""The file, with \x.. for bytes of its name that are not UTF-8; None for an image given as bytes or pixels."""

    def __str__(self) -> str:
        lines = [] if self.path is None else [printable(self.path)]
        if self.problem is not None:
            lines.append(f"no answer: {printable(self.problem)}")
        if self.known is False:
            lines.append(NOT_KNOWN)
        return "\n".join(lines + [f"{answer.probability:7.1%}  {printable(answer.name)}" for answer in self.answers])

    def _repr_html_(self) -> str:
        remark = self.problem if self.problem is not None else NOT_KNOWN if self.known is False else None
        return answers_html(self.answers, remark, self.path)


class Recognitions(tuple[Recognition, ...]):
    """The answers to several images, in their order."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def _repr_html_(self) -> str:
        return "".join(recognition._repr_html_() for recognition in self)


def _no_maps() -> NDArray[np.float32]:
    return np.zeros((0, 0, 0), dtype=np.float32)


def _no_image() -> NDArray[np.uint8]:
    return np.zeros((0, 0, 3), dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class Explanation:
    """The best answers to one image, with a heat map for each; both are empty where there is a `problem`."""

    answers: tuple[Answer, ...] = ()  # k, best first
    maps: NDArray[np.float32] = field(default_factory=_no_maps)
    """Heat maps (k, h, w), each from 0 to 1 at its warmest position; all 0 where nothing supports the answer."""
    image: NDArray[np.uint8] = field(default_factory=_no_image)
    """The image as the network saw it, RGB (S, S, 3)."""
    method: str = ""
    """How the maps were computed."""
    problem: str | None = None
    """Why there are no answers: the image cannot be read or decoded."""
    path: str | None = None
    """The file, as in `Recognition`."""

    def _repr_html_(self) -> str:
        return explanation_html(self)


def answers_of(
    names: Sequence[str], landmark_ids: Sequence[int], labels: Sequence[int], probabilities: Sequence[float]
) -> tuple[Answer, ...]:
    """Return the answers with these `labels` and `probabilities`, given the name and id of every label."""
    pairs = zip(labels, probabilities, strict=True)
    return tuple(Answer(label, landmark_ids[label], names[label], probability) for label, probability in pairs)


# ── The answers to many images as arrays, from which predictions and metrics are made ───────────────────────────────


@dataclass(frozen=True, eq=False)
class Answers:
    """The k best answers to each of N images; k is 5, or the number of landmarks if that is smaller."""

    labels: NDArray[np.int64]  # (N, k), by score descending, equal scores by label ascending
    scores: NDArray[np.float32]  # (N, k), probabilities after temperature
    truth_log_scores: NDArray[np.float32]  # (N,), natural logarithm of the true label's probability; NaN where none
    untempered: NDArray[np.float32]  # (N,), the largest probability before temperature
    rejection: dict[str, NDArray[np.float32]]  # score name → (N,), larger for known landmarks


def best_answers(probabilities: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return `(labels, scores)` `(N, k)` of the `k` largest of `probabilities` `(N, K)`; equal ones by label ascending.

    Linear in K: only rows with more values equal to the k-th than fit are fully sorted.
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


# ── Answers in notebooks: the image, bars for the best answers, and a heat map for each ─────────────────────────────


SIDE = 160
"""Longer side in pixels of the images shown."""

WARM = np.array([255.0, 72.0, 0.0])
"""Colour of the warmest position of a heat map, RGB."""

MOST_WARMTH = 0.65
"""Opacity of `WARM` at the warmest position."""


def answers_html(answers: Sequence[Answer], remark: str | None, path: str | None) -> str:
    """Return the answers with bars, beside the image if `path` is a readable file.

    `remark` stands above the answers: why there are none, or that the image shows no known landmark.
    """
    caption = "" if path is None else f'<caption style="text-align:left">{escape(path)}</caption>'
    rows = [] if remark is None else [f'<tr><td colspan="3" style="text-align:left">{escape(remark)}</td></tr>']
    table = f"<table>{caption}{''.join(rows + [_row(answer) for answer in answers])}</table>"
    image = "" if path is None else _file_html(path)
    return f'<div style="display:flex;gap:16px;align-items:center">{image}{table}</div>' if image else table


def explanation_html(explanation: Explanation) -> str:
    """Return the image as the network saw it, then once for each answer under its heat map."""
    if explanation.problem is not None:
        return f"<p>{escape(explanation.path or '')}: {escape(explanation.problem)}</p>"
    name = "as the network sees it" if explanation.path is None else Path(explanation.path).name
    figures = [_figure(explanation.image, escape(name))]
    for answer, heat in zip(explanation.answers, explanation.maps, strict=True):
        caption = f"{escape(answer.name)}<br>{answer.probability:.1%}"
        figures.append(_figure(overlay_heat_map(explanation.image, heat), caption))
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(figures)}</div>'


def overlay_heat_map(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image (S, S, 3) with a heat map (h, w), from 0 to 1, blended over it."""
    size = (image.shape[1], image.shape[0])
    large = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    opacity = MOST_WARMTH * np.clip(large, 0, 1)[..., None]
    return np.asarray(image * (1 - opacity) + WARM * opacity).round().astype(np.uint8)


def _row(answer: Answer) -> str:
    bar = f'<div style="width:{100 * answer.probability:.1f}px;height:0.8em;background:#4c78a8"></div>'
    return (
        f'<tr><td style="text-align:left">{escape(answer.name)}</td><td style="width:100px">{bar}</td>'
        f"<td>{answer.probability:.1%}</td></tr>"
    )


def _figure(image: NDArray[np.uint8], caption: str) -> str:
    small = encode(shrink(image, SIDE), quality=85)
    return f'<figure style="margin:0;text-align:center">{_img(small)}<figcaption>{caption}</figcaption></figure>'


def _file_html(path: str) -> str:
    try:
        return _img(encode(shrink(decode(Path(path).read_bytes(), min_side=SIDE), SIDE), quality=85))
    except (ImageError, OSError, ValueError):  # no longer there, or not an image: the answers are still shown
        return ""


def _img(jpeg: bytes) -> str:
    return f'<img alt="" src="{data_uri(jpeg)}">'


# ── Known or unknown: the scores, by their names in the literature ──────────────────────────────────────────────────


Scores = Mapping[str, NDArray[np.float32]]

MSP, KNN, MAHALANOBIS = "msp", "knn", "mahalanobis"
KNN_UNKNOWN, CONTRAST = "knn_unknown", "contrast"
COMPARING = frozenset({KNN, MAHALANOBIS, KNN_UNKNOWN, CONTRAST})
"""Scores that need remembered images."""

WITH_UNKNOWN = frozenset({KNN_UNKNOWN, CONTRAST})
"""Scores that need remembered unknown images."""

FROM_ANSWERS = frozenset({MSP, "energy"})
"""Scores computed from the answers, which differ between ways of answering."""

SCORE_DEFINITIONS = {
    "score": "The number that a submission gives with its answer.",
    "msp": "Largest probability of any landmark, after temperature (maximum softmax probability, Hendrycks and Gimpel, "
    "ICLR 2017).",
    "energy": "Logarithm of the sum of the exponentials of the network's outputs (Liu et al., NeurIPS 2020).",
    "knn": "The ten training images nearest in cosine between signed square roots of the features vote for "
    "their landmark with weight exp((cosine - 1) / 0.05); logarithm of the votes of the landmark that got most.",
    "mahalanobis": "Mahalanobis distance to the mean of all training images minus that to the nearest landmark's mean, "
    "on the same features (relative Mahalanobis distance, Ren et al. 2021).",
    "knn_unknown": "Minus the logarithm of the votes of the ten nearest among the unknown images that the threshold "
    "was chosen on, weighted as for knn; an image does not vote for itself.",
    "contrast": "Mahalanobis distance to the mean of these unknown images minus that to the nearest landmark's mean; "
    "an unknown image is compared with the mean of the others.",
    "combined": "Weighted sum of energy and all scores that compare features; the weights of a logistic regression of "
    "known against unknown on the images that the threshold was chosen on.",
}


@dataclass(frozen=True)
class KnownRule:
    """The value that is compared with a threshold: the sum of `weights[name] * score` plus `constant`."""

    name: str
    weights: dict[str, float]
    constant: float = 0.0

    def apply(self, scores: Scores) -> NDArray[np.float32]:
        """Return the value of the rule for each image `(N,)`."""
        total = sum(weight * scores[name].astype(np.float64) for name, weight in self.weights.items())
        return np.asarray(total + self.constant, dtype=np.float32)

    def record(self) -> dict[str, Any]:
        """Return this as a JSON object."""
        return asdict(self)
