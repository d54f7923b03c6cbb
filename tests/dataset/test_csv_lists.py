"""CSVs as people have them: every separator, encoding and spelling; errors name the line."""

from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.dataset.csv_lists import list_csv
from landmarks.dataset.listing import list_source
from landmarks.dataset.sources import Source
from landmarks.support.errors import LandmarksError, UsageError


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
