"""A dataset at an address: the same images in the same order, read by range, a share of them kept here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faulty_server import Fault, Server, serving, weather

from landmarks.archive.fetch import fetch
from landmarks.archive.select import select
from landmarks.cli.main import run
from landmarks.dataset.images import encode, resize
from landmarks.dataset.importing import import_
from landmarks.dataset.joining import join
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.shards import CACHE, ImageReader
from landmarks.dataset.split import split
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import read_record, write_record


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images of three landmarks, in one shard."""
    folder = tmp_path_factory.mktemp("made_once")
    for number in range(60):
        spots = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        path = folder / "album" / f"landmark {number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(resize(spots, 60, 40)))
    import_(folder / "album", folder / "www" / "data")
    split(folder / "www" / "data")
    return folder


@pytest.fixture
def here(made_once: Path, tmp_path: Path) -> Dataset:
    """A copy of `made_once` for one test to change and to serve."""
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    return open_dataset(tmp_path / "www" / "data")


@pytest.fixture
def server(here: Dataset) -> Iterator[Server]:
    with serving(here.folder.parent) as server:
        yield server


def test_images_cannot_be_added_to_those_at_an_address_which_is_told_before_any_is_read(
    made_once: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join([f"{server.address}/data"], tmp_path / "data", by_reference=True)
    chosen = select(tmp_path / "data", tmp_path / "chosen.parquet")
    monkeypatch.setattr("landmarks.dataset.importing.store_images", lambda *_, **__: pytest.fail("images are read"))
    monkeypatch.setattr("landmarks.archive.fetch.gather", lambda *_, **__: pytest.fail("images are read"))
    command = f"bring them here first: landmarks join {server.address}/data -o OTHER"
    with pytest.raises(UsageError, match=command):
        import_(made_once / "album", tmp_path / "data", add=True)
    with pytest.raises(UsageError, match=command):
        fetch(chosen, tmp_path / "data", add=True)


def places(dataset: Dataset) -> list[tuple[str, int, int]]:
    return dataset.images.select("shard", "offset", "length").rows()


def all_bytes(dataset: Dataset) -> list[bytes]:
    return list(ImageReader(dataset).read_all(places(dataset)))


def asked_for(server: Server) -> int:
    """Return how many images were asked for."""
    return sum(request.start is not None for request in server.requests)


def address(server: Server) -> str:
    return f"{server.address}/data"


def test_images_stay_at_the_address_and_are_the_same(here: Dataset, server: Server, tmp_path: Path) -> None:
    dataset = join([address(server)], tmp_path / "mine", by_reference=True)
    assert dataset.digest == here.digest
    assert dataset.images.equals(here.images)
    assert not (dataset.folder / "shards").exists()
    assert asked_for(server) == 0
    opened = open_dataset(dataset.folder)
    assert all_bytes(opened) == all_bytes(here)
    shard = opened.images["shard"][0]
    assert opened.place_of(shard) == f"{address(server)}/shards/{shard}"


def test_connections_that_break_are_taken_up_again(here: Dataset, tmp_path: Path) -> None:
    broken = weather(None, Fault(cut_after=10), Fault(status=503), Fault(shift_range=3))
    with serving(here.folder.parent, lambda request: broken(request) if request.start is not None else None) as server:
        dataset = join([address(server)], tmp_path / "mine", by_reference=True)
        assert all_bytes(dataset) == all_bytes(here)
        assert asked_for(server) > len(here.images)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_is_kept_here_and_not_asked_for_again(
    here: Dataset, server: Server, tmp_path: Path, share: float
) -> None:
    count, total = len(here.images), int(here.images["length"].sum())
    dataset = join([address(server)], tmp_path / "mine", by_reference=True, cache_gb=share * total / 1e9)
    assert all_bytes(dataset) == all_bytes(here)
    assert asked_for(server) == count
    assert all_bytes(dataset) == all_bytes(here)
    kept = [path for path in (dataset.folder / CACHE).rglob("*") if path.is_file()]
    assert asked_for(server) == 2 * count - len(kept)
    assert np.isclose(len(kept) / count, share, atol=0.2)


def test_what_was_kept_torn_is_asked_for_again(here: Dataset, server: Server, tmp_path: Path) -> None:
    dataset = join([address(server)], tmp_path / "mine", by_reference=True)
    all_bytes(dataset)
    for path in (dataset.folder / CACHE).rglob("*"):
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))
    assert all_bytes(dataset) == all_bytes(here)


@pytest.mark.linux
def test_a_pipe_in_place_of_what_was_kept_is_not_waited_for(here: Dataset, server: Server, tmp_path: Path) -> None:
    dataset = join([address(server)], tmp_path / "mine", by_reference=True)
    all_bytes(dataset)
    for path in (dataset.folder / CACHE).rglob("*"):
        if path.is_file():
            path.unlink()
            os.mkfifo(path)
    assert all_bytes(dataset) == all_bytes(here)


def test_a_dataset_is_brought_here_whole(here: Dataset, tmp_path: Path) -> None:
    with serving(here.folder.parent) as server:
        dataset = join([address(server)], tmp_path / "mine")
    assert dataset.address is None
    assert all_bytes(dataset) == all_bytes(here)
    assert dataset.splits is not None
    assert dataset.splits.equals(here.splits)


def test_a_shard_that_changed_there_is_refused(here: Dataset, server: Server, tmp_path: Path) -> None:
    dataset = join([address(server)], tmp_path / "mine", by_reference=True)
    shard = next((here.folder / "shards").iterdir())
    shard.write_bytes(shard.read_bytes() + bytes(512))
    with pytest.raises(LandmarksError, match=r"shards/.* is not what it was; received .* expected"):
        all_bytes(dataset)


def test_there_is_no_dataset_or_its_images_lie_elsewhere(here: Dataset, server: Server, tmp_path: Path) -> None:
    folder = here.folder
    with pytest.raises(LandmarksError, match=r"there is no dataset at .*nowhere"):
        join([address(server) + "/nowhere"], tmp_path / "mine", by_reference=True)
    record = read_record(folder / "dataset.json")
    about = {name: value for name, value in record.items() if name not in ("format", "verb", "version", "inputs")}
    write_record(folder / "dataset.json", {**about, "images_in": str(tmp_path.resolve())}, verb="fetch", inputs="x")
    with pytest.raises(LandmarksError, match=r"lie elsewhere; received /"):
        join([address(server)], tmp_path / "mine", by_reference=True)


@pytest.mark.parametrize("name", ["dataset.json", "images.parquet"])
def test_a_page_or_garbage_instead_of_a_table_is_named_by_its_address(
    here: Dataset, server: Server, tmp_path: Path, name: str
) -> None:
    (here.folder / name).write_text("<!doctype html><p>Welcome")
    with pytest.raises(LandmarksError, match=rf"^{address(server)}/{name}: a web page came instead of the file"):
        join([address(server)], tmp_path / "mine", by_reference=True)
    (here.folder / name).write_text("garbage")
    with pytest.raises(LandmarksError, match=rf"^{address(server)}/{name} cannot be read"):
        join([address(server)], tmp_path / "mine", by_reference=True)


def test_what_cannot_be_is_refused_in_one_line(here: Dataset, server: Server, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="images can be left at one address alone; received 2"):
        join([address(server), here.folder], tmp_path / "mine", by_reference=True)
    with pytest.raises(UsageError, match="a signed address"):
        join([address(server) + "?sig=1"], tmp_path / "mine", by_reference=True)
    with pytest.raises(LandmarksError, match=r"cannot be opened there; .*landmarks join"):
        open_dataset(address(server))
    dataset = join([address(server)], tmp_path / "mine", by_reference=True)
    for wrong in ("ftp://x/y", "http://ann:secret@x/y", "http://x/y?sig=1"):
        strange = replace(dataset, record={**dataset.record, "images_in": wrong})
        with pytest.raises(LandmarksError, match="images_in"):
            _ = strange.address
    for state in (7, [7], ["7", "x"], [7, 7], [7, "x", "y"]):
        strange = replace(dataset, record={**dataset.record, "shards": {"one.tar": state}})
        with pytest.raises(LandmarksError, match="an impossible shards"):
            _ = strange.address


def test_the_command_line_joins_one_address(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["join", address(server), "-o", str(tmp_path / "mine"), "--by-reference", "--cache-gb", "0.001"]) == 0
    assert f"lie in {address(server)}, from where they are read" in capsys.readouterr().err
    assert read_record(tmp_path / "mine" / "dataset.json")["cache_gb"] == 0.001
