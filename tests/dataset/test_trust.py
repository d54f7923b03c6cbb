"""Datasets from strangers: whatever stands in them, nothing is read or written outside, and nothing hangs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from landmarks.cli.main import run
from landmarks.dataset.images import encode
from landmarks.dataset.importing import import_
from landmarks.dataset.manifest import open_dataset
from landmarks.dataset.shards import ImageReader
from landmarks.dataset.split import split
from landmarks.dataset.unpack import unpack
from landmarks.support.errors import LandmarksError

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound dataset of eight images, with splits."""
    folder, random = tmp_path_factory.mktemp("sound"), np.random.default_rng(0)
    for name in ("arch", "bridge"):
        for number in range(4):
            path = folder / "folder" / name / f"{name}{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(random.integers(0, 255, (24, 32, 3), dtype=np.uint8)))
    import_(folder / "folder", folder / "data")
    return split(folder / "data").folder


@pytest.fixture
def data(sound: Path, tmp_path: Path) -> Path:
    """A copy of `sound` for one test to change, with the images it was made of beside it."""
    shutil.copytree(sound.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "data"


def rewritten(name: str, **columns: Any) -> Change:
    """Return a change that replaces columns of a table: a value for the first row, or a polars expression for all."""

    def change(folder: Path) -> None:
        path = folder / f"{name}.parquet"
        metadata, table = dict(pl.read_parquet_metadata(path)), pl.read_parquet(path)
        for column, value in columns.items():
            if isinstance(value, pl.Expr):
                table = table.with_columns(value.alias(column))
            else:
                first = pl.int_range(pl.len()) == 0
                table = table.with_columns(pl.when(first).then(pl.lit(value)).otherwise(column).alias(column))
        table.write_parquet(path, metadata={key: text for key, text in metadata.items() if key != "ARROW:schema"})

    return change


def record(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def put(name: str, make: Callable[[Path], object]) -> Change:
    """Return a change that puts something else in the place of a file or folder."""

    def change(folder: Path) -> None:
        path = folder / name
        if path.exists():
            path.rename(folder.parent / f"aside-{path.name}")
        make(path)

    return change


def shard_of(folder: Path) -> Path:
    return next((folder / "shards").iterdir())


def shard(make: Callable[[Path], object]) -> Change:
    def change(folder: Path) -> None:
        put(f"shards/{shard_of(folder).name}", make)(folder)

    return change


def cut(folder: Path) -> None:
    os.truncate(shard_of(folder), 100)


def enormous(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


HOSTILE: dict[str, Change] = {
    "an image's name that climbs": rewritten("images", image_id="../../../tmp/escaped"),
    "an image's name with a control character": rewritten("images", image_id="a\x1b[2Jb"),
    "an empty image's name": rewritten("images", image_id=""),
    "a name of 300 letters": rewritten("images", image_id="x" * 300),
    "two images of one name": rewritten("images", image_id="bridge0"),
    "an image without a name": rewritten("images", image_id=pl.lit(None, pl.String)),
    "a shard that climbs": rewritten("images", shard="../../secret.tar"),
    "a shard somewhere else": rewritten("images", shard="/etc/hostname"),
    "a shard of another kind": rewritten("images", shard="dataset.json"),
    "an offset beyond all files": rewritten("images", offset=pl.lit(2**64 - 10, pl.UInt64)),
    "an offset beyond the shard": rewritten("images", offset=pl.lit(10**9, pl.UInt64)),
    "a length of four gigabytes": rewritten("images", length=pl.lit(2**32 - 1, pl.UInt32)),
    "a negative offset": rewritten("images", offset=pl.lit(-1, pl.Int64)),
    "an image of no width": rewritten("images", width=pl.lit(0, pl.UInt32)),
    "text where numbers belong": rewritten("images", length=pl.lit("many")),
    "a split that is a path": rewritten("splits", split="../../../tmp/escaped"),
    "a split of no name": rewritten("splits", split=pl.lit(None, pl.String)),
    "labels that count otherwise": rewritten("labels", label=pl.col("label") + 5),
    "two labels of one landmark": rewritten("labels", landmark_id=pl.lit(0, pl.Int64)),
    "a record of other tables": record(images=10**9),
    "a record that is a list": put("dataset.json", lambda path: path.write_text("[1]")),
    "a record of brackets in brackets": put("dataset.json", lambda path: path.write_text("[" * 200_000)),
    "a record that is a pipe": put("dataset.json", os.mkfifo),
    "a record of a gigabyte": put("dataset.json", enormous),
    "a digest that is none": record(digest=["x"]),
    "a table that is a pipe": put("images.parquet", os.mkfifo),
    "a table of rubbish": put("images.parquet", lambda path: path.write_bytes(os.urandom(4000))),
    "a folder of shards that leads out": put("shards", lambda path: path.symlink_to("/etc")),
    "features that lead out": put("features", lambda path: path.symlink_to("/tmp")),
    "a shard that is a link out": shard(lambda path: path.symlink_to("/etc/hostname")),
    "a shard that is a pipe": shard(os.mkfifo),
    "a shard that is a folder": shard(lambda path: path.mkdir()),
    "a shard cut short": cut,
    "images elsewhere in no folder": record(images_in="relative/place"),
}


@pytest.mark.linux
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_dataset_is_refused_in_one_line_by_every_verb_that_would_read_it(
    what: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    HOSTILE[what](data)
    outside = data.parent / "out"
    with pytest.raises(LandmarksError):
        open_dataset(data)
    for arguments in (["unpack", str(data), "-o", str(outside)], ["split", str(data)], ["credits", str(data)]):
        assert run(arguments) == 1
        message = capsys.readouterr().err.strip()
        assert "\n" not in message
        assert "unforeseen" not in message
        assert "\x1b" not in message
    assert not outside.exists()


@pytest.mark.linux
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/hostname")], ids=["pipe", "link"])
def test_a_shard_that_is_changed_after_it_was_looked_at_is_refused_where_it_is_opened(
    make: Callable[[Path], object], data: Path
) -> None:
    dataset = open_dataset(data)
    shard(make)(data)
    row = dataset.images.row(0, named=True)
    with pytest.raises(LandmarksError, match=r"plain file|leads out"):
        ImageReader(dataset).read(row["shard"], row["offset"], row["length"])


@pytest.mark.linux
def test_a_lock_that_is_a_link_is_not_written_through(data: Path) -> None:
    precious = data.parent / "precious"
    precious.write_text("mine")
    (data / ".lock").unlink(missing_ok=True)
    (data / ".lock").symlink_to(precious)
    with pytest.raises(LandmarksError, match="no plain file"):
        split(data)
    assert precious.read_text() == "mine"


def test_images_that_stay_where_they_are_are_read_from_the_folder_that_the_record_names(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = data.parent / "folder"
    dataset = import_(source, data.parent / "linked", copy=False)
    assert dataset.record["images_in"] == str(source)
    assert f"lie in {source}" in capsys.readouterr().err
    unpack(dataset.folder, data.parent / "again")
    assert len(list((data.parent / "again").rglob("*.jpg"))) == 8


@pytest.mark.linux
@pytest.mark.parametrize("shard", ["/etc/hostname", "{source}/../data/dataset.json", "{source}"])
def test_nothing_outside_of_the_named_folder_is_read(shard: str, data: Path) -> None:
    source = data.parent / "folder"
    dataset = import_(source, data.parent / "linked", copy=False)
    rewritten("images", shard=shard.format(source=source))(dataset.folder)
    with pytest.raises(LandmarksError, match="impossible shard"):
        open_dataset(dataset.folder)


def test_whatever_calls_itself_otherwise_is_unpacked_as_an_image(data: Path) -> None:
    source = data.parent / "folder"
    dataset = import_(source, data.parent / "linked", copy=False)
    script = source / "arch" / "arch0.sh"
    (source / "arch" / "arch0.jpg").rename(script)
    rewritten("images", shard=str(script))(dataset.folder)
    unpack(dataset.folder, data.parent / "again")
    assert {path.suffix for path in (data.parent / "again").rglob("arch*.*")} == {".jpg"}
