"""Landmarks of two places are the same when their archive ids are, or their names; a position says nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from landmarks.dataset.images import encode
from landmarks.dataset.importing import import_
from landmarks.dataset.manifest import LABELS, Dataset
from landmarks.dataset.naming import (
    ARCHIVE_IDS,
    LISTED,
    NUMBERS,
    SORTED_NAMES,
    identified_by,
    match_landmarks,
    safe_name,
)
from landmarks.dataset.unpack import unpack
from landmarks.support.errors import UsageError
from landmarks.support.files import read_record


def labels(*landmarks: tuple[int, str | None]) -> pl.DataFrame:
    rows = [(place, id, name, None, 1) for place, (id, name) in enumerate(landmarks)]
    return pl.DataFrame(rows, schema=LABELS, orient="row")


def album(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        spots = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        (folder / name / f"{number}.jpg").write_bytes(encode(spots))
    return folder


def matched(ours: pl.DataFrame, by: str, theirs: pl.DataFrame, theirs_by: str) -> dict[int, int]:
    found = match_landmarks(ours, by, theirs, theirs_by)
    assert found.matched + len(found.unmatched) == len(theirs)
    return dict(found.labels.filter(pl.col("landmark_id").is_in(theirs["landmark_id"].to_list())).rows())


FRUIT = labels((0, "apple"), (1, "pear"))


def test_positions_of_other_names_are_no_match() -> None:
    found = match_landmarks(FRUIT, SORTED_NAMES, labels((0, "cat"), (1, "dog")), SORTED_NAMES)
    assert (found.by, found.matched, found.unmatched) == ("name", 0, ["cat", "dog"])
    assert found.labels.is_empty()


def test_a_name_is_found_wherever_it_stands() -> None:
    assert matched(FRUIT, SORTED_NAMES, labels((0, "pear")), SORTED_NAMES) == {0: 1}
    assert matched(FRUIT, SORTED_NAMES, labels((7, "pear"), (9, "plum")), LISTED) == {7: 1}
    assert matched(labels((0, "A\u0308rmel")), SORTED_NAMES, labels((3, " \u00c4rmel")), SORTED_NAMES) == {3: 0}


def test_ids_of_the_archive_decide_whatever_the_names() -> None:
    ours = labels((6051, "Colosseum"), (9633, None))
    assert matched(ours, ARCHIVE_IDS, labels((9633, "Basilica"), (6052, "Colosseum")), ARCHIVE_IDS) == {9633: 1}
    assert matched(ours, ARCHIVE_IDS, labels((6051, "6051")), NUMBERS) == {6051: 0}


def test_names_that_an_unpacked_archive_gives_its_folders_are_known() -> None:
    ours = labels((6051, "Colosseum (Rome)"), (123456, "Tower: old"))
    folders = labels((0, "006051 Colosseum (Rome)"), (1, "123456 Tower_ old"), (2, "000007 Arch"))
    assert matched(ours, ARCHIVE_IDS, folders, SORTED_NAMES) == {0: 0, 1: 1}
    assert matched(folders, SORTED_NAMES, ours, ARCHIVE_IDS) == {6051: 0, 123456: 1}


def test_of_landmarks_with_one_name_the_one_with_the_same_id_is_meant() -> None:
    ours = labels((4, "Old Town"), (8, "Old Town"))
    assert matched(ours, ARCHIVE_IDS, labels((8, "Old Town")), LISTED) == {8: 1}
    assert matched(ours, ARCHIVE_IDS, labels((0, "Old Town")), SORTED_NAMES) == {}


def test_a_landmark_without_a_name_is_found_by_its_id_unless_that_is_a_position() -> None:
    ours = labels((4, None), (8, "Old Town"))
    assert matched(ours, ARCHIVE_IDS, labels((4, "Bridge"), (8, "8")), LISTED) == {4: 0, 8: 1}
    assert matched(labels((0, "0"), (1, "1")), NUMBERS, labels((0, "Bridge")), SORTED_NAMES) == {}


def test_a_list_that_numbers_other_names_is_no_match() -> None:
    assert matched(labels((1, "apple"), (2, "pear")), LISTED, labels((1, "cat"), (2, "dog")), LISTED) == {}


def kind(dataset: Dataset) -> str:
    id_source = read_record(dataset.folder / "dataset.json")["identified_by"]
    assert id_source == identified_by(dataset.record, dataset.labels)
    return str(id_source)


def test_a_dataset_says_how_it_came_by_its_ids(tmp_path: Path) -> None:
    named = import_(album(tmp_path / "named", "pear", "apple"), tmp_path / "a")
    numbered = import_(album(tmp_path / "numbered", "0012", "7"), tmp_path / "b")
    listing = album(tmp_path / "listed", "x", "y")
    (listing / "labels.csv").write_text("folder,landmark_id,name,category\nx,70,Xanten,\ny,80,York,\n")
    listed = import_(listing, tmp_path / "c")
    assert (kind(named), kind(numbered), kind(listed)) == (SORTED_NAMES, NUMBERS, LISTED)
    again = import_(album(tmp_path / "some", "pear"), tmp_path / "d", labels=named.folder)
    assert kind(again) == SORTED_NAMES
    assert (
        kind(import_(album(tmp_path / "z", "York"), tmp_path / "e", labels=listed.folder / "labels.parquet")) == LISTED
    )


@pytest.mark.parametrize("name", ["names.csv", "classes.txt", "LOC_synset_mapping.txt", "class_index.json"])
def test_a_list_of_names_is_no_table_of_labels_and_is_told_where_names_come_from(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("n02954340 cap\nn02954938 cap, hat\n")
    message = r"is no table of labels; expected a dataset, a run, .*come from a CSV of path,label"
    with pytest.raises(UsageError, match=message):
        import_(album(tmp_path / "album", "n02954340"), tmp_path / "data", labels=tmp_path / name)
    assert not (tmp_path / "data").exists()


def test_landmarks_that_train_lacks_are_named_when_they_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, names in (("train", ("apple", "pear")), ("val", ("apple", "pear", "quince"))):
        album(tmp_path / "fruit" / split, *names)
    import_(tmp_path / "fruit", tmp_path / "data")
    notes = " ".join(capsys.readouterr().err.split())
    assert "a single image" not in notes
    assert "1 landmark has no image in train, and can never be answered: quince" in notes


@pytest.mark.parametrize("source", ["pear apple", "0012 7"])
def test_unpacked_and_imported_again_it_is_identified_as_before(tmp_path: Path, source: str) -> None:
    first = import_(album(tmp_path / "album", *source.split()), tmp_path / "first")
    second = import_(unpack(first.folder, tmp_path / "folders"), tmp_path / "second")
    assert kind(second) == kind(first)
    assert second.labels.equals(first.labels)


@pytest.mark.parametrize("value", ["positions", 7, None, ["archive ids"]])
def test_what_a_stranger_says_about_ids_is_believed_only_as_far_as_it_is_known(tmp_path: Path, value: object) -> None:
    first = import_(album(tmp_path / "album", "pear", "apple"), tmp_path / "first")
    folders = unpack(first.folder, tmp_path / "folders")
    record = read_record(folders / "unpack.json")
    (folders / "unpack.json").write_text(json.dumps({**record, "identified_by": value}))
    assert kind(import_(folders, tmp_path / "second")) == LISTED


def test_a_record_that_does_not_say_is_judged_by_its_labels() -> None:
    assert identified_by({"set": "train"}, FRUIT) == ARCHIVE_IDS
    assert identified_by({"set": "import"}, FRUIT) == SORTED_NAMES
    assert identified_by({}, FRUIT) == SORTED_NAMES
    assert identified_by({"set": "import"}, labels((0, "0"), (12, "12"))) == NUMBERS
    assert identified_by({"set": "import"}, labels((5, "apple"), (6, "pear"))) == LISTED
    assert identified_by({}, labels((6051, "Colosseum"), (9633, "Basilica"))) == ARCHIVE_IDS


def test_numbers_with_zeros_in_front_keep_them_and_are_known_again(tmp_path: Path) -> None:
    first = import_(album(tmp_path / "a", "001", "002", "010"), tmp_path / "A")
    assert first.labels.select("landmark_id", "name").rows() == [(1, "001"), (2, "002"), (10, "010")]
    for number, names in enumerate((("001", "010"), ("1", "10"), ("0001", "0010"))):
        again = import_(album(tmp_path / f"b{number}", *names), tmp_path / f"B{number}", labels=first.folder)
        assert again.images["landmark_id"].to_list() == [1, 10]
    back = import_(unpack(first.folder, tmp_path / "folders"), tmp_path / "C")
    assert back.labels.equals(first.labels)


def test_names_that_are_one_after_cutting_or_but_for_case_are_unpacked_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "in/gate").mkdir(parents=True)
    spots = [encode(np.random.default_rng(seed).integers(0, 256, (30, 30, 3), dtype=np.uint8)) for seed in range(6)]
    names = [f"{'The old town gate ' * 6}, view {number}" for number in range(3)] + ["aux", "con.old"]
    for name, data in zip(names, spots, strict=False):
        (tmp_path / f"in/gate/{name}.jpg").write_bytes(data)
    (tmp_path / "in/list.csv").write_text(
        "path,label,id\n"
        + "".join(f'"gate/{name}.jpg",gate,{id}\n' for name, id in zip(names, ("A1", "a1", "", "", ""), strict=True))
    )
    for source in (tmp_path / "in", tmp_path / "in/list.csv"):
        data = import_(source, tmp_path / f"data-{source.name}")
        assert all(len(id.encode()) <= 80 for id in data.images["image_id"])
        files = list(unpack(data.folder, tmp_path / f"out-{source.name}").rglob("*.jpg"))
        assert len(files) == len({file.name.casefold() for file in files}) == 5
        assert not {"aux.jpg", "con.jpg"} & {file.name for file in files}


@pytest.mark.parametrize("name", ["CON", "nul", "COM1", "lpt\u00b2", "CONOUT$"])
def test_a_name_that_windows_keeps_for_itself_is_no_name_of_a_file(name: str) -> None:
    assert safe_name(name) == f"{name}_"
