"""Copies: images of a dataset that are the same, even if cropped, framed, recoloured, lettered or mirrored.

A candidate is an image that as a whole is near some part of another, by their hashes and shapes (`sketches`). It is
aligned with that part and compared (`aligning`). If both agree, it is a copy, or was taken from the same spot at the
same time.

The copies found in a dataset are kept in its `copies.parquet`, those between two sets of images in the user's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from landmarks.dataset.aligning import agreements
from landmarks.dataset.groups import NO_HASH, near_between
from landmarks.dataset.manifest import Dataset
from landmarks.dataset.sketches import CROPS, MIRRORED, WHOLE, Sketches, kept_sketches, shape_vectors
from landmarks.support.console import note, plural, progress
from landmarks.support.errors import LandmarksError
from landmarks.support.files import cache_folder
from landmarks.support.tables import read_table, write_cached_table, write_table

Integers = NDArray[np.int64]

COPIES_FILE = "copies.parquet"

COPIES: dict[str, Any] = {"image_id": pl.String, "copies": pl.List(pl.String)}
"""Columns of `copies.parquet`: every image that was searched, and its copies among those that come after it."""

RADIUS_OF_PARTS = 10
"""Most bits in which the hash of a part and that of a whole copy differ."""

MOST_SEARCHED = {10: 11_000, 8: 47_000, 6: 400_000, 4: 2_600_000}
"""Radius in bits → number of images up to which hashes of all images are compared within it. Images of one landmark are
always compared within the largest radius. At these numbers an image has about four pairs that are near by chance (1.4
in ten thousand pairs are within 8 bits, 4,779 real images)."""

SAME = 0.35
"""Least agreement of two copies. Of 13,780 pairs of real images that show different landmarks, those with near hashes
or shapes, two are above, and both are copies. Of 4,348 pairs with an image of anything else, none is. Of one landmark,
images that were taken from the same spot at other times are mostly below."""

PARTS_TRIED = 3
"""Parts of an image, the nearest ones, that are compared with another image."""

MOST_SHAPED = 11_000
"""Number of images up to which candidates are also found by the shapes of parts, which say more than their hashes."""

SHAPE_CANDIDATES = 3
"""Candidates of an image by shape, the nearest ones."""

MIN_COSINE = 0.75
"""Least cosine between the shapes of candidates."""

MOST_CANDIDATES = 40
"""Candidates of an image, the nearest ones, that are compared. Copies of copies are also joined through others."""


@dataclass(frozen=True)
class Copies:
    """Pairs of copies among N images."""

    pairs: Integers  # (P, 2) positions i < j
    agreement: NDArray[np.float32]  # (P,)
    mirrored: NDArray[np.bool_]  # (P,)
    compared: int  # number of pairs that were aligned and compared
    radius: int  # bits within which hashes of images of different landmarks were compared

    def named(self, ids: pl.Series) -> pl.DataFrame:
        """Return the table of the copies (columns of `COPIES`), given the ids (N,) of the images."""
        found = (
            pl.DataFrame({"at": self.pairs[:, 0], "copies": ids.gather(self.pairs[:, 1])})
            .group_by("at")
            .agg(pl.col("copies").sort())
        )
        table = pl.DataFrame({"image_id": ids}).with_row_index("at").cast({"at": pl.Int64})
        return table.join(found, on="at", how="left", maintain_order="left").select(
            "image_id", pl.col("copies").fill_null(pl.lit([], dtype=pl.List(pl.String)))
        )


def find_copies(
    sketches: Sketches, landmark: NDArray[np.integer] | None = None, *, side: NDArray[np.integer] | None = None
) -> Copies:
    """Return the copies among images with these sketches.

    `landmark` (N,) is the landmark of each image, -1 for nothing known. Hashes of one landmark are compared within
    `RADIUS_OF_PARTS`, others within a radius that depends on the number of images (see `MOST_SEARCHED`). With `side`
    (N,), only images on different sides are compared. The largest side should be 0: its images are set aside at once.
    """
    # The products are small and many: threads that share one only wait for each other.
    with threadpool_limits(1, user_api="blas"):
        count = len(sketches.whole)
        across = next((radius for radius, most in MOST_SEARCHED.items() if count <= most), min(MOST_SEARCHED) - 2)
        owner = np.repeat(np.arange(count), sketches.counts)
        side = np.arange(count) if side is None else side
        hits = list(_near_parts(sketches, np.arange(count), owner, across, side))
        if count <= MOST_SHAPED:
            hits.extend(_alike_parts(sketches, side))
        if landmark is not None and across < RADIUS_OF_PARTS:
            order = np.argsort(landmark, kind="stable")
            for members in np.split(order, np.flatnonzero(np.diff(landmark[order])) + 1):
                if landmark[members[0]] >= 0 and len(members) > 1 and side[members].any():
                    hits.extend(_near_parts(sketches, members, owner, RADIUS_OF_PARTS, side))
        found = np.concatenate(hits) if hits else np.zeros((0, 4), np.int64)
        return _verified(sketches, _nearest(found), owner, across)


def _near_parts(
    sketches: Sketches, members: Integers, owner: Integers, radius: int, side: NDArray[np.integer]
) -> Iterator[Integers]:
    """Yield rows (part, image, bits, owner of the part) of parts whose hash is near that of a whole image.

    Only the images `members` on different sides are compared.
    """
    parts = np.arange(len(sketches.parts)) if len(members) == len(sketches.whole) else sketches.parts_of(members)
    parts = parts[sketches.parts[parts] != NO_HASH]
    images = members[sketches.whole[members] != NO_HASH]
    on_zero = side[owner[parts]] == 0
    for some, others in ((parts[~on_zero], images), (parts[on_zero], images[side[images] != 0])):
        if not len(some) or not len(others):
            continue
        for query, match in near_between(sketches.parts[some], sketches.whole[others], radius):
            part, image = some[query], others[match]
            apart = side[owner[part]] != side[image]
            part, image = part[apart], image[apart]
            bits = np.bitwise_count(sketches.parts[part] ^ sketches.whole[image]).astype(np.int64)
            yield np.stack([part, image, bits, owner[part]], axis=1)


def _alike_parts(sketches: Sketches, side: NDArray[np.integer]) -> Iterator[Integers]:
    """Yield rows as `_near_parts` does, for the `SHAPE_CANDIDATES` other images with the parts most like each image.

    The bits are those in which hashes at the angle of the shapes are expected to differ.
    """
    begins = np.cumsum(sketches.counts) - sketches.counts
    shown = np.flatnonzero(sketches.whole != NO_HASH)
    whole = np.concatenate(
        [shape_vectors(sketches.pixels[i], _WHOLE) for i in shown] or [np.zeros((0, 64), np.float32)]
    )
    nearest, cosine = (
        np.zeros((SHAPE_CANDIDATES, len(shown)), np.int64),
        np.full((SHAPE_CANDIDATES, len(shown)), -1, np.float32),
    )
    kept = []
    for place, i in enumerate(shown):
        parts = shape_vectors(sketches.pixels[i], sketches.corners[begins[i] : begins[i] + sketches.counts[i]])
        kept.append(parts.astype(np.float16))
        others = np.flatnonzero(side[shown] != side[i])
        alike = (parts @ whole[others].T).max(axis=0)
        rank = cosine[:, others].argmin(axis=0)
        better = alike > cosine[rank, others]
        rank, others = rank[better], others[better]
        nearest[rank, others], cosine[rank, others] = place, alike[better]
    for image, owner in np.argwhere(cosine.T >= MIN_COSINE):
        place = nearest[owner, image]
        cosines = kept[place].astype(np.float32) @ whole[image]
        tried = np.argsort(-cosines, kind="stable")[:PARTS_TRIED]
        bits = 64 / np.pi * np.arccos(np.clip(cosines[tried], -1, 1))
        row = [begins[shown[place]] + tried, np.full(len(tried), shown[image]), bits.astype(np.int64)]
        yield np.stack([*row, np.full(len(tried), shown[place])], axis=1)


_WHOLE = np.array([WHOLE])


def _nearest(hits: Integers) -> Integers:
    """Return the nearest hits: `PARTS_TRIED` of each pair in either direction, for `MOST_CANDIDATES` of each image.

    Rows are (part, image, owner of the part, lower position, higher position).
    """
    table = pl.DataFrame(hits, schema=["part", "image", "bits", "owner"], orient="row")
    table = table.group_by("part", "image", "owner").agg(pl.col("bits").min())
    table = table.with_columns(low=pl.min_horizontal("image", "owner"), high=pl.max_horizontal("image", "owner"))
    table = table.sort("bits", "low", "high", "part", "image")
    table = table.group_by("image", "owner", maintain_order=True).head(PARTS_TRIED)
    pairs = table.group_by("low", "high", maintain_order=True).agg(pl.col("bits").first()).sort("bits", "low", "high")
    rank = [pl.int_range(pl.len()).over(side) < MOST_CANDIDATES for side in ("low", "high")]
    kept = pairs.filter(rank[0] | rank[1]).select("low", "high")
    return (
        table.join(kept, on=["low", "high"], how="semi", maintain_order="left")
        .select("part", "image", "owner", "low", "high")
        .to_numpy()
    )


def _verified(sketches: Sketches, candidates: Integers, owner: Integers, radius: int) -> Copies:
    begins = np.cumsum(sketches.counts) - sketches.counts
    part, image, part_owner = candidates[:, 0], candidates[:, 1], candidates[:, 2]
    number = part - begins[part_owner]
    mirrored = (number >= len(CROPS)) & (number < len(CROPS) + len(MIRRORED))
    agreement = np.zeros(len(part), np.float32)
    step = 2048
    with _progress_if_long("comparing candidates", len(part)) as advance:
        for start in range(0, len(part), step):
            some = slice(start, start + step)
            first = np.array(sketches.pixels[part_owner[some]])
            first[mirrored[some]] = first[mirrored[some]][:, :, ::-1]
            agreement[some], _ = agreements(first, sketches.pixels[image[some]], sketches.corners[part[some]])
            advance(len(first))
    table = pl.DataFrame(
        {"low": candidates[:, 3], "high": candidates[:, 4], "agreement": agreement, "mirrored": mirrored}
    )
    best = table.sort("agreement", descending=True).unique(["low", "high"], keep="first", maintain_order=True)
    same = best.filter(pl.col("agreement") >= SAME).sort("low", "high")
    return Copies(
        pairs=same.select("low", "high").to_numpy().astype(np.int64).reshape(-1, 2),
        agreement=same["agreement"].to_numpy(),
        mirrored=same["mirrored"].to_numpy(),
        compared=len(best),
        radius=radius,
    )


@contextlib.contextmanager
def _progress_if_long(what: str, total: int) -> Iterator[Any]:
    """Show a bar of progress if the work is long enough for one."""
    if total < 20_000:
        yield lambda steps: None
        return
    with progress(what, total) as advance:
        yield advance


# ── The copies between two sets of images, kept in the user's cache ─────────────────────────────────────────────────

KEPT_FROM = 1_000
"""Number of images from which the copies are kept: fewer are compared in a few seconds."""

COMPARISON_FORM = 4
"""Changes whenever the same sketches could give other copies."""

_PAIRS: dict[str, Any] = {"first": pl.Int64, "second": pl.Int64}


def copies_between(first: Sketches, second: Sketches) -> Integers:
    """Return the pairs (P, 2) of an image of `first` and its copy in `second`, as positions in the two.

    They are kept under a digest of all sketches. The cache is the user's own and not the dataset's, which may come from
    a stranger who has reasons to hide copies.
    """
    both, count = first.joined(second), len(first.whole)
    kept = _kept_pairs_file(both, count) if len(both.whole) >= KEPT_FROM else None
    if kept is not None and kept.is_file():
        with contextlib.suppress(LandmarksError):  # damaged: they are looked for again
            pairs: Integers = read_table(kept, _PAIRS).to_numpy().astype(np.int64).reshape(-1, 2)
            if ((pairs >= 0) & (pairs < [count, len(both.whole) - count])).all():
                return pairs
    pairs = find_copies(both, side=(np.arange(len(both.whole)) < count).astype(np.int64)).pairs - np.array([0, count])
    if kept is not None:
        with contextlib.suppress(LandmarksError):  # a full disk costs time only
            write_cached_table(kept, pl.DataFrame(pairs, schema=_PAIRS, orient="row"))
    return pairs


def _kept_pairs_file(sketches: Sketches, count: int) -> Path | None:
    """Return where the copies between the first `count` images and the others are kept; None if nothing can be kept."""
    digest = hashlib.blake2b(f"{COMPARISON_FORM} {count}".encode(), digest_size=16)
    for field in fields(sketches):
        digest.update(np.ascontiguousarray(getattr(sketches, field.name)).data)
    try:
        return cache_folder() / "copies" / f"between-{digest.hexdigest()}.parquet"
    except LandmarksError:
        return None


# ── The copies of a dataset, kept in its folder ─────────────────────────────────────────────────────────────────────


def write_copies(folder: Path, table: pl.DataFrame, **metadata: object) -> None:
    """Write `copies.parquet` (columns of `COPIES`). The caller holds the folder."""
    write_table(folder / COPIES_FILE, table, **metadata)


def copies_with_added(copies: pl.DataFrame, dataset: Dataset, images: pl.DataFrame) -> pl.DataFrame:
    """Return the copies among `images` of a dataset, given those among some of them; both have columns of `COPIES`.

    Pairs with one of the other images are looked for. If none of these can be looked at, `copies` is returned.
    """
    added = ~images["image_id"].is_in(copies["image_id"].implode())
    sketches = kept_sketches(dataset, images) if added.any() else None
    if sketches is None or not sketches.counts[added.to_numpy()].any():
        return copies
    side = np.where(added, np.arange(1, len(images) + 1), 0)  # each added image is on a side of its own
    found = find_copies(sketches, images["landmark_id"].fill_null(-1).to_numpy(), side=side)
    note(f"{plural(len(found.pairs), 'pair')} of copies with {plural(int(added.sum()), 'added image')}")
    return united_copies(copies, found.named(images["image_id"]))


def united_copies(*tables: pl.DataFrame) -> pl.DataFrame:
    """Return one table (columns of `COPIES`) of the copies in several."""
    united = pl.concat(tables).explode("copies", empty_as_null=True).unique()
    return united.group_by("image_id").agg(pl.col("copies").drop_nulls().sort()).sort("image_id")


def read_copies(folder: Path) -> pl.DataFrame | None:
    """Return the copies in a dataset's folder (columns of `COPIES`); None if none were searched for."""
    path = folder / COPIES_FILE
    return read_table(path, COPIES) if path.is_file() else None


def copy_positions(table: pl.DataFrame, ids: pl.Series) -> tuple[Integers, NDArray[np.bool_]]:
    """Return the pairs in a table of copies as positions (P, 2) in `ids`, i < j, and which of `ids` (N,) it holds."""
    at = pl.DataFrame({"image_id": ids}).with_row_index("at").cast({"at": pl.Int64})
    long = table.explode("copies", empty_as_null=True).drop_nulls()
    found = long.join(at, on="image_id").join(at, left_on="copies", right_on="image_id", suffix="_of_copy")
    pairs = found.select("at", "at_of_copy").to_numpy().astype(np.int64).reshape(-1, 2)
    return np.unique(np.sort(pairs, axis=1), axis=0), ids.is_in(table["image_id"].implode()).to_numpy()
