"""The verb `export`: writes a run as one ONNX file, after verifying that it gives the same answers.

The file takes decoded images of any size (see `docs/export.md`). It is verified in onnxruntime on images of the run's
validation split, which the run answers too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from landmarks import __version__
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.naming import identified_by
from landmarks.dataset.shards import missing_files, require_images
from landmarks.models.backbones import pretrained_record
from landmarks.models.gradcam import ANALYTIC
from landmarks.models.preprocessing import as_normalised, centre_crop
from landmarks.recognition.answers import MSP
from landmarks.recognition.export_graph import graph_parts, joined
from landmarks.recognition.export_scores import Learning, learning_of, note_learning
from landmarks.recognition.export_verification import (
    EXACT,
    SMALL,
    Tolerance,
    Verification,
    VerificationImages,
    require_within,
    verify,
)
from landmarks.recognition.portable import open_export
from landmarks.recognition.portable_record import FORMAT, RECORD, learned_beside, read_export_record
from landmarks.recognition.quantise import (
    CALIBRATED_ON,
    LEAST_AFTER_BACKBONE,
    WEIGHTS,
    quantised,
    with_eight_bit_weights,
    with_half_weights,
)
from landmarks.recognition.recogniser import CLASSIFIER, Recogniser
from landmarks.recognition.timm_folder import write_timm_folder
from landmarks.recognition.trained import ensure_temperature, open_trained
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import held, read_record, refuse_other_kind, require_writable, written_whole
from landmarks.support.places import Place
from landmarks.support.seeds import generator
from landmarks.training.own_data import find_own_dataset, images_seen
from landmarks.training.run import Run, open_run

MAX_AUTHORS = 1_000
"""Most authors of training images that are named in the file; `landmarks credits` lists all."""


@dataclass(frozen=True)
class Export:
    """A written export: its file, its size, and how its answers compare with the run's."""

    path: Path
    bytes: int
    kind: str
    maps: bool
    verification: Verification | None
    """None for a folder for timm, whose logits are compared instead."""

    def __fspath__(self) -> str:
        return str(self.path)


def export(
    run: Place,
    out: Place,
    *,
    int8: bool = False,
    half: bool = False,
    timm: bool = False,
    learning: bool = False,
    data: Place | None = None,
    images: int | None = None,
) -> Export:
    """Write `run` to the ONNX file `out`, provided that it answers like the run; `docs/export.md` describes the file.

    The answers of run and export are compared on `images` (by default 64; 256 with `int8`) images of the run's
    validation split, or of `data`. Raises `LandmarksError`, with agreement and largest difference, when they differ too
    much (nothing is written then), when the dataset is gone, for a network that cannot be exported, and when an export
    at `out` has learned landmarks that the new one could not answer.

    `int8` quantises the backbone to 8-bit integers, a quarter of the size: activations and weights if its features
    tolerate that, with scales from training images; otherwise the weights alone, rounded to fit training images.

    `half` writes weights in half precision: half the size, with the same tolerance as in single precision.

    With `learning` the export, and a page made of it, can learn landmarks. It then contains what the run remembers of
    its images, which is computed from its dataset if necessary.

    `timm` writes a folder `out` in the Hub's format instead, from which `timm.create_model("local-dir:OUT",
    pretrained=True)` gives the run's logits. This works for the head `linear` only; others are refused.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    out = Path(out)
    if timm:
        return _export_to_timm(opened, out, int8=int8)
    if out.suffix.lower() != ".onnx":
        raise UsageError("an export is one ONNX file", received=out.name, expected="a name that ends with .onnx")
    refuse_other_kind(out, ".onnx")
    require_writable(out)
    count = (256 if int8 else 64) if images is None else images
    if count < 1:
        raise UsageError("an export is verified on images", received=images, expected="1 or more")
    if int8 and half:
        raise UsageError("an export is in eight bits or in half precision", received="both")
    verified_on = _images_to_verify(opened, data, count)
    recogniser = _ready(opened)
    note(f"exporting {opened.name}: {recogniser.network.backbone_name}, {len(recogniser.names)} landmarks")
    carried = learning_of(opened, recogniser) if learning else None
    parts = graph_parts(recogniser, compact=int8 or half, learning=carried)
    if parts.maps:
        note(f"no heat maps: {parts.maps}")
    if half:
        parts = replace(parts, backbone=with_half_weights(parts.backbone))
    if int8 and carried is None:  # what landmarks are learned from does not tolerate the rounding
        parts = replace(parts, tail=with_eight_bit_weights(parts.tail, least=LEAST_AFTER_BACKBONE))
    if int8 or half:
        parts = replace(parts, tail=with_half_weights(parts.tail))
    kind = "int8" if int8 else "float16" if half else "float32"
    record = export_record(opened, recogniser, parts.maps, kind=kind)
    if carried is not None:
        note_learning(carried)
        record["learning"] = carried.record
    learned_beside(out, read_export_record(json.dumps(record), str(out)))  # raises now rather than later
    if int8:
        squares = _training_squares(opened, verified_on, recogniser)
        small = quantised(parts.backbone, squares)
        if small.what == WEIGHTS:
            note(
                f"eight bits for weights alone, whose features lie {100 * small.apart:.1f} % off; with activations in "
                f"eight bits too it would be {100 * small.computed_apart:.1f} %"
            )
        parts = replace(parts, backbone=small.backbone)
        record["quantised"] = {"what": small.what, "calibrated_on": len(squares) // 2, "apart": small.apart}
    with written_whole(out, tidy=True) as aside:
        tolerance = SMALL if int8 else EXACT
        verification = write_verified(
            joined(parts), record, aside, recogniser, verified_on, tolerance=tolerance, learning=carried
        )
    return Export(out, out.stat().st_size, kind, not parts.maps, verification)


def _export_to_timm(run: Run, out: Path, *, int8: bool) -> Export:
    if int8 or out.suffix.lower() == ".onnx":
        raise UsageError("--timm writes a folder of full weights", expected="-o FOLDER, without --int8")
    recogniser = _ready(run, CLASSIFIER)
    if recogniser.learned.names:
        raise LandmarksError(
            f"timm has no place for landmarks that {run.name} has learned since its training",
            way_out="landmarks export RUN -o NAME.onnx holds them",
        )
    write_timm_folder(run, export_record(run, recogniser, "not drawn by timm", kind="timm"), out)
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    return Export(out, size, "timm", maps=False, verification=None)


def _ready(run: Run, by: str | None = None) -> Recogniser:
    """Return the run's recogniser on the CPU; its temperature is fitted first, if its dataset is there."""
    recogniser = open_trained(run, "cpu", by)
    if recogniser.learned.names:  # a run that has learned has a temperature
        return recogniser
    try:
        own = find_own_dataset(run)
    except LandmarksError:
        return recogniser
    if read_record(run.folder / "model.json").get("temperature") is not None:
        return recogniser
    with held(run.folder):
        return ensure_temperature(run, own, recogniser, batch_size=32)


def _images_to_verify(run: Run, data: Place | None, count: int) -> VerificationImages:
    if data is None:
        try:
            dataset = find_own_dataset(run)
        except LandmarksError as error:
            raise LandmarksError(
                f"the export cannot be verified: {error}", way_out="name any dataset of images with --data DATA"
            ) from error
        images = images_seen(run, dataset, "val")
        images = images if len(images) else dataset.split("all")
    else:
        dataset = data if isinstance(data, Dataset) else open_dataset(data)
        images = dataset.split("all" if dataset.splits is None else "val")
        images = images if len(images) else dataset.split("all")
    if not len(images):
        raise LandmarksError(f"{dataset.folder} holds no images to verify the export on")
    chosen = np.sort(generator(0, "verification").permutation(len(images))[:count])
    found = VerificationImages(dataset, images[chosen.tolist()])
    way_out = "" if data is not None else "--data DATA verifies the export on any other dataset's images"
    require_images(dataset, found.images["shard"], "the verification of an export", way_out)
    return found


def _training_squares(run: Run, fallback: VerificationImages, recogniser: Recogniser) -> NDArray[np.float32]:
    """Return normalised training images (N, 3, S, S) of the run; those of `fallback` if they are gone, with a note."""
    try:
        own = find_own_dataset(run)
        images = images_seen(run, own, "train")
    except LandmarksError:
        own, images = fallback.dataset, fallback.images[:0]
    if missing_files(own, images["shard"])[0]:
        images = images[:0]
    if not len(images):
        note("the images that the run was trained on are gone: scales come from those that the export is verified on")
        own, images = fallback.dataset, fallback.images
    chosen = np.sort(generator(0, "calibration").permutation(len(images))[: 2 * CALIBRATED_ON])
    preprocessing, sample = recogniser.network.preprocessing, VerificationImages(own, images[chosen.tolist()])
    squares = [centre_crop(pixels, preprocessing) for pixels in sample.decoded(preprocessing.shorter)]
    return as_normalised(np.stack(squares)[generator(1, "calibration").permutation(len(squares))], preprocessing)


def write_verified(
    model: onnx.ModelProto,
    record: dict[str, Any],
    path: Path,
    recogniser: Recogniser,
    images: VerificationImages,
    *,
    tolerance: Tolerance,
    learning: Learning | None = None,
) -> Verification:
    """Write `model` and `record` to `path`; raise `DifferentAnswersError` if it does not answer like `recogniser`."""
    _write(model, record, path)
    verification = verify(open_export(path), recogniser, images, learning, tie=tolerance.tie)
    require_within(tolerance, verification)
    _write(model, {**record, "verification": asdict(verification)}, path)
    open_export(path)
    return verification


def _write(model: onnx.ModelProto, record: dict[str, Any], path: Path) -> None:
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = RECORD, json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    try:
        onnx.save_model(model, path)
    except ValueError as error:  # protobuf's limit of 2 GB
        raise LandmarksError(f"the network is too large for one ONNX file ({error})") from error


def export_record(run: Run, recogniser: Recogniser, no_maps: str, *, kind: str) -> dict[str, Any]:
    """Return the record in the metadata of an export, without the figures of its verification."""
    network, rule = recogniser.trained, recogniser.rule
    trained_on = run.record.get("data") or {}
    labels = [
        {"landmark_id": id, "name": name} for id, name in zip(recogniser.landmark_ids, recogniser.names, strict=True)
    ]
    return {
        "format": FORMAT,
        "version": __version__,
        "kind": kind,
        "backbone": network.backbone_name,
        "head": network.head_name,
        "image_size": network.preprocessing.image_size,
        "preprocessing": network.preprocessing.record(),
        "decode": {"jpeg_min_side": network.preprocessing.shorter},
        "labels": labels,
        "identified_by": identified_by(trained_on, run.labels),
        "temperature": recogniser.temperature,
        "rule": None if rule is None else rule.record(),
        "threshold": None if rule is None else recogniser.threshold,
        "score": MSP if rule is None else rule.name,
        "maps": {"method": None if no_maps else ANALYTIC, "note": no_maps or None},
        "licence": _licence(run, network.backbone_name),
        "credits": _credits(run),
        "run": {"name": run.name, "digest": run.digest, "data_digest": trained_on.get("digest")},
    }


def _licence(run: Run, backbone_name: str) -> dict[str, Any]:
    """Return what the run's weights started from, and their licence, which is known for timm's weights only.

    A file or another run is given by its name, without its folder, as exports are passed on to others.
    """
    start = str((run.record.get("network") or {}).get("weights", ""))
    licence = pretrained_record(backbone_name).get("license") if start == "imagenet" else None
    return {"weights": licence, "start": Path(start).name}


def _credits(run: Run) -> dict[str, Any]:
    """Return authors and licences of the images that the run was trained on, as far as its dataset knows them."""
    try:
        images = images_seen(run, find_own_dataset(run), "train")
    except LandmarksError:
        return {"note": "not known: the run's dataset is not there"}
    authors = images["author"].drop_nulls().unique().sort().to_list()
    licences = images["license"].fill_null("unknown").value_counts(sort=True).rows()
    return {
        "images": len(images),
        "licences": dict(licences),
        "authors": authors[:MAX_AUTHORS],
        "authors_in_all": len(authors),
    }
