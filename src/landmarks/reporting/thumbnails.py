"""The page's images: of confused pairs and of the most confident mistakes, and heat maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.images import data_uri, decode, encode, shrink
from landmarks.dataset.manifest import SPLITS, Dataset, open_dataset
from landmarks.dataset.shards import ImageReader
from landmarks.reporting.report_tables import confused_pairs
from landmarks.reporting.run_files import EvaluationFiles, RunFiles
from landmarks.reporting.wording import one_line, percentage
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
    """A landmark mistaken for another: some of these images, and a typical image of the landmark answered."""

    truth: str
    answer: str
    count: int
    shown: list[Thumbnail]
    typical: Thumbnail | None


@dataclass(frozen=True)
class Mistake:
    """One wrong answer: the image, what it shows, what was answered, and with which probability."""

    id: str
    truth: str
    answer: str
    probability: str
    image: Thumbnail | None


@dataclass(frozen=True)
class Panel:
    """A panel of heat maps, with the image's truth and answers as text."""

    id: str
    uri: str
    truth: str
    answers: str
    shown: int
    """Number of answers that have a map."""
    correct: bool | None


def illustrated_pairs(run: RunFiles, evaluation: EvaluationFiles, dataset: Dataset | None) -> list[ConfusedPair]:
    """Return the most confused pairs, with images where the dataset and the predictions are available."""
    pairs = confused_pairs(run, evaluation)[:PAIRS_SHOWN]
    answers = _best_answers(evaluation)
    chosen = [_examples(answers, pair["truth"], pair["answer"]) for pair in pairs]
    found = thumbnails(dataset, [id for shown, typical in chosen for id in (*shown, *typical)])
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
    """Return the ids of images of `truth` answered with `answer`, most confident first, and of one typical `answer`."""
    by_score = answers.sort(["score", "image_id"], descending=[True, False])
    mistaken = by_score.filter(pl.col("truth").list.contains(truth), pl.col("answer") == answer, ~pl.col("right"))
    typical = by_score.filter(pl.col("answer") == answer, "right")
    return mistaken["image_id"].head(IMAGES_OF_A_PAIR).to_list(), typical["image_id"].head(1).to_list()


def _best_answers(evaluation: EvaluationFiles) -> pl.DataFrame:
    """Return image_id, truth, answer, score and right of every image that has a truth and an answer."""
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


def confident_mistakes(run: RunFiles, evaluation: EvaluationFiles, dataset: Dataset | None) -> list[Mistake]:
    """Return the most confident wrong answers about known images."""
    answers = _best_answers(evaluation).filter(pl.col("truth").list.len() > 0, ~pl.col("right"))
    return _most_confident(run, answers, dataset, MISTAKES_SHOWN)


def confident_strangers(run: RunFiles, evaluation: EvaluationFiles, dataset: Dataset | None) -> list[Mistake]:
    """Return the most confident answers about unknown images."""
    answers = _best_answers(evaluation).filter(pl.col("truth").list.len() == 0)
    return _most_confident(run, answers, dataset, STRANGERS_SHOWN)


def _most_confident(run: RunFiles, answers: pl.DataFrame, dataset: Dataset | None, limit: int) -> list[Mistake]:
    rows = answers.sort(["score", "image_id"], descending=[True, False]).head(limit)
    found = thumbnails(dataset, rows["image_id"].to_list())
    return [
        Mistake(
            id=one_line(row["image_id"], 60),
            truth=" and ".join(run.names[label] for label in row["truth"]),
            answer=run.names[row["answer"]],
            probability=percentage(row["score"]),
            image=found.get(row["image_id"]),
        )
        for row in rows.iter_rows(named=True)
    ]


def heat_map_panels(run: RunFiles, limit: int) -> list[Panel]:
    """Return at most `limit` panels of the run's heat maps, without those that cannot be read."""
    if run.maps is None:
        return []
    panels: list[Panel] = []
    for entry in run.maps.get("panels") or []:
        if len(panels) == limit:
            break
        path = run.folder / "maps" / str(entry.get("image", "")).removeprefix("maps/")
        inside = path.resolve().is_relative_to((run.folder / "maps").resolve())
        uri = panel_uri(path) if inside else ""
        if uri:
            panels.append(_panel(entry, uri))
    return panels


def _panel(entry: dict[str, Any], uri: str) -> Panel:
    answers = entry.get("answers") or []
    texts = [f"{one_line(answer.get('name'), 60)} {percentage(answer.get('probability'))}" for answer in answers]
    return Panel(
        id=one_line(entry.get("image_id"), 60),
        uri=uri,
        truth=one_line(entry.get("truth_name") or "", 80),
        answers=", ".join(texts),
        shown=len(answers),
        correct=entry.get("correct"),
    )


# Image data for the page: thumbnails from the dataset, heat maps from the run folder.


THUMBNAIL = 220
"""Longest side of a thumbnail, in pixels."""

PANEL = 1000
"""Longest side of a heat-map panel on the page, in pixels."""


@dataclass(frozen=True)
class Thumbnail:
    """A small image for the page: `uri` holds its bytes, or is empty if they could not be read."""

    id: str
    uri: str
    width: int
    height: int
    credit: str


def find_dataset(run: Run, judged: Mapping[str, Any] | None) -> Dataset:
    """Return the dataset that the metrics `judged` are about, or without them the run's own.

    Raises `LandmarksError` when it is gone, or has changed since: equal ids may then be other images.
    """
    if judged is None or judged.get("own_data", judged.get("name") in SPLITS):
        return find_own_dataset(run)
    location = {"folder": judged.get("data"), "relative": judged.get("data_relative")}
    places = [
        place for place in recorded_locations(location, relative_to=run.folder) if (place / "dataset.json").is_file()
    ]
    if not places:
        raise LandmarksError(f"the images that {run.name} was judged on are not at {location['folder']} any more")
    digest = judged.get("data_digest")
    for place in places:
        dataset = open_dataset(place)
        if digest in (None, dataset.digest):
            return dataset
    raise LandmarksError(f"the dataset at {places[0]} is not as it was when {run.name} was judged on it")


def thumbnails(dataset: Dataset | None, ids: Iterable[str]) -> dict[str, Thumbnail]:
    """Return thumbnails with their credits by id; an image that cannot be read has a credit only."""
    if dataset is None:
        return {}
    wanted = dataset.images.filter(pl.col("image_id").is_in(list(set(ids))))
    reader = ImageReader(dataset)
    return {row["image_id"]: _thumbnail(reader, row) for row in wanted.iter_rows(named=True)}


def _thumbnail(reader: ImageReader, row: Mapping[str, Any]) -> Thumbnail:
    credit = credit_of(row)
    try:
        data = reader.read(row["shard"], row["offset"], row["length"])
        image = shrink(decode(data, min_side=THUMBNAIL), THUMBNAIL)
    except (LandmarksError, OSError):
        return Thumbnail(row["image_id"], "", 0, 0, credit)
    height, width = image.shape[:2]
    return Thumbnail(row["image_id"], data_uri(encode(image, quality=80)), width, height, credit)


def credit_of(row: Mapping[str, Any]) -> str:
    """Return `Author, licence` of an image, as far as they are known."""
    return ", ".join(one_line(row[name], 80) for name in ("author", "license") if row.get(name))


def panel_uri(path: Path) -> str:
    """Return a heat-map panel as a data URI no wider than the page needs, or an empty string if it cannot be read."""
    try:
        image = shrink(decode(path.read_bytes()), PANEL)
    except (LandmarksError, OSError):
        return ""
    return data_uri(encode(image, quality=82))
