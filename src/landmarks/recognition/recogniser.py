"""The recogniser: a network, trained or exported, and all that is needed to say which landmark an image shows.

Nothing here needs PyTorch: a run's network is asked through `trained`, an export through `portable`.
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
from landmarks.dataset.naming import plain
from landmarks.models.preprocessing import as_normalised
from landmarks.recognition import portable_answers
from landmarks.recognition.answers import Answers, Explanation, Recognition, Recognitions, answers_of
from landmarks.recognition.known_scores import COMPARING, MSP, WITH_UNKNOWN, KnownRule
from landmarks.recognition.learned_images import Learned
from landmarks.recognition.portable import ExportedNetwork, open_export
from landmarks.recognition.portable_answers import require_learning
from landmarks.recognition.portable_learning import read_learned_file, require_free
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
"""Who may answer, see `answering.py`."""

ANSWERS = 5
"""Answers kept per image; with fewer landmarks than that, all."""

BATCH_SIZE = 32
"""Images that are answered at once."""

EXPLAINED_AT_ONCE = 8
"""Images whose heat maps are computed at once."""


@dataclass(frozen=True, eq=False)
class Recogniser:
    """Answers images: a network, what its answers are called, and what tells known from unknown.

    `landmarks.load` opens one from a run's folder or an export. An image is the path of a file, a file's bytes, a file
    opened for reading them, one of Pillow's images, or RGB pixels uint8 (H, W, 3); wherever one can be given, several
    can.
    """

    network: Network | ExportedNetwork
    names: list[str]
    """What each label is called."""
    landmark_ids: list[int]
    """What each label stands for."""
    temperature: float = 1.0
    gallery: Gallery | None = None
    """What it remembers of its training images; None: nothing."""
    rule: KnownRule | None = None
    """The score that is compared with `threshold`; None: it does not tell known from unknown."""
    threshold: float = 0.0
    """Below this an image shows nothing that it knows."""
    device: torch.device | None = None
    """Where the network is; None: an export, on the processor."""
    memory: Memory | None = None
    """What it keeps of its own images so that landmarks can be added; None: it cannot learn."""
    learned: Learned = field(default_factory=Learned)
    """Landmarks that were added to those it was trained for; their labels stand behind the others."""
    by: str = CLASSIFIER
    """Who answers: classifier, neighbours or both."""
    choice: AnsweringChoice | None = None
    """Which of these validation chose; None: it was never asked."""

    def __repr__(self) -> str:
        told = "" if self.rule is None else ", tells known from unknown"
        place = "cpu" if self.device is None else self.device.type
        kind = f"export {self.network.record.kind}" if isinstance(self.network, ExportedNetwork) else f"on {place}"
        return f"Recogniser({self.network.backbone_name}, {plural(len(self.names), 'landmark')}, {kind}{told})"

    @property
    def trained(self) -> Network:
        """Return the run's network in PyTorch; raise `LandmarksError` for an export, which has none."""
        if isinstance(self.network, ExportedNetwork):
            raise LandmarksError(f"{self.network.path} is an export", expected="a run, with its network in PyTorch")
        return self.network

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
        if self.rule is not None and self._lacks(set(self.rule.weights)):
            raise StaleError(
                "this recogniser has a threshold, but not the images that it compares with",
                way_out="choose it again with: landmarks evaluate RUN --data TEST --false-acceptance RATE",
            )
        for batch in self.read(images, BATCH_SIZE):
            seen = _pixels_of(batch)
            answered = self._recognitions(seen, top) if seen else iter(())
            for one in batch:
                found = Recognition(problem=one.problem) if one.pixels is None else next(answered)
                yield replace(found, path=one.path)

    @property
    def _backend(self) -> _Backend:
        """How its network is asked: an export's graph, or a run's in PyTorch."""
        if isinstance(self.network, ExportedNetwork):
            return portable_answers
        from landmarks.recognition import trained

        return trained

    def _lacks(self, scores: set[str]) -> bool:
        """Return whether any of `scores` compares with images that are not remembered."""
        if isinstance(self.network, ExportedNetwork):
            return False
        return bool(
            scores & (COMPARING if self.gallery is None else WITH_UNKNOWN if self.gallery.unknown is None else set())
        )

    def read(self, images: ImageLike | Iterable[ImageLike], batch_size: int) -> Iterator[list[ReadImage]]:
        """Yield images as the network takes them: the evaluation's square, or decoded whole for an export's graph."""
        whole = isinstance(self.network, ExportedNetwork)
        return read_ahead(as_iterable(images), self.network.preprocessing, batch_size, whole=whole)

    def _recognitions(self, seen: Sequence[NDArray[np.uint8]], top: int) -> Iterator[Recognition]:
        answers = self.answer(seen)
        known: list[bool | None] = [None] * len(seen)
        if self.rule is not None:
            known = list((self.known_scores(answers) >= self.threshold).tolist())
        for labels, probabilities, whether in zip(answers.labels.tolist(), answers.scores.tolist(), known, strict=True):
            yield Recognition(answers_of(self.names, self.landmark_ids, labels[:top], probabilities[:top]), whether)

    def known_scores(self, answers: Answers) -> NDArray[np.float32]:
        """Return what is compared with `threshold` (N,): the rule's values, or the largest probability without one."""
        scores = {MSP: answers.scores[:, 0], **answers.rejection}
        if self.rule is None:
            return scores[MSP]
        if isinstance(self.network, ExportedNetwork):  # its graph has applied the rule
            return scores[self.network.record.score]
        return self.rule.apply(scores)

    def transform(self, images: ImageLike | Iterable[ImageLike]) -> NDArray[np.float32]:
        """Return N images as a run's `network` takes them, float32 (N, 3, S, S): resized, cropped and normalised.

        For torch code of one's own: `recogniser.network(torch.from_numpy(recogniser.transform(images)))` are the
        logits (N, K). Raises `ImageError` for the first image that cannot be read or decoded.
        """
        preprocessing = self.network.preprocessing
        found = [np.zeros((0, 3, *[preprocessing.image_size] * 2), dtype=np.float32)]
        for squares in _all_pixels(read_ahead(as_iterable(images), preprocessing, BATCH_SIZE)):
            found.append(as_normalised(np.stack(squares), preprocessing))
        return np.concatenate(found)

    def embed(self, images: ImageLike | Iterable[ImageLike]) -> NDArray[np.float32]:
        """Return the pooled features float32 (N, C) of N images, before the head: similar images have similar ones.

        Raises `ImageError` for the first image that cannot be read or decoded.
        """
        found = [np.zeros((0, self.network.width), dtype=np.float32)]
        found += [
            self._backend.features_of_images(self, pixels) for pixels in _all_pixels(self.read(images, BATCH_SIZE))
        ]
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
        for batch in self.read(images, EXPLAINED_AT_ONCE):
            seen = _pixels_of(batch)
            explained = self._backend.explanations_of_images(self, seen, top) if seen else iter(())
            for one in batch:
                found = Explanation(problem=one.problem) if one.pixels is None else next(explained)
                yield replace(found, path=one.path)

    def answer(
        self,
        images: Sequence[NDArray[np.uint8]],
        first: NDArray[np.int64] | None = None,
        itself: NDArray[np.int64] | None = None,
    ) -> Answers:
        """Answer images as the network takes them; `first` (N,) is what each shows, `NO_LABEL` where nothing known.

        `itself` (N,) says which of the remembered unknown images each is, -1 where none.

        A run's network takes the evaluation's squares uint8 (S, S, 3), an export decoded images (H, W, 3) of any size.
        """
        first = np.full(len(images), NO_LABEL) if first is None else first
        return self._backend.answers_to_images(self, images, first, ANSWERS, itself)

    def learn(self, images: ImageLike | Iterable[ImageLike], name: str, landmark_id: int | None = None) -> Recogniser:
        """Return a recogniser that knows the landmark `name` too, from one to a few `images` of it.

        In memory alone: `landmarks.learn` keeps it in the run, or beside the export. This one stays as it is. A
        landmark that was learned before gets these images too. Raises `LandmarksError` when it cannot learn, or was
        trained for a landmark of that name or id, and `ImageError` for what is no image.
        """
        return self.with_vectors(self.vectors(images), name, landmark_id)

    def vectors(self, images: ImageLike | Iterable[ImageLike]) -> NDArray[np.float32]:
        """Return what landmarks are learned by, float32 (N, D), of N images: directions of features, or whitened ones.

        Raises `LandmarksError` for an export that cannot learn, and `ImageError` for what is no image.
        """
        found = [self._backend.vectors_of_images(self, pixels) for pixels in _all_pixels(self.read(images, BATCH_SIZE))]
        return np.concatenate(found) if found else np.zeros((0, 0), dtype=np.float32)

    def with_vectors(self, vectors: NDArray[np.float32], name: str, landmark_id: int | None = None) -> Recogniser:
        """Return what `learn` returns, from what `vectors` gave (n, D)."""
        name, trained = plain(name) if isinstance(name, str) else "", len(self.names) - len(self.learned.names)
        if not name or not len(vectors):
            raise LandmarksError("a landmark is learned from a name and at least one image of it")
        is_new = name not in self.learned.names
        require_free(name, landmark_id, self.names[:trained], self.landmark_ids if is_new else [])
        if is_new and landmark_id is None:  # a run that had learned before its export may hold some of those below -1
            landmark_id = min(-1, *self.landmark_ids) - 1
        return self._backend.taught(self, self.learned.plus(vectors, name, landmark_id))

    def read_learned(self, path: Place) -> Recogniser:
        """Return an export's recogniser that knows the landmarks in a file too, which its page, or it, has saved.

        In memory alone: `landmarks.learn(export, from_=path)` keeps them. Landmarks that were learned before get the
        file's images too. Raises `LandmarksError` when it cannot learn, when the file was learned with another network,
        and when it was trained for a landmark of that name or id.
        """
        given, found = read_learned_file(Path(path), require_learning(self.exported)), self
        for place, (name, id) in enumerate(zip(given.names, given.landmark_ids, strict=True)):
            own = None if id < 0 else id  # those below zero are given, by whoever learns, in the order of learning
            found = found.with_vectors(given.images[given.places == place], name, own)
        return found

    @property
    def exported(self) -> ExportedNetwork:
        """Return the export that answers; raise `LandmarksError` for a run."""
        if not isinstance(self.network, ExportedNetwork):
            raise LandmarksError("this is the recogniser of a run", expected="one of an export, NAME.onnx")
        return self.network

    @property
    def can_learn(self) -> bool:
        """Whether landmarks can be added to it as it is."""
        if isinstance(self.network, ExportedNetwork):
            return self.network.record.learning is not None
        return self.memory is not None

    def forget(self, name: str) -> Recogniser:
        """Return a recogniser without the learned landmark `name`; raise `LandmarksError` when it was not learned."""
        return self._backend.taught(self, self.learned.without(plain(name)))

    @property
    def digest(self) -> str:
        """Changes with whatever, beside the weights, changes the answers."""
        if isinstance(self.network, ExportedNetwork):
            return self.network.digest
        by = [] if self.by == CLASSIFIER else [self.by, repr(self.choice)]
        return digest_of(self.temperature, None if self.gallery is None else self.gallery.digest, *by)


class _Backend(Protocol):
    """The modules `trained` and `portable_answers`: what a run's network says of squares, an export's of images."""

    def answers_to_images(
        self,
        recogniser: Recogniser,
        images: Sequence[NDArray[np.uint8]],
        first: NDArray[np.int64],
        answers: int,
        itself: NDArray[np.int64] | None = None,
    ) -> Answers: ...
    def features_of_images(
        self, recogniser: Recogniser, images: Sequence[NDArray[np.uint8]]
    ) -> NDArray[np.float32]: ...
    def explanations_of_images(
        self, recogniser: Recogniser, images: Sequence[NDArray[np.uint8]], top: int
    ) -> Iterator[Explanation]: ...
    def vectors_of_images(self, recogniser: Recogniser, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]: ...
    def taught(self, recogniser: Recogniser, learned: Learned) -> Recogniser: ...


def load(place: Place, *, by: str | None = None, device: str = "auto") -> Recogniser:
    """Open a run, its folder, or an export (`.onnx`) as a `Recogniser`: everything that answers need, read once.

    `by` is who answers: classifier, neighbours or both; without it what validation chose for the run. `device` is auto,
    cpu, cuda or mps; an export is asked on the processor. Raises `LandmarksError` when `place` is neither a finished
    run nor an export, or keeps nothing to answer so by, `MissingExtraError` for a run where PyTorch is not installed.
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
    """Return whether `place` names a file that `landmarks export` may have written, by its name or as a file."""
    return Path(place).suffix.lower() == ".onnx" and not Path(place).is_dir()


def require_by(by: str | None) -> None:
    """Raise `UsageError` unless somebody of that name can answer; None is whoever the run has."""
    if by is not None and by not in BY:
        raise UsageError(f'nobody answers by "{by}"', expected=", ".join(BY), way_out=did_you_mean(by, BY))


def require_top(top: int) -> None:
    """Raise `UsageError` unless so many answers are kept per image."""
    if not 1 <= top <= ANSWERS:
        raise UsageError("that many answers cannot be had", received=top, expected=f"1 to {ANSWERS}")


def _all_pixels(batches: Iterable[list[ReadImage]]) -> Iterator[list[NDArray[np.uint8]]]:
    """Yield the images of each batch; raise for the first that could not be read."""
    done = 0
    for batch in batches:
        for position, one in enumerate(batch, done):
            if one.problem is not None:
                raise ImageError(f"{one.path or f'image {position}'} cannot be used: {one.problem}")
        done += len(batch)
        yield _pixels_of(batch)


def _pixels_of(batch: list[ReadImage]) -> list[NDArray[np.uint8]]:
    """Return the images of a batch that could be read; there may be none."""
    return [one.pixels for one in batch if one.pixels is not None]
