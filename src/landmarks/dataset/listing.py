"""What a folder or a CSV holds for `import`: its images with their landmarks and splits, and what is rejected.

A CSV lists paths and labels, with any separator, encoding, column names and spelling of paths.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from landmarks.dataset.csv_files import SEPARATORS, ListedFiles, csv_rows, refuse_further_cells, text_of
from landmarks.dataset.layouts import Layout, Steps, layout_of
from landmarks.dataset.manifest import SPLITS
from landmarks.dataset.naming import LABELS_CSV, UNKNOWN, UNPACKED, normalised_name
from landmarks.dataset.sources import (
    LISTS,
    SUFFIXES,
    FolderImages,
    FoundImage,
    Source,
    folders_in,
    image_by_its_bytes,
    images_in,
    refuse_run,
    way_out_of,
    way_out_of_name,
    with_image_ids,
)
from landmarks.dataset.spelling import (
    COLUMNS,
    column_key,
    find_columns,
    integer_labels,
    is_fallback,
    may_be_split_column,
    parse_split,
    remarks_about_folders,
    remarks_about_names,
    words_of,
)
from landmarks.dataset.unpack import unpacked_labels
from landmarks.dataset.unpacked_archive import way_to_import
from landmarks.support.console import plural
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.places import as_given
from landmarks.support.systems import is_utf8, readable


def list_source(source: Path, known: Collection[str] = ()) -> Source:
    """List the images of a folder per landmark, of train/val/test folders of these, or of a CSV of paths and labels.

    `known` holds the names of landmarks from an earlier dataset: a folder of such a name is never taken for a wrapper.
    """
    if source.is_dir():
        listed = _list_folder(source, known)
    elif source.is_file():
        listed = list_csv(source)
    else:
        name = as_given(source)
        if source.exists():
            raise LandmarksError(f"{name} is no plain file", expected="a folder, or a CSV of paths and labels")
        raise LandmarksError(f"there is no folder or CSV {name}", way_out=way_out_of_name(name))
    found = sorted(listed.found, key=lambda image: image.where)
    names = () if known or listed.listed is not None else (image.name for image in found if image.name is not None)
    remarks = [*listed.remarks, *remarks_about_names(names)]
    return replace(listed, found=with_image_ids(found), rejected=sorted(listed.rejected), remarks=remarks)


def _list_folder(source: Path, known: Collection[str]) -> Source:
    if (source / "dataset.json").is_file():
        raise UsageError(f"{source} is a dataset already", way_out="landmarks select and join take it as it is")
    refuse_run(source)
    inside = images_in(source)
    paths = inside.images + inside.linked_folders
    steps = [path.relative_to(source).parts for path in paths]
    images = steps[: len(inside.images)]
    _refuse_id_folders(source, images)
    _refuse_folders_in_names(source, images)
    listed, remarks = unpacked_labels(source)
    layout = layout_of(source, images, {*known, *(listed or ())})
    folders: set[str] = set()
    found = []
    rejected = [(f"{_shown(folder, source)}/", f"cannot be listed ({why})") for folder, why in inside.unlisted]
    for path, step in zip(paths, steps, strict=True):
        where = _shown(path, source)
        place = layout.read(step)
        if why := _rejection(path, source) or (place if isinstance(place, str) else ""):
            rejected.append((where, why))
        else:
            assert not isinstance(place, str)
            name, split = place
            if why := _without_name(name, path):
                rejected.append((where, why))
                continue
            folders.add(name or UNKNOWN)
            found.append(
                FoundImage(path, where, None if name in (None, UNKNOWN) else normalised_name(name or ""), split)
            )
    ours = (source / LABELS_CSV, source / UNPACKED) if listed is not None else ()
    inside = replace(inside, others=[path for path in inside.others if path not in ours])
    remarks += _remarks_on_others(source, inside.others, found, rejected)
    return Source(
        layout.rule,
        found,
        rejected,
        ignored=inside.ignored(),
        listed=listed,
        empty=_empty_folders(source, layout, images, {path for path, _ in inside.unlisted}),
        remarks=layout.remarks + remarks_about_folders(folders) + remarks,
        way_out=_way_out(inside, rejected),
    )


def _refuse_id_folders(source: Path, images: Sequence[Steps]) -> None:
    """Raise if most folders only spell the beginnings of the files' names, as `0/a/f/` in the archive's TARs does."""
    spelled = [steps for steps in images if _spells_id(steps)]
    if len(spelled) > len(images) / 2:
        raise UsageError(
            f"the folders in {source} are the first digits of images' ids, as in the archive's TARs: no landmarks",
            received="/".join(spelled[0]),
            way_out=way_to_import(source),
        )


def _spells_id(steps: Steps) -> bool:
    stem = Path(steps[-1]).stem.lower()
    if not re.fullmatch("[0-9a-f]{8,}", stem):
        return False
    folders = steps[:-1]
    return any(
        len(folders) - start > 1 and stem.startswith("".join(folders[start:]).lower()) for start in range(len(folders))
    )


def _refuse_folders_in_names(source: Path, images: Sequence[Steps]) -> None:
    """Raise if most names hold folders, as an archive that Windows made leaves them behind when unpacked elsewhere."""
    with_folders = [steps for steps in images if "\\" in steps[-1]]
    if len(with_folders) > len(images) / 2:
        raise UsageError(
            f"{plural(len(with_folders), 'name')} in {source} hold \\ for the folders that the images lay in",
            received="/".join(with_folders[0]),
            way_out="unpack the archive again with a program that makes folders of them, such as 7z x",
        )


def _without_name(name: str | None, path: Path) -> str:
    """Return why an image in the folder `name` has no landmark although it should, or an empty string."""
    if name is None and "\\" in path.name:
        return "its name holds \\ for the folders that it lay in"
    return "the name of its folder is blank" if name is not None and not normalised_name(name) else ""


def _rejection(path: Path, source: Path) -> str:
    """Return why a file is rejected without being opened, or an empty string."""
    if not is_utf8(path.relative_to(source)):
        return "its name is not valid UTF-8"
    if path.is_symlink():
        if path.is_dir():
            return "a link to a folder"
        if not path.exists():
            return "a link to a file that is not there"
        if not path.resolve().is_relative_to(source.resolve()):
            return "a link that leads outside the folder"
    return "" if path.is_file() else "not a file"


def _remarks_on_others(
    source: Path, others: Sequence[Path], found: Sequence[FoundImage], rejected: Sequence[tuple[str, str]]
) -> list[str]:
    """Return remarks about ignored files that may matter: lists of splits, and images without an image's ending."""
    remarks = []
    lists = [path for path in others if path.suffix.lower() in (*LISTS, ".txt", ".lst")]
    lists = [path for path in lists if any(parse_split(word) for word in words_of(path.stem))]
    if lists and (rejected or not any(image.split for image in found)):
        names = ", ".join(_shown(path, source) for path in lists[:3]) + (" …" if len(lists) > 3 else "")
        remarks.append(
            f"{names} may list the images of splits; in a folder no list is read: write a CSV with a column"
            " split, and give that"
        )
    if found and (image := image_by_its_bytes(others)):
        remarks.append(f"left out: {image}")
    return remarks


def _empty_folders(source: Path, layout: Layout, images: Sequence[Steps], unlisted: set[Path]) -> list[str]:
    """Return the folders of landmarks that hold no image in any split, without the `unlisted` ones."""
    full: set[str] = set()
    names: set[str] = set()
    for level in layout.levels:
        folders = folders_in(source.joinpath(*level))
        names |= {folder.name for folder in folders if folder not in unlisted and not folder.is_symlink()}
        full |= {steps[len(level)] for steps in images if steps[: len(level)] == level and len(steps) > len(level) + 1}
    return sorted(readable(name) for name in names - full - {UNKNOWN})


def _way_out(inside: FolderImages, rejected: Sequence[tuple[str, str]]) -> str:
    if any("link" in why for _, why in rejected):
        return "copy what the links lead to: cp -rL FOLDER COPY"
    return way_out_of(inside.others)


def _shown(path: Path, source: Path) -> str:
    return readable(path.relative_to(source).as_posix())


# ── A CSV of paths and labels ───────────────────────────────────────────────────────────────────────────────────────


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
