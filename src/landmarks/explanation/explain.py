"""Heat maps for a run: of images a person names, or a gallery of what it recognised in its own dataset."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.images import encode
from landmarks.dataset.shards import ImageReader
from landmarks.dataset.sources import find_images
from landmarks.explanation.drawing import Caption, panel
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
"""Heat maps beside each image."""


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

    `images` are files and folders. Without them the images come from `split` of `data` (or of the dataset the run
    was trained on): correctly recognised ones, from the landmarks in turn, none that the run has seen (see `ask`).
    Answers are those of `predict`, by whoever answers for the run (see `landmarks.load`). Writes `maps/<id>.jpg` into
    the run and `maps/index.json`, which is returned: `method`, `panels`, `rejected` for files that are no images, and
    `made`, the panels of this call. `device` is auto, cpu, cuda or mps. Raises
    `LandmarksError` when there is nothing to draw.

    With `faithfulness` nothing is drawn: how far the maps can be believed is measured on `count` (200) images of the
    dataset, and that record is returned.
    """
    if faithfulness:
        from landmarks.explanation import faithfulness as measurement  # which needs what stands here

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
            drawn = _of_files(run, recogniser, images, folder)
        else:
            drawn = _gallery(run, recogniser, eligible_images(run, data, split), count, folder)
        panels = _earlier(folder, run.digest, recogniser.by) | {entry["image_id"]: entry for entry in drawn.made}
        method = drawn.methods[-1] if drawn.methods else ""
        record = {"method": method, "panels": list(panels.values()), "rejected": drawn.rejected}
        if drawn.made:
            write_record(folder / "index.json", record, verb="explain", inputs=run.digest)
    return {**record, "made": drawn.made}


def _draw(folder: Path, run: Run, identity: str, truth: int | None, seen: Explanation, *, by: str) -> dict[str, Any]:
    """Write the panel of one image into `folder` and return its entry in the index."""
    truth_name = None if truth is None else run.name_of([truth])[0]
    captions = [Caption(one.name, one.probability, one.label == truth) for one in seen.answers]
    sheet = panel(seen.image, seen.maps, captions, truth_name or identity)
    name = f"{_file_name(identity)}.jpg"
    with written_whole(folder / name) as aside:
        aside.write_bytes(encode(sheet))
    return {
        "image_id": identity,
        "image": name,
        "truth": truth,
        "truth_name": truth_name,
        "by": by,
        "answers": [{"label": one.label, "name": one.name, "probability": one.probability} for one in seen.answers],
        "correct": None if truth is None else seen.answers[0].label == truth,
    }


@dataclass(frozen=True)
class _Drawn:
    """What one call drew: entries of the index, what was left out, and how the maps were computed."""

    made: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)

    def leave_out(self, name: str, why: str) -> None:
        """Name an image that has no heat maps."""
        note(f"{name} is left out: {why}")
        self.rejected.append({"image": name, "why": why})


def _of_files(run: Run, recogniser: Recogniser, places: Sequence[Place], folder: Path) -> _Drawn:
    files = find_images(places)
    named = Counter(file.stem for file in files)
    drawn = _Drawn()
    with progress("explaining", total=len(files)) as advance:
        for file, seen in zip(files, recogniser.explanations(files, ANSWERS), strict=True):
            if seen.problem is not None:
                drawn.leave_out(readable(file), seen.problem)
            else:
                identity = readable(file.stem if named[file.stem] == 1 else file)
                drawn.made.append(_draw(folder, run, identity, None, seen, by=recogniser.by))
                drawn.methods.append(seen.method)
            advance(1)
    return drawn


def _gallery(run: Run, recogniser: Recogniser, eligible: EligibleImages, count: int, folder: Path) -> _Drawn:
    images = images_in_turn(run, eligible)
    reader = ImageReader(eligible.dataset)
    drawn = _Drawn()
    explanations = recogniser.explanations((reader.read(*image.place) for image in images), ANSWERS)
    with progress("explaining", total=count) as advance:
        for image, seen in zip(images, explanations, strict=False):
            if seen.problem is not None:
                drawn.leave_out(image.id, seen.problem)
            elif seen.answers[0].label == image.truth:
                drawn.made.append(_draw(folder, run, image.id, image.truth, seen, by=recogniser.by))
                drawn.methods.append(seen.method)
                advance(1)
            if len(drawn.made) == count:
                break
    if not drawn.made:
        raise LandmarksError(f"{run.name} recognises none of the {len(images)} images of {eligible.dataset.folder}")
    if len(drawn.made) < count:
        note(f"only {len(drawn.made)} of {len(images)} images are recognised; {count} were asked for")
    return drawn


def _earlier(folder: Path, digest: str, by: str) -> dict[str, dict[str, Any]]:
    """Return the panels drawn earlier of the same weights' answers, `by` the same, by image; others are forgotten."""
    index = folder / "index.json"
    if not index.exists():
        return {}
    record = read_record(index)
    if record["inputs"] != digest:
        return {}
    return {entry["image_id"]: entry for entry in record["panels"] if entry.get("by", CLASSIFIER) == by}


def _file_name(identity: str) -> str:
    """Return a name for a file that a stranger's `identity` cannot lead astray; two identities never share one."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", identity).lstrip(".")[:80]
    return plain if plain == identity else f"{plain}-{digest_of(identity)[:8]}"


# Which images are explained when a person names none: the landmarks in turn, always in the same order.


@dataclass(frozen=True)
class KnownImage:
    """An image of a dataset that shows a landmark the run knows, and where its bytes lie."""

    id: str
    truth: int
    """The run's label of it."""
    place: tuple[str, int, int]
    """Shard, offset, length."""


def images_in_turn(run: Run, eligible: EligibleImages) -> list[KnownImage]:
    """Return those of the images `eligible` that show a landmark the run knows: one of each, then a second, …

    The order within a landmark and of the landmarks is drawn from their ids, so it is the same everywhere.
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
