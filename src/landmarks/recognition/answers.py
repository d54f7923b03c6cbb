"""What a recogniser returns for an image: answers with probabilities, and heat maps that explain them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
        from landmarks.recognition.answers_html import answers_html

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
        from landmarks.recognition.answers_html import explanation_html

        return explanation_html(self)


def answers_of(
    names: Sequence[str], landmark_ids: Sequence[int], labels: Sequence[int], probabilities: Sequence[float]
) -> tuple[Answer, ...]:
    """Return the answers with these `labels` and `probabilities`, given the name and id of every label."""
    pairs = zip(labels, probabilities, strict=True)
    return tuple(Answer(label, landmark_ids[label], names[label], probability) for label, probability in pairs)


# The answers to many images as arrays, from which predictions and metrics are made.


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
