"""The verbs `index` and `search`: which images of any number of datasets look most like these?

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

import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.images import decode, encode
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.naming import with_digest
from landmarks.dataset.shards import ImageReader
from landmarks.dataset.sources import find_images
from landmarks.recognition.directions import directions
from landmarks.recognition.recogniser import Recogniser, load
from landmarks.recognition.vectors import (
    MOST_EXACT,
    Parts,
    Whitening,
    add_to,
    inverted_file,
    neighbours,
    open_codes,
    whitening_of,
)
from landmarks.support.console import note, plural, progress
from landmarks.support.errors import LandmarksError, StaleError, UsageError, naming_the_extra
from landmarks.support.files import held, read_record, refuse_foreign, write_record, written_whole
from landmarks.support.systems import Place, paths_of, readable
from landmarks.support.tables import read_table, write_table
from landmarks.training.loader import batches, normalised
from landmarks.training.own_data import places_of, whereabouts
from landmarks.training.run import Run, open_run

RECORD = "index.json"

DIMENSIONS = 256
"""Length of the vectors, where the features are not shorter."""

LEARNED_ON = 20_000
"""Images that the whitening is learned on, at most."""

BATCH_SIZE = 32

VERIFIED = 10
"""Images that are compared point by point, of those that look most alike."""

CONVINCING = 8
"""Points that have to agree before an image comes before those that merely look alike."""

INDEXED = {
    "image_id": pl.String,
    "landmark_id": pl.Int64,  # null: nothing known
    "name": pl.String,
    "data": pl.String,  # the dataset's folder
}
"""Columns of `images-N.parquet`, row by row as the vectors of part N."""

FOUND = {
    "path": pl.String,  # with \x.. where a byte of it is no UTF-8
    "rank": pl.UInt32,  # from 1; null where the image could not be searched for
    "image_id": pl.String,
    "landmark_id": pl.Int64,
    "name": pl.String,
    "cosine": pl.Float32,
    "inliers": pl.UInt32,  # points that agree, see `verify.py`; null: not compared
    "data": pl.String,
    "problem": pl.String,
}
"""Columns of the table that `search` returns, images in the order they were named, nearest first."""


@dataclass(frozen=True)
class Index:
    """An index folder, its tables in memory and its vectors on disk."""

    folder: Path
    record: dict[str, Any]
    images: pl.DataFrame  # `INDEXED`, all parts together
    removed: pl.DataFrame  # row
    vectors: Parts
    whitening: Whitening | None
    codes: Any = field(default=None, repr=False)

    @property
    def answered(self) -> pl.DataFrame:
        """Return the images that were not removed, with their `row`."""
        return self.images.with_row_index("row").join(self.removed.cast({"row": pl.UInt32}), on="row", how="anti")

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
    arrays = tuple(np.load(folder / f"vectors-{number}.npy", mmap_mode="r") for number in numbers)
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
    return Index(folder, record, images, removed, Parts(arrays), whitening, codes)


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
    removed = pl.concat([there.removed, chosen.select(pl.col("row").cast(pl.Int64))]).sort("row")
    name = f"removed-{len(removed)}.parquet"
    write_table(there.folder / name, removed)
    _write(there, removed=name)
    return open_index(there.folder)


def search(
    index: Place,
    images: Place | Sequence[Place],
    *,
    top: int = 10,
    verify: bool = False,
    drawings: Place | None = None,
    device: str = "auto",
) -> pl.DataFrame:
    """Return the `top` images of `index` that look most like each of `images` (files and folders), see `FOUND`.

    With `verify` the best `VERIFIED` are compared point by point, and those that agree in more points come first;
    `drawings` is a folder for a drawing of the best one beside each image, with the points that agree. An image that
    cannot be decoded has one row that says why. Raises `LandmarksError` when the index is empty, or its run is gone.
    """
    if top < 1:
        raise UsageError("that many images cannot be found", received=top, expected="1 or more")
    if drawings is not None and not verify:
        raise UsageError("drawings show points that agree", received="no --verify", way_out="add --verify")
    there = open_index(index)
    if there.whitening is None or not len(there):
        raise LandmarksError(f"{index} holds no images", way_out=f"add some with: landmarks index DATA -o {index}")
    recogniser = load(run_of(there), device=device)
    paths = find_images(images)
    drawn = {} if drawings is None else _places_of_drawings(Path(drawings), paths)
    reader = _Images(there)
    rows: list[tuple[Any, ...]] = []
    with progress("searching", total=len(paths)) as advance:
        for path in paths:
            told = readable(path)
            try:
                vector = there.whitening.apply(directions(recogniser.embed(path)))
            except LandmarksError as error:
                rows.append((told, *[None] * 7, str(error)))
            else:
                cosines, places = found_in(there, vector, top)
                kept = places[0] >= 0
                near = there.images[places[0][kept]]
                near = near.with_columns(
                    cosine=pl.Series(cosines[0][kept].clip(-1, 1)), inliers=pl.lit(None, pl.UInt32)
                )
                if verify:
                    near = _verified(near, path, reader, drawn.get(path))
                for rank, one in enumerate(near.select(list(FOUND)[2:-1]).iter_rows(), 1):
                    rows.append((told, rank, *one, None))
            advance(1)
    return pl.DataFrame(rows, schema=FOUND, orient="row")


DRAWINGS = "drawings.json"
"""Stands in a folder of drawings, so that nothing else is replaced by one."""


def _places_of_drawings(folder: Path, paths: Sequence[Path]) -> dict[Path, Path]:
    """Return where the drawing of each image is written: two of one name are two."""
    refuse_foreign(folder, (DRAWINGS,), "drawings")
    write_record(folder / DRAWINGS, {}, verb="search")
    named = Counter(path.stem for path in paths)
    names = {path: path.stem if named[path.stem] == 1 else with_digest(path.stem, str(path)) for path in paths}
    return {path: folder / f"{name}.jpg" for path, name in names.items()}


@dataclass(frozen=True)
class _Images:
    """The indexed images themselves, by their datasets, each opened once."""

    there: Index
    opened: dict[str, tuple[ImageReader, dict[str, tuple[str, int, int]]]] = field(default_factory=dict)

    def pixels(self, data: str, image_id: str) -> NDArray[np.uint8]:
        if data not in self.opened:
            dataset = _dataset_of(self.there, data)
            table = dataset.images.select("image_id", "shard", "offset", "length")
            self.opened[data] = ImageReader(dataset), {row[0]: row[1:] for row in table.iter_rows()}
        reader, places = self.opened[data]
        return decode(reader.read(*places[image_id]))


def _dataset_of(there: Index, data: str) -> Dataset:
    """Return the dataset that was indexed as `data`, beside the index or where it was; raise when it is gone."""
    told = (there.record.get("data") or {}).get(data) or {"folder": data}
    for place in places_of(told, beside=there.folder):
        if (place / "dataset.json").is_file():
            return open_dataset(place)
    raise LandmarksError(
        f"the dataset {data}, whose images are to be compared, is not there any more",
        way_out="bring it back, or leave out --verify",
    )


def _verified(near: pl.DataFrame, path: Path, reader: _Images, drawing: Path | None) -> pl.DataFrame:
    """Return `near` with the points in which its first `VERIFIED` agree with the image at `path`, most first."""
    with naming_the_extra("comparing images point by point"):
        from landmarks.recognition.verify import drawn, local_features, matched
    asked = local_features(decode(path.read_bytes()))
    counts: list[int | None] = [None] * len(near)
    best: tuple[int, Any, Any] = (-1, None, None)
    for number, one in enumerate(near.head(VERIFIED).iter_rows(named=True)):
        other = local_features(reader.pixels(one["data"], one["image_id"]))
        match = matched(asked, other)
        counts[number] = len(match)
        if len(match) > best[0]:
            best = (len(match), other, match)
    if drawing is not None and best[0] >= 0:
        with written_whole(drawing) as aside:
            aside.write_bytes(encode(drawn(asked, best[1], best[2])))
    table = near.with_columns(inliers=pl.Series(counts, dtype=pl.UInt32))
    first = pl.when(pl.col("inliers") >= CONVINCING).then("inliers").otherwise(0)
    return table.sort(first, descending=True, maintain_order=True)


def found_in(there: Index, vectors: NDArray[np.float32], top: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return cosines and rows `(Q, top)` of the images of an index nearest to `vectors` `(Q, D)`."""
    gone = there.removed["row"].to_numpy()
    return neighbours(vectors, there.vectors, top, index=there.codes, removed=gone)


def run_of(there: Index) -> Run:
    """Return the run that an index was made with, beside it or where it was; raise when it is gone or another."""
    told = there.record["run"]
    places = [place for place in places_of(told, beside=there.folder) if (place / "run.json").is_file()]
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
    record = {"run": whereabouts(run.folder, beside=folder), "model": run.digest, "dimensions": dimensions, "parts": 0}
    write_record(folder / RECORD, record, verb="index", inputs="")


def _write(there: Index, **changes: object) -> None:
    record = {name: value for name, value in there.record.items() if name not in ("format", "verb", "version")}
    inputs = str(record.pop("inputs", ""))
    write_record(there.folder / RECORD, {**record, **changes}, verb="index", inputs=inputs)


def _with_dataset(there: Index, dataset: Dataset, recogniser: Recogniser) -> Index:
    place = readable(dataset.folder.resolve())
    images = dataset.split("all").join(dataset.labels.select("landmark_id", "name"), on="landmark_id", how="left")
    about = {**whereabouts(dataset.folder, beside=there.folder), "digest": dataset.record.get("digest")}
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
    with written_whole(path) as aside:
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
                np.lib.format.open_memmap(aside, mode="w+", dtype=np.float16, shape=shape)
            for rows in waiting:  # mapped for each batch anew: Windows renames no file that is still mapped
                np.lib.format.open_memmap(aside, mode="r+")[done : done + len(rows)] = whitening.apply(rows)
                done += len(rows)
            waiting.clear()
    table = fresh.select("image_id", "landmark_id", "name", data=pl.lit(place))
    write_table(there.folder / f"images-{number}.parquet", table.cast(INDEXED))  # type: ignore[arg-type]
    parts = Parts((*there.vectors.arrays, np.load(path, mmap_mode="r")))
    _write(there, parts=number + 1, codes=_codes(there, parts), data={**earlier, place: about})
    return open_index(there.folder)


def _codes(there: Index, parts: Parts) -> str | None:
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
