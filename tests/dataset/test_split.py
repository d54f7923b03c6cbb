from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from landmarks.archive.select import select
from landmarks.cli.main import run
from landmarks.cli.main import run as landmarks
from landmarks.dataset.division import MIN_IMAGES_TO_SPLIT, UNASSIGNED, divide
from landmarks.dataset.importing import import_
from landmarks.dataset.manifest import IMAGES, SPLITS, Dataset, open_dataset, write_dataset
from landmarks.dataset.split import split
from landmarks.support.errors import BusyError, LandmarksError, UsageError
from landmarks.support.files import file_digest, held
from landmarks.support.tables import read_metadata, write_table
from landmarks.training.own_data import check_data

TRAIN, VAL, TEST = range(3)
SHARES = st.sampled_from([(0.15, 0.15), (0.15, 0.0), (0.0, 0.2), (0.0, 0.0), (0.45, 0.45)])


def dataset(folder: Path, rows: list[tuple[int | None, int, str | None]]) -> Dataset:
    """A dataset of (landmark_id, phash, author), without any images in it."""
    table = pl.DataFrame(
        [(f"{position:04d}", *row) for position, row in enumerate(rows)],
        schema={"image_id": pl.String, "landmark_id": pl.Int64, "phash": pl.UInt64, "author": pl.String},
        orient="row",
    )
    others = [name for name in IMAGES if name not in table.columns]
    images = table.with_columns(pl.lit(None).cast(IMAGES[name]).alias(name) for name in others)
    ids = sorted({row[0] for row in rows if row[0] is not None})
    labels = pl.DataFrame(
        {
            "label": range(len(ids)),
            "landmark_id": ids,
            "name": [f"landmark {id}" for id in ids],
            "category": [None] * len(ids),
            "images": [sum(row[0] == id for row in rows) for id in ids],
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    rejected = pl.DataFrame(schema={"image_id": pl.String, "where": pl.String, "why": pl.String})
    return write_dataset(folder, verb="test", images=images, labels=labels, rejected=rejected, record={"set": "test"})


def far_apart(count: int) -> list[int]:
    return [int(hash) for hash in np.random.default_rng(0).integers(1, 2**63, count)]


@st.composite
def grouped(draw: Any) -> tuple[list[int | None], list[int]]:
    """Landmarks and groups of up to sixty images, some groups across landmarks."""
    landmarks = draw(st.lists(st.sampled_from([None, 1, 2, 3, 4]), min_size=1, max_size=60))
    raw = draw(st.lists(st.integers(0, 40), min_size=len(landmarks), max_size=len(landmarks)))
    numbers = {group: number for number, group in enumerate(dict.fromkeys(raw))}
    return landmarks, [numbers[group] for group in raw]


@given(grouped(), SHARES, st.integers(0, 5))
def test_groups_stay_whole_and_every_landmark_keeps_a_training_image(
    images: tuple[list[int | None], list[int]], shares: tuple[float, float], seed: int
) -> None:
    landmarks, group = pl.Series(images[0], dtype=pl.Int64), np.array(images[1])
    split = divide(landmarks, group, *shares, seed)
    assert split.shape == (len(landmarks),)
    assert all(len(set(split[group == one])) == 1 for one in set(images[1]))
    for landmark in set(images[0]) - {None}:
        assert TRAIN in split[np.array([one == landmark for one in images[0]])]
    for which, share in zip((VAL, TEST), shares, strict=True):
        assert share or which not in split
    assert (divide(landmarks, group, *shares, seed) == split).all()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 3))
@settings(max_examples=100)
def test_shares_are_met_landmark_by_landmark_where_groups_are_single(counts: list[int], seed: int) -> None:
    landmarks = pl.Series([landmark for landmark, count in enumerate(counts) for _ in range(count)])
    split = divide(landmarks, np.arange(len(landmarks)), 0.15, 0.15, seed)
    for landmark, count in enumerate(counts):
        in_parts = np.bincount(split[landmarks.to_numpy() == landmark], minlength=3)
        expected = int(0.15 * count + 0.5)
        if count >= MIN_IMAGES_TO_SPLIT:
            expected = max(1, expected)
        assert in_parts[VAL] == in_parts[TEST] == expected


def test_another_landmark_changes_nothing_for_the_others() -> None:
    few, more = pl.Series([5] * 30), pl.Series([5] * 30 + [6] * 20)
    group = np.arange(50)
    assert (divide(few, group[:30], 0.2, 0.2, 0) == divide(more, group, 0.2, 0.2, 0)[:30]).all()


def test_seeds_differ() -> None:
    landmarks = pl.Series([1] * 100)
    splits = [divide(landmarks, np.arange(100), 0.2, 0.2, seed) for seed in (0, 1)]
    assert (splits[0] != splits[1]).any()


def test_a_landmark_of_large_groups_is_still_in_every_part() -> None:
    split = divide(pl.Series([1] * 12), np.arange(12) // 3, 0.1, 0.1, 0)
    assert np.bincount(split).tolist() == [6, 3, 3]


def test_the_split_and_its_leakage_are_stored(tmp_path: Path) -> None:
    hashes = far_apart(50)
    rows: list[Any] = [(1, hash, None) for hash in hashes for _ in range(2)]  # every image twice
    rows += [(None, hash, None) for hash in far_apart(70)[50:]]
    before = dataset(tmp_path, rows)
    after = split(tmp_path)
    assert after.digest != before.digest
    assert after.record == before.record
    assert after.splits is not None
    assert after.splits["image_id"].to_list() == after.images["image_id"].to_list()
    assert after.images["group"][:100].to_list() == [position // 2 for position in range(100)]
    metadata = read_metadata(tmp_path / "splits.parquet")
    leakage = json.loads(metadata["leakage"])
    assert metadata["seed"] == "0"
    assert metadata["rule"].startswith("by group, val 0.15, test 0.15; near-duplicates within 8 of 64 bits")
    assert leakage["near_duplicate_pairs"] == 50
    assert leakage["straddling_pairs"] == leakage["held_out_with_kin_in_train"] == 0
    assert leakage["straddling_pairs_random"] > 5
    assert sum(len(after.split(split)) for split in SPLITS) == 120
    assert after.split("test")["landmark_id"].null_count() == 3


def test_a_random_split_leaks_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path, [(1, hash, None) for hash in far_apart(30) for _ in range(2)])
    split(tmp_path, by="random")
    leakage = json.loads(read_metadata(tmp_path / "splits.parquet")["leakage"])
    assert leakage["straddling_pairs"] == leakage["straddling_pairs_random"] > 0
    assert f"{leakage['straddling_pairs']} straddle this split" in capfd.readouterr().err


def test_without_a_test_part_nothing_is_in_it(tmp_path: Path) -> None:
    dataset(tmp_path, [(1, hash, None) for hash in far_apart(30)])
    assert set(split(tmp_path, test=0).splits["split"]) == {"train", "val"}  # type: ignore[index]


def test_what_a_reader_should_know_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hashes = far_apart(40)
    rows: list[Any] = [(1, hash, None) for hash in hashes[:20]] + [(2, hashes[20], None)]
    rows += [(3, hash, "Ann") for hash in hashes[21:31]]
    dataset(tmp_path, rows)
    split(tmp_path)
    notes = capfd.readouterr().err
    assert "1 landmark has a single image, which is in train" in notes
    assert "2 landmarks have no image in test" in notes
    assert "one group holds 10 of the 10 images of landmark 3" in notes
    swallowed = json.loads(read_metadata(tmp_path / "splits.parquet")["swallowed"])
    assert swallowed == [{"landmark_id": 3, "images": 10, "in_one_group": 10}]


@pytest.mark.parametrize(
    ("images", "reason", "way_out"),
    [
        (
            1,
            "no image is in val: every landmark has a single image, which train needs",
            "landmarks of two images or more",
        ),
        (
            2,
            "no image is in val: 0.15 of 2 images, the most that a landmark has, is none; --val 0.5 takes one",
            "--val 0.5",
        ),
        (3, "no image is in test: 0.15 of 3 images", "--val 0.5"),
    ],
)
def test_a_split_that_gets_no_image_is_told_with_what_would_give_it_some(
    tmp_path: Path, images: int, reason: str, way_out: str, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset(tmp_path, [(1 + row // images, hash, None) for row, hash in enumerate(far_apart(2 * images))])
    without = split(tmp_path)
    assert reason in capfd.readouterr().err
    with pytest.raises(LandmarksError, match=rf"the val split .*{way_out}$"):
        check_data(without)
    if images > 1:
        split(tmp_path, val=0.5)
        assert "no image is in val" not in capfd.readouterr().err
        check_data(open_dataset(tmp_path))


def test_a_split_of_near_duplicates_alone_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset(
        tmp_path, [(landmark, hash, "Ann") for landmark in (1, 2) for hash in far_apart(12)[6 * landmark - 6 :][:6]]
    )
    split(tmp_path)
    assert (
        "no image is in val: the images of each landmark are near-duplicates of one another" in capfd.readouterr().err
    )


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        dataset(tmp_path / name, [(1, hash, None) for hash in far_apart(30)])
        split(tmp_path / name, seed=3)
    for table in ("splits.parquet", "images.parquet"):
        assert (tmp_path / "a" / table).read_bytes() == (tmp_path / "b" / table).read_bytes()


def test_splitting_again_replaces_the_split(tmp_path: Path) -> None:
    dataset(tmp_path, [(1, hash, None) for hash in far_apart(30)])
    first = split(tmp_path).splits
    split(tmp_path, seed=1)
    assert split(tmp_path).splits.equals(first)  # type: ignore[union-attr]
    assert open_dataset(tmp_path).splits.equals(first)  # type: ignore[union-attr]


def test_wrong_wishes_are_refused_in_one_line(tmp_path: Path) -> None:
    dataset(tmp_path, [(1, 5, None)])
    with pytest.raises(UsageError, match='did you mean "group"'):
        split(tmp_path, by="groups")
    for shares in ({"val": 0.5, "test": 0.5}, {"val": -0.1}, {"test": 1.0}, {"test": float("nan")}):
        with pytest.raises(UsageError, match="impossible shares"):
            split(tmp_path, **shares)  # type: ignore[arg-type]
    with pytest.raises(LandmarksError, match="there is no folder"):
        split(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with held(tmp_path), pytest.raises(BusyError):
        split(tmp_path)


@pytest.mark.slow
def test_a_million_images_are_split_in_seconds() -> None:
    random = np.random.default_rng(0)
    split = divide(pl.Series(random.integers(0, 50_000, 1_000_000)), np.arange(1_000_000), 0.15, 0.15, 0)
    assert abs((split == TEST).mean() - 0.15) < 0.01


@given(grouped(), SHARES, st.integers(0, 3), st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_divided_already_stays_and_its_groups_are_joined(
    images: tuple[list[int | None], list[int]], shares: tuple[float, float], seed: int, data: st.DataObject
) -> None:
    landmarks, group = pl.Series(images[0], dtype=pl.Int64), np.array(images[1])
    splits = st.sampled_from([UNASSIGNED, UNASSIGNED, TRAIN, VAL, TEST])
    fixed = np.array(data.draw(st.lists(splits, min_size=len(group), max_size=len(group))))
    split = divide(landmarks, group, *shares, seed, fixed=fixed)
    divided = fixed != UNASSIGNED
    assert (split[divided] == fixed[divided]).all()
    for one in set(images[1]):
        own = split[(group == one) & ~divided]
        counts = Counter(fixed[(group == one) & divided].tolist())
        assert len(set(own)) <= 1
        if counts and len(own):
            assert counts[own[0]] == max(counts.values())
    for which, share in zip((VAL, TEST), shares, strict=True):
        apart = ~divided & ~np.isin(group, group[divided])
        assert share or which not in split[apart]
    if not divided.any():
        assert (split == divide(landmarks, group, *shares, seed)).all()


def test_shares_are_met_however_often_images_are_added() -> None:
    landmarks = pl.Series(np.tile(np.arange(20), 60))  # one more of every landmark each time
    fixed = np.full(20, UNASSIGNED)
    for count in range(1, 61):
        fixed = np.append(fixed, np.full(20 * count - len(fixed), UNASSIGNED))
        fixed = divide(landmarks[: 20 * count], np.arange(20 * count), 0.15, 0.2, 0, fixed=fixed).astype(int)
    in_parts = np.stack([np.bincount(fixed[landmarks.to_numpy() == landmark], minlength=3) for landmark in range(20)])
    assert (in_parts == [39, 9, 12]).all()


def with_given_parts(folder: Path, splits: str = "train test", each: int = 10) -> Dataset:
    """An imported dataset whose splits came as folders; ids begin with the split's first letter."""
    random = np.random.default_rng(0)
    for folder_name in splits.split():
        for name in ("Arch", "Tower"):
            for number in range(each):
                path = folder / "in" / folder_name / name / f"{folder_name[:2]}{name[0]}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                small = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
                small.resize((60, 40), Image.Resampling.BICUBIC).save(path)
    return import_(folder / "in", folder / "data")


def splits_of(data: Dataset) -> dict[str, str]:
    assert data.splits is not None
    return dict(data.splits.rows())


def test_validation_comes_out_of_train_and_a_given_test_part_stays(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = with_given_parts(tmp_path)
    with pytest.raises(LandmarksError, match=r"test stays as it is, with: landmarks split .*$") as caught:
        check_data(data)
    command = str(caught.value).partition("with: landmarks ")[2].split()
    assert command == ["split", str(data.folder), "--val", "0.15", "--keep-test"]
    for line in (command, ["split", str(data.folder)], ["split", str(data.folder), "--by", "random", "--seed", "1"]):
        assert run(line) == 0
        after = open_dataset(data.folder)
        assert {id for id, split in splits_of(after).items() if split == "test"} == {
            id for id, split in splits_of(data).items() if split == "test"
        }
        assert [len(after.split(split)) for split in SPLITS] == [16, 4, 20]  # 2 of 10 of each landmark
        check_data(after)
        assert "the test split of 20 images stays as it is" in capfd.readouterr().err
        metadata = read_metadata(data.folder / "splits.parquet")
        assert metadata["rule"].startswith("test kept from the source, val 0.15 of the others by ")
        assert (metadata["test_kept"], metadata["val"], metadata["test"]) == ("source", "0.15", "0.0")
    assert run(["split", str(data.folder), "--anew", "--val", "0.25", "--test", "0.25"]) == 0
    assert "the test split that came with the images is divided anew" in capfd.readouterr().err
    divided = open_dataset(data.folder)
    assert [len(divided.split(split)) for split in SPLITS] == [20, 10, 10]
    assert len({id[:2] for id, split in splits_of(divided).items() if split == "test"}) == 2
    run(["split", str(data.folder), "--test", "0.25"])  # now it is no longer given
    assert "stays as it is" not in capfd.readouterr().err


def test_a_given_test_part_of_an_older_version_stays_too(tmp_path: Path) -> None:
    data = with_given_parts(tmp_path)
    assert data.splits is not None
    write_table(data.folder / "splits.parquet", data.splits, rule="kept from the source; near-duplicates", seed="")
    assert len(split(data.folder).split("test")) == 20


def test_what_is_near_the_kept_test_part_is_not_drawn_into_it(tmp_path: Path) -> None:
    hashes = far_apart(40)
    twins: list[Any] = [(1, hash, None) for hash in hashes for _ in range(2)]
    data = dataset(tmp_path, twins)
    splits = pl.Series(["test" if row % 4 == 0 else "train" for row in range(80)])  # its twin is in train
    write_table(
        tmp_path / "splits.parquet", data.images.select("image_id", split=splits), rule="kept from the source", seed=""
    )
    after = split(tmp_path, val=0.3)
    assert [len(after.split(split)) for split in SPLITS] == [42, 18, 20]
    leakage = json.loads(read_metadata(tmp_path / "splits.parquet")["leakage"])
    assert leakage["straddling_pairs"] == 20  # those that were given; none between train and val
    with_test = set(after.split("test")["group"])
    assert not set(after.split("val")["group"]) & set(after.split("train")["group"]) - with_test


def test_keeping_and_drawing_a_test_part_contradict_each_other(tmp_path: Path) -> None:
    data = with_given_parts(tmp_path)
    before = (data.folder / "splits.parquet").read_bytes()
    with pytest.raises(UsageError, match=r"since it came with the images; received --test 0\.2; .*--anew"):
        split(data.folder, test=0.2)
    assert (data.folder / "splits.parquet").read_bytes() == before
    plain = dataset(tmp_path / "plain", [(1, hash, None) for hash in far_apart(30)])
    with pytest.raises(UsageError, match="has no test split to keep"):
        split(plain.folder, keep_test=True)
    split(plain.folder, test=0.5)
    kept = splits_of(split(plain.folder, val=0.3, keep_test=True))
    assert list(kept.values()).count("test") == 15
    assert read_metadata(plain.folder / "splits.parquet")["test_kept"] == "split"
    assert list(splits_of(split(plain.folder)).values()).count("test") == 5  # it is kept only when that is asked for


def test_corrections_alone_leave_every_image_in_its_part(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = dataset(tmp_path, [(1 + row % 2, hash, None) for row, hash in enumerate(far_apart(60))])
    before = splits_of(split(data.folder, by="random", val=0.3, test=0.0, seed=4))
    (tmp_path / "decided.csv").write_text("image_id,correct_landmark_id\n0001,1\n0003,1\n0004,none\n")
    capfd.readouterr()
    after = split(data.folder, corrections=tmp_path / "decided.csv")
    assert splits_of(after) == before
    assert len(after.corrected) == 3
    assert "every image stays in its split" in capfd.readouterr().err
    metadata = read_metadata(data.folder / "splits.parquet")
    assert [metadata[name] for name in ("by", "val", "test", "seed", "corrected", "added")] == [
        "random", "0.3", "0.0", "4", "3", "0",
    ]  # fmt: skip
    assert splits_of(split(data.folder, keep_corrections=False)) == before
    assert splits_of(split(data.folder, corrections=tmp_path / "decided.csv", val=0.3, test=0.2)) != before


def test_images_that_change_their_split_are_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path, [(1, hash, None) for hash in far_apart(60)])
    first = splits_of(split(tmp_path))
    assert "changed their split" not in capfd.readouterr().err
    second = splits_of(split(tmp_path, seed=1))
    moved = [id for id in first if first[id] != second[id]]
    into = sum(second[id] == "test" for id in moved)
    assert moved and into
    assert f"{len(moved)} images changed their split, {into} of them into test" in capfd.readouterr().err
    split(tmp_path, seed=1)
    assert "changed their split" not in capfd.readouterr().err


def test_training_on_nothing_but_a_test_part_is_told_the_way_out(tmp_path: Path) -> None:
    data = dataset(tmp_path, [(1 + row % 2, hash, None) for row, hash in enumerate(far_apart(20))])
    all_test = data.images.select("image_id", split=pl.lit("test"))
    write_table(tmp_path / "splits.parquet", all_test, rule="kept from the source", seed="")
    with pytest.raises(LandmarksError, match=r"the train split .* landmarks split .* --anew$"):
        check_data(open_dataset(tmp_path))
    with pytest.raises(UsageError, match=r"all 20 images .* --anew"):
        split(tmp_path, val=0.2)
    assert len(split(tmp_path, keep_test=False).split("train")) == 12
    split(tmp_path, val=0.0, test=0.0)
    with pytest.raises(LandmarksError, match=r"the val split .* landmarks split .* --val 0\.15$"):
        check_data(open_dataset(tmp_path))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Thirty images of the landmarks 7, 8 and 9, the first of them showing 7 and 8."""
    hashes = np.random.default_rng(0).integers(1, 2**63, 30)
    known: dict[str, object] = {
        "image_id": [f"{number:016x}" for number in range(30)],
        "landmark_id": [7 + number % 3 for number in range(30)],
        "phash": pl.Series(hashes, dtype=pl.UInt64),
        "landmarks": pl.Series([[7, 8]] + [None] * 29, dtype=pl.List(pl.Int64)),
    }
    images = pl.DataFrame(known).with_columns(
        pl.lit(None).cast(kind).alias(name) for name, kind in IMAGES.items() if name not in known
    )
    labels = pl.DataFrame(
        {"label": [0, 1, 2], "landmark_id": [7, 8, 9], "name": list("abc"), "category": [None] * 3, "images": [10] * 3}
    )
    rejected = pl.DataFrame(schema={"image_id": pl.String, "where": pl.String, "why": pl.String})
    folder = tmp_path / "data"
    folder.mkdir()
    return write_dataset(folder, verb="test", images=images, labels=labels, rejected=rejected, record={"set": "test"})


def csv(folder: Path, answers: dict[int | str, str], name: str = "wrong.csv") -> Path:
    """A file as `audit` writes it, its last column filled in."""
    rows = [f"{id:016x}" if isinstance(id, int) else id for id in answers]
    lines = [f'{id},7,"a, or b",8,b,0.9,why,{answer}' for id, answer in zip(rows, answers.values(), strict=True)]
    head = "image_id,landmark_id,name,suggested_landmark_id,suggested_name,margin,why,correct_landmark_id"
    path = folder / name
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def shown(folder: Path, number: int) -> tuple[int | None, list[int] | None]:
    return open_dataset(folder).images.row(number)[1], open_dataset(folder).images.row(number)[-1]


def test_corrections_hold_from_there_on_and_the_files_keep_what_was_fetched(data: Dataset, tmp_path: Path) -> None:
    before = split(data.folder)
    kept = {name: (data.folder / name).read_bytes() for name in ("labels.parquet", "dataset.json")}
    file = csv(tmp_path, {0: "9", 1: "none", 2: "", 3: "7"})
    after = split(data.folder, corrections=file)
    assert shown(data.folder, 0) == (9, None)
    assert shown(data.folder, 1) == (None, None)
    assert shown(data.folder, 2) == (9, None)
    labels = after.split("all").sort("image_id")["label"].to_list()
    assert labels[:4] == [2, None, 2, 0]
    assert after.as_fetched()["landmark_id"].to_list() == before.images["landmark_id"].to_list()
    assert after.as_fetched()["landmarks"][0].to_list() == [7, 8]
    assert {name: (data.folder / name).read_bytes() for name in kept} == kept
    assert after.corrections.rows() == [
        ("0000000000000000", 9, 7, file_digest(file), False),
        ("0000000000000001", None, 8, file_digest(file), False),
        ("0000000000000003", 7, 7, file_digest(file), False),  # confirmed
    ]


def test_the_digest_changes_with_corrections_but_not_with_confirmations(data: Dataset, tmp_path: Path) -> None:
    before = split(data.folder)
    confirmed = split(data.folder, corrections=csv(tmp_path, {0: "7"}))
    assert confirmed.digest == before.digest
    assert shown(data.folder, 0) == (7, [7, 8])
    corrected = split(data.folder, corrections=csv(tmp_path, {0: "8"}))
    assert corrected.content_digest != before.content_digest == before.record["digest"]
    assert corrected.digest != before.digest
    assert split(data.folder, keep_corrections=False).digest == before.digest


def test_corrections_are_added_to_earlier_ones_until_they_are_taken_back(
    data: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    split(data.folder, corrections=csv(tmp_path, {0: "9", 1: "9"}))
    split(data.folder, corrections=csv(tmp_path, {1: "none", 2: "8.0"}, "more.csv"))  # as a column with gaps is written
    assert open_dataset(data.folder).images["landmark_id"].to_list()[:3] == [9, None, 8]
    split(data.folder, seed=1)
    assert open_dataset(data.folder).images["landmark_id"].to_list()[:3] == [9, None, 8]
    assert read_metadata(data.folder / "splits.parquet")["corrected"] == "3"
    assert "3 labels corrected, 0 confirmed" in capfd.readouterr().err
    again = split(data.folder, corrections=csv(tmp_path, {5: "7"}, "new.csv"), keep_corrections=False)
    assert "3 earlier corrections taken back" in capfd.readouterr().err
    assert again.corrected.rows() == [("0000000000000005", 7)]
    split(data.folder, keep_corrections=False)
    assert not (data.folder / "corrections.parquet").exists()
    assert open_dataset(data.folder).images["landmark_id"].to_list() == data.images["landmark_id"].to_list()


def test_a_split_is_made_of_the_corrected_labels(data: Dataset, tmp_path: Path) -> None:
    all_but_one: dict[int | str, str] = {number: "7" for number in range(30) if number % 3 == 2 and number != 2}
    after = split(data.folder, corrections=csv(tmp_path, all_but_one))
    assert after.split("train").filter(pl.col("landmark_id") == 9)["image_id"].to_list() == ["0000000000000002"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({1: "8", "ffff": "8"}, 'line 3: .* holds no image "ffff"'),
        ({"1.1E+15": "8"}, "a spreadsheet turned the id into a number"),
        ({1: "", 2: "12"}, 'line 3: .* knows no landmark "12"; expected the landmark_id of one of its 3 landmarks'),
        ({2: "B"}, 'line 2: .* knows no landmark "b"; .*; "b" has the landmark_id 8'),
        ({2: "8.5"}, 'line 2: .* knows no landmark "8.5"'),
        ({2: "8", "0000000000000002 ": "9"}, 'line 3: the image "0000000000000002" is decided on twice'),
    ],
)
def test_what_cannot_be_meant_is_one_line_that_names_the_row(
    data: Dataset, tmp_path: Path, answers: dict[int | str, str], message: str
) -> None:
    split(data.folder, corrections=csv(tmp_path, {0: "9"}, "good.csv"))
    before = {path.name: path.read_bytes() for path in data.folder.glob("*.parquet")}
    with pytest.raises(LandmarksError, match=message) as caught:
        split(data.folder, corrections=csv(tmp_path, answers), keep_corrections=False)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in data.folder.glob("*.parquet")} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"image;correct_landmark_id\n1;2\n", "lacks the column image_id; received image, correct_landmark_id"),
        (b"\xff\xfe\x00", "cannot be read as a CSV: line 1"),
        (b"image_id,correct_landmark_id\n1,caf\xe9\n", "line 2 is not UTF-8; .*save it as CSV UTF-8"),
        (b"PK\3\4", "saved as CSV"),
        (b"<html>", "it is a web page; expected columns image_id, correct_landmark_id"),
        (b"image_id,correct_landmark_id\n1,2\n\n3,4,5\n", "line 4 is invalid; received 3 cells; expected 2"),
        (b'image_id,correct_landmark_id\n1,2\n3,"4\n', "line 3: unexpected end of data; a cell that begins with a"),
        (b"image_id,correct_landmark_id\n" + b"\0\x80" * 9, "line 2 holds a byte of zero, as no text does"),
    ],
)
def test_what_is_no_such_csv_is_refused(data: Dataset, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "strange.csv").write_bytes(content)
    with pytest.raises(LandmarksError, match=message):
        split(data.folder, corrections=tmp_path / "strange.csv")
    with pytest.raises(LandmarksError, match=r"there is no .*nowhere\.csv"):
        split(data.folder, corrections=tmp_path / "nowhere.csv")
    with pytest.raises(LandmarksError, match=r"cannot be read as a CSV: it is a folder; expected columns image_id"):
        split(data.folder, corrections=tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_csv_and_is_not_waited_for(data: Dataset, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(LandmarksError, match=r"pipe\.csv cannot be read as a CSV: it is no plain file"):
        split(data.folder, corrections=tmp_path / "pipe.csv")


@pytest.mark.parametrize("end", ["\r\n", "\n\n", "\r"])
@pytest.mark.parametrize(
    ("separator", "encoding"), [(";", "utf-8-sig"), ("\t", "utf-16"), (",", "utf-8-sig"), ("|", "utf-8")]
)
def test_corrections_are_read_as_spreadsheets_save_them(
    data: Dataset, tmp_path: Path, separator: str, encoding: str, end: str
) -> None:
    file = csv(tmp_path, {0: "9", 1: "none"})
    as_it_was = split(data.folder, corrections=file).corrections
    text = file.read_text().replace('"a, or b"', "a or b").replace(",", separator).replace("\n", end)
    file.write_bytes(f"{' Image_ID ' if end == chr(13) else 'image_id'}{text[8:]}".encode(encoding))
    again = split(data.folder, corrections=file, keep_corrections=False).corrections
    assert again.drop("csv").equals(as_it_was.drop("csv"))


def test_the_verb_takes_corrections_and_tells_their_number(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = csv(tmp_path, {0: "9", 1: "NONE"})
    assert landmarks(["split", str(data.folder), "--corrections", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["corrected"] == 2
    assert landmarks(["split", str(data.folder), "--no-corrections", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["corrected"] == 0


def test_what_is_told_of_a_split_is_read_with_it_and_not_again_later(tmp_path: Path) -> None:
    dataset(tmp_path, [(1, hash, None) for hash in far_apart(30)])
    split(tmp_path, seed=0)
    opened = open_dataset(tmp_path)
    split(tmp_path, seed=1)
    assert opened.split_metadata["seed"] == "0"
    assert open_dataset(tmp_path).split_metadata["seed"] == "1"


def test_a_dataset_whose_images_are_all_removed_says_so(
    data: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = data.images["image_id"].to_list()
    (tmp_path / "all.csv").write_text("image_id,correct_landmark_id\n" + "".join(f"{id},remove\n" for id in ids))
    after = split(data.folder, corrections=tmp_path / "all.csv")
    assert "no image is in val: no image shows a landmark" in capfd.readouterr().err
    with pytest.raises(LandmarksError, match=rf"corrections removed {len(ids)} images: .* back"):
        check_data(after)
    with pytest.raises(LandmarksError, match="no image shows a landmark: there is nothing to choose"):
        select(data.folder, tmp_path / "s.parquet")
