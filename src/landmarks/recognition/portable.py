"""Answers from an export: one ONNX file, asked by onnxruntime, without PyTorch.

The file comes from anybody: its record is read with every size and type checked, and a graph with other inputs or
outputs than `docs/export.md` lists is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmarks.models.preprocessing import Preprocessing, from_record
from landmarks.recognition.answers import Answers, best_answers
from landmarks.recognition.known_scores import KnownRule
from landmarks.recognition.learned_images import Learned
from landmarks.recognition.portable_learning import (
    TRAINED_SCORES,
    WHITENED,
    LearningRecord,
    PortableLearner,
    is_landmark_id,
    learned_file,
    learner_of,
    read_learned_file,
    read_learning,
    require_free,
)
from landmarks.support.errors import LandmarksError, StaleError
from landmarks.support.files import digest_of, file_digest
from landmarks.support.places import Place
from landmarks.support.systems import usable_processors

FORMAT = 1
"""The newest layout of exports that this version writes and reads."""

RECORD = "landmarks"
"""The key of the record in the file's `metadata_props`."""

MAX_BYTES = 2 * 1024**3
"""An ONNX file has no more: protobuf's own limit."""

MAX_RECORD_BYTES = 256 * 1024**2
MAX_LANDMARKS = 5_000_000
MAX_NAME = 2_000
"""Letters in the longest name of a landmark that is read."""

IMAGE = "image"
OUTPUTS = ("probabilities", "features", "known_score", "best")
MAPS = "maps"

_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class ExportRecord:
    """What an export says of itself: its landmarks, how images are prepared, what tells known from unknown."""

    backbone: str
    kind: str
    """float32, float16 (of the weights) or int8."""
    preprocessing: Preprocessing
    names: list[str]
    landmark_ids: list[int]
    temperature: float
    rule: KnownRule | None
    threshold: float
    score: str
    """What `known_score` is: the name of the rule, or msp where there is none."""
    maps_method: str
    identified_by: str | None
    run: str
    run_digest: str
    learning: LearningRecord | None
    """What it can learn landmarks with; None: it cannot."""
    whole: Mapping[str, Any]
    """The record as it is in the file; strings in it come from strangers."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the graph says about N images."""

    probabilities: NDArray[np.float32]  # (N, K), after temperature
    features: NDArray[np.float32]  # (N, C)
    known_score: NDArray[np.float32]  # (N,)
    best: NDArray[np.int64]  # (N, A)
    maps: NDArray[np.float32] | None  # (N, A, h, w), None: the network has none, or they were not asked for
    whitened: NDArray[np.float32] | None = None  # (N, D), what is learned from; None: it cannot learn
    trained_scores: NDArray[np.float32] | None = None  # (N, K), what learned landmarks are held against


@dataclass(frozen=True, eq=False)
class ExportedNetwork:
    """An export at work: decoded images in, what its graph says out."""

    path: Path
    record: ExportRecord
    session: Any
    """An `onnxruntime.InferenceSession`."""
    learned: Learned = field(default_factory=Learned)
    """Landmarks that it answers beside those in its graph, their images whitened; see `portable_learning`."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy, or send to another process, by opening the file again: onnxruntime's sessions stay where they are."""
        return _opened_again, (self.path.absolute(), self.record.whole, self.learned)

    @property
    def backbone_name(self) -> str:
        """Return the network's name."""
        return self.record.backbone

    @property
    def preprocessing(self) -> Preprocessing:
        """Return how the graph prepares images."""
        return self.record.preprocessing

    @property
    def names(self) -> list[str]:
        """Return what each label is called, those of learned landmarks last."""
        return [*self.record.names, *self.learned.names]

    @property
    def landmark_ids(self) -> list[int]:
        """Return what each label stands for."""
        return [*self.record.landmark_ids, *self.learned.landmark_ids]

    @property
    def width(self) -> int:
        """Return the length C of an image's features."""
        shape = next(one.shape for one in self.session.get_outputs() if one.name == "features")
        return int(shape[1])

    @property
    def has_maps(self) -> bool:
        """Return whether the graph draws heat maps."""
        return any(one.name == MAPS for one in self.session.get_outputs())

    @cached_property
    def digest(self) -> str:
        """Changes with the file, and with what it has learned."""
        if not self.learned.names:
            return file_digest(self.path)
        return digest_of(file_digest(self.path), self.learned.names, self.learned.images.tobytes().hex())

    @cached_property
    def learner(self) -> PortableLearner | None:
        """Return what answers with the learned landmarks; None: there are none."""
        if self.record.learning is None or not self.learned.names:
            return None
        return learner_of(self.record.learning, self.learned)

    def outputs(self, images: Sequence[NDArray[np.uint8]], *, maps: bool = False) -> Outputs:
        """Return what the graph says about decoded RGB images, uint8 (H, W, 3) each, of any sizes.

        Raises `LandmarksError` when the graph fails, or says something else than it promised.
        """
        wanted = [*OUTPUTS, *([MAPS] if maps and self.has_maps else [])]
        wanted += [] if self.record.learning is None else [WHITENED, TRAINED_SCORES]
        parts = [self._run(np.stack(images[start:end]), wanted) for start, end in _runs_of_one_size(images)]
        joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        said = dict(zip(wanted, joined, strict=True))
        found = Outputs(
            **{name: said[name] for name in OUTPUTS},
            maps=said.get(MAPS),
            whitened=said.get(WHITENED),
            trained_scores=said.get(TRAINED_SCORES),
        )
        return found if self.learner is None else self._with_learned(self.learner, found)

    def _with_learned(self, learner: PortableLearner, said: Outputs) -> Outputs:
        """Return what the graph said with the learned landmarks' answers among it.

        An image that resembles a learned landmark closely enough, and is answered so, is known whatever the rule says.
        """
        assert said.whitened is not None and said.trained_scores is not None
        probabilities = learner.probabilities(said.probabilities, said.whitened, said.trained_scores)
        best, _ = best_answers(probabilities, said.best.shape[1])
        closeness = learner.resemblance(said.whitened) - learner.threshold
        is_learned = best[:, 0] >= len(self.record.names)
        known_score = np.where(
            is_learned & (closeness > 0),
            np.maximum(said.known_score, self.record.threshold + closeness),
            said.known_score,
        ).astype(np.float32)
        if self.record.rule is None:
            known_score = probabilities.max(axis=1)
        maps = None
        if said.maps is not None:  # nothing is drawn for a learned landmark
            drawn = said.best[:, None, :] == best[:, :, None]  # (N, new, old)
            maps = np.einsum("nab,nbhw->nahw", drawn.astype(np.float32), said.maps)
        return replace(said, probabilities=probabilities, known_score=known_score, best=best, maps=maps)

    def _run(self, batch: NDArray[np.uint8], wanted: list[str]) -> list[NDArray[Any]]:
        try:
            found: list[NDArray[Any]] = self.session.run(wanted, {IMAGE: batch})
        except Exception as error:  # onnxruntime has a dozen kinds, none of which it exports
            reason = " ".join(str(error).split())[:300]
            what = f"{len(batch)} images of {batch.shape[2]} × {batch.shape[1]} pixels"
            raise LandmarksError(
                f"{self.path} cannot answer {what} ({reason})",
                way_out="export the run again",
            ) from error
        if found[0].shape != (len(batch), len(self.record.names)) or not np.isfinite(found[0]).all():
            raise LandmarksError(
                f"{self.path} does not answer as it promised",
                received=f"probabilities {found[0].shape}",
                expected=f"{len(batch)} × {len(self.record.names)} finite numbers",
            )
        return found

    def answer(self, images: Sequence[NDArray[np.uint8]], first: NDArray[np.int64], answers: int) -> Answers:
        """Answer decoded images; `first` (N,) is what each shows, negative where nothing known."""
        said = self.outputs(images)
        labels, scores = best_answers(said.probabilities, answers)
        logs = np.log(np.maximum(said.probabilities, _SMALLEST))
        truth = logs[np.arange(len(first)), np.maximum(first, 0)]
        sharpened = logs * self.record.temperature  # the logits, but for a constant of each row
        sharpened -= sharpened.max(axis=1, keepdims=True)
        return Answers(
            labels=labels,
            scores=scores,
            truth_log_scores=np.where(first < 0, np.nan, truth).astype(np.float32),
            untempered=(1 / np.exp(sharpened).sum(axis=1)).astype(np.float32),
            rejection={} if self.record.rule is None else {self.record.score: said.known_score},
        )


def _runs_of_one_size(images: Sequence[NDArray[np.uint8]]) -> list[tuple[int, int]]:
    """Return where neighbours of one size begin and end, for they can be asked together."""
    starts = [at for at in range(len(images)) if at == 0 or images[at].shape != images[at - 1].shape]
    return list(zip(starts, [*starts[1:], len(images)], strict=True))


def open_export(path: Place, *, threads: int | None = None) -> ExportedNetwork:
    """Open an export for answering, with what it has learned (`NAME.learned.json` beside it).

    Raises `LandmarksError` when it is none, or was written by a newer version, and when what lies beside it was
    learned with another.
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
    except Exception as error:  # onnxruntime has a dozen kinds, none of which it exports
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
    _require_graph(session, record, path)
    return ExportedNetwork(path, record, session, learned_beside(path, record))


def _opened_again(path: Path, whole: Mapping[str, Any], learned: Learned) -> ExportedNetwork:
    opened = open_export(path)
    if opened.record.whole != whole:
        raise StaleError(f"{path} was replaced by another export", way_out="open it again with landmarks.load")
    return replace(opened, learned=learned)


def learned_beside(path: Path, record: ExportRecord) -> Learned:
    """Return what an export has learned; raise `LandmarksError` when that cannot be read, or is another's."""
    beside = learned_file(path)
    if not beside.is_file():
        return Learned()
    if record.learning is None:
        raise LandmarksError(
            f"{path} cannot learn landmarks, but {beside.name} beside it holds some",
            way_out=f"delete {beside.name}, or: landmarks export RUN -o {path.name} --learning",
        )
    learned = read_learned_file(beside, record.learning)
    for name, id in zip(learned.names, learned.landmark_ids, strict=True):
        require_free(name, id, record.names, record.landmark_ids)
    return learned


def _require_graph(session: Any, record: ExportRecord, path: Path) -> None:
    given = [(one.name, one.type, len(one.shape)) for one in session.get_inputs()]
    if given != [(IMAGE, "tensor(uint8)", 4)]:
        raise LandmarksError(f"{path} takes something else than an export", received=given, expected="uint8 image")
    shapes = {one.name: one.shape for one in session.get_outputs()}
    missing = [name for name in OUTPUTS if name not in shapes]
    if missing:
        raise LandmarksError(f"{path} does not answer as an export", expected=f"outputs {', '.join(missing)}")
    learns = [WHITENED, TRAINED_SCORES] if record.learning is not None else []
    widths = [shapes[name][-1] if name in shapes else None for name in learns]
    if record.learning is not None and widths != [record.learning.width, len(record.names)]:
        raise LandmarksError(f"{path} cannot learn as its record says", way_out="export the run again")
    classes = shapes["probabilities"][-1]
    if classes != len(record.names) or not isinstance(shapes["features"][-1], int):
        raise LandmarksError(
            f"{path} answers {classes} landmarks, and its record names {len(record.names)}",
            way_out="export the run again",
        )


def read_export_record(text: str, place: str) -> ExportRecord:
    """Return the record of an export at `place` from its JSON; every size and type in it is checked.

    Raises `LandmarksError` that names what is wrong.
    """
    if len(text) > MAX_RECORD_BYTES:
        raise _wrong(place, f"its record is larger than {MAX_RECORD_BYTES >> 20} MB")
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(place, "its record is no JSON") from error
    if not isinstance(whole, dict) or type(whole.get("format")) is not int:
        raise _wrong(place, "its record has no format")
    if whole["format"] != FORMAT:
        raise LandmarksError(
            f"{place} was exported by a {'newer' if whole['format'] > FORMAT else 'strange'} version",
            received=f"format {whole['format']}",
            expected=f"format {FORMAT}",
            way_out="upgrade landmarks",
        )
    try:
        return _record(whole)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _wrong(place, f"its record cannot be understood: {type(error).__name__} {str(error)[:100]}") from error


def _record(whole: dict[str, Any]) -> ExportRecord:
    labels = whole["labels"]
    if not isinstance(labels, list) or not 1 <= len(labels) <= MAX_LANDMARKS:
        raise ValueError("labels")
    preprocessing = from_record(whole["preprocessing"])
    numbers = (*preprocessing.mean, *preprocessing.std, preprocessing.crop)
    possible = 1 <= preprocessing.image_size <= 8192 and 0.01 < preprocessing.crop <= 1
    if not (possible and all(map(math.isfinite, numbers))):
        raise ValueError("preprocessing")
    temperature = float(whole["temperature"])
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError("temperature")
    rule, threshold = None, whole.get("threshold")
    if whole.get("rule") is not None:
        weights = {str(name): float(weight) for name, weight in whole["rule"]["weights"].items()}
        rule = KnownRule(_text(whole["rule"]["name"]), weights, float(whole["rule"]["constant"]))
        if threshold is None or not math.isfinite(float(threshold)):
            raise ValueError("threshold")
    run = whole.get("run") or {}
    return ExportRecord(
        backbone=_text(whole["backbone"]),
        kind=_text(whole["kind"]),
        preprocessing=preprocessing,
        names=[_text(one["name"]) for one in labels],
        landmark_ids=[_integer(one["landmark_id"]) for one in labels],
        temperature=temperature,
        rule=rule,
        threshold=0.0 if threshold is None else float(threshold),
        score=_text(whole["score"]),
        maps_method=_text((whole.get("maps") or {}).get("method") or ""),
        identified_by=None if whole.get("identified_by") is None else _text(whole["identified_by"]),
        run=_text(run.get("name", "")),
        run_digest=_text(run.get("digest", "")),
        learning=None if whole.get("learning") is None else read_learning(whole["learning"]),
        whole=whole,
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise ValueError("a text that is none, or too long")
    return value


def _integer(value: object) -> int:
    if not is_landmark_id(value):
        raise ValueError("a landmark_id that is no integer of 64 bits")
    return value


def _wrong(place: str, why: str) -> LandmarksError:
    return LandmarksError(f"{place} is no export that can be read: {why}", way_out="export the run again")
