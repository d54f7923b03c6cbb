"""A dataset becomes folders of images again: the verb `unpack`.

What it writes is read well by people, fastai, timm and Keras, and `import` makes the same labels of it: folders are
named by landmark id, zeros in front, and name, so that they sort as our labels do; `labels.csv` beside them holds the
exact names.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

from landmarks.dataset.importing import in_parallel
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.naming import (
    LABELS_CSV,
    UNKNOWN,
    UNPACKED,
    folder_name,
    landmarks_of,
    safe_name,
    with_digest,
    write_labels_csv,
)
from landmarks.dataset.naming import identified_by as naming_identified_by
from landmarks.dataset.shards import ImageReader
from landmarks.dataset.sources import SUFFIXES
from landmarks.support.console import progress
from landmarks.support.disk import make_folder, remove_leftovers, require_free_disk
from landmarks.support.errors import LandmarksError, StaleError
from landmarks.support.files import held, read_record, refuse_foreign, write_record, written_whole
from landmarks.support.places import Place

_MARK = UNPACKED
_LONGEST = 200  # bytes of a name that every file system still takes with a suffix


def unpack(data: Place, out: Place) -> Path:
    """Write every image of a dataset as a file, in folders per split and landmark: `out/train/<landmark>/<id>.jpg`.

    Without a split there are no folders per split; images that show nothing known are in `_unknown`. Files appear
    whole, an unpacking that was killed goes on, and a folder that holds something else is refused.
    """
    dataset, out = open_dataset(data), Path(out)
    refuse_foreign(out, (_MARK,), "unpacked dataset")
    with held(out):
        if (out / _MARK).exists() and read_record(out / _MARK)["inputs"] != dataset.digest:
            raise StaleError(f"{out} was unpacked from another dataset or split", way_out="choose another folder")
        told = {"identified_by": naming_identified_by(dataset.record, dataset.labels)}
        write_record(out / _MARK, {"data": str(dataset.folder), **told}, verb="unpack", inputs=dataset.digest)
        places = _places(dataset, out)
        missing = [(place, row) for place, row in places if not place.exists() or place.stat().st_size != row["length"]]
        require_free_disk(out, sum(row["length"] for _, row in missing))
        for folder in {place.parent for place, _ in missing}:
            make_folder(folder)
            remove_leftovers(folder)
        reader = ImageReader(dataset)

        def write(item: tuple[Path, dict[str, Any]]) -> None:
            place, row = item
            with written_whole(place) as aside:
                aside.write_bytes(reader.read(row["shard"], row["offset"], row["length"]))

        with progress("unpacking", total=len(places)) as advance:
            advance(len(places) - len(missing))
            for _ in in_parallel(write, missing):
                advance()
    return out


def _places(dataset: Dataset, out: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return where each image goes, and its row; write `labels.csv`."""
    landmarks = landmarks_of(dataset.labels)
    digits = max((len(str(landmark.landmark_id)) for landmark in landmarks), default=1)
    folders = {landmark.landmark_id: folder_name(landmark, digits) for landmark in landmarks}
    write_labels_csv(out / LABELS_CSV, {folders[landmark.landmark_id]: landmark for landmark in landmarks})
    images = dataset.images.select("image_id", "landmark_id", "shard", "offset", "length")
    if dataset.splits is not None:
        images = images.join(dataset.splits, on="image_id", how="left")
    places: dict[str, tuple[Path, dict[str, Any]]] = {}
    for row in images.iter_rows(named=True):
        inside = Path(row.get("split") or "", folders.get(row["landmark_id"], UNKNOWN))
        suffix = Path(row["shard"]).suffix.lower()
        suffix = suffix if suffix in SUFFIXES else ".jpg"  # in a shard, and for whatever else calls itself an image
        place = out / inside / f"{safe_name(row['image_id'], _LONGEST)}{suffix}"
        if _one_file(place) in places:  # names that differ by case alone, or where they were cut
            place = out / inside / f"{with_digest(row['image_id'], row['image_id'])}{suffix}"
        if places.setdefault(_one_file(place), (place, row))[1] is not row:
            raise LandmarksError(f'two images would be written to "{place}"', received=f'the id "{row["image_id"]}"')
    return list(places.values())


def _one_file(place: Path) -> str:
    """Return what is the same for two names that some file system takes for one."""
    return unicodedata.normalize("NFC", str(place)).casefold()
