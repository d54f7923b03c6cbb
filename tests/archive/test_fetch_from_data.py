"""A dataset is a source like a mirror: the same rules choose from it, and no mirror is asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from landmarks.archive import fetch as fetching
from landmarks.archive.fetch import fetch
from landmarks.archive.select import select
from landmarks.cli.main import run
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.shards import ImageReader
from landmarks.dataset.split import split
from landmarks.support.errors import LandmarksError, UsageError

BYTES = ["shard", "offset", "group"]


def whole(mirror: Path, folder: Path, **rule: object) -> Dataset:
    select(mirror, folder.with_suffix(".parquet"), **rule)  # type: ignore[arg-type]
    made = fetch(folder.with_suffix(".parquet"), folder, max_side=64)
    assert isinstance(made, Dataset)
    return made


def all_bytes(dataset: Dataset) -> dict[str, bytes]:
    reader = ImageReader(dataset)
    rows = dataset.images.select("image_id", "shard", "offset", "length").iter_rows()
    return {id: reader.read(shard, offset, length) for id, shard, offset, length in rows}


@pytest.fixture
def all_six(miniature: Path, tmp_path: Path) -> Dataset:
    return whole(miniature, tmp_path / "six")


@pytest.mark.parametrize("by_reference", [False, True])
def test_a_subset_taken_out_of_a_dataset_equals_the_one_fetched_directly(
    miniature: Path, all_six: Dataset, tmp_path: Path, by_reference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = whole(miniature, tmp_path / "direct", take=4, choose=2, seed=5)
    monkeypatch.setattr(fetching, "open_mirror", lambda *_, **__: pytest.fail("a mirror was asked"))
    chosen = select(all_six.folder, tmp_path / "two.parquet", take=4, choose=2, seed=5)
    made = fetch(chosen.path, tmp_path / "two", max_side=64, by_reference=by_reference)
    assert isinstance(made, Dataset)
    assert made.images.drop(BYTES).equals(direct.images.drop(BYTES))
    assert made.images["group"].equals(direct.images["group"])
    assert made.labels.equals(direct.labels)
    assert all_bytes(made) == all_bytes(direct)
    assert made.record["identified_by"] == direct.record["identified_by"]
    assert (tmp_path / "two/shards").exists() is not by_reference
    again = fetch(chosen.path, tmp_path / "two", max_side=64, by_reference=by_reference)
    assert isinstance(again, Dataset) and again.images.equals(made.images)


def test_nothing_is_taken_into_a_folder_that_holds_something_else(all_six: Dataset, tmp_path: Path) -> None:
    chosen = select(all_six.folder, tmp_path / "two.parquet", take=4, choose=2, seed=5)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "images.parquet").write_text("somebody's")
    with pytest.raises(UsageError, match=r"is not empty and holds no dataset; received images\.parquet"):
        fetch(chosen.path, tmp_path / "run")
    assert (tmp_path / "run" / "images.parquet").read_text() == "somebody's"


def test_splits_of_the_dataset_are_kept_in_the_subset(all_six: Dataset, tmp_path: Path) -> None:
    divided = split(all_six.folder, seed=2)
    chosen = select(divided.folder, tmp_path / "two.parquet", take=2)
    made = fetch(chosen.path, tmp_path / "two")
    assert isinstance(made, Dataset) and made.splits is not None and divided.splits is not None
    assert len(made.splits) == len(made.images)
    assert made.splits.join(divided.splits, on=["image_id", "split"], how="anti").is_empty()


def test_at_most_as_many_images_per_landmark_are_drawn_of_a_dataset_as_asked_for(
    all_six: Dataset, tmp_path: Path
) -> None:
    drawn = [
        select(all_six.folder, tmp_path / "some.parquet", take=3, images_per_landmark=2, seed=seed) for seed in range(8)
    ]
    assert all(chosen.images["landmark_id"].value_counts()["count"].to_list() == [2, 2, 2] for chosen in drawn)
    assert all(chosen.landmarks["images"].to_list() == [2, 2, 2] for chosen in drawn)
    assert len({tuple(chosen.images["image_id"]) for chosen in drawn}) > 1
    assert "--images-per-landmark 2 --seed 0" in drawn[0].rule


def test_rules_that_a_dataset_cannot_answer_are_refused(all_six: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "none.parquet"
    for rule, message in (
        ({"clean": True}, "--clean needs"),
        ({"kind": "natural"}, "--kind needs"),
        ({"set": "test"}, "not of the archive's test set"),
        ({"name": "nobody knows"}, "no landmark was chosen"),
    ):
        with pytest.raises(LandmarksError, match=message):
            select(all_six.folder, out, **rule)  # type: ignore[arg-type]
    name = all_six.labels["name"][3]
    assert select(all_six.folder, out, name=name).landmarks["name"].to_list() == [name]


def test_a_test_set_becomes_one_of_fewer_landmarks_and_more_unknown(miniature: Path, tmp_path: Path) -> None:
    everything = whole(miniature, tmp_path / "everything", set="test")
    few = everything.labels["landmark_id"].to_list()[:2]
    direct = whole(miniature, tmp_path / "direct", set="test", landmarks=few)
    chosen = select(everything.folder, tmp_path / "few.parquet", set="test", landmarks=few)
    made = fetch(chosen.path, tmp_path / "few", max_side=64)
    assert isinstance(made, Dataset)
    assert made.images.select("image_id", "landmark_id", "usage").equals(
        direct.images.select("image_id", "landmark_id", "usage")
    )
    with pytest.raises(UsageError, match="--images-per-landmark: only with --set train"):
        select(everything.folder, tmp_path / "few.parquet", set="test", images_per_landmark=2)


def test_images_that_the_dataset_lacks_are_named(miniature: Path, all_six: Dataset, tmp_path: Path) -> None:
    two = whole(miniature, tmp_path / "two", take=2)
    select(all_six.folder, tmp_path / "all.parquet")
    with pytest.raises(LandmarksError, match=f"{two.folder} lacks .* of the .* selected images"):
        fetch(tmp_path / "all.parquet", tmp_path / "out", mirror=two.folder)
    select(miniature, tmp_path / "mirror.parquet", take=1)
    with pytest.raises(UsageError, match="takes images out of a dataset"):
        fetch(tmp_path / "mirror.parquet", tmp_path / "out", by_reference=True)


def test_a_dataset_grows_by_a_second_fetch_and_its_old_images_keep_all_they_had(
    miniature: Path, tmp_path: Path
) -> None:
    before = split(whole(miniature, tmp_path / "data", take=2).folder, seed=4)
    select(miniature, tmp_path / "more.parquet", skip=2, take=2)
    grown = fetch(tmp_path / "more.parquet", tmp_path / "data", max_side=64, add=True)
    assert isinstance(grown, Dataset) and grown.splits is not None and before.splits is not None
    direct = whole(miniature, tmp_path / "direct", take=4)
    assert grown.images.drop(BYTES).equals(direct.images.drop(BYTES))
    assert grown.labels.equals(direct.labels)
    assert all_bytes(grown) == all_bytes(direct)
    assert before.splits.join(grown.splits, on=["image_id", "split"], how="anti").is_empty()
    same = grown.images.join(before.images.select("image_id"), on="image_id", how="semi")
    assert same.drop("group").equals(before.images.drop("group"))
    again = fetch(tmp_path / "more.parquet", tmp_path / "data", max_side=64, add=True)
    assert isinstance(again, Dataset) and again.images.equals(grown.images)
    first = fetch(tmp_path / "data.parquet", tmp_path / "data", max_side=64)
    assert isinstance(first, Dataset) and first.images.equals(grown.images)


def test_the_command_line_divides_joins_and_grows(miniature: Path, tmp_path: Path) -> None:
    place = {
        name: str(tmp_path / name) for name in ("six", "one", "two", "both", "a.parquet", "b.parquet", "c.parquet")
    }
    assert run(["select", str(miniature), "-o", place["a.parquet"]]) == 0
    assert run(["fetch", place["a.parquet"], "-o", place["six"]]) == 0
    assert run(["select", place["six"], "-o", place["b.parquet"], "--take", "3"]) == 0
    assert run(["fetch", place["b.parquet"], "-o", place["one"], "--by-reference"]) == 0
    assert run(["select", place["six"], "-o", place["c.parquet"], "--skip", "3"]) == 0
    assert run(["fetch", place["c.parquet"], "-o", place["two"]]) == 0
    assert run(["join", place["one"], place["two"], "-o", place["both"]]) == 0
    assert run(["fetch", place["c.parquet"], "-o", place["one"], "--add"]) == 0
    six, both, one = (open_dataset(place[name]) for name in ("six", "both", "one"))
    for joined in (both, one):
        assert joined.images.drop(BYTES).equals(six.images.drop(BYTES))
        assert joined.labels.equals(six.labels)
        assert all_bytes(joined) == all_bytes(six)
    shutil.rmtree(place["six"])
    assert len(all_bytes(both)) == len(both.images)
