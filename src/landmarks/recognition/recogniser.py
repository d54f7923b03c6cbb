"""`Recogniser`: a trained or exported network with everything needed to say which landmark an image shows.

This module needs no PyTorch: runs answer through the module `trained`, exports through `portable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from landmarks.dataset.images import ImageError
from landmarks.dataset.manifest import NO_LABEL
from landmarks.dataset.naming import normalised_name
from landmarks.models.preprocessing import as_normalised
from landmarks.recognition import portable
from landmarks.recognition.answers import (
    COMPARING,
    MSP,
    WITH_UNKNOWN,
    Answers,
    Explanation,
    KnownRule,
    Recognition,
    Recognitions,
    answers_of,
)
from landmarks.recognition.learned import Learned, free_landmark_id, read_learned_file, require_free
from landmarks.recognition.portable import ExportedNetwork, open_export, require_learning
from landmarks.recognition.reading import ImageLike, ReadImage, as_iterable, is_image_like, read_ahead
from landmarks.support.console import plural
from landmarks.support.errors import LandmarksError, StaleError, UsageError, did_you_mean, naming_the_extra
from landmarks.support.files import digest_of
from landmarks.support.places import Place
from landmarks.training.run import Run, open_run

if TYPE_CHECKING:
    import torch

    from landmarks.models.network import Network
    from landmarks.recognition.answering import AnsweringChoice
    from landmarks.recognition.closed_form import Memory
    from landmarks.recognition.gallery import Gallery

CLASSIFIER, NEIGHBOURS, BOTH = BY = ("classifier", "neighbours", "both")
"""Ways of answering; see `answering.py`."""

ANSWERS = 5
"""Answers kept per image, or as many as there are landmarks if that is fewer."""

BATCH_SIZE = 32
"""Images per batch of answers."""

EXPLAINED_AT_ONCE = 8
"""Images per batch of heat maps."""


@dataclass(frozen=True, eq=False)
class Recogniser:
    """Recognises landmarks in images: a network, its labels, and the rule that tells known from unknown.

    Open one from a run's folder or an export with `landmarks.load`. An image is a file's path, its bytes, a file opened
    in binary mode, a Pillow image, or RGB pixels uint8 (H, W, 3). Every method that takes an image also takes several.
    """

    network: Network | ExportedNetwork
    names: list[str]
    """The name of each label."""
    landmark_ids: list[int]
    """The landmark id of each label."""
    temperature: float = 1.0
    gallery: Gallery | None = None
    """Remembered training images; None: there are none."""
    rule: KnownRule | None = None
    """Computes the score that is compared with `threshold`; None: it does not tell known from unknown."""
    threshold: float = 0.0
    """An image whose score lies below this is unknown."""
    device: torch.device | None = None
    """Where the network is; None for an export, which runs on the CPU."""
    memory: Memory | None = None
    """What new landmarks are learned with, made from its own images; None: it cannot learn."""
    learned: Learned = field(default_factory=Learned)
    """Landmarks added since training; their labels follow those of the trained ones."""
    by: str = CLASSIFIER
    """The way it answers: classifier, neighbours or both."""
    choice: AnsweringChoice | None = None
    """The way that was best on the validation images; None: not chosen yet."""

    def __repr__(self) -> str:
        rejection = "" if self.rule is None else ", tells known from unknown"
        place = "cpu" if self.device is None else self.device.type
        kind = f"export {self.network.record.kind}" if isinstance(self.network, ExportedNetwork) else f"on {place}"
        return f"Recogniser({self.network.backbone_name}, {plural(len(self.names), 'landmark')}, {kind}{rejection})"

    @property
    def trained(self) -> Network:
        """The run's PyTorch network. Raises `LandmarksError` for an export, which has none."""
        if isinstance(self.network, ExportedNetwork):
            raise LandmarksError(f"{self.network.path} is an export", expected="a run, with its network in PyTorch")
        return self.network

    @property
    def seen_share(self) -> float:
        """Side of the central square that the network sees, as a share (at most 1) of an image's shorter side."""
        preprocessing = self.network.preprocessing
        return preprocessing.image_size / round(preprocessing.image_size / preprocessing.crop)

    @overload
    def recognise(self, images: ImageLike, top: int = ANSWERS) -> Recognition: ...  # type: ignore[overload-overlap]
    @overload
    def recognise(self, images: Iterable[ImageLike], top: int = ANSWERS) -> Recognitions: ...
    def recognise(self, images: ImageLike | Iterable[ImageLike], top: int = ANSWERS) -> Recognition | Recognitions:
        """Return the `top` (1 to 5) best answers to an image, or to each of several, with their probabilities.

        An image that cannot be read or decoded has a `problem` instead. Raises `UsageError` for an object that is not
        an image, and `StaleError` when the threshold needs remembered images that are gone.
        """
        recognitions = Recognitions(self.recognitions(images, top))
        return recognitions[0] if is_image_like(images) else recognitions

    def recognitions(self, images: ImageLike | Iterable[ImageLike], top: int = ANSWERS) -> Iterator[Recognition]:
        """Yield what `recognise` returns, one image after another, for any number of images."""
        require_top(top)
        if self.rule is not None and self._lacks(set(self.rule.weights)):
            raise StaleError(
                "this recogniser has a threshold, but not the images that it compares with",
                way_out="choose it again with: landmarks evaluate RUN --data TEST --false-acceptance RATE",
            )
        for batch in self.read(images, BATCH_SIZE):
            readable = _readable_pixels(batch)
            recognised = self._recognitions(readable, top) if readable else iter(())
            for image in batch:
                recognition = Recognition(problem=image.problem) if image.pixels is None else next(recognised)
                yield replace(recognition, path=image.path)

    @property
    def _backend(self) -> _Backend:
        """The module that runs its network: in onnxruntime for an export, in PyTorch for a run."""
        if isinstance(self.network, ExportedNetwork):
            return portable
        from landmarks.recognition import trained

        return trained

    def _lacks(self, scores: set[str]) -> bool:
        """Return whether any of `scores` needs remembered images that are not there."""
        if isinstance(self.network, ExportedNetwork):
            return False
        if self.gallery is None:
            return bool(scores & COMPARING)
        return self.gallery.unknown is None and bool(scores & WITH_UNKNOWN)

    def read(self, images: ImageLike | Iterable[ImageLike], batch_size: int) -> Iterator[list[ReadImage]]:
        """Yield batches of images as the network takes them: cropped squares for a run, whole images for an export."""
        whole = isinstance(self.network, ExportedNetwork)
        return read_ahead(as_iterable(images), self.network.preprocessing, batch_size, whole=whole)

    def _recognitions(self, images: Sequence[NDArray[np.uint8]], top: int) -> Iterator[Recognition]:
        answers = self.answer(images)
        known: list[bool | None] = [None] * len(images)
        if self.rule is not None:
            known = list((self.known_scores(answers) >= self.threshold).tolist())
        for labels, scores, is_known in zip(answers.labels.tolist(), answers.scores.tolist(), known, strict=True):
            yield Recognition(answers_of(self.names, self.landmark_ids, labels[:top], scores[:top]), is_known)

    def known_scores(self, answers: Answers) -> NDArray[np.float32]:
        """Return the scores (N,) to compare with `threshold`: the rule's, or without one the largest probabilities."""
        scores = {MSP: answers.scores[:, 0], **answers.rejection}
        if self.rule is None:
            return scores[MSP]
        if isinstance(self.network, ExportedNetwork):  # its graph has already applied the rule
            return scores[self.network.record.score]
        return self.rule.apply(scores)

    def transform(self, images: ImageLike | Iterable[ImageLike]) -> NDArray[np.float32]:
        """Return N images as a run's `network` takes them, float32 (N, 3, S, S): resized, cropped and normalised.

        For your own PyTorch code: `recogniser.network(torch.from_numpy(recogniser.transform(images)))` returns the
        logits (N, K). Raises `ImageError` for the first image that cannot be read or decoded.
        """
        preprocessing = self.network.preprocessing
        batches = [np.zeros((0, 3, *[preprocessing.image_size] * 2), dtype=np.float32)]
        for squares in _all_pixels(read_ahead(as_iterable(images), preprocessing, BATCH_SIZE)):
            batches.append(as_normalised(np.stack(squares), preprocessing))
        return np.concatenate(batches)

    def embed(self, images: ImageLike | Iterable[ImageLike]) -> NDArray[np.float32]:
        """Return the pooled features float32 (N, C) of N images, before the head; similar images have similar features.

        Raises `ImageError` for the first image that cannot be read or decoded.
        """
        batches = [np.zeros((0, self.network.width), dtype=np.float32)]
        for pixels in _all_pixels(self.read(images, BATCH_SIZE)):
            batches.append(self._backend.features_of_images(self, pixels))
        return np.concatenate(batches)

    @overload
    def explain(self, images: ImageLike, top: int = 4) -> Explanation: ...  # type: ignore[overload-overlap]
    @overload
    def explain(self, images: Iterable[ImageLike], top: int = 4) -> list[Explanation]: ...
    def explain(self, images: ImageLike | Iterable[ImageLike], top: int = 4) -> Explanation | list[Explanation]:
        """Return the `top` best answers to an image, or to each of several, with a heat map for each (Grad-CAM).

        An image that cannot be read or decoded has a `problem` instead. Raises `UsageError` for an object that is not
        an image, and `LandmarksError` for a network without heat maps.
        """
        explanations = list(self.explanations(images, top))
        return explanations[0] if is_image_like(images) else explanations

    def explanations(self, images: ImageLike | Iterable[ImageLike], top: int = 4) -> Iterator[Explanation]:
        """Yield what `explain` returns, one image after another."""
        if top < 1:
            raise UsageError("that many answers cannot be explained", received=top, expected="1 or more")
        for batch in self.read(images, EXPLAINED_AT_ONCE):
            readable = _readable_pixels(batch)
            explained = self._backend.explanations_of_images(self, readable, top) if readable else iter(())
            for image in batch:
                explanation = Explanation(problem=image.problem) if image.pixels is None else next(explained)
                yield replace(explanation, path=image.path)

    def answer(
        self,
        images: Sequence[NDArray[np.uint8]],
        truth: NDArray[np.int64] | None = None,
        excluded: NDArray[np.int64] | None = None,
    ) -> Answers:
        """Answer images as the network takes them.

        A run takes cropped squares uint8 (S, S, 3), an export decoded images (H, W, 3) of any size. `truth` (N,) is the
        label that each image shows, `NO_LABEL` where it shows none. `excluded` (N,) is, for an image that is itself
        among the remembered unknown images, its row there, and -1 for others: no image is compared with itself.
        """
        truth = np.full(len(images), NO_LABEL) if truth is None else truth
        return self._backend.answers_to_images(self, images, truth, ANSWERS, excluded)

    def learn(self, images: ImageLike | Iterable[ImageLike], name: str, landmark_id: int | None = None) -> Recogniser:
        """Return a recogniser that also knows the landmark `name`, learned from one or a few `images` of it.

        This recogniser is unchanged, and nothing is written: `landmarks.learn` stores the landmark in the run, or
        beside the export. A landmark that was learned before gets these images too. Raises `LandmarksError` when the
        recogniser cannot learn, or was trained for a landmark of that name or id, and `ImageError` for an image that
        cannot be read or decoded.
        """
        return self.with_vectors(self.vectors(images), name, landmark_id)

    def vectors(self, images: ImageLike | Iterable[ImageLike]) -> NDArray[np.float32]:
        """Return the vectors float32 (N, D) that landmarks are learned from, of N images.

        They are the directions of a run's features, and an export's whitened features. Raises `LandmarksError` for an
        export that cannot learn, and `ImageError` for an image that cannot be read or decoded.
        """
        batches = [
            self._backend.vectors_of_images(self, pixels) for pixels in _all_pixels(self.read(images, BATCH_SIZE))
        ]
        return np.concatenate(batches) if batches else np.zeros((0, 0), dtype=np.float32)

    def with_vectors(self, vectors: NDArray[np.float32], name: str, landmark_id: int | None = None) -> Recogniser:
        """Return what `learn` returns, given the `vectors` (n, D) of the images."""
        name = normalised_name(name) if isinstance(name, str) else ""
        trained = len(self.names) - len(self.learned.names)
        if not name or not len(vectors):
            raise LandmarksError("a landmark is learned from a name and at least one image of it")
        is_new = name not in self.learned.names
        if not is_new and landmark_id is not None:
            present = self.learned.landmark_ids[self.learned.names.index(name)]
            if landmark_id != present:
                raise LandmarksError(
                    f'"{name}" was learned with another landmark id',
                    received=landmark_id,
                    expected=present,
                    way_out="leave the id out, or forget the landmark first",
                )
        require_free(name, landmark_id, self.names[:trained], self.landmark_ids if is_new else [])
        if is_new and landmark_id is None:  # an export of a run that had learned already uses some ids below -1
            landmark_id = free_landmark_id(self.landmark_ids)
        return self._backend.with_landmarks(self, self.learned.plus(vectors, name, landmark_id))

    def read_learned(self, path: Place) -> Recogniser:
        """Return an export's recogniser that also knows the landmarks in a file that the export, or its page, saved.

        Nothing is written: `landmarks.learn(export, from_=path)` stores them. Landmarks that were learned before get
        the file's images too. Raises `LandmarksError` when the export cannot learn, when the file was learned with
        another network, and when the export was trained for a landmark of the same name or id.
        """
        learned, recogniser = read_learned_file(Path(path), require_learning(self.exported)), self
        for place, (name, id) in enumerate(zip(learned.names, learned.landmark_ids, strict=True)):
            own_id = None if id < 0 else id  # negative ids are numbered anew, in the order of learning
            recogniser = recogniser.with_vectors(learned.images[learned.places == place], name, own_id)
        return recogniser

    @property
    def exported(self) -> ExportedNetwork:
        """The export that answers. Raises `LandmarksError` for a run."""
        if not isinstance(self.network, ExportedNetwork):
            raise LandmarksError("this is the recogniser of a run", expected="one of an export, NAME.onnx")
        return self.network

    @property
    def can_learn(self) -> bool:
        """Whether `learn` can add landmarks."""
        if isinstance(self.network, ExportedNetwork):
            return self.network.record.learning is not None
        return self.memory is not None

    def forget(self, name: str) -> Recogniser:
        """Return a recogniser without the learned landmark `name`; raise `LandmarksError` when it was not learned."""
        return self._backend.with_landmarks(self, self.learned.without(normalised_name(name)))

    @property
    def digest(self) -> str:
        """A digest of everything besides a run's weights that decides the answers."""
        if isinstance(self.network, ExportedNetwork):
            return self.network.digest
        by = [] if self.by == CLASSIFIER else [self.by, repr(self.choice)]
        return digest_of(self.temperature, None if self.gallery is None else self.gallery.digest, *by)


class _Backend(Protocol):
    """What the modules `trained` (cropped squares, PyTorch) and `portable` (whole images, ONNX) provide."""

    def answers_to_images(
        self,
        recogniser: Recogniser,
        images: Sequence[NDArray[np.uint8]],
        truth: NDArray[np.int64],
        answers: int,
        excluded: NDArray[np.int64] | None = None,
    ) -> Answers: ...
    def features_of_images(
        self, recogniser: Recogniser, images: Sequence[NDArray[np.uint8]]
    ) -> NDArray[np.float32]: ...
    def explanations_of_images(
        self, recogniser: Recogniser, images: Sequence[NDArray[np.uint8]], top: int
    ) -> Iterator[Explanation]: ...
    def vectors_of_images(self, recogniser: Recogniser, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]: ...
    def with_landmarks(self, recogniser: Recogniser, learned: Learned) -> Recogniser: ...


def load(place: Place, *, by: str | None = None, device: str = "auto") -> Recogniser:
    """Open a run, its folder, or an export (`.onnx`) as a `Recogniser`.

    `by` is the way a run answers: classifier, neighbours or both; by default the one that validation chose. `device` is
    auto, cpu, cuda or mps; an export always runs on the CPU. Raises `LandmarksError` when `place` is neither a finished
    run nor an export, or a run lacks what answering `by` needs, and `MissingExtraError` for a run without PyTorch.
    """
    require_by(by)
    if not isinstance(place, Run) and is_export(place):
        if by is not None:
            raise UsageError(f"{place} is an export, which answers as its run did when it was written", received=by)
        network = open_export(place)
        record = network.record
        return Recogniser(
            network=network,
            names=network.names,
            landmark_ids=network.landmark_ids,
            temperature=record.temperature,
            rule=record.rule,
            threshold=record.threshold,
            learned=network.learned,
        )
    run = place if isinstance(place, Run) else open_run(place)
    with naming_the_extra(f"answering from the run {run.name}"):
        from landmarks.recognition.trained import open_trained

        return open_trained(run, device, by)


def is_export(place: Place) -> bool:
    """Return whether `place` is named like an export (`.onnx`) and is not a folder."""
    return Path(place).suffix.lower() == ".onnx" and not Path(place).is_dir()


def require_by(by: str | None) -> None:
    """Raise `UsageError` unless `by` is a way of answering, or None."""
    if by is not None and by not in BY:
        raise UsageError(f'no way of answering is called "{by}"', expected=", ".join(BY), way_out=did_you_mean(by, BY))


def require_top(top: int) -> None:
    """Raise `UsageError` unless `top` is 1 to `ANSWERS`."""
    if not 1 <= top <= ANSWERS:
        raise UsageError("that many answers are not kept", received=top, expected=f"1 to {ANSWERS}")


def _all_pixels(batches: Iterable[list[ReadImage]]) -> Iterator[list[NDArray[np.uint8]]]:
    """Yield the images of each batch; raise `ImageError` for the first that could not be read."""
    done = 0
    for batch in batches:
        for position, image in enumerate(batch, done):
            if image.problem is not None:
                raise ImageError(f"{image.path or f'image {position}'} cannot be used: {image.problem}")
        done += len(batch)
        yield _readable_pixels(batch)


def _readable_pixels(batch: list[ReadImage]) -> list[NDArray[np.uint8]]:
    """Return the images of a batch that could be read; there may be none."""
    return [image.pixels for image in batch if image.pixels is not None]
