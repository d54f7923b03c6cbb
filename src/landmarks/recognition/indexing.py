"""The verb `index`: turns images of any number of datasets into vectors, among which `search` finds the nearest.

    INDEX/
      index.json          which run, how vectors are made, which files are valid; written last
      whitening.npz       from the run's directions to vectors (see `vectors.py`)
      images-N.parquet    the images of part N, row by row, with their landmarks
      vectors-N.npy       their vectors, float16 (n, D)
      removed-N.parquet   rows of removed images, which searches skip
      codes-N.faiss       only beyond `MOST_EXACT` images: an inverted file, mapped into memory

An index only grows by parts, and searches skip what is removed, so nothing is ever rebuilt. A part whose writing was
interrupted is not named in `index.json`, and is written again.
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
from landmarks.dataset.shards import require_images
from landmarks.recognition.recogniser import Recogniser, load
from landmarks.recognition.vectors import (
    MOST_EXACT,
    StoredVectors,
    Whitening,
    add_to,
    directions,
    inverted_file,
    open_codes,
    whitening_of,
)
from landmarks.support.console import note, plural, progress
from landmarks.support.errors import LandmarksError, StaleError, UsageError
from landmarks.support.files import held, read_record, refuse_foreign, write_record, written_whole
from landmarks.support.places import Place, paths_of
from landmarks.support.systems import readable
from landmarks.support.tables import array_writer, open_array, read_table, write_table
from landmarks.training.loader import batches, normalised
from landmarks.training.own_data import location_record, recorded_locations
from landmarks.training.run import Run, open_run

RECORD = "index.json"

DIMENSIONS = 256
"""Length of the vectors, unless the features are shorter."""

LEARNED_ON = 20_000
"""Most images that the whitening is learned on."""

BATCH_SIZE = 32

INDEXED = {
    "image_id": pl.String,
    "landmark_id": pl.Int64,  # null: no known landmark
    "name": pl.String,
    "data": pl.String,  # the dataset's folder
}
"""Columns of `images-N.parquet`, in the order of the vectors of part N."""


@dataclass(frozen=True)
class Index:
    """An opened index: its tables in memory, its vectors on disk."""

    folder: Path
    record: dict[str, Any]
    images: pl.DataFrame  # `INDEXED`, of all parts
    removed: pl.DataFrame  # one column, row
    vectors: StoredVectors
    whitening: Whitening | None
    codes: Any = field(default=None, repr=False)

    @property
    def answered(self) -> pl.DataFrame:
        """The images that were not removed, with their `row`."""
        return self.images.with_row_index("row").join(self.removed.cast({"row": pl.UInt32}), on="row", how="anti")

    @property
    def landmarks(self) -> int:
        """The number of landmarks shown, counted by name: two datasets may give one id to two landmarks."""
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
    """Add the images of the dataset folders `data` to the index `out`, which is created for `run` if it does not exist.

    An existing index knows its `run`. Images that it holds already are skipped. The images with the ids `remove`, of
    whatever dataset, are removed first. If interrupted, call it again to continue. Raises `LandmarksError` for an id
    that is not in the index, and `StaleError` when the index was made with another network.
    """
    folder, places = Path(out), paths_of(data)
    if dimensions < 1:
        raise UsageError("vectors need a length", received=dimensions, expected="1 or more")
    if not places and not remove:
        raise UsageError("nothing to add to an index and nothing to remove", expected="dataset folders, or --remove ID")
    exists = (folder / RECORD).is_file()
    if run is None and not exists:
        raise UsageError(f"there is no index {out} yet", expected="--run RUN, whose network looks at the images")
    refuse_foreign(folder, (RECORD,), "index")
    datasets = [open_dataset(place) for place in places]
    with held(folder):
        if run is not None and not exists:
            _create(folder, open_run(run), dimensions)
        current = open_index(folder)
        if remove:
            current = _without(current, [remove] if isinstance(remove, str) else remove)
        if datasets:
            opened = run_of(current) if run is None else open_run(run)
            _require_same_network(current, opened)
            recogniser = load(opened, device=device)
            for dataset in datasets:
                current = _with_dataset(current, dataset, recogniser)
    return current


def open_index(folder: Place) -> Index:
    """Open an index folder. Raises `LandmarksError` if it is no index, is damaged, or is of a newer version."""
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
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"  # numpy and faiss raise several types
        raise LandmarksError(
            f"{folder} is not as it was written ({why})", way_out="delete it, and index again"
        ) from error


def _opened(folder: Path, record: dict[str, Any]) -> Index:
    """Return the index in `folder`, which may come from anybody; a damaged one raises any of several exceptions."""
    numbers = range(int(record["parts"]))
    arrays = tuple(open_array(folder / f"vectors-{number}.npy") for number in numbers)
    tables = [read_table(folder / f"images-{number}.parquet", INDEXED) for number in numbers]
    images = pl.concat([pl.DataFrame(schema=INDEXED), *tables])
    if sum(map(len, arrays)) != len(images):
        raise ValueError("it holds other vectors than images")
    removed = pl.DataFrame(schema={"row": pl.Int64})
    if record.get("removed") is not None:
        removed = read_table(_own_file(folder, record["removed"]), {"row": pl.Int64})
    whitening = None
    if numbers:
        with np.load(folder / "whitening.npz", allow_pickle=False) as arrays_by_name:
            whitening = Whitening(arrays_by_name["mean"], arrays_by_name["matrix"])
        widths = {array.shape[1:] for array in arrays} | {whitening.matrix.shape[1:]}
        if len(widths) > 1 or whitening.mean.shape != whitening.matrix.shape[:1]:
            raise ValueError("its vectors are of several lengths")
    codes = None
    if record.get("codes") is not None:
        codes = open_codes(_own_file(folder, record["codes"]))
    data = record.get("data") or {}
    locations = (record["run"], data, *(data.values() if isinstance(data, dict) else ()))
    if not all(isinstance(location, dict) for location in locations) or not isinstance(record["model"], str):
        raise TypeError("it does not say which run it was made with, or where its datasets lie")
    return Index(folder, record, images, removed, StoredVectors(arrays), whitening, codes)


def _own_file(folder: Path, name: object) -> Path:
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError("it names a file elsewhere")
    return folder / name


def _without(index: Index, image_ids: Sequence[str]) -> Index:
    chosen = index.answered.filter(pl.col("image_id").is_in(list(image_ids)))
    missing = set(image_ids) - set(chosen["image_id"])
    if missing:
        what = f"{plural(len(missing), 'image')} to remove not in {index.folder}"
        raise LandmarksError(what, received=sorted(missing)[0])
    if len(chosen) > len(set(image_ids)):
        note(f"{len(chosen)} images are taken out: some of these ids stand in several datasets")
    removed = pl.concat([index.removed, chosen.select(pl.col("row").cast(pl.Int64))]).sort("row")
    name = f"removed-{len(removed)}.parquet"
    write_table(index.folder / name, removed)
    _update_record(index, removed=name)
    return open_index(index.folder)


def run_of(index: Index) -> Run:
    """Return the run that an index was made with, beside it or at its recorded place.

    Raises `LandmarksError` when it is gone, and `StaleError` when it was trained again since.
    """
    location = index.record["run"]
    places = [
        place for place in recorded_locations(location, relative_to=index.folder) if (place / "run.json").is_file()
    ]
    if not places:
        raise LandmarksError(
            f"the run that {index.folder} was made with is not at {location.get('folder')} any more",
            way_out="bring it back, or move run and index together",
        )
    run = open_run(places[0])
    _require_same_network(index, run)
    return run


def _require_same_network(index: Index, run: Run) -> None:
    if index.record["model"] != run.digest:
        raise StaleError(
            f"{index.folder} was made with another network than {run.name}'s", way_out="index into another folder"
        )


def _create(folder: Path, run: Run, dimensions: int) -> None:
    """Write the record of an empty index, the first file in its folder."""
    record = {
        "run": location_record(run.folder, relative_to=folder),
        "model": run.digest,
        "dimensions": dimensions,
        "parts": 0,
    }
    write_record(folder / RECORD, record, verb="index", inputs="")


def _update_record(index: Index, **changes: object) -> None:
    record = {name: value for name, value in index.record.items() if name not in ("format", "verb", "version")}
    inputs = str(record.pop("inputs", ""))
    write_record(index.folder / RECORD, {**record, **changes}, verb="index", inputs=inputs)


def _with_dataset(index: Index, dataset: Dataset, recogniser: Recogniser) -> Index:
    place = readable(dataset.folder.resolve())
    images = dataset.split("all").join(dataset.labels.select("landmark_id", "name"), on="landmark_id", how="left")
    location = {**location_record(dataset.folder, relative_to=index.folder), "digest": dataset.record.get("digest")}
    locations: dict[str, Any] = index.record.get("data") or {}
    same_digest = [
        data for data, recorded in locations.items() if recorded.get("digest") == location["digest"] is not None
    ]
    indexed = index.answered.filter(pl.col("data").is_in([place, *same_digest]))
    new = images.join(indexed, on="image_id", how="anti").sort("image_id")
    if len(new) < len(images):
        note(f"in {index.folder} already: {plural(len(images) - len(new), 'image')} of {dataset.folder}")
    if not len(new):
        return index
    require_images(dataset, new["shard"], "index")
    number, whitening = int(index.record["parts"]), index.whitening
    path, pending, done = index.folder / f"vectors-{number}.npy", list[Any](), 0
    with written_whole(path) as aside, contextlib.ExitStack() as opened:
        for batch, left in _directions(dataset, new, recogniser):
            pending.append(batch)
            if whitening is None:
                if left and sum(map(len, pending)) < LEARNED_ON:
                    continue
                whitening = whitening_of(np.concatenate(pending), int(index.record["dimensions"]))
                with written_whole(index.folder / "whitening.npz") as beside, open(beside, "wb") as file:
                    np.savez(file, mean=whitening.mean, matrix=whitening.matrix)
            if not done:
                shape = (len(new), whitening.matrix.shape[1])
                write = opened.enter_context(array_writer(aside, np.float16, shape))
            for rows in pending:
                write(np.arange(done, done + len(rows)), whitening.apply(rows))
                done += len(rows)
            pending.clear()
    table = new.select("image_id", "landmark_id", "name", data=pl.lit(place))
    write_table(index.folder / f"images-{number}.parquet", table.cast(INDEXED))  # type: ignore[arg-type]
    vectors = StoredVectors((*index.vectors.arrays, open_array(path)))
    codes = _write_codes(index, vectors)
    _update_record(index, parts=number + 1, codes=codes, data={**locations, place: location})
    return open_index(index.folder)


def _write_codes(index: Index, vectors: StoredVectors) -> str | None:
    """Extend or create the inverted file so that it covers `vectors`; return its name, or None if none is needed."""
    if len(vectors) <= MOST_EXACT:
        return None
    if index.codes is None:
        codes = inverted_file(vectors)
    else:
        codes = faiss.read_index(str(index.folder / str(index.record["codes"])))
        add_to(codes, vectors, codes.ntotal)
    name = f"codes-{len(vectors)}.faiss"
    with written_whole(index.folder / name) as aside:
        faiss.write_index(codes, str(aside))
    return name


def _directions(
    dataset: Dataset, images: pl.DataFrame, recogniser: Recogniser
) -> Iterator[tuple[NDArray[np.float16], int]]:
    """Yield the directions `(n, C)` of each batch of images, and how many images are left after it."""
    import torch

    network, device, left = recogniser.trained, recogniser.device or torch.device("cpu"), len(images)
    preprocessing = network.preprocessing
    with torch.no_grad(), progress(f"indexing {dataset.folder}", total=len(images)) as advance:
        for batch in batches(dataset, images, preprocessing, batch_size=BATCH_SIZE):
            pixels = normalised(batch.pixels, preprocessing, device)
            left -= len(batch.ids)
            yield directions(network.features(pixels).float().cpu().numpy()).astype(np.float16), left
            advance(len(batch.ids))
