"""Choose images of a mirror or a dataset by a rule, and write them to a table."""

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
    contains_pattern,
    invalid_row_error,
    lines_of,
    read_checked,
    scan,
    with_details,
    with_names,
)
from landmarks.archive.mirror import Mirror, MirrorCsvs, mean_image_bytes, open_mirror
from landmarks.archive.rules import (
    DATA,
    SelectionRule,
    eligible,
    landmark_ids,
    ranked_and_drawn,
    refuse_unknown_supercategory,
)
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.support.console import note, plural
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.places import Place, in_shell
from landmarks.support.seeds import generator
from landmarks.support.tables import write_lone_table

SELECTION: dict[str, Any] = {
    "image_id": pl.String,
    "landmark_id": pl.Int64,  # null: unknown
    "usage": pl.String,  # Public or Private in the recognition test set, else null
    "landmarks": pl.List(pl.Int64),  # all known landmarks in the image, in the test set only
    "name": pl.String,  # of the landmark
    "category": pl.String,
    "author": pl.String,
    "license": pl.String,
    "title": pl.String,
}
"""Columns of a selection, sorted by image id; null where the archive's files say nothing."""


@dataclass(frozen=True)
class Selection:
    """What `select` chose: images (columns `SELECTION`), their landmarks by rank, and the expected size.

    A `Selection` is accepted wherever the path of its file is.
    """

    path: Path
    images: pl.DataFrame
    landmarks: pl.DataFrame  # landmark_id, name, images
    rule: str
    expected_bytes: int

    def __repr__(self) -> str:
        counts = f"{plural(len(self.images), 'image')} of {plural(len(self.landmarks), 'landmark')}"
        return f"Selection({self.path}: {counts}; {self.rule})"

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
    """Choose images by a rule, write them to the table `out` and return them; without a rule, all images.

    `mirror` is a mirror of the archive, or the folder of a dataset to choose from again. Images of a dataset keep their
    ids, labels and authors, and its unknown images are kept unless `unknown` gives their number.

    From the training set, images are kept if they belong to the clean set (with `clean`) and have the `license`.
    Landmarks are kept by id (`landmarks`, without `exclude`), `name`, `supercategory`, `kind` and number of kept images
    (`min_images`, `max_images`). They are ranked by that number, largest first, and then by landmark id; `skip` and
    `take` apply to this ranking, then `choose` are drawn at random by `seed`. Of a landmark with more images than
    `images_per_landmark`, that many are drawn.

    From the test set, all images are kept, but only the landmarks kept count as known; of the unknown images, `unknown`
    are drawn.

    Raises:
        UsageError: options contradict each other or have an unknown value, or `out` has the suffix of another format.
        LandmarksError: a file is missing or invalid, or nothing is left.
    """
    if Path(out).suffix.lower() in (".csv", ".tsv", ".json", ".xlsx"):
        raise UsageError(
            f"a selection is a table in parquet, and {out} is called something else",
            way_out=f"-o {in_shell(Path(out).with_suffix('.parquet'))}",
        )
    data = dataset_at(mirror)
    rule = SelectionRule(
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
    with ThreadPoolExecutor(2) as pool:
        csvs = MirrorCsvs(open_mirror(mirror), pool)
        images, chosen = _select_train(rule, csvs) if set == "train" else _select_test(rule, csvs)
        selection = Selection(
            path=Path(out),
            images=images.select(pl.col(column).cast(dtype) for column, dtype in SELECTION.items()).sort("image_id"),
            landmarks=chosen.select("landmark_id", "name", "images"),
            rule=str(rule),
            expected_bytes=round(len(images) * mean_image_bytes(csvs, set)),
        )
        write_lone_table(
            selection.path,
            selection.images,
            mirror=csvs.place,
            set=set,
            rule=selection.rule,
            digests=json.dumps(csvs.digests()),
            landmarks=len(chosen),
        )
        if (unpacked := csvs.mirror.unpacked(set)) is not None:
            note(f"landmarks fetch cannot take these images from there: {unpacked}")
    return selection


def _select_train(rule: SelectionRule, csvs: MirrorCsvs) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the images chosen from the training set, and their landmarks by rank."""
    for used_later in (ATTRIBUTION, CATEGORY, HIERARCHY):
        csvs.find(used_later)  # starts computing its digest while the rest is read
    table = CLEAN if rule.clean else TRAIN
    file = csvs.require(table, "--clean needs" if rule.clean else "says what the images show")
    rows = _clean_rows(file) if rule.clean else scan(TRAIN, file)
    if rule.license is not None:
        rows = rows.join(_licensed(rule.license, csvs), on="image_id", how="semi")
    images = collect(rows.select("image_id", "landmark_id"), table, file)
    invalid = pl.col("image_id").str.len_bytes().ne_missing(16) | pl.col("landmark_id").lt(0).fill_null(True)
    if images.select(invalid.any()).item():
        raise invalid_row_error(table, file)
    landmarks = _with_details(rule, csvs, images.group_by("landmark_id").agg(images=pl.len()))
    chosen = ranked_and_drawn(rule, eligible(rule, landmarks))
    _note_missing(rule, landmarks, chosen)
    chosen = with_names(chosen)
    images = images.join(chosen.select("landmark_id", "name", "category"), on="landmark_id", how="inner")
    _refuse_invalid_ids(images, table, file)
    if rule.images_per_landmark is not None:
        images, chosen = _draw_images_per_landmark(images, chosen, rule.images_per_landmark, rule.seed)
    nulls = [pl.lit(None).alias("usage"), pl.lit(None).alias("landmarks")]
    return _with_credits(images, csvs).with_columns(nulls), chosen


def _select_test(rule: SelectionRule, csvs: MirrorCsvs) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the images of the test set, and the landmarks that count as known by their number of images."""
    file = csvs.require(SOLUTION, "says what the test images show")
    rows = read_checked(SOLUTION, file)
    _refuse_invalid_ids(rows, SOLUTION, file)
    ignored = len(rows) - len(rows := rows.filter(pl.col("Usage") != "Ignored"))
    if ignored:
        note(f"{ignored:,} test images of usage Ignored are left out: they count in no number of the challenge")
    images = rows.select(
        "image_id",
        usage="Usage",
        landmark_id=pl.col("landmarks").fill_null("").str.extract_all("[0-9]+").cast(pl.List(pl.Int64)),
    )
    pairs = images.explode("landmark_id", keep_nulls=True, empty_as_null=True).drop_nulls("landmark_id")
    landmarks = _with_details(rule, csvs, pairs.group_by("landmark_id").agg(images=pl.len()))
    known = eligible(rule, landmarks)
    if rule.clean:
        clean_file = csvs.require(CLEAN, "--clean needs")
        clean = collect(scan(CLEAN, clean_file).select("landmark_id"), CLEAN, clean_file)
        known = known.join(clean, on="landmark_id", how="semi")
    _note_missing(rule, landmarks, known)
    known = with_names(known.sort(["images", "landmark_id"], descending=[True, False]))
    pairs = pairs.join(known, on="landmark_id", how="semi", maintain_order="left")
    known_landmarks = pairs.group_by("image_id", maintain_order=True).agg(landmarks="landmark_id")
    images = images.drop("landmark_id").join(known_landmarks, on="image_id", how="left")
    images = images.with_columns(landmark_id=pl.col("landmarks").list.first())
    images = _draw_unknown(rule, images)
    images = images.join(known.select("landmark_id", "name", "category"), on="landmark_id", how="left")
    if len(known) == 0:
        note(f"no test image shows a landmark that counts as known ({rule}); all are unknown")
    nulls = [pl.lit(None, dtype=pl.String).alias(name) for name in ("author", "license", "title")]
    return images.with_columns(nulls), known


def _draw_images_per_landmark(
    images: pl.DataFrame, landmarks: pl.DataFrame, most: int, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Draw at most `most` images of each landmark by the seed; the order of `images` makes no difference.

    Return these images, and the landmarks with their number of images.
    """
    images = images.sort("image_id")
    lots = pl.Series("lot", generator(seed, "images of a landmark").random(len(images)))
    rank = pl.col("lot").rank("ordinal").over("landmark_id")
    images = images.with_columns(lots).filter(rank <= most).drop("lot")
    counts = images.group_by("landmark_id").agg(images=pl.len())
    return images, landmarks.drop("images").join(counts, on="landmark_id", how="left", maintain_order="left")


def _clean_rows(file: Path) -> pl.LazyFrame:
    rows = scan(CLEAN, file).select("landmark_id", image_id=pl.col("images").str.split(" "))
    return rows.explode("image_id", empty_as_null=True, keep_nulls=True).filter(pl.col("image_id").ne_missing(""))


def _with_details(rule: SelectionRule, csvs: MirrorCsvs, landmarks: pl.DataFrame) -> pl.DataFrame:
    """Join the archive's details to a table of landmarks, with their names when the rule needs these."""
    if rule.name is not None:
        csvs.require(CATEGORY, "--name needs")
    if rule.supercategory is not None or rule.kind is not None:
        csvs.require(HIERARCHY, "--supercategory and --kind need")
    landmarks = with_details(landmarks, csvs.find(CATEGORY), csvs.find(HIERARCHY))
    refuse_unknown_supercategory(rule, landmarks)
    return landmarks if rule.name is None else with_names(landmarks)


def _licensed(license: str, csvs: MirrorCsvs) -> pl.LazyFrame:
    """Return the ids of the images whose licence contains the text."""
    file = csvs.require(ATTRIBUTION, "--license needs")
    rows = scan(ATTRIBUTION, file).filter(contains_pattern(pl.col("license"), license)).select("image_id")
    return collect(rows, ATTRIBUTION, file).lazy()


def _with_credits(images: pl.DataFrame, csvs: MirrorCsvs) -> pl.DataFrame:
    columns = ("author", "license", "title")
    file = csvs.find(ATTRIBUTION)
    if file is None:
        return images.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in columns)
    rows = scan(ATTRIBUTION, file).join(images.lazy().select("image_id"), on="image_id", how="semi")
    # Concatenating with "" copies the text: otherwise a few rows keep alive the whole buffers they were read into.
    credits = rows.select(pl.concat_str(pl.col(name), pl.lit("")) for name in ("image_id", *columns))
    credits_of_images = collect(credits, ATTRIBUTION, file).unique("image_id", keep="first", maintain_order=True)
    return images.join(credits_of_images, on="image_id", how="left")


def _draw_unknown(rule: SelectionRule, images: pl.DataFrame) -> pl.DataFrame:
    """Keep `rule.unknown` of the unknown images, drawn by the seed; the order of `images` makes no difference."""
    unknown = images.filter(pl.col("landmark_id").is_null()).sort("image_id")
    if rule.unknown is None or rule.unknown >= len(unknown):
        return images
    # The key must stay as it is: with another one, a seed would draw other images than in earlier versions.
    lots = generator(rule.seed, "others").random(len(unknown))
    left_out = unknown.with_columns(lot=pl.Series(lots)).sort("lot", "image_id")[rule.unknown :]
    return images.join(left_out, on="image_id", how="anti")


def _refuse_invalid_ids(images: pl.DataFrame, table: CsvTable, file: Path) -> None:
    if not images["image_id"].str.contains(f"^{ID}$").all():
        raise invalid_row_error(table, file)
    duplicates = images.filter(pl.col("image_id").is_duplicated())["image_id"].sort()
    if len(duplicates):
        lines = [] if table is CLEAN else lines_of(file, duplicates[0])  # a line of the clean set holds many images
        where = f" (lines {', '.join(map(str, lines))})" if lines else ""
        raise LandmarksError(f"{file} holds the image {duplicates[0]} more than once{where}")


def _note_missing(rule: SelectionRule, landmarks: pl.DataFrame, chosen: pl.DataFrame) -> None:
    missing = [] if rule.landmarks is None else sorted({*rule.landmarks} - {*landmarks["landmark_id"]})
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (" …" if len(missing) > 5 else "")
        note(f"{len(missing)} of the {len(rule.landmarks or ())} landmarks have no image here: {shown}")
    if rule.choose is None and rule.take is not None and len(chosen) < rule.take:
        note(f"--take {rule.take}: only {len(chosen)} landmarks were there to take")


# ── From a dataset: the same rules, with its own tables instead of the archive's ────────────────────────────────────


def dataset_at(place: Mirror | Place) -> Dataset | None:
    """Return the dataset at `place`, or None when there is a mirror or nothing."""
    if isinstance(place, Mirror) or "://" in os.fspath(place) or not (Path(place) / "dataset.json").is_file():
        return None
    return open_dataset(place)


def select_from_data(rule: SelectionRule, data: Dataset, out: Path, set: str) -> Selection:
    """Choose images of a dataset by a rule; see `select`."""
    set_of_data = data.record.get("set")
    unsupported = {"--clean": rule.clean, "--supercategory": rule.supercategory, "--kind": rule.kind}
    if options := [option for option, value in unsupported.items() if value]:
        raise UsageError(
            f"{data.folder} is a dataset, which does not keep what {', '.join(options)} needs",
            way_out="select from the mirror, or with --landmarks SELECTION",
        )
    if set == "test" and set_of_data != "test":
        raise UsageError(
            f"{data.folder} is a dataset of {set_of_data}, not of the archive's test set", way_out="leave --set out"
        )
    if set == "test" and rule.images_per_landmark is not None:
        raise UsageError("--images-per-landmark: only with --set train", way_out="leave it out")
    known = data.images.filter(pl.col("landmark_id").is_not_null())
    if rule.license is not None:
        known = known.filter(contains_pattern(pl.col("license").fill_null(""), rule.license))
    counts = known.group_by("landmark_id").agg(images=pl.len())
    landmarks = counts.join(data.labels.select("landmark_id", "name", "category"), on="landmark_id", how="left")
    chosen = ranked_and_drawn(rule, eligible(rule, landmarks))
    _note_missing(rule, landmarks, chosen)
    chosen_ids = chosen["landmark_id"].to_list()
    images = data.images.with_columns(
        pl.col("landmarks").list.eval(pl.element().filter(pl.element().is_in(chosen_ids)))
    )
    shows_chosen = pl.col("landmark_id").is_in(chosen_ids)
    if set == "test":  # all images are kept, and those of no chosen landmark become unknown
        first = pl.when(shows_chosen).then("landmark_id").otherwise(pl.col("landmarks").list.first())
        images = images.with_columns(landmark_id=first)
    else:
        kept = known.filter(shows_chosen)
        if rule.images_per_landmark is not None:
            kept, chosen = _draw_images_per_landmark(kept, chosen, rule.images_per_landmark, rule.seed)
        unknown = data.images.filter(pl.col("landmark_id").is_null())
        images = images.join(pl.concat([kept, unknown]), on="image_id", how="semi")
    images = _draw_unknown(rule, images)
    images = images.join(chosen.select("landmark_id", "name", "category"), on="landmark_id", how="left")
    selection = Selection(
        path=out,
        images=images.select(pl.col(column).cast(dtype) for column, dtype in SELECTION.items()).sort("image_id"),
        landmarks=chosen.select("landmark_id", "name", "images"),
        rule=str(rule) or "all of a dataset",
        expected_bytes=int(images["length"].sum() or 0),
    )
    metadata = {"set": str(set_of_data), "rule": selection.rule}
    metadata["digests"] = json.dumps({"dataset": data.content_digest})
    write_lone_table(out, selection.images, mirror=str(data.folder.absolute()), landmarks=len(chosen), **metadata)
    return selection
