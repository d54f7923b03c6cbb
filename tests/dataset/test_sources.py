"""One list of the image files in a folder, whoever asks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from landmarks.dataset.listing import list_source
from landmarks.dataset.sources import SUFFIXES, find_images, images_in, way_out_of
from landmarks.support.errors import LandmarksError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one that is called otherwise, two hidden names, one of them of a folder."""
    for name in ("b/2.JPG", "a.heic", "notes.txt", ".DS_Store", ".cache/3.jpg"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(b"-")
    return tmp_path / "mine"


def test_hidden_files_and_those_of_another_name_are_passed_by_and_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_images([folder, folder / "notes.txt"]) == [folder / "a.heic", folder / "b/2.JPG", folder / "notes.txt"]
    assert "passed by 1 that are no images by name (.txt), 2 hidden" in capsys.readouterr().err


def test_a_file_that_is_named_twice_is_taken_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [folder / "a.heic", folder / "b/2.JPG"]
    assert find_images([folder, folder / "a.heic", folder / "b/../b/2.JPG"]) == files
    assert "2 images are named more than once, and taken once\n" in capsys.readouterr().err
    assert find_images(files) == files
    assert "more than once" not in capsys.readouterr().err


def test_an_import_lists_the_same_files_and_counts_the_same_ones(folder: Path) -> None:
    source, listed = list_source(folder), images_in(folder)
    assert [one.path for one in source.found] == find_images([folder]) == listed.images
    assert source.ignored == listed.ignored() == "1 that are no images by name (.txt), 2 hidden"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_ending_of_an_image_is_taken_in_any_case(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"one{suffix.upper()}").write_bytes(b"-")
    assert len(find_images([tmp_path])) == 1


def test_links_to_folders_are_not_followed_but_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        (folder / "again.jpg").symlink_to(folder / "b", target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
    assert find_images([folder]) == [folder / "a.heic", folder / "b/2.JPG"]
    assert "passed by 1 that are no images by name (.txt), 2 hidden, 1 link to a folder" in capsys.readouterr().err


def test_links_that_lead_nowhere_and_pipes_are_counted_as_what_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        (folder / "gone.jpg").symlink_to("nowhere.jpg")
        (folder / "loop.jpg").symlink_to("loop.jpg")
        os.mkfifo(folder / "pipe.jpg")
    except (OSError, AttributeError):
        pytest.skip("links or pipes cannot be made here")
    assert find_images([folder]) == [folder / "a.heic", folder / "b/2.JPG"]
    assert "2 hidden, 2 links to a file that is not there, 1 no plain file\n" in capsys.readouterr().err


def test_a_folder_without_images_says_what_it_holds(folder: Path) -> None:
    for path in (folder / "a.heic", folder / "b/2.JPG"):
        path.unlink()
    with pytest.raises(
        LandmarksError, match=r"holds no images; received 1 that are no images by name \(.txt\), 2 hidden"
    ):
        find_images([folder])
    with pytest.raises(LandmarksError, match="there is no image"):
        find_images([folder / "nowhere"])


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("https://example.org/a.jpg", "there is no image https://example.org/a.jpg; an address is not fetched"),
        ("s3://bucket/a.jpg", "there is no image s3://bucket/a.jpg; an address is not fetched"),
        ("-", "standard input is not read"),
        ("holiday/*.jpg", "patterns are replaced by the shell"),
        ("@list.txt", "no lists are read"),
        ("gone.jpg", "there is no image gone.jpg"),
    ],
)
def test_a_name_that_is_no_file_is_told_with_what_to_do(name: str, advice: str) -> None:
    with pytest.raises(LandmarksError) as error:
        find_images([name])
    assert str(error.value).startswith("there is no image") and advice in str(error.value)


@pytest.mark.linux
def test_a_pipe_is_there_and_no_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(LandmarksError, match=r"a\.jpg is no plain file; expected an image"):
        find_images([tmp_path / "a.jpg"])


def test_a_dataset_is_no_folder_of_images(tmp_path: Path) -> None:
    for name in ("dataset.json", "shards/import-00000.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"-")
    with pytest.raises(LandmarksError, match=r"is a dataset, .* landmarks evaluate RUN --data"):
        find_images([tmp_path])


@pytest.mark.parametrize(
    ("start", "is_image"), [(b"\xff\xd8\xff\xe0", True), (b"\x89PNG", True), (b"RIFF....WEBP", True), (b"text", False)]
)
def test_images_without_an_ending_are_known_by_their_first_bytes(tmp_path: Path, start: bytes, is_image: bool) -> None:
    (tmp_path / "blob").write_bytes(start)
    assert way_out_of([tmp_path / "blob"]) == (
        "blob is an image by its first bytes: files need an ending, such as .jpg" if is_image else ""
    )
