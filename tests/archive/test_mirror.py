"""Mirrors: the same bytes from anywhere, patience with servers that break, and nothing told that is secret."""

from __future__ import annotations

import base64
import gzip
import hashlib
import pickle
import shlex
import shutil
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faulty_server import Fault, Request, serving, weather
from tar_mirror import HASTY, STALLING, make_mirror

from landmarks.archive.fetch import fetch
from landmarks.archive.locate import locate
from landmarks.archive.mirror import Mirror, open_mirror
from landmarks.archive.select import select
from landmarks.dataset.importing import import_
from landmarks.dataset.manifest import Dataset
from landmarks.support import requests as patience
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.requests import AbsentError, MirrorError, RangesRefusedError, RefusedError, retry_after_seconds

TAR = "train/images_000.tar"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_mirror(tmp_path / "mirror", tars=3, each=4)
    return tmp_path / "mirror"


def whole(mirror: Mirror, path: str = TAR) -> bytes:
    return b"".join(mirror.stream(path))


def test_a_folder_and_a_server_give_the_same(folder: Path) -> None:
    data = (folder / TAR).read_bytes()
    with serving(folder) as server:
        for place in (folder, folder.as_uri(), server.address, server.address + "/"):
            mirror = open_mirror(place, patience=HASTY)
            assert mirror.head(TAR)[0] == len(data)
            assert whole(mirror) == data
            assert mirror.range(TAR, 512, 1000).data == data[512:1000]
            assert mirror.ranges(TAR, [0, 700], [512, 900]) == [data[:512], data[700:900]]
            assert mirror.tar_count("train") == 3
            assert mirror.md5("train", 0) == hashlib.md5(data).hexdigest()
            assert mirror.exists(TAR) and not mirror.exists("train/images_003.tar")


def test_the_first_absent_md5_file_ends_the_list_and_others_behind_it_are_not_passed_by_in_silence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_mirror(folder).tar_count("train") == 3
    assert not capsys.readouterr().err
    (folder / "md5sum/train/md5.images_001.txt").unlink()
    assert open_mirror(folder).tar_count("train") == 1
    assert "md5.images_001.txt is not there: no TAR from there on is read" in capsys.readouterr().err
    with pytest.raises(AbsentError, match="no md5sum/index"):
        open_mirror(folder).tar_count("index")


@pytest.mark.parametrize(
    ("lost", "status"), [("md5.images_000.txt", 404), ("md5.images_001.txt", 404), ("md5.images_001.txt", 403)]
)
def test_an_md5_file_that_is_missing_for_a_moment_ends_no_list(
    folder: Path, lost: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(request: Request) -> Fault | None:
        return Fault(status=status) if request.path.endswith(lost) and request.again < 2 else None

    with serving(folder, plan) as server:
        assert open_mirror(server.address, patience=HASTY).tar_count("train") == 3
    assert f"/md5sum/train/{lost} was not there at first, and is now" in capsys.readouterr().err


def test_an_md5_file_that_stays_missing_is_asked_for_as_often_as_patience_has_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "md5sum/train/md5.images_001.txt").unlink()
    with serving(folder) as server:
        assert open_mirror(server.address, patience=HASTY).tar_count("train") == 1
        asked = [request.path for request in server.requests]
    assert asked.count("md5sum/train/md5.images_001.txt") == HASTY.tries
    assert asked.count("md5sum/train/md5.images_003.txt") == 1  # nothing follows it
    assert "md5.images_001.txt is not there: no TAR from there on is read" in capsys.readouterr().err


def test_an_md5_file_that_is_missing_at_the_end_of_a_batch_is_asked_for_again(tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / f"md5sum/train/md5.images_{number:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number:032x}  images_{number:03d}.tar\n")

    def plan(request: Request) -> Fault | None:
        return Fault(status=404) if request.path.endswith("md5.images_031.txt") and not request.again else None

    with serving(tmp_path, plan) as server:
        mirror = open_mirror(server.address, patience=HASTY)
        assert [mirror.md5("train", tar) for tar in range(mirror.tar_count("train"))] == [
            f"{n:032x}" for n in range(40)
        ]


@pytest.fixture
def unpacked(miniature: Path, tmp_path: Path) -> Path:
    """The miniature as people have the archive: the TARs unpacked and deleted, the CSVs kept."""
    place = tmp_path / "my archive"
    for set in ("train", "test"):
        with tarfile.open(miniature / set / "images_000.tar") as tar:
            tar.extractall(place / set, filter="data")
    for name in ("metadata", "ground_truth"):
        shutil.copytree(miniature / name, place / name)
    return place


@pytest.mark.parametrize("given", ["", "train"])
def test_an_unpacked_archive_is_told_as_what_it_is_with_the_command_that_takes_it(
    miniature: Path, unpacked: Path, tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = select(miniature, tmp_path / "chosen.parquet")
    told = []
    for verb in (
        lambda: fetch(chosen, tmp_path / "data", mirror=unpacked / given),
        lambda: locate(unpacked / given, tmp_path / "index.parquet"),
    ):
        with pytest.raises(LandmarksError, match=r" holds the archive unpacked; received .*\.jpg; ") as raised:
            verb()
        told.append(str(raised.value))
    if given:
        with pytest.raises(LandmarksError) as raised:
            select(unpacked / given, tmp_path / "other.parquet")
        told.append(str(raised.value))
        assert "did you mean" in told.pop()
    else:
        select(unpacked, tmp_path / "other.parquet")
        told.append(capsys.readouterr().err)
        assert "landmarks fetch cannot take these images from there: " in told[-1]
    commands = {message.partition("landmarks import ")[2].partition(" makes a dataset")[0] for message in told}
    assert len(commands) == 1
    words = shlex.split(commands.pop())
    data = import_(words[0], tmp_path / "data", copy=words[3] != "--by-reference")
    assert set(data.images["image_id"]) <= set(chosen.images["image_id"])
    again = fetch(select(data, tmp_path / "again.parquet", take=2), tmp_path / "taken")
    assert isinstance(again, Dataset) and len(again.labels) == 2


def test_the_unpacked_test_set_is_no_way_around_its_tars(unpacked: Path, tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match=r"holds the archive unpacked; .*the test set is taken from its TARs"):
        locate(unpacked, tmp_path / "index.parquet", set="test")


def test_an_unpacked_archive_without_its_csv_is_told_where_to_bring_it(unpacked: Path, tmp_path: Path) -> None:
    shutil.rmtree(unpacked / "metadata")
    with pytest.raises(LandmarksError, match=r"has no metadata/train.csv, .*bring the archive's train.csv, .* to '.*'"):
        select(unpacked, tmp_path / "chosen.parquet")


def test_tars_that_lie_beside_what_was_unpacked_are_used(miniature: Path, unpacked: Path, tmp_path: Path) -> None:
    for name in ("md5sum", "train"):
        shutil.copytree(miniature / name, unpacked / name, dirs_exist_ok=True)
    fetched = fetch(select(unpacked, tmp_path / "chosen.parquet"), tmp_path / "data")
    assert isinstance(fetched, Dataset) and len(fetched.labels) == 6


def test_an_md5_file_without_an_md5_is_named(folder: Path) -> None:
    (folder / "md5sum/train/md5.images_001.txt").write_text("nothing")
    with pytest.raises(MirrorError, match=r"md5\.images_001\.txt holds no MD5"):
        open_mirror(folder).tar_count("train")


def test_a_place_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match="no mirror at"):
        open_mirror(tmp_path / "nothing")
    with pytest.raises(UsageError, match="no way to read ftp://"):
        open_mirror("ftp://example.org/archive")


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 429}, {"cut_after": 20}, {"stall_after": 20}])
def test_a_server_that_breaks_each_first_answer_costs_nothing(folder: Path, fault: dict[str, int]) -> None:
    with serving(folder, weather(Fault(**fault))) as server:  # type: ignore[arg-type]
        mirror = open_mirror(server.address, patience=STALLING)
        assert mirror.tar_count("train") == 3
        paths = [f"train/images_{tar:03d}.tar" for tar in range(3)]
        for path in paths:
            assert whole(mirror, path) == (folder / path).read_bytes()
        assert {*paths} < {request.path for request in server.requests if request.again}


@pytest.mark.parametrize("etags", [True, False])
def test_a_cut_connection_is_taken_up_where_it_broke(folder: Path, etags: bool) -> None:
    data = np.random.default_rng(0).bytes(1_000_000)
    (folder / "large").write_bytes(data)
    with serving(folder, lambda request: Fault(cut_after=200_000) if request.nth < 3 else None, etags=etags) as server:
        assert whole(open_mirror(server.address, patience=HASTY), "large") == data
        starts = [request.start for request in server.requests]
    assert starts[0] is None and len(starts) == 4
    assert starts[1:] == sorted(set(starts[1:]))  # each begins further on than the one before


def test_a_file_that_changes_under_a_broken_stream_is_noticed(folder: Path) -> None:
    (folder / "large").write_bytes(bytes(1_000_000))
    with (
        serving(folder, lambda request: Fault(cut_after=200_000, etag=f'"{request.nth}"')) as server,
        pytest.raises(MirrorError, match="changed while it was being read"),
    ):
        whole(open_mirror(server.address, patience=HASTY), "large")


class Clock:
    """Time that passes for those who sleep; sleepers wait for each other until there are `sleepers` of them."""

    def __init__(self, sleepers: int = 1) -> None:
        self.now = 0.0
        self.asleep = threading.Event()
        self.together = threading.Barrier(sleepers)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        wakes = self.now + seconds
        self.asleep.set()
        self.together.wait()
        self.now = max(self.now, wakes)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time by which a mirror waits."""
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    return clock


class Busy:
    """A server's plan: up to some time every request is answered with the pause that it still wants."""

    def __init__(self, clock: Clock, until: float, status: int = 503) -> None:
        self.clock, self.until, self.status = clock, until, status
        self.gets: list[float] = []
        self.heads: list[float] = []

    def __call__(self, request: Request) -> Fault | None:
        now = self.clock.now
        (self.heads if request.method == "HEAD" else self.gets).append(now)
        left = self.until - now
        return Fault(status=self.status, headers={"Retry-After": f"{left:.0f}"}) if left > 0 else None


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_respected(folder: Path, clock: Clock, status: int) -> None:
    busy = Busy(clock, until=30, status=status)
    with serving(folder, busy) as server:
        assert len(open_mirror(server.address, patience=HASTY).range(TAR, 0, 512).data) == 512
    assert (busy.gets, busy.heads) == ([0, 30], [0])


def test_a_pause_is_asked_for_once_and_holds_for_all_workers(folder: Path, clock: Clock) -> None:
    busy = Busy(clock, until=30)
    with serving(folder, busy) as server:
        mirror = open_mirror(server.address, patience=HASTY)
        mirror.ranges(TAR, list(range(0, 5000, 100)), list(range(100, 5100, 100)))
    assert busy.heads == [0]
    assert set(busy.gets) == {0, 30}
    assert 1 <= busy.gets.count(0) <= HASTY.connections


def test_a_request_that_begins_during_a_pause_waits_for_its_end(folder: Path, clock: Clock) -> None:
    clock.together = threading.Barrier(2)
    busy = Busy(clock, until=30)
    with serving(folder, busy) as server, ThreadPoolExecutor(2) as pool:
        mirror = open_mirror(server.address, patience=HASTY)
        try:
            first = pool.submit(mirror.range, TAR, 0, 512)
            clock.asleep.wait()  # the first is in the pause
            second = pool.submit(mirror.range, TAR, 512, 1024)
            assert len(first.result().data) == len(second.result().data) == 512
        finally:
            clock.together.abort()
    assert (busy.gets, busy.heads) == ([0, 30, 30], [0])


def test_a_pause_of_hours_is_an_error(folder: Path) -> None:
    with (
        serving(folder, lambda _: Fault(status=503, headers={"Retry-After": "7200"})) as server,
        pytest.raises(MirrorError, match="asks for a pause of 7200 s"),
    ):
        open_mirror(server.address, patience=HASTY).range(TAR, 0, 10)


def test_retry_after_may_be_seconds_or_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_445_412_420.0)  # Wed, 21 Oct 2015 07:27:00 GMT
    assert retry_after_seconds("3") == 3
    assert (
        retry_after_seconds(None)
        == retry_after_seconds("soon")
        == retry_after_seconds("Wed, 21 Oct 2015 07:26:00 GMT")
        == 0
    )
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 60


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(status=500), "answered 500 .*after 6 tries"),
        (Fault(shift_range=1), "a wrong range was sent, after 6 tries"),
        (Fault(stall_after=10), "no byte arrived in time, after 6 tries"),
        (Fault(status=400), "answered 400"),
        (Fault(status=302, headers={"Location": "file:///etc/passwd"}), "answered 302"),
        (Fault(status=302, headers={"Location": "ftp://127.0.0.1/x"}), r"not http\(s\)"),
    ],
)
def test_what_stays_wrong_is_told_in_one_line(folder: Path, fault: Fault, words: str) -> None:
    patience = replace(STALLING, tries=6) if fault.stall_after else HASTY
    with serving(folder, lambda _: fault) as server, pytest.raises(MirrorError, match=words) as caught:
        open_mirror(server.address, patience=patience).range(TAR, 10, 400)
    assert "\n" not in str(caught.value) and TAR in str(caught.value)


def test_a_mirror_that_does_not_answer_is_told_of_while_it_is_tried_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(folder, lambda _: None) as server:
        address = server.address
    mirror = open_mirror(address, patience=HASTY)
    for _ in range(2):
        with pytest.raises(MirrorError, match="after 6 tries"):
            mirror.range(TAR, 0, 10)
    assert capsys.readouterr().err.count("no connection could be made; it is tried again, up to 6 times") == 1


def test_errors_that_patience_cannot_help_are_not_repeated(folder: Path) -> None:
    for status, error in ((404, AbsentError), (403, RefusedError), (401, RefusedError), (410, MirrorError)):
        with serving(folder, lambda _, status=status: Fault(status=status)) as server:
            with pytest.raises(error):
                open_mirror(server.address, patience=HASTY).range(TAR, 0, 10)
            assert len(server.requests) == 1


def test_redirects_stay_on_http_and_work(folder: Path) -> None:
    with serving(folder) as behind:

        def plan(request: Request) -> Fault:
            return Fault(status=307, headers={"Location": f"{behind.address}/{request.path}"})

        with serving(folder, plan) as front:
            assert whole(open_mirror(front.address, patience=HASTY)) == (folder / TAR).read_bytes()


def test_a_server_that_knows_get_alone_tells_sizes(folder: Path) -> None:
    with serving(folder, lambda request: Fault(status=405) if request.method == "HEAD" else None) as server:
        assert open_mirror(server.address, patience=HASTY).head(TAR)[0] == (folder / TAR).stat().st_size


def test_a_server_without_ranges_is_noticed_at_the_first_answer(folder: Path) -> None:
    for fault in (Fault(ignore_range=True), Fault(headers={"Content-Encoding": "gzip"})):
        with serving(folder, lambda _, fault=fault: fault) as server:
            with pytest.raises(RangesRefusedError):
                open_mirror(server.address, patience=HASTY).range(TAR, 0, 10)
            assert len(server.requests) == 1


def test_a_server_that_compresses_is_unpacked_while_streaming(folder: Path) -> None:
    packed = Fault(headers={"Content-Encoding": "gzip"}, body=gzip.compress)
    with serving(folder, lambda _: packed) as server:
        assert whole(open_mirror(server.address, patience=HASTY)) == (folder / TAR).read_bytes()


@pytest.mark.parametrize(
    "text",
    ["MD5 (images_000.tar) = {}\n", "{}", "\\{} *images_000.tar\r\n", "\ufeff{}  images_000.tar\n", "MD5(x.tar)= {}"],
)
def test_md5_files_of_other_systems_are_read(folder: Path, text: str) -> None:
    (folder / "md5sum/train/md5.images_000.txt").write_text(text.format("0123456789ABCDEF" * 2), encoding="utf-8")
    assert open_mirror(folder).md5("train", 0) == "0123456789abcdef" * 2


def test_a_server_that_leaves_the_length_out_of_a_range_is_streamed_from(folder: Path) -> None:
    def answer(request: object) -> Fault:
        return Fault(headers={"Content-Range": "bytes 0-9/*"})

    with serving(folder, answer) as server, pytest.raises(RangesRefusedError):
        open_mirror(server.address, patience=HASTY).range(TAR, 0, 10)


def in_two_parts(data: bytes) -> bytes:
    return gzip.compress(data[:1000]) + gzip.compress(data[1000:])


def test_what_is_packed_in_several_parts_is_unpacked_whole_and_a_missing_end_is_told(folder: Path) -> None:
    parts = Fault(headers={"Content-Encoding": "gzip"}, body=in_two_parts)
    with serving(folder, lambda _: parts) as server:
        assert whole(open_mirror(server.address, patience=HASTY)) == (folder / TAR).read_bytes()
    cut = Fault(headers={"Content-Encoding": "gzip"}, body=lambda data: gzip.compress(data)[:-900])
    with serving(folder, lambda _: cut) as server, pytest.raises(MirrorError, match="its end is missing"):
        whole(open_mirror(server.address, patience=HASTY))


def test_an_oversized_small_file_is_refused_before_it_is_read(folder: Path) -> None:
    huge = Fault(headers={"Content-Length": str(10**12)})
    with serving(folder, lambda _: huge) as server, pytest.raises(MirrorError, match="too large"):
        open_mirror(server.address, patience=HASTY).read(TAR)


def test_credentials_are_sent_but_never_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = "Basic " + base64.b64encode(b"ann:secret@1").decode()

    def plan(request: Request) -> Fault | None:
        known = {name.lower(): value for name, value in request.headers.items()}.get("authorization") == expected
        return None if known else Fault(status=401)

    with serving(folder, plan) as server:
        mirror = open_mirror(server.address.replace("//", "//ann:secret%401@"), patience=HASTY)
        assert whole(mirror) == (folder / TAR).read_bytes()
        mirror.local(TAR)
        with pytest.raises(AbsentError) as caught:
            mirror.range("nothing", 0, 1)
        texts = [repr(mirror), mirror.place, str(caught.value)]
        texts += [path.read_text("latin-1") for path in (tmp_path / "cache").rglob("*.json")]
        assert len(texts) == 4
        assert not any("secret" in text or "ann" in text for text in texts)
        with pytest.raises(RefusedError):
            open_mirror(server.address, patience=HASTY).head(TAR)
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login ann password secret@1\n")
        (tmp_path / "netrc").chmod(0o600)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        assert open_mirror(server.address, patience=HASTY).exists(TAR)


def test_a_proxy_of_the_environment_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(folder) as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        mirror = open_mirror("http://archive.invalid", patience=HASTY)
        assert whole(mirror) == (folder / TAR).read_bytes()


def test_a_local_copy_is_kept_until_the_file_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (folder / "metadata").mkdir()
    csv = folder / "metadata/train.csv"
    csv.write_text("one")
    assert open_mirror(folder).local("metadata/train.csv") == csv
    with serving(folder) as server:
        mirror = open_mirror(server.address, patience=HASTY)
        copies = [mirror.local("metadata/train.csv").read_text() for _ in range(2)]
        gets = sum(request.method == "GET" for request in server.requests)
        csv.write_text("two")
        assert copies == ["one", "one"] and gets == 1
        assert mirror.local("metadata/train.csv").read_text() == "two"
        with pytest.raises(AbsentError):
            mirror.local("metadata/none.csv")


def test_a_mirror_can_be_sent_to_another_process(folder: Path) -> None:
    assert whole(pickle.loads(pickle.dumps(open_mirror(folder)))) == (folder / TAR).read_bytes()


@pytest.mark.parametrize("page", ["<html><body>Welcome</body></html>", "\r\n<!DOCTYPE HTML>\n<html>"])
def test_a_web_page_instead_of_a_file_is_named_by_the_address_it_came_from(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (folder / "metadata").mkdir()
    (folder / "metadata/train.csv").write_text(page)
    with serving(folder) as server:
        mirror = open_mirror(server.address, patience=HASTY)
        message = rf"{server.address}/metadata/train\.csv: a web page came"
        with pytest.raises(MirrorError, match=message):
            mirror.local("metadata/train.csv")
    assert not list((tmp_path / "cache").rglob("train.csv*"))


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1?token=hidden", "https://u:hidden@host/container?sv=1&sig=hidden"]
)
def test_a_signed_address_is_refused_with_words_and_its_signature_is_not_told(address: str) -> None:
    with pytest.raises(UsageError, match="a signed address") as caught:
        open_mirror(address)
    assert "hidden" not in str(caught.value)
