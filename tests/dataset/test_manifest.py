"""A dataset's tables: what its digest says, and which images are in a split."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.dataset.manifest import CORRECTIONS, IMAGES, LABELS, SPLIT, Dataset
from landmarks.support.errors import UsageError
from landmarks.support.files import digest_of


@given(st.lists(st.text(max_size=6), max_size=9, unique=True), st.none() | st.text(max_size=3))
def test_the_digest_is_that_of_all_lines_in_one_text(ids: list[str], content: str | None) -> None:
    splits = pl.DataFrame({"image_id": ids, "split": ["train"] * len(ids)}, schema=SPLIT)
    none = pl.DataFrame(schema=CORRECTIONS)
    images, labels = pl.DataFrame(schema=IMAGES), pl.DataFrame(schema=LABELS)
    dataset = Dataset(Path("x"), {"digest": content}, images, labels, splits, {}, none)
    lines = "\n".join(f"{identity} train" for identity in ids)
    assert dataset.digest == digest_of(content, lines)


@given(st.permutations(range(9)), st.permutations(range(9)))
def test_a_split_is_the_same_in_whatever_order_the_tables_are(images_at: list[int], splits_at: list[int]) -> None:
    names = [f"i{number}" for number in range(9)]
    images = pl.DataFrame({name: [None] * 9 for name in IMAGES}, schema=IMAGES).with_columns(
        image_id=pl.Series(names), landmark_id=pl.Series([5, 7, None] * 3, dtype=pl.Int64)
    )
    labels = pl.DataFrame(
        {"label": [0, 1], "landmark_id": [5, 7]}, schema={k: LABELS[k] for k in ("label", "landmark_id")}
    )
    splits = pl.DataFrame({"image_id": names, "split": ["train", "val", "train"] * 3}, schema=SPLIT)
    none = pl.DataFrame(schema=CORRECTIONS)
    dataset = Dataset(Path("x"), {}, images[images_at], labels, splits[splits_at], {}, none)
    found = dataset.split("train")
    assert found["image_id"].to_list() == ["i0", "i2", "i3", "i5", "i6", "i8"]
    assert found["label"].to_list() == [0, None] * 3
    assert dataset.count("train") == 6 and dataset.count("val") == 3 and dataset.count("all") == 9


def test_a_misspelt_split_is_wrong_usage_with_the_likely_one() -> None:
    images = pl.DataFrame({"image_id": ["a"], "landmark_id": [0]})
    dataset = Dataset(Path("data"), {}, images, pl.DataFrame(schema=LABELS), None, {}, pl.DataFrame(schema=CORRECTIONS))
    with pytest.raises(
        UsageError, match=r'no split "tset"; expected one of train, val, test, all; did you mean "test"\?'
    ):
        dataset.split("tset")
