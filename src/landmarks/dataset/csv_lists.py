"""A CSV of paths and labels as people have them: separators, encodings, column names and paths of every kind."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

from landmarks.dataset.csv_text import SEPARATORS, text_of
from landmarks.dataset.doubtful_names import whole_numbers
from landmarks.dataset.manifest import SPLITS
from landmarks.dataset.naming import UNKNOWN, plain
from landmarks.dataset.sources import SUFFIXES, Found, Source
from landmarks.dataset.spelling import COLUMNS, STAND_IN, column_key, columns_meant, split_meant
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.systems import readable


def list_csv(source: Path) -> Source:
    """List the images that a CSV names; errors name the line."""
    lines = _lines(source, text_of(source))
    header = next(lines, None)
    if header is None:
        raise LandmarksError(f"{source} cannot be read as a CSV: it is empty", expected="columns path and label")
    table = _Header.of(source, header[1])
    files = _Files(source.parent)
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
    def of(cls, source: Path, names: list[str]) -> _Header:
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
        taken = [f"{name} as {wanted}" for wanted, name in others.items() if name in STAND_IN.get(wanted, ())]
        unused = [name.strip() for place, name in enumerate(self.names) if place not in self.places.values()]
        told = [f"of {source.name} the columns {', '.join(taken)} are taken"] if taken else []
        if named := [name for name in unused if name]:
            told.append(f"of {source.name} the columns {', '.join(named)[:200]} are not used")
        if like := [self.names[place].strip() for place in sorted(self.like_splits)]:
            told.append(f'every row of the column {like[0]} names a split: to have it taken, call the column "split"')
        return told


def _hint(names: list[str]) -> str:
    """Return what is likely wrong with a first line that names no columns, or an empty string."""
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


# ── Paths ───────────────────────────────────────────────────────────────────────────────────────────────────────────


_MOST_FOLDERS = 20
"""Folders beside a CSV in which a file of a bare name is looked for, to name it."""


@dataclass
class _Files:
    """Finds the files that a list names, also where it spells them as another system would."""

    folder: Path
    guessed: Counter[str] = field(default_factory=Counter)
    _seen: dict[Path, dict[str, list[str]]] = field(default_factory=dict)
    _beside: list[Path] | None = None  # some folders beside the list

    def find(self, text: str) -> tuple[Path | None, str]:
        """Return the file, or None and why there is none."""
        try:
            as_written = self.folder / text
            if as_written.is_file():
                return as_written, ""
            if as_written.exists():
                return None, "a folder" if as_written.is_dir() else "not a file"
        except (OSError, ValueError) as error:
            return None, f"there can be no such file ({getattr(error, 'strerror', None) or error})"
        if "://" in text:
            return None, "an address, not a file: what lies there must be fetched first, or file:// be left out"
        found, why = self._spelt(text)
        if found is None and "%" in text:
            found, _ = self._spelt(unquote(text))
        if found is not None:
            self.guessed[_difference(text, found.name)] += 1
            return found, ""
        return None, why

    def _spelt(self, text: str) -> tuple[Path | None, str]:
        """Return the file of a path that is spelt as another system would, or why there is none."""
        steps = [step for step in text.strip().replace("\\", "/").split("/") if step not in ("", ".")]
        here: Path | None = Path("/") if text.strip().startswith("/") else self.folder
        for number, step in enumerate(steps):
            here = self._inside(here, step, last=number == len(steps) - 1) if here is not None else None
        if here is not None and here.is_file():
            return here, ""
        return None, f"there is no such file{self._nearby(text, steps)}"

    def _nearby(self, text: str, steps: list[str]) -> str:
        """Return where a file lies that a path may mean: nothing is guessed, as it could be another image."""
        if Path(text).is_file():
            return "; paths are relative to the folder of the CSV"
        root = "/" if text.strip().startswith("/") else ""
        for start in range(0 if root else 1, len(steps)):
            if self.folder.joinpath(*steps[start:]).is_file():
                return f"; {'/'.join(steps[start:])} is there: take {root}{'/'.join(steps[:start])} off the paths"
        if self._beside is None:
            self._beside = sorted(path for path in self.folder.iterdir() if path.is_dir())[:_MOST_FOLDERS]
        for folder in self._beside if len(steps) == 1 else ():
            if (meant := self._inside(folder, steps[-1], last=True)) is not None:
                there = readable(f"{folder.name}/{meant.name}")
                return f"; {there} is there: put the CSV into that folder, or the folder before the paths"
        return "" if Path(text).suffix.lower() in SUFFIXES else ", with no ending of an image either"

    def _inside(self, folder: Path, step: str, *, last: bool) -> Path | None:
        if step == "..":
            return folder / step
        if folder not in self._seen:
            names: dict[str, list[str]] = {}
            try:
                for path in folder.iterdir():
                    names.setdefault(_key(path.name), []).append(path.name)
                    if path.suffix.lower() in SUFFIXES:
                        names.setdefault(f"{_key(path.stem)}\0", []).append(path.name)
            except OSError:
                names = {}
            self._seen[folder] = names
        known = self._seen[folder]
        meant = known.get(_key(step)) or (known.get(f"{_key(step)}\0") if last else None) or []
        exact = [name for name in meant if name == step]
        meant = exact or meant
        return folder / meant[0] if len(meant) == 1 else None

    def remarks(self) -> list[str]:
        """Say how many paths were found otherwise than written, and in which way."""
        return [f"{count:,} paths were found {how}" for how, count in sorted(self.guessed.items())]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _difference(text: str, name: str) -> str:
    written = text.strip().replace("\\", "/").rsplit("/", 1)[-1]
    if _key(written) != _key(name) and _key(unquote(written)) == _key(name):
        return "with letters for the %41 of the list"
    if _key(written) != _key(name):
        return "with an ending that the list does not have"
    if "\\" in text:
        return "with / for the \\ of the list"
    return "in another case, or another form of Unicode"
