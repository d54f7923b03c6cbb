"""A small mirror of made-up images, with TARs and MD5 files, and selections of them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import simplejpeg

from landmarks.support.requests import Patience
from landmarks.support.tables import write_table

HASTY = Patience(tries=6, first_wait=0.01, longest_wait=0.05, connect_seconds=600, stall_seconds=600, connections=16)
"""Patience for servers on this machine: short waits, but answers may take long where the processors are busy."""

STALLING = replace(HASTY, stall_seconds=0.3, tries=1000)
"""Patience for servers that fall silent: each silence is given up soon, whether it is the server's or the machine's."""


def image(seed: int, width: int = 200, height: int = 150) -> bytes:
    """Return a JPEG of coloured patches that no other seed gives."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = np.kron(small, np.ones((-(-height // 6), -(-width // 8), 1), np.uint8))[:height, :width]
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=85, colorspace="RGB"))


def made_up_id(seed: int) -> str:
    """Return 16 hex digits that look as if they were drawn at random."""
    return hashlib.blake2b(str(seed).encode(), digest_size=8).hexdigest()


def member_name(id: str) -> str:
    """Return the published name of an image in its TAR."""
    return f"{id[0]}/{id[1]}/{id[2]}/{id}.jpg"


def tar_of(members: Sequence[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> bytes:
    """Return an uncompressed TAR of `(name, data)`."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return whole.getvalue()


def put_tar(folder: Path, tar: int, data: bytes, set: str = "train") -> None:
    """Write a TAR and its MD5 file into a mirror."""
    path = folder / set / f"images_{tar:03d}.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    md5_file = folder / "md5sum" / set / f"md5.images_{tar:03d}.txt"
    md5_file.parent.mkdir(parents=True, exist_ok=True)
    md5_file.write_text(f"{hashlib.md5(data).hexdigest()}  {path.name}\n")


def make_mirror(folder: Path, tars: int = 4, each: int = 10) -> list[str]:
    """Write a mirror of `tars` × `each` images; return their ids, in the order of the TARs."""
    ids = [made_up_id(seed) for seed in range(tars * each)]
    for tar in range(tars):
        seeds = range(tar * each, (tar + 1) * each)
        put_tar(folder, tar, tar_of([(member_name(ids[seed]), image(seed)) for seed in seeds]))
    return ids


def make_selection(path: Path, mirror: Path | str, ids: Sequence[str], set: str = "train") -> Path:
    """Write a selection of `ids`, of three landmarks in turn."""
    landmark_ids = [100 + position % 3 for position in range(len(ids))]
    table = pl.DataFrame({"image_id": ids, "landmark_id": landmark_ids}).sort("image_id")
    table = table.with_columns(name=pl.format("Landmark {}", "landmark_id"))
    write_table(path, table, mirror=str(mirror), set=set, rule="by hand", digests="{}", landmarks=3)
    return path
