"""A dataset as a notebook shows it: the numbers of images and landmarks in each split, and a few images."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

import polars as pl

from landmarks.dataset.images import ImageError, decode, encode, shrink
from landmarks.dataset.manifest import SPLITS, Dataset
from landmarks.dataset.shards import ImageReader
from landmarks.support.console import html_table

SHOWN = 6
"""Number of images shown, each of another landmark."""

SIDE = 112
"""Longer side of the images shown, in pixels."""


def dataset_html(dataset: Dataset) -> str:
    """Return self-contained HTML with a table of the splits and a row of small images."""
    images = dataset.split("all")
    known = images.filter(pl.col("label").is_not_null())
    rows = [("all", len(images), known["label"].n_unique(), len(images) - len(known))]
    for name in SPLITS if dataset.splits is not None else ():
        chosen = dataset.split(name)
        labels = chosen["label"].drop_nulls()
        rows.append((name, len(chosen), labels.n_unique(), len(chosen) - len(labels)))
    table = html_table(["split", "images", "landmarks", "of anything else"], rows, str(dataset.folder))
    few = known.unique("label", keep="first", maintain_order=True).head(SHOWN)
    return table + "".join(_figure(dataset, row) for row in few.iter_rows(named=True))


def _figure(dataset: Dataset, row: Mapping[str, Any]) -> str:
    (name,) = dataset.names_of([row["label"]])
    try:
        data = ImageReader(dataset).read(row["shard"], row["offset"], row["length"])
        small = encode(shrink(decode(data, min_side=SIDE), SIDE), quality=80)
    except (ImageError, OSError) as error:
        return f"<p>{escape(name)}: {escape(str(error))}</p>"
    source = f"data:image/jpeg;base64,{base64.b64encode(small).decode()}"
    return (
        '<figure style="display:inline-block;margin:4px;text-align:center">'
        f'<img src="{source}" alt="{escape(name)}"><figcaption>{escape(name)}</figcaption></figure>'
    )
