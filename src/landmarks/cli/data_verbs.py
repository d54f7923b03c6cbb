"""The verbs that make datasets of images people have, divide them, and look for what is wrong in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landmarks.cli.everywhere import Json, counts_of, print_json
from landmarks.support.terminal import show, show_lines

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
        print_json(counts_of(dataset))
    else:
        show(f"{plural(len(dataset.images), 'image')} of {plural(len(dataset.labels), 'landmark')} in {out}")


# ── `landmarks join` ────────────────────────────────────────────────────────────────────────────────────────────────


def join(
    data: Annotated[
        list[str], typer.Argument(help="Folders of two datasets or more; or addresses, of which one is enough.")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the new dataset.")],
    by_reference: Annotated[
        bool, typer.Option("--by-reference", help="Leave the images in their shards, and read them there.")
    ] = False,
    max_side: Annotated[
        int | None, typer.Option(min=16, help="Shrink images with a longer side than so many pixels.")
    ] = None,
    cache_gb: Annotated[
        float,
        typer.Option(min=0, help="Of images left at an address, keep so many gigabytes here once they were read."),
    ] = 10.0,
    json: Json = False,
) -> None:
    """Make one dataset of several: ids, labels, groups, splits, authors and licences are kept, clashes are named.

    Landmarks are the same by the archive's ids or by their names; an image that several hold is there once. A
    dataset in a bucket or on a web server is brought here; with --by-reference its tables alone, and its images are
    read there whenever they are needed, so that a dataset larger than this disk can be trained on.

    Example: landmarks join data/twenty data/mine -o data/both
    """
    from landmarks.dataset.joining import join as join_datasets
    from landmarks.support.console import plural

    dataset = join_datasets(data, out, by_reference=by_reference, max_side=max_side, cache_gb=cache_gb)
    if json:
        print_json(counts_of(dataset))
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
    from landmarks.dataset.credits import by_license, credits_as_text
    from landmarks.dataset.credits import credits as list_credits
    from landmarks.support.console import note, plural, print_table

    to_screen = str(out) == "-"
    listed = list_credits(data, None if to_screen else out)
    if json:
        print_json(listed)
    elif to_screen:
        show_lines(credits_as_text(listed))
    elif out is None:
        print_table(["licence", "images", "authors"], by_license(listed).rows())
        note(f"the whole list, as licences ask: landmarks credits {data} -o CREDITS.txt")
    if out is not None and not to_screen:
        note(f"credits of {plural(len(listed), 'image')} written to {out}")


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
