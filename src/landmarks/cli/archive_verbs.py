"""The verbs that select images of the archive and fetch them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landmarks.cli.everywhere import Json, counts_of, print_json
from landmarks.support.console import note, plural, print_table, show

MirrorPlace = Annotated[
    str, typer.Argument(help="A mirror of the archive: a folder, or an http(s):// or s3:// address.")
]

MAX_LISTED = 20
"""How many landmarks of a selection are listed."""


def select(
    mirror: MirrorPlace,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the selection is written (parquet).")],
    set: Annotated[str, typer.Option(help="train, or test (the recognition test set).")] = "train",
    skip: Annotated[int, typer.Option(help="Leave out this many landmarks, those with the most images.")] = 0,
    take: Annotated[int | None, typer.Option(help="Then take this many, again those with the most images.")] = None,
    choose: Annotated[int | None, typer.Option(help="Of these, draw this many at random.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random draws.")] = 0,
    min_images: Annotated[int | None, typer.Option(help="Only landmarks with at least this many images.")] = None,
    max_images: Annotated[int | None, typer.Option(help="Only landmarks with at most this many images.")] = None,
    landmarks: Annotated[
        str | None,
        typer.Option(help="Only these landmarks: ids with commas, a file, a selection, a dataset or a run."),
    ] = None,
    exclude: Annotated[
        str | None,
        typer.Option(
            help="Not these landmarks: the same forms, or not-landmarks (a shipped list of categories that are none)."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Only landmarks with this text in their name, or this regular expression.")
    ] = None,
    supercategory: Annotated[str | None, typer.Option(help="Only landmarks of this supercategory.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only landmarks of this kind: natural or human-made.")] = None,
    license: Annotated[str | None, typer.Option(help="Only images with this text in their licence.")] = None,
    clean: Annotated[bool, typer.Option("--clean", help="Only the images of the cleaned training set.")] = False,
    images_per_landmark: Annotated[
        int | None, typer.Option(help="Draw at most this many images of each landmark.")
    ] = None,
    unknown: Annotated[int | None, typer.Option(help="Test set: keep this many unknown images (default: all).")] = None,
    json: Json = False,
) -> None:
    """Choose landmarks and their images by a rule.

    Example, 20 landmarks drawn from those at ranks 50 to 149: landmarks select MIRROR -o twenty.parquet --skip 49
    --take 100 --choose 20 --seed 0
    """
    from landmarks.archive.select import select as select_images

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
    counts = {"images": len(chosen.images), "unknown": len(chosen.images) - known}
    if json:
        summary = {"path": out, "rule": chosen.rule, **counts, "expected_bytes": chosen.expected_bytes}
        print_json({**summary, "landmarks": chosen.landmarks})
        return
    listed = chosen.landmarks.head(MAX_LISTED)
    print_table(["landmark", "name", "images"], listed.with_columns(name=listed["name"].fill_null("–")).rows())
    if len(chosen.landmarks) > MAX_LISTED:
        show(f"… and {len(chosen.landmarks) - MAX_LISTED:,} more landmarks")
    unknown_images = f" and {plural(counts['unknown'], 'image')} of nothing known" if counts["unknown"] else ""
    show(
        f"{plural(known, 'image')} of {plural(len(chosen.landmarks), 'landmark')}{unknown_images}, "
        f"about {_size(chosen.expected_bytes)} in the mirror"
    )
    note(f"written to {out}")


def _size(bytes: int) -> str:
    return f"{bytes / 1e9:.2f} GB" if bytes >= 1e9 else f"{bytes / 1e6:.1f} MB"


# ── `landmarks locate` ──────────────────────────────────────────────────────────────────────────────────────────────


def locate(
    mirror: MirrorPlace,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The byte index (parquet).")],
    set: Annotated[str, typer.Option(help="train, test or index.")] = "train",
    workers: Annotated[int, typer.Option(help="TARs read at once, by one request at a time each.")] = 64,
    json: Json = False,
) -> int | None:
    """Make the byte index of a mirror: where each image is, so that fetch transfers images instead of whole TARs.

    It transfers half a kilobyte per image. It can be stopped at any time and run again.

    Example: landmarks locate https://s3.amazonaws.com/google-landmark -o index.parquet
    """
    from landmarks.archive.locate import locate as locate_images

    index = locate_images(mirror, out, set=set, workers=workers)
    if json:
        tars = {"tars": index.tar_count, "indexed": len(index.tars), "unindexed": index.unindexed}
        print_json({"path": index.path, "set": index.set, "mirror": index.mirror, **tars})
    note(f"{len(index.tars)} of {index.tar_count} TARs indexed, written to {out}")
    return 1 if index.unindexed else None


# ── `landmarks fetch` ───────────────────────────────────────────────────────────────────────────────────────────────


def fetch(
    selection: Annotated[Path, typer.Argument(help="A selection that landmarks select wrote.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The dataset's folder.")],
    mirror: Annotated[
        str | None, typer.Option(help="Where the TARs are, if not where the selection was made: a path or an address.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="A byte index (path or address), to transfer only the images, not whole TARs.")
    ] = None,
    max_side: Annotated[int, typer.Option(help="The longest side of stored images, in pixels.")] = 512,
    workers: Annotated[
        int | None, typer.Option(help="TARs worked on at once (default: twice the processors, 4 to 16).")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Address of the scheduler of a Dask cluster to work on: tcp://host:8786.")
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

    It can be stopped at any time and run again. The exit code is 1 when a TAR could not be fetched.

    Example: landmarks fetch twenty.parquet -o twenty --index https://example.org/index.parquet
    """
    from landmarks.archive.fetch import fetch as fetch_images
    from landmarks.archive.fetch_plan import FetchPlan

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
    if isinstance(fetched, FetchPlan):
        if json:
            fields = ("requests", "bytes", "disk_bytes", "seconds", "bytes_per_second", "why")
            print_json({"tars": len(fetched.tasks), **{name: getattr(fetched, name) for name in fields}})
        return None
    if json:
        print_json(counts_of(fetched))
    return 1 if fetched.record["failed"] else None
