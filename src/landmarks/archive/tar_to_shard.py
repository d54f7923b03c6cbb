"""The work on one TAR: read its wanted images, prepare them, and write them as one shard with a table.

The table is written last and marks the shard as finished; a `fetch` that was killed repeats only TARs without one. The
work needs only its task and the output folder, so any thread, process or machine can do it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from landmarks.archive.locate import MEMBERS
from landmarks.archive.mirror import Mirror, tar_path
from landmarks.archive.tar import MAX_IMAGE_BYTES, HeaderError, TruncatedError
from landmarks.archive.transfer import (
    ChangedError,
    Contents,
    FetchedImage,
    Places,
    Report,
    Span,
    WrongMd5Error,
    membership_test,
    request_images,
    stream_images,
)
from landmarks.dataset.groups import perceptual_hash
from landmarks.dataset.images import DECODER, ImageError, prepare
from landmarks.dataset.shards import ShardWriter
from landmarks.dataset.storing import PIXELS_IN_FLIGHT, pixels_decoded
from landmarks.support.disk import remove_file
from landmarks.support.errors import LandmarksError
from landmarks.support.remote_files import RangeResponse
from landmarks.support.requests import AbsentError, MirrorError, RangesRefusedError
from landmarks.support.tables import open_array, read_metadata, read_table, write_table

STREAMED_TRIES = 3
"""How often a TAR that arrives damaged is streamed."""

MAX_ALIKE = 5
"""The most remarks of one kind about a TAR; further ones are counted."""

PART = {
    "image_id": pl.String,
    "offset": pl.UInt64,
    "length": pl.UInt32,
    "width": pl.UInt32,
    "height": pl.UInt32,
    "phash": pl.UInt64,
    "why": pl.String,  # not null: the image is rejected
}
"""Columns of a finished TAR's table, in the shard's order."""


@dataclass(frozen=True)
class TarTask:
    """The work on one TAR. With `places`, byte ranges are requested; without, the whole TAR is streamed."""

    out: Path
    mirror: Mirror
    set: str
    tar: int
    max_side: int
    digest: str  # of the selection and everything else that decides the result
    size: int | None = None  # of the TAR when it was indexed
    etag: str | None = None
    places: Places | None = None
    spans: tuple[Span, ...] = ()

    @property
    def name(self) -> str:
        """The TAR's name, which is also the shard's."""
        return f"images_{self.tar:03d}.tar"

    @property
    def part(self) -> Path:
        """The table that marks this TAR as done."""
        return parts_folder(self.out) / f"images_{self.tar:03d}.parquet"


@dataclass(frozen=True)
class Outcome:
    """The result for one TAR. With `failure`, it contributes nothing, and `lost` are the wanted ids seen in it."""

    tar: int
    images: int = 0
    rejected: int = 0
    failure: str = ""
    lost: tuple[str, ...] = ()
    remarks: tuple[str, ...] = field(default=())


def parts_folder(out: Path) -> Path:
    """Return the folder of the finished TARs' tables."""
    return out / ".parts"


def wanted_file(out: Path) -> Path:
    """Return the file of the sorted ids of all selected images, as integers."""
    return parts_folder(out) / "wanted.npy"


def members_file(task: TarTask) -> Path:
    """Return the file of the places of all images in a streamed TAR, from which a byte index is made."""
    return task.part.with_suffix(".members.parquet")


def tar_to_shard(task: TarTask, report: Report) -> Outcome:
    """Fetch one TAR's wanted images into one shard, unless that is already done.

    A TAR that the mirror does not deliver is an outcome with a `failure`; a full disk raises an error.
    """
    finished = finished_part(task)
    if finished is not None:
        return _outcome(task, finished)
    remarks: list[str] = []
    if task.places is not None:
        try:
            return _write(task, _by_ranges(task, report), None, report, remarks)
        except (ChangedError, RangesRefusedError) as error:
            remarks.append(f"{error}; the whole TAR is streamed instead")
        except MirrorError as error:
            return Outcome(task.tar, failure=str(error), lost=_all_ids(task.places), remarks=tuple(remarks))
    seen: set[str] = set()
    causes: set[str] = set()
    for attempt in range(1, STREAMED_TRIES + 1):
        contents = Contents()
        try:
            return _write(task, _by_streaming(task, contents, report), contents, report, remarks)
        except (WrongMd5Error, TruncatedError, HeaderError, RangesRefusedError) as error:
            failure = str(error)
            causes.add(failure)
            if attempt < STREAMED_TRIES:
                remarks.append(f"{naming_tar(task, failure)}; streamed again")
        except MirrorError as error:
            failure = str(error)
            break
        finally:
            seen.update(contents.ids)
    if len(causes) == 1 and "wrong MD5" in failure:
        failure += (
            ", the same each time: the mirror's file is another than the published one. With a byte index"
            " (landmarks locate) --method ranges takes single images, each of which is looked at"
        )
    is_wanted = membership_test(open_array(wanted_file(task.out)))
    lost = tuple(sorted(id for id in seen if is_wanted(id)))
    return Outcome(task.tar, failure=failure, lost=lost, remarks=tuple(remarks))


def naming_tar(task: TarTask, failure: str) -> str:
    """Return `failure` with the name of the TAR before it, if it does not say which TAR it is about."""
    return failure if task.name in failure else f"{task.set}/{task.name}: {failure}"


def finished_part(task: TarTask) -> pl.DataFrame | None:
    """Return the table of a TAR that is done, else None: made for the same digest, and with its shard complete."""
    try:
        metadata = read_metadata(task.part)
        shard = task.out / "shards" / task.name
        shard_bytes = shard.stat().st_size if shard.exists() else 0
        if metadata.get("digest") != task.digest or int(metadata.get("shard_bytes", "-1")) != shard_bytes:
            return None
        return read_table(task.part, PART)
    except LandmarksError:
        return None


def _all_ids(places: Places) -> tuple[str, ...]:
    return tuple(places.id_of(row) for row in range(len(places)))


def _by_ranges(task: TarTask, report: Report) -> Iterator[FetchedImage]:
    assert task.places is not None

    def is_indexed_tar(answer: RangeResponse) -> bool:
        return task.size in (None, answer.size) and (task.etag is None or task.etag == answer.etag)

    return request_images(
        task.mirror,
        tar_path(task.set, task.tar),
        places=task.places,
        spans=task.spans,
        is_indexed_tar=is_indexed_tar,
        report=report,
    )


def _by_streaming(task: TarTask, contents: Contents, report: Report) -> Iterator[FetchedImage]:
    wanted = membership_test(open_array(wanted_file(task.out)))
    path = tar_path(task.set, task.tar)
    try:
        md5 = task.mirror.md5(task.set, task.tar)
    except AbsentError as error:
        raise MirrorError(f"{error}; without it {task.name} cannot be checked") from error
    return stream_images(task.mirror, path, md5=md5, wanted=wanted, contents=contents, report=report)


def _write(
    task: TarTask, images: Iterator[FetchedImage], contents: Contents | None, report: Report, remarks: list[str]
) -> Outcome:
    """Write the images to the shard, and then the table that marks the TAR as done."""
    remove_file(task.part)
    rows: list[tuple[str, int | None, int | None, int | None, int | None, int | None, str | None]] = []
    kept: set[str] = set()
    rejected: dict[str, str] = {}
    twice: dict[str, str] = {}
    shard = task.out / "shards" / task.name
    with ExitStack() as stack:
        writer: ShardWriter | None = None
        for image in images:
            if image.id in kept:
                twice[image.id] = f"{task.name} holds {image.id} twice; the first is kept"
                continue
            try:
                data, width, height, phash = _prepare(task, image)
            except ImageError as error:
                rejected.setdefault(image.id, str(error))
                continue
            kept.add(image.id)
            if rejected.pop(image.id, None) is not None:
                twice[image.id] = f"{task.name} holds {image.id} twice; the first, which is damaged, is not kept"
            if writer is None:
                writer = stack.enter_context(ShardWriter(shard))
            offset, length = writer.add(image.id, data)
            rows.append((image.id, offset, length, width, height, phash, None))
            report(0, 1)
    if writer is None:
        remove_file(shard)
    rows += [(id, None, None, None, None, None, why) for id, why in rejected.items()]
    remarks += _first_few(list(twice.values()), f"{task.name} holds {{}} more images twice")
    if contents is not None:
        remarks += _remarks_on(task, contents)
        _write_members(task, contents)
    shard_bytes = shard.stat().st_size if writer is not None else 0
    table = pl.DataFrame(rows, schema=PART, orient="row")
    metadata = {"digest": task.digest, "shard_bytes": shard_bytes, "decoder": DECODER, "remarks": json.dumps(remarks)}
    write_table(task.part, table, **metadata)
    return _outcome(task, table, tuple(remarks))


def _outcome(task: TarTask, table: pl.DataFrame, remarks: tuple[str, ...] = ()) -> Outcome:
    images = table["why"].null_count()
    return Outcome(task.tar, images, len(table) - images, remarks=remarks)


def _prepare(task: TarTask, image: FetchedImage) -> tuple[bytes, int, int, int]:
    """Return what is stored of an image: JPEG bytes, width, height and perceptual hash."""
    if image.data is None:
        raise ImageError(image.why)
    try:
        return _decode(image.data, task.max_side)
    except ImageError:
        if task.places is None or not image.data:  # reading again would not help: the TAR's MD5 covers these bytes
            raise
        again = _read_again(task, image.id)
        if again == image.data:
            raise
        return _decode(again, task.max_side)


def _decode(jpeg: bytes, max_side: int) -> tuple[bytes, int, int, int]:
    with PIXELS_IN_FLIGHT.taking(pixels_decoded(jpeg, max_side)):
        data, image = prepare(jpeg, max_side)
    return data, image.shape[1], image.shape[0], perceptual_hash(image)


def _read_again(task: TarTask, id: str) -> bytes:
    assert task.places is not None
    row = int(np.flatnonzero(task.places.ids == np.uint64(int(id, 16)))[0])
    start, length = int(task.places.offsets[row]), int(task.places.lengths[row])
    return bytes(task.mirror.range(tar_path(task.set, task.tar), start, start + length).data)


def _remarks_on(task: TarTask, contents: Contents) -> list[str]:
    remarks = [f"{task.name} has a damaged header at byte {position}" for position in contents.damaged[: MAX_ALIKE + 1]]
    remarks = _first_few(remarks, f"{task.name} has {{}} more damaged headers", len(contents.damaged))
    if contents.truncated:
        remarks.append(f"{task.name}: {contents.truncated}, as it was published")
    climbing = [name for name in contents.other_members if ".." in name or name.startswith("/")]
    if climbing:
        remarks.append(f"{task.name} holds members whose names climb out of it, such as {climbing[0]!r}; not kept")
    return remarks


def _first_few(remarks: list[str], more: str, count: int | None = None) -> list[str]:
    """Return the first of `count` remarks that are alike, and how many `more` there are."""
    rest = (len(remarks) if count is None else count) - MAX_ALIKE
    return remarks if rest <= 1 else [*remarks[:MAX_ALIKE], more.format(f"{rest:,}")]


def _write_members(task: TarTask, contents: Contents) -> None:
    rows = zip(contents.ids, contents.offsets, contents.sizes, strict=True)
    sound = [(int(id, 16), offset, size) for id, offset, size in rows if size <= MAX_IMAGE_BYTES]
    table = pl.DataFrame(sound, MEMBERS, orient="row")
    write_table(members_file(task), table, damaged=len(contents.damaged) + bool(contents.truncated))
