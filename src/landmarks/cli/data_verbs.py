"""The verbs that choose, fetch, import and divide images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landmarks.cli.everywhere import Json, print_json
from landmarks.support.terminal import show, show_lines

if TYPE_CHECKING:
    from landmarks.dataset.manifest import Dataset

SHOWN = 20


def select(
    mirror: Annotated[
        str, typer.Argument(help="A mirror of the archive: a folder, or an http(s):// or s3:// address.")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the selection is written (parquet).")],
    set: Annotated[str, typer.Option(help="train, or test (the recognition test set).")] = "train",
    skip: Annotated[int, typer.Option(help="Leave out the landmarks with most images.")] = 0,
    take: Annotated[int | None, typer.Option(help="Of the others, take those with most images.")] = None,
    choose: Annotated[int | None, typer.Option(help="Of those, draw so many at random.")] = None,
    seed: Annotated[int, typer.Option(help="Decides what is drawn at random.")] = 0,
    min_images: Annotated[int | None, typer.Option(help="Only landmarks with at least so many images.")] = None,
    max_images: Annotated[int | None, typer.Option(help="Only landmarks with at most so many images.")] = None,
    landmarks: Annotated[
        str | None, typer.Option(help="Only these: ids with commas, a file, a selection, a dataset or a run.")
    ] = None,
    exclude: Annotated[
        str | None,
        typer.Option(help="Not these: the same forms, or not-landmarks (a shipped list of categories that are none)."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only names with these words, or this regular expression.")] = None,
    supercategory: Annotated[str | None, typer.Option(help="Only landmarks of this supercategory.")] = None,
    kind: Annotated[str | None, typer.Option(help="natural or human-made.")] = None,
    license: Annotated[str | None, typer.Option(help="Only images whose licence has these words.")] = None,
    clean: Annotated[bool, typer.Option("--clean", help="Only the images of the cleaned training set.")] = False,
    images_per_landmark: Annotated[
        int | None, typer.Option(help="Of landmarks with more images, draw so many at random.")
    ] = None,
    unknown: Annotated[
        int | None, typer.Option(help="Test set: keep so many images of nothing known (default: all).")
    ] = None,
    json: Json = False,
) -> None:
    """Choose landmarks and their images by a rule.

    Example, 20 landmarks drawn from those at ranks 50 to 149: landmarks select MIRROR -o twenty.parquet --skip 49
    --take 100 --choose 20 --seed 0
    """
    from landmarks.archive.select import select as select_images
    from landmarks.support.console import note, print_table

    chosen = select_images(
        mirror,
        out,
        set=set,
        skip=skip,
        take=take,
        choose=choose,
        seed=seed,
        min_images=min_images,
        max_images=max_images,
        landmarks=landmarks,
        exclude=exclude,
        name=name,
        supercategory=supercategory,
        kind=kind,
        license=license,
        clean=clean,
        images_per_landmark=images_per_landmark,
        unknown=unknown,
    )
    known = chosen.images["landmark_id"].count()
    total = {"images": len(chosen.images), "unknown": len(chosen.images) - known}
    if json:
        whole = {"path": out, "rule": chosen.rule, **total, "expected_bytes": chosen.expected_bytes}
        print_json({**whole, "landmarks": chosen.landmarks})
        return
    shown = chosen.landmarks.head(SHOWN).with_columns(name=chosen.landmarks["name"].head(SHOWN).fill_null("–"))
    print_table(["landmark", "name", "images"], shown.rows())
    if len(chosen.landmarks) > SHOWN:
        show(f"… and {len(chosen.landmarks) - SHOWN:,} more landmarks")
    also = f" and {total['unknown']:,} images of nothing known" if total["unknown"] else ""
    show(
        f"{known:,} images of {len(chosen.landmarks):,} landmarks{also}, "
        f"about {_size(chosen.expected_bytes)} in the mirror"
    )
    note(f"written to {out}")


def _size(bytes_: int) -> str:
    return f"{bytes_ / 1e9:.2f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.1f} MB"


# ── `landmarks locate` ──────────────────────────────────────────────────────────────────────────────────────────────


def locate(
    mirror: Annotated[
        str, typer.Argument(help="A mirror of the archive: a folder, or an http(s):// or s3:// address.")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The byte index (parquet).")],
    set: Annotated[str, typer.Option(help="train, test or index.")] = "train",
    workers: Annotated[int, typer.Option(help="TARs walked at once; one request each is under way.")] = 64,
    json: Json = False,
) -> int | None:
    """Make the byte index of a mirror: where each image lies, so that fetch moves images and not TARs.

    Moves half a kilobyte per image. Can be stopped at any time and run again.

    Example: landmarks locate https://s3.amazonaws.com/google-landmark -o index.parquet
    """
    from landmarks.archive.locate import locate as locate_images
    from landmarks.support.console import note

    index = locate_images(mirror, out, set=set, workers=workers)
    if json:
        counts = {"tars": index.tar_count, "indexed": len(index.tars), "unindexed": index.unindexed}
        print_json({"path": index.path, "set": index.set, "mirror": index.mirror, **counts})
    note(f"{len(index.tars)} of {index.tar_count} TARs indexed, written to {out}")
    return 1 if index.unindexed else None


# ── `landmarks fetch` ───────────────────────────────────────────────────────────────────────────────────────────────


def fetch(
    selection: Annotated[Path, typer.Argument(help="What landmarks select wrote.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The dataset's folder.")],
    mirror: Annotated[
        str | None, typer.Option(help="Where the TARs are, if not where the selection was made: a path or an address.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="A byte index (path or address): only the images travel, not whole TARs.")
    ] = None,
    max_side: Annotated[int, typer.Option(help="The longest side that is stored, in pixels.")] = 512,
    workers: Annotated[int | None, typer.Option(help="TARs worked on at once (default: by the processors).")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Let a Dask cluster do the work: its scheduler's address, tcp://host:8786.")
    ] = None,
    method: Annotated[str, typer.Option(help="auto (by cost), ranges, or stream.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would cost, and stop.")] = False,
    by_reference: Annotated[
        bool,
        typer.Option("--by-reference", help="From a dataset: leave the images in its shards, and read them there."),
    ] = False,
    add: Annotated[bool, typer.Option("--add", help="Add the images to the dataset that is in --out already.")] = False,
    json: Json = False,
) -> int | None:
    """Fetch the selected images: upright, no larger than --max-side, one shard per TAR, MD5 checked.

    Can be stopped at any time and run again. Ends with exit code 1 when a TAR could not be had.

    Example: landmarks fetch twenty.parquet -o twenty --index https://example.org/index.parquet
    """
    from landmarks.archive.fetch import fetch as fetch_images
    from landmarks.archive.fetch_plan import Plan

    fetched = fetch_images(
        selection,
        out,
        mirror=mirror,
        index=index,
        max_side=max_side,
        workers=workers,
        cluster=cluster,
        method=method,  # type: ignore[arg-type]
        dry_run=dry_run,
        by_reference=by_reference,
        add=add,
    )
    if isinstance(fetched, Plan):
        if json:
            told = ("requests", "bytes", "disk_bytes", "seconds", "bytes_per_second", "why")
            print_json({"tars": len(fetched.tasks), **{name: getattr(fetched, name) for name in told}})
        return None
    if json:
        print_json(_counts(fetched))
    return 1 if fetched.record["failed"] else None


def _counts(dataset: Dataset) -> dict[str, Any]:
    """Return what there is in a dataset and what was left out, for programs."""
    counts = {"images": len(dataset.images), "landmarks": len(dataset.labels)}
    about = ("rejected", "failed", "set")
    record = {name: dataset.record[name] for name in about if name in dataset.record}
    return {"folder": dataset.folder, "digest": dataset.digest, **counts, **record}


# ── `landmarks import` ──────────────────────────────────────────────────────────────────────────────────────────────


def import_(
    source: Annotated[
        Path, typer.Argument(help="A folder per landmark, train/val/test folders of these, or a CSV (path, label).")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the new dataset.")],
    labels: Annotated[
        Path | None, typer.Option(help="Number the landmarks as this dataset or run does; other names are refused.")
    ] = None,
    copy: Annotated[
        bool,
        typer.Option(
            "--copy/--by-reference", " /--reference", help="Copy into shards, or leave images where they are."
        ),
    ] = True,
    max_side: Annotated[int, typer.Option(min=1, help="Copies have no side longer than so many pixels.")] = 512,
    add: Annotated[bool, typer.Option("--add", help="Add the images to the dataset that is in --out already.")] = False,
    json: Json = False,
) -> None:
    """Make a dataset of images in folders or of a CSV.

    Images in the folder _unknown, or in none, show nothing known.

    Example: landmarks import ~/images -o data/mine
    """
    from landmarks.dataset.importing import import_ as import_images
    from landmarks.support.console import plural

    dataset = import_images(source, out, labels=labels, copy=copy, max_side=max_side, add=add)
    if json:
        print_json(_counts(dataset))
    else:
        show(f"{plural(len(dataset.images), 'image')} of {plural(len(dataset.labels), 'landmark')} in {out}")


# ── `landmarks join` ────────────────────────────────────────────────────────────────────────────────────────────────


def join(
    data: Annotated[list[Path], typer.Argument(help="The folders of two datasets or more.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the new dataset.")],
    by_reference: Annotated[
        bool, typer.Option("--by-reference", help="Leave the images in their shards, and read them there.")
    ] = False,
    max_side: Annotated[
        int | None, typer.Option(min=16, help="Shrink images with a longer side than so many pixels.")
    ] = None,
    json: Json = False,
) -> None:
    """Make one dataset of several: ids, labels, groups, splits, authors and licences are kept, clashes are named.

    Landmarks are the same by the archive's ids or by their names; an image that several hold is there once.

    Example: landmarks join data/twenty data/mine -o data/both
    """
    from landmarks.dataset.joining import join as join_datasets
    from landmarks.support.console import plural

    dataset = join_datasets(data, out, by_reference=by_reference, max_side=max_side)
    if json:
        print_json(_counts(dataset))
    else:
        show(f"{plural(len(dataset.images), 'image')} of {plural(len(dataset.labels), 'landmark')} in {out}")


# ── `landmarks split` ───────────────────────────────────────────────────────────────────────────────────────────────


def split(
    data: Annotated[Path, typer.Argument(help="The folder of a dataset.")],
    *,
    by: Annotated[
        str | None,
        typer.Option(
            help="group: near-duplicates stay together, and an author's images of one landmark; or random.",
            show_default="group",
        ),
    ] = None,
    val: Annotated[
        float | None, typer.Option(help="Share of the images for validation; 0 for none.", show_default="0.15")
    ] = None,
    test: Annotated[
        float | None,
        typer.Option(help="Share for the test; 0 where a test set exists elsewhere.", show_default="0.15"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides which images go where.", show_default="0")] = None,
    keep_test: Annotated[
        bool | None,
        typer.Option(
            "--keep-test/--anew",
            help="Leave the test split as it is and take val out of the others, or divide everything.",
            show_default="keep a test split that came with the images",
        ),
    ] = None,
    corrections: Annotated[
        Path | None,
        typer.Option(help="The CSV that landmarks audit wrote, its last column filled in; it holds from here on."),
    ] = None,
    keep_corrections: Annotated[
        bool, typer.Option("--keep-corrections/--no-corrections", help="Keep earlier corrections, or take them back.")
    ] = True,
    copies: Annotated[
        str,
        typer.Option(
            help="look: find cropped, framed, recoloured and mirrored copies by the images themselves; no: by stored "
            "hashes alone; or a CSV of further pairs, as landmarks audit writes."
        ),
    ] = "look",
    json: Json = False,
) -> None:
    """Divide a dataset into train, val and test, landmark by landmark, and say what that gives away.

    A test split that came with the images (import of train and test folders, or of a CSV with splits) stays as it
    is, and validation comes out of the others; --anew divides everything. With --corrections alone every image
    stays in its split.

    What landmarks audit found is corrected with --corrections once a person filled in its last column: the id of the
    landmark, none, or remove. Rows left empty are passed over, labels as they were fetched are kept.

    Example: landmarks split data/twenty --by group --val 0.15 --test 0.15 --seed 0
    """
    from json import loads

    from landmarks.dataset.manifest import SPLITS
    from landmarks.dataset.split import split as split_dataset
    from landmarks.support.console import print_table

    dataset = split_dataset(
        data,
        by=by,
        val=val,
        test=test,
        seed=seed,
        keep_test=keep_test,
        corrections=corrections,
        keep_corrections=keep_corrections,
        copies=copies,
    )
    rows = []
    for name in SPLITS:
        images = dataset.split(name)
        known = images["landmark_id"].drop_nulls()
        rows.append((name, len(images), known.n_unique(), len(images) - len(known), images["group"].n_unique()))
    columns = ("split", "images", "landmarks", "of nothing known", "groups")
    if json:
        leakage = loads(dataset.split_metadata["leakage"])
        splits = [dict(zip(columns, row, strict=True)) for row in rows]
        print_json({"splits": splits, "leakage": leakage, "corrected": len(dataset.corrected)})
    else:
        print_table(columns, rows)


# ── `landmarks unpack` ──────────────────────────────────────────────────────────────────────────────────────────────


def unpack(
    data: Annotated[Path, typer.Argument(help="The folder of a dataset.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the folders are written.")],
    json: Json = False,
) -> None:
    """Write a dataset's images into folders per split and landmark, for people and other tools.

    Example: landmarks unpack data/twenty -o folders/twenty
    """
    from landmarks.dataset.unpack import unpack as unpack_images

    folder = unpack_images(data, out)
    if json:
        print_json({"folder": folder})
    else:
        show(f"unpacked into {folder}")


# ── `landmarks credits` ─────────────────────────────────────────────────────────────────────────────────────────────


def credits(
    data: Annotated[Path, typer.Argument(help="The folder of a dataset.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Write the whole list here: CSV if the name ends with .csv, else text; - is the screen."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List who made the images and under which licence, as the licences ask of whoever passes them on.

    Without a file for the list, the licences are counted.

    Example: landmarks credits data/twenty -o CREDITS.txt
    """
    from landmarks.dataset.credits import as_text, by_license
    from landmarks.dataset.credits import credits as list_credits
    from landmarks.support.console import note, print_table

    to_screen = str(out) == "-"
    listed = list_credits(data, None if to_screen else out)
    if json:
        print_json(listed)
    elif to_screen:
        show_lines(as_text(listed))
    elif out is None:
        print_table(["licence", "images", "authors"], by_license(listed).rows())
        note(f"the whole list, as licences ask: landmarks credits {data} -o CREDITS.txt")
    if out is not None and not to_screen:
        note(f"credits of {len(listed):,} images written to {out}")


# ── `landmarks audit` ───────────────────────────────────────────────────────────────────────────────────────────────


def audit(
    run: Annotated[Path, typer.Argument(help="The run folder whose network looks at the images.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The CSV to write; a sheet of the images lies beside it.")],
    data: Annotated[Path | None, typer.Option(help="Another dataset than the run's own.")] = None,
    split: Annotated[
        str, typer.Option(help="train, val, test or all; a dataset without splits is taken whole.")
    ] = "train",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """List the images of a split whose labels are likely wrong, for a person to look at; nothing is changed.

    Beside them: copies in two splits or with two labels, and images of no landmark. The page (the CSV's name with
    .html) shows all of them and is decided on with the keyboard; landmarks split DATA --corrections CSV takes what it
    saves, or the CSV once its last column is filled in, and --copies takes FILE.copies.csv.

    Example: landmarks audit runs/mobilenet -o wrong.csv
    """
    from landmarks.evaluation.audit import audit as find_label_errors
    from landmarks.support.console import print_table

    listed = find_label_errors(run, out, data=data, split=split, device=device)
    if json:
        print_json(listed)
        return
    first = listed.select("image_id", "name", "suggested_name", "margin").head(10)
    if len(first):
        rows = [(*row[:3], f"{row[3]:.2f}") for row in first.iter_rows()]
        print_table(["image", "labelled", "looks like", "margin"], rows, "likely label errors")
    show(f"{len(listed)} likely label errors written to {out}; nothing was changed")
    if len(first):
        show(f"decide on {out.with_suffix('.html')}, or fill in correct_landmark_id (an id, none, or remove), then:")
        show(f"landmarks split DATA --corrections {out}")
