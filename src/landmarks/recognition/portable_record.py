"""The record of an export, in the metadata of its ONNX file: every size and type is checked, and whether they fit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landmarks.models import MAX_IMAGE_SIZE
from landmarks.models.preprocessing import Preprocessing, from_record
from landmarks.recognition.answers import KnownRule
from landmarks.recognition.learned import (
    TRAINED_SCORES,
    WHITENED,
    Learned,
    LearningRecord,
    is_landmark_id,
    learned_file,
    read_learned_file,
    read_learning,
    require_free,
)
from landmarks.support.errors import LandmarksError
from landmarks.support.places import in_shell

FORMAT = 1
"""The layout of exports that this version writes and reads."""

RECORD = "landmarks"
"""The key of the record in the file's `metadata_props`."""

IMAGE = "image"
OUTPUTS = ("probabilities", "features", "known_score", "best")
"""The input of a graph, and the outputs that each has."""

MAX_RECORD_BYTES = 256 * 1024**2
MAX_LANDMARKS = 5_000_000
MAX_NAME = 2_000
"""Characters of the longest text that is read, such as a landmark's name."""


@dataclass(frozen=True)
class ExportRecord:
    """The metadata of an export: its landmarks, its preprocessing, its rule for known against unknown, and more."""

    backbone: str
    kind: str
    """float32, float16 (the weights alone) or int8."""
    preprocessing: Preprocessing
    names: list[str]
    landmark_ids: list[int]
    temperature: float
    rule: KnownRule | None
    threshold: float
    score: str
    """What the output `known_score` is: the name of the rule, or msp without one."""
    maps_method: str
    identified_by: str | None
    run: str
    run_digest: str
    learning: LearningRecord | None
    """What landmarks are learned with; None: it cannot learn."""
    raw: Mapping[str, Any]
    """The record as it stands in the file; strings in it come from strangers."""


def read_export_record(text: str, place: str) -> ExportRecord:
    """Return the record of the export at `place` from its JSON; every size and type in it is checked.

    Raises `LandmarksError`, naming what is wrong.
    """
    if len(text) > MAX_RECORD_BYTES:
        raise _wrong(place, f"its record is larger than {MAX_RECORD_BYTES >> 20} MB")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(place, "its record is no JSON") from error
    if not isinstance(raw, dict) or type(raw.get("format")) is not int:
        raise _wrong(place, "its record has no format")
    if raw["format"] != FORMAT:
        raise LandmarksError(
            f"{place} was exported by {'a newer' if raw['format'] > FORMAT else 'an unknown'} version",
            received=f"format {raw['format']}",
            expected=f"format {FORMAT}",
            way_out="upgrade landmarks",
        )
    try:
        return _record(raw)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _wrong(place, f"its record cannot be understood: {type(error).__name__} {str(error)[:100]}") from error


def _record(raw: dict[str, Any]) -> ExportRecord:
    labels = raw["labels"]
    if not isinstance(labels, list) or not 1 <= len(labels) <= MAX_LANDMARKS:
        raise ValueError("labels")
    preprocessing = from_record(raw["preprocessing"])
    numbers = (*preprocessing.mean, *preprocessing.std, preprocessing.crop)
    plausible = 1 <= preprocessing.image_size <= MAX_IMAGE_SIZE and 0.01 < preprocessing.crop <= 1
    if not (plausible and all(map(math.isfinite, numbers))):
        raise ValueError("preprocessing")
    temperature = float(raw["temperature"])
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError("temperature")
    rule, threshold = None, raw.get("threshold")
    if raw.get("rule") is not None:
        weights = {str(name): float(weight) for name, weight in raw["rule"]["weights"].items()}
        rule = KnownRule(_text(raw["rule"]["name"]), weights, float(raw["rule"]["constant"]))
        if threshold is None or not math.isfinite(float(threshold)):
            raise ValueError("threshold")
    run = raw.get("run") or {}
    return ExportRecord(
        backbone=_text(raw["backbone"]),
        kind=_text(raw["kind"]),
        preprocessing=preprocessing,
        names=[_text(one["name"]) for one in labels],
        landmark_ids=[_integer(one["landmark_id"]) for one in labels],
        temperature=temperature,
        rule=rule,
        threshold=0.0 if threshold is None else float(threshold),
        score=_text(raw["score"]),
        maps_method=_text((raw.get("maps") or {}).get("method") or ""),
        identified_by=None if raw.get("identified_by") is None else _text(raw["identified_by"]),
        run=_text(run.get("name", "")),
        run_digest=_text(run.get("digest", "")),
        learning=None if raw.get("learning") is None else read_learning(raw["learning"]),
        raw=raw,
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise ValueError("a text is missing or too long")
    return value


def _integer(value: object) -> int:
    if not is_landmark_id(value):
        raise ValueError("a landmark_id is not a 64-bit integer")
    return value


def _wrong(place: str, why: str) -> LandmarksError:
    return LandmarksError(f"{place} is no export that can be read: {why}", way_out="export the run again")


# ── What must fit the record: the graph, and the landmarks learned beside the file ──────────────────────────────────


def require_graph(session: Any, record: ExportRecord, path: Path) -> None:
    """Raise `LandmarksError` unless the graph of a session has the inputs and outputs that the `record` promises."""
    inputs = [(one.name, one.type, len(one.shape)) for one in session.get_inputs()]
    if inputs != [(IMAGE, "tensor(uint8)", 4)]:
        raise LandmarksError(f"{path} takes something else than an export", received=inputs, expected="uint8 image")
    shapes = {one.name: one.shape for one in session.get_outputs()}
    missing = [name for name in OUTPUTS if name not in shapes]
    if missing:
        raise LandmarksError(f"{path} does not answer as an export", expected=f"outputs {', '.join(missing)}")
    if record.learning is not None:
        widths = [shapes[name][-1] if name in shapes else None for name in (WHITENED, TRAINED_SCORES)]
        if widths != [record.learning.width, len(record.names)]:
            raise LandmarksError(f"{path} cannot learn as its record says", way_out="export the run again")
    classes = shapes["probabilities"][-1]
    if classes != len(record.names) or not isinstance(shapes["features"][-1], int):
        raise LandmarksError(
            f"{path} answers {classes} landmarks, and its record names {len(record.names)}",
            way_out="export the run again",
        )


def learned_beside(path: Path, record: ExportRecord) -> Learned:
    """Return what the export at `path` has learned.

    Raises `LandmarksError` when the file beside it cannot be read, or was learned with another export.
    """
    file = learned_file(path)
    if not file.is_file():
        return Learned()
    if record.learning is None:
        raise LandmarksError(
            f"{path} cannot learn landmarks, but {file.name} beside it holds some",
            way_out=f"delete {file.name}, or: landmarks export RUN -o {in_shell(path)} --learning",
        )
    learned = read_learned_file(file, record.learning)
    for name, id in zip(learned.names, learned.landmark_ids, strict=True):
        require_free(name, id, record.names, record.landmark_ids)
    return learned
