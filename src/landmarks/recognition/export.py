"""The verb `export`: a run becomes one ONNX file that gives the same answers everywhere, or is not written.

The file takes decoded images of any size (see `docs/export.md`). Before it is written it answers images of the run's
validation split in onnxruntime, next to the run itself.
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
from landmarks.models.backbones import pretrained_record
from landmarks.models.gradcam import ANALYTIC
from landmarks.models.preprocessing import as_normalised, centre_crop
from landmarks.recognition.eight_bit_weights import LARGE, with_eight_bit_weights
from landmarks.recognition.export_graph import graph_parts, joined
from landmarks.recognition.export_learning import Learning, learning_of, told
from landmarks.recognition.export_verification import (
    EXACT,
    SMALL,
    Tolerance,
    Verification,
    VerificationImages,
    refuse_beyond,
    verify,
)
from landmarks.recognition.known_scores import MSP
from landmarks.recognition.model_card import model_card
from landmarks.recognition.portable import FORMAT, RECORD, learned_beside, open_export, read_export_record
from landmarks.recognition.quantise import CALIBRATED_ON, WEIGHTS, quantised, with_half_weights
from landmarks.recognition.recogniser import CLASSIFIER, Recogniser
from landmarks.recognition.timm_folder import write_timm_folder
from landmarks.recognition.trained import ensure_temperature, open_trained
from landmarks.support.console import note
from landmarks.support.disk import require_a_place_here
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import held, read_record, written_whole
from landmarks.support.places import Place
from landmarks.support.seeds import generator
from landmarks.training.own_data import find_own_dataset, images_seen
from landmarks.training.run import Run, open_run

MAX_AUTHORS = 1_000
"""Authors of training images that are named in the file; `landmarks credits` lists all."""


@dataclass(frozen=True)
class Export:
    """A written export: its file, its size, and how it answered beside its run."""

    path: Path
    bytes: int
    kind: str
    maps: bool
    verification: Verification | None
    """None: a folder for timm, whose logits are the run's."""

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
    """Write `run` to `out`, one ONNX file, when it answers like the run; see `docs/export.md` for what is in it.

    `int8` writes the backbone in whole numbers of eight bits, a quarter of the size: all that it computes, on scales
    from training images, where its features bear that, else its weights alone, rounded for training images.
    So many `images` (64; 256 with `int8`) of the run's validation split, or of `data`, are answered by both. Raises
    `LandmarksError` with agreement and largest difference when the export answers differently (nothing is written
    then), when the dataset is gone, for a network that cannot be exported, and when `out` has learned landmarks that
    the new one could not answer.

    `half` writes weights in half precision: half the size, the same answers within the same tolerance as without.

    With `learning` the file can be taught landmarks, and so can a page of it: it carries what the run remembers of its
    images for that, which is made from its dataset where it is not there yet.

    `timm` writes the folder `out` instead, in the Hub's form, from which `timm.create_model("local-dir:OUT",
    pretrained=True)` gives the run's logits; heads other than `linear` have no place in it and are refused.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    out = Path(out)
    if timm:
        return _export_to_timm(opened, out, int8=int8)
    if out.suffix.lower() != ".onnx":
        raise UsageError("an export is one ONNX file", received=out.name, expected="a name that ends with .onnx")
    require_a_place_here(out)
    count = (256 if int8 else 64) if images is None else images
    if count < 1:
        raise UsageError("an export is verified on images", received=images, expected="1 or more")
    if int8 and half:
        raise UsageError("an export is in eight bits or in half precision", received="both")
    recogniser = _ready(opened)
    shown = _images_to_verify(opened, data, count)
    note(f"exporting {opened.name}: {recogniser.network.backbone_name}, {len(recogniser.names)} landmarks")
    carried = learning_of(opened, recogniser) if learning else None
    parts = graph_parts(recogniser, compact=int8 or half, learning=carried)
    if parts.maps:
        note(f"no heat maps: {parts.maps}")
    if half:
        parts = replace(parts, backbone=with_half_weights(parts.backbone))
    if int8 and carried is None:  # what landmarks are learned from bears no rounding
        parts = replace(parts, tail=with_eight_bit_weights(parts.tail, least=LARGE))
    if int8 or half:
        parts = replace(parts, tail=with_half_weights(parts.tail))
    kind = "int8" if int8 else "float16" if half else "float32"
    record = export_record(opened, recogniser, parts.maps, kind=kind)
    if carried is not None:
        told(carried)
        record["learning"] = carried.record
    learned_beside(out, read_export_record(json.dumps(record), str(out)))  # or the file that is written is of no use
    if int8:
        squares = _training_squares(opened, shown, recogniser)
        found = quantised(parts.backbone, squares)
        if found.what == WEIGHTS:
            note(
                f"eight bits for weights alone, whose features lie {100 * found.apart:.1f} % off; with activations in "
                f"eight bits too it would be {100 * found.computed_apart:.1f} %"
            )
        parts = replace(parts, backbone=found.backbone)
        record["quantised"] = {"what": found.what, "calibrated_on": len(squares) // 2, "apart": found.apart}
    with written_whole(out) as aside:
        tolerance = SMALL if int8 else EXACT
        verification = write_verified(
            joined(parts), record, aside, recogniser, shown, tolerance=tolerance, learning=carried
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
    card = model_card(run, export_record(run, recogniser, "not drawn by timm", kind="timm"))
    write_timm_folder(run, recogniser.names, out, card)
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    return Export(out, size, "timm", maps=False, verification=None)


def _ready(run: Run, by: str | None = None) -> Recogniser:
    """Return the run's recogniser on the processor, its temperature fitted while its dataset is there."""
    recogniser = open_trained(run, "cpu", by)
    if recogniser.learned.names:  # which needs a temperature
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
    return VerificationImages(dataset, images[chosen.tolist()])


def _training_squares(run: Run, shown: VerificationImages, recogniser: Recogniser) -> NDArray[np.float32]:
    """Return normalised images (N, 3, S, S) that the run was trained on; others where these are gone, with a note."""
    try:
        own = find_own_dataset(run)
        images = images_seen(run, own, "train")
    except LandmarksError:
        own, images = shown.dataset, shown.images[:0]
    if not len(images):
        note("the images that the run was trained on are gone: scales come from those that the export is verified on")
        own, images = shown.dataset, shown.images
    chosen = np.sort(generator(0, "calibration").permutation(len(images))[: 2 * CALIBRATED_ON])
    preprocessing, some = recogniser.network.preprocessing, VerificationImages(own, images[chosen.tolist()])
    squares = [centre_crop(pixels, preprocessing) for pixels in some.decoded(preprocessing.shorter)]
    return as_normalised(np.stack(squares)[generator(1, "calibration").permutation(len(squares))], preprocessing)


def write_verified(
    model: onnx.ModelProto,
    record: dict[str, Any],
    path: Path,
    recogniser: Recogniser,
    shown: VerificationImages,
    *,
    tolerance: Tolerance,
    learning: Learning | None = None,
) -> Verification:
    """Write `model` with its `record` to `path`, once it has answered as `recogniser` does; raise when it does not."""
    _write(model, record, path)
    verification = verify(open_export(path), recogniser, shown, learning)
    refuse_beyond(tolerance, verification)
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
    """Return the record that an export carries in its metadata, without the figures of its verification."""
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
    """Return what the run began with, and under which licence: timm tells that of its own weights alone.

    A file or another run is told by its name, not by its place: an export leaves the machine.
    """
    start = str((run.record.get("network") or {}).get("weights", ""))
    licence = pretrained_record(backbone_name).get("license") if start == "imagenet" else None
    return {"weights": licence, "start": Path(start).name}


def _credits(run: Run) -> dict[str, Any]:
    """Return whose images the run was trained on, and under which licences, as far as its dataset tells."""
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
