"""The verb `split`: divide a dataset into train, val and test without leakage, and take in corrections of its labels.

Corrections are decisions of people about single images. Nothing is overwritten: `images.parquet` keeps all images and
labels, and `corrections.parquet` holds the decisions. `open_dataset` applies them, so that every verb sees corrected
labels and no removed images. Deleting the file undoes them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from landmarks.dataset.copies import (
    COPIES,
    COPIES_FILE,
    copies_with_added,
    find_copies,
    united_copies,
    write_copies,
)
from landmarks.dataset.csv_files import read_text_columns
from landmarks.dataset.division import (
    FROM_SOURCE,
    MIN_IMAGES_TO_SPLIT,
    TEST,
    TRAIN,
    UNASSIGNED,
    VAL,
    Division,
    EarlierDivision,
    SplitRule,
    assign_by_rule,
    division_of,
    extend_division,
    groups_with_copies,
    read_division,
    with_groups,
)
from landmarks.dataset.manifest import CORRECTIONS, CORRECTIONS_FILE, SPLIT_FILE, SPLITS, Dataset, open_dataset
from landmarks.dataset.sketches import kept_sketches
from landmarks.support.console import note, plural
from landmarks.support.disk import remove_file
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.files import file_digest, held
from landmarks.support.places import Place
from landmarks.support.tables import write_table

LOOK, DO_NOT_LOOK = "look", "no"
"""Values of `split`'s `copies` other than the path of a CSV."""


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
    """Divide the images of a dataset folder; write `splits.parquet` and the column `group` of `images.parquet`.

    Images are divided landmark by landmark, and those that show nothing known likewise. Every landmark keeps a
    training image. The leakage of this split and of a random one is printed and stored.

    Args:
        data: The dataset folder.
        by: "group" (the default) puts whole groups (see `groups`) into one split, "random" each image by itself.
        val: Share of the validation split, 0 for none; 0.15 by default.
        test: Share of the test split, 0 for none; 0.15 by default.
        seed: Seed of the random order; 0 by default.
        keep_test: Whether to keep the test split and divide only the other images into train and val. By default a
            test split that came with the images is kept.
        corrections: A CSV of corrected labels (see `read_corrections`). They are added to earlier corrections and
            hold from now on. If nothing else is asked for, images that have a split keep it.
        keep_corrections: False takes back all earlier corrections.
        copies: By default the pixels are searched for copies that are cropped, framed, recoloured or mirrored (see
            `dataset.copies`). A CSV of pairs, as `landmarks audit` writes, adds these. With "no", near-duplicates are
            found by their hashes alone: most cropped copies are missed, and some other images are joined.

    Raises:
        UsageError: an unknown `by`, impossible shares, no test split to keep, or a share for a test split that is
            kept.
        LandmarksError: there is no dataset, or a CSV is invalid.
    """
    shares = (0.15 if val is None else val, 0.15 if test is None else test)
    if by not in (None, "group", "random"):
        raise UsageError(
            f'cannot split by "{by}"', expected="group or random", way_out=did_you_mean(by, ["group", "random"])
        )
    if not (min(shares) >= 0 and sum(shares) < 1):  # also true of NaN
        raise UsageError(
            "impossible shares", received=f"val {shares[0]}, test {shares[1]}", expected="0 or more, below 1 together"
        )
    rule = SplitRule(by or "group", *shares, seed or 0)
    divide_anew = any(option is not None for option in (by, val, test, seed, keep_test))
    with held(open_dataset(data).folder):
        dataset = open_dataset(data)
        earlier = read_division(dataset.folder)
        stay = not divide_anew and earlier is not None and (corrections is not None or not keep_corrections)
        if not stay:
            rule = _with_kept_test(dataset, rule, earlier, test, keep_test)
        dataset = _corrected(dataset, corrections, keep_corrections)
        if stay and earlier is not None:
            note("every image stays in its split; --by, --val, --test, --seed or --anew divide again")
            if earlier.copies is not None:  # an image that had been removed may be back
                complete = copies_with_added(earlier.copies, dataset, dataset.images)
                write_copies(dataset.folder, complete)
                earlier = replace(earlier, copies=complete)
            result = extend_division(dataset.images, earlier)
        else:
            found = _copies_of(dataset, copies)
            result = _divided(dataset.images, rule, earlier, found)
            if found is not None:
                write_copies(dataset.folder, found)
            else:
                remove_file(dataset.folder / COPIES_FILE)
        return store_division(dataset, result)


def _copies_of(dataset: Dataset, copies: Place) -> pl.DataFrame | None:
    """Return the copies among a dataset's images (columns of `COPIES`); None if they are not searched for.

    `copies` is that of `split`.
    """
    if copies == DO_NOT_LOOK:
        return None
    images = dataset.images
    listed = [] if copies == LOOK else _listed_copies(Path(copies), images["image_id"])
    sketches = kept_sketches(dataset, images)
    if sketches is None:
        note("no image can be looked at: near-duplicates are found by their hashes alone")
        return None if not listed else _with_listed(pl.DataFrame({"image_id": []}, schema=COPIES), listed)
    found = find_copies(sketches, images["landmark_id"].fill_null(-1).to_numpy())
    note(
        f"{len(found.pairs):,} pairs of copies, {int(found.mirrored.sum()):,} of them mirrored,"
        f" among {len(images):,} images"
    )
    return _with_listed(found.named(images["image_id"]), listed)


def _listed_copies(csv: Path, ids: pl.Series) -> list[tuple[str, str]]:
    """Return the pairs in a CSV with columns `image_id` and `copy_of`; raise if an id is not among `ids`."""
    table = read_text_columns(csv, ("image_id", "copy_of"), "landmarks audit RUN -o FILE.csv writes FILE.copies.csv")
    known = set(ids)
    for line, *pair in table.iter_rows():
        if missing := [id for id in pair if id not in known]:
            raise LandmarksError(f'{csv} line {line}: the dataset holds no image "{missing[0]}"')
    pairs = table.select("image_id", "copy_of").iter_rows()
    return [(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]]


def _with_listed(found: pl.DataFrame, listed: list[tuple[str, str]]) -> pl.DataFrame:
    if not listed:
        return found
    pairs = pl.DataFrame(listed, schema={"image_id": pl.String, "copies": pl.String}, orient="row")
    return united_copies(found, pairs.group_by("image_id").agg("copies"))


def _with_kept_test(
    dataset: Dataset, rule: SplitRule, earlier: EarlierDivision | None, test: float | None, keep: bool | None
) -> SplitRule:
    """Return the rule changed to keep the test split, if it is to be kept; raise `UsageError` if it cannot be."""
    from_source = earlier is not None and earlier.rule.test_from_source
    if not (from_source if keep is None else keep):
        if from_source:
            note("the test split that came with the images is divided anew with all others")
        return rule
    if earlier is None or "test" not in earlier.table["split"]:
        raise UsageError(f"{dataset.folder} has no test split to keep", way_out="leave --keep-test out")
    if test:
        raise UsageError(
            f"the test split of {dataset.folder} is kept{', since it came with the images' if from_source else ''}",
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
    return replace(rule, test=0.0, test_kept=FROM_SOURCE if from_source else "split")


def _divided(
    images: pl.DataFrame, rule: SplitRule, earlier: EarlierDivision | None, copies: pl.DataFrame | None
) -> Division:
    """Divide `images` by a rule, and note how many were in another split before."""
    before = np.full(len(images), UNASSIGNED) if earlier is None else earlier.splits_of(images)
    grouping = groups_with_copies(images, copies)
    assigned = assign_by_rule(images, rule, grouping.group, before)
    moved = (before != UNASSIGNED) & (before != assigned)
    if moved.any():
        into = int((moved & (assigned == TEST)).sum())
        note(
            f"{int(moved.sum()):,} images changed their split, {into:,} of them into test:"
            " runs trained before may have learned those"
        )
    return replace(division_of(images, assigned, grouping, rule), not_searched=None if copies is None else 0)


def _corrected(dataset: Dataset, csv: Place | None, keep: bool) -> Dataset:
    """Store new corrections and remove earlier ones, and return the dataset that has them; `csv` None adds none."""
    if csv is not None:
        decided = read_corrections(dataset, csv)  # it may be unreadable: nothing is taken back before it was read
    if not keep:
        note(f"{remove_corrections(dataset):,} earlier corrections taken back")
        dataset = open_dataset(dataset.folder)
    if csv is not None:
        add_corrections(dataset, decided)
        note(f"{plural(len(decided), 'decision')} in {csv}" + ("" if len(decided) else ": no row of it is filled in"))
        dataset = open_dataset(dataset.folder)
    if len(dataset.corrections):
        corrected = len(dataset.corrected)
        confirmed = len(dataset.corrections) - corrected
        removed = int(dataset.corrections["removed"].sum())
        note(
            f"{plural(corrected - removed, 'label')} corrected, {confirmed:,} confirmed"
            + (f", {plural(removed, 'image')} removed" if removed else "")
            + "; images.parquet keeps them as fetched"
        )
    return dataset


def store_division(dataset: Dataset, division: Division) -> Dataset:
    """Write a division, note what it is like, and return the dataset opened anew. The caller holds the folder."""
    images = with_groups(dataset.as_fetched(), division.images["image_id"], division.grouping)
    write_table(dataset.folder / "images.parquet", images)
    write_table(dataset.folder / SPLIT_FILE, division.table, **division.metadata(len(dataset.corrected)))
    note_division(division, dataset.labels)
    return open_dataset(dataset.folder)


def _why_empty(images: pl.Series, name: str, share: float) -> str:
    """Return why a split got no image, and what would give it some; `images` is each landmark's number of images."""
    most = int(images.max() or 0)  # type: ignore[arg-type]
    if most < 2:
        return "every landmark has a single image, which train needs" if most else "no image shows a landmark"
    if most < MIN_IMAGES_TO_SPLIT and most * share < 0.5:
        return f"{share:g} of {most} images, the most that a landmark has, is none; --{name} 0.5 takes one"
    return "the images of each landmark are near-duplicates of one another, and stay together; --by random parts them"


def note_division(division: Division, labels: pl.DataFrame) -> None:
    """Note the sizes of the splits, their leakage, and the landmarks that lack images in one of them."""
    assigned, leakage, swallowed = division.assigned, division.leakage, division.swallowed
    counts, held_out = np.bincount(assigned, minlength=len(SPLITS)), leakage["held_out_with_kin_in_train"]
    note(", ".join(f"{name} {count:,}" for name, count in zip(SPLITS, counts, strict=True)) + " images")
    note(
        f"{division.grouping.count:,} groups; of {leakage['near_duplicate_pairs']:,} near-duplicate pairs"
        f" {leakage['straddling_pairs']:,} straddle this split, {leakage['straddling_pairs_random']:,} a random one;"
        f" {plural(held_out, 'image')} of val and test {'has' if held_out == 1 else 'have'} kin in train,"
        f" {leakage['held_out_with_kin_in_train_random']:,} at random"
    )
    landmark_of = division.images["landmark_id"]
    size = landmark_of.drop_nulls().value_counts()
    alone = size.filter(pl.col("count") == 1)["landmark_id"]
    single = int((landmark_of.is_in(alone.implode()) & pl.Series(assigned == TRAIN)).sum())
    if single:
        note(f"{plural(single, 'landmark')} {'has' if single == 1 else 'have'} a single image, which is in train")
    for which, name, share in ((VAL, "val", division.rule.val), (TEST, "test", division.rule.test)):
        if not counts[which] and share:
            note(f"no image is in {name}: {_why_empty(size['count'], name, share)}")
        absent = len(size) - landmark_of.filter(pl.Series(assigned == which)).drop_nulls().n_unique()
        if counts[which] and absent:
            note(f"{plural(absent, 'landmark')} {'has' if absent == 1 else 'have'} no image in {name}")
    if warning := _never_learned(division, labels):
        note(warning)
    for landmark in swallowed[:5]:
        label = labels.filter(pl.col("landmark_id") == landmark["landmark_id"])["name"]
        name = label[0] if len(label) else landmark["landmark_id"]
        note(f"one group holds {landmark['in_one_group']:,} of the {landmark['images']:,} images of {name}")
    if len(swallowed) > 5:
        note(f"and so for {len(swallowed) - 5:,} more landmarks")


def _never_learned(division: Division, labels: pl.DataFrame) -> str:
    """Return a warning about landmarks that have images in val or test only; empty if there are none."""
    images = division.images.with_columns(train=pl.Series(division.assigned == TRAIN))
    if not images["train"].any():  # a dataset that is only a test set
        return ""
    without = images.group_by("landmark_id").agg(pl.col("train").any()).drop_nulls().filter(~pl.col("train"))
    names = labels.join(without, on="landmark_id", how="semi", maintain_order="left")["name"].to_list()
    if not names:
        return ""
    some = ", ".join(map(str, names[:5])) + (" …" if len(names) > 5 else "")
    have = "has" if len(names) == 1 else "have"
    return f"{plural(len(names), 'landmark')} {have} no image in train, and can never be answered: {some}"


# ── Corrections of labels ───────────────────────────────────────────────────────────────────────────────────────────


NOTHING = "none"
"""In the CSV: the image shows nothing known."""

REMOVE = "remove"
"""In the CSV: the image is to be left out of the dataset."""


_COLUMNS = ("image_id", "correct_landmark_id")


def add_corrections(dataset: Dataset, decided: pl.DataFrame) -> None:
    """Add decisions (columns of `CORRECTIONS`) to a dataset; they replace earlier ones about the same images.

    The caller holds the folder.
    """
    earlier = dataset.corrections.join(decided, on="image_id", how="anti")
    write_table(dataset.folder / CORRECTIONS_FILE, pl.concat([earlier, decided]).sort("image_id"))


def remove_corrections(dataset: Dataset) -> int:
    """Remove all corrections of a dataset, and return how many there were. The caller holds the folder."""
    remove_file(dataset.folder / CORRECTIONS_FILE)
    return len(dataset.corrections)


def read_corrections(dataset: Dataset, csv: Place) -> pl.DataFrame:
    """Return the decisions (columns of `CORRECTIONS`, sorted by id) in a CSV such as `landmarks audit` writes.

    It has the columns `image_id` and `correct_landmark_id`. The latter holds a landmark of the dataset, `none` for
    nothing known, or `remove` for an image to be left out of the dataset. Rows in which it is empty are skipped.

    Raises `LandmarksError` with the first line that is invalid.
    """
    csv = Path(csv)
    table = read_text_columns(csv, _COLUMNS, "landmarks audit RUN -o FILE.csv writes such a file")
    rows = table.filter(pl.col("correct_landmark_id") != "")
    fetched = dict(dataset.as_fetched().select("image_id", "landmark_id").iter_rows())
    known = {str(landmark_id): landmark_id for landmark_id in dataset.labels["landmark_id"]} | {
        NOTHING: None,
        REMOVE: None,
    }
    # Tables with gaps write integers as `8.0`.
    integer = pl.col("correct_landmark_id").str.to_lowercase().str.replace(r"^(-?[0-9]+)\.0+$", "${1}")
    decided: dict[str, str] = {}
    for line, id, answer in rows.select("line", "image_id", integer).iter_rows():
        where = f"{csv} line {line}"
        if id not in fetched:
            raise LandmarksError(f'{where}: {dataset.folder} holds no image "{id}"', way_out=_id_hint(id))
        if answer not in known:
            raise LandmarksError(
                f'{where}: {dataset.folder} knows no landmark "{answer}"',
                expected=f'the landmark_id of one of its {len(dataset.labels)} landmarks, "{NOTHING}" or "{REMOVE}"',
                way_out=_name_hint(dataset, answer),
            )
        if decided.setdefault(id, answer) != answer:
            raise LandmarksError(f'{where}: the image "{id}" is decided on twice, not the same both times')
    digest = file_digest(csv)
    return pl.DataFrame(
        [(id, known[answer], fetched[id], digest, answer == REMOVE) for id, answer in decided.items()],
        schema=CORRECTIONS,
        orient="row",
    ).sort("image_id")


def decisions_in(csv: Path) -> int | None:
    """Return the number of rows in which a person has filled in a decision; None if it is no CSV of decisions."""
    try:
        table = read_text_columns(csv, _COLUMNS, "")
    except LandmarksError:
        return None
    return int((table["correct_landmark_id"] != "").sum())


def _name_hint(dataset: Dataset, answer: str) -> str:
    """Return the id of the only landmark with the name `answer`, in words, or an empty string."""
    named = dataset.labels.filter(pl.col("name").str.to_lowercase() == answer)
    return f'"{named["name"][0]}" has the landmark_id {named["landmark_id"][0]}' if len(named) == 1 else ""


def _id_hint(id: str) -> str:
    numeric = id.replace(".", "").replace("+", "").upper().replace("E", "").isdigit() and not id.isdigit()
    return "a spreadsheet turned the id into a number: read the column as text" if numeric else ""
