"""A mirror of the archive: a folder, an HTTP(S) address or a bucket, read through obstore.

    mirror = open_mirror("https://s3.amazonaws.com/google-landmark")
    mirror.tar_count("train")                       # 500
    for chunk in mirror.stream("train/images_000.tar"): ...
    mirror.range("train/images_000.tar", 0, 512)    # the first header

Proxies come from the environment (`HTTPS_PROXY`, `NO_PROXY`), credentials from the usual places (`AWS_*` and the AWS
files, `~/.netrc`, `user:password@` in an address). Credentials stay inside `Mirror`; `Mirror.place` holds none.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import polars as pl

from landmarks.archive.csv_tables import SOLUTION, TRAIN, CsvTable
from landmarks.dataset.unpacked_archive import unpacked_example, way_to_import
from landmarks.support.console import note
from landmarks.support.disk import remove_file, require_free_disk
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import cache_folder, file_digest, read_record, write_record, written_whole
from landmarks.support.places import Place, parse_address
from landmarks.support.remote_files import RemoteFiles
from landmarks.support.requests import AbsentError, MirrorError, Patience, RefusedError

MAX_TARS = 1000
"""`images_NNN.tar` has three digits."""

PUBLISHED_BYTES = {"train": 121_000, "test": 85_000}
"""Mean size of an image in the published archive, for mirrors whose TARs' sizes are not available."""

_SAMPLED_TARS = 16


def open_mirror(place: Place | Mirror, *, patience: Patience | None = None) -> Mirror:
    """Open a mirror at a path or at an `http(s)://`, `s3://`, `gs://` or `az://` address, without a request yet.

    Raises:
        LandmarksError: there is no such folder.
        UsageError: the address is signed, or its scheme is not supported.
    """
    if isinstance(place, Mirror):
        return place
    address = parse_address(os.fspath(place)) if "://" in os.fspath(place) else None
    if address is not None and address.query:
        raise UsageError(
            f"a signed address, one with a query behind a ?, is of no use for a whole mirror: {address.bare}",
            way_out="take s3://, gs:// or az:// with credentials in the environment (AZURE_STORAGE_SAS_TOKEN=… for a"
            " signature of Azure's), or copy the files into a folder",
        )
    return Mirror(os.fspath(place), patience or Patience())


def tar_path(set: str, tar: int) -> str:
    """Return the path in a mirror of TAR number `tar` of a set."""
    return f"{set}/images_{tar:03d}.tar"


class Mirror(RemoteFiles):
    """A mirror of the archive: the published files below one address."""

    def __init__(self, address: str, patience: Patience) -> None:
        super().__init__(address, patience)
        self._md5: dict[str, list[str]] = {}

    def tar_count(self, set: str) -> int:
        """Return the number of a set's TARs, counting MD5 files up to the first that is missing."""
        return len(self._md5_list(set))

    def md5(self, set: str, tar: int) -> str:
        """Return the published MD5 of TAR number `tar`, 32 lower-case hex digits."""
        if set in self._md5:
            return self._md5[set][tar]
        md5 = self._published_md5(set, tar)
        if md5 is None:
            raise AbsentError(f"{self._name(_md5_path(set, tar))} is not there")
        return md5

    def local(self, path: str) -> Path:
        """Return a local path of one of the mirror's files.

        Of a remote file that is a cached copy, downloaded again when the size or ETag has changed.
        """
        if self.root is not None:
            if not (self.root / path).is_file():
                raise AbsentError(f"{self._name(path)} is not there")
            return self.root / path
        size, etag = self.head(path)
        mirror_digest = hashlib.blake2b(self.place.encode(), digest_size=8).hexdigest()
        copy = cache_folder() / "mirrors" / mirror_digest / path
        record_file = copy.with_name(copy.name + ".json")
        with contextlib.suppress(LandmarksError):
            record = read_record(record_file)
            if copy.is_file() and (record.get("size"), record.get("etag")) == (size, etag) and etag:
                return copy
        require_free_disk(copy.parent, size)
        remove_file(record_file)
        with written_whole(copy, tidy=True) as temporary, open(temporary, "wb") as file:
            file.writelines(self.stream(path))
        write_record(record_file, {"place": self.place, "path": path, "size": size, "etag": etag}, verb="select")
        return copy

    def unpacked(self, set: str) -> AbsentError | None:
        """Return an error for a folder with images of the archive in place of a set's TARs, or None for any other."""
        if self.root is None or any((self.root / set).glob("images_*.tar")):
            return None
        image = unpacked_example(self.root)
        if image is None:
            return None
        return AbsentError(
            f"{self.place} holds the archive unpacked",
            received=image,
            expected=f"TARs, such as {self._name(tar_path(set, 0))}, with their MD5 files",
            way_out=way_to_import(self.root if set == "train" else self.root / set),
        )

    def _md5_list(self, set: str) -> list[str]:
        if set not in self._md5:
            self._md5[set] = self._read_md5_list(set)
        return self._md5[set]

    def _read_md5_list(self, set: str) -> list[str]:
        """Return the MD5s of a set's TARs, up to the first that is missing.

        One that is missing in front of others is asked for again, like any request that may have failed for a moment:
        a list that ends too early would be a dataset that lacks images.
        """
        found: list[str] = []
        answers: list[str | None] = []
        while len(found) < MAX_TARS:
            answers += self._published_md5s(set, len(answers))
            while len(found) < len(answers) and (md5 := answers[len(found)]) is not None:
                found.append(md5)
            if len(found) == len(answers):
                continue
            more: list[str | None] = []
            with contextlib.suppress(LandmarksError):
                more = self._published_md5s(set, len(answers))
            answers += more
            in_front_of_others = any(later is not None for later in answers[len(found) :])
            if in_front_of_others and (md5 := self._md5_after_all(set, len(found))) is not None:
                answers[len(found)] = md5
                continue
            if not found:
                raise self.unpacked(set) or AbsentError(
                    f"{self.place} has no {_md5_path(set, 0)}",
                    way_out="is it a mirror of the archive, with md5sum/, metadata/ and the set's TARs?",
                )
            if in_front_of_others:
                note(f"{self._name(_md5_path(set, len(found)))} is not there: no TAR from there on is read")
            break
        return found

    def _published_md5s(self, set: str, first: int) -> list[str | None]:
        """Return the MD5s of some TARs from number `first`, asked for at once, since a set has hundreds of them."""
        return list(
            self._pool.map(functools.partial(self._published_md5, set), range(first, min(first + 32, MAX_TARS)))
        )

    def _md5_after_all(self, set: str, tar: int) -> str | None:
        """Ask again, after waits, for an MD5 file that was missing; return the MD5, with a note, or None."""
        for tried in range(1, self.host.patience.tries if self.root is None else 1):
            self.host.rest(tried)
            if (md5 := self._published_md5(set, tar)) is not None:
                note(f"{self._name(_md5_path(set, tar))} was not there at first, and is now")
                return md5
        return None

    def _published_md5(self, set: str, tar: int) -> str | None:
        path = _md5_path(set, tar)
        try:
            text = self.read(path).decode("ascii", "replace")
        except AbsentError:
            return None
        except RefusedError:
            if tar > 0:  # a bucket whose listing is forbidden answers 403 for absent files
                return None
            raise
        # The format of md5sum, or that of macOS and BSD: "MD5 (images_000.tar) = …".
        match = re.match(r"(?:MD5 ?\(.*\) ?= ?)?\\?([0-9a-fA-F]{32})\b", text.lstrip("\ufffd").strip())
        if match is None:
            raise MirrorError(f"{self._name(path)} holds no MD5", received=repr(text[:40]))
        return match.group(1).lower()


def _md5_path(set: str, tar: int) -> str:
    return f"md5sum/{set}/md5.images_{tar:03d}.txt"


# ── The mirror's CSVs as local files, and the mean size of its images ───────────────────────────────────────────────


class MirrorCsvs:
    """The mirror's CSVs as local files; the digest of each file used is computed in `pool` meanwhile."""

    def __init__(self, mirror: Mirror, pool: ThreadPoolExecutor) -> None:
        self.mirror = mirror
        self.place = str(mirror.root or mirror.place)
        self._pool = pool
        self._digests: dict[str, Future[str]] = {}

    def find(self, table: CsvTable) -> Path | None:
        """Return the table's file, or None when the mirror lacks it."""
        try:
            file = self.mirror.local(table.path)
        except AbsentError:
            return None
        if table.path not in self._digests:
            self._digests[table.path] = self._pool.submit(file_digest, file)
        return file

    def require(self, table: CsvTable, why: str) -> Path:
        """Return the table's file, or raise an error that says what it is needed for."""
        file = self.find(table)
        if file is not None:
            return file
        way_out = "add it to the mirror, from where the archive is published"
        root = self.mirror.root
        if root is not None and (root.parent / table.path).is_file():
            way_out = f"did you mean {root.parent}?"
        elif root is not None and unpacked_example(root) is not None:
            way_out = way_to_import(root if table is TRAIN else root / "test")
        elif table in (TRAIN, SOLUTION):
            way_out = "is it a mirror of the archive? images of your own become a dataset with: landmarks import"
        raise LandmarksError(f"{self.place} has no {table.path}, which {why}", way_out=way_out)

    def digests(self) -> dict[str, str]:
        """Return the digest of every CSV used so far, by its path."""
        return {path: digest.result() for path, digest in sorted(self._digests.items())}


def mean_image_bytes(csvs: MirrorCsvs, set: str) -> float:
    """Return the mean size of a set's images in bytes, estimated from the sizes of some of its TARs.

    Where these are not available, it is that of the published archive.
    """
    mirror = csvs.mirror
    file = csvs.find(TRAIN if set == "train" else SOLUTION)
    try:
        tars = mirror.tar_count(set)
        sample = range(0, tars, -(-tars // _SAMPLED_TARS))
        total = sum(mirror.head(tar_path(set, tar))[0] for tar in sample) * tars / len(sample)
    except LandmarksError:
        return PUBLISHED_BYTES[set]
    images = 0 if file is None else pl.scan_csv(file, infer_schema=False, glob=False).select(pl.len()).collect().item()
    return total / images if images else PUBLISHED_BYTES[set]
