"""Files of an npm package, pinned by version and integrity: fetched once with the npm client, then cached.

The pinned version and digests stand in a lock file of the project, without addresses; the client's settings decide
which registry is used. Nothing of a package is run, and only the named files of its archive are read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from landmarks.support.console import note
from landmarks.support.errors import LandmarksError
from landmarks.support.files import cache_folder, written_whole


@dataclass(frozen=True)
class PinnedPackage:
    """One version of a package, with the integrity of its archive and of the files that are used."""

    package: str
    version: str
    integrity: str
    """Integrity of the archive, as in npm's lock files: `sha512-` and base64."""
    megabytes: int
    """Size of the archive."""
    files: dict[str, str]
    """Path inside the package → its integrity, `sha256-` and base64."""

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def read_pinned(lock: Path) -> PinnedPackage:
    """Read a lock file of the project."""
    return PinnedPackage(**json.loads(lock.read_text(encoding="utf-8")))


def pinned_files(pinned: PinnedPackage, folder: Path | None = None) -> dict[str, bytes]:
    """Return the pinned files of a package by their paths in it, after checking their integrity.

    They are read from `folder` (the unpacked package, or just the files) if given; otherwise from the user's cache,
    which the npm client fills if necessary. Raises `LandmarksError` when they cannot be obtained or differ from the
    pinned ones.
    """
    if folder is not None:
        return _from_folder(pinned, folder)
    try:
        cache: Path | None = cache_folder() / f"{pinned.package.replace('/', '-')}-{pinned.version}"
    except LandmarksError as error:
        note(f"{error}; {pinned} is fetched anew each time")
        cache = None
    if cache is not None and (cached := _cached(pinned, cache)) is not None:
        return cached
    files = _fetched(pinned)
    if cache is not None:
        for name, data in files.items():
            with written_whole(cache / Path(name).name, tidy=True) as aside:
                aside.write_bytes(data)
    return files


def _cached(pinned: PinnedPackage, cache: Path) -> dict[str, bytes] | None:
    """Return the files from the cache; None if one is missing or damaged."""
    try:
        files = {name: (cache / Path(name).name).read_bytes() for name in pinned.files}
    except OSError:
        return None
    return None if _differing(pinned, files) else files


def _from_folder(pinned: PinnedPackage, folder: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name in pinned.files:
        places = [folder / name, folder / "package" / name, folder / Path(name).name]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise LandmarksError(f"{folder} lacks {name} of {pinned}", way_out=_BY_HAND.format(pinned=pinned))
        files[name] = found.read_bytes()
    for name in _differing(pinned, files):
        raise LandmarksError(
            f"{folder} holds another {name} than that of {pinned}", way_out=_BY_HAND.format(pinned=pinned)
        )
    return files


def _fetched(pinned: PinnedPackage) -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise LandmarksError(
            f"{pinned} is needed, and there is no npm on this machine to fetch it",
            way_out=_BY_HAND.format(pinned=pinned),
        )
    note(f"fetching {pinned} with npm, once ({pinned.megabytes} MB)")
    with tempfile.TemporaryDirectory(prefix="landmarks-") as folder:
        options = ("--ignore-scripts", "--prefer-offline", "--loglevel=error")
        command = [npm, "pack", f"{pinned.package}@{pinned.version}", *options]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        archives = list(Path(folder).glob("*.tgz"))
        if result.returncode or len(archives) != 1:
            raise LandmarksError(
                f"npm could not fetch {pinned} ({_reason(result.stderr)})", way_out=_BY_HAND.format(pinned=pinned)
            )
        if _integrity("sha512", archives[0].read_bytes()) != pinned.integrity:
            raise LandmarksError(
                f"what npm fetched is not the {pinned} that is pinned",
                way_out=f"is another registry set? {_BY_HAND.format(pinned=pinned)}",
            )
        with tarfile.open(archives[0]) as archive:
            files = {name: _member(archive, f"package/{name}") for name in pinned.files}
    if wrong := _differing(pinned, files):
        raise AssertionError(f"{wrong} differ though the archive is the pinned one: the lock contradicts itself")
    return files


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None, f"{name} is no file of the archive"
    return file.read()


def _reason(stderr: str) -> str:
    lines = [line.removeprefix("npm error ").removeprefix("npm ERR! ") for line in stderr.splitlines()]
    messages = [line for line in lines if line.strip() and "complete log of this run" not in line]
    return next((line for line in messages if not line.startswith(("code ", "errno ", "syscall "))), "it says nothing")


def _differing(pinned: PinnedPackage, files: Mapping[str, bytes]) -> list[str]:
    return [name for name, data in files.items() if _integrity("sha256", data) != pinned.files[name]]


def _integrity(algorithm: str, data: bytes) -> str:
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


_BY_HAND = (
    "give the unpacked package with --runtime FOLDER "
    "(anywhere: npm pack {pinned.package}@{pinned.version}, then tar -xf)"
)
