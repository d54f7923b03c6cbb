"""Retrieval: how well images of the same landmark are found, by a submission to the challenge and by a run's features.

In the challenge's retrieval task, a submission has the columns `id,images`, the solution `id,images,Usage`; `images`
holds ids separated by spaces, best first. Queries of usage `Ignored` do not count. Images after the hundredth are
ignored, repeated ones are wrong.

A run's images are compared by the cosine of their directions. The penalised score follows the winners of the
recognition challenge (Henkel & Singer, arXiv:2010.01650): it subtracts the mean cosine to the nearest images without a
landmark, because an image that resembles those probably shows none either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.archive.csv_tables import ID, IMAGE, USAGE, CsvColumn, CsvTable, read_checked
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.shards import require_images
from landmarks.evaluation.metrics import Truth, correct_answers, global_average_precision, require_unique_ids, truth_of
from landmarks.evaluation.predictions import key_of, stored_bytes, with_truth
from landmarks.recognition.recogniser import Recogniser
from landmarks.support.console import note, progress
from landmarks.support.errors import LandmarksError, naming_the_extra
from landmarks.support.places import Place
from landmarks.training.eligible_images import EligibleImages
from landmarks.training.own_data import match_dataset
from landmarks.training.run import Run

if TYPE_CHECKING:
    from landmarks.recognition.gallery import UnknownImages

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

RETRIEVAL_DEFINITIONS = {
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
    """The metrics of a retrieval submission, as defined in `RETRIEVAL_DEFINITIONS`."""

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


# ── A run's images among their nearest neighbours: the gallery's images, or reference images ────────────────────────


RECALL_AT = (1, 5, 10)
"""Numbers of nearest images for recall."""

PENALTY_NEIGHBOURS = 10
"""Nearest unknown images whose mean cosine is subtracted."""

BATCH = 1024
"""Images embedded at a time."""

NEIGHBOUR_DEFINITIONS = {
    "neighbour_recall_at": "Share of known images that show the landmark of one of the k nearest remembered training "
    "images, by cosine.",
    "neighbour_gap": "Global average precision, on all images and on those of each usage, of the nearest remembered "
    "image's landmark, scored by its cosine.",
    "neighbour_gap_penalised": "The same, scored by that cosine minus the mean cosine to the ten nearest of the "
    "unknown images that the threshold was chosen on; an image is not compared with itself.",
    "references": "Images among which known images looked for others of the landmarks they show, by cosine.",
    "map_at_100": RETRIEVAL_DEFINITIONS["map_at_100"],
    "recall_at": RETRIEVAL_DEFINITIONS["recall_at"],
}


def neighbour_numbers(
    run: Run, eligible: EligibleImages, recogniser: Recogniser, references: Place | None = None
) -> dict[str, Any]:
    """Return the numbers of `NEIGHBOUR_DEFINITIONS` for the images `eligible` of `run`.

    Those with `neighbour` in their name need a gallery, the others a dataset `references`.
    Raises `LandmarksError` when there is neither, and when no image shares a landmark with a reference image.
    """
    images = with_truth(eligible.images, eligible.labels).sort("image_id")
    if recogniser.gallery is None and references is None:
        raise LandmarksError(
            f"{run.name} remembers no images to look for neighbours among", way_out="name some with --references DATA"
        )
    with naming_the_extra("looking for neighbours"):
        vectors = vectors_of(recogniser, eligible.dataset, images)
    numbers: dict[str, Any] = {}
    if recogniser.gallery is not None:
        cosines, places = recogniser.gallery.index.search(vectors.astype(np.float32), max(RECALL_AT))
        labels = np.where(places < 0, -1, recogniser.gallery.labels[places])
        truth, ids = truth_of(images["truth"].to_list()), images["image_id"].to_numpy()
        right = correct_answers(labels, truth)[truth.known]
        numbers["neighbour_recall_at"] = {
            str(k): float(right[:, :k].any(axis=1).mean()) for k in RECALL_AT if len(right)
        }
        usage = images["usage"].to_numpy()
        numbers["neighbour_gap"] = _gaps(ids, labels[:, 0], cosines[:, 0], truth, usage)
        unknown = recogniser.gallery.unknown
        if unknown is not None:
            itself = unknown.places_of([key_of(eligible.dataset.content_digest, id) for id in ids])
            lowered = cosines[:, 0] - penalty(vectors, unknown, itself)
            numbers["neighbour_gap_penalised"] = _gaps(ids, labels[:, 0], lowered, truth, usage)
    if references is not None:
        numbers |= _reference_numbers(
            run, eligible, recogniser, images=images, vectors=vectors, data=open_dataset(references)
        )
    return numbers


def vectors_of(recogniser: Recogniser, dataset: Dataset, images: pl.DataFrame) -> NDArray[np.float16]:
    """Return the directions `(N, C)` of `images` of `dataset`."""
    from landmarks.recognition.vectors import compared_width, directions

    require_images(dataset, images["shard"], "evaluate --retrieval")
    vectors = np.empty((len(images), compared_width(recogniser.network.width)), dtype=np.float16)
    with progress("looking at images for their neighbours", total=len(images)) as advance:
        for start in range(0, len(images), BATCH):
            batch = images.slice(start, BATCH)
            vectors[start : start + len(batch)] = directions(recogniser.embed(stored_bytes(dataset, batch)))
            advance(len(batch))
    return vectors


def penalty(
    vectors: NDArray[np.float16], unknown: UnknownImages, itself: NDArray[np.int64], nearest: int = PENALTY_NEIGHBOURS
) -> NDArray[np.float32]:
    """Return the mean cosine `(N,)` of `vectors` `(N, C)` to the `nearest` unknown images.

    `itself` `(N,)` is the position of an image among the unknown ones, which is left out; negative: not among them.
    """
    cosines = vectors.astype(np.float32) @ unknown.images.astype(np.float32).T
    rows = np.flatnonzero(itself >= 0)
    cosines[rows, itself[rows]] = -np.inf
    ranked = -np.sort(-cosines, axis=1)[:, : min(nearest, cosines.shape[1] - 1)]
    return np.asarray(ranked.mean(axis=1), dtype=np.float32)


def _gaps(
    ids: NDArray[np.object_],
    answers: NDArray[np.int64],
    scores: NDArray[np.floating],
    truth: Truth,
    usage: NDArray[np.object_],
) -> dict[str, float | None]:
    parts = {"all": np.ones(len(ids), dtype=bool)} | {name: usage == name for name in ("Public", "Private")}
    gaps = {
        name: global_average_precision(ids[part], answers[part], scores[part], truth.subset(part))
        for name, part in parts.items()
        if part.any()
    }
    return {name: value if np.isfinite(value) else None for name, value in gaps.items()}


def _reference_numbers(
    run: Run,
    eligible: EligibleImages,
    recogniser: Recogniser,
    *,
    images: pl.DataFrame,
    vectors: NDArray[np.float16],
    data: Dataset,
) -> dict[str, Any]:
    from landmarks.recognition.vectors import StoredVectors, neighbours

    table = with_truth(data.split("all"), match_dataset(run, data).labels).sort("image_id")
    if data.content_digest == eligible.dataset.content_digest:  # the query images are not references
        table = table.join(images.select("image_id"), on="image_id", how="anti", maintain_order="left")
    shows = table.select("image_id", "truth").explode("truth").drop_nulls().group_by("truth").agg("image_id")
    of_landmark = {truth: frozenset(ids) for truth, ids in shows.iter_rows()}
    shown = {
        id: frozenset().union(*(of_landmark.get(label, frozenset()) for label in truth))
        for id, truth in images.select("image_id", "truth").iter_rows()
    }
    shown = {id: ids for id, ids in shown.items() if ids}
    if not shown:
        raise LandmarksError(f"no image of {data.folder} shows a landmark that one of {eligible.dataset.folder} shows")
    queries = np.flatnonzero(images["image_id"].is_in(list(shown)).to_numpy())
    note(f"{len(queries)} images look for others of their landmarks among {len(table)} of {data.folder}")
    stored = StoredVectors((vectors_of(recogniser, data, table),))
    _, places = neighbours(vectors[queries].astype(np.float32), stored, MAX_IMAGES)
    names = table["image_id"].to_numpy()
    ranked = {
        images["image_id"][int(query)]: [names[place] for place in row[row >= 0]]
        for query, row in zip(queries, places, strict=True)
    }
    retrieval = measure_retrieval(ranked, shown, dict(images.select("image_id", "usage").rows()))
    recall_at = {str(k): value for k, value in retrieval.recall_at.items()}
    return {"references": len(table), "map_at_100": retrieval.map_at_100, "recall_at": recall_at}
