"""The layouts of image folders: which folders are landmarks, which are splits, and which only wrap the others."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from landmarks.dataset.csv_files import read_text_columns
from landmarks.dataset.csv_lists import list_csv
from landmarks.dataset.naming import LABELS_CSV, UNKNOWN, UNPACKED, Landmark, normalised_name
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
from landmarks.dataset.spelling import parse_split, remarks_about_folders, remarks_about_names, split_in_words, words_of
from landmarks.dataset.split_folders import (
    Layout,
    Steps,
    is_image_folder,
    nested_remarks,
    split_layout,
    way_out_by_list,
)
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
    listed, remarks = _unpacked_labels(source)
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


def layout_of(source: Path, images: Sequence[Steps], known: Collection[str] = ()) -> Layout:
    """Return the layout of a folder with these images, given as paths relative to it.

    Folders of splits are recognised by their names in any case and spelling; empty folders and files beside them do
    not matter. A folder that wraps all others is skipped, outside the splits and inside them. Raises `UsageError` if
    the images have no labels, or if only some of the folders look like splits.
    """
    base, remarks = _unwrapped(source, images, known)
    depth = len(base)
    tops = sorted({steps[depth] for steps in images if len(steps) > depth + 1} - {UNKNOWN})
    splits = {top: split for top in tops if (split := parse_split(top))}
    deep = [top for top in splits if any(steps[depth] == top and len(steps) > depth + 2 for steps in images)]
    if splits and len(splits) == len(tops):
        return split_layout(source, images, base, (splits, deep), remarks, known=known)
    likely = {top: split for top in tops if (split := split_in_words(top))}
    others = [top for top in tops if top not in likely]
    same_names = _with_names_of_train(images, depth, likely, tops)
    train_holds_folders = any(splits[top] == "train" for top in deep)
    if (same_names or train_holds_folders) and not others:
        why = "they hold folders of the same names" if same_names else "all are called so, and train holds folders"
        remarks.append(f"{', '.join(tops)} are taken as splits: {why}")
        deep = [top for top in tops if any(steps[depth] == top and len(steps) > depth + 2 for steps in images)]
        return split_layout(source, images, base, (likely, deep), remarks, known=known)
    found = {splits[top] for top in deep}
    sure = "train" in found or len(set(likely.values())) > 1  # a single `Train Station` proves nothing
    if (len(found) > 1 and "train" in found) or (same_names and sure and len(likely) >= len(others)):
        other = next(top for top in tops if top not in (likely if same_names else splits))
        raise UsageError(
            f"{source} looks divided into {', '.join(likely if same_names else deep)}, but the folder {other} beside"
            f" {'them' if len(likely) > 1 else 'it'} is no split",
            way_out=f"call it val or test, move {other} elsewhere, or name the images in a CSV that tells the split",
        )
    if deep or len(splits) > 1:
        remarks.append(f"{', '.join(splits)} may be meant as splits, but others lie beside: all are taken as landmarks")
    elif set(splits.values()) & {"val", "test"} and len(tops) > 1:
        remarks.append(
            f"{', '.join(splits)} may be meant as a split, but landmarks lie beside: it is taken as a landmark, too"
        )
    elif len(doubtful := [top for top in tops if any(parse_split(word) for word in words_of(top))]) > 1:
        remarks.append(
            f"{', '.join(doubtful)} may be meant as splits, but are called otherwise: they are taken as landmarks"
        )
    inner = {steps[depth + 1] for steps in images if len(steps) == depth + 3 and steps[depth] != UNKNOWN}
    if (
        len(tops) > 1
        and len({parse_split(name) for name in inner}) > 1
        and all(
            _in_split_of_landmark(steps, depth) for steps in images if len(steps) > depth + 1 and steps[depth] in tops
        )
    ):

        def read_split(steps: Steps) -> tuple[str | None, str | None] | str:
            if not _in_split_of_landmark(steps, depth):
                return "it lies in no split of a landmark"
            return steps[depth], parse_split(steps[depth + 1])

        return Layout("train, val and test in a folder per landmark", read_split, [base], remarks)

    if len(tops) == 1 and is_image_folder(tops[0]) and not known:
        raise UsageError(
            f"{source} holds images in the folder {tops[0]} alone, and no folders of landmarks: they have no labels",
            expected="a folder per landmark with images inside, or a CSV of paths and labels",
            way_out=way_out_by_list([source.joinpath(*base), source.joinpath(*base, tops[0])])
            or f"were {tops[0]} a landmark: rename it to the landmark that its images show",
        )
    deeper = [steps for steps in images if len(steps) > depth + 2]
    remarks += nested_remarks(deeper, depth)
    if len(tops) > 1 and len(deeper) == len(images) and len(inner) > 1:
        names = _names_inside(images, depth)
        if all(names.get(top) == inner for top in tops):
            remarks.append(
                f"all of them hold folders of the same names ({', '.join(sorted(inner)[:3])}): were those the"
                " landmarks, give one of the folders, or name path, label and split in a CSV"
            )

    def read(steps: Steps) -> tuple[str | None, str | None]:
        return (steps[depth] if len(steps) > depth + 1 else None), None

    return Layout("a folder per landmark", read, [base], remarks)


def _in_split_of_landmark(steps: Steps, depth: int) -> bool:
    return len(steps) == depth + 3 and parse_split(steps[depth + 1]) is not None


def _with_names_of_train(
    images: Sequence[Steps], depth: int, likely: Mapping[str, str], tops: Sequence[str]
) -> list[str]:
    """Return the folders beside train that hold folders of the same names as train does: splits do, landmarks do not.

    A folder that is alone in its split wraps the others.
    """
    if "train" not in likely.values():
        return []
    names = _names_inside(images, depth)
    trained = set().union(*(names.get(top, set()) for top, split in likely.items() if split == "train"))
    return [top for top in tops if likely.get(top) != "train" and names.get(top, set()) & trained]


def _names_inside(images: Sequence[Steps], depth: int) -> dict[str, set[str]]:
    """Return folder → the names of the folders in it that hold images; one that only wraps others is replaced by them.

    One pass over `images`, of which there may be millions.
    """
    direct: dict[str, set[str]] = {}
    second: dict[str, set[str]] = {}
    flat: set[str] = set()
    for steps in images:
        if len(steps) > depth + 2:
            top, name = steps[depth], steps[depth + 1]
            direct.setdefault(top, set()).add(name)
            if len(steps) > depth + 3:
                second.setdefault(top, set()).add(steps[depth + 2])
            else:
                flat.add(top)
    wrapped = {top for top, names in direct.items() if len(names) == 1 and top not in flat}
    return {top: (second[top] if top in wrapped else names) - {UNKNOWN} for top, names in direct.items()}


def _unwrapped(source: Path, images: Sequence[Steps], known: Collection[str]) -> tuple[Steps, list[str]]:
    """Return the folders that wrap all others, and a remark if there are any."""
    base: Steps = ()
    while images:
        depth = len(base)
        tops = {steps[depth] for steps in images}
        top = next(iter(tops))
        wraps = len(tops) == 1 and all(len(steps) > depth + 2 for steps in images)
        if not wraps or top == UNKNOWN or parse_split(top) or normalised_name(top) in known:
            break
        siblings = [folder for folder in folders_in(source.joinpath(*base)) if folder.name != top]
        if any(not any(folder.iterdir()) for folder in siblings):  # an empty folder is probably a landmark's
            break
        base = (*base, top)
    if not base:
        return base, []
    return base, [f"everything lies in the folder {'/'.join(base)}: the folders in it are taken as if they lay outside"]


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


def _without_name(name: str | None, path: Path) -> str:
    """Return why an image in the folder `name` has no landmark although it should, or an empty string."""
    if name is None and "\\" in path.name:
        return "its name holds \\ for the folders that it lay in"
    return "the name of its folder is blank" if name is not None and not normalised_name(name) else ""


def _refuse_folders_in_names(source: Path, images: Sequence[Steps]) -> None:
    """Raise if most names hold folders, as an archive that Windows made leaves them behind when unpacked elsewhere."""
    with_folders = [steps for steps in images if "\\" in steps[-1]]
    if len(with_folders) > len(images) / 2:
        raise UsageError(
            f"{plural(len(with_folders), 'name')} in {source} hold \\ for the folders that the images lay in",
            received="/".join(with_folders[0]),
            way_out="unpack the archive again with a program that makes folders of them, such as 7z x",
        )


def _spells_id(steps: Steps) -> bool:
    stem = Path(steps[-1]).stem.lower()
    if not re.fullmatch("[0-9a-f]{8,}", stem):
        return False
    folders = steps[:-1]
    return any(
        len(folders) - start > 1 and stem.startswith("".join(folders[start:]).lower()) for start in range(len(folders))
    )


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


def _unpacked_labels(source: Path) -> tuple[dict[str, Landmark] | None, list[str]]:
    """Return what `labels.csv` lists if `unpack` wrote it; a remark if it is somebody else's."""
    path = source / LABELS_CSV
    if not path.is_file():
        missing = f"{path} is missing, which landmarks unpack wrote: the folders' names are taken whole, with the ids"
        return None, [missing] if (source / UNPACKED).is_file() else []
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        header = [name.strip().strip('"').lower() for name in re.split("[,;\t]", file.readline(10_000))]
    if {"folder", "landmark_id"} <= set(header) or (source / UNPACKED).is_file():
        return _read_labels_csv(path), []
    columns = ", ".join(header)[:80]
    return None, [
        f"{path} ({columns}) is somebody else's and is passed by: the folders' names are the labels;"
        f" were it a list of paths and labels: landmarks import {path}"
    ]


def _read_labels_csv(path: Path) -> dict[str, Landmark]:
    """Read the `labels.csv` that `unpack` wrote: folder → landmark."""
    way_out = f"landmarks unpack writes it; without it the folders are numbered by their sorted names: delete {path}"
    listed: dict[str, Landmark] = {}
    folder_of: dict[int, str] = {}
    rows = read_text_columns(path, ("folder", "landmark_id", "name", "category"), way_out)
    for line, listed_as, number, name, category in rows.iter_rows():
        integer = re.fullmatch(r"([0-9]{1,18})(?:\.0+)?", number)
        if integer is None:
            raise LandmarksError(f'{path} line {line} has the landmark_id "{number}"', expected="a whole number")
        folder, landmark_id = normalised_name(listed_as), int(integer[1])
        landmark = Landmark(landmark_id, name or str(landmark_id), category or None)
        if listed.setdefault(folder, landmark) != landmark:
            raise LandmarksError(f'{path} line {line} lists the folder "{folder}" again, as another landmark')
        if folder_of.setdefault(landmark_id, folder) != folder:
            raise LandmarksError(
                f'{path} line {line} gives the landmark_id {landmark_id} to the folder "{folder}"',
                received=f'the same for "{folder_of[landmark_id]}"',
                way_out="give each its own",
            )
    return listed


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
