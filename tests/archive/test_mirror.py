"""Mirrors: the same bytes from anywhere, patience with servers that break, and nothing told that is secret."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import pickle
import time
from pathlib import Path

import pytest
from faulty_server import Fault, Request, serving
from tar_mirror import HASTY, make_mirror

from landmarks.archive.mirror import Mirror, open_mirror
from landmarks.archive.patience import AbsentError, MirrorError, RangesRefusedError, RefusedError, seconds_of
from landmarks.support.errors import LandmarksError, UsageError

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


def test_the_first_absent_md5_file_ends_the_list(folder: Path) -> None:
    (folder / "md5sum/train/md5.images_001.txt").unlink()
    assert open_mirror(folder).tar_count("train") == 1
    with pytest.raises(AbsentError, match="no md5sum/index"):
        open_mirror(folder).tar_count("index")


def test_an_md5_file_without_an_md5_is_named(folder: Path) -> None:
    (folder / "md5sum/train/md5.images_001.txt").write_text("<html>")
    with pytest.raises(MirrorError, match=r"md5\.images_001\.txt holds no MD5"):
        open_mirror(folder).tar_count("train")


def test_a_place_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match="no mirror at"):
        open_mirror(tmp_path / "nothing")
    with pytest.raises(UsageError, match="no way to read ftp://"):
        open_mirror("ftp://example.org/archive")


def test_a_server_that_breaks_every_third_answer_costs_nothing(folder: Path) -> None:
    faults = [Fault(status=500), Fault(cut_after=100), Fault(status=429), Fault(stall_after=50)]

    def plan(request: Request) -> Fault | None:
        return faults[request.number // 3 % len(faults)] if request.number % 3 == 2 else None

    with serving(folder, plan) as server:
        mirror = open_mirror(server.address, patience=HASTY)
        for tar in range(mirror.tar_count("train")):
            path = f"train/images_{tar:03d}.tar"
            assert whole(mirror, path) == (folder / path).read_bytes()
        assert mirror.host.retries > 0


@pytest.mark.parametrize("etags", [True, False])
def test_a_cut_connection_is_taken_up_where_it_broke(folder: Path, etags: bool) -> None:
    data = os.urandom(1_000_000)
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


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_respected(folder: Path, status: int) -> None:
    busy = Fault(status=status, headers={"Retry-After": "1"})
    with serving(folder, lambda request: busy if request.number < 2 else None) as server:
        mirror = open_mirror(server.address, patience=HASTY)
        assert len(mirror.range(TAR, 0, 512).data) == 512
        times = [request.time for request in server.requests if request.method == "GET"]
    assert times[1] - times[0] >= 1


def test_a_pause_holds_for_all_workers(folder: Path) -> None:
    closed: dict[str, float] = {}

    def plan(request: Request) -> Fault | None:
        closed.setdefault("since", request.time)
        shut = request.time - closed["since"] < 0.9
        return Fault(status=503, headers={"Retry-After": "1"}) if shut else None

    with serving(folder, plan) as server:
        mirror = open_mirror(server.address, patience=HASTY)
        mirror.ranges(TAR, list(range(0, 5000, 100)), list(range(100, 5100, 100)))
        during = [request.time - closed["since"] for request in server.requests if request.method == "GET"]
    assert sum(0.3 < seconds < 0.95 for seconds in during) == 0
    assert sum(seconds <= 0.3 for seconds in during) <= HASTY.connections


def test_a_pause_of_hours_is_an_error(folder: Path) -> None:
    with (
        serving(folder, lambda _: Fault(status=503, headers={"Retry-After": "7200"})) as server,
        pytest.raises(MirrorError, match="asks for a pause of 7200 s"),
    ):
        open_mirror(server.address, patience=HASTY).range(TAR, 0, 10)


def test_retry_after_may_be_seconds_or_a_date() -> None:
    assert seconds_of("3") == 3
    assert seconds_of(None) == seconds_of("soon") == seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert 57 < seconds_of(later) <= 60


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
    with serving(folder, lambda _: fault) as server, pytest.raises(MirrorError, match=words) as caught:
        open_mirror(server.address, patience=HASTY).range(TAR, 10, 400)
    assert "\n" not in str(caught.value) and TAR in str(caught.value)


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
        told = [repr(mirror), mirror.place, str(caught.value)]
        told += [path.read_text("latin-1") for path in (tmp_path / "cache").rglob("*.json")]
        assert len(told) == 4
        assert not any("secret" in text or "ann" in text for text in told)
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
