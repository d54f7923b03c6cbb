"""A run carries which images it was trained on and validated with, whole, and before it is called finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from striped import make_dataset

import landmarks.training.run as run_files
from landmarks.dataset.manifest import Dataset
from landmarks.support.files import file_digest, read_record
from landmarks.support.tables import read_table
from landmarks.training.own_data import find_seen, seen_rows
from landmarks.training.recipe import Recipe
from landmarks.training.run import SEEN, open_run
from landmarks.training.train import train


def test_a_run_holds_what_it_was_trained_on_and_validated_with(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path
) -> None:
    run = train(stripes.folder, tmp_path / "run", recipe=replace(small_recipe, epochs=0))
    table = pl.read_parquet(run.folder / "images.parquet")
    assert dict(table.schema) == SEEN
    splits = dict(pl.read_parquet(stripes.folder / "splits.parquet").filter(pl.col("split") != "test").rows())
    assert dict(table.select("image_id", "split").rows()) == splits
    images = pl.read_parquet(stripes.folder / "images.parquet")
    same = ["image_id", "landmark_id", "length", "width", "height", "phash"]
    assert table.select(same).equals(images.join(table, on="image_id", how="semi").select(same).sort("image_id"))
    assert table["through"].null_count() == len(table)
    assert run.record["data"]["seen"] == file_digest(run.folder / "images.parquet")


def test_what_shows_nothing_known_was_not_trained_on(small_recipe: Recipe, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", landmarks=2, train=3, val=2, test=1)
    images = pl.read_parquet(data.folder / "images.parquet")
    nameless = images["image_id"][0]
    unknown = pl.when(pl.col("image_id") == nameless).then(None).otherwise("landmark_id").alias("landmark_id")
    images.with_columns(unknown).write_parquet(data.folder / "images.parquet")
    run = train(data.folder, tmp_path / "run", recipe=replace(small_recipe, epochs=0))
    seen = run.seen
    assert seen is not None and nameless not in seen["image_id"].to_list() and len(seen) == 9


def test_a_run_begun_from_another_carries_what_that_one_had_seen(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path
) -> None:
    first = train(stripes.folder, tmp_path / "first", recipe=replace(small_recipe, epochs=1, head_epochs=0))
    assert first.record["best"]["phase"] == "finetune"
    other = make_dataset(tmp_path / "data", landmarks=2, train=3, val=2, test=1)
    later = train(other.folder, tmp_path / "later", recipe=replace(small_recipe, epochs=0, weights=str(first.folder)))
    seen = later.seen
    assert seen is not None
    before = seen.filter(pl.col("through") == "first").drop("through")
    assert before.equals(pl.read_parquet(first.folder / "images.parquet").drop("through"))
    assert len(seen) - len(before) == 10
    third = train(other.folder, tmp_path / "third", recipe=replace(small_recipe, epochs=0, weights=str(later.folder)))
    assert read_table(third.folder / "images.parquet").equals(seen)


def test_a_backbone_that_was_left_as_it_was_has_seen_nothing(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path
) -> None:
    first = train(stripes.folder, tmp_path / "first", recipe=replace(small_recipe, epochs=0))
    later = train(stripes.folder, tmp_path / "later", recipe=replace(small_recipe, epochs=0, weights=str(first.folder)))
    seen = later.seen
    assert seen is not None and seen["through"].null_count() == len(seen)


def test_the_table_is_whole_before_the_run_is_finished(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    original = run_files.write_record

    def looking(path: Path, *arguments: object, **named: object) -> None:
        if path.name == "run.json":
            names.extend(sorted(entry.name for entry in path.parent.iterdir()))
        original(path, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(run_files, "write_record", looking)
    train(stripes.folder, tmp_path / "run", recipe=replace(small_recipe, epochs=0))
    assert "images.parquet" in names and "model.safetensors" in names and "run.json" not in names


PROGRAM = """
import os, signal, sys
import landmarks.training.run as files
from landmarks.cli.main import run

original, left = files.write_table, int(sys.argv[1])

def mortal(path, *arguments, **named):
    global left
    if path.name == "images.parquet":
        if left == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        original(path, *arguments, **named)
        if left == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        original(path, *arguments, **named)

files.write_table = mortal
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.slow
def test_killed_around_the_table_a_training_ends_in_the_same_run(small_weights: Path, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", landmarks=2, train=4, val=2, test=1)
    words = ["train", str(data.folder), "--backbone", "test_resnet", "--weights", str(small_weights)]
    words += ["--image-size", "32", "--epochs", "1", "--batch-size", "4", "--tracking", "none"]

    def life(out: Path, kill: int) -> int:
        command = [sys.executable, "-c", PROGRAM, str(kill), *words, "-o", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, check=False, capture_output=True).returncode

    assert life(tmp_path / "whole", 0) == 0
    broken = tmp_path / "broken"
    for kill in (1, 2):
        assert life(broken, kill) == -signal.SIGKILL
        assert not (broken / "run.json").exists()
    assert life(broken, 0) == 0
    assert (broken / "images.parquet").read_bytes() == (tmp_path / "whole" / "images.parquet").read_bytes()
    assert open_run(broken).digest == open_run(tmp_path / "whole").digest
    images = [read_record(run / "run.json")["data"]["seen"] for run in (broken, tmp_path / "whole")]
    assert images[0] == images[1]


def rows(*images: tuple[str, int | None, int]) -> pl.DataFrame:
    """Return images of (id, perceptual hash, length), all of one size."""
    table = pl.DataFrame(images, schema={"image_id": pl.String, "phash": pl.UInt64, "length": pl.UInt32}, orient="row")
    return table.with_columns(
        width=pl.lit(60, pl.UInt32), height=pl.lit(40, pl.UInt32), landmark_id=pl.lit(1, pl.Int64)
    )


SAME = [
    ("the same file", ("a", 0b1111 << 40, 9), ("a", 0b1111 << 40, 9), True),
    ("another name", ("b", 0b1111 << 40, 9), ("a", 0b1111 << 40, 9), True),
    ("made smaller", ("a", 0b1110 << 40, 5), ("a", 0b1111 << 40, 9), True),
    ("another of that name", ("a", 0x0F0F0F0F, 9), ("a", 0xF0F0F0F0, 9), False),
    (
        "the archive's id, made much smaller",
        ("00ff00ff00ff00ff", 0x0F0F0F0F, 5),
        ("00ff00ff00ff00ff", 0xF0F0F0F0, 9),
        True,
    ),
    ("nearly alike, another name", ("b", 0b1110 << 40, 9), ("a", 0b1111 << 40, 9), False),
    ("without structure, another name", ("b", 0, 9), ("a", 0, 9), False),
    ("without structure, the same file", ("a", 0, 9), ("a", 0, 9), True),
    ("not hashed, another size in bytes", ("a", None, 8), ("a", None, 9), False),
]


@pytest.mark.parametrize("image, seen, same", [case[1:] for case in SAME], ids=[case[0] for case in SAME])
def test_an_image_is_the_same_when(
    image: tuple[str, int | None, int], seen: tuple[str, int | None, int], same: bool
) -> None:
    found = find_seen(rows(image), seen_rows(rows(seen), "train"))
    assert found.rows() == ([(image[0], seen[0], "train", None)] if same else [])


def test_each_image_is_sighted_once_in_its_own_training_first() -> None:
    mine, before = seen_rows(rows(("a", 7, 9), ("b", 7, 9)), "train"), seen_rows(rows(("a", 7, 9)), "val")
    seen = pl.concat([before.with_columns(through=pl.lit("first")), mine])
    found = find_seen(rows(("a", 7, 9), ("c", 7, 9)), seen)
    assert found.rows()[0] == ("a", "a", "train", None)
    assert found["image_id"].to_list() == ["a", "c"] and found["through"].null_count() == 2
