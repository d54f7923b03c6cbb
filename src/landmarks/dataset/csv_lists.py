"""A CSV of paths and labels as people have them: separators, encodings, column names and paths of every kind."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from landmarks.dataset.csv_paths import ListedFiles
from landmarks.dataset.csv_text import SEPARATORS, text_of
from landmarks.dataset.doubtful_names import whole_numbers
from landmarks.dataset.manifest import SPLITS
from landmarks.dataset.naming import UNKNOWN, plain
from landmarks.dataset.sources import SUFFIXES, Found, Source
from landmarks.dataset.spelling import COLUMNS, column_key, columns_meant, is_stand_in, may_be_split, split_meant
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.systems import readable


def list_csv(source: Path) -> Source:
    """List the images that a CSV names; errors name the line."""
    lines = _lines(source, text_of(source))
    header = next(lines, None)
    if header is None:
        raise LandmarksError(f"{source} cannot be read as a CSV: it is empty", expected="columns path and label")
    first = next(lines, None)
    table = _Header.of(source, header[1], first[1] if first else [])
    lines = itertools.chain([first] if first else [], lines)
    files = ListedFiles(source.parent)
    taken: dict[str, _Taken] = {}
    rejected: list[tuple[str, str]] = []
    for line, cells in lines:
        one = table.row(source, line, cells)
        table.look_at(cells)
        path, why = files.find(one.where)
        if path is None:
            rejected.append((readable(one.where), why))
            continue
        key = os.path.normcase(os.path.normpath(path))
        if key in taken:
            rejected.append((one.where, _twice(one, line, taken[key])))
        else:
            taken[key] = _Taken(line, Found(path, one.where, one.label, one.split, **one.told))
    _refuse_some_splits(source, list(taken.values()))
    found = [one.found for one in taken.values()]
    remarks = table.remarks(source) + files.remarks()
    if whole := whole_numbers(one.name for one in found if one.name is not None):
        found = [replace(one, name=whole.get(one.name or "", one.name)) for one in found]
        remarks.append(f"labels such as {next(iter(whole))} are whole numbers, and taken without the .0")
    way_out = f"paths are relative to the folder of {source.name}" if rejected else ""
    return Source(f"the CSV {source.name}", found, rejected, remarks=remarks, way_out=way_out)


@dataclass(frozen=True)
class _Row:
    where: str
    label: str | None
    split: str | None
    told: dict[str, str]


@dataclass(frozen=True)
class _Taken:
    line: int
    found: Found


def _twice(one: _Row, line: int, first: _Taken) -> str:
    if one.label != first.found.name:
        labels = [UNKNOWN if label is None else label for label in (one.label, first.found.name)]
        return f'line {line} gives it the label "{labels[0]}", line {first.line} "{labels[1]}", which is kept'
    if one.split != first.found.split:
        return f"line {line} puts it into {one.split}, line {first.line} into {first.found.split}, where it is"
    return "listed more than once"


def _refuse_some_splits(source: Path, taken: list[_Taken]) -> None:
    without = [one.line for one in taken if one.found.split is None]
    if without and len(without) < len(taken):
        raise UsageError(
            f"{source} gives a split to some images only",
            received=f"none in line {without[0]}" + (f" and {len(without) - 1:,} more" if len(without) > 1 else ""),
            way_out="give one to all, or to none",
        )


# ── Text: encodings, separators, lines ──────────────────────────────────────────────────────────────────────────────


def _lines(source: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of every row that is not blank; cells may hold ends of lines, where they are quoted."""
    first, _, rest = text.partition("\n")
    skipped = 0
    told = column_key(first)
    if told.startswith("sep=") and len(told) <= 5:  # Excel's own line; a space or a tab is lost in the key
        separator, text, skipped = (first.strip("\r")[4:5] or "\t"), rest, 1
    else:
        separator = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1 + skipped
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise LandmarksError(
                f"{source} cannot be read as a CSV: line {line}: {error}",
                way_out="a cell that begins with a quote ends with one, and a quote in it is doubled",
            ) from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def _separator(text: str) -> str:
    """Return the separator with which the header has the columns that are needed, or else the most cells."""
    header = next((line for line in text.splitlines() if line.strip()), "")

    def worth(separator: str) -> tuple[int, int]:
        names = next(csv.reader([header], delimiter=separator), [])
        return sum(bool(columns_meant(names, wanted)) for wanted in ("path", "label")), len(names)

    return max(SEPARATORS, key=worth)


# ── Columns ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Header:
    """Where each column stands; what is None is not there."""

    names: list[str]
    places: dict[str, int]
    like_splits: set[int]  # columns not used whose cells all name splits so far

    @classmethod
    def of(cls, source: Path, names: list[str], first: list[str]) -> _Header:
        """Find the columns of a header, beneath which the `first` row of cells stands."""
        places: dict[str, int] = {}
        for wanted in COLUMNS:
            meant = [place for place in columns_meant(names, wanted) if place not in places.values()]
            if len(meant) > 1:
                raise UsageError(
                    f"{source} has several columns for the {wanted}",
                    received=", ".join(f'"{names[place]}"' for place in meant),
                    way_out=f'call the one that counts "{wanted}", and the others otherwise',
                )
            if meant:
                places[wanted] = meant[0]
        for required in ("path", "label"):
            if required not in places:
                raise UsageError(
                    f'{source} has no column "{required}"',
                    received=", ".join(names)[:200],
                    expected="path and label; where known id, split, author, license, title",
                    way_out=_hint(names)
                    or did_you_mean(required, names)
                    or (_label_hint(names, first, places) if required == "label" else "")
                    or f'call the column of {required}s "{required}"',
                )
        unused = set(range(len(names))) - set(places.values())
        return cls(names, places, unused if "split" not in places else set())

    def look_at(self, cells: list[str]) -> None:
        """Take note of which columns that are not used could be the split."""
        self.like_splits.difference_update(
            [place for place in self.like_splits if place >= len(cells) or split_meant(cells[place]) is None]
        )

    def row(self, source: Path, line: int, cells: list[str]) -> _Row:
        """Return what a row says; raise where it has cells too many, or lacks one that is needed."""
        if len(cells) > len(self.names) and any(cell.strip() for cell in cells[len(self.names) :]):
            raise LandmarksError(
                f"{source} cannot be read as a CSV: line {line} is strange",
                received=f"{len(cells)} cells",
                expected=len(self.names),
                way_out="a cell that holds the separator must stand in quotes",
            )
        needed = max(self.places["path"], self.places["label"])
        if len(cells) <= needed or not cells[self.places["path"]].strip():
            raise LandmarksError(
                f"{source} line {line} has no {'label' if len(cells) <= needed else 'path'}",
                received=", ".join(cells)[:200],
                expected=", ".join(self.names)[:200],
            )
        cell = {name: cells[place].strip() if place < len(cells) else "" for name, place in self.places.items()}
        split = split_meant(cell["split"]) if cell.get("split") else None
        if cell.get("split") and split is None:
            raise UsageError(f'{source} line {line} names the split "{cell["split"]}"', expected=", ".join(SPLITS))
        label = plain(cell["label"])
        told = {name: cell[name] for name in ("id", "author", "license", "title") if cell.get(name)}
        return _Row(cells[self.places["path"]], None if label in ("", UNKNOWN) else label, split, told)

    def remarks(self, source: Path) -> list[str]:
        """Say which columns were taken for which, where that is not plain, and which were not used."""
        others = {wanted: self.names[place].strip() for wanted, place in self.places.items()}
        taken = [f"{name} as {wanted}" for wanted, name in others.items() if is_stand_in(name, wanted)]
        unused = [name.strip() for place, name in enumerate(self.names) if place not in self.places.values()]
        told = [f"of {source.name} the columns {', '.join(taken)} are taken"] if taken else []
        if named := [name for name in unused if name]:
            told.append(f"of {source.name} the columns {', '.join(named)[:200]} are not used")
        if like := [self.names[place].strip() for place in sorted(self.like_splits)]:
            told.append(f'every row of the column {like[0]} names a split: to have it taken, call the column "split"')
        elif "split" not in self.places and (may := [name for name in unused if may_be_split(name)]):
            told.append(f"the column {may[0]} may say the split: one with train, val or test, called split, is taken")
        return told


def _hint(names: list[str]) -> str:
    """Return what is likely wrong with a first line that names no columns, or an empty string."""
    if {column_key(name) for name in names} == {"landmark_id", "images"}:
        return "it is a list of the archive, of ids and no files: landmarks select MIRROR --clean reads it"
    first = names[0].strip() if len(names) == 1 else ""
    if any(f"{separator}label" in first.lower() or f"label{separator}" in first.lower() for separator in SEPARATORS):
        return "each line stands in quotes as a single cell: take those quotes off"
    if any(name.strip()[:1] == name.strip()[-1:] == "'" for name in names):
        return "quotes of a CSV are double ones"
    if first.startswith("#"):
        return "delete the lines before the one that names the columns"
    if any(Path(word).suffix.lower() in SUFFIXES for name in names for word in name.split()):
        commas = ", and commas for the spaces between" if len(first.split()) > 1 else ""
        return f"its first line is an image already: put a line path,label before it{commas}"
    return "put commas for the spaces between the cells" if len(first.split()) > 1 else ""


def _label_hint(names: list[str], first: list[str], places: dict[str, int]) -> str:
    """Return which columns without a name of ours could say the label, or an empty string."""
    others = [place for place, name in enumerate(names) if name.strip()]
    others = [place for place in others if all(wanted == "id" or place != at for wanted, at in places.items())]
    cells = {first[place].strip() for place in others if place < len(first)}
    if len(others) > 1 and cells and cells <= {"0", "1", "0.0", "1.0", "0.", "1."}:
        told = ", ".join(names[place].strip() for place in others[:3])
        return f"the columns {told} hold 0 and 1 for each label: write the label itself into one column, label"
    return f'were "{names[others[0]].strip()}" the label: call that column "label"' if len(others) == 1 else ""
