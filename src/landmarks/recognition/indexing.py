"""The verb `index`: images of any number of datasets are made vectors, among which `search` finds the nearest.

    INDEX/
      index.json          which run, how vectors are made, which files are in force: written last
      whitening.npz       from the run's directions to vectors (see `vectors.py`)
      images-N.parquet    the images of part N, row by row, with their landmarks
      vectors-N.npy       their vectors, float16 (n, D)
      removed-N.parquet   rows that are not answered any more
      codes-N.faiss       only beyond `MOST_EXACT` images: an inverted file, mapped into memory

An index only grows by parts, and what is removed is passed by, so nothing is built anew. A part whose writing was
killed is not named in `index.json`, and is written again.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.recognition.directions import directions
from landmarks.recognition.recogniser import Recogniser, load
from landmarks.recognition.vectors import (
    MOST_EXACT,
    StoredVectors,
    Whitening,
    add_to,
    inverted_file,
    open_codes,
    whitening_of,
)
from landmarks.support.arrays import array_writer, mapped
from landmarks.support.console import note, plural, progress
from landmarks.support.errors import LandmarksError, StaleError, UsageError
from landmarks.support.files import held, read_record, refuse_foreign, write_record, written_whole
from landmarks.support.places import Place, paths_of
from landmarks.support.systems import readable
from landmarks.support.tables import read_table, write_table
from landmarks.training.loader import batches, normalised
from landmarks.training.own_data import location_record, recorded_locations
from landmarks.training.run import Run, open_run

RECORD = "index.json"

DIMENSIONS = 256
"""Length of the vectors, where the features are not shorter."""

LEARNED_ON = 20_000
"""Images that the whitening is learned on, at most."""

BATCH_SIZE = 32

INDEXED = {
    "image_id": pl.String,
    "landmark_id": pl.Int64,  # null: nothing known
    "name": pl.String,
    "data": pl.String,  # the dataset's folder
}
"""Columns of `images-N.parquet`, row by row as the vectors of part N."""


@dataclass(frozen=True)
class Index:
    """An index folder, its tables in memory and its vectors on disk."""

    folder: Path
    record: dict[str, Any]
    images: pl.DataFrame  # `INDEXED`, all parts together
    removed: pl.DataFrame  # row
    vectors: StoredVectors
    whitening: Whitening | None
    codes: Any = field(default=None, repr=False)

    @property
    def answered(self) -> pl.DataFrame:
        """Return the images that were not removed, with their `row`."""
        return self.images.with_row_index("row").join(self.removed.cast({"row": pl.UInt32}), on="row", how="anti")

    @property
    def landmarks(self) -> int:
        """Return how many landmarks the images show, by name: two datasets may give one number to two landmarks."""
        named = pl.coalesce("name", pl.col("landmark_id").cast(pl.String)).drop_nulls()
        return int(self.answered.select(named.n_unique()).item())

    def __len__(self) -> int:
        return len(self.images) - len(self.removed)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        kind = "compared one by one" if self.codes is None else "an inverted file"
        return f"Index({self.folder}, {len(self):,} images, {kind})"


def index(
    data: Place | Sequence[Place],
    out: Place,
    *,
    run: Place | None = None,
    remove: str | Sequence[str] = (),
    dimensions: int = DIMENSIONS,
    device: str = "auto",
) -> Index:
    """Add the images of the dataset folders `data` to the index `out` of `run`, made now where there is none.

    Images that are in it already are passed by. An index that is there knows its `run`. The images `remove`, by their
    ids, are taken out first, whatever dataset they are of. Killed and called again, it goes on. Raises `LandmarksError`
    for an id that is not in it, `StaleError` when the index was made with another network.
    """
    folder, places = Path(out), paths_of(data)
    if dimensions < 1:
        raise UsageError("vectors need a length", received=dimensions, expected="1 or more")
    if not places and not remove:
        raise UsageError("nothing to add to an index and nothing to remove", expected="dataset folders, or --remove ID")
    is_there = (folder / RECORD).is_file()
    if run is None and not is_there:
        raise UsageError(f"there is no index {out} yet", expected="--run RUN, whose network looks at the images")
    refuse_foreign(folder, (RECORD,), "index")
    with held(folder):
        if run is not None and not is_there:
            _begin(folder, open_run(run), dimensions)
        there = open_index(folder)
        if remove:
            there = _without(there, [remove] if isinstance(remove, str) else remove)
        if places:
            opened = run_of(there) if run is None else open_run(run)
            _require_same(there, opened)
            recogniser = load(opened, device=device)
            for place in places:
                there = _with_dataset(there, open_dataset(place), recogniser)
    return there


def open_index(folder: Place) -> Index:
    """Open an index folder; raise `LandmarksError` when it is none, or was written by a newer version."""
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise LandmarksError(
            f"{folder} is no index", expected=f"a folder with {RECORD}, as landmarks index writes it",
            way_out="make one with: landmarks index DATA --run RUN -o INDEX",
        )  # fmt: skip
    record = read_record(folder / RECORD)
    try:
        return _opened(folder, record)
    except (KeyError, TypeError, ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"  # numpy and faiss have kinds of their own
        raise LandmarksError(
            f"{folder} is not as it was written ({why})", way_out="delete it, and index again"
        ) from error


def _opened(folder: Path, record: dict[str, Any]) -> Index:
    """Return the index in `folder`, which may be a stranger's; anything may be raised where it is not sound."""
    numbers = range(int(record["parts"]))
    arrays = tuple(mapped(folder / f"vectors-{number}.npy") for number in numbers)
    tables = [read_table(folder / f"images-{number}.parquet", INDEXED) for number in numbers]
    images = pl.concat([pl.DataFrame(schema=INDEXED), *tables])
    if sum(map(len, arrays)) != len(images):
        raise ValueError("it holds other vectors than images")
    removed = pl.DataFrame(schema={"row": pl.Int64})
    if record.get("removed") is not None:
        removed = read_table(_own_file(folder, record["removed"]), {"row": pl.Int64})
    whitening = None
    if numbers:
        with np.load(folder / "whitening.npz", allow_pickle=False) as kept:
            whitening = Whitening(kept["mean"], kept["matrix"])
        widths = {array.shape[1:] for array in arrays} | {whitening.matrix.shape[1:]}
        if len(widths) > 1 or whitening.mean.shape != whitening.matrix.shape[:1]:
            raise ValueError("its vectors are of several lengths")
    codes = None
    if record.get("codes") is not None:
        codes = open_codes(_own_file(folder, record["codes"]))
    data = record.get("data") or {}
    if not all(isinstance(told, dict) for told in (record["run"], data, *data.values())):
        raise TypeError("it does not say where its run and datasets lie")
    return Index(folder, record, images, removed, StoredVectors(arrays), whitening, codes)


def _own_file(folder: Path, name: object) -> Path:
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError("it names a file elsewhere")
    return folder / name


def _without(there: Index, image_ids: Sequence[str]) -> Index:
    chosen = there.answered.filter(pl.col("image_id").is_in(list(image_ids)))
    strange = set(image_ids) - set(chosen["image_id"])
    if strange:
        what = f"{plural(len(strange), 'image')} to remove not in {there.folder}"
        raise LandmarksError(what, received=sorted(strange)[0])
    if len(chosen) > len(set(image_ids)):
        note(f"{len(chosen)} images are taken out: some of these ids stand in several datasets")
    removed = pl.concat([there.removed, chosen.select(pl.col("row").cast(pl.Int64))]).sort("row")
    name = f"removed-{len(removed)}.parquet"
    write_table(there.folder / name, removed)
    _write(there, removed=name)
    return open_index(there.folder)


def run_of(there: Index) -> Run:
    """Return the run that an index was made with, beside it or where it was; raise when it is gone or another."""
    told = there.record["run"]
    places = [place for place in recorded_locations(told, beside=there.folder) if (place / "run.json").is_file()]
    if not places:
        raise LandmarksError(
            f"the run that {there.folder} was made with is not at {told.get('folder')} any more",
            way_out="bring it back, or move run and index together",
        )
    run = open_run(places[0])
    _require_same(there, run)
    return run


def _require_same(there: Index, run: Run) -> None:
    if there.record["model"] != run.digest:
        raise StaleError(
            f"{there.folder} was made with another network than {run.name}'s", way_out="index into another folder"
        )


def _begin(folder: Path, run: Run, dimensions: int) -> None:
    """Write down whose index a folder is, before anything else stands in it."""
    record = {
        "run": location_record(run.folder, beside=folder),
        "model": run.digest,
        "dimensions": dimensions,
        "parts": 0,
    }
    write_record(folder / RECORD, record, verb="index", inputs="")


def _write(there: Index, **changes: object) -> None:
    record = {name: value for name, value in there.record.items() if name not in ("format", "verb", "version")}
    inputs = str(record.pop("inputs", ""))
    write_record(there.folder / RECORD, {**record, **changes}, verb="index", inputs=inputs)


def _with_dataset(there: Index, dataset: Dataset, recogniser: Recogniser) -> Index:
    place = readable(dataset.folder.resolve())
    images = dataset.split("all").join(dataset.labels.select("landmark_id", "name"), on="landmark_id", how="left")
    about = {**location_record(dataset.folder, beside=there.folder), "digest": dataset.record.get("digest")}
    earlier: dict[str, Any] = there.record.get("data") or {}
    alike = [one for one, told in earlier.items() if told.get("digest") == about["digest"] is not None]
    known = there.answered.filter(pl.col("data").is_in([place, *alike]))
    fresh = images.join(known, on="image_id", how="anti").sort("image_id")
    if len(fresh) < len(images):
        note(f"{len(images) - len(fresh)} images of {dataset.folder} are in {there.folder} already")
    if not len(fresh):
        return there
    number, whitening = int(there.record["parts"]), there.whitening
    path, waiting, done = there.folder / f"vectors-{number}.npy", list[Any](), 0
    with written_whole(path) as aside, contextlib.ExitStack() as opened:
        for some, left in _directions(dataset, fresh, recogniser):
            waiting.append(some)
            if whitening is None:
                if left and sum(map(len, waiting)) < LEARNED_ON:
                    continue
                whitening = whitening_of(np.concatenate(waiting), int(there.record["dimensions"]))
                with written_whole(there.folder / "whitening.npz") as beside, open(beside, "wb") as file:
                    np.savez(file, mean=whitening.mean, matrix=whitening.matrix)
            if not done:
                shape = (len(fresh), whitening.matrix.shape[1])
                write = opened.enter_context(array_writer(aside, np.float16, shape))
            for rows in waiting:
                write(np.arange(done, done + len(rows)), whitening.apply(rows))
                done += len(rows)
            waiting.clear()
    table = fresh.select("image_id", "landmark_id", "name", data=pl.lit(place))
    write_table(there.folder / f"images-{number}.parquet", table.cast(INDEXED))  # type: ignore[arg-type]
    parts = StoredVectors((*there.vectors.arrays, mapped(path)))
    _write(there, parts=number + 1, codes=_codes(there, parts), data={**earlier, place: about})
    return open_index(there.folder)


def _codes(there: Index, parts: StoredVectors) -> str | None:
    """Write the inverted file of all `parts`, grown from the one that is there, and return its name; None: no need."""
    if len(parts) <= MOST_EXACT:
        return None
    if there.codes is None:
        codes = inverted_file(parts)
    else:
        codes = faiss.read_index(str(there.folder / str(there.record["codes"])))
        add_to(codes, parts, codes.ntotal)
    name = f"codes-{len(parts)}.faiss"
    with written_whole(there.folder / name) as aside:
        faiss.write_index(codes, str(aside))
    return name


def _directions(
    dataset: Dataset, images: pl.DataFrame, recogniser: Recogniser
) -> Iterator[tuple[NDArray[np.float16], int]]:
    """Yield directions `(n, C)` of images, batch by batch, and how many images are left after each."""
    import torch

    network, device, left = recogniser.trained, recogniser.device or torch.device("cpu"), len(images)
    preprocessing = network.preprocessing
    with torch.no_grad(), progress(f"indexing {dataset.folder}", total=len(images)) as advance:
        for batch in batches(dataset, images, preprocessing, batch_size=BATCH_SIZE):
            pixels = normalised(batch.pixels, preprocessing, device)
            left -= len(batch.ids)
            yield directions(network.features(pixels).float().cpu().numpy()).astype(np.float16), left
            advance(len(batch.ids))
