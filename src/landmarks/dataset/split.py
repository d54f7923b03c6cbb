"""Divide a dataset into train, val and test, so that nothing in one split gives away what is asked in another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from landmarks.dataset.copies import COPIES, COPIES_FILE, find_copies, write_copies
from landmarks.dataset.corrections import add_corrections, columns_of, read_corrections, remove_corrections
from landmarks.dataset.divide import ENOUGH, FROM_SOURCE, NOT_YET, TEST, TRAIN, VAL, Rule
from landmarks.dataset.division import (
    Division,
    Earlier,
    by_rule,
    division_of,
    extended,
    groups_with,
    stored,
    with_groups,
)
from landmarks.dataset.kept_sketches import kept_sketches
from landmarks.dataset.manifest import SPLIT_FILE, SPLITS, Dataset, open_dataset
from landmarks.support.console import note, plural
from landmarks.support.disk import remove_file
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.files import held
from landmarks.support.places import Place
from landmarks.support.tables import write_table

LOOK, DO_NOT_LOOK = "look", "no"
"""What `split` does about copies, where it is not told of some by a CSV."""


def split(
    data: Place,
    *,
    by: str | None = None,
    val: float | None = None,
    test: float | None = None,
    seed: int | None = None,
    keep_test: bool | None = None,
    corrections: Place | None = None,
    keep_corrections: bool = True,
    copies: Place = LOOK,
) -> Dataset:
    """Divide the images of a dataset folder; write `splits.parquet` and the column `group`.

    `by` "group" (as when it is not given) puts whole groups (see `groups`) into one split, "random" each image by
    itself. Either way it is done landmark by landmark, images that show nothing known included; `val` and `test`
    are shares (0.15 when not given), 0 for none; `seed` is 0 when not given. Every landmark keeps a training
    image. The leakage of this split and of a random one is printed and stored.

    `keep_test` leaves the test split as it is and divides the others into train and val; that is done without being
    asked where the test split came with the images, unless it is False.

    `corrections` is a CSV of what images truly show (see `read_corrections`): it is kept beside the labels, added
    to earlier ones, and holds from here on; `keep_corrections=False` takes the earlier ones back. Where nothing but
    corrections is asked for, images that have a split keep it.

    The images themselves are looked at for `copies` that are cropped, framed, recoloured or mirrored (see
    `dataset.copies`); a CSV of pairs as `landmarks audit` writes adds those. With "no", hashes alone decide which are
    near-duplicates: cropped ones are mostly missed, and some others are joined.

    Raises:
        UsageError: an unknown `by`, impossible shares, no test split to keep, or one that is kept and to be drawn.
        LandmarksError: there is no dataset, or the CSV cannot be meant.
    """
    shares = (0.15 if val is None else val, 0.15 if test is None else test)
    if by not in (None, "group", "random"):
        raise UsageError(
            f'cannot split by "{by}"', expected="group or random", way_out=did_you_mean(by, ["group", "random"])
        )
    if not (min(shares) >= 0 and sum(shares) < 1):  # not what is no number either
        raise UsageError(
            "impossible shares", received=f"val {shares[0]}, test {shares[1]}", expected="0 or more, below 1 together"
        )
    rule = Rule(by or "group", *shares, seed or 0)
    asked = not all(wish is None for wish in (by, val, test, seed, keep_test))
    with held(open_dataset(data).folder):
        dataset = open_dataset(data)
        earlier = stored(dataset.folder)
        stay = not asked and earlier is not None and (corrections is not None or not keep_corrections)
        if not stay:
            rule = _with_kept_test(dataset, rule, earlier, test, keep_test)
        dataset = _corrected(dataset, corrections, keep_corrections)
        if stay and earlier is not None:
            note("every image stays in its split; --by, --val, --test, --seed or --anew divide again")
            result = extended(dataset.images, earlier)
        else:
            found = _copies_of(dataset, copies)
            result = _divided(dataset.images, rule, earlier, found)
            if found is not None:
                write_copies(dataset.folder, found)
            else:
                remove_file(dataset.folder / COPIES_FILE)
        return store(dataset, result)


def _copies_of(dataset: Dataset, asked: Place) -> pl.DataFrame | None:
    """Return the copies among a dataset's images (columns of `COPIES`), None where nobody is to look or can."""
    if asked == DO_NOT_LOOK:
        return None
    images = dataset.images
    told = [] if asked == LOOK else _told_copies(Path(asked), images["image_id"])
    sketches = kept_sketches(dataset, images)
    if sketches is None:
        note("no image can be looked at: near-duplicates are found by their hashes alone")
        return None if not told else _with_told(pl.DataFrame({"image_id": []}, schema=COPIES), told)
    found = find_copies(sketches, images["landmark_id"].fill_null(-1).to_numpy())
    note(
        f"{len(found.pairs):,} pairs of copies, {int(found.mirrored.sum()):,} of them mirrored,"
        f" among {len(images):,} images"
    )
    return _with_told(found.named(images["image_id"]), told)


def _told_copies(csv: Path, ids: pl.Series) -> list[tuple[str, str]]:
    """Return the pairs in a CSV with columns `image_id` and `copy_of`; raise where one names an image of no dataset."""
    table = columns_of(csv, ("image_id", "copy_of"), "landmarks audit RUN -o FILE.csv writes FILE.copies.csv")
    known = set(ids)
    for row, pair in enumerate(table.iter_rows(), 2):
        if strange := [id for id in pair if id not in known]:
            raise LandmarksError(f'{csv}, row {row}: the dataset holds no image "{strange[0]}"')
    return [(min(pair), max(pair)) for pair in table.iter_rows() if pair[0] != pair[1]]


def _with_told(found: pl.DataFrame, told: list[tuple[str, str]]) -> pl.DataFrame:
    if not told:
        return found
    long = pl.DataFrame(told, schema={"image_id": pl.String, "copies": pl.String}, orient="row")
    added = long.group_by("image_id").agg("copies")
    together = pl.concat([found, added]).explode("copies", empty_as_null=True).unique()
    return together.group_by("image_id").agg(pl.col("copies").drop_nulls().sort()).sort("image_id")


def _with_kept_test(
    dataset: Dataset, rule: Rule, earlier: Earlier | None, test: float | None, keep: bool | None
) -> Rule:
    """Return the rule with the test split that is to be kept; raise `UsageError` where that cannot be meant."""
    given = earlier is not None and earlier.rule.test_is_given
    if not (given if keep is None else keep):
        if given:
            note("the test split that came with the images is divided anew with all others")
        return rule
    if earlier is None or "test" not in earlier.table["split"]:
        raise UsageError(f"{dataset.folder} has no test split to keep", way_out="leave --keep-test out")
    if test:
        raise UsageError(
            f"the test split of {dataset.folder} is kept{', since it came with the images' if given else ''}",
            received=f"--test {test:g}",
            way_out="leave --test out, or divide everything with --anew",
        )
    held_out = int((earlier.table["split"] == "test").sum())
    if held_out == len(earlier.table):
        raise UsageError(
            f"all {held_out:,} images of {dataset.folder} are in its test split",
            way_out="divide everything with --anew",
        )
    note(f"the test split of {held_out:,} images stays as it is; the others are divided into train and val")
    return replace(rule, test=0.0, test_kept=FROM_SOURCE if given else "split")


def _divided(images: pl.DataFrame, rule: Rule, earlier: Earlier | None, copies: pl.DataFrame | None) -> Division:
    """Divide `images` by a rule, and say how many were in another split before."""
    before = np.full(len(images), NOT_YET) if earlier is None else earlier.parts_of(images)
    grouping = groups_with(images, copies)
    assigned = by_rule(images, rule, grouping.group, before)
    moved = (before != NOT_YET) & (before != assigned)
    if moved.any():
        into = int((moved & (assigned == TEST)).sum())
        note(
            f"{int(moved.sum()):,} images changed their split, {into:,} of them into test:"
            " runs trained before may have learned those"
        )
    return replace(division_of(images, assigned, grouping, rule), copies_looked_for=copies is not None)


def _corrected(dataset: Dataset, csv: Place | None, keep: bool) -> Dataset:
    """Return the dataset with the corrections asked for, and say how many there are."""
    if csv is not None:
        decided = read_corrections(dataset, csv)  # before anything is taken back, since it may not be readable
    if not keep:
        note(f"{remove_corrections(dataset):,} earlier corrections taken back")
        dataset = open_dataset(dataset.folder)
    if csv is not None:
        add_corrections(dataset, decided)
        note(f"{len(decided):,} decisions in {csv}" + ("" if len(decided) else ": no row of it is filled in"))
        dataset = open_dataset(dataset.folder)
    if len(dataset.corrections):
        corrected = len(dataset.corrected)
        confirmed = len(dataset.corrections) - corrected
        removed = int(dataset.corrections["removed"].sum())
        note(
            f"{corrected - removed:,} labels corrected, {confirmed:,} confirmed"
            + (f", {removed:,} images removed" if removed else "")
            + "; images.parquet keeps them as fetched"
        )
    return dataset


def store(dataset: Dataset, division: Division) -> Dataset:
    """Write a division, say what a reader should know of it, and open the dataset anew. The caller holds the folder."""
    images = with_groups(dataset.as_fetched(), division.images["image_id"], division.grouping)
    write_table(dataset.folder / "images.parquet", images)
    write_table(dataset.folder / SPLIT_FILE, division.table, **division.metadata(len(dataset.corrected)))
    tell(division, dataset.labels)
    return open_dataset(dataset.folder)


def _why_empty(images: pl.Series, name: str, share: float) -> str:
    """Return why a split got no image, of landmarks with so many `images` each, and what would give it some."""
    most = int(images.max() or 0)  # type: ignore[arg-type]
    if most < 2:
        return "every landmark has a single image, which train needs"
    if most < ENOUGH and most * share < 0.5:
        return f"{share:g} of {most} images, the most that a landmark has, is none; --{name} 0.5 takes one"
    return "the images of each landmark are near-duplicates of one another, and stay together; --by random parts them"


def tell(division: Division, labels: pl.DataFrame) -> None:
    """Say how large the splits are, what they give away, and which landmarks are badly off."""
    assigned, leakage, swallowed = division.assigned, division.leakage, division.swallowed
    counts = np.bincount(assigned, minlength=len(SPLITS))
    note(", ".join(f"{name} {count:,}" for name, count in zip(SPLITS, counts, strict=True)) + " images")
    note(
        f"{division.grouping.count:,} groups; of {leakage['near_duplicate_pairs']:,} near-duplicate pairs"
        f" {leakage['straddling_pairs']:,} straddle this split, {leakage['straddling_pairs_random']:,} a random one;"
        f" {leakage['held_out_with_kin_in_train']:,} images of val and test have kin in train,"
        f" {leakage['held_out_with_kin_in_train_random']:,} at random"
    )
    landmark_of = division.images["landmark_id"]
    size = landmark_of.drop_nulls().value_counts()
    alone = int((size["count"] == 1).sum())
    if alone:
        note(f"{plural(alone, 'landmark')} {'has' if alone == 1 else 'have'} a single image, which is in train")
    for which, name, share in ((VAL, "val", division.rule.val), (TEST, "test", division.rule.test)):
        if not counts[which] and share:
            note(f"no image is in {name}: {_why_empty(size['count'], name, share)}")
        absent = len(size) - landmark_of.filter(pl.Series(assigned == which)).drop_nulls().n_unique()
        if counts[which] and absent:
            note(f"{plural(absent, 'landmark')} {'has' if absent == 1 else 'have'} no image in {name}")
    if told := _never_learned(division, labels):
        note(told)
    for one in swallowed[:5]:
        label = labels.filter(pl.col("landmark_id") == one["landmark_id"])["name"]
        name = label[0] if len(label) else one["landmark_id"]
        note(f"one group holds {one['in_one_group']:,} of the {one['images']:,} images of {name}")
    if len(swallowed) > 5:
        note(f"and so for {len(swallowed) - 5:,} more landmarks")


def _never_learned(division: Division, labels: pl.DataFrame) -> str:
    """Return which landmarks have images in val or test alone, and what that means; empty where none has."""
    images = division.images.with_columns(train=pl.Series(division.assigned == TRAIN))
    if not images["train"].any():  # a test set by itself
        return ""
    without = images.group_by("landmark_id").agg(pl.col("train").any()).drop_nulls().filter(~pl.col("train"))
    names = labels.join(without, on="landmark_id", how="semi", maintain_order="left")["name"].to_list()
    if not names:
        return ""
    told = ", ".join(map(str, names[:5])) + (" …" if len(names) > 5 else "")
    have = "has" if len(names) == 1 else "have"
    return f"{plural(len(names), 'landmark')} {have} no image in train, and can never be answered: {told}"
