"""Choose images of a mirror by a rule, and write which they are."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.archive.csv_tables import (
    ATTRIBUTION,
    CATEGORY,
    CLEAN,
    HIERARCHY,
    ID,
    SOLUTION,
    TRAIN,
    CsvTable,
    collect,
    lines_of,
    read_checked,
    scan,
    strange_row,
)
from landmarks.archive.landmark_names import holds, with_names, with_told
from landmarks.archive.local_csvs import Csvs, bytes_of_one
from landmarks.archive.mirror import Mirror, open_mirror
from landmarks.archive.rules import DATA, Rule, drawn, eligible, landmark_ids, refuse_unknown_supercategory
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.support.console import note, plural
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.places import Place
from landmarks.support.seeds import generator
from landmarks.support.tables import write_lone_table

SELECTION: dict[str, Any] = {
    "image_id": pl.String,
    "landmark_id": pl.Int64,  # null: shows nothing known
    "usage": pl.String,  # Public or Private in the recognition test set, else null
    "landmarks": pl.List(pl.Int64),  # all known landmarks shown, in the test set only
    "name": pl.String,  # of the landmark
    "category": pl.String,
    "author": pl.String,
    "license": pl.String,
    "title": pl.String,
}
"""Columns of a selection, sorted by id; what the archive's files do not tell is null."""


@dataclass(frozen=True)
class Selection:
    """What `select` chose: the images (columns `SELECTION`), their landmarks by rank, and what they weigh.

    It may be named wherever its file may.
    """

    path: Path
    images: pl.DataFrame
    landmarks: pl.DataFrame  # landmark_id, name, images
    rule: str
    expected_bytes: int

    def __repr__(self) -> str:
        what = f"{plural(len(self.images), 'image')} of {plural(len(self.landmarks), 'landmark')}"
        return f"Selection({self.path}: {what}; {self.rule})"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self.landmarks._repr_html_()}"

    def __fspath__(self) -> str:
        return str(self.path)


def select(
    mirror: Mirror | Place,
    out: Place,
    *,
    set: str = "train",
    skip: int = 0,
    take: int | None = None,
    choose: int | None = None,
    seed: int = 0,
    min_images: int | None = None,
    max_images: int | None = None,
    landmarks: Place | int | Sequence[int] | None = None,
    exclude: Place | int | Sequence[int] | None = None,
    name: str | None = None,
    supercategory: str | None = None,
    kind: str | None = None,
    license: str | None = None,
    clean: bool = False,
    images_per_landmark: int | None = None,
    unknown: int | None = None,
) -> Selection:
    """Choose images by a rule, write them to the table `out`, and return them; without a rule, all.

    `mirror` is a mirror of the archive or the folder of a dataset, from which the same rules choose again: images keep
    their ids, labels and authors, and those of nothing known stay unless `unknown` says how many.

    Training set: images are kept if they belong to the clean set (`clean`) and carry the `license`; landmarks
    are kept by id (`landmarks`, less `exclude`), `name`, `supercategory`, `kind` and number of images kept; they
    are ranked by that number, falling, ties by landmark id; `skip`, `take`, and `choose` at random by `seed`; of each
    landmark with more, `images_per_landmark` images are drawn.
    Test set: all images, but only the landmarks kept count as known; of the images that show none of them
    `unknown` are drawn.

    Raises:
        UsageError: options that contradict each other or name something unknown, or `out` is called a CSV.
        LandmarksError: a file is missing or strange, or nothing is left.
    """
    if Path(out).suffix.lower() in (".csv", ".tsv", ".json", ".xlsx"):
        raise UsageError(
            f"a selection is a table in parquet, and {out} is called something else",
            way_out=f"-o {Path(out).with_suffix('.parquet')}",
        )
    data = dataset_at(mirror)
    rule = Rule(
        set=set if data is None else DATA,
        clean=clean,
        license=license,
        landmarks=None if landmarks is None else landmark_ids(landmarks),
        exclude=None if exclude is None else landmark_ids(exclude),
        name=name,
        supercategory=supercategory,
        kind=kind,
        min_images=min_images,
        max_images=max_images,
        skip=skip,
        take=take,
        choose=choose,
        images_per_landmark=images_per_landmark,
        unknown=unknown,
        seed=seed,
    )
    if data is not None:
        return select_from_data(rule, data, Path(out), set)
    with ThreadPoolExecutor(2) as aside:
        files = Csvs(open_mirror(mirror), aside)
        images, chosen = _select_train(rule, files) if set == "train" else _select_test(rule, files)
        selection = Selection(
            path=Path(out),
            images=images.select(pl.col(column).cast(of) for column, of in SELECTION.items()).sort("image_id"),
            landmarks=chosen.select("landmark_id", "name", "images"),
            rule=str(rule),
            expected_bytes=round(len(images) * bytes_of_one(files, set)),
        )
        write_lone_table(
            selection.path,
            selection.images,
            mirror=files.place,
            set=set,
            rule=selection.rule,
            digests=json.dumps(files.digests()),
            landmarks=len(chosen),
        )
    return selection


def _select_train(rule: Rule, files: Csvs) -> tuple[pl.DataFrame, pl.DataFrame]:
    for told in (ATTRIBUTION, CATEGORY, HIERARCHY):
        files.given(told)  # so that their digests are computed while the rest is read
    table = CLEAN if rule.clean else TRAIN
    file = files.needed(table, "--clean needs" if rule.clean else "says what the images show")
    rows = _clean_rows(file) if rule.clean else scan(TRAIN, file)
    if rule.license is not None:
        rows = rows.join(_licensed(rule.license, files), on="image_id", how="semi")
    images = collect(rows.select("image_id", "landmark_id"), table, file)
    strange = pl.col("image_id").str.len_bytes().ne_missing(16) | pl.col("landmark_id").lt(0).fill_null(True)
    if images.select(strange.any()).item():
        raise strange_row(table, file)
    landmarks = _landmarks_told(rule, files, images.group_by("landmark_id").agg(images=pl.len()))
    chosen = drawn(rule, eligible(rule, landmarks))
    _tell_missing(rule, landmarks, chosen)
    chosen = with_names(chosen)
    named = chosen.select("landmark_id", "name", "category")
    images = images.join(named, on="landmark_id", how="inner")
    _refuse_strange_ids(images, table, file)
    if rule.images_per_landmark is not None:
        images = _some_of_each(rule.images_per_landmark, rule.seed, images)
        kept = images.group_by("landmark_id").agg(images=pl.len())
        chosen = chosen.drop("images").join(kept, on="landmark_id", how="left", maintain_order="left")
    nothing = [pl.lit(None).alias("usage"), pl.lit(None).alias("landmarks")]
    return _with_credits(images, files).with_columns(nothing), chosen


def _select_test(rule: Rule, files: Csvs) -> tuple[pl.DataFrame, pl.DataFrame]:
    file = files.needed(SOLUTION, "says what the test images show")
    rows = read_checked(SOLUTION, file)
    _refuse_strange_ids(rows, SOLUTION, file)
    ignored = len(rows) - len(rows := rows.filter(pl.col("Usage") != "Ignored"))
    if ignored:
        note(f"{ignored:,} test images of usage Ignored are left out: they count in no number of the challenge")
    shown = rows.select(
        "image_id",
        usage="Usage",
        landmark_id=pl.col("landmarks").fill_null("").str.extract_all("[0-9]+").cast(pl.List(pl.Int64)),
    )
    pairs = shown.explode("landmark_id", keep_nulls=True, empty_as_null=True).drop_nulls("landmark_id")
    told = _landmarks_told(rule, files, pairs.group_by("landmark_id").agg(images=pl.len()))
    known = eligible(rule, told)
    if rule.clean:
        clean = files.needed(CLEAN, "--clean needs")
        known = known.join(
            collect(scan(CLEAN, clean).select("landmark_id"), CLEAN, clean), on="landmark_id", how="semi"
        )
    _tell_missing(rule, told, known)
    known = with_names(known.sort(["images", "landmark_id"], descending=[True, False]))
    pairs = pairs.join(known, on="landmark_id", how="semi", maintain_order="left")
    labelled = pairs.group_by("image_id", maintain_order=True).agg(landmarks="landmark_id")
    images = shown.drop("landmark_id").join(labelled, on="image_id", how="left")
    images = images.with_columns(landmark_id=pl.col("landmarks").list.first())
    images = _drop_unknown(rule, images)
    images = images.join(known.select("landmark_id", "name", "category"), on="landmark_id", how="left")
    if len(known) == 0:
        note(f"no test image shows a landmark that counts as known ({rule}); all are unknown")
    nothing = [pl.lit(None, dtype=pl.String).alias(name) for name in ("author", "license", "title")]
    return images.with_columns(nothing), known


def _some_of_each(most: int, seed: int, images: pl.DataFrame) -> pl.DataFrame:
    """Keep at most so many images of each landmark, drawn by the seed in the order of their ids."""
    images = images.sort("image_id")
    lots = pl.Series("lot", generator(seed, "images of a landmark").random(len(images)))
    place = pl.col("lot").rank("ordinal").over("landmark_id")
    return images.with_columns(lots).filter(place <= most).drop("lot")


def _clean_rows(file: Path) -> pl.LazyFrame:
    rows = scan(CLEAN, file).select("landmark_id", image_id=pl.col("images").str.split(" "))
    return rows.explode("image_id", empty_as_null=True, keep_nulls=True).filter(pl.col("image_id").ne_missing(""))


def _landmarks_told(rule: Rule, files: Csvs, counts: pl.DataFrame) -> pl.DataFrame:
    """Join what the archive tells about landmarks to the number of their images."""
    if rule.name is not None:
        files.needed(CATEGORY, "--name needs")
    if rule.supercategory is not None or rule.kind is not None:
        files.needed(HIERARCHY, "--supercategory and --kind need")
    told = with_told(counts, files.given(CATEGORY), files.given(HIERARCHY))
    refuse_unknown_supercategory(rule, told)
    return told if rule.name is None else with_names(told)


def _licensed(license: str, files: Csvs) -> pl.LazyFrame:
    """Return the ids of the images whose licence holds the words."""
    file = files.needed(ATTRIBUTION, "--license needs")
    rows = scan(ATTRIBUTION, file).filter(holds(pl.col("license"), license)).select("image_id")
    return collect(rows, ATTRIBUTION, file).lazy()


def _with_credits(images: pl.DataFrame, files: Csvs) -> pl.DataFrame:
    columns = ("author", "license", "title")
    file = files.given(ATTRIBUTION)
    if file is None:
        return images.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in columns)
    rows = scan(ATTRIBUTION, file).join(images.lazy().select("image_id"), on="image_id", how="semi")
    # Joined to nothing, a text is copied: otherwise a few rows keep alive all the bytes that were read around them.
    credits = rows.select(pl.concat_str(pl.col(name), pl.lit("")) for name in ("image_id", *columns))
    known = collect(credits, ATTRIBUTION, file).unique("image_id", keep="first", maintain_order=True)
    return images.join(known, on="image_id", how="left")


def _drop_unknown(rule: Rule, images: pl.DataFrame) -> pl.DataFrame:
    """Keep `rule.unknown` of the images that show nothing known, drawn by the seed in the order of their ids."""
    unknown = images.filter(pl.col("landmark_id").is_null()).sort("image_id")
    if rule.unknown is None or rule.unknown >= len(unknown):
        return images
    # This key is older than the word `unknown`: with another one a seed would draw other images than before.
    lots = generator(rule.seed, "others").random(len(unknown))
    left_out = unknown.with_columns(lot=pl.Series(lots)).sort("lot", "image_id")[rule.unknown :]
    return images.join(left_out, on="image_id", how="anti")


def _refuse_strange_ids(images: pl.DataFrame, table: CsvTable, file: Path) -> None:
    if not images["image_id"].str.contains(f"^{ID}$").all():
        raise strange_row(table, file)
    twice = images.filter(pl.col("image_id").is_duplicated())["image_id"].sort()
    if len(twice):
        lines = lines_of(file, twice[0]) if "landmark_id" not in table.columns or table is TRAIN else []
        where = f" (lines {', '.join(map(str, lines))})" if lines else ""
        raise LandmarksError(f"{file} holds the image {twice[0]} more than once{where}")


def _tell_missing(rule: Rule, told: pl.DataFrame, chosen: pl.DataFrame) -> None:
    missing = [] if rule.landmarks is None else sorted({*rule.landmarks} - {*told["landmark_id"]})
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (" …" if len(missing) > 5 else "")
        note(f"{len(missing)} of the {len(rule.landmarks or ())} landmarks have no image here: {shown}")
    if rule.choose is None and rule.take is not None and len(chosen) < rule.take:
        note(f"--take {rule.take}: only {len(chosen)} landmarks were there to take")


# ── From a dataset: the same rules, and its own tables instead of the archive's ─────────────────────────────────────


def dataset_at(place: Mirror | Place) -> Dataset | None:
    """Return the dataset in a folder; None for a mirror, and for what is no folder."""
    if isinstance(place, Mirror) or "://" in os.fspath(place) or not (Path(place) / "dataset.json").is_file():
        return None
    return open_dataset(place)


def select_from_data(rule: Rule, data: Dataset, out: Path, set: str) -> Selection:
    """Choose images of a dataset by a rule; see `select`."""
    of = data.record.get("set")
    asked = {"--clean": rule.clean, "--supercategory": rule.supercategory, "--kind": rule.kind}
    if given := [option for option, value in asked.items() if value]:
        raise UsageError(
            f"{data.folder} is a dataset, which does not keep what {', '.join(given)} needs",
            way_out="select from the mirror, or with --landmarks SELECTION",
        )
    if set == "test" and of != "test":
        raise UsageError(
            f"{data.folder} is a dataset of {of}, not of the archive's test set", way_out="leave --set out"
        )
    images = data.images
    known = images.filter(pl.col("landmark_id").is_not_null())
    if rule.license is not None:
        known = known.filter(holds(pl.col("license").fill_null(""), rule.license))
    counts = known.group_by("landmark_id").agg(images=pl.len())
    told = counts.join(data.labels.select("landmark_id", "name", "category"), on="landmark_id", how="left")
    chosen = drawn(rule, eligible(rule, told))
    _tell_missing(rule, told, chosen)
    ids = pl.element().filter(pl.element().is_in(chosen["landmark_id"].to_list()))
    together = images.with_columns(pl.col("landmarks").list.eval(ids))
    here = pl.col("landmark_id").is_in(chosen["landmark_id"].to_list())
    if set == "test":  # all images stay, and those that show nothing chosen are unknown
        first = pl.when(here).then("landmark_id").otherwise(pl.col("landmarks").list.first())
        together = together.with_columns(landmark_id=first)
    else:
        kept = known.select("image_id").join(images.filter(here), on="image_id", how="semi")
        unknown = images.filter(pl.col("landmark_id").is_null()).select("image_id")
        together = together.join(pl.concat([kept, unknown]), on="image_id", how="semi")
    together = _drop_unknown(rule, together)
    together = together.join(chosen.select("landmark_id", "name", "category"), on="landmark_id", how="left")
    selection = Selection(
        path=out,
        images=together.select(pl.col(column).cast(kind) for column, kind in SELECTION.items()).sort("image_id"),
        landmarks=chosen.select("landmark_id", "name", "images"),
        rule=str(rule) or "all of a dataset",
        expected_bytes=int(together["length"].sum() or 0),
    )
    about = {"set": str(of), "rule": selection.rule, "digests": json.dumps({"dataset": data.content_digest})}
    write_lone_table(out, selection.images, mirror=str(data.folder.absolute()), landmarks=len(chosen), **about)
    return selection
