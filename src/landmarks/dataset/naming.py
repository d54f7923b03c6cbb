"""Names of landmarks and what identifies them: between folders' names, landmark ids and labels."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.manifest import LABELS
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.files import digest_of, read_record
from landmarks.support.systems import readable
from landmarks.support.tables import read_table, unescaped, write_csv

UNKNOWN = "_unknown"
"""The folder of images that show nothing known."""

LABELS_CSV = "labels.csv"
"""Beside the folders that `unpack` writes: `folder,landmark_id,name,category`, exact where folders' names cannot be."""

ARCHIVE_IDS, NUMBERS, LISTED, SORTED_NAMES = "archive ids", "numbers in folder names", LABELS_CSV, "sorted names"
KINDS = (ARCHIVE_IDS, NUMBERS, LISTED, SORTED_NAMES)
"""How a dataset came by its landmark ids, which says what identifies a landmark: `identified_by` in `dataset.json`."""

UNPACKED = "unpack.json"
"""The record that `unpack` leaves beside them."""

_UNSAFE = '/\\:*?"<>|.'
_LONGEST = 80
_OF_WINDOWS = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


@dataclass(frozen=True)
class Landmark:
    """A landmark as a source of images knows it."""

    landmark_id: int
    name: str
    category: str | None = None


def plain(name: str) -> str:
    """Return a name in Unicode's composed form, without spaces around it: the same name however a disk stores it."""
    return unicodedata.normalize("NFC", name).strip()


def safe_name(name: str, longest: int = _LONGEST) -> str:
    """Return `name` as one for any file system: no separators, dots or control characters, at most 80 bytes."""
    kept = ("_" if letter in _UNSAFE or _steers(letter) else letter for letter in plain(name))
    safe = "".join(kept).encode()[:longest].decode(errors="ignore").strip()
    return f"{safe}_" if safe.casefold() in _OF_WINDOWS else safe


def _steers(letter: str) -> bool:
    """Return whether a letter is a control character, or a line's or paragraph's end of Unicode."""
    return unicodedata.category(letter)[0] == "C" or unicodedata.category(letter) in ("Zl", "Zp")


def with_digest(name: str, whole: str) -> str:
    """Return `name` cut short and made safe, with digits behind it that change with `whole`."""
    digits = digest_of(whole)[:12]
    return f"{safe_name(name, _LONGEST - len(digits) - 1)}-{digits}"


def folder_name(landmark: Landmark, digits: int) -> str:
    """Return `006051 Colosseum (Rome)`: sorts as labels do, and says what is inside."""
    number = f"{landmark.landmark_id:0{digits}d}"
    return number if _nameless(landmark) else f"{number} {safe_name(landmark.name)}".strip()


def landmarks_of(labels: pl.DataFrame) -> list[Landmark]:
    """Return the landmarks of a table of labels, in its order."""
    rows = labels.sort("label").select("landmark_id", "name", "category").iter_rows()
    return [
        Landmark(landmark_id, str(landmark_id) if name is None else name, category)
        for landmark_id, name, category in rows
    ]


def identify(names: Iterable[str], listed: dict[str, Landmark] | None = None) -> dict[str, Landmark]:
    """Return the landmark of each name, for a source that stands by itself.

    Landmark ids are the positions of the sorted names, except where a `labels.csv` lists the folders, or where all
    names are whole numbers: then these are the ids.
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
        return {name: Landmark(number, name) for name, number in numbers.items()}  # the name with its zeros
    return {name: Landmark(position, name) for position, name in enumerate(names)}


def identified_by(record: Mapping[str, Any], labels: pl.DataFrame) -> str:
    """Return which of `KINDS` identifies the landmarks of a dataset, or of the data that a run's record tells of.

    Records written before they said so are judged by their labels: whole numbers from 0 on are positions, unless the
    names are the same numbers.
    """
    told = record.get("identified_by")
    if told in KINDS:
        return str(told)
    if record.get("set") not in (None, "import"):
        return ARCHIVE_IDS
    known = landmarks_of(labels)
    if all(_nameless(landmark) for landmark in known):
        return NUMBERS
    if [landmark.landmark_id for landmark in known] == list(range(len(known))):
        return SORTED_NAMES
    return LISTED if record.get("set") == "import" else ARCHIVE_IDS


def identified_from(source: Path, landmarks: Iterable[Landmark], listed: dict[str, Landmark] | None) -> str:
    """Return which of `KINDS` `identify` went by; what `unpack` unpacked is what it was in the dataset before."""
    if listed is not None:
        unpacked = source / UNPACKED
        told = read_record(unpacked).get("identified_by") if unpacked.is_file() else None
        return str(told) if told in KINDS else LISTED
    return NUMBERS if all(_nameless(one) for one in landmarks) else SORTED_NAMES


def identified_in(place: Path) -> str:
    """Return which of `KINDS` identifies the landmarks of the dataset or run `place`, or of one beside its labels."""
    folder = place if place.is_dir() else place.parent
    labels = read_labels(place)
    if (folder / "dataset.json").is_file():
        return identified_by(read_record(folder / "dataset.json"), labels)
    record = read_record(folder / "run.json") if (folder / "run.json").is_file() else {}
    return identified_by(record.get("data") or {}, labels)


def identify_among(
    names: Iterable[str], labels: pl.DataFrame, listed: dict[str, Landmark] | None
) -> dict[str, Landmark]:
    """Return which of the landmarks of an earlier table of labels each name means; a name that is none is refused.

    Refused rather than counted as unknown, because a slip of the pen would silently turn a landmark into nothing known;
    images of nothing known belong into the folder `_unknown`.
    """
    earlier = landmarks_of(labels)
    called: dict[str, list[Landmark]] = {}
    for landmark, calls in zip(earlier, names_of_folders(earlier), strict=True):
        for name in calls:
            called.setdefault(name, []).append(landmark)
    known = {name: landmarks[0] for name, landmarks in called.items() if len(landmarks) == 1}
    exact = {(landmark.landmark_id, landmark.name): landmark for landmark in earlier}
    found: dict[str, Landmark] = {}
    for name in sorted(set(names)):
        meant = (listed or {}).get(name)
        of_earlier = known.get(plain(meant.name) if meant else name) or (None if meant else known.get(_unpadded(name)))
        if meant:
            of_earlier = exact.get((meant.landmark_id, meant.name), of_earlier)
        if of_earlier is None:
            raise UsageError(
                f'"{name}" is none of the {len(earlier)} landmarks of the labels',
                way_out=did_you_mean(name, known) or f"rename the folder, or move its images into {UNKNOWN}",
            )
        found[name] = of_earlier
    return found


def names_of_folders(landmarks: list[Landmark]) -> list[set[str]]:
    """Return for each landmark the names under which a folder of it is known: its own, and as `unpack` writes it."""
    digits = max((len(str(landmark.landmark_id)) for landmark in landmarks), default=1)
    return [
        {plain(one.name), folder_name(one, digits)} | ({str(one.landmark_id)} if _nameless(one) else set())
        for one in landmarks
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
    return read_table(place / "labels.parquet" if place.is_dir() else place, LABELS)


def read_labels_csv(path: Path) -> dict[str, Landmark]:
    """Read the `labels.csv` that `unpack` wrote: folder → landmark."""
    try:
        table = pl.read_csv(path.read_bytes(), infer_schema=False)  # a path may be no text
        columns = unescaped(table).select("folder", pl.col("landmark_id").cast(pl.Int64), "name", "category")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LandmarksError(
            f"{path} cannot be read ({str(error).splitlines()[0]})",
            expected="columns folder, landmark_id, name, category",
        ) from error
    return {
        plain(folder): Landmark(landmark_id, name or str(landmark_id), category)
        for folder, landmark_id, name, category in columns.iter_rows()
    }


def write_labels_csv(path: Path, folders: dict[str, Landmark]) -> None:
    """Write folder → landmark for `read_labels_csv`, and for people."""
    rows = [(folder, landmark.landmark_id, landmark.name, landmark.category) for folder, landmark in folders.items()]
    columns = {"folder": pl.String, "landmark_id": pl.Int64, "name": pl.String, "category": pl.String}
    write_csv(path, pl.DataFrame(rows, schema=columns, orient="row"))


# ── Landmarks of two places matched by what they are: the archive's by their ids, others by their names ─────────────


@dataclass(frozen=True)
class Matching:
    """Which landmarks of another place (theirs) are which labels of ours."""

    by: str  # id or name
    labels: pl.DataFrame  # landmark_id (theirs) → label (ours)
    matched: int  # of their landmarks, so many have a partner
    alone: list[str]  # names of those that have none, in the order of their labels


def match_landmarks(ours: pl.DataFrame, ours_by: str, theirs: pl.DataFrame, theirs_by: str) -> Matching:
    """Match two tables of labels, of which `naming.KINDS` say what identifies their landmarks.

    Ids decide where both sides have ids of the archive, or numbers for names. Elsewhere an id may be no more than the
    position of a name, so names decide; of landmarks with one name the one with the same id is meant, and a landmark
    that has only a number for a name is found by it. A name may stand behind the id, as `unpack` names its folders.
    """
    of_theirs = landmarks_of(theirs)
    if {ours_by, theirs_by} <= {ARCHIVE_IDS, NUMBERS}:
        known = set(ours["landmark_id"])
        alone = [one.name for one in of_theirs if one.landmark_id not in known]
        return Matching("id", ours.select("landmark_id", "label"), len(of_theirs) - len(alone), alone)
    labels = dict(zip(ours.sort("label")["landmark_id"], ours.sort("label")["label"], strict=True))
    with_ids = SORTED_NAMES not in (ours_by, theirs_by)
    partner = _Partners(landmarks_of(ours), with_ids=with_ids)
    pairs = [(one, partner.of(one)) for one in of_theirs]
    rows = [(one.landmark_id, labels[other.landmark_id]) for one, other in pairs if other is not None]
    table = pl.DataFrame(rows, schema={"landmark_id": pl.Int64, "label": pl.UInt32}, orient="row")
    return Matching("name", table, len(rows), [one.name for one, other in pairs if other is None])


class _Partners:
    """Finds among our landmarks the one that another place means."""

    def __init__(self, ours: list[Landmark], *, with_ids: bool) -> None:
        self.exact = {(one.landmark_id, plain(one.name)): one for one in ours}
        self.by_name = _unique((plain(one.name), one) for one in ours)
        self.by_folder = _unique((name, one) for one in ours for name in (_as_folder(one), _unpadded(plain(one.name))))
        self.by_id = {one.landmark_id: one for one in ours} if with_ids else {}

    def of(self, theirs: Landmark) -> Landmark | None:
        """Return our landmark that is `theirs`, or None."""
        name = plain(theirs.name)
        found = self.exact.get((theirs.landmark_id, name)) or self.by_name.get(name)
        found = found or self.by_folder.get(_unpadded(name)) or self.by_folder.get(_as_folder(theirs))
        same_id = self.by_id.get(theirs.landmark_id)
        if found is None and same_id is not None and (_nameless(theirs) or _nameless(same_id)):
            return same_id
        return found


def _unique(called: Iterable[tuple[str, Landmark]]) -> dict[str, Landmark]:
    """Return name → landmark without the names that several landmarks have."""
    every: dict[str, set[Landmark]] = {}
    for name, landmark in called:
        every.setdefault(name, set()).add(landmark)
    return {name: next(iter(landmarks)) for name, landmarks in every.items() if len(landmarks) == 1}


def _as_folder(landmark: Landmark) -> str:
    """Return `6051 Colosseum`, the name of its folder without the zeros in front."""
    return f"{landmark.landmark_id} {safe_name(landmark.name)}"


def _unpadded(name: str) -> str:
    return re.sub(r"^0+(?=[0-9])", "", name)


def _nameless(landmark: Landmark) -> bool:
    return _unpadded(landmark.name) == str(landmark.landmark_id)
