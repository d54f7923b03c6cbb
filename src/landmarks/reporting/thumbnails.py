"""Photographs behind the numbers: confused pairs, the most confident mistakes, and the heat maps that were drawn."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.images import decode, encode, shrink
from landmarks.dataset.manifest import PARTS, Dataset, open_dataset
from landmarks.dataset.shards import PhotoReader
from landmarks.reporting.report_tables import confused_pairs
from landmarks.reporting.run_files import Evaluation, Pieces
from landmarks.reporting.wording import percent, readable
from landmarks.support.errors import LandmarksError
from landmarks.support.tables import read_table
from landmarks.training.own_data import find_own, places_of
from landmarks.training.run import Run

PAIRS_SHOWN = 10
PHOTOGRAPHS_OF_A_PAIR = 2
MISTAKES_SHOWN = 12
STRANGERS_SHOWN = 6


@dataclass(frozen=True)
class ConfusedPair:
    """A landmark taken for another: some of those photographs, and a typical one of what was answered."""

    truth: str
    answer: str
    count: int
    shown: list[Photograph]
    typical: Photograph | None


@dataclass(frozen=True)
class Mistake:
    """One wrong answer: what is shown, what was answered and how sure the network was."""

    id: str
    truth: str
    answer: str
    probability: str
    photograph: Photograph | None


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


def confused(run: Pieces, evaluation: Evaluation, dataset: Dataset | None) -> list[ConfusedPair]:
    """Return the most confused pairs; photographs are there as far as the dataset and the predictions are."""
    pairs = confused_pairs(run, evaluation)[:PAIRS_SHOWN]
    answers = _first_answers(evaluation)
    chosen = [_examples(answers, pair["truth"], pair["answer"]) for pair in pairs]
    found = photographs(dataset, [id for shown, typical in chosen for id in (*shown, *typical)])
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
    """Return ids of photographs of `truth` answered with `answer`, surest first, and of one typical of `answer`."""
    by_score = answers.sort(["score", "id"], descending=[True, False])
    of_truth = by_score.filter(pl.col("truth").list.contains(truth), pl.col("answer") == answer, ~pl.col("right"))
    typical = by_score.filter(pl.col("answer") == answer, "right")
    return of_truth["id"].head(PHOTOGRAPHS_OF_A_PAIR).to_list(), typical["id"].head(1).to_list()


def _first_answers(evaluation: Evaluation) -> pl.DataFrame:
    """Return id, truth, answer, score, right of every photograph whose truth was told and that was answered."""
    if evaluation.predictions is None:
        return pl.DataFrame(
            schema={
                "id": pl.String,
                "truth": pl.List(pl.UInt32),
                "answer": pl.UInt32,
                "score": pl.Float32,
                "right": pl.Boolean,
            }
        )
    table = read_table(evaluation.predictions).filter(pl.col("truth").is_not_null(), pl.col("label").list.len() > 0)
    answer, score = pl.col("label").list.first(), pl.col("score").list.first()
    answered = table.select("id", "truth", answer.alias("answer"), score.alias("score"))
    return answered.with_columns(pl.col("truth").list.contains(pl.col("answer")).alias("right"))


def confident_mistakes(run: Pieces, evaluation: Evaluation, dataset: Dataset | None) -> list[Mistake]:
    """Return the wrong answers about known photographs that the network was surest of."""
    answers = _first_answers(evaluation).filter(pl.col("truth").list.len() > 0, ~pl.col("right"))
    return _surest(run, answers, dataset, MISTAKES_SHOWN)


def confident_strangers(run: Pieces, evaluation: Evaluation, dataset: Dataset | None) -> list[Mistake]:
    """Return the surest answers about photographs that show nothing the run knows."""
    answers = _first_answers(evaluation).filter(pl.col("truth").list.len() == 0)
    return _surest(run, answers, dataset, STRANGERS_SHOWN)


def _surest(run: Pieces, answers: pl.DataFrame, dataset: Dataset | None, limit: int) -> list[Mistake]:
    rows = answers.sort(["score", "id"], descending=[True, False]).head(limit)
    found = photographs(dataset, rows["id"].to_list())
    return [
        Mistake(
            id=readable(row["id"], 60),
            truth=" and ".join(run.names[label] for label in row["truth"]),
            answer=run.names[row["answer"]],
            probability=percent(row["score"]),
            photograph=found.get(row["id"]),
        )
        for row in rows.iter_rows(named=True)
    ]


def heat_map_panels(run: Pieces, limit: int) -> list[Panel]:
    """Return at most `limit` heat maps of the run folder; what cannot be read is left out."""
    if run.maps is None:
        return []
    made: list[Panel] = []
    for entry in run.maps.get("panels") or []:
        if len(made) == limit:
            break
        path = run.folder / "maps" / str(entry.get("picture", "")).removeprefix("maps/")
        inside = path.resolve().is_relative_to((run.folder / "maps").resolve())
        uri = panel(path) if inside else ""
        if uri:
            made.append(_panel(entry, uri))
    return made


def _panel(entry: dict[str, Any], uri: str) -> Panel:
    answers = entry.get("answers") or []
    told = ", ".join(f"{readable(one.get('name'), 60)} {percent(one.get('probability'))}" for one in answers)
    return Panel(
        id=readable(entry.get("id"), 60),
        uri=uri,
        truth=readable(entry.get("truth_name") or "", 80),
        answers=told,
        shown=len(answers),
        correct=entry.get("correct"),
    )


# Photographs in the page: small ones read from the dataset while it is there, heat maps from the run folder.


THUMBNAIL = 220
"""Longest side of a photograph in the page, in pixels."""

PANEL = 1000
"""Longest side of a heat-map panel in the page, in pixels."""


@dataclass(frozen=True)
class Photograph:
    """One photograph for the page: `uri` holds its bytes, or is empty when they could not be read."""

    id: str
    uri: str
    width: int
    height: int
    credit: str


def find_dataset(run: Run, judged: Mapping[str, Any] | None) -> Dataset:
    """Return the dataset whose photographs were judged, as the record of numbers `judged` tells, else the run's own.

    Raises `LandmarksError` when it is not there, or is not what was judged: its pictures would be others of that name.
    """
    if judged is None or judged.get("own_data", judged.get("name") in PARTS):
        return find_own(run)
    told = {"folder": judged.get("data"), "relative": judged.get("data_relative")}
    there = [place for place in places_of(told, beside=run.folder) if (place / "dataset.json").is_file()]
    if not there:
        raise LandmarksError(f"the photographs that {run.name} was judged on are not at {told['folder']} any more")
    digest = judged.get("data_digest")
    for place in there:
        dataset = open_dataset(place)
        if digest in (None, dataset.digest):
            return dataset
    raise LandmarksError(f"the dataset at {there[0]} is not as it was when {run.name} was judged on it")


def photographs(dataset: Dataset | None, ids: Iterable[str]) -> dict[str, Photograph]:
    """Return small copies with their credits by id; a photograph that cannot be read keeps its credit and no bytes."""
    if dataset is None:
        return {}
    wanted = dataset.photos.filter(pl.col("id").is_in(list(set(ids))))
    reader = PhotoReader(dataset)
    return {row["id"]: _thumbnail(reader, row) for row in wanted.iter_rows(named=True)}


def _thumbnail(reader: PhotoReader, row: Mapping[str, Any]) -> Photograph:
    credit = credit_of(row)
    try:
        data = reader.read(row["shard"], row["offset"], row["length"])
        image = shrink(decode(data, min_side=THUMBNAIL), THUMBNAIL)
    except (LandmarksError, OSError):
        return Photograph(row["id"], "", 0, 0, credit)
    height, width = image.shape[:2]
    return Photograph(row["id"], data_uri(encode(image, quality=80)), width, height, credit)


def credit_of(row: Mapping[str, Any]) -> str:
    """Return `Author, licence` of a photograph as far as they are known."""
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
