"""Faithfulness of heat maps, by deletion and insertion curves (Petsiuk, Das & Saenko 2018).

The pixels of an image are blurred in the order of their heat (deletion), or appear in that order out of a blurred image
(insertion), while the probability of the network's answer is recorded. A faithful map loses the answer early, with a
small area under the deletion curve, and finds it early, with a large area under the insertion curve. Two maps that are
independent of the network serve as baselines: random patches of the heat map's resolution, and the distance from the
centre, where photographers place their subject.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from landmarks.dataset.shards import ImageReader, require_images
from landmarks.explanation.explain import KnownImage, images_in_turn
from landmarks.models.network import Network
from landmarks.recognition.answers import Explanation
from landmarks.recognition.recogniser import Recogniser
from landmarks.recognition.trained import open_recogniser
from landmarks.support.console import progress
from landmarks.support.errors import LandmarksError
from landmarks.support.files import held, write_record
from landmarks.support.places import Place
from landmarks.support.seeds import generator
from landmarks.support.tables import write_table
from landmarks.training.eligible_images import eligible_images
from landmarks.training.loader import normalised
from landmarks.training.run import Run, open_run

STEPS = 10
"""Number of equal shares of the image that are removed or added one after the other."""

BATCH = 8
"""Images per pass through the network."""

KINDS = ("heat", "random", "centre")
MEASURES = tuple(f"{curve}_{kind}" for kind in KINDS for curve in ("deletion", "insertion"))


def faithfulness(
    run: Place,
    *,
    data: Place | None = None,
    split: str = "test",
    count: int = 200,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure the faithfulness of the heat maps of a run's best answers on up to `count` images.

    Writes `maps/faithfulness.parquet`, one row per landmark, and `maps/faithfulness.json`, which is returned. For heat
    maps and for both baselines it holds the mean areas under both curves, and for each baseline how much better the
    heat map is, with a 95 % interval (1.96 standard errors over images).
    """
    run = run if isinstance(run, Run) else open_run(run)
    eligible = eligible_images(run, data, split)
    images = images_in_turn(run, eligible)[:count]
    require_images(eligible.dataset, [image.place[0] for image in images], "explain")
    recogniser, reader = open_recogniser(run, device=device), ImageReader(eligible.dataset)
    rows: list[dict[str, Any]] = []
    method = ""
    with held(run.folder / "maps") as folder, progress("deleting and inserting", total=len(images)) as advance:
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            explanations = recogniser.explain([reader.read(*image.place) for image in batch], top=1)
            rows += _measure(recogniser, batch, explanations)
            method = explanations[-1].method
            advance(len(batch))
        table = pl.DataFrame(rows)
        names = run.labels.select("label", "landmark_id", "name")
        landmarks = table.group_by("label").agg(pl.len().alias("images"), *(pl.mean(name) for name in MEASURES))
        landmarks = names.join(landmarks.cast({"label": pl.UInt32}), on="label").sort("label")
        record = {"images": len(table), "steps": STEPS, "maps": summary(table), "method": method}
        record |= {
            "data": str(eligible.dataset.folder.resolve()),
            "split": eligible.split,
            "seen": eligible.record()["seen"],
        }
        write_table(folder / "faithfulness.parquet", landmarks, run=run.folder, digest=run.digest)
        write_record(folder / "faithfulness.json", record, verb="explain", inputs=run.digest)
    return record


def summary(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Return, for each kind of map, the mean areas in `table` (one row per image) and the heat map's gain over it."""
    if table.is_empty():
        raise LandmarksError("no image was measured")
    return [
        {
            "map": kind,
            **{
                curve: {
                    "area": table[f"{curve}_{kind}"].mean(),
                    **({} if kind == "heat" else _gain(sign * (table[f"{curve}_heat"] - table[f"{curve}_{kind}"]))),
                }
                for curve, sign in (("deletion", -1), ("insertion", 1))
            },
        }
        for kind in KINDS
    ]


def _gain(differences: pl.Series) -> dict[str, float | None]:
    values = differences.to_numpy()
    error = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    mean = float(values.mean())
    return {"gain": mean, "low": _number(mean - error), "high": _number(mean + error)}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _measure(recogniser: Recogniser, batch: list[KnownImage], explanations: list[Explanation]) -> list[dict[str, Any]]:
    """Return one row per image: its id, its label and the areas called `MEASURES`."""
    for image, explanation in zip(batch, explanations, strict=True):
        if explanation.problem is not None:
            raise LandmarksError(f"image {image.id} cannot be measured: {explanation.problem}")
    device = recogniser.device
    pixels = torch.from_numpy(np.stack([explanation.image for explanation in explanations])).permute(0, 3, 1, 2)
    images = normalised(pixels, recogniser.trained.preprocessing, device)
    answers = torch.tensor([explanation.answers[0].label for explanation in explanations], device=device)
    heat = torch.from_numpy(np.stack([explanation.maps[0] for explanation in explanations])).to(device)
    height, width = heat.shape[1:]
    random = np.stack([generator("random map", image.id).random((height, width)) for image in batch])
    maps = {
        "heat": heat,
        "random": torch.from_numpy(random.astype(np.float32)).to(heat),
        "centre": centre(height, width).to(heat).expand_as(heat),
    }
    areas = {}
    for kind, values in maps.items():
        deletion, insertion = curves(recogniser.trained, images, answers, values)
        areas[f"deletion_{kind}"], areas[f"insertion_{kind}"] = area(deletion).tolist(), area(insertion).tolist()
    return [
        {"image_id": image.id, "label": image.truth, **{name: column[row] for name, column in areas.items()}}
        for row, image in enumerate(batch)
    ]


@torch.no_grad()
def curves(network: Network, images: Tensor, labels: Tensor, maps: Tensor, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """Return the deletion and the insertion curve, each `(N, steps + 1)`, of heat maps `(N, h, w)`.

    A curve holds the probability of `labels` `(N,)` while 0, 1/steps, … 1 of the pixels of normalised `images`
    `(N, 3, S, S)` are blurred (or shown), those with most heat first. Ties go from left to right, top to bottom.
    """
    count, _, side, _ = images.shape
    smooth = F.interpolate(maps[:, None].float(), (side, side), mode="bilinear", align_corners=False).flatten(1)
    ranks = torch.empty_like(smooth, dtype=torch.long)
    order = smooth.sort(dim=1, descending=True, stable=True).indices
    ranks.scatter_(1, order, torch.arange(side * side, device=images.device).expand(count, -1))
    blurred = blur(images)
    deletion, insertion = [], []
    for step in range(steps + 1):
        chosen = (ranks < round(side * side * step / steps)).view(count, 1, side, side)
        deletion.append(_probability(network, torch.where(chosen, blurred, images), labels))
        insertion.append(_probability(network, torch.where(chosen, images, blurred), labels))
    return torch.stack(deletion, 1), torch.stack(insertion, 1)


def area(curve: Tensor) -> Tensor:
    """Return the area `(N,)` under curves `(N, steps + 1)` over 0..1, by the trapezoidal rule."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1), dim=1)


def centre(height: int, width: int) -> Tensor:
    """Return a map `(h, w)` that is largest in the middle and falls with the distance from it."""
    down = torch.linspace(-1, 1, height)[:, None] if height > 1 else torch.zeros(1, 1)
    across = torch.linspace(-1, 1, width)[None] if width > 1 else torch.zeros(1, 1)
    return 2 - down**2 - across**2


def blur(images: Tensor) -> Tensor:
    """Return `images` `(N, 3, S, S)` under a Gaussian blur whose standard deviation is a twentieth of their side."""
    deviation = images.shape[-1] / 20
    radius = max(1, min(round(3 * deviation), images.shape[-1] - 1))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect")
    across = F.conv2d(padded, kernel[:, :, None, :], groups=3)
    return F.conv2d(across, kernel[:, :, :, None], groups=3)


def _probability(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    return network(images).softmax(1).gather(1, labels[:, None])[:, 0]  # type: ignore[no-any-return]
