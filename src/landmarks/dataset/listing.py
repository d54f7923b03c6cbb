"""What a folder or a CSV holds for `import`: its images with their landmarks and splits, and what is rejected."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from landmarks.dataset.csv_lists import list_csv
from landmarks.dataset.layouts import Layout, Steps, layout_of
from landmarks.dataset.naming import LABELS_CSV, UNKNOWN, UNPACKED, normalised_name
from landmarks.dataset.sources import (
    LISTS,
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
from landmarks.dataset.spelling import parse_split, remarks_about_folders, remarks_about_names, words_of
from landmarks.dataset.unpack import unpacked_labels
from landmarks.support.console import plural
from landmarks.support.errors import LandmarksError, UsageError
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
            way_out="landmarks select and fetch take images out of the TARs; or put the archive's train.csv, which"
            " knows what they show, into the folder that holds 0 to f, and import that",
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
