"""CSVs as people have them: their text in any encoding, and the files that they name in another system's spelling."""

from __future__ import annotations

import csv
import functools
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from landmarks.dataset.formats import kind_of_file
from landmarks.dataset.sources import SUFFIXES, folders_in
from landmarks.dataset.spelling import column_key
from landmarks.dataset.unpacked_archive import UnpackedArchive
from landmarks.support.console import plural
from landmarks.support.errors import LandmarksError
from landmarks.support.systems import decode_text, readable
from landmarks.support.tables import unescaped

SEPARATORS = ",;\t|"
_OTHER_FILES = {
    b"PK\3\4": "unpack the archive and give its folder; a spreadsheet is to be saved as CSV",
    b"\x1f\x8b": "unpack the archive, and give its folder or the CSV in it",
    b"BZh": "unpack the archive, and give its folder",
    b"\xfd7zXZ": "unpack the archive, and give its folder",
    b"(\xb5/\xfd": "unpack the archive, and give its folder",
    b"7z\xbc\xaf": "unpack the archive, and give its folder",
    b"Rar!": "unpack the archive, and give its folder",
    b"\xd0\xcf\x11\xe0": "save the spreadsheet as CSV",
    b"PAR1": "save the table as CSV; what landmarks select wrote is fetched with: landmarks fetch",
    b"\x89HDF": "save the table as CSV",
    b"\xff\xd8\xff": "give the folder that the image lies in",
    b"\x89PNG": "give the folder that the image lies in",
    b"SQLite": "save the table as CSV",
    b"%PDF": "save the table as CSV",
}


_IMPORTED = "columns path and label"


def text_of(source: Path, expected: str = _IMPORTED) -> str:
    """Return the text of a CSV in any encoding that spreadsheets write.

    Raises `LandmarksError` if it is none; `expected` says what columns it should have.
    """
    try:
        if source.exists() and not source.is_file():  # a pipe would block
            what = "a folder" if source.is_dir() else "no plain file"
            raise LandmarksError(f"{readable(source)} cannot be read as a CSV: it is {what}", expected=expected)
        data = source.read_bytes()
    except FileNotFoundError as error:
        raise LandmarksError(f"there is no {source}") from error
    except OSError as error:
        raise LandmarksError(f"{source} cannot be read as a CSV ({error.strerror})") from error
    _refuse_other_files(source, data, expected)
    if not data.startswith(_MARKS) and b"\0" in data[:_HEAD]:
        raise _not_text(source, data.count(b"\n", 0, data.index(b"\0")) + 1)
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        line, begin = data.count(b"\n", 0, error.start) + 1, data.rfind(b"\n", 0, error.start) + 1
        raise LandmarksError(
            f"{source} cannot be read as a CSV: line {line} is not UTF-8",
            received=repr(data[begin : error.start + 20].splitlines()[0][-80:])[2:-1],
            way_out="save it as CSV UTF-8",
        ) from error
    if "\0" in text:
        raise _not_text(source, text.count("\n", 0, text.index("\0")) + 1)
    return text


_HEAD = 1 << 16  # bytes in which a file that is no text has a zero
_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")  # of the encodings whose texts have zeros


def _not_text(source: Path, line: int) -> LandmarksError:
    return LandmarksError(
        f"{source} cannot be read as a CSV: line {line} holds a byte of zero, as no text does",
        way_out="save it as CSV UTF-8",
    )


def _refuse_other_files(source: Path, data: bytes, expected: str) -> None:
    """Raise if `data` are the bytes of an archive, a spreadsheet, an image or anything else that is no text."""
    way_out = next((way_out for start, way_out in _OTHER_FILES.items() if data.startswith(start)), "")
    if data[257:262] == b"ustar":
        way_out = "unpack the archive, and give its folder"
    if way_out:
        raise LandmarksError(f"{source} cannot be read as a CSV", way_out=way_out)
    what = "JSON" if data[:1] in (b"{", b"[") else kind_of_file(data[:64]) if data else ""
    if what:
        imported = what == "JSON" and expected == _IMPORTED
        raise LandmarksError(
            f"{source} cannot be read as a CSV: it is {what}",
            expected=expected,
            way_out="write the path and the label of each image into a CSV" if imported else "",
        )


# ── Rows: separators, lines, cells ──────────────────────────────────────────────────────────────────────────────────


def csv_rows(source: Path, text: str, columns_found: Callable[[Sequence[str]], int]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of every row that is not blank; quoted cells may hold line breaks.

    The separator is the one with which `columns_found` finds the most required columns in the header, and then the one
    with the most cells.
    """
    first, _, rest = text.partition("\n")
    skipped = 0
    key = column_key(first)
    if key.startswith("sep=") and len(key) <= 5:  # a line that Excel writes; a space or a tab is lost in the key
        separator, text, skipped = (first.strip("\r")[4:5] or "\t"), rest, 1
    else:
        separator = _separator(text, columns_found)
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


def _separator(text: str, columns_found: Callable[[Sequence[str]], int]) -> str:
    header = next((line for line in text.splitlines() if line.strip()), "")

    def worth(separator: str) -> tuple[int, int]:
        names = next(csv.reader([header], delimiter=separator), [])
        return columns_found(names), len(names)

    return max(SEPARATORS, key=worth)


def refuse_further_cells(source: Path, line: int, cells: Sequence[str], names: Sequence[str]) -> None:
    """Raise `LandmarksError` if a row has cells beyond the columns, unless they are blank."""
    if len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
        raise LandmarksError(
            f"{source} cannot be read as a CSV: line {line} is invalid",
            received=f"{len(cells)} cells",
            expected=len(names),
            way_out="a cell that holds the separator must stand in quotes",
        )


def read_text_columns(source: Path, wanted: tuple[str, ...], way_out: str) -> pl.DataFrame:
    """Return the columns `wanted` of a CSV as stripped text, empty where a cell is missing, with the `line` of each.

    Raises `LandmarksError`, with `way_out`, if a column is missing. Errors name the line.
    """
    text = text_of(source, f"columns {', '.join(wanted)}")
    lines = csv_rows(source, text, lambda names: len({column_key(name) for name in names}.intersection(wanted)))
    _, names = next(lines, (0, []))
    if not names:
        raise LandmarksError(f"{source} is empty", expected=f"columns {', '.join(wanted)}", way_out=way_out)
    places = {column_key(name): place for place, name in reversed(list(enumerate(names)))}
    missing = [name for name in wanted if name not in places]
    if missing:
        raise LandmarksError(
            f"{source} lacks the column {missing[0]}", received=", ".join(names)[:200], way_out=way_out
        )
    rows = []
    for line, cells in lines:
        refuse_further_cells(source, line, cells, names)
        rows.append((line, *(cells[places[name]].strip() if places[name] < len(cells) else "" for name in wanted)))
    return unescaped(pl.DataFrame(rows, schema={"line": pl.UInt32, **dict.fromkeys(wanted, pl.String)}, orient="row"))


# ── The files that a CSV names, even if their paths are spelled as another system or folder would ───────────────────


_MOST_FOLDERS = 20
"""Number of folders beside a CSV, and of those in them, that are searched for a missing file, to say where it is."""

_ARCHIVE_ID = r"[0-9a-f]{16}(\.jpg)?"


@dataclass
class ListedFiles:
    """Finds the files that a CSV names, and counts those whose paths had to be guessed."""

    folder: Path  # of the CSV
    guessed: Counter[str] = field(default_factory=Counter)  # by how the path differs, see `_difference`
    _names: dict[Path, dict[str, list[str]]] = field(default_factory=dict)  # folder → key → names in it
    _siblings: list[Path] | None = None  # folders beside the CSV

    @functools.cached_property
    def _unpacked(self) -> UnpackedArchive:
        return UnpackedArchive(self.folder)

    def find(self, text: str) -> tuple[Path | None, str]:
        """Return the file, or None and why there is none."""
        try:
            as_written = self.folder / text
            if as_written.is_file():
                return as_written, ""
            if as_written.exists():
                return None, "a folder" if as_written.is_dir() else "not a file"
        except (OSError, ValueError) as error:
            what = "it cannot be reached" if isinstance(error, PermissionError) else "there can be no such file"
            return None, f"{what} ({getattr(error, 'strerror', None) or error})"
        if "://" in text:
            return None, "an address, not a file: what lies there must be fetched first, or file:// be left out"
        found, why = self._find_respelled(text)
        if found is None and "%" in text:
            found, _ = self._find_respelled(unquote(text))
        if found is not None:
            self.guessed[_difference(text, found)] += 1
            return found, ""
        return None, why

    def _find_respelled(self, text: str) -> tuple[Path | None, str]:
        """Return the file of a path that is spelled as another system would, or None and why there is none."""
        steps = [step for step in text.strip().replace("\\", "/").split("/") if step not in ("", ".")]
        found = self._below(Path("/") if text.strip().startswith("/") else self.folder, steps)
        if found is not None and _is_file(found):
            return found, ""
        if re.fullmatch(_ARCHIVE_ID, text.strip()) and self._unpacked.folders:
            unpacked = self._unpacked.find(text.strip()[:16])
            return unpacked, "" if unpacked else "it is not among the images of the archive that are unpacked here"
        return None, f"there is no such file{self._nearby(text, steps)}"

    def _below(self, folder: Path, steps: list[str]) -> Path | None:
        """Return the path that `steps` lead to from a folder, each in its own spelling or another system's."""
        here: Path | None = folder
        for number, step in enumerate(steps):
            here = self._inside(here, step, last=number == len(steps) - 1) if here is not None else None
        return here

    def _nearby(self, text: str, steps: list[str]) -> str:
        """Return a hint to a file that the path may mean; it is not used, because it may be another image."""
        if _is_file(Path(text)):
            return "; paths are relative to the folder of the CSV"
        root = "/" if text.strip().startswith("/") else ""
        for start in range(0 if root else 1, len(steps)):
            if _is_file(self.folder.joinpath(*steps[start:])):
                return f"; {'/'.join(steps[start:])} is there: take {root}{'/'.join(steps[:start])} off the paths"
        if (other := self._with_another_ending(steps)) is not None:
            return f"; {readable(other.relative_to(self.folder).as_posix())} is there, of another ending"
        if self._siblings is None:
            siblings = folders_in(self.folder)
            below = (folder for sibling in siblings[:_MOST_FOLDERS] for folder in folders_in(sibling))
            self._siblings = [*siblings, *below][:_MOST_FOLDERS]
        for folder in self._siblings:
            found = self._below(folder, steps)
            if found is not None and _is_file(found):
                path = readable(found.relative_to(self.folder).as_posix())
                beside = readable(folder.relative_to(self.folder).as_posix())
                return f"; {path} is there: put the CSV into {beside}, or {beside}/ before the paths"
        return "" if Path(text).suffix.lower() in SUFFIXES else ", with no ending of an image either"

    def _with_another_ending(self, steps: list[str]) -> Path | None:
        """Return the only image with the path's name but another ending, such as `a.jpg` for `a.jpeg`, or None."""
        if not steps or Path(steps[-1]).suffix.lower() not in SUFFIXES:
            return None
        found = self._below(self.folder, [*steps[:-1], Path(steps[-1]).stem])
        return found if found is not None and _is_file(found) and found.is_relative_to(self.folder) else None

    def _inside(self, folder: Path, step: str, *, last: bool) -> Path | None:
        """Return the only path in a folder whose name is `step` in another spelling, or None.

        In the `last` step the ending of an image may be missing.
        """
        if step == "..":
            return folder / step
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            try:
                for path in folder.iterdir():
                    names.setdefault(_key(path.name), []).append(path.name)
                    if path.suffix.lower() in SUFFIXES:
                        names.setdefault(f"{_key(path.stem)}\0", []).append(path.name)
            except OSError:
                names = {}
            self._names[folder] = names
        names = self._names[folder]
        candidates = names.get(_key(step)) or (names.get(f"{_key(step)}\0") if last else None) or []
        exact = [name for name in candidates if name == step]
        candidates = exact or candidates
        return folder / candidates[0] if len(candidates) == 1 else None

    def remarks(self) -> list[str]:
        """Return remarks that count the paths which were guessed, by how they differ."""
        return [f"{plural(count, 'path', 'were')} found {how}" for how, count in sorted(self.guessed.items())]


def _is_file(path: Path) -> bool:
    """Return whether a path leads to a file; one that is too long or must not be looked at leads to none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _difference(text: str, found: Path) -> str:
    """Return how the path of a file differs from the `text` in the CSV, as the end of a sentence."""
    if re.fullmatch(_ARCHIVE_ID, text.strip()) and found.parts[-4:-1] == tuple(text.strip()[:3]):
        return "in the folders of an id's first digits, as the archive's TARs hold them"
    name, written = found.name, text.strip().replace("\\", "/").rsplit("/", 1)[-1]
    if _key(written) != _key(name) and _key(unquote(written)) == _key(name):
        return "with letters for the %41 of the list"
    if _key(written) != _key(name):
        return "with an ending that the list does not have"
    if "\\" in text:
        return "with / for the \\ of the list"
    if text != text.strip() and found.as_posix().endswith("/".join(text.strip().removeprefix("./").split("/"))):
        return "without the spaces around them"
    return "in another case, or another form of Unicode"
