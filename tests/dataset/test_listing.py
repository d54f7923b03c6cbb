"""Folders and CSVs as people have them.

Folders: splits, wrappers, a system's own folders, the archive's TARs unpacked. CSVs: every separator, encoding and
spelling; errors name the line.
"""

from __future__ import annotations

import csv
import io
import os
import shlex
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.dataset.listing import list_csv, list_source
from landmarks.dataset.sources import SYSTEM_FOLDERS, Source, find_images
from landmarks.support.errors import LandmarksError, UsageError


def put(folder: Path, *files: str) -> Path:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"-")
    return folder


def places(source: Source) -> set[tuple[str | None, str | None]]:
    return {(one.split, one.name) for one in source.found}


@pytest.mark.parametrize(
    "folders", [("Train", "Valid", "Test"), ("training_set", "dev", "test_set"), ("TRAIN", "VAL", "TESTING")]
)
def test_folders_of_any_spelling_are_splits(tmp_path: Path, folders: tuple[str, str, str]) -> None:
    for folder in folders:
        put(tmp_path, f"{folder}/cat/{folder}1.jpg", f"{folder}/dog/{folder}2.jpg")
    assert places(list_source(tmp_path)) == {
        (split, name) for split in ("train", "val", "test") for name in ("cat", "dog")
    }


def test_a_flat_or_empty_split_folder_is_no_landmark_and_makes_the_others_none(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "test/3.jpg", "test/4.jpg", "README.txt", "sample.csv")
    (tmp_path / "valid").mkdir()
    source = list_source(tmp_path)
    assert places(source) == {("train", "cat"), ("train", "dog")}
    assert [where for where, _ in source.rejected] == ["test/3.jpg", "test/4.jpg"]
    assert "what it shows is not known" in source.rejected[0][1]
    assert any("valid holds no image" in remark for remark in source.remarks)
    assert any("test holds images but no folders" in remark for remark in source.remarks)


def test_flat_folders_of_splits_alone_are_refused_with_the_list_beside_them(tmp_path: Path) -> None:
    put(tmp_path, "train/1.jpg", "test/2.jpg", "train.csv")
    with pytest.raises(UsageError, match=r"no folders of landmarks in them.*landmarks import .*train\.csv"):
        list_source(tmp_path)


def test_what_looks_like_splits_but_is_not_taken_so_is_said(tmp_path: Path) -> None:
    put(tmp_path / "a", "train/cat/1.jpg", "bus/2.jpg")
    assert any("may be meant as splits" in remark for remark in list_source(tmp_path / "a").remarks)
    put(tmp_path / "b", "train/cat/1.jpg", "test/cat/2.jpg", "unlabelled/3.jpg")
    with pytest.raises(UsageError, match="looks divided into test, train, but the folder unlabelled"):
        list_source(tmp_path / "b")
    put(tmp_path / "c", "train/1.jpg", "bus/2.jpg")
    assert list_source(tmp_path / "c").remarks == []


@pytest.mark.parametrize("wrapper", ["dataset", "dataset/dataset", "My Photos [2024]"])
def test_a_folder_that_wraps_all_others_is_passed_through_and_said(tmp_path: Path, wrapper: str) -> None:
    put(tmp_path, f"{wrapper}/cat/1.jpg", f"{wrapper}/dog/2.jpg", "__MACOSX/dataset/cat/._1.jpg", "LICENSE")
    source = list_source(tmp_path)
    assert places(source) == {(None, "cat"), (None, "dog")}
    assert f"everything lies in the folder {wrapper}" in source.remarks[0]


def test_splits_are_found_in_a_wrapper_and_a_wrapper_in_splits(tmp_path: Path) -> None:
    put(tmp_path / "a", "images/train/cat/1.jpg", "images/val/dog/2.jpg")
    assert places(list_source(tmp_path / "a")) == {("train", "cat"), ("val", "dog")}
    put(tmp_path / "b", "train/images/cat/1.jpg", "train/images/dog/3.jpg", "val/images/dog/2.jpg")
    source = list_source(tmp_path / "b")
    assert places(source) == {("train", "cat"), ("train", "dog"), ("val", "dog")}
    assert "each split holds the folder images alone" in source.remarks[0]


@pytest.mark.parametrize(
    "folders",
    [
        ("train/train", "test/test"),
        ("train/seg_train", "test/seg_test"),
        ("train/Train", "val"),
        ("train/data", "test/images"),
    ],
)
def test_each_split_may_have_a_wrapper_of_its_own(tmp_path: Path, folders: tuple[str, str]) -> None:
    put(
        tmp_path, *(f"{folder}/{name}/{number}.jpg" for number, folder in enumerate(folders) for name in ("cat", "dog"))
    )
    source = list_source(tmp_path)
    assert {one.name for one in source.found} == {"cat", "dog"}
    assert {one.split for one in source.found} == {"train", "val" if folders[1] == "val" else "test"}
    assert any("alone: the folders in it are taken as landmarks" in remark for remark in source.remarks)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("01_train", "02_test"), {"train", "test"}),
        (("X_train", "X_test"), {"train", "test"}),
        (("train_256", "val_256"), {"train", "val"}),
        (("cropped_train/cropped_train", "cropped_test/cropped_test"), {"train", "test"}),
        (("train", "test1"), {"train", "test"}),
        (("train", "eval"), {"train", "val"}),
    ],
)
def test_folders_that_hold_the_same_and_tell_a_split_in_a_word_are_splits(
    tmp_path: Path, folders: tuple[str, str], splits: set[str]
) -> None:
    put(
        tmp_path, *(f"{folder}/{name}/{number}.jpg" for number, folder in enumerate(folders) for name in ("cat", "dog"))
    )
    source = list_source(tmp_path)
    assert places(source) == {(split, name) for split in splits for name in ("cat", "dog")}
    if folders != ("train", "eval"):
        assert any("taken as splits: they hold folders of the same names" in remark for remark in source.remarks)


@pytest.mark.parametrize(
    ("files", "odd"),
    [
        (["train/cat/1.jpg", "train/dog/2.jpg", "holdout/cat/3.jpg"], "holdout beside it"),
        (["seg_train/cat/1.jpg", "seg_test/cat/2.jpg", "seg_pred/3.jpg"], "seg_pred beside them"),
        (
            ["seg_train/seg_train/cat/1.jpg", "seg_test/seg_test/cat/2.jpg", "seg_pred/seg_pred/3.jpg"],
            "seg_pred beside",
        ),
    ],
)
def test_a_folder_that_is_no_split_beside_such_is_asked_about(tmp_path: Path, files: list[str], odd: str) -> None:
    put(tmp_path, *files)
    with pytest.raises(UsageError, match=f"looks divided into .*, but the folder {odd}.*call it val or test"):
        list_source(tmp_path)


@pytest.mark.parametrize("folders", [("asl_train/asl_train", "asl_test/asl_test"), ("A_Training/Images", "A_Test")])
def test_folders_that_are_called_alike_but_for_the_split_are_splits(tmp_path: Path, folders: tuple[str, str]) -> None:
    put(tmp_path, f"{folders[0]}/cat/1.jpg", f"{folders[0]}/dog/2.jpg", f"{folders[1]}/3.jpg")
    source = list_source(tmp_path)
    assert places(source) == {("train", "cat"), ("train", "dog")}
    assert [where for where, _ in source.rejected] == [f"{folders[1]}/3.jpg"]
    assert any("taken as splits: their names differ only by train, val and test" in one for one in source.remarks)


@pytest.mark.parametrize("folders", [("cars_train", "cars_test"), ("train", "test1")])
def test_flat_folders_that_are_called_alike_but_for_the_split_have_no_labels(
    tmp_path: Path, folders: tuple[str, str]
) -> None:
    put(tmp_path, f"{folders[0]}/1.jpg", f"{folders[1]}/2.jpg")
    with pytest.raises(UsageError, match="but no folders of landmarks in them: they have no labels"):
        list_source(tmp_path)


def test_an_empty_folder_beside_images_makes_their_folder_no_landmark(tmp_path: Path) -> None:
    put(tmp_path, "images/cat/1.jpg", "images/dog/2.jpg")
    (tmp_path / "labels").mkdir()
    assert places(list_source(tmp_path)) == {(None, "cat"), (None, "dog")}


def test_a_landmark_that_is_alone_in_its_split_wraps_nothing(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "test/cat/album/3.jpg")
    assert places(list_source(tmp_path)) == {("train", "cat"), ("train", "dog"), ("test", "cat")}


@pytest.mark.parametrize("folder", ["images", "ILSVRC2012_img_val", "test_images"])
def test_a_folder_of_images_in_a_split_is_no_landmark(tmp_path: Path, folder: str) -> None:
    put(tmp_path, "train/cat/images/1.jpg", "train/dog/images/2.jpg", f"val/{folder}/3.jpg", f"test/{folder}/4.jpg")
    source = list_source(tmp_path)
    assert {one.name for one in source.found} == {"cat", "dog"}
    assert sorted(where for where, _ in source.rejected) == [f"test/{folder}/4.jpg", f"val/{folder}/3.jpg"]
    assert any("test, val hold images but no folders of landmarks" in remark for remark in source.remarks)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/images/1.jpg", "train/labels/1.txt", "valid/images/2.jpg"], "no folders of landmarks in them"),
        (["train/1.jpg", "train/metadata.csv", "test/2.jpg"], r"landmarks import .*train/metadata\.csv"),
        (["train/images/1.jpg", "train/_classes.csv", "test/images/2.jpg"], r"landmarks import .*train/_classes\.csv"),
        (["data/1.jpg", "data/2.jpg", "labels.json"], "labels.json.* into a CSV"),
        (["images/1.jpg", "images/2.jpg", "train.csv"], r"landmarks import .*train\.csv"),
        (["images/1.jpg", "images/2.jpg"], "rename it to the landmark"),
        (["1.jpg", "metadata.jsonl"], "metadata.jsonl.* into a CSV"),
        (["train/data-0.parquet"], "holds images as a table does: write them as files"),
        (["cat/1.mov"], "is a video: save frames"),
        (["cat/1.NEF"], "is a camera's raw file: save it as JPEG"),
        (["cat/1.jp2"], "of a kind that is not decoded here: save it as JPEG or PNG"),
        (["cat/1.jpg_large", "cat/2.jpg_large"], "1.jpg_large is an image by its first bytes"),
    ],
)
def test_a_folder_of_images_without_labels_is_no_landmark(tmp_path: Path, files: list[str], message: str) -> None:
    from landmarks.dataset.importing import import_

    put(tmp_path / "in", *files)
    for file in tmp_path.rglob("*.jpg_large"):
        file.write_bytes(b"\xff\xd8\xff\xe0" + bytes(20))
    with pytest.raises(UsageError, match=message):
        import_(tmp_path / "in", tmp_path / "out")


def test_splits_in_each_landmarks_folder_are_splits(tmp_path: Path) -> None:
    put(tmp_path, "cat/train/1.jpg", "cat/test/2.jpg", "dog/Train/3.jpg", "dog/Test/4.jpg")
    assert places(list_source(tmp_path)) == {(split, name) for split in ("train", "test") for name in ("cat", "dog")}


def test_albums_in_a_landmarks_folder_belong_to_it(tmp_path: Path) -> None:
    put(tmp_path, "cat/2020/1.jpg", "cat/2021/2.jpg", "dog/3.jpg")
    assert places(list_source(tmp_path)) == {(None, "cat"), (None, "dog")}
    put(tmp_path / "one", "Tower/2020/1.jpg", "Tower/2021/2.jpg")
    assert places(list_source(tmp_path / "one", ["Tower"])) == {(None, "Tower")}
    put(tmp_path / "two", "Tower/2020/1.jpg")
    (tmp_path / "two" / "Arch").mkdir()
    source = list_source(tmp_path / "two")
    assert (places(source), source.empty) == ({(None, "Tower")}, ["Arch"])


@pytest.mark.parametrize("folder", [*sorted(SYSTEM_FOLDERS), "@eaDir", "__MACOSX", "$RECYCLE.BIN"])
def test_a_systems_own_folder_is_no_landmark_and_is_counted(tmp_path: Path, folder: str) -> None:
    put(tmp_path, "cat/1.jpg", "dog/2.jpg", f"{folder}/3.jpg", f"cat/{folder}/1.jpg/SYNOPHOTO_THUMB_XL.jpg")
    source = list_source(tmp_path)
    assert places(source) == {(None, "cat"), (None, "dog")}
    assert "2 folders of a system's own" in source.ignored
    assert (source.empty, source.rejected) == ([], [])
    assert len(find_images([tmp_path])) == 2


@pytest.mark.parametrize("top", ["", "train/", "images_000/"])
def test_the_archives_own_folders_are_no_landmarks(tmp_path: Path, top: str) -> None:
    for number in range(12):
        id = f"{number * 0x9E3779B97F4A7C15 & (2**64 - 1):016x}"
        put(tmp_path, f"{top}{id[0]}/{id[1]}/{id[2]}/{id}.jpg")
    with pytest.raises(UsageError, match=r"first digits of images' ids.*bring the archive's train.csv, .*train.csv; l"):
        list_source(tmp_path)


def test_empty_folders_of_landmarks_are_named(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "dog/2.jpg", "eel/notes.txt")
    (tmp_path / "fox").mkdir()
    assert list_source(tmp_path).empty == ["eel", "fox"]
    put(tmp_path / "d", "train/cat/1.jpg", "test/cat/2.jpg", "test/gnu/3.jpg")
    (tmp_path / "d/train/gnu").mkdir()
    (tmp_path / "d/train/hen").mkdir()
    assert list_source(tmp_path / "d").empty == ["hen"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "cat/1.jpg", "dog/2.jpg", "eel/3.jpg")
    scandir = os.scandir

    def broken(path: str | os.PathLike[str] = ".") -> object:
        if str(path).endswith("eel"):
            raise OSError(116, "Stale file handle", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", broken)
    source = list_source(tmp_path)
    assert source.rejected == [("eel/", "cannot be listed (Stale file handle)")]
    assert source.empty == []
    assert len(find_images([tmp_path])) == 2


def test_one_name_in_two_forms_of_unicode_is_one_landmark(tmp_path: Path) -> None:
    for number, form in enumerate(("NFC", "NFD")):
        put(tmp_path, f"train/{unicodedata.normalize(form, 'Café')}/{number}.jpg")
    assert places(list_source(tmp_path)) == {("train", "Café")}


def test_somebody_elses_labels_csv_is_passed_by_and_said(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "labels.csv").write_text("id,breed\n000a,beagle\n")
    source = list_source(tmp_path)
    assert source.listed is None
    assert "somebody else's" in source.remarks[0]
    (tmp_path / "labels.csv").write_text("folder,landmark_id,name,category\ncat,7,Cat,\ndog,8,Dog,\n")
    assert {landmark.landmark_id for landmark in (list_source(tmp_path).listed or {}).values()} == {7, 8}
    (tmp_path / "labels.csv").write_text("folder,landmark_id,name,category\ncat,seven,Cat,\n")
    with pytest.raises(LandmarksError, match=r'labels\.csv line 2 has the landmark_id "seven"'):
        list_source(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["cat/1.psd", "cat/2.psd"], r"2 that are no images by name \(\.psd\)"),
        (["cat/IMG_1", "cat/IMG_2"], "without an ending"),
        (["photos.zip"], "photos.zip is an archive: unpack it"),
        (["labels.xlsx"], "save it as CSV"),
        ([".hidden/1.jpg"], "1 hidden"),
        (["1.jpg", "labels.csv"], "1 image in no landmark's folder"),
        (["1.jpg", "labels.csv"], "landmarks import .*labels.csv"),
    ],
)
def test_a_source_without_a_landmark_says_what_it_holds_instead(tmp_path: Path, files: list[str], message: str) -> None:
    from landmarks.dataset.importing import import_

    put(tmp_path / "in", *files)
    with pytest.raises(UsageError, match=message):
        import_(tmp_path / "in", tmp_path / "out")


def test_links_that_lead_outside_are_named_with_a_way_out(tmp_path: Path) -> None:
    from landmarks.dataset.importing import import_

    put(tmp_path / "store", "1.jpg")
    (tmp_path / "in/cat").mkdir(parents=True)
    (tmp_path / "in/cat/1.jpg").symlink_to(tmp_path / "store/1.jpg")
    with pytest.raises(UsageError, match=r"cat/1\.jpg: a link that leads outside the folder.*cp -rL"):
        import_(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "remark"),
    [
        (
            ["fold_0/cat/1.jpg", "fold_1/cat/2.jpg"],
            "2 images lie in folders inside a landmark's folder, such as fold_0/cat",
        ),
        (["01_train/cat/1.jpg", "02_test/dog/2.jpg"], "01_train, 02_test may be meant as splits"),
        (["fold_0/cat/1.jpg", "fold_0/dog/1.jpg", "fold_1/cat/2.jpg", "fold_1/dog/2.jpg"], "the same names (cat, dog)"),
        (["bus/day/1.jpg", "car/day/2.jpg", "train/day/3.jpg", "train/night/4.jpg"], "train may be meant as splits"),
        (["Train Station/day/1.jpg", "Castle/day/2.jpg"], "2 images lie in folders inside a landmark's folder"),
        (["Cat/1.jpg", "cat/2.jpg"], '"Cat" and "cat"'),
        (["train/Cat/1.jpg", "test/cat/2.jpg"], '"Cat" and "cat"'),
        (["cat/1.jpg", "cat /2.jpg"], '"cat" = "cat "'),
        (["Unknown/1.jpg", "cat/2.jpg"], "call it _unknown"),
        (["all/cat/1.jpg", "all/dog/2.jpg"], "everything lies in the folder all"),
        (["train/Aves/Corvus/1.jpg", "train/Insecta/Apis/2.jpg"], "2 images lie in folders inside a landmark's folder"),
        (["images/a/1.jpg", "images/b/2.jpg", "meta/train.txt"], "meta/train.txt may list the images of splits"),
        (["Other/1.jpg", "cat/2.jpg"], "call it _unknown"),
        (["BACKGROUND_Google/1.jpg", "cat/2.jpg"], "call it _unknown"),
        (["France/Eiffel/1.jpg", "Italy/Pisa/2.jpg"], "were the inner folders the landmarks, name path and label"),
        (
            ["set/set/train/cat/1.jpg", "set/set/valid/cat/2.jpg", "test/test/3.jpg"],
            "train, valid in set are not taken",
        ),
        (["fold1/train/cat/1.jpg", "fold1/test/cat/2.jpg", "fold2/train/cat/3.jpg"], "test, train in fold1 are not"),
        (["cat/train/1.jpg", "cat/test/2.jpg", "dog/3.jpg"], "test, train in cat are not taken as splits"),
        (["images/1.jpg", "masks/1.png"], "images is taken as a landmark, though the name says only"),
    ],
)
def test_what_may_be_meant_otherwise_is_said(tmp_path: Path, files: list[str], remark: str) -> None:
    try:
        put(tmp_path, *files)
    except OSError:  # a disk that knows no such names
        pytest.skip("a disk that takes these names for one")
    assert remark in "; ".join(list_source(tmp_path).remarks)


def test_a_plain_folder_needs_no_remark(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "dog/2.jpg", "_unknown/3.jpg")
    assert list_source(tmp_path).remarks == []


@pytest.mark.skipif(os.name == "nt", reason="\\ separates folders here")
def test_names_that_hold_folders_are_told_and_never_images_of_nothing_known(tmp_path: Path) -> None:
    put(tmp_path / "some", "cat/1.jpg", "cat/2.jpg", "dog\\3.jpg")
    source = list_source(tmp_path / "some")
    assert places(source) == {(None, "cat")}
    assert source.rejected == [("dog\\3.jpg", "its name holds \\ for the folders that it lay in")]
    for folder, files in (("all", ["cat\\1.jpg", "dog\\2.jpg"]), ("wrapped", ["set/cat\\1.jpg", "set/dog\\2.jpg"])):
        put(tmp_path / folder, *files)
        with pytest.raises(UsageError, match=r"2 names in .* hold \\ for the folders .*; unpack the archive again"):
            list_source(tmp_path / folder)


@pytest.mark.parametrize("split", ["test", "Valid", "val_images"])
def test_a_flat_split_beside_landmarks_is_a_landmark_and_said(tmp_path: Path, split: str) -> None:
    put(tmp_path, "cat/1.jpg", "dog/2.jpg", f"{split}/3.jpg")
    source = list_source(tmp_path)
    assert places(source) == {(None, "cat"), (None, "dog"), (None, split)}
    assert any(f"{split} may be meant as a split" in remark for remark in source.remarks)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_neither_a_folder_nor_a_csv(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LandmarksError, match="pipe is no plain file; expected a folder, or a CSV"):
        list_source(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["test1", "test_stg1", "X_test"])
def test_a_flat_folder_with_a_split_in_its_name_is_no_landmark_beside_train(tmp_path: Path, name: str) -> None:
    put(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", f"{name}/3.jpg", f"{name}/4.jpg")
    source = list_source(tmp_path)
    assert places(source) == {("train", "cat"), ("train", "dog")}
    assert any("are taken as splits: all are called so, and train holds folders" in one for one in source.remarks)
    assert any(f"{name} holds images but no folders of landmarks" in one for one in source.remarks)


def test_unpacked_folders_without_their_list_are_said_to_lack_it(tmp_path: Path) -> None:
    put(tmp_path, "0 cat/1.jpg", "1 dog/2.jpg", "unpack.json")
    source = list_source(tmp_path)
    assert places(source) == {(None, "0 cat"), (None, "1 dog")}
    assert any("labels.csv is missing, which landmarks unpack wrote" in remark for remark in source.remarks)


@pytest.mark.skipif(os.name == "nt", reason="such a name cannot be made here")
def test_a_folder_of_a_blank_name_is_no_landmark(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", " /2.jpg")
    source = list_source(tmp_path)
    assert places(source) == {(None, "cat")}
    assert source.rejected == [(" /2.jpg", "the name of its folder is blank")]


def test_a_loose_image_beside_splits_in_each_landmarks_folder_is_rejected(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{split}/{name}{split}.jpg" for name in ("cat", "dog") for split in ("train", "test")))
    put(tmp_path, "loose.jpg", "_unknown/1.jpg", "_unknown/train/2.jpg")
    source = list_source(tmp_path)
    expected = {(split, name) for name in ("cat", "dog") for split in ("train", "test")} | {("train", None)}
    assert places(source) == expected
    assert {where for where, _ in source.rejected} == {"loose.jpg", "_unknown/1.jpg"}


@pytest.mark.parametrize("name", ["0 images", "0 Test Tower"])
def test_unpacked_folders_are_landmarks_whatever_they_are_called(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"train/{name}/1.jpg", f"test/{name}/2.jpg", "unpack.json")
    (tmp_path / "labels.csv").write_text(f"folder,landmark_id,name,category\n{name},0,{name[2:]},\n")
    assert places(list_source(tmp_path)) == {("train", name), ("test", name)}


# ── CSVs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("img/a.jpg", "img/b.jpg", "img/Käse.png", "img/c d.jpg"):
        path = tmp_path / unicodedata.normalize("NFC", name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"-")
    return tmp_path


def listed(folder: Path, text: str | bytes, name: str = "list.csv") -> Source:
    data = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(data)
    return list_csv(folder / name)


def rows(source: Source) -> list[tuple[str, str | None]]:
    return [(one.path.name, one.name) for one in source.found]


BOTH = [("a.jpg", "cat"), ("b.jpg", "dog")]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_separators_ends_of_lines_and_marks_are_understood(folder: Path, separator: str, end: str, mark: str) -> None:
    lines = ["path,label", "img/a.jpg,cat", "", "img/b.jpg,dog", ",", ""]
    text = end.join(lines).replace(",", separator)
    assert rows(listed(folder, text.encode(mark))) == BOTH


def test_excels_own_line_about_the_separator_is_no_header(folder: Path) -> None:
    assert rows(listed(folder, "sep=;\r\npath;label\r\nimg/a.jpg;cat\r\nimg/b.jpg;dog\r\n")) == BOTH
    with pytest.raises(LandmarksError, match="line 3"):
        listed(folder, "sep=;\npath;label\nimg/a.jpg;cat;1\n")


@pytest.mark.parametrize(
    "header",
    ["file,label", "Filename,Class", "image,landmark", " Image Path ,CLASS NAME", "img,category", "image_id,label",
     "id,label", "path,landmark_id", "FILE_NAME,target", "Filename,ClassId", "ImageID,LabelName",
     "image-path,category_id"],
)  # fmt: skip
def test_columns_are_known_by_the_names_people_use(folder: Path, header: str) -> None:
    assert rows(listed(folder, f"{header}\nimg/a.jpg,cat\nimg/b.jpg,dog\n")) == BOTH


def test_the_columns_own_name_goes_before_another_that_could_be_meant(folder: Path) -> None:
    source = listed(folder, "path,class,label,width\nimg/a.jpg,1,cat,80\n")
    assert rows(source) == [("a.jpg", "cat")]
    assert source.remarks == ["of list.csv the columns class, width are not used"]


def test_licences_authors_and_splits_of_any_spelling_are_kept(folder: Path) -> None:
    source = listed(folder, "file,label,Licence,Photographer,Subset\nimg/a.jpg,cat,CC BY,Ann,Training\n")
    one = source.found[0]
    assert (one.license, one.author, one.split) == ("CC BY", "Ann", "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,Label\nimg/a.jpg,cat,x\n", 'several columns for the label; received "label", "Label"'),
        ("path,class,category\nimg/a.jpg,cat,x\n", 'several columns for the label; received "class", "category"'),
        ("path,label\n\nimg/a.jpg,cat,dog\n", "line 3 is invalid; received 3 cells; expected 2"),
        ("path,label\nimg/a.jpg\n", "line 2 has no label"),
        ("path,label\nimg/a.jpg,cat\n,dog\n", "line 3 has no path"),
        ('path,label\nimg/a.jpg,"c\nat"\nimg/b.jpg,x,y\n', "line 4 is invalid"),
        ('path,label\nimg/a.jpg,"cat" y\n', "line 2: "),
        ('path,label\nimg/a.jpg,"cat\n', "line 2: "),
        (b"path,label\nimg/a.jpg,caf\xe9\n", r"line 2 is not UTF-8; received img/a.jpg,caf\\xe9.*save it as CSV UTF-8"),
        ("path,label,split\nimg/a.jpg,cat,train\nimg/b.jpg,dog,\n", "some images only; received none in line 3"),
        ("path,label,split\nimg/a.jpg,cat,holdout\n", 'line 2 names the split "holdout"'),
        ("name,label\nimg/a.jpg,cat\n", 'no column "path"; received name, label'),
        ("", "it is empty"),
        ("\n\n", "it is empty"),
        ('{"path": 1}', "it is JSON"),
        (b"PK\3\4" + bytes(40), "unpack the archive.*saved as CSV"),
        (b"\x1f\x8b" + bytes(40), "unpack the archive"),
        (b"x" * 257 + b"ustar" + bytes(250), "unpack the archive"),
        (b"\xd0\xcf\x11\xe0" + bytes(40), "save the spreadsheet as CSV"),
        (b"PAR1" + bytes(40), "landmarks fetch"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line_that_names_its_place(folder: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(LandmarksError, match=message):
        listed(folder, text)


def test_labels_keep_their_zeros_quotes_and_ends_of_lines(folder: Path) -> None:
    source = listed(folder, 'path,label\nimg/a.jpg,007\nimg/b.jpg,"Saint Mary\n""old"", Rome"\n')
    assert rows(source) == [("a.jpg", "007"), ("b.jpg", 'Saint Mary\n"old", Rome')]


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("img/a", "with an ending that the list does not have"),
        (r"img\a.jpg", r"with / for the \\ of the list"),
        (r".\img\a.jpg", r"with / for the \\ of the list"),
        ("IMG/A.JPG", "in another case"),
        (unicodedata.normalize("NFD", "img/Käse.png"), "another form of Unicode"),
        (" img/a.jpg ", "without the spaces around them"),
        ("img/K%C3%A4se.png", "with letters for the %41"),
        (r"img\c%20d.jpg", "with letters for the %41"),
    ],
)
def test_paths_of_another_system_are_found_and_counted(folder: Path, text: str, how: str) -> None:
    source = listed(folder, f"path,label\n{text},cat\n")
    assert [one.path.parent for one in source.found] == [folder / "img"]
    assert len(source.remarks) == 1
    assert source.remarks[0].startswith("1 path was found ")
    assert how.replace("\\\\", "\\") in source.remarks[0]


def test_ids_of_the_archive_are_found_in_the_folders_of_its_tars(folder: Path) -> None:
    (folder / "0/0/c").mkdir(parents=True)
    (folder / "0/0/c/00cba0067c078490.jpg").write_bytes(b"-")
    source = listed(folder, "id,url,landmark_id\n00cba0067c078490,http://example.org/x.jpg,27\n")
    assert rows(source) == [("00cba0067c078490.jpg", "27")]
    assert "in the folders of an id's first digits" in " ".join(source.remarks)


@pytest.mark.parametrize("csv", ["", "train/", "metadata/"])
@pytest.mark.parametrize("tar", ["", "images_007/"])
def test_the_unpacked_archive_is_imported_by_the_command_that_its_folders_lead_to(
    tmp_path: Path, csv: str, tar: str
) -> None:
    archive = tmp_path / "my archive"
    ids = [f"{number * 0x9E3779B97F4A7C15 & (2**64 - 1):016x}" for number in range(12)]
    put(archive, *(f"train/{tar}{id[0]}/{id[1]}/{id[2]}/{id}.jpg" for id in ids))
    listed = archive / f"{csv}train.csv"
    listed.parent.mkdir(exist_ok=True)
    listed.write_text("id,url,landmark_id\n" + "".join(f"{id},http://x,27\n" for id in [*ids, "f" * 16]))
    for folder in (archive, archive / "train"):
        with pytest.raises(UsageError) as raised:
            list_source(folder)
        command = shlex.split(str(raised.value).partition("; landmarks ")[2].partition(" makes a dataset")[0])
        assert (command[0], Path(command[1]), command[2:]) == ("import", listed, ["-o", "DATA", "--by-reference"])
    source = list_source(listed)
    assert sorted(image.path.stem for image in source.found) == sorted(ids)
    assert {image.name for image in source.found} == {"27"}
    assert source.rejected == [("f" * 16, "it is not among the images of the archive that are unpacked here")]
    assert "12 paths were found in the folders of an id's first digits" in " ".join(source.remarks)


def test_a_path_that_could_be_two_files_is_none(folder: Path) -> None:
    (folder / "img/a.png").write_bytes(b"-")
    source = listed(folder, "path,label\nimg/a,cat\nimg/b.jpg,dog\n")
    assert rows(source) == [("b.jpg", "dog")]
    assert source.rejected == [("img/a", "there is no such file, with no ending of an image either")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("img/x.jpg", "there is no such file"),
        ("img", "a folder"),
        ("https://example.org/a.jpg", "an address, not a file: what lies there must be fetched first"),
        (r"C:\data\img\a.jpg", "there is no such file; img/a.jpg is there: take C:/data off the paths"),
        ("/img/a.jpg", "there is no such file; img/a.jpg is there: take / off the paths"),
        ("/kaggle/input/x/img/a.jpg", "there is no such file; img/a.jpg is there: take /kaggle/input/x off the paths"),
        ("a.jpg", "there is no such file; img/a.jpg is there: put the CSV into img, or img/ before"),
        ("a", "there is no such file; img/a.jpg is there: put the CSV into img, or img/ before"),
        ("cat/c.jpg", "there is no such file; train/cat/c.jpg is there: put the CSV into train, or train/ before"),
        ("c.jpg", "there is no such file; train/cat/c.jpg is there: put the CSV into train/cat, or train/cat/ before"),
        ("img/a.jpeg", "there is no such file; img/a.jpg is there, of another ending"),
        ("x" * 5000, "there can be no such file"),
        ("nowhere/img/" + "x" * 300 + ".jpg", "there is no such file"),
        ("nowhere/img/" + "x" * 300, "there is no such file, with no ending of an image either"),
    ],
)
def test_what_is_not_there_is_rejected_with_its_reason(folder: Path, text: str, why: str) -> None:
    (folder / "train/cat").mkdir(parents=True)
    (folder / "train/cat/c.jpg").write_bytes(b"-")
    source = listed(folder, f"path,label\n{text},cat\nimg/b.jpg,dog\n")
    assert rows(source) == [("b.jpg", "dog")]
    assert source.rejected[0][1].startswith(why)


def test_one_file_on_two_lines_is_one_image_and_another_label_is_said(folder: Path) -> None:
    text = "path,label\nimg/a.jpg,cat\n./img/a.jpg,dog\nimg/../img/a.jpg,cat\nimg\\a.jpg,_unknown\n"
    source = listed(folder, text)
    assert rows(source) == [("a.jpg", "cat")]
    assert [why for _, why in source.rejected] == [
        'line 3 gives it the label "dog", line 2 "cat", which is kept',
        "listed more than once",
        'line 5 gives it the label "_unknown", line 2 "cat", which is kept',
    ]


def test_brackets_in_names_are_no_pattern(folder: Path) -> None:
    (folder / "list1.csv").write_text("path,label\nimg/a.jpg,WRONG\n")
    assert rows(listed(folder, "path,label\nimg/a.jpg,cat\n", "list[1].csv")) == [("a.jpg", "cat")]


@given(
    st.lists(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=12), max_size=5),
    st.sampled_from(",;\t|"),
)
def test_whatever_a_csv_writer_writes_is_read_back(labels: list[str], separator: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=separator)
        writer.writerow(["path", "label"])
        for number, label in enumerate(labels):
            (Path(place) / f"{number}.jpg").write_bytes(b"-")
            writer.writerow([f"{number}.jpg", label])
        source = listed(Path(place), text.getvalue().encode())
        wanted = [unicodedata.normalize("NFC", label).strip() or None for label in labels]
        assert [one.name for one in source.found] == [None if label == "_unknown" else label for label in wanted]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("img/a.jpg,cat\nimg/b.jpg,dog\n", "first line is an image already: put a line path,label before it"),
        ("0,img/a.jpg,cat\n", "put a line path,label before it"),
        ("img/a.jpg 0\n", "put a line path,label before it, and commas for the spaces between"),
        ("path label\nimg/a.jpg cat\n", "put commas for the spaces between the cells"),
        ("# made by me\npath,label\n", "delete the lines before the one that names the columns"),
        ('"path,label"\n"img/a.jpg,cat"\n', "take those quotes off"),
        ("'path','label'\n", "quotes of a CSV are double ones"),
        ("img_path,breed\nimg/a.jpg,pug\n", 'were "breed" the label: call that column "label"'),
        ("Image,Id\nimg/a.jpg,w_1\n", 'were "Id" the label: call that column "label"'),
        ("img_path,breed,size\nimg/a.jpg,pug,2\n", 'call the column of labels "label"'),
        ("filename, cat, dog\nimg/a.jpg,1,0\n", "the columns cat, dog hold 0 and 1 for each label"),
        ("image_id,healthy,rust,scab\nimg/a.jpg,0.0,1.0,0.0\n", "healthy, rust, scab hold 0 and 1"),
        ("filename,cat,dog\nimg/a.jpg,True,False\n", "the columns cat, dog hold true and false for each label"),
        ("landmark_id,images\n7,00cba0067c078490 00f928e383e1d121\n", "landmarks select MIRROR --clean reads it"),
        ('{"file_name": "a.jpg", "label": "cat"}\n', "path and the label of each image into a CSV"),
        ("path,label\nimg/a.jpg,c\0t\n", "line 2 holds a byte of zero"),
        ("path,label\n".encode("utf-16-le"), "line 1 holds a byte of zero"),
        ("<!DOCTYPE html>\n<html>", "it is a web page"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "save the table as CSV"),
        ('path,label\nimg/a.jpg,"cat\n', "a quote in it is doubled"),
    ],
)
def test_what_is_no_list_of_ours_is_told_with_what_to_change(folder: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(LandmarksError) as error:
        listed(folder, text)
    assert message in str(error.value)
    assert "\0" not in str(error.value)


def test_spaces_before_a_quoted_cell_do_no_harm(folder: Path) -> None:
    assert rows(listed(folder, 'path, label\nimg/a.jpg, "cat, old"\nimg/b.jpg, dog\n')) == [
        ("a.jpg", "cat, old"),
        ("b.jpg", "dog"),
    ]


def test_whole_numbers_of_a_table_with_gaps_are_whole(folder: Path) -> None:
    source = listed(folder, "path,label\nimg/a.jpg,3.0\nimg/b.jpg,12.0\nimg/c d.jpg,\n")
    assert rows(source) == [("a.jpg", "3"), ("b.jpg", "12"), ("c d.jpg", None)]
    assert "taken without the .0" in source.remarks[-1]
    for labels in (("3.0", "12"), ("3.0", "3.00"), ("3.5", "3.0")):
        assert [
            name for _, name in rows(listed(folder, "path,label\nimg/a.jpg,{}\nimg/b.jpg,{}\n".format(*labels)))
        ] == [*labels]


@pytest.mark.parametrize(("column", "cells"), [("is_valid", "True,False"), ("kfold", "0,4"), ("IsTrain", "1,0")])
def test_a_column_that_says_the_split_in_other_words_is_named(folder: Path, column: str, cells: str) -> None:
    first, second = cells.split(",")
    source = listed(folder, f"path,label,{column}\nimg/a.jpg,cat,{first}\nimg/b.jpg,dog,{second}\n")
    assert any(f"the column {column} may say the split" in remark for remark in source.remarks)


def test_a_column_that_could_be_the_split_is_named(folder: Path) -> None:
    text = "path,label,phase\nimg/a.jpg,cat,train\nimg/b.jpg,dog,{}\n"
    remark = 'every row of the column phase names a split: to have it taken, call the column "split"'
    assert listed(folder, text.format("val")).remarks[-1] == remark
    assert remark not in listed(folder, text.format("moon")).remarks
    assert remark not in listed(folder, "path,label,split,phase\nimg/a.jpg,cat,val,train\n").remarks


def test_ids_that_two_images_have_are_refused_by_their_lines(folder: Path) -> None:
    write = folder / "l.csv"
    write.write_text("path,label,id\nimg/a.jpg,Arch,7\n\nimg/b.jpg,Tower,7\n")
    message = 'line 4 gives an image the id "7"; received the same in line 2; .*leave the column "id" out'
    with pytest.raises(UsageError, match=message):
        list_csv(write)


def test_an_id_that_a_csv_gives_is_kept_and_a_file_of_that_name_gets_another(folder: Path) -> None:
    (folder / "l.csv").write_text("path,label,id\nimg/a.jpg,Arch,\nimg/b.jpg,Tower,A\n")
    ids = [image.id for image in list_source(folder / "l.csv").found]
    assert ids[1] == "A" and ids[0].startswith("a-")
