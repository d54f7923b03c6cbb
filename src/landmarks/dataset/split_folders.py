"""The layout of train, val and test folders: which folders in them are landmarks, and which images have no label."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from landmarks.dataset.naming import UNKNOWN, normalised_name
from landmarks.dataset.sources import LISTS, folders_in, way_out_of
from landmarks.dataset.spelling import parse_split, words_of
from landmarks.support.errors import UsageError
from landmarks.support.systems import readable

Steps = tuple[str, ...]
"""The folders that lead to an image, and the name of its file."""


@dataclass(frozen=True)
class Layout:
    """Which of the folders that lead to an image is its landmark, and which its split."""

    rule: str  # the layout in words
    read: Callable[[Steps], tuple[str | None, str | None] | str]  # (landmark, split), or why an image is rejected
    levels: list[Steps]  # the folders that hold the folders of landmarks
    remarks: list[str] = field(default_factory=list)


def split_layout(
    source: Path,
    images: Sequence[Steps],
    base: Steps,
    tops: tuple[dict[str, str], list[str]],
    remarks: list[str],
    *,
    known: Collection[str] = (),
) -> Layout:
    """Return the layout of a folder whose top folders are all splits.

    `base` are the folders that wrap the splits. `tops` holds the split of each top folder, and a list of the top
    folders that hold folders themselves. A folder that is alone in its split and holds folders wraps the landmarks.
    One that holds images is no landmark if it has a generic name, such as `images`, and no other split has it. A folder
    of a `known` landmark's name is that landmark's.
    """
    (splits, deep), depth = tops, len(base)
    inside = {top: [steps[depth + 1 :] for steps in images if steps[depth] == top] for top in deep}
    wrappers = {top: name for top, name in _wrappers(inside).items() if normalised_name(name) not in known}
    foldered = {top: [steps[top in wrappers :] for steps in below] for top, below in inside.items()}
    foldered = {top: [steps for steps in below if len(steps) > 1] for top, below in foldered.items()}
    names_of = {top: {steps[0] for steps in below} - {UNKNOWN} for top, below in foldered.items()}
    with_known = {top for top, names in names_of.items() if any(normalised_name(name) in known for name in names)}
    unlabelled = _splits_without_labels(names_of) - with_known
    deep = [top for top in deep if top not in unlabelled]
    here = source.joinpath(*base)
    if not deep:
        raise UsageError(
            f"{source} holds images in {', '.join(splits)}, but no folders of landmarks in them: they have no labels",
            expected="train/LANDMARK/IMAGE.jpg and the same for val and test, or a CSV of path, label and split",
            way_out=way_out_by_list([here, *(here / top for top in splits)])
            or "images to be answered need no import: landmarks predict RUN FOLDER",
        )
    remarks = remarks + _remarks(here, splits, deep, wrappers)
    wrapper = {top: (wrappers[top],) if top in wrappers else () for top in deep}
    remarks += nested_remarks(
        [(top, *wrapper[top], *steps) for top in deep for steps in foldered[top] if len(steps) > 2],
        1 + (deep[0] in wrappers),
    )

    def read(steps: Steps) -> tuple[str | None, str | None] | str:
        if len(steps) <= depth + 1 or steps[depth] == UNKNOWN:
            return "it lies beside the folders of splits, in none of them"
        top = steps[depth]
        if top not in deep:
            return f"it lies in {'/'.join(steps[depth:-1])}, in no folder of a landmark: what it shows is not known"
        at = depth + 1 + len(wrapper[top])
        return (steps[at] if len(steps) > at + 1 else None), splits[top]

    levels = [(*base, top, *wrapper[top]) for top in deep]
    return Layout(f"a folder per landmark in {', '.join(deep)}", read, levels, remarks)


def is_image_folder(name: str) -> bool:
    """Return whether a folder's name says only that it holds images, not what they show: `images`, `val_data`."""
    words = [word.casefold() for word in words_of(name)]
    generic = all(word in _IMAGE_WORDS or parse_split(word) for word in words)
    return generic and any(word in _IMAGE_WORDS for word in words)


_IMAGE_WORDS = frozenset(
    {
        "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "pic", "pics", "jpegimages", "jpeg",
        "jpegs", "jpg", "jpgs", "png", "pngs", "file", "files", "data", "dataset", "datasets",
    }
)  # fmt: skip


def nested_remarks(deeper: Sequence[Steps], depth: int) -> list[str]:
    """Return a remark about images in folders inside a landmark's folder, which is the one at `depth`, if any."""
    if not deeper:
        return []
    return [
        f"{len(deeper):,} images lie in folders inside a landmark's folder, such as {'/'.join(deeper[0][:-1])}:"
        f" these are taken for images of {deeper[0][depth]}"
    ]


def way_out_by_list(folders: Sequence[Path]) -> str:
    """Return advice about a list of labels that lies in one of these folders; empty if there is none."""
    lists = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.suffix.lower() in LISTS]
    return way_out_of(sorted(path for path in lists if path.is_file()))


def _wrappers(inside: dict[str, list[Steps]]) -> dict[str, str]:
    """Return split → the folder in it that wraps its landmarks: its only folder, which holds only folders."""
    only_folder = {}
    for top, below in inside.items():
        names = {steps[0] for steps in below}
        if len(names) == 1 and names != {UNKNOWN} and all(len(steps) > 2 for steps in below):
            only_folder[top] = names.pop()
    if len(only_folder) == len(inside):
        return only_folder
    landmarks = {steps[0] for top, below in inside.items() if top not in only_folder for steps in below}
    return {top: name for top, name in only_folder.items() if name not in landmarks and _is_wrapper_name(name)}


def _splits_without_labels(names_of: dict[str, set[str]]) -> set[str]:
    """Return the splits whose only folder has a generic name, and is no landmark of another split.

    `names_of` holds the names of the folders in each split.
    """
    landmarks = set().union(*(names for names in names_of.values() if len(names) > 1))
    only_folder = {top: next(iter(names)) for top, names in names_of.items() if len(names) == 1}
    return {top for top, name in only_folder.items() if name not in landmarks and _is_wrapper_name(name)}


def _is_wrapper_name(name: str) -> bool:
    """Return whether the only folder of a split is named after the split or after images: `img_val`."""
    return any(word.casefold() in _IMAGE_WORDS or parse_split(word) for word in words_of(name))


def _remarks(base: Path, splits: dict[str, str], deep: Sequence[str], wrappers: dict[str, str]) -> list[str]:
    remarks = []
    if wrapped := sorted({wrappers[top] for top in deep if top in wrappers}):
        each = "each split holds the folder" if len(wrapped) == 1 else "splits hold the folders"
        remarks.append(f"{each} {', '.join(wrapped)} alone: the folders in it are taken as landmarks")
    for folder in folders_in(base):
        if folder.name not in splits and parse_split(folder.name):
            remarks.append(f"the folder {readable(folder.name)} holds no image")
    if flat := [top for top in splits if top not in deep]:
        hold = "hold" if len(flat) > 1 else "holds"
        remarks.append(f"{', '.join(flat)} {hold} images but no folders of landmarks: without labels they are left out")
    return remarks
