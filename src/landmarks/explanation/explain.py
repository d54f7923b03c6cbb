"""Heat maps for a run: of images a person names, or a gallery of what it recognised in its own dataset."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from landmarks.dataset.images import ImageError, encode
from landmarks.dataset.shards import ImageReader
from landmarks.explanation.drawing import Answer, panel
from landmarks.models.gradcam import Explained, explain_images, scaled
from landmarks.models.network import Network
from landmarks.support.console import note, progress
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import digest_of, held, read_record, write_record, written_whole
from landmarks.support.seeds import generator
from landmarks.support.systems import readable
from landmarks.training.asked import Asked, ask
from landmarks.training.loader import evaluation_image, normalised
from landmarks.training.machine import choose_device
from landmarks.training.run import Run, open_run

ANSWERS = 4
"""Heat maps beside each image."""

BATCH = 8
"""Images that go through the backbone at once."""

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of the files that are taken from a folder."""


def explain(
    run: Run | Path | str,
    images: Sequence[Path | str] | None = None,
    *,
    data: Path | str | None = None,
    split: str = "test",
    count: int = 12,
    device: str = "auto",
) -> dict[str, Any]:
    """Draw the heat maps of the 4 best answers for `images`, or for `count` recognised images of a dataset.

    `images` are files and folders. Without them the images come from `split` of `data` (or of the dataset the run
    was trained on): correctly recognised ones, from the landmarks in turn, none that the run has seen (see `ask`).
    Writes `maps/<id>.jpg` into the run and `maps/index.json`, which is returned: `method`, `panels`, `rejected` for
    files that are no images, and `made`, the panels of this call. `device` is auto, cpu, cuda or mps. Raises
    `LandmarksError` when there is nothing to draw.
    """
    run = run if isinstance(run, Run) else open_run(run)
    if count < 1:
        raise UsageError("the number of images must be positive", received=count)
    explainer = Explainer(run, device)
    with held(run.folder / "maps") as folder:
        if images:
            made, rejected = _of_files(explainer, images, folder)
        else:
            made, rejected = _gallery(explainer, data, split, count, folder), []
        panels = _earlier(folder, run.digest) | {entry["id"]: entry for entry in made}
        record = {"method": explainer.method, "panels": list(panels.values()), "rejected": rejected}
        if made:
            write_record(folder / "index.json", record, verb="explain", inputs=run.digest)
    return {**record, "made": made}


class Explainer:
    """One run's network on a device, the machine's best by itself: from images to answers, maps and panels."""

    def __init__(self, run: Run, device: str = "auto") -> None:
        self.run = run
        self.device = torch.device(choose_device(device).value)
        self.network: Network = run.network().to(self.device)
        self.temperature = float(read_record(run.folder / "model.json").get("temperature") or 1.0)
        self.method = ""

    def pixels_of(self, images: Sequence[bytes]) -> NDArray[np.uint8]:
        """Return what the network sees of each image, uint8 (N, S, S, 3)."""
        return np.stack([evaluation_image(each, self.network.preprocessing) for each in images])

    def images(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """Return images (N, S, S, 3) as the network takes them, (N, 3, S, S) on its device."""
        return normalised(torch.from_numpy(pixels).permute(0, 3, 1, 2), self.network.preprocessing, self.device)

    def look(self, pixels: NDArray[np.uint8]) -> Explained:
        """Return answers and maps for images (N, S, S, 3)."""
        explained = explain_images(self.network, self.images(pixels), ANSWERS, self.temperature)
        self.method = explained.method
        return explained

    def draw(
        self, folder: Path, identity: str, truth: int | None, image: NDArray[np.uint8], explained: Explained
    ) -> dict[str, Any]:
        """Write the panel of one image, `explained` alone, into `folder` and return its entry in the index."""
        labels = explained.labels[0].tolist()
        probabilities = explained.probabilities[0, explained.labels[0]].tolist()
        names = self.run.name_of(labels)
        truth_name = None if truth is None else self.run.name_of([truth])[0]
        answers = [Answer(*each) for each in zip(names, probabilities, (one == truth for one in labels), strict=True)]
        sheet = panel(image, scaled(explained.maps[0]).float().cpu().numpy(), answers, truth_name or identity)
        name = f"{_file_name(identity)}.jpg"
        with written_whole(folder / name) as aside:
            aside.write_bytes(encode(sheet))
        return {
            "id": identity,
            "image": name,
            "truth": truth,
            "truth_name": truth_name,
            "answers": [
                {"label": label, "name": answer.name, "probability": answer.probability}
                for label, answer in zip(labels, answers, strict=True)
            ],
            "correct": None if truth is None else labels[0] == truth,
        }


def _of_files(
    explainer: Explainer, places: Sequence[Path | str], folder: Path
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    files = list(_files(places))
    named = Counter(file.stem for file in files)
    made, rejected = [], []
    with progress("explaining", total=len(files)) as advance:
        for file in files:
            try:
                image = explainer.pixels_of([file.read_bytes()])
            except (ImageError, OSError) as error:
                note(f"{readable(file)} is left out: {error}")
                rejected.append({"image": readable(file), "why": str(error)})
            else:
                identity = readable(file.stem if named[file.stem] == 1 else file)
                made.append(explainer.draw(folder, identity, None, image[0], explainer.look(image)))
            advance(1)
    return made, rejected


def _files(places: Sequence[Path | str]) -> Iterator[Path]:
    for place in map(Path, places):
        if place.is_dir():
            inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
            if not inside:
                raise LandmarksError(f"there are no images in {place}")
            yield from inside
        elif place.exists():
            yield place
        else:
            raise LandmarksError(f"there is no image {place}")


def _gallery(
    explainer: Explainer, data: Path | str | None, split: str, count: int, folder: Path
) -> list[dict[str, Any]]:
    asked = ask(explainer.run, data, split)
    images = images_in_turn(explainer.run, asked)
    reader = ImageReader(asked.dataset)
    made: list[dict[str, Any]] = []
    tried = 0
    with progress("explaining", total=count) as advance:
        while len(made) < count and tried < len(images):
            batch = images[tried : tried + BATCH]
            tried += len(batch)
            pixels = explainer.pixels_of([reader.read(*image.place) for image in batch])
            explained = explainer.look(pixels)
            for row, image in enumerate(batch):
                if explained.labels[row, 0].item() == image.truth and len(made) < count:
                    made.append(explainer.draw(folder, image.id, image.truth, pixels[row], explained.only(row)))
                    advance(1)
    if not made:
        raise LandmarksError(f"{explainer.run.name} recognises none of the {tried} images of {asked.dataset.folder}")
    if len(made) < count:
        note(f"only {len(made)} of {tried} images are recognised; {count} were asked for")
    return made


def _earlier(folder: Path, digest: str) -> dict[str, dict[str, Any]]:
    """Return the panels drawn earlier from the same weights, by image; others are forgotten."""
    index = folder / "index.json"
    if not index.exists():
        return {}
    record = read_record(index)
    return {entry["id"]: entry for entry in record["panels"]} if record["inputs"] == digest else {}


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


def images_in_turn(run: Run, asked: Asked) -> list[KnownImage]:
    """Return those of the images `asked` that show a landmark the run knows: one of each, then a second, …

    The order within a landmark and of the landmarks is drawn from their ids, so it is the same everywhere.
    """
    known = dict(zip(asked.labels["landmark_id"], asked.labels["label"], strict=True))
    table = asked.images.filter(pl.col("landmark_id").is_in(list(known)))
    if table.is_empty():
        raise LandmarksError(
            f"{asked.dataset.folder} holds no image of a landmark that {run.name} knows", received=asked.split
        )
    queues: dict[int, list[KnownImage]] = {}
    for row in table.select("id", "landmark_id", "shard", "offset", "length").iter_rows(named=True):
        image = KnownImage(row["id"], known[row["landmark_id"]], (row["shard"], row["offset"], row["length"]))
        queues.setdefault(known[row["landmark_id"]], []).append(image)
    labels = sorted(queues, key=lambda label: generator("explain", label).random())
    for queue in queues.values():
        queue.sort(key=lambda image: generator("explain", image.id).random())
    longest = max(len(queue) for queue in queues.values())
    return [queues[label][turn] for turn in range(longest) for label in labels if turn < len(queues[label])]
