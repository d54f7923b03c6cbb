"""Metrics of nearest neighbours: recall and GAP among the gallery's images, mAP@100 among reference images.

Images are compared by the cosine of their directions. The penalised score follows the winners of the recognition
challenge (Henkel & Singer, arXiv:2010.01650): it subtracts the mean cosine to the nearest images without a landmark,
because an image that resembles those probably shows none either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.evaluation.metrics import Truth, correct_answers, global_average_precision, truth_of
from landmarks.evaluation.predictions import stored_bytes, with_truth
from landmarks.evaluation.retrieval import DEFINITIONS as RETRIEVAL
from landmarks.evaluation.retrieval import MAX_IMAGES, measure_retrieval
from landmarks.recognition.recogniser import Recogniser
from landmarks.recognition.unknown_images import UnknownImages, key_of
from landmarks.support.console import note, progress
from landmarks.support.errors import LandmarksError, naming_the_extra
from landmarks.support.places import Place
from landmarks.training.eligible_images import EligibleImages
from landmarks.training.own_data import match_dataset
from landmarks.training.run import Run

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
    "map_at_100": RETRIEVAL["map_at_100"],
    "recall_at": RETRIEVAL["recall_at"],
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
    from landmarks.recognition.directions import compared_width, directions

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
