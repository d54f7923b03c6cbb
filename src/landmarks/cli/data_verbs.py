"""The verbs that make datasets of a user's own images, divide them, and look for errors in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landmarks.cli.everywhere import Json, counts_of, print_json
from landmarks.support.console import note, plural, print_table, show, show_lines
from landmarks.support.places import in_shell

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
    max_side: Annotated[int, typer.Option(min=1, help="The longest side of copies, in pixels.")] = 512,
    add: Annotated[bool, typer.Option("--add", help="Add the images to the dataset that is in --out already.")] = False,
    json: Json = False,
) -> None:
    """Make a dataset of images in folders or listed in a CSV.

    Images in the folder _unknown, or in no landmark's folder, are unknown.

    Example: landmarks import ~/images -o data/mine
    """
    from landmarks.dataset.importing import import_ as import_images

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
    max_side: Annotated[int | None, typer.Option(min=16, help="Shrink images to this longest side, in pixels.")] = None,
    cache_gb: Annotated[
        float,
        typer.Option(min=0, help="Gigabytes kept here of images that are left at an address, once they were read."),
    ] = 10.0,
    json: Json = False,
) -> None:
    """Make one dataset of several: ids, labels, groups, splits, authors and licences are kept, clashes are named.

    Landmarks are matched by the archive's ids or by their names; an image in several datasets is kept once. A
    dataset in a bucket or on a web server is copied; with --by-reference only its tables are, and its images are
    read from there whenever they are needed, so that a dataset larger than this disk can be trained on.

    Example: landmarks join data/twenty data/mine -o data/both
    """
    from landmarks.dataset.joining import join as join_datasets

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
            help="group: near-duplicates, and an author's images of one landmark, stay together; or random.",
            show_default="group",
        ),
    ] = None,
    val: Annotated[
        float | None, typer.Option(help="Share of images for validation; 0 for none.", show_default="0.15")
    ] = None,
    test: Annotated[
        float | None,
        typer.Option(help="Share of images for the test; 0 where a test set exists elsewhere.", show_default="0.15"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random division.", show_default="0")] = None,
    keep_test: Annotated[
        bool | None,
        typer.Option(
            "--keep-test/--anew",
            help="Keep the test split as it is and take val from the other images, or divide everything.",
            show_default="keep a test split that came with the images",
        ),
    ] = None,
    corrections: Annotated[
        Path | None,
        typer.Option(help="The CSV that landmarks audit wrote, with its last column filled in; it is kept."),
    ] = None,
    keep_corrections: Annotated[
        bool, typer.Option("--keep-corrections/--no-corrections", help="Keep earlier corrections, or undo them.")
    ] = True,
    copies: Annotated[
        str,
        typer.Option(
            help="look: find cropped, framed, recoloured and mirrored copies in the images themselves; no: use only "
            "the stored hashes; or a CSV of further pairs, as landmarks audit writes."
        ),
    ] = "look",
    json: Json = False,
) -> None:
    """Divide a dataset into train, val and test, landmark by landmark, and report what leaks between them.

    A test split that came with the images (import of train and test folders, or of a CSV with splits) is kept as
    it is, and validation is taken from the other images; --anew divides everything. With --corrections alone, every
    image stays in its split.

    --corrections takes the CSV of landmarks audit once its last column is filled in: the id of the landmark, none,
    or remove. Rows left empty are skipped; the original labels are kept as well.

    Example: landmarks split data/twenty --by group --val 0.15 --test 0.15 --seed 0
    """
    from json import loads

    from landmarks.dataset.manifest import SPLITS
    from landmarks.dataset.split import split as split_dataset

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
            "--out",
            "-o",
            help="Write the full list here: CSV if the name ends with .csv, else text; - is standard output.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the images' authors and licences, as the licences require of anyone who passes the images on.

    Without --out, the images and authors of each licence are counted.

    Example: landmarks credits data/twenty -o CREDITS.txt
    """
    from landmarks.dataset.credits import by_license, credits_as_text
    from landmarks.dataset.credits import credits as list_credits

    to_stdout = str(out) == "-"
    table = list_credits(data, None if to_stdout else out)
    if json:
        print_json(table)
    elif to_stdout:
        show_lines(credits_as_text(table))
    elif out is None:
        print_table(["licence", "images", "authors"], by_license(table).rows())
        note(f"the whole list, as licences ask: landmarks credits {in_shell(data)} -o CREDITS.txt")
    if out is not None and not to_stdout:
        note(f"credits of {plural(len(table), 'image')} written to {out}")


# ── `landmarks audit` ───────────────────────────────────────────────────────────────────────────────────────────────


def audit(
    run: Annotated[Path, typer.Argument(help="The folder of the run whose network is used.")],
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The CSV to write; a page of the images is written next to it.")
    ],
    data: Annotated[Path | None, typer.Option(help="Another dataset than the run's own.")] = None,
    split: Annotated[
        str, typer.Option(help="train, val, test or all; of a dataset without splits, all images are used.")
    ] = "train",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """List the images of a split whose labels are likely wrong, for a person to decide; nothing is changed.

    Copies in two splits or with two labels, and images of no landmark, are listed as well. The page (the CSV's name
    with .html) shows all of them, to decide on with the keyboard. Then landmarks split DATA --corrections takes the
    file that the page saves, or the CSV with its last column filled in; --copies takes FILE.copies.csv.

    Example: landmarks audit runs/mobilenet -o wrong.csv
    """
    from landmarks.evaluation.audit import audit as find_label_errors

    errors = find_label_errors(run, out, data=data, split=split, device=device)
    if json:
        print_json(errors)
        return
    first = errors.select("image_id", "name", "suggested_name", "margin").head(10)
    if len(first):
        rows = [(*row[:3], f"{row[3]:.2f}") for row in first.iter_rows()]
        print_table(["image", "labelled", "looks like", "margin"], rows, "likely label errors")
    show(f"{len(errors)} likely label errors written to {out}; nothing was changed")
    if len(first):
        show(f"decide on {out.with_suffix('.html')}, or fill in correct_landmark_id (an id, none, or remove), then:")
        show(f"landmarks split DATA --corrections {in_shell(out)}")
