"""`landmarks select`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

SHOWN = 20


def select(
    mirror: Annotated[
        str, typer.Argument(help="A mirror of the archive: a folder, or an http(s):// or s3:// address.")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the selection is written (parquet).")],
    set: Annotated[str, typer.Option(help="train, or test (the recognition test set).")] = "train",
    skip: Annotated[int, typer.Option(help="Leave out the landmarks with most photographs.")] = 0,
    take: Annotated[int | None, typer.Option(help="Of the others, take those with most photographs.")] = None,
    choose: Annotated[int | None, typer.Option(help="Of those, draw so many at random.")] = None,
    seed: Annotated[int, typer.Option(help="Decides what is drawn at random.")] = 0,
    min_images: Annotated[int | None, typer.Option(help="Only landmarks with at least so many photographs.")] = None,
    max_images: Annotated[int | None, typer.Option(help="Only landmarks with at most so many photographs.")] = None,
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
    license: Annotated[str | None, typer.Option(help="Only photographs whose licence has these words.")] = None,
    clean: Annotated[bool, typer.Option("--clean", help="Only the photographs of the cleaned training set.")] = False,
    others: Annotated[
        int | None, typer.Option(help="Test set: keep so many photographs of nothing known (default: all).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was chosen as JSON.")] = False,
) -> None:
    """Choose landmarks and their photographs by a rule.

    Example, 20 landmarks drawn from those at ranks 50 to 149: landmarks select MIRROR -o twenty.parquet --skip 49
    --take 100 --choose 20 --seed 0
    """
    from landmarks.archive.choose import select as select_photographs
    from landmarks.support.console import note, print_table
    from landmarks.support.console import out as screen

    chosen = select_photographs(
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
        others=others,
    )
    known = chosen.photographs["landmark_id"].count()
    total = {"photographs": len(chosen.photographs), "others": len(chosen.photographs) - known}
    if as_json:
        whole = {"rule": chosen.rule, **total, "expected_bytes": chosen.expected_bytes}
        print(json.dumps({**whole, "landmarks": chosen.landmarks.to_dicts()}, indent=2, ensure_ascii=False))
        return
    shown = chosen.landmarks.head(SHOWN).with_columns(name=chosen.landmarks["name"].head(SHOWN).fill_null("–"))
    print_table(["landmark", "name", "photographs"], shown.rows())
    if len(chosen.landmarks) > SHOWN:
        screen.print(f"… and {len(chosen.landmarks) - SHOWN:,} more landmarks")
    also = f" and {total['others']:,} photographs of nothing known" if total["others"] else ""
    screen.print(
        f"{known:,} photographs of {len(chosen.landmarks):,} landmarks{also}, "
        f"about {_size(chosen.expected_bytes)} in the mirror"
    )
    note(f"written to {out}")


def _size(bytes_: int) -> str:
    return f"{bytes_ / 1e9:.2f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.1f} MB"
