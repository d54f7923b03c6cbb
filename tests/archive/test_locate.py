"""The byte index: it says what tarfile says, is made from headers alone, and goes on where it was stopped."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from faulty_server import Fault, Request, serving
from tar_mirror import HASTY, image, made_up_id, make_mirror, member_name, put_tar, tar_of

from landmarks.archive import locate as locating
from landmarks.archive.locate import INDEX, locate, read_index
from landmarks.archive.mirror import open_mirror
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.tables import write_table


def rows_by_tarfile(folder: Path) -> list[tuple[int, int, int, int]]:
    rows = []
    for path in sorted((folder / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            images = [one for one in tar if one.isreg() and one.name.endswith(".jpg")]
        rows += [(int(one.name[-20:-4], 16), int(path.stem[-3:]), one.offset_data, one.size) for one in images]
    return sorted(rows)


def test_the_index_says_what_tarfile_says(tmp_path: Path) -> None:
    make_mirror(tmp_path, tars=2)
    for tar, format in ((2, tarfile.PAX_FORMAT), (3, tarfile.USTAR_FORMAT)):
        folders = [(f"./{member_name(made_up_id(100 * tar + n))}", image(n)) for n in range(5)]
        put_tar(tmp_path, tar, tar_of([("readme.txt", b"hello"), *folders], format))
    with serving(tmp_path) as server:
        index = locate(open_mirror(server.address, patience=HASTY), tmp_path / "index.parquet")
    assert pl.read_parquet(index.path).rows() == rows_by_tarfile(tmp_path)
    assert pl.read_parquet_schema(index.path) == INDEX
    assert index.tar_count == 4 and index.unindexed == []
    assert index.tars[1].md5 == open_mirror(tmp_path).md5("train", 1)
    assert index.tars[1].size == (tmp_path / "train/images_001.tar").stat().st_size


def test_only_headers_travel(tmp_path: Path) -> None:
    make_mirror(tmp_path, tars=3, each=20)
    with serving(tmp_path) as server:
        locate(open_mirror(server.address, patience=HASTY), tmp_path / "index.parquet")
        headers = [request for request in server.requests if request.start is not None]
        md5_files = 3 * len((tmp_path / "md5sum/train/md5.images_000.txt").read_bytes())
        assert server.sent <= 512 * len(headers) + md5_files
    assert len(headers) == 3 * (20 + 1)  # one for each image, and one for the end


def test_places_are_looked_up_by_id(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path, tars=3, each=5)
    put_tar(tmp_path, 3, tar_of([(member_name(ids[7]), image(7)), (member_name(made_up_id(99)), image(9))]))
    index = locate(tmp_path, tmp_path / "index.parquet")
    wanted = np.array(sorted(int(id, 16) for id in [ids[0], ids[7], ids[9], made_up_id(12345)]), np.uint64)
    places = index.places(wanted)
    assert {tar: [found.id_of(row) for row in range(len(found))] for tar, found in places.items()} == {
        0: [ids[0]],
        1: [ids[7], ids[9]],
        3: [ids[7]],  # the first is kept, unless it is damaged
    }
    assert (tmp_path / "train/images_001.tar").read_bytes()[int(places[1].offsets[0]) :].startswith(image(7))


def test_a_stopped_walk_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mirror(tmp_path, tars=2, each=30)
    monkeypatch.setattr(locating, "MEMBERS_BETWEEN_SAVES", 10)
    broken = {"on": True}

    def plan(request: Request) -> Fault | None:
        gone = broken["on"] and (request.start or 0) > 200_000
        return Fault(status=410) if gone else None

    with serving(tmp_path, plan) as server:
        mirror = open_mirror(server.address, patience=HASTY)
        with pytest.raises(LandmarksError, match=r"no TAR of .* could be walked"):
            locate(mirror, tmp_path / "index.parquet")
        broken["on"] = False
        before = len(server.requests)
        locate(mirror, tmp_path / "index.parquet")
        starts = [request.start for request in server.requests[before:] if request.start is not None]
    assert min(starts) > 0 and len(starts) < 2 * 15
    assert pl.read_parquet(tmp_path / "index.parquet").rows() == rows_by_tarfile(tmp_path)
    assert not list(tmp_path.glob(".*.parts"))


def test_only_changed_tars_are_walked_again(tmp_path: Path) -> None:
    make_mirror(tmp_path, tars=3, each=6)
    with serving(tmp_path) as server:
        mirror = open_mirror(server.address, patience=HASTY)
        locate(mirror, tmp_path / "index.parquet")
        put_tar(tmp_path, 1, tar_of([(member_name(made_up_id(77)), image(7))]))
        before = len(server.requests)
        locate(open_mirror(server.address, patience=HASTY), tmp_path / "index.parquet")
        walked = {request.path for request in server.requests[before:] if request.start is not None}
        assert walked == {"train/images_001.tar"}
        before = len(server.requests)
        locate(open_mirror(server.address, patience=HASTY), tmp_path / "index.parquet")
        assert not any(request.start is not None for request in server.requests[before:])
    assert pl.read_parquet(tmp_path / "index.parquet").rows() == rows_by_tarfile(tmp_path)


def test_a_damaged_or_missing_tar_is_named_and_the_others_are_indexed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_mirror(tmp_path, tars=4, each=4)
    damaged = tmp_path / "train/images_001.tar"
    data = bytearray(damaged.read_bytes())
    data[10] ^= 0xFF
    damaged.write_bytes(bytes(data))
    truncated = tmp_path / "train/images_002.tar"
    truncated.write_bytes(truncated.read_bytes()[:3000])
    (tmp_path / "train/images_003.tar").unlink()
    index = locate(tmp_path, tmp_path / "index.parquet")
    assert index.unindexed == [1, 2, 3]
    notes = capsys.readouterr().err
    assert "images_001.tar is not indexed: a TAR header's checksum is wrong" in notes
    assert "images_002.tar ends at byte 3000" in notes
    assert "images_003.tar is not there" in notes


def test_an_index_can_be_read_from_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_mirror(tmp_path, tars=1)
    made = locate(tmp_path, tmp_path / "index.parquet")
    with serving(tmp_path) as server:
        read = read_index(f"{server.address}/index.parquet")
    assert read.tars == made.tars and read.path != made.path


def test_what_is_no_index_is_told(tmp_path: Path) -> None:
    make_mirror(tmp_path, tars=1)
    write_table(tmp_path / "other.parquet", pl.DataFrame({"image_id": ["a"]}))
    with pytest.raises(LandmarksError, match="is no byte index"):
        read_index(tmp_path / "other.parquet")
    with pytest.raises(LandmarksError, match=r"there is no byte index .*; landmarks locate"):
        read_index(tmp_path / "none.parquet")
    with pytest.raises(UsageError, match="is a folder"):
        locate(tmp_path, tmp_path)
    with pytest.raises(UsageError, match='no set "tset"; expected train or test or index; did you mean "test"'):
        locate(tmp_path, tmp_path / "index.parquet", set="tset")
    with pytest.raises(UsageError, match="at least 1"):
        locate(tmp_path, tmp_path / "index.parquet", workers=0)


def test_the_index_of_another_set_is_not_replaced(tmp_path: Path) -> None:
    make_mirror(tmp_path, tars=1, each=4)
    locate(tmp_path, tmp_path / "index.parquet")
    before = (tmp_path / "index.parquet").read_bytes()
    with pytest.raises(UsageError, match="is the index of another set; received --set test; expected --set train"):
        locate(tmp_path, tmp_path / "index.parquet", set="test")
    assert (tmp_path / "index.parquet").read_bytes() == before
