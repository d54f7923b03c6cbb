"""The challenge's retrieval task: for each query, the images of the index set with the same landmark, at most 100.

A submission has the columns `id,images`, the solution `id,images,Usage`; `images` holds ids separated by spaces, best
first. Queries of usage `Ignored` do not count. Images after the hundredth are ignored, repeated ones are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from landmarks.archive.csv_tables import ID, IMAGE, USAGE, CsvColumn, CsvTable, read_checked
from landmarks.evaluation.metrics import require_unique_ids
from landmarks.support.errors import LandmarksError
from landmarks.support.places import Place

MAX_IMAGES = 100
"""Images per query that count."""

CUTOFFS = (1, 5, 10, 100)
"""Numbers of images for precision and recall."""

_IDS = f" *({ID}( +{ID})*)? *"
SUBMISSION = CsvTable("", {"id": IMAGE, "images": CsvColumn(_IDS, "image ids separated by spaces, or nothing")})
SOLUTION = CsvTable(
    "ground_truth/retrieval_solution_v2.1.csv",
    {
        "id": IMAGE,
        "images": CsvColumn(f"{_IDS}|None", "image ids separated by spaces, or None"),
        "Usage": USAGE,
    },
)

Ranked = Mapping[str, Sequence[str]]
"""Query → images found, best first."""

Relevant = Mapping[str, frozenset[str]]
"""Query → all images that show the same landmark."""

DEFINITIONS = {
    "map_at_100": "Mean over queries of the average precision of the first 100 images: at each rank that holds a right "
    "image, the share of right ones so far is added; the sum is divided by the smaller of 100 and the number of right "
    "images there are; a query without an answer counts 0.",
    "precision_at": "Mean over queries of the share of right images among the first k; what is missing is wrong.",
    "recall_at": "Share of queries with a right image among the first k.",
    "mean_position": "Mean over queries of the rank of the first right image, 101 where there is none.",
    "median_position": "The median of the same.",
}


@dataclass(frozen=True)
class Retrieval:
    """The metrics of a retrieval submission, as defined in `DEFINITIONS`."""

    queries: int
    answered: int
    map_at_100: float
    map_of_usage: dict[str, float]
    precision_at: dict[int, float]
    recall_at: dict[int, float]
    mean_position: float
    median_position: float


def score_retrieval(submission: Place, truth: Place) -> Retrieval:
    """Measure a submission to the retrieval task against its solution CSV `truth`.

    Raises `LandmarksError` that names the line of a cell that holds no image ids, a query that is answered twice, or
    one that is not in the solution.
    """
    solution = read_checked(SOLUTION, Path(truth))
    require_unique_ids(solution["image_id"].to_list())
    usage = dict(solution.select("image_id", "Usage").rows())
    relevant: dict[str, frozenset[str]] = {
        query: frozenset(images.split()) for query, images, used in solution.rows() if used != "Ignored"
    }
    table = read_checked(SUBMISSION, Path(submission))
    require_unique_ids(table["image_id"].to_list())
    extra = [query for query in table["image_id"] if query not in usage]
    if extra:
        raise LandmarksError(f"{len(extra)} queries of the submission are not in the solution", received=extra[0])
    found = {query: (images or "").split() for query, images in table.rows() if query in relevant}
    empty = [query for query, images in relevant.items() if not images]
    if empty:
        raise LandmarksError(f"{truth} names no image for a query that counts", received=empty[0])
    return measure_retrieval(found, relevant, usage)


def is_retrieval(truth: Place) -> bool:
    """Return whether the header of a solution is that of the retrieval task."""
    with open(truth, encoding="utf-8-sig", errors="replace") as file:
        return "images" in [name.strip().strip('"') for name in file.readline().split(",")]


def measure_retrieval(found: Ranked, relevant: Relevant, usage: Mapping[str, str]) -> Retrieval:
    """Return the metrics of `found` over the queries of `relevant`; `usage` maps each query to Public or Private."""
    precisions = {query: average_precision(found.get(query, ()), images) for query, images in relevant.items()}
    positions = np.array([first_right(found.get(query, ()), images) for query, images in relevant.items()])
    usages = sorted({usage[query] for query in relevant if query in usage})
    return Retrieval(
        queries=len(relevant),
        answered=sum(bool(found.get(query)) for query in relevant),
        map_at_100=_mean(list(precisions.values())),
        map_of_usage={
            name: _mean([precisions[query] for query in relevant if usage[query] == name]) for name in usages
        },
        precision_at={
            k: _mean([len(set(found.get(query, ())[:k]) & images) / k for query, images in relevant.items()])
            for k in CUTOFFS
        },
        recall_at={k: float((positions <= k).mean()) if len(positions) else float("nan") for k in CUTOFFS},
        mean_position=float(positions.mean()) if len(positions) else float("nan"),
        median_position=float(np.median(positions)) if len(positions) else float("nan"),
    )


def average_precision(ranked: Sequence[str], right: frozenset[str], most: int = MAX_IMAGES) -> float:
    """Return the average precision of the first `most` of `ranked` images, as published with the challenge.

    Weyand et al., CVPR 2020, equation 2. A repeated image counts as a wrong one.
    """
    total, hits = 0.0, 0
    seen: set[str] = set()
    for rank, image in enumerate(ranked[:most], 1):
        if image in right and image not in seen:
            hits += 1
            total += hits / rank
        seen.add(image)
    return total / min(len(right), most)


def first_right(ranked: Sequence[str], right: frozenset[str], most: int = MAX_IMAGES) -> int:
    """Return the rank, from 1, of the first right image among the first `most`; `most` + 1 if there is none."""
    return next((rank for rank, image in enumerate(ranked[:most], 1) if image in right), most + 1)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
