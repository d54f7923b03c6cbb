"""Exports at work: one ONNX file, run by onnxruntime, without PyTorch.

The file may come from anybody: its record is checked (`portable_record`), and a graph with other inputs or outputs than
`docs/export.md` lists is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landmarks.models.preprocessing import Preprocessing, centre_crop
from landmarks.recognition.answers import Answers, Explanation, answers_of, best_answers
from landmarks.recognition.learned import (
    TRAINED_SCORES,
    WHITENED,
    Learned,
    LearningRecord,
    PortableLearner,
    learner_of,
)
from landmarks.recognition.portable_record import (
    IMAGE,
    OUTPUTS,
    RECORD,
    ExportRecord,
    learned_beside,
    read_export_record,
    require_graph,
)
from landmarks.support.errors import LandmarksError, StaleError
from landmarks.support.files import digest_of, file_digest
from landmarks.support.places import Place
from landmarks.support.systems import usable_processors

if TYPE_CHECKING:
    from landmarks.recognition.recogniser import Recogniser

MAX_BYTES = 2 * 1024**3
"""Largest ONNX file: the limit of protobuf."""

MOST_AT_ONCE = 8
"""Most images answered in one pass, whose memory grows with them."""

MAPS = "maps"

_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Outputs:
    """The outputs of the graph for N images."""

    probabilities: NDArray[np.float32]  # (N, K), after temperature
    features: NDArray[np.float32]  # (N, C)
    known_score: NDArray[np.float32]  # (N,)
    best: NDArray[np.int64]  # (N, A)
    maps: NDArray[np.float32] | None  # (N, A, h, w); None: not requested, or the graph has none
    whitened: NDArray[np.float32] | None = None  # (N, D), what landmarks are learned from; None: it cannot learn
    trained_scores: NDArray[np.float32] | None = None  # (N, K), what learned landmarks compete with


@dataclass(frozen=True, eq=False)
class ExportedNetwork:
    """An opened export: decoded images in, outputs of the graph out."""

    path: Path
    record: ExportRecord
    session: Any
    """An `onnxruntime.InferenceSession`."""
    learned: Learned = field(default_factory=Learned)
    """Landmarks added to those in the graph; their images are whitened, see `portable_learning`."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by opening the file again, since sessions of onnxruntime cannot be pickled."""
        return _opened_again, (self.path.absolute(), self.record.raw, self.learned)

    @property
    def backbone_name(self) -> str:
        """The network's name."""
        return self.record.backbone

    @property
    def preprocessing(self) -> Preprocessing:
        """How the graph prepares images."""
        return self.record.preprocessing

    @property
    def names(self) -> list[str]:
        """The name of each label, learned landmarks last."""
        return [*self.record.names, *self.learned.names]

    @property
    def landmark_ids(self) -> list[int]:
        """The landmark id of each label, learned landmarks last."""
        return [*self.record.landmark_ids, *self.learned.landmark_ids]

    @property
    def width(self) -> int:
        """The length C of an image's features."""
        shape = next(output.shape for output in self.session.get_outputs() if output.name == "features")
        return int(shape[1])

    @property
    def has_maps(self) -> bool:
        """Whether the graph computes heat maps."""
        return any(output.name == MAPS for output in self.session.get_outputs())

    @cached_property
    def digest(self) -> str:
        """A digest of the file and of what it has learned."""
        if not self.learned.names:
            return file_digest(self.path)
        return digest_of(file_digest(self.path), self.learned.names, self.learned.images.tobytes().hex())

    @cached_property
    def learner(self) -> PortableLearner | None:
        """What answers with the learned landmarks; None: there are none."""
        if self.record.learning is None or not self.learned.names:
            return None
        return learner_of(self.record.learning, self.learned)

    def outputs(self, images: Sequence[NDArray[np.uint8]], *, maps: bool = False) -> Outputs:
        """Return the outputs of the graph for decoded RGB images, uint8 (H, W, 3) each, of any sizes.

        Raises `LandmarksError` when the graph fails, or its probabilities are invalid.
        """
        wanted = [*OUTPUTS, *([MAPS] if maps and self.has_maps else [])]
        wanted += [] if self.record.learning is None else [WHITENED, TRAINED_SCORES]
        positions = _batches_of_one_size(images)
        batches = [self._run(np.stack([images[at] for at in batch]), wanted) for batch in positions]
        given_order = np.argsort(np.concatenate(positions))
        arrays = [np.concatenate(parts)[given_order] for parts in zip(*batches, strict=True)]
        by_name = dict(zip(wanted, arrays, strict=True))
        outputs = Outputs(
            **{name: by_name[name] for name in OUTPUTS},
            maps=by_name.get(MAPS),
            whitened=by_name.get(WHITENED),
            trained_scores=by_name.get(TRAINED_SCORES),
        )
        return outputs if self.learner is None else self._with_learned(self.learner, outputs)

    def _with_learned(self, learner: PortableLearner, outputs: Outputs) -> Outputs:
        """Return `outputs` extended by the learned landmarks.

        An image answered by a learned landmark that it resembles closely enough is known, whatever the rule says.
        """
        assert outputs.whitened is not None and outputs.trained_scores is not None
        probabilities = learner.probabilities(outputs.probabilities, outputs.whitened, outputs.trained_scores)
        best, _ = best_answers(probabilities, outputs.best.shape[1])
        closeness = learner.resemblance(outputs.whitened) - learner.threshold
        is_learned = best[:, 0] >= len(self.record.names)
        known_score = np.where(
            is_learned & (closeness > 0),
            np.maximum(outputs.known_score, self.record.threshold + closeness),
            outputs.known_score,
        ).astype(np.float32)
        if self.record.rule is None:
            known_score = probabilities.max(axis=1)
        maps = None
        if outputs.maps is not None:  # learned landmarks have no heat map: theirs are all 0
            is_same = outputs.best[:, None, :] == best[:, :, None]  # (N, new, old)
            maps = np.einsum("nab,nbhw->nahw", is_same.astype(np.float32), outputs.maps)
        return replace(outputs, probabilities=probabilities, known_score=known_score, best=best, maps=maps)

    def _run(self, batch: NDArray[np.uint8], wanted: list[str]) -> list[NDArray[Any]]:
        try:
            arrays: list[NDArray[Any]] = self.session.run(wanted, {IMAGE: batch})
        except Exception as error:  # onnxruntime raises a dozen exception types, none of them public
            reason = " ".join(str(error).split())[:300]
            what = f"{len(batch)} images of {batch.shape[2]} × {batch.shape[1]} pixels"
            raise LandmarksError(
                f"{self.path} cannot answer {what} ({reason})", way_out="export the run again"
            ) from error
        shape = (len(batch), len(self.record.names))
        wrong = [f"probabilities {arrays[0].shape}"] if arrays[0].shape != shape else []
        wrong += [f"{name} not finite" for name, one in zip(wanted, arrays, strict=True) if not np.isfinite(one).all()]
        if wrong:
            raise LandmarksError(
                f"{self.path} does not answer as it promised",
                received=wrong[0],
                expected=f"finite numbers, probabilities {shape}",
            )
        return arrays

    def answer(self, images: Sequence[NDArray[np.uint8]], truth: NDArray[np.int64], answers: int) -> Answers:
        """Answer decoded images; `truth` (N,) is the label that each shows, negative where it shows none."""
        outputs = self.outputs(images)
        labels, scores = best_answers(outputs.probabilities, answers)
        logs = np.log(np.maximum(outputs.probabilities, _SMALLEST))
        truth_logs = logs[np.arange(len(truth)), np.maximum(truth, 0)]
        sharpened = logs * self.record.temperature  # the logits, up to a constant per row
        sharpened -= sharpened.max(axis=1, keepdims=True)
        return Answers(
            labels=labels,
            scores=scores,
            truth_log_scores=np.where(truth < 0, np.nan, truth_logs).astype(np.float32),
            untempered=(1 / np.exp(sharpened).sum(axis=1)).astype(np.float32),
            rejection={} if self.record.rule is None else {self.record.score: outputs.known_score},
        )


def _batches_of_one_size(images: Sequence[NDArray[np.uint8]]) -> list[list[int]]:
    """Return the positions of the images that each batch answers: of one size, and at most `MOST_AT_ONCE`."""
    of_size: dict[tuple[int, ...], list[int]] = {}
    for position, image in enumerate(images):
        of_size.setdefault(image.shape, []).append(position)
    return [
        positions[start : start + MOST_AT_ONCE]
        for positions in of_size.values()
        for start in range(0, len(positions), MOST_AT_ONCE)
    ]


def open_export(path: Place, *, threads: int | None = None) -> ExportedNetwork:
    """Open an export, with the landmarks it has learned (`NAME.learned.json` beside it).

    Raises `LandmarksError` when the file is not an export, was written by a newer version, or the landmarks beside it
    were learned with another export.
    """
    import onnxruntime

    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise LandmarksError(f"{path} is larger than an ONNX file can be")
    except OSError as error:
        raise LandmarksError(f"there is no export {path} ({error.strerror})") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_processors()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen exception types, none of them public
        reason = " ".join(str(error).split())[:300]
        raise LandmarksError(
            f"{path} cannot be opened by onnxruntime ({reason})", expected="a file that landmarks export wrote"
        ) from error
    text = session.get_modelmeta().custom_metadata_map.get(RECORD)
    if text is None:
        raise LandmarksError(
            f"{path} is an ONNX file, but no export of a run", expected=f'the key "{RECORD}" in its metadata'
        )
    record = read_export_record(text, str(path))
    require_graph(session, record, path)
    return ExportedNetwork(path, record, session, learned_beside(path, record))


def _opened_again(path: Path, record: Mapping[str, Any], learned: Learned) -> ExportedNetwork:
    opened = open_export(path)
    if opened.record.raw != record:
        raise StaleError(f"{path} was replaced by another export", way_out="open it again with landmarks.load")
    return replace(opened, learned=learned)


# ── The answers of a recogniser that opened an export, as `trained.py` gives those of a run ─────────────────────────


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
