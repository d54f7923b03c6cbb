"""The verb `search`: finds the indexed images that look most like given ones, and verifies them point by point.

Verification is geometric. SIFT keypoints (Lowe, IJCV 2004) are matched where the nearest one is clearly nearer than the
second nearest. Of these matches, those count that follow one homography according to MAGSAC++ (Barath et al., CVPR
2020).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.images import decode, encode
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.naming import with_digest
from landmarks.dataset.shards import ImageReader
from landmarks.dataset.sources import find_images
from landmarks.recognition.indexing import Index, open_index, run_of
from landmarks.recognition.recogniser import load
from landmarks.recognition.vectors import directions, neighbours
from landmarks.support.console import progress
from landmarks.support.errors import LandmarksError, UsageError, naming_the_extra
from landmarks.support.files import refuse_foreign, write_record, written_whole
from landmarks.support.places import Place, in_shell
from landmarks.support.systems import readable
from landmarks.training.own_data import recorded_locations

VERIFIED = 10
"""Most similar images that are compared point by point."""

CONVINCING = 8
"""Matching points from which on an image is ranked before those that merely look alike."""

FOUND = {
    "path": pl.String,  # with \x.. for bytes that are not UTF-8
    "rank": pl.UInt32,  # from 1; null where the image could not be searched for
    "image_id": pl.String,
    "landmark_id": pl.Int64,
    "name": pl.String,
    "cosine": pl.Float32,
    "inliers": pl.UInt32,  # matching points, see `match_features`; null: not compared
    "data": pl.String,
    "problem": pl.String,
}
"""Columns of the table that `search` returns, images in the order they were named, nearest first."""


def search(
    index: Place,
    images: Place | Sequence[Place],
    *,
    top: int = 10,
    verify: bool = False,
    drawings: Place | None = None,
    device: str = "auto",
) -> pl.DataFrame:
    """Return the `top` images of `index` that look most like each of `images` (files and folders), as `FOUND`.

    With `verify` the best `VERIFIED` are compared point by point, and those with more matching points come first.
    `drawings` is a folder for a drawing of each image beside its best match, with lines between matching points. An
    image that cannot be decoded has one row that says why. Raises `LandmarksError` when the index is empty, or its run
    is gone.
    """
    if top < 1:
        raise UsageError("that many images cannot be found", received=top, expected="1 or more")
    if drawings is not None and not verify:
        raise UsageError("drawings show points that agree", received="no --verify", way_out="add --verify")
    opened = open_index(index)
    if opened.whitening is None or not len(opened):
        raise LandmarksError(
            f"{index} holds no images", way_out=f"add some with: landmarks index DATA -o {in_shell(index)}"
        )
    recogniser = load(run_of(opened), device=device)
    paths = find_images(images)
    drawing_of = {} if drawings is None else _drawing_paths(Path(drawings), paths)
    reader = _IndexedImages(opened)
    rows: list[tuple[Any, ...]] = []
    with progress("searching", total=len(paths)) as advance:
        for path in paths:
            shown_path = readable(path)
            try:
                vector = opened.whitening.apply(directions(recogniser.embed(path)))
            except LandmarksError as error:
                rows.append((shown_path, *[None] * 7, str(error)))
            else:
                cosines, places = nearest_images(opened, vector, top)
                kept = places[0] >= 0
                near = opened.images[places[0][kept]]
                near = near.with_columns(
                    cosine=pl.Series(cosines[0][kept].clip(-1, 1)), inliers=pl.lit(None, pl.UInt32)
                )
                if verify:
                    near = _verified(near, path, reader, drawing_of.get(path))
                for rank, values in enumerate(near.select(list(FOUND)[2:-1]).iter_rows(), 1):
                    rows.append((shown_path, rank, *values, None))
            advance(1)
    return pl.DataFrame(rows, schema=FOUND, orient="row")


DRAWINGS = "drawings.json"
"""Marks a folder of drawings; other folders are not written to."""


def _drawing_paths(folder: Path, paths: Sequence[Path]) -> dict[Path, Path]:
    """Return the path of each image's drawing; images with the same name get different ones."""
    refuse_foreign(folder, (DRAWINGS,), "drawings")
    write_record(folder / DRAWINGS, {}, verb="search")
    counts = Counter(path.stem for path in paths)
    names = {path: path.stem if counts[path.stem] == 1 else with_digest(path.stem, str(path)) for path in paths}
    return {path: folder / f"{name}.jpg" for path, name in names.items()}


@dataclass(frozen=True)
class _IndexedImages:
    """Reads indexed images from their datasets, each of which is opened once."""

    index: Index
    opened: dict[str, tuple[ImageReader, dict[str, tuple[str, int, int]]]] = field(default_factory=dict)

    def pixels(self, data: str, image_id: str) -> NDArray[np.uint8]:
        if data not in self.opened:
            dataset = _dataset_of(self.index, data)
            table = dataset.images.select("image_id", "shard", "offset", "length")
            self.opened[data] = ImageReader(dataset), {row[0]: row[1:] for row in table.iter_rows()}
        reader, places = self.opened[data]
        return decode(reader.read(*places[image_id]))


def _dataset_of(index: Index, data: str) -> Dataset:
    """Return the dataset indexed as `data`, beside the index or at its recorded place; raise if it is gone."""
    location = (index.record.get("data") or {}).get(data) or {"folder": data}
    for place in recorded_locations(location, relative_to=index.folder):
        if (place / "dataset.json").is_file():
            return open_dataset(place)
    raise LandmarksError(
        f"the dataset {data}, whose images are to be compared, is not there any more",
        way_out="bring it back, or leave out --verify",
    )


def _verified(near: pl.DataFrame, path: Path, reader: _IndexedImages, drawing: Path | None) -> pl.DataFrame:
    """Return `near` with `inliers` of its first `VERIFIED` images and the image at `path`, most inliers first."""
    with naming_the_extra("comparing images point by point"):
        features = local_features(decode(path.read_bytes()))
    counts: list[int | None] = [None] * len(near)
    best: tuple[Any, Any] | None = None
    for number, row in enumerate(near.head(VERIFIED).iter_rows(named=True)):
        other = local_features(reader.pixels(row["data"], row["image_id"]))
        match = match_features(features, other)
        counts[number] = len(match)
        if best is None or len(match) > len(best[1]):
            best = (other, match)
    if drawing is not None and best is not None:
        with written_whole(drawing, tidy=True) as aside:
            aside.write_bytes(encode(draw_matches(features, *best)))
    table = near.with_columns(inliers=pl.Series(counts, dtype=pl.UInt32))
    first = pl.when(pl.col("inliers") >= CONVINCING).then("inliers").otherwise(0)
    return table.sort(first, descending=True, maintain_order=True)


def nearest_images(
    index: Index, vectors: NDArray[np.float32], top: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return cosines and rows `(Q, top)` of the images of an index nearest to `vectors` `(Q, D)`."""
    removed = index.removed["row"].to_numpy()
    return neighbours(vectors, index.vectors, top, index=index.codes, removed=removed)


# ── Geometric verification: do the local features of two images match under one homography? ─────────────────────────


LONGEST = 480
"""Longer side in pixels at which images are compared."""

KEYPOINTS = 1000
"""Most keypoints kept per image, the strongest."""

RATIO = 0.8
"""Largest ratio of the distances to the best and the second best match (Lowe 2004, §7.1)."""

PIXELS = 4.0
"""Largest reprojection error of a match that follows the homography."""

LEAST_MATCHES = 4
"""Fewest matches that determine a homography."""


@dataclass(frozen=True)
class LocalFeatures:
    """The keypoints of an image, and the image at the size at which they were found."""

    image: NDArray[np.uint8]  # (H, W, 3), at most `LONGEST` on its longer side
    points: NDArray[np.float32]  # (n, 2), x and y
    descriptors: NDArray[np.float32]  # (n, 128), RootSIFT, of length 1


@dataclass(frozen=True)
class Match:
    """The m matching points of two images that follow one homography."""

    first: NDArray[np.float32]  # (m, 2)
    second: NDArray[np.float32]  # (m, 2)

    def __len__(self) -> int:
        return len(self.first)


def local_features(image: NDArray[np.uint8]) -> LocalFeatures:
    """Return the keypoints of an RGB image (H, W, 3)."""
    import cv2

    scale = min(1.0, LONGEST / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small: NDArray[np.uint8] = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    sift: Any = cv2.SIFT_create(nfeatures=KEYPOINTS)  # type: ignore[attr-defined]
    keypoints, descriptors = sift.detectAndCompute(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), None)
    if descriptors is None:
        return LocalFeatures(small, np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    roots = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-7))
    return LocalFeatures(small, np.array([keypoint.pt for keypoint in keypoints], np.float32), roots.astype(np.float32))


def match_features(first: LocalFeatures, second: LocalFeatures) -> Match:
    """Return the matching points of two images that follow one homography; none if too few match."""
    import cv2

    nothing = Match(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32))
    if len(first.points) < 2 or len(second.points) < 2:
        return nothing
    similarity = first.descriptors @ second.descriptors.T
    two = np.argpartition(-similarity, 1, axis=1)[:, :2]
    near = np.take_along_axis(similarity, two, axis=1)
    best = two[np.arange(len(two)), near.argmax(axis=1)]
    distances = np.sqrt(np.maximum(2 - 2 * np.sort(near, axis=1)[:, ::-1], 0))
    kept = np.flatnonzero(distances[:, 0] < RATIO * distances[:, 1])
    kept = kept[similarity[:, best[kept]].argmax(axis=0) == kept]  # mutual nearest neighbours
    if len(kept) < LEAST_MATCHES:
        return nothing
    source, target = first.points[kept], second.points[best[kept]]
    cv2.setRNGSeed(0)
    _, inside = cv2.findHomography(source, target, cv2.USAC_MAGSAC, PIXELS, maxIters=2000, confidence=0.999)
    if inside is None:
        return nothing
    chosen = inside.ravel().astype(bool)
    return Match(source[chosen], target[chosen]) if chosen.sum() >= LEAST_MATCHES else nothing


def draw_matches(first: LocalFeatures, second: LocalFeatures, match: Match) -> NDArray[np.uint8]:
    """Return both images side by side, RGB (H, W, 3), with a line between each pair of matching points."""
    import cv2

    height = max(len(first.image), len(second.image))
    left, gap = first.image.shape[1], 8
    canvas = np.full((height, left + gap + second.image.shape[1], 3), 255, dtype=np.uint8)
    canvas[: len(first.image), :left] = first.image
    canvas[: len(second.image), left + gap :] = second.image
    for number, (point, partner) in enumerate(zip(match.first, match.second, strict=True)):
        hue = np.array([[[179 * number // max(len(match), 1), 220, 255]]], dtype=np.uint8)
        colour = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].tolist()
        start = (round(float(point[0])), round(float(point[1])))
        end = (round(float(partner[0])) + left + gap, round(float(partner[1])))
        cv2.line(canvas, start, end, colour, 1, cv2.LINE_AA)
        cv2.circle(canvas, start, 3, colour, 1, cv2.LINE_AA)
        cv2.circle(canvas, end, 3, colour, 1, cv2.LINE_AA)
    return canvas
