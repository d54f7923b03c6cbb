"""Copies: which images of a dataset are one another, cropped, framed, recoloured, written on, mirrored or not.

Candidates are images of which all is near some part of another, by their hashes and shapes (`sketches`); each is
laid over that part and compared (`aligning`). What agrees is a copy, or was taken from the same spot at the same time.

What was found in a dataset is kept in its `copies.parquet`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from landmarks.dataset.aligning import agreements
from landmarks.dataset.groups import NO_HASH
from landmarks.dataset.hamming import near_between
from landmarks.dataset.kept_sketches import Sketches
from landmarks.dataset.sketches import CROPS, MIRRORED, WHOLE, shapes
from landmarks.support.console import progress
from landmarks.support.tables import read_table, write_table

Integers = NDArray[np.int64]

COPIES_FILE = "copies.parquet"

COPIES: dict[str, Any] = {"image_id": pl.String, "copies": pl.List(pl.String)}
"""Columns of `copies.parquet`: every image that was searched, and those of its copies that come after it."""

RADIUS_OF_PARTS = 10
"""Bits in which the hash of a part and that of all of a copy differ at most."""

MOST_SEARCHED = {10: 11_000, 8: 47_000, 6: 400_000, 4: 2_600_000}
"""Radius → images up to which all are compared with all within it; beyond, only those of one landmark. So many make
four pairs an image that are near by chance (1.4 in ten thousand pairs within 8 bits, 4,779 real images)."""

SAME = 0.22
"""Agreement from which two images are copies. Of 4,779 real images 5,214 pairs show different landmarks and have near
hashes: the one above it is a copy, and of 1,151 with an image of anything else two banknotes of one kind are above."""

PARTS_TRIED = 3
"""Parts of one image that are tried for another, the nearest."""

MOST_SHAPED = 11_000
"""Images up to which candidates are found by the shapes of parts too, which tell more than their hashes."""

OF_SHAPE = 3
"""Candidates of an image by shape, the nearest."""

LEAST_ALIKE = 0.75
"""Cosine between shapes below which two are no candidates."""

MOST_OF_ONE = 40
"""Candidates of an image that are compared, the nearest; copies of copies find one another through others."""


@dataclass(frozen=True)
class Copies:
    """Pairs of copies among N images."""

    pairs: Integers  # (P, 2) positions i < j
    agreement: NDArray[np.float32]  # (P,)
    mirrored: NDArray[np.bool_]  # (P,)
    compared: int  # pairs that were laid over one another
    radius: int  # bits within which images of different landmarks were compared

    def named(self, ids: pl.Series) -> pl.DataFrame:
        """Return the columns of `COPIES` of the images `ids` (N,)."""
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
    sketches: Sketches, landmark: NDArray[np.integer] | None = None, *, side: NDArray[np.bool_] | None = None
) -> Copies:
    """Return the copies among images with these sketches; `landmark` (N,) is what each shows, -1 for nothing known.

    Of one landmark all are compared; of all others those whose hashes are nearer, where there are many (see
    `MOST_SEARCHED`). With `side` (N,) only images on different sides are compared.
    """
    # Products are small and many: threads that share one only wait for each other.
    with threadpool_limits(1, user_api="blas"):
        count = len(sketches.whole)
        across = next((radius for radius, most in MOST_SEARCHED.items() if count <= most), min(MOST_SEARCHED) - 2)
        owner = np.repeat(np.arange(count), sketches.counts)
        hits = list(_near_parts(sketches, np.arange(count), owner, across))
        if count <= MOST_SHAPED:
            hits.extend(_alike_parts(sketches, side))
        if landmark is not None and across < RADIUS_OF_PARTS:
            order = np.argsort(landmark, kind="stable")
            for members in np.split(order, np.flatnonzero(np.diff(landmark[order])) + 1):
                if landmark[members[0]] >= 0 and len(members) > 1:
                    hits.extend(_near_parts(sketches, members, owner, RADIUS_OF_PARTS))
        found = np.concatenate(hits) if hits else np.zeros((0, 4), np.int64)
        candidates = _nearest(found if side is None else found[side[found[:, 1]] != side[found[:, 3]]])
        return _verified(sketches, candidates, owner, across)


def _near_parts(sketches: Sketches, members: Integers, owner: Integers, radius: int) -> Iterator[Integers]:
    """Yield rows (part, image, bits, owner of the part): parts of some images near all of another of them."""
    asked = np.arange(len(sketches.parts)) if len(members) == len(sketches.whole) else sketches.parts_of(members)
    asked = asked[sketches.parts[asked] != NO_HASH]
    keys = members[sketches.whole[members] != NO_HASH]
    if not len(asked) or not len(keys):
        return
    for query, met in near_between(sketches.parts[asked], sketches.whole[keys], radius):
        part, image = asked[query], keys[met]
        other = owner[part] != image
        part, image = part[other], image[other]
        bits = np.bitwise_count(sketches.parts[part] ^ sketches.whole[image]).astype(np.int64)
        yield np.stack([part, image, bits, owner[part]], axis=1)


def _alike_parts(sketches: Sketches, side: NDArray[np.bool_] | None) -> Iterator[Integers]:
    """Yield rows as `_near_parts` does: of each image the `OF_SHAPE` others of which some part is most like all of it.

    The bits are those that hashes at their angle are expected to differ in.
    """
    begins = np.cumsum(sketches.counts) - sketches.counts
    shown = np.flatnonzero(sketches.whole != NO_HASH)
    whole = np.concatenate([shapes(sketches.pixels[i], _ALL) for i in shown] or [np.zeros((0, 64), np.float32)])
    nearest, cosine = np.zeros((OF_SHAPE, len(shown)), np.int64), np.full((OF_SHAPE, len(shown)), -1, np.float32)
    kept = []
    for place, i in enumerate(shown):
        parts = shapes(sketches.pixels[i], sketches.corners[begins[i] : begins[i] + sketches.counts[i]])
        kept.append(parts.astype(np.float16))
        alike = (parts @ whole.T).max(axis=0)
        alike[place] = -1
        if side is not None:
            alike[side[shown] == side[i]] = -1
        rank = cosine.argmin(axis=0)
        better = np.flatnonzero(alike > cosine.min(axis=0))
        nearest[rank[better], better], cosine[rank[better], better] = place, alike[better]
    for image, owner in np.argwhere(cosine.T >= LEAST_ALIKE):
        place = nearest[owner, image]
        cosines = kept[place].astype(np.float32) @ whole[image]
        tried = np.argsort(-cosines, kind="stable")[:PARTS_TRIED]
        bits = 64 / np.pi * np.arccos(np.clip(cosines[tried], -1, 1))
        row = [begins[shown[place]] + tried, np.full(len(tried), shown[image]), bits.astype(np.int64)]
        yield np.stack([*row, np.full(len(tried), shown[place])], axis=1)


_ALL = np.array([WHOLE])


def _nearest(hits: Integers) -> Integers:
    """Return the `PARTS_TRIED` nearest hits of each pair either way, of each image only the nearest `MOST_OF_ONE`."""
    table = pl.DataFrame(hits, schema=["part", "image", "bits", "owner"], orient="row")
    table = table.group_by("part", "image", "owner").agg(pl.col("bits").min())
    table = table.with_columns(low=pl.min_horizontal("image", "owner"), high=pl.max_horizontal("image", "owner"))
    table = table.sort("bits", "low", "high", "part", "image")
    table = table.group_by("image", "owner", maintain_order=True).head(PARTS_TRIED)
    pairs = table.group_by("low", "high", maintain_order=True).agg(pl.col("bits").first()).sort("bits", "low", "high")
    rank = [pl.int_range(pl.len()).over(side) < MOST_OF_ONE for side in ("low", "high")]
    kept = pairs.filter(rank[0] | rank[1]).select("low", "high")
    return (
        table.join(kept, on=["low", "high"], how="semi", maintain_order="left")
        .select("part", "image", "owner", "low", "high")
        .to_numpy()
    )


def _verified(sketches: Sketches, candidates: Integers, owner: Integers, radius: int) -> Copies:
    begins = np.cumsum(sketches.counts) - sketches.counts
    part, image, of_part = candidates[:, 0], candidates[:, 1], candidates[:, 2]
    number = part - begins[of_part]
    turned = (number >= len(CROPS)) & (number < len(CROPS) + len(MIRRORED))
    agreement = np.zeros(len(part), np.float32)
    step = 2048
    with _told("comparing candidates", len(part)) as advance:
        for start in range(0, len(part), step):
            some = slice(start, start + step)
            first = np.array(sketches.pixels[of_part[some]])
            first[turned[some]] = first[turned[some]][:, :, ::-1]
            agreement[some], _ = agreements(first, sketches.pixels[image[some]], sketches.corners[part[some]])
            advance(len(first))
    table = pl.DataFrame({"low": candidates[:, 3], "high": candidates[:, 4], "agreement": agreement, "turned": turned})
    best = table.sort("agreement", descending=True).unique(["low", "high"], keep="first", maintain_order=True)
    same = best.filter(pl.col("agreement") >= SAME).sort("low", "high")
    return Copies(
        pairs=same.select("low", "high").to_numpy().astype(np.int64).reshape(-1, 2),
        agreement=same["agreement"].to_numpy(),
        mirrored=same["turned"].to_numpy(),
        compared=len(best),
        radius=radius,
    )


@contextlib.contextmanager
def _told(what: str, total: int) -> Iterator[Any]:
    """A bar where the work is long enough for one."""
    if total < 20_000:
        yield lambda steps: None
        return
    with progress(what, total) as advance:
        yield advance


# ── Copies that were found, kept with the dataset ───────────────────────────────────────────────────────────────────


def write_copies(folder: Path, table: pl.DataFrame, **metadata: object) -> None:
    """Write `copies.parquet` (columns of `COPIES`). The caller holds the folder."""
    write_table(folder / COPIES_FILE, table, **metadata)


def stored_copies(folder: Path) -> pl.DataFrame | None:
    """Return the copies found before in a dataset (columns of `COPIES`), None where nobody looked."""
    path = folder / COPIES_FILE
    return read_table(path, COPIES) if path.is_file() else None


def placed(table: pl.DataFrame, ids: pl.Series) -> tuple[Integers, NDArray[np.bool_]]:
    """Return the pairs of a table of `COPIES` as positions (P, 2) in `ids`, i < j, and which of `ids` it knows."""
    at = pl.DataFrame({"image_id": ids}).with_row_index("at").cast({"at": pl.Int64})
    long = table.explode("copies", empty_as_null=True).drop_nulls()
    found = long.join(at, on="image_id").join(at, left_on="copies", right_on="image_id", suffix="_of_copy")
    pairs = found.select("at", "at_of_copy").to_numpy().astype(np.int64).reshape(-1, 2)
    return np.unique(np.sort(pairs, axis=1), axis=0), ids.is_in(table["image_id"].implode()).to_numpy()
