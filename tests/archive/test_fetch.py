"""Fetching: the same dataset whatever the way, the weather and the interruptions; and what is lost has a name."""

from __future__ import annotations

import io
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import polars as pl
import pytest
from faulty_server import Fault, Request, serving, weather
from PIL import Image
from tar_mirror import HASTY, STALLING, image, made_up_id, make_mirror, make_selection, member_name, put_tar, tar_of

from landmarks.archive import fetch as fetching
from landmarks.archive.fetch import fetch
from landmarks.archive.fetch_plan import FetchPlan
from landmarks.archive.locate import locate
from landmarks.archive.mirror import Mirror, open_mirror
from landmarks.cli.main import run
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.shards import ImageReader
from landmarks.support.errors import BusyError, LandmarksError, UsageError
from landmarks.support.files import held
from landmarks.support.tables import read_table

MANIFEST = ("images.parquet", "labels.parquet", "rejected.parquet")


def fetched(selection: Path, out: Path, mirror: Mirror | Path | None = None, **options: object) -> Dataset:
    dataset = fetch(selection, out, mirror=mirror, **options)  # type: ignore[arg-type]
    assert dataset is not None
    return dataset


def contents(dataset: Dataset) -> dict[str, bytes]:
    """Return every file that may not depend on how it came about."""
    shards = sorted((dataset.folder / "shards").iterdir())
    return {path.name: path.read_bytes() for path in [*shards, *(dataset.folder / name for name in MANIFEST)]}


def rejected(dataset: Dataset) -> dict[str, tuple[str, str]]:
    table = read_table(dataset.folder / "rejected.parquet")
    return {id: (where, why) for id, where, why in table.iter_rows()}


def test_only_the_selected_images_are_kept_in_shards_named_like_the_tars(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=3, each=6)
    wanted = [*ids[1:4], *ids[13:15]]  # none in the second TAR
    data = fetched(make_selection(tmp_path / "s.parquet", tmp_path / "mirror", wanted), tmp_path / "data")
    assert data.images["image_id"].to_list() == sorted(wanted)
    assert sorted(path.name for path in (data.folder / "shards").iterdir()) == ["images_000.tar", "images_002.tar"]
    reader = ImageReader(data)
    for id, shard, offset, length in data.images.select("image_id", "shard", "offset", "length").iter_rows():
        assert reader.read(shard, offset, length) == image(ids.index(id))
    with tarfile.open(data.folder / "shards/images_000.tar") as tar:
        assert tar.getnames() == [f"{id}.jpg" for id in ids[1:4]]
    assert data.labels["landmark_id"].to_list() == [100, 101, 102]
    assert data.labels["name"].to_list() == ["Landmark 100", "Landmark 101", "Landmark 102"]
    assert data.labels["images"].sum() == 5
    assert data.record["failed"] == [] and data.record["rejected"] == 0


def test_a_plan_and_an_index_say_what_they_are_in_a_line(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=2, each=3)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids)
    plan = fetch(selection, tmp_path / "data", dry_run=True)
    assert repr(plan) == str(plan) and repr(plan).startswith("2 TARs (0 by byte ranges")
    index = locate(tmp_path / "mirror", tmp_path / "index.parquet")
    assert repr(index) == f"TarIndex({tmp_path / 'index.parquet'}: 2 of 2 TARs of train)"


def test_nothing_is_fetched_into_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=1, each=3)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids)
    run = tmp_path / "run"
    run.mkdir()
    for name in ("run.json", "images.parquet"):  # a dataset has a table of that name too
        (run / name).write_text("somebody's")
    with pytest.raises(UsageError, match=r"is not empty and holds no dataset; received images\.parquet"):
        fetch(selection, run)
    assert {path.name: path.read_text() for path in run.iterdir()} == dict.fromkeys(
        ("run.json", "images.parquet"), "somebody's"
    )


def test_path_server_streaming_and_ranges_give_the_same_bytes(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=4, each=12)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids[::3])
    plain = contents(fetched(selection, tmp_path / "plain", workers=1))
    index = locate(tmp_path / "mirror", tmp_path / "index.parquet").path
    with serving(tmp_path / "mirror") as server:
        mirror = open_mirror(server.address, patience=HASTY)
        streamed = fetched(selection, tmp_path / "streamed", mirror)
        ranged = fetched(selection, tmp_path / "ranged", mirror, index=index, method="ranges")
        again = fetched(selection, tmp_path / "again", mirror, index=streamed.folder / "index.parquet", method="ranges")
    assert contents(streamed) == contents(ranged) == contents(again) == plain
    assert not (ranged.folder / "index.parquet").exists()


def test_ranges_move_little_and_ask_at_most_once_per_image(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=4, each=40)
    index = locate(tmp_path / "mirror", tmp_path / "index.parquet").path
    wanted = ids[::5]
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", wanted)
    with serving(tmp_path / "mirror") as server:
        fetched(selection, tmp_path / "data", open_mirror(server.address, patience=HASTY), index=index, method="ranges")
        requests = sum(request.method == "GET" for request in server.requests)
        moved = server.sent
    assert requests <= len(wanted)
    assert moved <= 1.15 * sum(len(image(ids.index(id))) for id in wanted)


def test_images_are_upright_and_no_larger_than_asked(tmp_path: Path) -> None:
    ids = [made_up_id(seed) for seed in range(3)]
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(image(0, 120, 80))).save(turned, "JPEG", exif=exif)
    images = [turned.getvalue(), image(1, 900, 600), image(2, 512, 100)]
    put_tar(tmp_path / "mirror", 0, tar_of([(member_name(id), one) for id, one in zip(ids, images, strict=True)]))
    data = fetched(make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids), tmp_path / "data")
    sizes = {id: (width, height) for id, width, height in data.images.select("image_id", "width", "height").iter_rows()}
    assert sizes == {ids[0]: (80, 120), ids[1]: (512, 341), ids[2]: (512, 100)}
    reader = ImageReader(data)
    for id, shard, offset, length in data.images.select("image_id", "shard", "offset", "length").iter_rows():
        stored = Image.open(io.BytesIO(reader.read(shard, offset, length)))
        assert stored.size == sizes[id] and stored.getexif().get(0x0112, 1) == 1


def test_bad_weather_costs_nothing_but_the_tar_with_the_false_md5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=6, each=10)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids)
    plain = fetched(selection, tmp_path / "plain")
    (tmp_path / "mirror/md5sum/train/md5.images_003.txt").write_text("0" * 32 + "  images_003.tar\n")
    bad = weather(None, Fault(status=500), Fault(cut_after=9000), Fault(status=503), Fault(stall_after=100))

    def plan(request: Request) -> Fault | None:
        if request.path == "train/images_001.tar" and request.method == "GET" and request.again < 2:
            return Fault(body=lambda data: data[: len(data) // 2])  # half a TAR, declared as if it were whole
        return bad(request)

    with serving(tmp_path / "mirror", plan) as server:
        mirror = open_mirror(server.address, patience=STALLING)
        data = fetched(selection, tmp_path / "data", mirror, workers=2)
        assert mirror.host.retries > 0
        streams = sum(
            request.path == "train/images_003.tar" and request.method == "GET" and request.start is None
            for request in server.requests
        )
    lost = ids[30:40]
    assert [one["tar"] for one in data.record["failed"]] == ["train/images_003.tar"]
    assert "wrong MD5" in data.record["failed"][0]["why"] and streams >= 2
    assert "the same each time" in data.record["failed"][0]["why"]
    assert "--method ranges" in data.record["failed"][0]["why"]
    rejections = rejected(data)
    assert sorted(rejections) == sorted(lost)
    assert all(where == "train/images_003.tar" and "wrong MD5" in why for where, why in rejections.values())
    assert data.images["image_id"].to_list() == sorted(set(ids) - set(lost))
    whole, partly = contents(plain), contents(data)
    assert all(partly[name] == whole[name] for name in partly if name.endswith(".tar"))
    assert "images_003.tar" not in partly
    assert "wrong MD5" in capsys.readouterr().err
    make_mirror(tmp_path / "mirror", tars=6, each=10)  # the MD5 is right again
    assert contents(fetched(selection, tmp_path / "data", tmp_path / "mirror")) == whole


def test_the_command_line_ends_with_1_when_a_tar_failed(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=2)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids)
    (tmp_path / "mirror/train/images_001.tar").unlink()
    assert run(["fetch", str(selection), "-o", str(tmp_path / "data")]) == 1
    assert len(open_dataset(tmp_path / "data").images) == 10
    make_mirror(tmp_path / "mirror", tars=2)
    assert run(["fetch", str(selection), "-o", str(tmp_path / "data")]) == 0
    assert len(open_dataset(tmp_path / "data").images) == 20


def test_images_that_do_not_decode_or_are_nowhere_are_rejected_by_name(tmp_path: Path) -> None:
    ids = [made_up_id(seed) for seed in range(6)]
    huge = image(0).replace(b"\x00\x96\x00\xc8", b"\xea\x60\xea\x60", 1)  # 150 × 200 becomes 60,000 × 60,000
    assert huge != image(0)
    images = [huge, image(1)[:-300], b"a text file", b"", image(4)]
    put_tar(tmp_path / "mirror", 0, tar_of([(member_name(id), one) for id, one in zip(ids, images, strict=False)]))
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids)
    data = fetched(selection, tmp_path / "data")
    rejections = rejected(data)
    assert data.images["image_id"].to_list() == [ids[4]]
    assert "too large" in rejections[ids[0]][1] and "truncated" in rejections[ids[1]][1]
    assert "not an image" in rejections[ids[2]][1] and "not an image" in rejections[ids[3]][1]
    assert rejections[ids[5]] == ("train/", "in no TAR")
    index = locate(tmp_path / "mirror", tmp_path / "index.parquet").path
    by_ranges = fetched(selection, tmp_path / "ranged", index=index, method="ranges")
    assert contents(by_ranges) == contents(data)


def test_an_image_that_one_tar_has_damaged_and_another_sound_is_kept(tmp_path: Path) -> None:
    id = made_up_id(1)
    for tar, data in enumerate((image(1)[:-300], image(1))):
        put_tar(tmp_path / "mirror", tar, tar_of([(member_name(id), data)]))
    data = fetched(make_selection(tmp_path / "s.parquet", tmp_path / "mirror", [id]), tmp_path / "data")
    assert data.images.select("image_id", "shard").rows() == [(id, "images_001.tar")]
    assert rejected(data) == {}


def test_an_image_that_lies_twice_is_kept_once(tmp_path: Path) -> None:
    id, other = made_up_id(0), made_up_id(1)
    first, second = (member_name(id), image(0)), (member_name(id), image(5))
    put_tar(tmp_path / "mirror", 0, tar_of([first, second]))
    put_tar(tmp_path / "mirror", 1, tar_of([second, (member_name(other), image(1))]))
    data = fetched(make_selection(tmp_path / "s.parquet", tmp_path / "mirror", [id, other]), tmp_path / "data")
    row = data.images.filter(pl.col("image_id") == id).row(0, named=True)
    assert len(data.images) == 2 and row["shard"] == "images_000.tar"
    assert ImageReader(data).read(row["shard"], row["offset"], row["length"]) == image(0)


def test_a_mirror_that_changed_since_it_was_indexed_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=3, each=8)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids[::2])
    plain = contents(fetched(selection, tmp_path / "plain"))
    with serving(tmp_path / "mirror") as server:
        index = locate(open_mirror(server.address, patience=HASTY), tmp_path / "index.parquet").path
    parts = [(member_name(ids[seed]), image(seed)) for seed in range(8, 16)]
    put_tar(tmp_path / "mirror", 1, tar_of([("a/new/member", b"x" * 20_000), *parts]))
    data = fetched(selection, tmp_path / "data", tmp_path / "mirror", index=index, method="ranges")
    assert contents(data) == plain
    assert "is not the file that was indexed; the whole TAR is streamed instead" in capsys.readouterr().err


def test_a_server_that_forgets_ranges_half_way_is_streamed_from(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=3, each=10)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids[::2])
    plain = contents(fetched(selection, tmp_path / "plain"))
    index = locate(tmp_path / "mirror", tmp_path / "index.parquet").path
    with serving(tmp_path / "mirror", lambda one: Fault(ignore_range=True) if one.number > 9 else None) as server:
        mirror = open_mirror(server.address, patience=HASTY)
        data = fetched(selection, tmp_path / "data", mirror, index=index, method="ranges")
        assert contents(data) == plain


def test_bytes_damaged_on_the_way_are_read_again(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=2, each=6)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids[::3])
    plain = contents(fetched(selection, tmp_path / "plain"))
    index = locate(tmp_path / "mirror", tmp_path / "index.parquet").path
    images = set(pl.read_parquet(index).filter(pl.col("tar") == 1)["offset"])
    read_again: list[int | None] = []

    def plan(request: Request) -> Fault | None:
        if request.path != "train/images_001.tar" or request.method == "HEAD":
            return None
        if request.start in images:  # what is read for the first time begins at a header
            read_again.append(request.start)
            return None
        return Fault(body=lambda data: data.replace(b"\xff\xda", b"\xff\xd9"))

    with serving(tmp_path / "mirror", plan) as server:
        mirror = open_mirror(server.address, patience=HASTY)
        data = fetched(selection, tmp_path / "data", mirror, index=index, method="ranges")
    assert contents(data) == plain
    assert len(read_again) == 2


def test_a_damaged_header_loses_its_own_image_alone(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=1, each=6)
    index = locate(tmp_path / "mirror", tmp_path / "index.parquet")
    path = tmp_path / "mirror/train/images_000.tar"
    data = bytearray(path.read_bytes())
    offset = pl.read_parquet(index.path).filter(pl.col("image_id") == int(ids[2], 16))["offset"][0]
    data[offset - 512] ^= 0xFF
    put_tar(tmp_path / "mirror", 0, bytes(data))
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids)
    for name, options in (("streamed", {}), ("ranged", {"index": index.path, "method": "ranges"})):
        result = fetched(selection, tmp_path / name, **options)
        assert rejected(result) == {ids[2]: ("train/", "in no TAR (images_000.tar: damaged)")}


def test_a_second_run_does_nothing_and_a_second_selection_is_refused(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=2)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids)
    with serving(tmp_path / "mirror") as server:
        mirror = open_mirror(server.address, patience=HASTY)
        before = contents(fetched(selection, tmp_path / "data", mirror))
        requests = len(server.requests)
        assert contents(fetched(selection, tmp_path / "data", mirror)) == before
        assert len(server.requests) == requests
    other = make_selection(tmp_path / "other.parquet", tmp_path / "mirror", ids[:5])
    with pytest.raises(LandmarksError, match="another selection or size"):
        fetch(other, tmp_path / "data")
    with pytest.raises(LandmarksError, match="another selection or size"):
        fetch(selection, tmp_path / "data", max_side=256)


def test_two_processes_on_one_output_the_second_is_told(tmp_path: Path) -> None:
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", make_mirror(tmp_path / "mirror", tars=1))
    with held(tmp_path / "data"), pytest.raises(BusyError):
        fetch(selection, tmp_path / "data")
    assert not (tmp_path / "data/shards").exists()


def test_a_killed_fetch_goes_on_and_repeats_no_finished_tar(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=6, each=10)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids)
    plain = contents(fetched(selection, tmp_path / "plain"))
    slow = {"on": True}

    def plan(request: Request) -> Fault | None:
        late = slow["on"] and request.method == "GET" and request.path >= "train/images_003.tar"
        return Fault(stall_after=9000) if late else None

    with serving(tmp_path / "mirror", plan) as server:
        line = [sys.executable, "-m", "landmarks", "fetch", selection, "-o", tmp_path / "data", "--mirror"]
        process = subprocess.Popen([*line, server.address, "--workers", "2"], stderr=subprocess.DEVNULL)
        parts = tmp_path / "data/.parts"
        while len(list(parts.glob("images_00?.parquet"))) < 3:  # and never more, as the others stall
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        slow["on"] = False
        before = len(server.requests)
        data = fetched(selection, tmp_path / "data", open_mirror(server.address, patience=HASTY))
        requested = {one.path for one in server.requests[before:] if one.method == "GET" and "tar" in one.path}
    assert contents(data) == plain
    assert not requested & {f"train/images_00{tar}.tar" for tar in range(3)}
    assert not list(data.folder.rglob(".*.part"))


def test_a_fetch_killed_before_its_order_stood_goes_on(tmp_path: Path) -> None:
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", make_mirror(tmp_path / "mirror", tars=1))
    (tmp_path / "data/.parts").mkdir(parents=True)
    (tmp_path / "data/.lock").touch()
    assert contents(fetched(selection, tmp_path / "data")) == contents(fetched(selection, tmp_path / "plain"))


def test_a_lost_shard_is_fetched_again(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=3)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids)
    before = contents(fetched(selection, tmp_path / "data"))
    (tmp_path / "data/shards/images_001.tar").unlink()
    assert contents(fetched(selection, tmp_path / "data")) == before


def test_a_dry_run_tells_the_cost_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=3)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids[::6])
    index = locate(tmp_path / "mirror", tmp_path / "index.parquet").path
    plan = fetch(selection, tmp_path / "data", dry_run=True)
    assert isinstance(plan, FetchPlan) and plan.requests == 3
    by_ranges = fetch(selection, tmp_path / "data", index=index, method="ranges", dry_run=True)
    assert isinstance(by_ranges, FetchPlan) and by_ranges.requests == 5 and by_ranges.bytes < plan.bytes
    streamed, ranged = capsys.readouterr().err.strip().splitlines()
    assert "3 TARs (0 by byte ranges, 3 streamed), 3 requests" in streamed
    assert "3 TARs (3 by byte ranges, 0 streamed), 5 requests" in ranged
    assert not (tmp_path / "data").exists()


def test_a_disk_that_is_too_small_is_told_before_anything_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=2)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids)
    monkeypatch.setattr(fetching, "SPARE_BYTES", 1 << 60)
    with pytest.raises(LandmarksError, match=r"the disk of .* is too small"):
        fetch(selection, tmp_path / "data")


def test_a_disk_that_fills_up_half_way_loses_nothing(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=2, each=10)
    ids += (more := [made_up_id(seed) for seed in range(100, 130)])
    put_tar(tmp_path / "mirror", 2, tar_of([(member_name(id), image(seed)) for seed, id in enumerate(more)]))
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids)
    small = (  # no file may grow beyond 150 kB: the third shard cannot be written
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000));"
        "from landmarks.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    line = [sys.executable, "-c", small, "fetch", selection, "-o", tmp_path / "data", "--workers", "1"]
    result = subprocess.run(line, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "images_002.tar could not be written (File too large)" in result.stderr.splitlines()[-1]
    assert sorted(path.name for path in (tmp_path / "data/shards").iterdir()) == ["images_000.tar", "images_001.tar"]
    assert not (tmp_path / "data/dataset.json").exists()
    assert contents(fetched(selection, tmp_path / "data")) == contents(fetched(selection, tmp_path / "plain"))


def test_members_whose_names_climb_are_told_and_never_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    id = made_up_id(1)
    evil = [("../../x", b"x"), ("/etc/x", b"x"), (f"../../{id}.jpg", image(2)), (member_name(id), image(1))]
    put_tar(tmp_path / "mirror", 0, tar_of(evil))
    data = fetched(make_selection(tmp_path / "s.parquet", tmp_path / "mirror", [id]), tmp_path / "data")
    row = data.images.row(0, named=True)
    assert ImageReader(data).read(row["shard"], row["offset"], row["length"]) == image(1)
    assert "climb out of it, such as '../../x'" in capsys.readouterr().err
    assert not list(tmp_path.parent.glob("x")) and not list(tmp_path.rglob(f"{id}.jpg"))


def test_wrong_options_are_one_line(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=1)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids)
    with pytest.raises(UsageError, match='did you mean "ranges"'):
        fetch(selection, tmp_path / "data", method="range")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="need a byte index"):
        fetch(selection, tmp_path / "data", method="ranges")
    with pytest.raises(UsageError, match="--max-side"):
        fetch(selection, tmp_path / "data", max_side=0)
    for workers in (0, -1):
        with pytest.raises(UsageError, match=f"--workers must be at least 1; received {workers}"):
            fetch(selection, tmp_path / "data", workers=workers)
    with pytest.raises(LandmarksError, match="there is no selection"):
        fetch(tmp_path / "none.parquet", tmp_path / "data")
    shutil.rmtree(tmp_path / "mirror")
    with pytest.raises(LandmarksError, match="no mirror at"):
        fetch(selection, tmp_path / "data")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html><body>Sign in</body></html>", r"train/images_001\.tar: a web page came instead of the file; .*"),
        (b"half a TAR", r"train/images_001\.tar: the TAR ends at byte \d+, in the middle"),
    ],
)
def test_a_tar_that_is_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=2, each=3)
    selection = make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids)
    (tmp_path / "mirror/train/images_001.tar").write_bytes(content)
    assert len(fetched(selection, tmp_path / "data").images) == 3
    said = capsys.readouterr().err.splitlines()
    assert any(re.fullmatch(f".*{message}: this TAR contributes nothing", line) for line in said), said


def test_a_folder_is_no_selection_and_is_told_what_makes_one(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=1, each=2)
    data = fetched(make_selection(tmp_path / "s.parquet", tmp_path / "mirror", ids), tmp_path / "data").folder
    with pytest.raises(UsageError, match=r"data is a dataset, and no selection; .*; landmarks select .*data -o NAME"):
        fetch(data, tmp_path / "out")
    with pytest.raises(UsageError, match=r"mirror is a folder, and no selection; .*; landmarks select MIRROR -o NAME"):
        fetch(tmp_path / "mirror", tmp_path / "out")
    with pytest.raises(LandmarksError, match="there is no selection"):
        fetch(tmp_path / "nowhere.parquet", data, add=True)
