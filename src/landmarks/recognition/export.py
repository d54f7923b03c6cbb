"""The verb `export`: a run becomes one ONNX file that gives the same answers everywhere, or is not written.

The file takes decoded images of any size (see `docs/export.md`). Before it is written it answers images of the run's
validation split in onnxruntime, next to the run itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import torch
from numpy.typing import NDArray

from landmarks import __version__
from landmarks.dataset.images import decode
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.naming import identified_by
from landmarks.dataset.shards import ImageReader
from landmarks.models.backbones import pretrained_record
from landmarks.models.gradcam import ANALYTIC
from landmarks.models.preprocessing import as_normalised, centre_crop
from landmarks.recognition.export_graph import graph_parts, joined
from landmarks.recognition.export_learning import learning_of, told
from landmarks.recognition.known_scores import MSP
from landmarks.recognition.model_card import model_card
from landmarks.recognition.portable import FORMAT, RECORD, ExportedNetwork, Outputs, open_export
from landmarks.recognition.quantise import CALIBRATED_ON, WEIGHTS, quantised, with_half_weights
from landmarks.recognition.recogniser import CLASSIFIER, Recogniser
from landmarks.recognition.timm_folder import write_timm_folder
from landmarks.recognition.trained import ensure_temperature, open_trained
from landmarks.support.console import note, progress
from landmarks.support.errors import DifferentAnswersError, LandmarksError, UsageError
from landmarks.support.files import held, read_record, written_whole
from landmarks.support.seeds import generator
from landmarks.training.loader import normalised
from landmarks.training.own_data import find_own, images_seen
from landmarks.training.run import Run, open_run

MAX_AUTHORS = 1_000
"""Authors of training images that are named in the file; `landmarks credits` lists all."""


@dataclass(frozen=True)
class Tolerance:
    """What an export may differ by from its run and still be written."""

    agreement: float
    """Least share of images with the same best answer."""
    probability: float
    """Largest difference of any probability."""
    features: float
    """Largest distance of an image's features, of their length."""


EXACT = Tolerance(agreement=1.0, probability=0.02, features=0.02)
"""Single precision: what is left is the rounding of grey levels in the resize."""

SMALL = Tolerance(agreement=0.99, probability=1.0, features=0.1)
"""Whole numbers of eight bits: one in a hundred images may be answered otherwise, no more."""

TIE = 0.005
"""Two best answers whose probabilities the run holds for equal, within so much, agree whichever comes first."""


@dataclass(frozen=True)
class Verification:
    """How an export answered the images that its run answered beside it."""

    images: int
    agreement: float
    """Share of images with the same best answer."""
    largest_difference: float
    """Of any probability of any image."""
    mean_difference: float
    features_difference: float
    """Largest distance of an image's features, of their length."""
    known_agreement: float | None
    """Share of images that both call known, or both unknown; None: the run has no threshold."""
    maps_difference: float | None
    """Mean difference of heat maps from 0 to 1; None: there are none."""
    data: str
    """The dataset of the images."""


@dataclass(frozen=True)
class Export:
    """A written export: its file, its size, and how it answered beside its run."""

    path: Path
    bytes: int
    kind: str
    maps: bool
    verification: Verification | None
    """None: a folder for timm, whose logits are the run's."""


def export(
    run: Run | Path | str,
    out: Path | str,
    *,
    int8: bool = False,
    half: bool = False,
    timm: bool = False,
    learning: bool = False,
    data: Dataset | Path | str | None = None,
    images: int | None = None,
) -> Export:
    """Write `run` to `out`, one ONNX file, when it answers like the run; see `docs/export.md` for what is in it.

    `int8` writes the backbone in whole numbers of eight bits, a quarter of the size: all that it computes, on scales
    from training images, where its features bear that, else its weights alone, rounded for training images.
    So many `images` (64; 256 with `int8`) of the run's validation split, or of `data`, are answered by both. Raises
    `LandmarksError` with agreement and largest difference when the export answers differently (nothing is written
    then), when the dataset is gone, or for a network that cannot be exported.

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
    if int8 or half:
        parts = replace(parts, tail=with_half_weights(parts.tail))
    kind = "int8" if int8 else "float16" if half else "float32"
    record = describe(opened, recogniser, parts.maps, kind=kind)
    if carried is not None:
        told(carried)
        record["learning"] = carried.record
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
        verification = write_verified(joined(parts), record, aside, recogniser, shown, tolerance=tolerance)
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
    card = model_card(run, describe(run, recogniser, "not drawn by timm", kind="timm"))
    write_timm_folder(run, recogniser.names, out, card)
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    return Export(out, size, "timm", maps=False, verification=None)


def _ready(run: Run, by: str | None = None) -> Recogniser:
    """Return the run's recogniser on the processor, its temperature fitted while its dataset is there."""
    recogniser = open_trained(run, "cpu", by)
    if recogniser.learned.names:  # which needs a temperature
        return recogniser
    try:
        own = find_own(run)
    except LandmarksError:
        return recogniser
    if read_record(run.folder / "model.json").get("temperature") is not None:
        return recogniser
    with held(run.folder):
        return ensure_temperature(run, own, recogniser, batch_size=32)


@dataclass(frozen=True)
class Shown:
    """Images that run and export are asked about."""

    dataset: Dataset
    images: pl.DataFrame

    def decoded(self, min_side: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the images as they are handed to an export, uint8 (H, W, 3)."""
        reader = ImageReader(self.dataset)
        for shard, offset, length in self.images.select("shard", "offset", "length").iter_rows():
            yield decode(reader.read(shard, offset, length), min_side=min_side)


def _images_to_verify(run: Run, data: Dataset | Path | str | None, count: int) -> Shown:
    if data is None:
        try:
            dataset = find_own(run)
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
    return Shown(dataset, images[chosen.tolist()])


def _training_squares(run: Run, shown: Shown, recogniser: Recogniser) -> NDArray[np.float32]:
    """Return normalised images (N, 3, S, S) that the run was trained on; others where these are gone, with a note."""
    try:
        own = find_own(run)
        images = images_seen(run, own, "train")
    except LandmarksError:
        own, images = shown.dataset, shown.images[:0]
    if not len(images):
        note("the images that the run was trained on are gone: scales come from those that the export is verified on")
        own, images = shown.dataset, shown.images
    chosen = np.sort(generator(0, "calibration").permutation(len(images))[: 2 * CALIBRATED_ON])
    preprocessing, some = recogniser.network.preprocessing, Shown(own, images[chosen.tolist()])
    squares = [centre_crop(pixels, preprocessing) for pixels in some.decoded(preprocessing.shorter)]
    return as_normalised(np.stack(squares)[generator(1, "calibration").permutation(len(squares))], preprocessing)


def write_verified(
    model: onnx.ModelProto,
    record: dict[str, Any],
    path: Path,
    recogniser: Recogniser,
    shown: Shown,
    *,
    tolerance: Tolerance,
) -> Verification:
    """Write `model` with its `record` to `path`, once it has answered as `recogniser` does; raise when it does not."""
    _write(model, record, path)
    verification = verify(open_export(path), recogniser, shown)
    _refuse_beyond(tolerance, verification)
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


@torch.no_grad()
def verify(export: ExportedNetwork, recogniser: Recogniser, shown: Shown) -> Verification:
    """Return how `export` answers the images beside `recogniser`, the run that it was made of.

    Images are asked one by one, and then several of one size together, which must change nothing.
    """
    network, agreed, known, maps = recogniser.trained, [], [], []
    largest = total = features_apart = 0.0
    with progress("verifying", total=len(shown.images)) as advance:
        for pixels in shown.decoded(network.preprocessing.shorter):
            said = export.outputs([pixels], maps=export.has_maps)
            _require_one_answer(said)
            seen = centre_crop(pixels, network.preprocessing)
            tensor = torch.from_numpy(seen[None].copy()).permute(0, 3, 1, 2)
            features = network.features(normalised(tensor, network.preprocessing))
            wanted = (network.classify(features) / recogniser.temperature).softmax(1)[0].numpy()
            apart = np.abs(wanted - said.probabilities[0])
            largest, total = max(largest, float(apart.max())), total + float(apart.mean())
            length = max(float(features.norm()), 1e-12)
            features_apart = max(features_apart, float(np.linalg.norm(features.numpy() - said.features)) / length)
            agreed.append(bool(wanted.max() - wanted[said.best[0, 0]] <= TIE))
            if recogniser.rule is not None:
                score = recogniser.known_scores(recogniser.answer([seen]))
                known.append(bool((score >= recogniser.threshold) == (said.known_score >= recogniser.threshold)))
            if said.maps is not None:
                maps.append(_maps_apart(recogniser, pixels, said.best[0], said.maps[0]))
            advance(1)
    together = _batch_apart(export, next(shown.decoded(network.preprocessing.shorter)))
    return Verification(
        images=len(agreed),
        agreement=float(np.mean(agreed)),
        largest_difference=max(largest, together),
        mean_difference=total / len(agreed),
        features_difference=features_apart,
        known_agreement=float(np.mean(known)) if known else None,
        maps_difference=float(np.mean(maps)) if maps else None,
        data=shown.dataset.folder.resolve().name,
    )


def _require_one_answer(said: Outputs) -> None:
    """Raise where an export answers one image with several answers: the batch of its graph is frozen."""
    answers = {len(one) for one in (said.probabilities, said.features, said.known_score, said.best)}
    if answers != {1}:
        raise DifferentAnswersError(
            "the export does not answer like its run and was not written",
            received=f"{max(answers)} answers to one image",
            expected="one: the number of images must be left open in its graph",
        )


def _maps_apart(
    recogniser: Recogniser, pixels: NDArray[np.uint8], best: NDArray[np.int64], maps: NDArray[np.float32]
) -> float:
    """Return the mean difference of heat maps (A, h, w) from the run's, for answers that both give."""
    explained = recogniser.explain(pixels, top=len(best))
    wanted = {answer.label: map_of_one for answer, map_of_one in zip(explained.answers, explained.maps, strict=True)}
    pairs = [(wanted[label], one) for label, one in zip(best.tolist(), maps, strict=True) if label in wanted]
    return float(np.mean([np.abs(first - second).mean() for first, second in pairs])) if pairs else 1.0


def _batch_apart(export: ExportedNetwork, pixels: NDArray[np.uint8]) -> float:
    """Return the largest difference of a batch of three images from the same images one by one."""
    several = [pixels, pixels[:, ::-1].copy(), pixels[::-1].copy()]
    together = export.outputs(several).probabilities
    alone = np.concatenate([export.outputs([one]).probabilities for one in several])
    return float(np.abs(together - alone).max())


def _refuse_beyond(tolerance: Tolerance, found: Verification) -> None:
    fits = found.agreement >= tolerance.agreement and found.largest_difference <= tolerance.probability
    if fits and found.features_difference <= tolerance.features:
        return
    raise DifferentAnswersError(
        "the export does not answer like its run and was not written",
        received=f"{100 * found.agreement:.1f} % agreement on {found.images} images, largest difference "
        f"{found.largest_difference:.4f} of a probability and {found.features_difference:.4f} of the features",
        expected=f"at least {100 * tolerance.agreement:g} %, at most {tolerance.probability:g} and "
        f"{tolerance.features:g}",
    )


def describe(run: Run, recogniser: Recogniser, no_maps: str, *, kind: str) -> dict[str, Any]:
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
        images = images_seen(run, find_own(run), "train")
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
