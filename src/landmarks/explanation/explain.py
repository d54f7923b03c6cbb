"""The verb `explain`: heat maps of given images, or of images of a dataset that the run recognises."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.images import encode
from landmarks.dataset.shards import ImageReader, require_images
from landmarks.dataset.sources import find_images
from landmarks.explanation.drawing import Caption, draw_panel
from landmarks.recognition.answers import Explanation
from landmarks.recognition.recogniser import CLASSIFIER, Recogniser
from landmarks.recognition.trained import open_trained
from landmarks.support.console import note, progress
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import digest_of, held, read_record, write_record, written_whole
from landmarks.support.places import Place
from landmarks.support.seeds import generator
from landmarks.support.systems import readable
from landmarks.training.eligible_images import EligibleImages, eligible_images
from landmarks.training.run import Run, open_run

ANSWERS = 4
"""Heat maps per image."""


def explain(
    run: Place,
    images: Sequence[Place] | None = None,
    *,
    data: Place | None = None,
    split: str = "test",
    count: int | None = None,
    faithfulness: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Draw the heat maps of the 4 best answers for `images`, or for `count` (12) recognised images of a dataset.

    `images` are files and folders. Without them the images come from `split` of `data` (or of the run's own dataset):
    images that are recognised correctly and that the run has not seen (see `eligible_images`), one per landmark in
    turn. The answers are those of `predict`.
    Writes `maps/<id>.jpg` and `maps/index.json` into the run and returns the latter: `method`, `panels`, `rejected`
    (files that are no images), and `made`, the panels of this call. `device` is auto, cpu, cuda or mps.

    With `faithfulness` nothing is drawn: the faithfulness of the maps is measured on `count` (200) images of the
    dataset, and that record is returned.
    Raises `LandmarksError` when there is nothing to draw.
    """
    if faithfulness:
        from landmarks.explanation import faithfulness as measurement  # imports this module

        if images:
            raise UsageError("faithfulness is measured on a dataset's images", way_out="name it with --data")
        return measurement.faithfulness(
            run, data=data, split=split, count=200 if count is None else count, device=device
        )
    if images and (count is not None or data is not None):
        raise UsageError(
            "the images to explain are named already", received=f"--{'data' if data else 'count'} too",
            way_out="leave it out, or the images",
        )  # fmt: skip
    count = 12 if count is None else count
    run = run if isinstance(run, Run) else open_run(run)
    if count < 1:
        raise UsageError("the number of images must be positive", received=count)
    recogniser = open_trained(run, device)
    with held(run.folder / "maps") as folder:
        if images:
            drawn = _explain_files(run, recogniser, images, folder)
        else:
            drawn = _explain_recognised(run, recogniser, eligible_images(run, data, split), count, folder)
        earlier = _earlier_panels(folder, run.digest, recogniser.by)
        panels = earlier | {entry["image_id"]: entry for entry in drawn.made}
        method = drawn.methods[-1] if drawn.methods else ""
        record = {"method": method, "panels": list(panels.values()), "rejected": drawn.rejected}
        if drawn.made:
            write_record(folder / "index.json", record, verb="explain", inputs=run.digest)
    return {**record, "made": drawn.made}


def _write_panel(
    folder: Path, run: Run, identity: str, truth: int | None, explanation: Explanation, *, by: str
) -> dict[str, Any]:
    """Write the panel of one image into `folder` and return its entry in the index."""
    truth_name = None if truth is None else run.name_of([truth])[0]
    answers = explanation.answers
    captions = [Caption(answer.name, answer.probability, answer.label == truth) for answer in answers]
    sheet = draw_panel(explanation.image, explanation.maps, captions, truth_name or identity)
    name = f"{_file_name(identity)}.jpg"
    with written_whole(folder / name) as aside:
        aside.write_bytes(encode(sheet))
    return {
        "image_id": identity,
        "image": name,
        "truth": truth,
        "truth_name": truth_name,
        "by": by,
        "answers": [
            {"label": answer.label, "name": answer.name, "probability": answer.probability} for answer in answers
        ],
        "correct": None if truth is None else answers[0].label == truth,
    }


@dataclass(frozen=True)
class _Drawn:
    """The result of one call: entries of the index, images left out, and how the maps were computed."""

    made: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)

    def leave_out(self, name: str, why: str) -> None:
        """Record, and say, that an image is left out."""
        note(f"{name} is left out: {why}")
        self.rejected.append({"image": name, "why": why})


def _explain_files(run: Run, recogniser: Recogniser, places: Sequence[Place], folder: Path) -> _Drawn:
    files = find_images(places)
    stems = Counter(file.stem for file in files)
    drawn = _Drawn()
    with progress("explaining", total=len(files)) as advance:
        for file, explanation in zip(files, recogniser.explanations(files, ANSWERS), strict=True):
            if explanation.problem is not None:
                drawn.leave_out(readable(file), explanation.problem)
            else:
                identity = readable(file.stem if stems[file.stem] == 1 else file)
                drawn.made.append(_write_panel(folder, run, identity, None, explanation, by=recogniser.by))
                drawn.methods.append(explanation.method)
            advance(1)
    return drawn


def _explain_recognised(run: Run, recogniser: Recogniser, eligible: EligibleImages, count: int, folder: Path) -> _Drawn:
    images = images_in_turn(run, eligible)
    require_images(eligible.dataset, [image.place[0] for image in images[:count]], "explain")
    reader = ImageReader(eligible.dataset)
    drawn = _Drawn()
    explanations = recogniser.explanations((reader.read(*image.place) for image in images), ANSWERS)
    with progress("explaining", total=count) as advance:
        for image, explanation in zip(images, explanations, strict=False):
            if explanation.problem is not None:
                drawn.leave_out(image.id, explanation.problem)
            elif explanation.answers[0].label == image.truth:
                drawn.made.append(_write_panel(folder, run, image.id, image.truth, explanation, by=recogniser.by))
                drawn.methods.append(explanation.method)
                advance(1)
            if len(drawn.made) == count:
                break
    if not drawn.made:
        raise LandmarksError(f"{run.name} recognises none of the {len(images)} images of {eligible.dataset.folder}")
    if len(drawn.made) < count:
        note(f"only {len(drawn.made)} of {len(images)} images are recognised; {count} were asked for")
    return drawn


def _earlier_panels(folder: Path, digest: str, by: str) -> dict[str, dict[str, Any]]:
    """Return, by image id, the index entries of earlier calls with the same weights and way of answering."""
    index = folder / "index.json"
    if not index.exists():
        return {}
    record = read_record(index)
    if record["inputs"] != digest:
        return {}
    return {entry["image_id"]: entry for entry in record["panels"] if entry.get("by", CLASSIFIER) == by}


def _file_name(identity: str) -> str:
    """Return a safe file name for an untrusted `identity`; two identities never share one."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", identity).lstrip(".")[:80]
    return plain if plain == identity else f"{plain}-{digest_of(identity)[:8]}"


# The images that are explained when none are given: from the landmarks in turn, always in the same order.


@dataclass(frozen=True)
class KnownImage:
    """An image of a dataset that shows a landmark the run knows, and the location of its bytes."""

    id: str
    truth: int
    """The run's label of the landmark."""
    place: tuple[str, int, int]
    """Shard, offset, length."""


def images_in_turn(run: Run, eligible: EligibleImages) -> list[KnownImage]:
    """Return the `eligible` images that show a known landmark: one of each landmark, then a second of each, …

    The order of the landmarks and of the images of each is derived from their ids, so it is the same everywhere.
    Raises `LandmarksError` when there is none.
    """
    known = dict(zip(eligible.labels["landmark_id"], eligible.labels["label"], strict=True))
    table = eligible.images.filter(pl.col("landmark_id").is_in(list(known)))
    if table.is_empty():
        raise LandmarksError(
            f"{eligible.dataset.folder} holds no image of a landmark that {run.name} knows", received=eligible.split
        )
    queues: dict[int, list[KnownImage]] = {}
    for row in table.select("image_id", "landmark_id", "shard", "offset", "length").iter_rows(named=True):
        image = KnownImage(row["image_id"], known[row["landmark_id"]], (row["shard"], row["offset"], row["length"]))
        queues.setdefault(known[row["landmark_id"]], []).append(image)
    labels = sorted(queues, key=lambda label: generator("explain", label).random())
    for queue in queues.values():
        queue.sort(key=lambda image: generator("explain", image.id).random())
    longest = max(len(queue) for queue in queues.values())
    return [queues[label][turn] for turn in range(longest) for label in labels if turn < len(queues[label])]
