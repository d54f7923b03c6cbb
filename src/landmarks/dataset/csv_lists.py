"""Importing a CSV of paths and labels, whatever its separator, encoding, column names and paths."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from landmarks.dataset.csv_files import SEPARATORS, ListedFiles, csv_rows, refuse_further_cells, text_of
from landmarks.dataset.manifest import SPLITS
from landmarks.dataset.naming import UNKNOWN, normalised_name
from landmarks.dataset.sources import SUFFIXES, FoundImage, Source
from landmarks.dataset.spelling import (
    COLUMNS,
    column_key,
    find_columns,
    integer_labels,
    is_fallback,
    may_be_split_column,
    parse_split,
)
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.systems import readable


def list_csv(source: Path) -> Source:
    """List the images that a CSV names. Errors name the line."""
    lines = csv_rows(source, text_of(source), _required_columns)
    header = next(lines, None)
    if header is None:
        raise LandmarksError(f"{source} cannot be read as a CSV: it is empty", expected="columns path and label")
    first = next(lines, None)
    table = _Header.of(source, header[1], first[1] if first else [])
    lines = itertools.chain([first] if first else [], lines)
    files = ListedFiles(source.parent)
    accepted: dict[str, _Accepted] = {}
    rejected: list[tuple[str, str]] = []
    for line, cells in lines:
        row = table.row(source, line, cells)
        table.note_split_cells(cells)
        path, why = files.find(row.where)
        if path is None:
            rejected.append((readable(row.where), why))
            continue
        key = os.path.normcase(os.path.normpath(path))
        if key in accepted:
            rejected.append((row.where, _why_rejected(row, line, accepted[key])))
        else:
            accepted[key] = _Accepted(line, FoundImage(path, row.where, row.label, row.split, **row.others))
    _refuse_some_splits(source, list(accepted.values()))
    _refuse_equal_ids(source, list(accepted.values()), table.names[table.places["id"]] if "id" in table.places else "")
    found = [row.image for row in accepted.values()]
    remarks = table.remarks(source) + files.remarks()
    if integers := integer_labels(image.name for image in found if image.name is not None):
        found = [replace(image, name=integers.get(image.name or "", image.name)) for image in found]
        remarks.append(f"labels such as {next(iter(integers))} are whole numbers, and taken without the .0")
    way_out = f"paths are relative to the folder of {source.name}" if rejected else ""
    if first is None:
        way_out = f"below its header {source.name} holds no rows: write one for each image"
    return Source(f"the CSV {source.name}", found, rejected, remarks=remarks, way_out=way_out)


@dataclass(frozen=True)
class _Row:
    where: str
    label: str | None
    split: str | None
    others: dict[str, str]  # id, author, license and title, if they are known


@dataclass(frozen=True)
class _Accepted:
    line: int
    image: FoundImage


def _why_rejected(row: _Row, line: int, first: _Accepted) -> str:
    """Return why a second row of the same file is rejected."""
    if row.label != first.image.name:
        labels = [UNKNOWN if label is None else label for label in (row.label, first.image.name)]
        return f'line {line} gives it the label "{labels[0]}", line {first.line} "{labels[1]}", which is kept'
    if row.split != first.image.split:
        return f"line {line} puts it into {row.split}, line {first.line} into {first.image.split}, where it is"
    return "listed more than once"


def _refuse_some_splits(source: Path, accepted: list[_Accepted]) -> None:
    without = [row.line for row in accepted if row.image.split is None]
    if without and len(without) < len(accepted):
        raise UsageError(
            f"{source} gives a split to some images only",
            received=f"none in line {without[0]}" + (f" and {len(without) - 1:,} more" if len(without) > 1 else ""),
            way_out="give one to all, or to none",
        )


def _refuse_equal_ids(source: Path, accepted: list[_Accepted], column: str) -> None:
    line_of: dict[str, int] = {}
    for row in accepted:
        if row.image.id and line_of.setdefault(row.image.id, row.line) != row.line:
            raise UsageError(
                f'{source} line {row.line} gives an image the id "{row.image.id}"',
                received=f"the same in line {line_of[row.image.id]}",
                expected="another for each image",
                way_out=f'leave the column "{column.strip()}" out, or call it otherwise',
            )


def _required_columns(names: Sequence[str]) -> int:
    """Return how many of the required columns a header has."""
    return sum(bool(find_columns(names, wanted)) for wanted in ("path", "label"))


# ── Columns ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Header:
    """The columns of a CSV."""

    names: list[str]
    places: dict[str, int]  # position of each known column
    like_splits: set[int]  # positions of unused columns all of whose cells so far name splits

    @classmethod
    def of(cls, source: Path, names: list[str], first: list[str]) -> _Header:
        """Find the columns in the header `names`; `first` is the first row below it."""
        places: dict[str, int] = {}
        for wanted in COLUMNS:
            candidates = [place for place in find_columns(names, wanted) if place not in places.values()]
            if len(candidates) > 1:
                raise UsageError(
                    f"{source} has several columns for the {wanted}",
                    received=", ".join(f'"{names[place]}"' for place in candidates),
                    way_out=f'call the one that counts "{wanted}", and the others otherwise',
                )
            if candidates:
                places[wanted] = candidates[0]
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

    def note_split_cells(self, cells: list[str]) -> None:
        """Drop the columns from `like_splits` whose cell in this row names no split."""
        self.like_splits.difference_update(
            [place for place in self.like_splits if place >= len(cells) or parse_split(cells[place]) is None]
        )

    def row(self, source: Path, line: int, cells: list[str]) -> _Row:
        """Parse a row; raise if it has too many cells or lacks a required one."""
        refuse_further_cells(source, line, cells, self.names)
        needed = max(self.places["path"], self.places["label"])
        if len(cells) <= needed or not cells[self.places["path"]].strip():
            raise LandmarksError(
                f"{source} line {line} has no {'label' if len(cells) <= needed else 'path'}",
                received=", ".join(cells)[:200],
                expected=", ".join(self.names)[:200],
            )
        cell = {name: cells[place].strip() if place < len(cells) else "" for name, place in self.places.items()}
        split = parse_split(cell["split"]) if cell.get("split") else None
        if cell.get("split") and split is None:
            raise UsageError(f'{source} line {line} names the split "{cell["split"]}"', expected=", ".join(SPLITS))
        label = normalised_name(cell["label"])
        others = {name: cell[name] for name in ("id", "author", "license", "title") if cell.get(name)}
        return _Row(cells[self.places["path"]], None if label in ("", UNKNOWN) else label, split, others)

    def remarks(self, source: Path) -> list[str]:
        """Return remarks about fallback columns that were used, and about columns that were not."""
        used = {wanted: self.names[place].strip() for wanted, place in self.places.items()}
        fallbacks = [f"{name} as {wanted}" for wanted, name in used.items() if is_fallback(name, wanted)]
        unused = [name.strip() for place, name in enumerate(self.names) if place not in self.places.values()]
        remarks = [f"of {source.name} the columns {', '.join(fallbacks)} are taken"] if fallbacks else []
        if named := [name for name in unused if name]:
            remarks.append(f"of {source.name} the columns {', '.join(named)[:200]} are not used")
        if like := [self.names[place].strip() for place in sorted(self.like_splits)]:
            remarks.append(
                f'every row of the column {like[0]} names a split: to have it taken, call the column "split"'
            )
        elif "split" not in self.places and (may := [name for name in unused if may_be_split_column(name)]):
            remarks.append(
                f"the column {may[0]} may say the split: one with train, val or test, called split, is taken"
            )
        return remarks


def _hint(names: list[str]) -> str:
    """Return what is probably wrong with a header that names no columns, or an empty string."""
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


_ZEROS_AND_ONES = frozenset({"0", "1", "0.0", "1.0", "0.", "1."})


def _label_hint(names: list[str], first: list[str], places: dict[str, int]) -> str:
    """Return which unrecognised columns could hold the label, or an empty string."""
    others = [place for place, name in enumerate(names) if name.strip()]
    others = [place for place in others if all(wanted == "id" or place != at for wanted, at in places.items())]
    cells = {first[place].strip() for place in others if place < len(first)}
    if len(others) > 1 and cells and {cell.lower() for cell in cells} <= {*_ZEROS_AND_ONES, "true", "false"}:
        what = "0 and 1" if cells <= _ZEROS_AND_ONES else "true and false"
        some = ", ".join(names[place].strip() for place in others[:3])
        return f"the columns {some} hold {what} for each label: write the label itself into one column, label"
    return f'were "{names[others[0]].strip()}" the label: call that column "label"' if len(others) == 1 else ""
