"""How folders of images are laid out: which folder is a landmark, which a split, which only wraps the others."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from landmarks.dataset.csv_lists import list_csv
from landmarks.dataset.doubtful_names import doubts_about, one_landmark_of_several
from landmarks.dataset.naming import LABELS_CSV, UNKNOWN, UNPACKED, Landmark, plain, read_labels_csv
from landmarks.dataset.sources import (
    LISTS,
    FolderImages,
    Found,
    Source,
    folders_in,
    image_by_its_bytes,
    images_in,
    way_out_of,
    way_out_of_name,
    with_ids,
)
from landmarks.dataset.spelling import split_in, split_meant, words_of
from landmarks.dataset.split_folders import Layout, Steps, deeper_remark, divided, is_of_images, list_near
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.places import as_given
from landmarks.support.systems import is_text, readable


def list_source(source: Path, known: Collection[str] = ()) -> Source:
    """List a folder per landmark, train/val/test folders of these, or a CSV of paths and labels.

    `known` are names of landmarks from elsewhere: a folder of such a name is one, and wraps nothing.
    """
    if source.is_dir():
        listed = _list_folder(source, known)
    elif source.is_file():
        listed = list_csv(source)
    else:
        told = as_given(source)
        raise LandmarksError(f"there is no folder or CSV {told}", way_out=way_out_of_name(told))
    found = sorted(listed.found, key=lambda one: one.where)
    named = () if known or listed.listed is not None else (one.name for one in found if one.name is not None)
    remarks = [*listed.remarks, *doubts_about(named)]
    return replace(listed, found=with_ids(found), rejected=sorted(listed.rejected), remarks=remarks)


def _list_folder(source: Path, known: Collection[str]) -> Source:
    if (source / "dataset.json").is_file():
        raise UsageError(f"{source} is a dataset already", way_out="landmarks select and join take it as it is")
    inside = images_in(source)
    paths = inside.images + inside.linked_folders
    steps = [path.relative_to(source).parts for path in paths]
    images = steps[: len(inside.images)]
    _refuse_digits(source, images)
    layout = layout_of(source, images, known)
    called: set[str] = set()
    found, rejected = (
        [],
        [(f"{_shown(folder, source)}/", f"cannot be listed ({why})") for folder, why in inside.unlisted],
    )
    for path, step in zip(paths, steps, strict=True):
        where = _shown(path, source)
        place = layout.read(step)
        if why := _unfit(path, source) or (place if isinstance(place, str) else ""):
            rejected.append((where, why))
        else:
            assert not isinstance(place, str)
            name, split = place
            called.add(name or UNKNOWN)
            found.append(Found(path, where, None if name in (None, UNKNOWN) else plain(name or ""), split))
    listed, remarks = _own_list(source)
    ours = (source / LABELS_CSV, source / UNPACKED) if listed is not None else ()
    left = replace(inside, others=[path for path in inside.others if path not in ours])
    remarks += _unread(source, left.others, found, rejected)
    return Source(
        layout.rule,
        found,
        rejected,
        passed_by=left.passed_by(),
        listed=listed,
        empty=_empty(source, layout, images, {path for path, _ in inside.unlisted}),
        remarks=layout.remarks + one_landmark_of_several(called) + remarks,
        way_out=_way_out(left, rejected),
    )


def layout_of(source: Path, images: Sequence[Steps], known: Collection[str] = ()) -> Layout:
    """Return the layout of a folder with these images (as paths relative to it); raise where its splits have no labels.

    Folders of splits are known by their names in any case and spelling, empty ones and files beside them do not
    matter; a folder that wraps all others is passed through, outside of the splits and inside.
    """
    base, remarks = _unwrapped(source, images, known)
    depth = len(base)
    tops = sorted({steps[depth] for steps in images if len(steps) > depth + 1} - {UNKNOWN})
    splits = {top: split for top in tops if (split := split_meant(top))}
    deep = [top for top in splits if any(steps[depth] == top and len(steps) > depth + 2 for steps in images)]
    if splits and len(splits) == len(tops):
        return divided(source, images, base, (splits, deep), remarks)
    likely = {top: split for top in tops if (split := split_in(top))}
    odd = [top for top in tops if top not in likely]
    alike = _hold_the_same(images, depth, likely, tops)
    if alike and not odd:
        remarks.append(f"{', '.join(tops)} are taken as splits: they hold folders of the same names")
        deep = [top for top in tops if any(steps[depth] == top and len(steps) > depth + 2 for steps in images)]
        return divided(source, images, base, (likely, deep), remarks)
    looks = {splits[top] for top in deep}
    sure = "train" in looks or len(set(likely.values())) > 1  # `Train Station` alone says nothing
    if (len(looks) > 1 and "train" in looks) or (alike and sure and len(likely) >= len(odd)):
        beside = next(top for top in tops if top not in (likely if alike else splits))
        raise UsageError(
            f"{source} looks divided into {', '.join(likely if alike else deep)}, but the folder {beside} beside"
            f" {'them' if len(likely) > 1 else 'it'} is no split",
            way_out=f"call it val or test, move {beside} elsewhere, or name the images in a CSV that tells the split",
        )
    if deep or len(splits) > 1:
        remarks.append(f"{', '.join(splits)} may be meant as splits, but others lie beside: all are taken as landmarks")
    elif len(like := [top for top in tops if any(split_meant(word) for word in words_of(top))]) > 1:
        remarks.append(
            f"{', '.join(like)} may be meant as splits, but are called otherwise: they are taken as landmarks"
        )
    inner = {steps[depth + 1] for steps in images if len(steps) == depth + 3 and steps[depth] != UNKNOWN}
    if (
        len(tops) > 1
        and len({split_meant(name) for name in inner}) > 1
        and all(split_meant(steps[depth + 1]) and len(steps) == depth + 3 for steps in images)
    ):
        rule = "train, val and test in a folder per landmark"
        return Layout(rule, lambda steps: (steps[depth], split_meant(steps[depth + 1])), [base], remarks)

    if len(tops) == 1 and is_of_images(tops[0]) and not known:
        raise UsageError(
            f"{source} holds images in the folder {tops[0]} alone, and no folders of landmarks: they have no labels",
            expected="a folder per landmark with images inside, or a CSV of paths and labels",
            way_out=list_near([source.joinpath(*base), source.joinpath(*base, tops[0])])
            or f"were {tops[0]} a landmark: rename it to the landmark that its images show",
        )
    deeper = [steps for steps in images if len(steps) > depth + 2]
    remarks += deeper_remark(deeper, depth)
    if len(tops) > 1 and len(deeper) == len(images) and len(inner) > 1:
        each = _named_inside(images, depth)
        if all(each.get(top) == inner for top in tops):
            remarks.append(
                f"all of them hold folders of the same names ({', '.join(sorted(inner)[:3])}): were those the"
                " landmarks, give one of the folders, or name path, label and split in a CSV"
            )

    def read(steps: Steps) -> tuple[str | None, str | None]:
        return (steps[depth] if len(steps) > depth + 1 else None), None

    return Layout("a folder per landmark", read, [base], remarks)


def _hold_the_same(images: Sequence[Steps], depth: int, likely: Mapping[str, str], tops: Sequence[str]) -> list[str]:
    """Return the folders beside train that hold folders of the names that train holds, as splits do and landmarks not.

    A folder that is alone in its split wraps the others.
    """
    if "train" not in likely.values():
        return []
    named = _named_inside(images, depth)
    trained = set().union(*(named.get(top, set()) for top, split in likely.items() if split == "train"))
    return [top for top in tops if likely.get(top) != "train" and named.get(top, set()) & trained]


def _named_inside(images: Sequence[Steps], depth: int) -> dict[str, set[str]]:
    """Return folder → the folders in it that hold images, in one pass; one that is alone and wraps others is none."""
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
    """Return the folders that wrap all others, and a remark where there are any."""
    base: Steps = ()
    while images:
        depth = len(base)
        tops = {steps[depth] for steps in images}
        top = next(iter(tops))
        alone = len(tops) == 1 and all(len(steps) > depth + 2 for steps in images)
        if not alone or top == UNKNOWN or split_meant(top) or plain(top) in known:
            break
        beside = [folder for folder in folders_in(source.joinpath(*base)) if folder.name != top]
        if any(not any(folder.iterdir()) for folder in beside):  # an empty folder: of a landmark, by the look of it
            break
        base = (*base, top)
    if not base:
        return base, []
    return base, [f"everything lies in the folder {'/'.join(base)}: the folders in it are taken as if they lay outside"]


def _refuse_digits(source: Path, images: Sequence[Steps]) -> None:
    """Raise where most folders only spell the beginnings of the files' names, as the archive's own `0/a/f/` do."""
    spelt = [steps for steps in images if _spells(steps)]
    if len(spelt) > len(images) / 2:
        raise UsageError(
            f"the folders in {source} are the first digits of images' ids, as in the archive's TARs: no landmarks",
            received="/".join(spelt[0]),
            way_out="landmarks select and fetch take images out of the TARs; or put the archive's train.csv, which"
            " knows what they show, into the folder that holds 0 to f, and import that",
        )


def _spells(steps: Steps) -> bool:
    stem = Path(steps[-1]).stem.lower()
    if not re.fullmatch("[0-9a-f]{8,}", stem):
        return False
    folders = steps[:-1]
    return any(
        len(folders) - start > 1 and stem.startswith("".join(folders[start:]).lower()) for start in range(len(folders))
    )


def _unfit(path: Path, source: Path) -> str:
    """Return why a file is not even opened, or an empty string."""
    if not is_text(path.relative_to(source)):
        return "its name is not valid UTF-8"
    if path.is_symlink():
        if path.is_dir():
            return "a link to a folder"
        if not path.exists():
            return "a link to a file that is not there"
        if not path.resolve().is_relative_to(source.resolve()):
            return "a link that leads outside the folder"
    return "" if path.is_file() else "not a file"


def _own_list(source: Path) -> tuple[dict[str, Landmark] | None, list[str]]:
    """Return what `labels.csv` lists, if that is the one which `unpack` writes; else a remark about it."""
    path = source / LABELS_CSV
    if not path.is_file():
        return None, []
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        header = [name.strip().strip('"').lower() for name in re.split("[,;\t]", file.readline(10_000))]
    if {"folder", "landmark_id"} <= set(header) or (source / UNPACKED).is_file():
        return read_labels_csv(path), []
    told = f"{path} ({', '.join(header)[:80]}) is somebody else's and is passed by: the folders' names are the labels"
    return None, [told + f"; were it a list of paths and labels: landmarks import {path}"]


def _unread(
    source: Path, others: Sequence[Path], found: Sequence[Found], rejected: Sequence[tuple[str, str]]
) -> list[str]:
    """Return remarks about files that were passed by and may matter: lists of splits, images by another name."""
    remarks = []
    lists = [path for path in others if path.suffix.lower() in (*LISTS, ".txt", ".lst")]
    lists = [path for path in lists if any(split_meant(word) for word in words_of(path.stem))]
    if lists and (rejected or not any(one.split for one in found)):
        told = ", ".join(_shown(path, source) for path in lists[:3]) + (" …" if len(lists) > 3 else "")
        remarks.append(
            f"{told} may list the images of splits; in a folder no list is read: write a CSV with a column"
            " split, and give that"
        )
    if found and (images := image_by_its_bytes(others)):
        remarks.append(f"left out: {images}")
    return remarks


def _empty(source: Path, layout: Layout, images: Sequence[Steps], unlisted: set[Path]) -> list[str]:
    """Return the folders of landmarks that hold no image in any split; those that cannot be listed are told of so."""
    full: set[str] = set()
    named: set[str] = set()
    for level in layout.levels:
        folders = folders_in(source.joinpath(*level))
        named |= {folder.name for folder in folders if folder not in unlisted and not folder.is_symlink()}
        full |= {steps[len(level)] for steps in images if steps[: len(level)] == level and len(steps) > len(level) + 1}
    return sorted(readable(name) for name in named - full - {UNKNOWN})


def _way_out(inside: FolderImages, rejected: Sequence[tuple[str, str]]) -> str:
    if any("link" in why for _, why in rejected):
        return "copy what the links lead to: cp -rL FOLDER COPY"
    return way_out_of(inside.others)


def _shown(path: Path, source: Path) -> str:
    return readable(path.relative_to(source).as_posix())
