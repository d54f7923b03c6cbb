from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmarks.dataset.manifest import PARTS, PHOTOS, Dataset, open_dataset, write_dataset
from landmarks.dataset.split import ENOUGH, divide, split
from landmarks.support.errors import BusyError, LandmarksError, UsageError
from landmarks.support.files import held
from landmarks.support.tables import read_metadata

TRAIN, VAL, TEST = range(3)
SHARES = st.sampled_from([(0.15, 0.15), (0.15, 0.0), (0.0, 0.2), (0.0, 0.0), (0.45, 0.45)])


def dataset(folder: Path, rows: list[tuple[int | None, int, str | None]]) -> Dataset:
    """A dataset of (landmark_id, phash, author), without any photographs in it."""
    table = pl.DataFrame(
        [(f"{position:04d}", *row) for position, row in enumerate(rows)],
        schema={"id": pl.String, "landmark_id": pl.Int64, "phash": pl.UInt64, "author": pl.String},
        orient="row",
    )
    others = [name for name in PHOTOS if name not in table.columns]
    photos = table.with_columns(pl.lit(None).cast(PHOTOS[name]).alias(name) for name in others)
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
    rejected = pl.DataFrame(schema={"id": pl.String, "where": pl.String, "why": pl.String})
    return write_dataset(folder, verb="test", photos=photos, labels=labels, rejected=rejected, record={"set": "test"})


def far_apart(count: int) -> list[int]:
    return [int(hash) for hash in np.random.default_rng(0).integers(1, 2**63, count)]


@st.composite
def grouped(draw: Any) -> tuple[list[int | None], list[int]]:
    """Landmarks and groups of up to sixty photographs, some groups across landmarks."""
    landmarks = draw(st.lists(st.sampled_from([None, 1, 2, 3, 4]), min_size=1, max_size=60))
    raw = draw(st.lists(st.integers(0, 40), min_size=len(landmarks), max_size=len(landmarks)))
    numbers = {group: number for number, group in enumerate(dict.fromkeys(raw))}
    return landmarks, [numbers[group] for group in raw]


@given(grouped(), SHARES, st.integers(0, 5))
@settings(max_examples=200)
def test_groups_stay_whole_and_every_landmark_keeps_a_training_photograph(
    photos: tuple[list[int | None], list[int]], shares: tuple[float, float], seed: int
) -> None:
    landmarks, group = pl.Series(photos[0], dtype=pl.Int64), np.array(photos[1])
    part = divide(landmarks, group, *shares, seed)
    assert part.shape == (len(landmarks),)
    assert all(len(set(part[group == one])) == 1 for one in set(photos[1]))
    for landmark in set(photos[0]) - {None}:
        assert TRAIN in part[np.array([one == landmark for one in photos[0]])]
    for which, share in zip((VAL, TEST), shares, strict=True):
        assert share or which not in part
    assert (divide(landmarks, group, *shares, seed) == part).all()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 3))
@settings(max_examples=100)
def test_shares_are_met_landmark_by_landmark_where_groups_are_single(counts: list[int], seed: int) -> None:
    landmarks = pl.Series([landmark for landmark, count in enumerate(counts) for _ in range(count)])
    part = divide(landmarks, np.arange(len(landmarks)), 0.15, 0.15, seed)
    for landmark, count in enumerate(counts):
        in_parts = np.bincount(part[landmarks.to_numpy() == landmark], minlength=3)
        expected = int(0.15 * count + 0.5)
        if count >= ENOUGH:
            expected = max(1, expected)
        assert in_parts[VAL] == in_parts[TEST] == expected


def test_another_landmark_changes_nothing_for_the_others() -> None:
    few, more = pl.Series([5] * 30), pl.Series([5] * 30 + [6] * 20)
    group = np.arange(50)
    assert (divide(few, group[:30], 0.2, 0.2, 0) == divide(more, group, 0.2, 0.2, 0)[:30]).all()


def test_seeds_differ() -> None:
    landmarks = pl.Series([1] * 100)
    parts = [divide(landmarks, np.arange(100), 0.2, 0.2, seed) for seed in (0, 1)]
    assert (parts[0] != parts[1]).any()


def test_a_landmark_of_large_groups_is_still_in_every_part() -> None:
    part = divide(pl.Series([1] * 12), np.arange(12) // 3, 0.1, 0.1, 0)
    assert np.bincount(part).tolist() == [6, 3, 3]


def test_the_split_and_its_leakage_are_stored(tmp_path: Path) -> None:
    hashes = far_apart(50)
    rows: list[Any] = [(1, hash, None) for hash in hashes for _ in range(2)]  # every picture twice
    rows += [(None, hash, None) for hash in far_apart(70)[50:]]
    before = dataset(tmp_path, rows)
    after = split(tmp_path)
    assert after.digest != before.digest
    assert after.record == before.record
    assert after.split is not None
    assert after.split["id"].to_list() == after.photos["id"].to_list()
    assert after.photos["group"][:100].to_list() == [position // 2 for position in range(100)]
    metadata = read_metadata(tmp_path / "split.parquet")
    leakage = json.loads(metadata["leakage"])
    assert metadata["seed"] == "0"
    assert metadata["rule"].startswith("by group, val 0.15, test 0.15; near-duplicates within 8 of 64 bits")
    assert leakage["near_duplicate_pairs"] == 50
    assert leakage["straddling_pairs"] == leakage["held_out_with_kin_in_train"] == 0
    assert leakage["straddling_pairs_random"] > 5
    assert sum(len(after.part(part)) for part in PARTS) == 120
    assert after.part("test")["landmark_id"].null_count() == 3


def test_a_random_split_leaks_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path, [(1, hash, None) for hash in far_apart(30) for _ in range(2)])
    split(tmp_path, by="random")
    leakage = json.loads(read_metadata(tmp_path / "split.parquet")["leakage"])
    assert leakage["straddling_pairs"] == leakage["straddling_pairs_random"] > 0
    assert f"{leakage['straddling_pairs']} straddle this split" in capfd.readouterr().err


def test_without_a_test_part_nothing_is_in_it(tmp_path: Path) -> None:
    dataset(tmp_path, [(1, hash, None) for hash in far_apart(30)])
    assert set(split(tmp_path, test=0).split["part"]) == {"train", "val"}  # type: ignore[index]


def test_what_a_reader_should_know_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hashes = far_apart(40)
    rows: list[Any] = [(1, hash, None) for hash in hashes[:20]] + [(2, hashes[20], None)]
    rows += [(3, hash, "Ann") for hash in hashes[21:31]]
    dataset(tmp_path, rows)
    split(tmp_path)
    told = capfd.readouterr().err
    assert "1 landmarks have a single photograph, which is in train" in told
    assert "2 landmarks have no photograph in test" in told
    assert "one group holds 10 of the 10 photographs of landmark 3" in told
    swallowed = json.loads(read_metadata(tmp_path / "split.parquet")["swallowed"])
    assert swallowed == [{"landmark_id": 3, "photographs": 10, "in_one_group": 10}]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        dataset(tmp_path / name, [(1, hash, None) for hash in far_apart(30)])
        split(tmp_path / name, seed=3)
    for table in ("split.parquet", "photos.parquet"):
        assert (tmp_path / "a" / table).read_bytes() == (tmp_path / "b" / table).read_bytes()


def test_splitting_again_replaces_the_split(tmp_path: Path) -> None:
    dataset(tmp_path, [(1, hash, None) for hash in far_apart(30)])
    first = split(tmp_path).split
    split(tmp_path, seed=1)
    assert split(tmp_path).split.equals(first)  # type: ignore[union-attr]
    assert open_dataset(tmp_path).split.equals(first)  # type: ignore[union-attr]


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
def test_a_million_photographs_are_split_in_seconds() -> None:
    random = np.random.default_rng(0)
    part = divide(pl.Series(random.integers(0, 50_000, 1_000_000)), np.arange(1_000_000), 0.15, 0.15, 0)
    assert abs((part == TEST).mean() - 0.15) < 0.01
