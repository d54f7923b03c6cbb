"""Pinned files of an npm package: fetched once by the client, kept, and never any others."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import landmarks
from landmarks.serving.one_page import PinnedPackage, pinned_files
from landmarks.support.errors import LandmarksError

SCRIPT, WASM = b"let ort;", b"\0asm"


def sri(algorithm: str, data: bytes) -> str:
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


def archive(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


class Npm:
    """A program of the name `npm` that hands out an archive and writes down what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = folder / "served.tgz"
        self.calls = folder / "calls"
        program = folder / "bin" / "npm"
        program.parent.mkdir(parents=True)
        program.write_text(
            f"#!{sys.executable}\nimport shutil, sys\n"
            f"open({str(self.calls)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
            f"try: shutil.copy({str(self.archive)!r}, 'a-package-1.2.3.tgz')\n"
            "except OSError: sys.exit('npm error code ENOTFOUND\\nnpm error network no way to the registry\\n')\n"
        )
        program.chmod(0o755)

    @property
    def requested(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


pytestmark = pytest.mark.linux


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Npm:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    npm = Npm(tmp_path / "npm")
    monkeypatch.setenv("PATH", str(tmp_path / "npm" / "bin"))
    return npm


@pytest.fixture
def pinned(npm: Npm) -> PinnedPackage:
    served = archive({"package/dist/a.js": SCRIPT, "package/dist/a.wasm": WASM, "package/../../evil": b"no"})
    npm.archive.write_bytes(served)
    files = {"dist/a.js": sri("sha256", SCRIPT), "dist/a.wasm": sri("sha256", WASM)}
    return PinnedPackage("@a/package", "1.2.3", sri("sha512", served), 1, files)


def test_what_was_fetched_once_is_kept_and_a_damaged_copy_is_fetched_anew(
    npm: Npm, pinned: PinnedPackage, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {"dist/a.js": SCRIPT, "dist/a.wasm": WASM}
    assert pinned_files(pinned) == wanted
    assert capsys.readouterr().err == "fetching @a/package 1.2.3 with npm, once (1 MB)\n"
    assert pinned_files(pinned) == wanted
    assert [line.split()[:2] for line in npm.requested] == [["pack", "@a/package@1.2.3"]]
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "landmarks" / "@a-package-1.2.3"
    assert sorted(path.name for path in cache.iterdir()) == ["a.js", "a.wasm"]
    (cache / "a.js").write_bytes(b"something else")
    assert pinned_files(pinned) == wanted
    assert len(npm.requested) == 2


def test_another_archive_than_the_pinned_one_is_refused_and_not_kept(npm: Npm, pinned: PinnedPackage) -> None:
    npm.archive.write_bytes(archive({"package/dist/a.js": SCRIPT, "package/dist/a.wasm": WASM + b"more"}))
    with pytest.raises(LandmarksError, match=r"what npm fetched is not the @a/package 1\.2\.3 that is pinned"):
        pinned_files(pinned)
    assert not (Path(os.environ["XDG_CACHE_HOME"]) / "landmarks" / "@a-package-1.2.3").exists()


def test_without_npm_or_without_a_way_to_the_registry_one_line_says_what_to_do(
    npm: Npm, pinned: PinnedPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm.archive.unlink()
    way_out = r"give the unpacked package with --runtime FOLDER \(anywhere: npm pack @a/package@1\.2\.3, then tar -xf\)"
    with pytest.raises(LandmarksError, match=r"npm could not fetch .* \(network no way to the registry\); " + way_out):
        pinned_files(pinned)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LandmarksError, match="there is no npm on this machine to fetch it; " + way_out):
        pinned_files(pinned)


def test_a_folder_is_taken_unpacked_or_flat_and_nothing_else_in_place_of_the_pinned_files(
    npm: Npm, pinned: PinnedPackage, tmp_path: Path
) -> None:
    for number, name in enumerate(["package/dist/", "dist/", ""]):
        folder = tmp_path / f"folder-{number}"
        (folder / name).mkdir(parents=True)
        (folder / name / "a.js").write_bytes(SCRIPT)
        with pytest.raises(LandmarksError, match=r"folder-\d lacks dist/a\.wasm of @a/package 1\.2\.3"):
            pinned_files(pinned, folder)
        (folder / name / "a.wasm").write_bytes(WASM + b"more")
        with pytest.raises(LandmarksError, match=r"folder-\d holds another dist/a\.wasm than that of @a/package"):
            pinned_files(pinned, folder)
        (folder / name / "a.wasm").write_bytes(WASM)
        assert pinned_files(pinned, folder) == {"dist/a.js": SCRIPT, "dist/a.wasm": WASM}
    assert npm.requested == []


def test_a_page_is_refused_before_its_network_is_exported(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(LandmarksError, match="it is a folder"):
        landmarks.export_page(tmp_path / "no run is opened", tmp_path / "page.html")
    with pytest.raises(LandmarksError, match="runtime"):
        landmarks.export_page(tmp_path / "no run is opened", tmp_path / "other.html", runtime=tmp_path / "no runtime")


def test_where_the_cache_cannot_be_written_a_line_says_so_and_the_work_goes_on(
    pinned: PinnedPackage,
    tmp_path: Path,
    read_only: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "shut").mkdir()
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/usr/bin:/sbin:/bin")
    read_only(tmp_path / "shut")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shut"))
    assert pinned_files(pinned)["dist/a.js"] == SCRIPT
    stderr = capsys.readouterr().err
    assert "cannot be written, where copies are kept" in stderr
    assert "@a/package 1.2.3 is fetched anew each time" in stderr
