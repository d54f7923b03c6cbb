"""Answers from an export: the counterpart of `trained.py`, which answers from a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from landmarks.models.preprocessing import centre_crop
from landmarks.recognition.answers import Answers, Explanation, answers_of
from landmarks.recognition.learned_images import Learned
from landmarks.recognition.portable import ExportedNetwork
from landmarks.recognition.portable_learning import LearningRecord
from landmarks.support.errors import LandmarksError

if TYPE_CHECKING:
    from landmarks.recognition.recogniser import Recogniser


def answers_to_images(
    recogniser: Recogniser,
    images: Sequence[NDArray[np.uint8]],
    truth: NDArray[np.int64],
    answers: int,
    excluded: NDArray[np.int64] | None = None,  # unused: an export does not know which unknown images it remembers
) -> Answers:
    """Answer decoded images uint8 (H, W, 3) of any sizes, as `Recogniser.answer` does."""
    return recogniser.exported.answer(images, truth, answers)


def features_of_images(recogniser: Recogniser, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return the pooled features float32 (N, C) of decoded images uint8 (H, W, 3)."""
    return recogniser.exported.outputs(images).features


def explanations_of_images(
    recogniser: Recogniser, images: Sequence[NDArray[np.uint8]], top: int
) -> Iterator[Explanation]:
    """Yield the `top` best answers to decoded images uint8 (H, W, 3), with heat maps.

    Raises `LandmarksError` for a graph without heat maps.
    """
    network = recogniser.exported
    outputs = network.outputs(images, maps=True)
    if outputs.maps is None:
        raise LandmarksError(f"{network.path} draws no heat maps", way_out="explain the run that it was exported from")
    for pixels, best, probabilities, maps in zip(
        images, outputs.best, outputs.probabilities, outputs.maps, strict=True
    ):
        labels = best[:top].tolist()
        answers = answers_of(recogniser.names, recogniser.landmark_ids, labels, probabilities[labels].tolist())
        yield Explanation(answers, maps[:top], centre_crop(pixels, network.preprocessing), network.record.maps_method)


def vectors_of_images(recogniser: Recogniser, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return the whitened features float32 (N, D) of decoded images; raise `LandmarksError` if it cannot learn."""
    require_learning(recogniser.exported)
    whitened = recogniser.exported.outputs(images).whitened
    assert whitened is not None  # `open_export` has checked that a graph whose record says so can learn
    return whitened


def with_landmarks(recogniser: Recogniser, learned: Learned) -> Recogniser:
    """Return `recogniser` with exactly the landmarks `learned` in addition to those in its graph."""
    network = replace(recogniser.exported, learned=learned)
    return replace(recogniser, network=network, names=network.names, landmark_ids=network.landmark_ids, learned=learned)


def require_learning(network: ExportedNetwork) -> LearningRecord:
    """Return what an export learns with; raise `LandmarksError` if it cannot learn."""
    if network.record.learning is None:
        raise LandmarksError(
            f"{network.path} cannot learn landmarks", expected="an export that was made for it",
            way_out="landmarks export RUN -o NAME.onnx --learning, or learn with the run and export it again",
        )  # fmt: skip
    return network.record.learning
