"""The names, ids and labels of landmarks: how they are found from folder names, and matched between datasets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.manifest import LABELS
from landmarks.support.errors import UsageError, did_you_mean
from landmarks.support.files import digest_of, read_record
from landmarks.support.systems import readable
from landmarks.support.tables import read_table

UNKNOWN = "_unknown"
"""The folder of images that show nothing known."""

LABELS_CSV = "labels.csv"
"""The list beside the folders that `unpack` writes: `folder,landmark_id,name,category`, with the exact names."""

ARCHIVE_IDS, NUMBERS, LISTED, SORTED_NAMES = "archive ids", "numbers in folder names", LABELS_CSV, "sorted names"
ID_SOURCES = (ARCHIVE_IDS, NUMBERS, LISTED, SORTED_NAMES)
"""Where the landmark ids of a dataset come from, and so what identifies a landmark: `identified_by` in its record."""

UNPACKED = "unpack.json"
"""The record that `unpack` writes beside the folders."""

_UNSAFE = '/\\:*?"<>|.'
_LONGEST = 80
_RESERVED_BY_WINDOWS = {
    "con",
    "prn",
    "aux",
    "nul",
    "conin$",
    "conout$",
    *(f"{port}{number}" for port in ("com", "lpt") for number in "123456789¹²³"),
}


@dataclass(frozen=True)
class Landmark:
    """A landmark of a dataset, or of a folder of images."""

    landmark_id: int
    name: str
    category: str | None = None


def normalised_name(name: str) -> str:
    """Return a name stripped and in Unicode's composed form (NFC): file systems store it in either form."""
    return unicodedata.normalize("NFC", name).strip()


def safe_name(name: str, longest: int = _LONGEST) -> str:
    """Return `name` as a valid file name on any system: no separators, dots or control characters, cut to `longest`.

    `longest` is in bytes.
    """
    kept = ("_" if letter in _UNSAFE or _is_control(letter) else letter for letter in normalised_name(name))
    safe = "".join(kept).encode()[:longest].decode(errors="ignore").strip()
    return f"{safe}_" if safe.casefold() in _RESERVED_BY_WINDOWS else safe


def _is_control(letter: str) -> bool:
    """Return whether a letter is a control character, or one of Unicode's line and paragraph separators."""
    return unicodedata.category(letter)[0] == "C" or unicodedata.category(letter) in ("Zl", "Zp")


def with_digest(name: str, content: str) -> str:
    """Return `name` as a safe file name, followed by 12 digits of the digest of `content`."""
    digits = digest_of(content)[:12]
    return f"{safe_name(name, _LONGEST - len(digits) - 1)}-{digits}"


def folder_name(landmark: Landmark, digits: int) -> str:
    """Return the name of a landmark's folder: its id padded to `digits`, and its name, as `006051 Colosseum (Rome)`.

    Such folders sort in the order of the labels.
    """
    number = f"{landmark.landmark_id:0{digits}d}"
    return number if _is_nameless(landmark) else f"{number} {safe_name(landmark.name)}".strip()


def landmarks_of(labels: pl.DataFrame) -> list[Landmark]:
    """Return the landmarks of a table of labels, in the order of the labels."""
    rows = labels.sort("label").select("landmark_id", "name", "category").iter_rows()
    return [
        Landmark(landmark_id, str(landmark_id) if name is None else name, category)
        for landmark_id, name, category in rows
    ]


def counted_labels(landmarks: pl.DataFrame, images: pl.DataFrame) -> pl.DataFrame:
    """Return the table of labels of `landmarks` (landmark_id, name, category), with the number of their `images`.

    A landmark without a name is called by its id.
    """
    counts = images.group_by("landmark_id").agg(images=pl.len())
    labels = landmarks.join(counts, on="landmark_id", how="left").sort("landmark_id").with_row_index("label")
    name = pl.coalesce("name", pl.col("landmark_id").cast(pl.String)).alias("name")
    return labels.with_columns(name, pl.col("images").fill_null(0)).select(list(LABELS))


def landmarks_by_name(names: Iterable[str], listed: dict[str, Landmark] | None = None) -> dict[str, Landmark]:
    """Return name → landmark for a folder or CSV that is imported without earlier labels.

    Landmark ids are those that a `labels.csv` lists; else the names themselves if all are whole numbers; else the
    positions of the sorted names.
    """
    names = sorted(set(names))
    if listed is not None:
        missing = [name for name in names if name not in listed]
        if missing:
            raise UsageError(
                f'{LABELS_CSV} does not list the folder "{missing[0]}"',
                way_out=f"add a line for it, or delete {LABELS_CSV} to number the folders by their sorted names",
            )
        return {name: listed[name] for name in names}
    numbers = {name: int(name) for name in names if name.isascii() and name.isdigit() and len(name) <= 18}
    if len(set(numbers.values())) == len(names):
        return {name: Landmark(number, name) for name, number in numbers.items()}  # the name keeps leading zeros
    return {name: Landmark(position, name) for position, name in enumerate(names)}


def identified_by(record: Mapping[str, Any], labels: pl.DataFrame) -> str:
    """Return which of `ID_SOURCES` a dataset has, given its record (or the `data` of a run's record) and its labels.

    Records of earlier versions do not say it. For those it follows from the labels: ids 0 to N - 1 are positions,
    unless the names are the same numbers.
    """
    source = record.get("identified_by")
    if source in ID_SOURCES:
        return str(source)
    if record.get("set") not in (None, "import"):
        return ARCHIVE_IDS
    landmarks = landmarks_of(labels)
    if all(_is_nameless(landmark) for landmark in landmarks):
        return NUMBERS
    if [landmark.landmark_id for landmark in landmarks] == list(range(len(landmarks))):
        return SORTED_NAMES
    return LISTED if record.get("set") == "import" else ARCHIVE_IDS


def identified_from(source: Path, landmarks: Iterable[Landmark], listed: dict[str, Landmark] | None) -> str:
    """Return which of `ID_SOURCES` `landmarks_by_name` used; for unpacked folders, that of the unpacked dataset."""
    if listed is not None:
        record = source / UNPACKED
        unpacked_from = read_record(record).get("identified_by") if record.is_file() else None
        return str(unpacked_from) if unpacked_from in ID_SOURCES else LISTED
    return NUMBERS if all(_is_nameless(landmark) for landmark in landmarks) else SORTED_NAMES


def identified_in(place: Path) -> str:
    """Return which of `ID_SOURCES` the dataset or run `place` has; `place` may be its table of labels."""
    folder = place if place.is_dir() else place.parent
    labels = read_labels(place)
    if (folder / "dataset.json").is_file():
        return identified_by(read_record(folder / "dataset.json"), labels)
    record = read_record(folder / "run.json") if (folder / "run.json").is_file() else {}
    return identified_by(record.get("data") or {}, labels)


def find_landmarks(
    names: Iterable[str], labels: pl.DataFrame, listed: dict[str, Landmark] | None
) -> dict[str, Landmark]:
    """Return name → landmark among those of an earlier table of labels; raise `UsageError` for any other name.

    Such a name is not counted as unknown, because a typing error would then turn a landmark into nothing known without
    notice. Images of nothing known belong into the folder `_unknown`.
    """
    earlier = landmarks_of(labels)
    candidates: dict[str, list[Landmark]] = {}
    for landmark, own_names in zip(earlier, folder_names(earlier), strict=True):
        for name in own_names:
            candidates.setdefault(name, []).append(landmark)
    known = {name: landmarks[0] for name, landmarks in candidates.items() if len(landmarks) == 1}
    exact = {(landmark.landmark_id, landmark.name): landmark for landmark in earlier}
    found: dict[str, Landmark] = {}
    for name in sorted(set(names)):
        entry = (listed or {}).get(name)
        if entry is None:
            match = known.get(name) or known.get(_unpadded(name))
        else:
            match = exact.get((entry.landmark_id, entry.name)) or known.get(normalised_name(entry.name))
        if match is None:
            raise UsageError(
                f'"{name}" is none of the {len(earlier)} landmarks of the labels',
                way_out=did_you_mean(name, known) or f"rename the folder, or move its images into {UNKNOWN}",
            )
        found[name] = match
    return found


def folder_names(landmarks: list[Landmark]) -> list[set[str]]:
    """Return for each landmark the names that its folder may have: its own name, and the one that `unpack` writes."""
    digits = max((len(str(landmark.landmark_id)) for landmark in landmarks), default=1)
    return [
        {normalised_name(landmark.name), folder_name(landmark, digits)}
        | ({str(landmark.landmark_id)} if _is_nameless(landmark) else set())
        for landmark in landmarks
    ]


def read_labels(place: Path) -> pl.DataFrame:
    """Read `labels.parquet` of a dataset or a run."""
    if place.is_file():
        with open(place, "rb") as file:
            if file.read(4) != b"PAR1":
                raise UsageError(
                    f"{readable(place)} is no table of labels",
                    expected="a dataset, a run, or labels.parquet of one",
                    way_out="other names than the folders' come from a CSV of path,label that is imported itself",
                )
    elif not (place / "labels.parquet").is_file():
        raise UsageError(
            f"{readable(place)} is no dataset or run" if place.is_dir() else f"there is no {readable(place)}",
            expected="a dataset, a run, or labels.parquet of one",
        )
    return read_table(place / "labels.parquet" if place.is_dir() else place, LABELS)


# ── Matching the landmarks of two datasets: by the archive's ids, or else by their names ───────────────────────────


@dataclass(frozen=True)
class Matching:
    """Which landmarks of another dataset (theirs) are which labels of ours."""

    by: str  # id or name
    labels: pl.DataFrame  # landmark_id (theirs) → label (ours)
    matched: int  # number of their landmarks that have a partner
    unmatched: list[str]  # names of those that have none, in the order of their labels


def match_landmarks(ours: pl.DataFrame, ours_by: str, theirs: pl.DataFrame, theirs_by: str) -> Matching:
    """Match two tables of labels; `ours_by` and `theirs_by` are those of `ID_SOURCES` that their datasets have.

    Landmarks are matched by id if both sides have the archive's ids, or numbers for names. Otherwise an id may be just
    the position of a name, so they are matched by name. Of several landmarks with one name, the one with the same id
    matches. A landmark whose name is only a number is found by its id. A name may also follow the id, as in the folders
    that `unpack` writes.
    """
    their_landmarks = landmarks_of(theirs)
    if {ours_by, theirs_by} <= {ARCHIVE_IDS, NUMBERS}:
        known = set(ours["landmark_id"])
        unmatched = [landmark.name for landmark in their_landmarks if landmark.landmark_id not in known]
        matched = len(their_landmarks) - len(unmatched)
        return Matching("id", ours.select("landmark_id", "label"), matched, unmatched)
    labels = dict(zip(ours.sort("label")["landmark_id"], ours.sort("label")["label"], strict=True))
    partners = _Partners(landmarks_of(ours), with_ids=SORTED_NAMES not in (ours_by, theirs_by))
    pairs = [(landmark, partners.of(landmark)) for landmark in their_landmarks]
    rows = [(landmark.landmark_id, labels[partner.landmark_id]) for landmark, partner in pairs if partner is not None]
    table = pl.DataFrame(rows, schema={"landmark_id": pl.Int64, "label": pl.UInt32}, orient="row")
    return Matching("name", table, len(rows), [landmark.name for landmark, partner in pairs if partner is None])


class _Partners:
    """Finds the landmark of ours that matches one of another dataset."""

    def __init__(self, ours: list[Landmark], *, with_ids: bool) -> None:
        named = [(normalised_name(landmark.name), landmark) for landmark in ours]
        self.exact = {(landmark.landmark_id, name): landmark for name, landmark in named}
        self.by_name = _unique(named)
        self.by_folder = _unique(
            (folder, landmark) for name, landmark in named for folder in (_as_folder(landmark), _unpadded(name))
        )
        self.by_id = {landmark.landmark_id: landmark for landmark in ours} if with_ids else {}

    def of(self, theirs: Landmark) -> Landmark | None:
        """Return our landmark that matches `theirs`, or None."""
        name = normalised_name(theirs.name)
        found = self.exact.get((theirs.landmark_id, name)) or self.by_name.get(name)
        found = found or self.by_folder.get(_unpadded(name)) or self.by_folder.get(_as_folder(theirs))
        same_id = self.by_id.get(theirs.landmark_id)
        if found is None and same_id is not None and (_is_nameless(theirs) or _is_nameless(same_id)):
            return same_id
        return found


def _unique(named: Iterable[tuple[str, Landmark]]) -> dict[str, Landmark]:
    """Return name → landmark without the names that several landmarks have."""
    landmarks_of_name: dict[str, set[Landmark]] = {}
    for name, landmark in named:
        landmarks_of_name.setdefault(name, set()).add(landmark)
    return {name: next(iter(landmarks)) for name, landmarks in landmarks_of_name.items() if len(landmarks) == 1}


def _as_folder(landmark: Landmark) -> str:
    """Return the name of a landmark's folder without leading zeros: `6051 Colosseum`."""
    return f"{landmark.landmark_id} {safe_name(landmark.name)}"


def _unpadded(name: str) -> str:
    return re.sub(r"^0+(?=[0-9])", "", name)


def _is_nameless(landmark: Landmark) -> bool:
    return _unpadded(landmark.name) == str(landmark.landmark_id)
