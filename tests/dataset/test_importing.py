from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from landmarks.cli.main import run
from landmarks.dataset import importing, storing
from landmarks.dataset.groups import perceptual_hash
from landmarks.dataset.images import DECODER, decode, encode, resize
from landmarks.dataset.importing import import_
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.shards import ImageReader, ShardWriter, require_images
from landmarks.dataset.split import split
from landmarks.dataset.unpack import unpack
from landmarks.support.errors import LandmarksError, StaleError, UsageError
from landmarks.support.tables import read_metadata


def image(seed: int, width: int = 60, height: int = 40) -> np.ndarray:
    spots = np.random.default_rng(seed).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    return resize(spots, width, height)


def put(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(image(seed)))
    return path


def album(folder: Path, counts: dict[str, int]) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        for one in range(count):
            put(folder / name / f"{name[0]}{one}.jpg", 100 * number + one)
    return folder


def rejected(dataset: Dataset) -> dict[str, str]:
    table = pl.read_parquet(dataset.folder / "rejected.parquet")
    return dict(zip(table["where"], table["why"], strict=True))


def all_bytes(dataset: Dataset) -> dict[str, bytes]:
    reader = ImageReader(dataset)
    rows = dataset.images.select("image_id", "shard", "offset", "length").iter_rows()
    return {id: reader.read(shard, offset, length) for id, shard, offset, length in rows}


def test_a_folder_per_landmark_becomes_a_dataset(tmp_path: Path) -> None:
    dataset = import_(album(tmp_path / "in", {"Tower": 3, "Arch": 2}), tmp_path / "out")
    assert dataset.labels.select("label", "landmark_id", "name", "images").rows() == [
        (0, 0, "Arch", 2),
        (1, 1, "Tower", 3),
    ]
    assert dataset.images["image_id"].to_list() == ["A0", "A1", "T0", "T1", "T2"]
    assert dataset.images["landmark_id"].to_list() == [0, 0, 1, 1, 1]
    assert all_bytes(dataset)["T1"] == (tmp_path / "in/Tower/T1.jpg").read_bytes()
    assert dataset.images.select("width", "height").unique().rows() == [(60, 40)]
    assert dataset.images["phash"].n_unique() == 5
    assert dataset.splits is None
    assert dataset.record["max_side"] == 512
    assert not (dataset.folder / ".import").exists()


def test_by_reference_images_stay_where_they_are(tmp_path: Path) -> None:
    source = album(tmp_path / "in", {"Tower": 2})
    dataset = import_(source, tmp_path / "out", copy=False, max_side=10)
    assert dataset.images["shard"].to_list() == [str(source / "Tower" / f"T{one}.jpg") for one in range(2)]
    assert all_bytes(dataset)["T1"] == (source / "Tower/T1.jpg").read_bytes()
    assert dataset.images["width"].to_list() == [60, 60]
    assert not (tmp_path / "out/shards").exists()


def test_images_that_were_moved_since_are_told_with_the_way_out(tmp_path: Path) -> None:
    source = album(tmp_path / "in", {"Tower": 2})
    dataset = import_(source, tmp_path / "out", copy=False)
    source.rename(tmp_path / "moved")
    with pytest.raises(LandmarksError, match=r"T0\.jpg is not there any more; .* put them back, or import them anew"):
        all_bytes(dataset)


@pytest.mark.parametrize("change", [b"", b" and more"], ids=["shorter", "longer"])
def test_an_image_that_was_replaced_since_is_named_and_never_cut(tmp_path: Path, change: bytes) -> None:
    source = album(tmp_path / "in", {"Tower": 2})
    dataset = import_(source, tmp_path / "out", copy=False)
    path = source / "Tower/T0.jpg"
    path.write_bytes(path.read_bytes() + change if change else encode(image(5, 9, 9)))
    with pytest.raises(LandmarksError, match=r"T0\.jpg was changed after it was imported; .* import the images anew"):
        unpack(dataset.folder, tmp_path / "files")


@pytest.mark.parametrize("word", ["--by-reference", "--reference"])
def test_the_verb_leaves_images_where_they_are_by_either_word(tmp_path: Path, word: str) -> None:
    source = album(tmp_path / "in", {"Tower": 2, "Arch": 2})
    assert run(["import", str(source), "-o", str(tmp_path / "out"), word]) == 0
    assert open_dataset(tmp_path / "out").images_in == source.resolve()


def test_copies_are_shrunk_and_turned_to_jpeg(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "in/Tower").mkdir(parents=True)
    Image.fromarray(image(0, 600, 300)).save(tmp_path / "in/Tower/a.png")
    dataset = import_(tmp_path / "in", tmp_path / "out", max_side=100)
    assert dataset.images.select("width", "height").rows() == [(100, 50)]
    assert decode(all_bytes(dataset)["a"]).shape == (50, 100, 3)


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folders_of_parts_stay_parts(tmp_path: Path, val: str) -> None:
    for seed, name in enumerate(("train", val, "test")):
        put(tmp_path / "in" / name / "Tower" / f"{name}.jpg", seed)
    dataset = import_(tmp_path / "in", tmp_path / "out")
    assert dataset.labels["name"].to_list() == ["Tower"]
    assert dataset.splits is not None
    assert dict(dataset.splits.rows()) == {"train": "train", val: "val", "test": "test"}
    metadata = read_metadata(dataset.folder / "splits.parquet")
    assert metadata["rule"].startswith("kept from the source")
    assert json.loads(metadata["leakage"])["near_duplicate_pairs"] == 0


def test_a_landmark_called_train_is_a_landmark(tmp_path: Path) -> None:
    dataset = import_(album(tmp_path / "in", {"train": 2, "bus": 1}), tmp_path / "out")
    assert dataset.labels["name"].to_list() == ["bus", "train"]
    assert dataset.splits is None


def test_a_csv_of_paths_and_labels_keeps_what_it_tells(tmp_path: Path) -> None:
    for seed in range(3):
        put(tmp_path / "in" / "deep" / f"{seed}.jpg", seed)
    (tmp_path / "in/list.csv").write_text(
        "\ufeffPath,label,author,license,title,part\n"
        'deep/0.jpg,"Saint Mary, ""old""",Ann,CC BY,Dawn,train\n'
        f"{tmp_path / 'in/deep/1.jpg'},Ärmel,,,,val\n"
        "deep/2.jpg,,,,,train\n"
        "deep/3.jpg,Tower,,,,train\n"
        "deep/0.jpg,Tower,,,,train\n"
    )
    dataset = import_(tmp_path / "in/list.csv", tmp_path / "out")
    assert dataset.labels["name"].to_list() == ['Saint Mary, "old"', "Ärmel"]
    assert dataset.images.select("landmark_id", "author", "license", "title").rows() == [
        (0, "Ann", "CC BY", "Dawn"),
        (1, None, None, None),
        (None, None, None, None),
    ]
    assert dict(dataset.splits.rows()) == {"0": "train", "1": "val", "2": "train"}  # type: ignore[union-attr]
    reason = 'line 6 gives it the label "Tower", line 2 "Saint Mary, "old"", which is kept'
    assert rejected(dataset) == {"deep/3.jpg": "there is no such file", "deep/0.jpg": reason}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datei,label\na.jpg,Tower\n", 'no column "path"'),
        ("path,lable\na.jpg,Tower\n", 'did you mean "lable"'),
        ("path,label,part\na.jpg,Tower,training\nb.jpg,Tower,\n", "a split to some images only"),
        ("path,label,part\na.jpg,Tower,trial\n", 'the split "trial"; expected train, val, test'),
        ("path,label\na.jpg,Tower,more\n", "cannot be read as a CSV"),
        ("", "cannot be read as a CSV"),
        ("path,label\n", "no image of a named landmark; .*; below its header list.csv holds no rows"),
    ],
)
def test_a_wrong_csv_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "b.jpg")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(LandmarksError, match=message):
        import_(tmp_path / "list.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_whole_image_is_named_and_nothing_else_is_lost(tmp_path: Path) -> None:
    source = album(tmp_path / "in", {"Tower": 3})
    (source / "Tower/text.jpg").write_text("not an image at all")
    (source / "Tower/empty.png").write_bytes(b"")
    whole = put(source / "Tower/cut.jpg", 9).read_bytes()
    (source / "Tower/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (source / "Tower/notes.txt").write_text("not even called an image")
    (source / "Tower/.hidden.jpg").write_text("left out")
    dataset = import_(source, tmp_path / "out")
    assert len(dataset.images) == 3
    assert {where: why.split(";")[0].split(" (")[0] for where, why in rejected(dataset).items()} == {
        "Tower/text.jpg": "not an image that is decoded here: text",
        "Tower/empty.png": "not an image that is decoded here: an empty file",
        "Tower/cut.jpg": "a damaged or truncated JPEG",
    }
    assert dataset.record["rejected"] == 3


def test_strange_names_survive(tmp_path: Path) -> None:
    names = ['Bob\'s "Place"', "Łódź – 東京", " spaces  inside ", "a,b;c", "e\u0301", "=1+1"]
    for seed, name in enumerate(names):
        put(tmp_path / "in" / name / f"{name.strip()} image.1.jpg", seed)
    dataset = import_(tmp_path / "in", tmp_path / "out")
    assert set(dataset.labels["name"]) == {name.strip().replace("e\u0301", "é") for name in names}
    assert dataset.images["image_id"].n_unique() == len(names)
    assert not any(set(id) & set('/\\."') for id in dataset.images["image_id"])
    again = import_(unpack(dataset.folder, tmp_path / "unpacked"), tmp_path / "again")
    assert again.labels.equals(dataset.labels)
    assert again.images["image_id"].to_list() == dataset.images["image_id"].to_list()


def test_two_files_of_one_name_stay_two_images(tmp_path: Path) -> None:
    for seed, place in enumerate(("Arch/a.jpg", "Tower/a.jpg", "Tower/A.jpeg", "Tower/b.jpg")):
        put(tmp_path / "in" / place, seed)
    ids = import_(tmp_path / "in", tmp_path / "out").images["image_id"].to_list()
    assert len({id.casefold() for id in ids}) == 4
    assert "b" in ids
    assert sum(id.casefold().startswith("a-") for id in ids) == 3


def test_a_file_name_that_is_not_utf8_is_named_and_left_out(tmp_path: Path) -> None:
    source = album(tmp_path / "in", {"Tower": 1})
    put(Path(os.fsdecode(os.fsencode(source / "Tower") + b"/\xff.jpg")), 3)
    put(Path(os.fsdecode(os.fsencode(source) + b"/T\xfcrme")) / "a.jpg", 4)
    assert rejected(import_(source, tmp_path / "out")) == {
        r"Tower/\xff.jpg": "its name is not valid UTF-8",
        r"T\xfcrme/a.jpg": "its name is not valid UTF-8",
    }


def test_a_name_that_holds_the_replacement_character_is_a_name(tmp_path: Path) -> None:
    source = album(tmp_path / "in", {"Tower": 1, "ch\ufffdteau": 2})
    put(source / "Tower" / "caf\ufffd.jpg", 9)
    dataset = import_(source, tmp_path / "out")
    assert dataset.labels["name"].to_list() == ["Tower", "ch\ufffdteau"]
    assert len(dataset.images) == 4
    assert rejected(dataset) == {}


@pytest.mark.parametrize("letter", ["\u2028", "\u2029", "\u202e", "\u0085"])
def test_a_name_with_a_letter_that_steers_a_terminal_becomes_an_id_that_is_read_again(
    letter: str, tmp_path: Path
) -> None:
    source = album(tmp_path / "in", {"Tower": 1, "Arch": 1})
    put(source / "Tower" / f"old{letter}town.jpg", 9)
    dataset = import_(source, tmp_path / "out")
    assert open_dataset(dataset.folder).images.filter(pl.col("image_id").str.starts_with("old_town-")).height == 1


def test_images_of_nothing_known_alone_are_imported_with_the_labels_of_a_run(tmp_path: Path) -> None:
    dataset = import_(album(tmp_path / "in", {"Tower": 2}), tmp_path / "out")
    strangers = album(tmp_path / "strangers", {"_unknown": 2})
    with pytest.raises(UsageError, match="images of nothing known alone are imported with --labels RUN"):
        import_(strangers, tmp_path / "unknown")
    assert import_(strangers, tmp_path / "unknown", labels=dataset).images["landmark_id"].null_count() == 2


def test_a_source_whose_own_name_is_not_utf8_is_imported_and_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    source = album(Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\xfcr mich")), {"Tower": 1})
    dataset = import_(source, tmp_path / "out")
    assert len(dataset.images) == 1
    assert dataset.record["origin"] == str(source)
    unpack(dataset.folder, tmp_path / "unpacked")
    with pytest.raises(LandmarksError, match="none of the 1 files"):
        import_(source, tmp_path / "by-reference", copy=False)
    for place in (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfc")),):
        with pytest.raises(LandmarksError, match=r"the name .*\\xfc is not valid UTF-8; rename"):
            import_(album(tmp_path / "in", {"Tower": 1}), place)
        place.mkdir()
        with pytest.raises(LandmarksError, match=r"not valid UTF-8"):
            unpack(place, tmp_path / "nowhere")


def test_links_are_not_followed_out_of_the_folder(tmp_path: Path) -> None:
    source = album(tmp_path / "in", {"Tower": 2})
    put(tmp_path / "elsewhere/secret.jpg", 5)
    (source / "Tower/inside.jpg").symlink_to(source / "Tower/T0.jpg")
    (source / "Tower/outside.jpg").symlink_to(tmp_path / "elsewhere/secret.jpg")
    (source / "Tower/nowhere.jpg").symlink_to(source / "Tower/gone.jpg")
    (source / "Tower/loop").symlink_to(source)
    (source / "Arch").symlink_to(tmp_path / "elsewhere")
    dataset = import_(source, tmp_path / "out")
    assert dataset.images["image_id"].to_list() == ["T0", "T1", "inside"]
    assert rejected(dataset) == {
        "Tower/outside.jpg": "a link that leads outside the folder",
        "Tower/nowhere.jpg": "a link to a file that is not there",
        "Tower/loop": "a link to a folder",
        "Arch": "a link to a folder",
    }


def test_earlier_labels_are_kept_although_a_folder_is_missing(tmp_path: Path) -> None:
    first = import_(album(tmp_path / "in", {"Arch": 1, "Bridge": 1, "Tower": 1}), tmp_path / "first")
    few = import_(album(tmp_path / "few", {"Tower": 2}), tmp_path / "second", labels=first.folder)
    assert few.labels["landmark_id"].to_list() == [0, 1, 2]
    assert few.labels["images"].to_list() == [0, 0, 2]
    assert few.split("all")["label"].to_list() == [2, 2]
    with pytest.raises(UsageError, match='"Towr" is none of the 3 landmarks of the labels; did you mean "Tower"'):
        import_(album(tmp_path / "slip", {"Towr": 1}), tmp_path / "third", labels=first.folder)


def test_images_of_nothing_known_lie_in_a_folder_or_in_none(tmp_path: Path) -> None:
    source = album(tmp_path / "in", {"Tower": 1, "_unknown": 2})
    put(source / "loose.jpg", 7)
    dataset = import_(source, tmp_path / "out")
    assert dataset.images["landmark_id"].null_count() == 3
    others = tmp_path / "others"
    put(others / "one.jpg", 1)
    assert import_(others, tmp_path / "negatives", labels=dataset.folder).images["landmark_id"].null_count() == 1
    with pytest.raises(UsageError, match="no image of a named landmark"):
        import_(others, tmp_path / "nothing")


def test_names_that_are_numbers_are_the_landmark_ids(tmp_path: Path) -> None:
    dataset = import_(album(tmp_path / "in", {"9633": 1, "10": 1, "133718": 1}), tmp_path / "out")
    assert dataset.labels["landmark_id"].to_list() == [10, 9633, 133718]
    alike = import_(album(tmp_path / "alike", {"1": 1, "01": 1}), tmp_path / "other")
    assert alike.labels.select("landmark_id", "name").rows() == [(0, "01"), (1, "1")]


@pytest.mark.parametrize("divided", [True, False])
@pytest.mark.parametrize("copy", [True, False])
def test_unpacked_folders_import_back_to_the_same_dataset(tmp_path: Path, divided: bool, copy: bool) -> None:
    source = album(tmp_path / "in", {"Tower / of : London?": 1, "Arch": 9, "B. Ridge.": 8, "_unknown": 6})
    dataset = import_(source, tmp_path / "data", copy=copy)
    if divided:
        dataset = split(dataset.folder)
    out = unpack(dataset.folder, tmp_path / "unpacked")
    again = import_(out, tmp_path / "again")
    assert again.labels.equals(dataset.labels)
    assert again.images.drop("shard", "offset").equals(dataset.images.drop("shard", "offset"))
    assert all_bytes(again) == all_bytes(dataset)
    if divided:
        assert again.splits.equals(dataset.splits)  # type: ignore[union-attr]
        assert {folder.name for folder in out.iterdir() if folder.is_dir()} == {"train", "val", "test"}
        without_names = tmp_path / "unpacked/train"
        assert import_(without_names, tmp_path / "third", labels=dataset.folder).labels["name"].to_list() == (
            dataset.labels["name"].to_list()
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(",", ";"),
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: text.replace(",0,", ",0.0,").replace(",1,", ",1.0,"),
        lambda text: "sep=;\n" + text.replace(",", ";"),
    ],
    ids=["semicolons", "Windows", "a table with gaps", "Excel"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_list_of_unpacked_folders_is_read_as_a_spreadsheet_saves_it(
    tmp_path: Path, change: Callable[[str], str], encoding: str
) -> None:
    dataset = import_(album(tmp_path / "in", {"Tower": 2, "Arch": 2}), tmp_path / "data")
    listed = unpack(dataset.folder, tmp_path / "files") / "labels.csv"
    listed.write_bytes(change(listed.read_text()).encode(encoding))
    assert import_(tmp_path / "files", tmp_path / "again").labels.equals(dataset.labels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 Arch,0,Arch,\n1 Tower,0,Tower,\n", r'line 3 gives the landmark_id 0 to the folder "1 Tower"; received the'),
        ("0 Arch,0,Arch,\n1 Tower,1,Tower,\n0 Arch,2,Arch,\n", r'line 4 lists the folder "0 Arch" again'),
        ("0 Arch,-1,Arch,\n1 Tower,1,Tower,\n", r'line 2 has the landmark_id "-1"; expected a whole number'),
        ('0 Arch,0,"Arch,\n', r"line 2: unexpected end of data"),
        ("0 Arch,0,Arch,,more\n", r"line 2 is invalid; received 5 cells; expected 4"),
    ],
)
def test_a_list_of_unpacked_folders_that_contradicts_itself_is_one_line_before_any_work(
    tmp_path: Path, text: str, message: str
) -> None:
    album(tmp_path / "in", {"0 Arch": 1, "1 Tower": 1})
    (tmp_path / "in/labels.csv").write_text(f"folder,landmark_id,name,category\n{text}")
    with pytest.raises(LandmarksError, match=message):
        import_(tmp_path / "in", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_what_cannot_be_read_is_told_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = album(tmp_path / "in", {"Tower": 2})
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.name == "T0.jpg":  # as root nothing is forbidden
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert rejected(import_(source, tmp_path / "out")) == {"Tower/T0.jpg": "it cannot be read (Permission denied)"}


def test_unpacked_folders_sort_as_labels_do(tmp_path: Path) -> None:
    dataset = import_(album(tmp_path / "in", {"9": 2, "10": 2, "2000": 2}), tmp_path / "data")
    out = unpack(dataset.folder, tmp_path / "unpacked")
    folders = sorted(folder.name for folder in out.iterdir() if folder.is_dir())
    assert folders == ["0009", "0010", "2000"]
    assert [int(name) for name in folders] == dataset.labels["landmark_id"].to_list()


def test_unpacking_goes_on_and_mends_what_is_damaged(tmp_path: Path) -> None:
    dataset = import_(album(tmp_path / "in", {"Tower": 3}), tmp_path / "data")
    out = unpack(dataset.folder, tmp_path / "unpacked")
    files = sorted(out.rglob("*.jpg"))
    before = {file: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    files[1].write_bytes(b"half")
    unpack(dataset.folder, out)
    assert [file.stat().st_mtime_ns == before[file] for file in files] == [False, False, True]
    assert {file.stem: file.read_bytes() for file in files} == all_bytes(dataset)


def test_a_folder_that_belongs_to_something_else_is_refused_untouched(tmp_path: Path) -> None:
    source = album(tmp_path / "in", {"Tower": 2})
    dataset = import_(source, tmp_path / "data")
    foreign = put(tmp_path / "mine/holiday.jpg").parent
    for verb in (lambda: unpack(dataset.folder, foreign), lambda: import_(source, foreign)):
        with pytest.raises(UsageError, match=r"is not empty and holds no .*holiday\.jpg"):
            verb()
    assert [entry.name for entry in foreign.iterdir()] == ["holiday.jpg"]
    with pytest.raises(UsageError, match="is a file"):
        unpack(dataset.folder, foreign / "holiday.jpg")
    with pytest.raises(UsageError, match="lies inside"):
        import_(source, source / "Tower/data")
    unpack(dataset.folder, tmp_path / "unpacked")
    other = import_(album(tmp_path / "more", {"Tower": 3}), tmp_path / "other")
    with pytest.raises(StaleError, match="another dataset or split"):
        unpack(other.folder, tmp_path / "unpacked")
    with pytest.raises(StaleError, match="other images or settings"):
        import_(tmp_path / "more", dataset.folder)


def test_importing_twice_does_nothing_the_second_time(tmp_path: Path) -> None:
    source = album(tmp_path / "in", {"Tower": 2})
    first = import_(source, tmp_path / "out")
    shard = next((tmp_path / "out/shards").iterdir())
    before = shard.stat().st_mtime_ns
    assert import_(source, tmp_path / "out").images.equals(first.images)
    assert shard.stat().st_mtime_ns == before


@pytest.mark.parametrize("lost", ["a shard", "the folder"])
def test_importing_what_has_lost_its_shards_is_told_with_the_way_out(tmp_path: Path, lost: str) -> None:
    source, out = album(tmp_path / "in", {"Tower": 2}), tmp_path / "out"
    (shard,) = (import_(source, out).folder / "shards").iterdir()
    shard.unlink()
    if lost == "the folder":
        shard.parent.rmdir()
    with pytest.raises(LandmarksError) as raised:
        import_(source, out)
    assert str(raised.value) == (
        f"{out} already holds exactly this, but its images are not there; received 1 of 1 shard missing, such as"
        f" {shard}; put them back, or delete {out} and run the same command again"
    )


def test_importing_again_by_reference_asks_for_no_shards(tmp_path: Path) -> None:
    source = album(tmp_path / "in", {"Tower": 2})
    first = import_(source, tmp_path / "out", copy=False)
    assert import_(source, tmp_path / "out", copy=False).images.equals(first.images)


def without_the_last_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Dataset, Path]:
    """Import five images in three shards, and remove the last."""
    monkeypatch.setattr(storing, "IMAGES_PER_SHARD", 2)
    dataset = import_(album(folder / "in", {"Tower": 5}), folder / "out")
    lost = sorted((dataset.folder / "shards").iterdir())[-1]
    lost.unlink()
    return dataset, lost


def test_missing_shards_are_told_before_anything_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, lost = without_the_last_shard(tmp_path, monkeypatch)
    with pytest.raises(LandmarksError, match=r"unpack reads the images of .*received 1 of 3 shards missing") as raised:
        unpack(dataset, tmp_path / "unpacked")
    assert str(lost) in str(raised.value)
    assert not list((tmp_path / "unpacked").rglob("*.jpg"))


def test_images_by_reference_that_are_gone_are_counted_as_files(tmp_path: Path) -> None:
    dataset = import_(album(tmp_path / "in", {"Tower": 2, "Bridge": 1}), tmp_path / "out", copy=False)
    require_images(dataset, dataset.images["shard"], "unpack")
    (tmp_path / "in" / "Bridge").rename(tmp_path / "gone")
    with pytest.raises(LandmarksError, match=r"received 1 of 3 files missing, such as .*Bridge.B0\.jpg; put them back"):
        require_images(dataset, dataset.images["shard"], "unpack")


DIED = 9


def _import_and_die(source: Path, out: Path) -> None:
    """Import until the fifth image of the fourth shard, and end there without clearing up, as a kill does."""
    storing.IMAGES_PER_SHARD = 10
    original, images = ShardWriter.add, iter(range(1, 1000))

    def mortal(self: ShardWriter, id: str, data: bytes) -> tuple[int, int]:
        if next(images) == 35:
            os._exit(DIED)
        return original(self, id, data)

    ShardWriter.add = mortal  # type: ignore[method-assign]
    import_(source, out)


def test_a_killed_import_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "IMAGES_PER_SHARD", 10)
    source = tmp_path / "in"
    for seed in range(60):
        put(source / f"Tower {seed % 4}" / f"{seed}.jpg", seed)
    whole = import_(source, tmp_path / "whole")
    process = multiprocessing.get_context("spawn").Process(target=_import_and_die, args=(source, tmp_path / "killed"))
    process.start()
    process.join()
    assert process.exitcode == DIED
    assert not (tmp_path / "killed/dataset.json").exists()
    early = {shard: shard.stat().st_mtime_ns for shard in (tmp_path / "killed/shards").glob("import-*.tar")}
    assert [path for path in (tmp_path / "killed/shards").iterdir() if path.name.startswith(".")]
    resumed = import_(source, tmp_path / "killed")
    assert len(early) == 3
    assert all(shard.stat().st_mtime_ns == when for shard, when in early.items())
    assert resumed.images.equals(whole.images)
    assert [path.name for path in (tmp_path / "killed/shards").iterdir() if path.name.startswith(".")] == []
    for shard in (tmp_path / "whole/shards").iterdir():
        assert shard.read_bytes() == (tmp_path / "killed/shards" / shard.name).read_bytes()


def test_an_import_that_ends_in_its_first_shard_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = album(tmp_path / "in", {"Tower": 6})
    with monkeypatch.context() as killed:
        killed.setattr(storing, "perceptual_hash", _fail)
        with pytest.raises(RuntimeError):
            import_(source, tmp_path / "out")
    assert import_(source, tmp_path / "out").record["images"] == 6


def test_what_was_half_imported_by_a_version_with_other_hashes_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = album(tmp_path / "in", {"Tower": 6})
    whole = import_(source, tmp_path / "whole")
    assert whole.record["decoders"] == [DECODER]
    monkeypatch.setattr(storing, "IMAGES_PER_SHARD", 3)
    for form, hash in ((1, lambda image: 7), (2, perceptual_hash)):
        monkeypatch.setattr(storing, "HASH_FORM", form)
        monkeypatch.setattr(storing, "perceptual_hash", hash)
        with monkeypatch.context() as killed:
            killed.setattr(importing, "write_dataset", _fail)
            with pytest.raises(RuntimeError):
                import_(source, tmp_path / "out")
    assert import_(source, tmp_path / "out").images["phash"].equals(whole.images["phash"])
    monkeypatch.setattr(storing, "HASH_FORM", 3)
    assert import_(source, tmp_path / "out").record["images"] == 6  # what is finished is left alone


def _fail(*_: object, **__: object) -> None:
    raise RuntimeError("killed")


def test_what_an_import_of_other_images_left_behind_is_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "IMAGES_PER_SHARD", 1)
    source = album(tmp_path / "in", {"Tower": 3})
    with monkeypatch.context() as patch:
        patch.setattr("landmarks.dataset.importing.write_dataset", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            import_(source, tmp_path / "out")
    assert len(list((tmp_path / "out/shards").iterdir())) == 3
    (source / "Tower/T2.jpg").unlink()
    import_(source, tmp_path / "out")
    assert len(list((tmp_path / "out/shards").iterdir())) == 2


def test_a_wrong_place_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match="there is no folder or CSV"):
        import_(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "in/Tower").mkdir(parents=True)
    with pytest.raises(UsageError, match="no image of a named landmark"):
        import_(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/Tower/text.jpg").write_text("text")
    with pytest.raises(LandmarksError, match=r"none of the 1 files in .* is an image"):
        import_(tmp_path / "in", tmp_path / "out")


def test_the_command_line_imports_splits_and_unpacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, data = album(tmp_path / "in", {"Arch": 8, "Tower": 8}), tmp_path / "data"
    assert run(["import", str(source), "-o", str(data), "--max-side", "50"]) == 0
    assert run(["split", str(data), "--val", "0.25", "--test", "0.25", "--json"]) == 0
    record = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert [(split["split"], split["images"]) for split in record["splits"]] == [("train", 8), ("val", 4), ("test", 4)]
    assert run(["unpack", str(data), "-o", str(tmp_path / "unpacked")]) == 0
    assert len(list((tmp_path / "unpacked/test").rglob("*.jpg"))) == 4
    assert run(["unpack", str(data), "-o", str(source)]) == 2
    assert run(["import", str(tmp_path / "none"), "-o", str(data)]) == 1


@pytest.mark.parametrize("words", [["split"], ["unpack", "-o", "out"], ["credits"], ["join", "in", "-o", "both"]])
def test_a_plain_folder_given_for_a_dataset_leads_to_import(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    album(tmp_path / "in", {"Tower": 1})
    assert run([words[0], "in", *words[1:]]) == 1
    assert "there is no dataset.json in in; make one of the images in it with: landmarks import in -o DATA" in (
        capsys.readouterr().err
    )
    (tmp_path / "in/.parts").mkdir()
    assert run([words[0], "in", *words[1:]]) == 1
    assert "run the command again that began to make it" in capsys.readouterr().err


def test_a_link_that_leads_to_itself_is_no_output_and_one_line(tmp_path: Path) -> None:
    try:
        (tmp_path / "loop").symlink_to("loop")
    except OSError:
        pytest.skip("links cannot be made here")
    source = album(tmp_path / "in", {"Tower": 1})
    for out in ("loop", "loop/data"):
        with pytest.raises(LandmarksError, match=r"loop"):
            import_(source, tmp_path / out)
    dataset = import_(source, tmp_path / "data")
    (dataset.folder / "features").symlink_to("features")
    open_dataset(dataset.folder)


def test_a_place_of_another_kind_is_told_as_what_it_is(tmp_path: Path) -> None:
    source = album(tmp_path / "in", {"Tower": 1})
    dataset = import_(source, tmp_path / "data")
    for name in ("a.csv", "a.parquet", "a.onnx"):
        (tmp_path / name).write_bytes(b"-")
    for place, message in (
        ("a.csv", r"a\.csv is a file, and no dataset's folder; .* landmarks import .*a\.csv -o DATA"),
        ("a.parquet", r"were it a selection: landmarks fetch .*a\.parquet"),
        ("a.onnx", "it is an export; name a dataset"),
        ("data/dataset.json", r"name the folder: .*data$"),
    ):
        with pytest.raises(LandmarksError, match=message):
            open_dataset(tmp_path / place)
    for place, message in (
        ("in", "in is no dataset or run; expected a dataset, a run"),
        ("none", "there is no .*none"),
    ):
        with pytest.raises(UsageError, match=message):
            import_(source, tmp_path / "again", labels=tmp_path / place)
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "run.json").write_text("{}")
    (run_folder / "labels.parquet").write_bytes(b"-")
    put(run_folder / "maps/heat.jpg")
    with pytest.raises(UsageError, match="run is a run, and no folder of images"):
        import_(run_folder, tmp_path / "again")
    assert dataset.record["images"] == 1


def test_what_was_left_out_is_stored_with_the_dataset(tmp_path: Path) -> None:
    source = album(tmp_path / "in", {"Tower": 1})
    (source / "notes.txt").write_text("-")
    (source / ".hidden.jpg").write_text("-")
    dataset = import_(source, tmp_path / "data")
    assert dataset.record["ignored"] == "1 that are no images by name (.txt), 1 hidden"
    with pytest.raises(UsageError, match="max_side is impossible; received 0; expected 1 pixel or more"):
        import_(source, tmp_path / "other", max_side=0)


def test_a_file_of_several_images_gives_its_first_and_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = album(tmp_path / "in", {"Tower": 2})
    pages = [Image.fromarray(image(seed)) for seed in (7, 8)]
    pages[0].save(source / "Tower/scan.tif", save_all=True, append_images=pages[1:])
    dataset = import_(source, tmp_path / "data")
    assert "of 1 file with several images, the first one is taken: Tower/scan.tif" in capsys.readouterr().err
    assert dataset.record["first_of_several"] == 1
