"""Datasets join and grow: what was known of an image stays, and nothing is decoded or asked again."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from landmarks.cli.main import run
from landmarks.dataset import images as decoding
from landmarks.dataset.images import encode, resize
from landmarks.dataset.importing import import_
from landmarks.dataset.joining import ADDING, join
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.shards import ImageReader
from landmarks.dataset.split import split
from landmarks.dataset.unpack import unpack
from landmarks.support.errors import StaleError, UsageError
from landmarks.support.tables import read_metadata


def put(path: Path, seed: int, side: int = 60) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    spots = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.write_bytes(encode(resize(spots, side, 40)))


def album(folder: Path, counts: dict[str, int], first: int = 0) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        for one in range(count):
            put(folder / name / f"{name}{first + one}.jpg", first * 1000 + 100 * number + one)
    return folder


def all_bytes(dataset: Dataset) -> dict[str, bytes]:
    reader = ImageReader(dataset)
    rows = dataset.images.select("image_id", "shard", "offset", "length").iter_rows()
    return {id: reader.read(shard, offset, length) for id, shard, offset, length in rows}


def shown(dataset: Dataset) -> dict[str, str | None]:
    names = dict(dataset.labels.select("landmark_id", "name").iter_rows())
    return {id: names.get(landmark) for id, landmark in dataset.images.select("image_id", "landmark_id").iter_rows()}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Dataset, Dataset]:
    one = import_(album(tmp_path / "in1", {"apple": 3, "pear": 4, "_unknown": 2}), tmp_path / "one")
    other = import_(album(tmp_path / "in2", {"fig": 2, "pear": 3}, first=10), tmp_path / "two")
    return one, other


@pytest.mark.parametrize("by_reference", [False, True])
def test_two_datasets_become_one_with_the_bytes_and_labels_of_both(
    tmp_path: Path, two: tuple[Dataset, Dataset], by_reference: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    both = join([one.folder for one in two], tmp_path / "both", by_reference=by_reference)
    assert shown(both) == shown(two[0]) | shown(two[1])
    assert all_bytes(both) == all_bytes(two[0]) | all_bytes(two[1])
    assert both.labels.select("landmark_id", "name", "images").rows() == [
        (0, "apple", 3), (1, "pear", 7), (1_000_000, "fig", 2),
    ]  # fmt: skip
    assert "1 landmark has an id that stands for others before, of " in capsys.readouterr().err
    assert (tmp_path / "both/shards").exists() is not by_reference
    assert both.images.drop("shard", "offset", "group", "landmark_id").equals(
        pl.concat([one.images for one in two]).sort("image_id").drop("shard", "offset", "group", "landmark_id")
    )
    files = list(unpack(both.folder, tmp_path / "files").rglob("*.jpg"))
    assert len(files) == len(both.images)
    assert join([one.folder for one in two], tmp_path / "both", by_reference=by_reference).images.equals(both.images)
    with pytest.raises(StaleError):
        join([two[1].folder, two[0].folder], tmp_path / "both", by_reference=by_reference)


def test_nothing_is_decoded_again(
    tmp_path: Path, two: tuple[Dataset, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(decoding, "_decoded", never)
    assert len(join([one.folder for one in two], tmp_path / "both").images) == 14


def test_an_image_of_both_is_there_once_and_another_of_its_id_gets_a_longer_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "a/cat/same.jpg", 1)
    put(tmp_path / "a/cat/other.jpg", 2)
    put(tmp_path / "b/dog/same.jpg", 1)
    put(tmp_path / "b/dog/other.jpg", 3)
    one, other = (import_(tmp_path / name, tmp_path / f"data-{name}") for name in "ab")
    both = join([one.folder, other.folder], tmp_path / "both")
    ids = both.images["image_id"].to_list()
    assert ids[0] == "other" and ids[1].startswith("other-") and ids[2:] == ["same"]
    assert shown(both)["same"] == "cat"
    assert shown(both)[ids[1]] == "dog"
    rejected = pl.read_parquet(both.folder / "rejected.parquet")
    assert rejected["why"].to_list() == ["it is there as landmark 0, here 1000000"]
    notes = capsys.readouterr().err
    assert "1 of them with another label" in notes and "there already: 1 image of " in notes


def test_splits_are_kept_and_what_has_none_is_divided_by_the_same_rule(tmp_path: Path) -> None:
    one = split(import_(album(tmp_path / "in1", {"apple": 9, "pear": 9}), tmp_path / "one").folder, seed=3)
    other = import_(album(tmp_path / "in2", {"pear": 9}, first=50), tmp_path / "two")
    both = join([one.folder, other.folder], tmp_path / "both")
    assert both.splits is not None and one.splits is not None
    assert both.splits.join(one.splits, on=["image_id", "split"], how="semi")["image_id"].len() == len(one.splits)
    assert len(both.splits) == 27
    assert read_metadata(both.folder / "splits.parquet")["seed"] == "3"
    third = split(import_(album(tmp_path / "in3", {"plum": 9}, first=70), tmp_path / "three").folder)
    all_three = join([both.folder, third.folder], tmp_path / "all")
    assert third.splits is not None and all_three.splits is not None
    assert third.splits.join(all_three.splits, on=["image_id", "split"], how="anti").is_empty()


def test_credits_and_large_images(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", 1, side=300)
    for name, author in (("x", ""), ("y", "Ann")):
        (tmp_path / f"{name}.csv").write_text(f"path,label,author\na.jpg,cat,{author}\n")
    one, other = (import_(tmp_path / f"{name}.csv", tmp_path / name) for name in "xy")
    both = join([one.folder, other.folder], tmp_path / "both", max_side=100)
    assert both.images.select("author", "width").rows() == [("Ann", 100)]


def test_wrong_joins_are_one_line(
    tmp_path: Path, two: tuple[Dataset, Dataset], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="two datasets or more"):
        join([two[0].folder], tmp_path / "both")
    assert run(["join", str(two[0].folder), str(two[1].folder), "-o", str(tmp_path / "in1")]) == 2
    assert "holds no dataset" in capsys.readouterr().err
    assert run(["join", str(two[0].folder), str(two[1].folder), "-o", str(tmp_path / "ok"), "--by-reference"]) == 0
    assert "14 images of 3 landmarks" in capsys.readouterr().out


def test_ids_that_change_are_told_of_the_folder_that_was_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_(album(tmp_path / "in1", {"apple": 3, "pear": 3}), tmp_path / "data")
    import_(album(tmp_path / "in2", {"fig": 3}, first=50), tmp_path / "data", add=True)
    notes = capsys.readouterr().err
    assert f"1 landmark has an id that stands for others before, of {tmp_path / 'in2'}: fig: 0 is now" in notes
    assert ".adding" not in notes


def test_a_dataset_grows_by_an_import_and_its_old_images_stay_where_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    before = split(import_(album(tmp_path / "in1", {"apple": 9, "pear": 9}), data).folder, seed=3)
    old_bytes = all_bytes(before)
    album(tmp_path / "in2", {"pear": 5, "fig": 4}, first=50)
    grown = import_(tmp_path / "in2", data, add=True)
    assert len(grown.images) == 27
    same = grown.images.join(before.images.select("image_id"), on="image_id", how="semi")
    assert same.drop("group").equals(before.images.drop("group"))
    assert before.splits is not None and grown.splits is not None
    assert before.splits.join(grown.splits, on=["image_id", "split"], how="anti").is_empty()
    assert all_bytes(grown).items() >= old_bytes.items()
    assert not (data / ADDING / "x").exists() and not list((data / ADDING).iterdir())
    assert import_(tmp_path / "in2", data, add=True).images.equals(grown.images)
    put(tmp_path / "in2/fig/new.jpg", 999)
    assert len(import_(tmp_path / "in2", data, add=True).images) == 28
    assert f"there already: 9 images of {tmp_path / 'in2'}" in capsys.readouterr().err
    assert import_(tmp_path / "in1", data).images.height == 28  # the first import's own command finds it done


DIED = 9


def _add_and_die(source: Path, data: Path, at: int) -> None:
    """Add, and end without clearing up at one of the instants in which a file gets its name, as a kill does."""
    replace, times = Path.replace, iter(range(1000))

    def mortal(self: Path, target: Path) -> Path:
        if next(times) == at:
            os._exit(DIED)
        return replace(self, target)

    Path.replace = mortal  # type: ignore[method-assign, assignment]
    import_(source, data, add=True)


@pytest.mark.slow
@pytest.mark.parametrize("at", range(0, 24, 2))
def test_a_killed_addition_is_ended_by_the_same_command(tmp_path: Path, at: int) -> None:
    data = tmp_path / "data"
    split(import_(album(tmp_path / "in1", {"apple": 4, "pear": 4}), data).folder)
    whole = tmp_path / "whole"
    split(import_(tmp_path / "in1", whole).folder)
    album(tmp_path / "in2", {"pear": 3, "fig": 3}, first=50)
    wanted = import_(tmp_path / "in2", whole, add=True)
    process = multiprocessing.get_context("spawn").Process(target=_add_and_die, args=(tmp_path / "in2", data, at))
    process.start()
    process.join()
    assert process.exitcode in (0, DIED)
    grown = import_(tmp_path / "in2", data, add=True)
    assert grown.images.equals(wanted.images)
    assert grown.splits is not None and grown.splits.equals(wanted.splits)
    assert open_dataset(data).digest == open_dataset(whole).digest
    assert not list((data / ADDING).iterdir())


@pytest.mark.parametrize("copy", [True, False])
def test_a_folder_that_grew_is_added_again_without_its_earlier_images(tmp_path: Path, copy: bool) -> None:
    put(tmp_path / "in1/apple/IMG_1.jpg", 1)
    put(tmp_path / "in2/apple/IMG_1.jpg", 2)
    import_(tmp_path / "in1", tmp_path / "data")
    import_(tmp_path / "in2", tmp_path / "data", add=True)
    before = open_dataset(tmp_path / "data").images
    assert len(before) == 2 and before["image_id"][1].startswith("IMG_1-")
    assert (
        import_(tmp_path / "in2", tmp_path / "data", add=True, copy=False).images["image_id"].equals(before["image_id"])
    )
    put(tmp_path / "in2/apple/IMG_2.jpg", 3)
    grown = import_(tmp_path / "in2", tmp_path / "data", add=True, copy=copy)
    assert grown.images["image_id"].to_list() == [*before["image_id"], "IMG_2"]


def test_one_image_with_the_labels_of_both_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "in1/apple/a.jpg", 1)
    put(tmp_path / "in2/pear/b.jpg", 1)
    for number in (1, 2):
        import_(tmp_path / f"in{number}", tmp_path / f"data{number}")
    join([tmp_path / "data1", tmp_path / "data2"], tmp_path / "both")
    assert "1 image has the label of several landmarks: a = b" in capsys.readouterr().err


def test_what_cannot_be_joined_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, sides in (("one", (60, 61)), ("other", (62, 63))):
        for number, side in enumerate(sides):
            put(tmp_path / "in" / name / name / f"{name}{number}.jpg", side, side)
        import_(tmp_path / "in" / name, tmp_path / name, copy=False)
    path = tmp_path / "in/one/one/one0.jpg"
    path.write_bytes(path.read_bytes()[:-40].ljust(path.stat().st_size, b"\0"))  # damaged, and as long as before
    assert len(join([tmp_path / "one", tmp_path / "other"], tmp_path / "both").images) == 3
    assert f"rejected: {path}: a damaged or truncated JPEG" in capsys.readouterr().err
