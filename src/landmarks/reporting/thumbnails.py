"""Images behind the numbers: confused pairs, the most confident mistakes, and the heat maps that were drawn."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.images import decode, encode, shrink
from landmarks.dataset.manifest import SPLITS, Dataset, open_dataset
from landmarks.dataset.shards import ImageReader
from landmarks.reporting.report_tables import confused_pairs
from landmarks.reporting.run_files import Evaluation, RunFiles
from landmarks.reporting.wording import percent, readable
from landmarks.support.errors import LandmarksError
from landmarks.support.tables import read_table
from landmarks.training.own_data import find_own_dataset, recorded_locations
from landmarks.training.run import Run

PAIRS_SHOWN = 10
IMAGES_OF_A_PAIR = 2
MISTAKES_SHOWN = 12
STRANGERS_SHOWN = 6


@dataclass(frozen=True)
class ConfusedPair:
    """A landmark taken for another: some of those images, and a typical one of what was answered."""

    truth: str
    answer: str
    count: int
    shown: list[Image]
    typical: Image | None


@dataclass(frozen=True)
class Mistake:
    """One wrong answer: what is shown, what was answered and how sure the network was."""

    id: str
    truth: str
    answer: str
    probability: str
    image: Image | None


@dataclass(frozen=True)
class Panel:
    """One drawn heat map with its words."""

    id: str
    uri: str
    truth: str
    answers: str
    shown: int
    """How many answers have a map."""
    correct: bool | None


def confused(run: RunFiles, evaluation: Evaluation, dataset: Dataset | None) -> list[ConfusedPair]:
    """Return the most confused pairs; images are there as far as the dataset and the predictions are."""
    pairs = confused_pairs(run, evaluation)[:PAIRS_SHOWN]
    answers = _first_answers(evaluation)
    chosen = [_examples(answers, pair["truth"], pair["answer"]) for pair in pairs]
    found = images(dataset, [id for shown, typical in chosen for id in (*shown, *typical)])
    return [
        ConfusedPair(
            pair["truth_name"],
            pair["answer_name"],
            pair["count"],
            shown=[found[id] for id in shown if id in found],
            typical=next((found[id] for id in typical if id in found), None),
        )
        for pair, (shown, typical) in zip(pairs, chosen, strict=True)
    ]


def _examples(answers: pl.DataFrame, truth: int, answer: int) -> tuple[list[str], list[str]]:
    """Return ids of images of `truth` answered with `answer`, surest first, and of one typical of `answer`."""
    by_score = answers.sort(["score", "image_id"], descending=[True, False])
    of_truth = by_score.filter(pl.col("truth").list.contains(truth), pl.col("answer") == answer, ~pl.col("right"))
    typical = by_score.filter(pl.col("answer") == answer, "right")
    return of_truth["image_id"].head(IMAGES_OF_A_PAIR).to_list(), typical["image_id"].head(1).to_list()


def _first_answers(evaluation: Evaluation) -> pl.DataFrame:
    """Return id, truth, answer, score, right of every image whose truth was told and that was answered."""
    if evaluation.predictions is None:
        return pl.DataFrame(
            schema={
                "image_id": pl.String,
                "truth": pl.List(pl.UInt32),
                "answer": pl.UInt32,
                "score": pl.Float32,
                "right": pl.Boolean,
            }
        )
    table = read_table(evaluation.predictions).filter(pl.col("truth").is_not_null(), pl.col("label").list.len() > 0)
    answer, score = pl.col("label").list.first(), pl.col("score").list.first()
    answered = table.select("image_id", "truth", answer.alias("answer"), score.alias("score"))
    return answered.with_columns(pl.col("truth").list.contains(pl.col("answer")).alias("right"))


def confident_mistakes(run: RunFiles, evaluation: Evaluation, dataset: Dataset | None) -> list[Mistake]:
    """Return the wrong answers about known images that the network was surest of."""
    answers = _first_answers(evaluation).filter(pl.col("truth").list.len() > 0, ~pl.col("right"))
    return _surest(run, answers, dataset, MISTAKES_SHOWN)


def confident_strangers(run: RunFiles, evaluation: Evaluation, dataset: Dataset | None) -> list[Mistake]:
    """Return the surest answers about images that show nothing the run knows."""
    answers = _first_answers(evaluation).filter(pl.col("truth").list.len() == 0)
    return _surest(run, answers, dataset, STRANGERS_SHOWN)


def _surest(run: RunFiles, answers: pl.DataFrame, dataset: Dataset | None, limit: int) -> list[Mistake]:
    rows = answers.sort(["score", "image_id"], descending=[True, False]).head(limit)
    found = images(dataset, rows["image_id"].to_list())
    return [
        Mistake(
            id=readable(row["image_id"], 60),
            truth=" and ".join(run.names[label] for label in row["truth"]),
            answer=run.names[row["answer"]],
            probability=percent(row["score"]),
            image=found.get(row["image_id"]),
        )
        for row in rows.iter_rows(named=True)
    ]


def heat_map_panels(run: RunFiles, limit: int) -> list[Panel]:
    """Return at most `limit` heat maps of the run folder; what cannot be read is left out."""
    if run.maps is None:
        return []
    made: list[Panel] = []
    for entry in run.maps.get("panels") or []:
        if len(made) == limit:
            break
        path = run.folder / "maps" / str(entry.get("image", "")).removeprefix("maps/")
        inside = path.resolve().is_relative_to((run.folder / "maps").resolve())
        uri = panel(path) if inside else ""
        if uri:
            made.append(_panel(entry, uri))
    return made


def _panel(entry: dict[str, Any], uri: str) -> Panel:
    answers = entry.get("answers") or []
    told = ", ".join(f"{readable(one.get('name'), 60)} {percent(one.get('probability'))}" for one in answers)
    return Panel(
        id=readable(entry.get("image_id"), 60),
        uri=uri,
        truth=readable(entry.get("truth_name") or "", 80),
        answers=told,
        shown=len(answers),
        correct=entry.get("correct"),
    )


# Images in the page: small ones read from the dataset while it is there, heat maps from the run folder.


THUMBNAIL = 220
"""Longest side of an image in the page, in pixels."""

PANEL = 1000
"""Longest side of a heat-map panel in the page, in pixels."""


@dataclass(frozen=True)
class Image:
    """One image for the page: `uri` holds its bytes, or is empty when they could not be read."""

    id: str
    uri: str
    width: int
    height: int
    credit: str


def find_dataset(run: Run, judged: Mapping[str, Any] | None) -> Dataset:
    """Return the dataset whose images were judged, as the record of numbers `judged` tells, else the run's own.

    Raises `LandmarksError` when it is not there, or is not what was judged: its images would be others of that name.
    """
    if judged is None or judged.get("own_data", judged.get("name") in SPLITS):
        return find_own_dataset(run)
    told = {"folder": judged.get("data"), "relative": judged.get("data_relative")}
    there = [place for place in recorded_locations(told, beside=run.folder) if (place / "dataset.json").is_file()]
    if not there:
        raise LandmarksError(f"the images that {run.name} was judged on are not at {told['folder']} any more")
    digest = judged.get("data_digest")
    for place in there:
        dataset = open_dataset(place)
        if digest in (None, dataset.digest):
            return dataset
    raise LandmarksError(f"the dataset at {there[0]} is not as it was when {run.name} was judged on it")


def images(dataset: Dataset | None, ids: Iterable[str]) -> dict[str, Image]:
    """Return small copies with their credits by id; an image that cannot be read keeps its credit and no bytes."""
    if dataset is None:
        return {}
    wanted = dataset.images.filter(pl.col("image_id").is_in(list(set(ids))))
    reader = ImageReader(dataset)
    return {row["image_id"]: _thumbnail(reader, row) for row in wanted.iter_rows(named=True)}


def _thumbnail(reader: ImageReader, row: Mapping[str, Any]) -> Image:
    credit = credit_of(row)
    try:
        data = reader.read(row["shard"], row["offset"], row["length"])
        image = shrink(decode(data, min_side=THUMBNAIL), THUMBNAIL)
    except (LandmarksError, OSError):
        return Image(row["image_id"], "", 0, 0, credit)
    height, width = image.shape[:2]
    return Image(row["image_id"], data_uri(encode(image, quality=80)), width, height, credit)


def credit_of(row: Mapping[str, Any]) -> str:
    """Return `Author, licence` of an image as far as they are known."""
    known = [readable(row[name], 80) for name in ("author", "license") if row.get(name)]
    return ", ".join(known)


def panel(path: Path) -> str:
    """Return a heat-map panel as a data URI no wider than the page needs, or an empty text when it cannot be read."""
    try:
        image = shrink(decode(path.read_bytes()), PANEL)
    except (LandmarksError, OSError):
        return ""
    return data_uri(encode(image, quality=82))


def data_uri(jpeg: bytes) -> str:
    """Return JPEG bytes as a `data:` address."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
