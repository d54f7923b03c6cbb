"""Folders of train, val and test: in which folders of theirs the landmarks lie, and which images have no label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from landmarks.dataset.naming import UNKNOWN
from landmarks.dataset.sources import LISTS, folders_in, way_out_of
from landmarks.dataset.spelling import split_meant, words_of
from landmarks.support.errors import UsageError
from landmarks.support.systems import readable

Steps = tuple[str, ...]  # the folders that lead to an image, and its name


@dataclass(frozen=True)
class Layout:
    """Which of the folders that lead to an image is its landmark, and which its split."""

    rule: str
    read: Callable[[Steps], tuple[str | None, str | None] | str]  # (landmark, split), or why the image has no place
    levels: list[Steps]  # the folders in which the folders of landmarks lie
    remarks: list[str] = field(default_factory=list)


def divided(
    source: Path, images: Sequence[Steps], base: Steps, tops: tuple[dict[str, str], list[str]], remarks: list[str]
) -> Layout:
    """Return the layout of a folder whose `tops` are all splits, of which the second list hold folders themselves.

    A folder that is alone in its split and holds folders wraps the landmarks; one that holds images and is called as
    folders of images are, and no landmark of the other splits, is none.
    """
    (splits, deep), depth = tops, len(base)
    inside = {top: [steps[depth + 1 :] for steps in images if steps[depth] == top] for top in deep}
    wrappers = _wrappers(inside)
    foldered = {top: [steps[top in wrappers :] for steps in below] for top, below in inside.items()}
    foldered = {top: [steps for steps in below if len(steps) > 1] for top, below in foldered.items()}
    unlabelled = _folders_of_images({top: {steps[0] for steps in below} - {UNKNOWN} for top, below in foldered.items()})
    deep = [top for top in deep if top not in unlabelled]
    here = source.joinpath(*base)
    if not deep:
        raise UsageError(
            f"{source} holds images in {', '.join(splits)}, but no folders of landmarks in them: they have no labels",
            expected="train/LANDMARK/IMAGE.jpg and the same for val and test, or a CSV of path, label and split",
            way_out=list_near([here, *(here / top for top in splits)])
            or "images to be answered need no import: landmarks predict RUN FOLDER",
        )
    remarks = remarks + _remarks(here, splits, deep, wrappers)
    wrapper = {top: (wrappers[top],) if top in wrappers else () for top in deep}
    remarks += deeper_remark(
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


def is_of_images(name: str) -> bool:
    """Return whether a folder is called as folders of images are, and not by what they show: `images`, `val_data`."""
    words = [word.casefold() for word in words_of(name)]
    return any(word in _OF_IMAGES for word in words) and all(word in _OF_IMAGES or split_meant(word) for word in words)


_OF_IMAGES = frozenset(
    {
        "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "pic", "pics", "jpegimages", "jpeg",
        "jpegs", "jpg", "jpgs", "png", "pngs", "file", "files", "data", "dataset", "datasets",
    }
)  # fmt: skip


def deeper_remark(deeper: Sequence[Steps], depth: int) -> list[str]:
    """Return a remark about images that lie in folders inside a landmark's folder, which is the one at `depth`."""
    if not deeper:
        return []
    return [
        f"{len(deeper):,} images lie in folders inside a landmark's folder, such as {'/'.join(deeper[0][:-1])}:"
        f" these are taken for images of {deeper[0][depth]}"
    ]


def list_near(folders: Sequence[Path]) -> str:
    """Return what can be done with a list of labels that lies in one of these folders; empty where there is none."""
    lists = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.suffix.lower() in LISTS]
    return way_out_of(sorted(path for path in lists if path.is_file()))


def _wrappers(inside: dict[str, list[Steps]]) -> dict[str, str]:
    """Return split → the folder in it that wraps its landmarks: alone, with folders in it and no image beside them."""
    alone = {}
    for top, below in inside.items():
        names = {steps[0] for steps in below}
        if len(names) == 1 and names != {UNKNOWN} and all(len(steps) > 2 for steps in below):
            alone[top] = names.pop()
    if len(alone) == len(inside):
        return alone
    landmarks = {steps[0] for top, below in inside.items() if top not in alone for steps in below}
    return {top: name for top, name in alone.items() if name not in landmarks and _tells_nothing(name)}


def _folders_of_images(named: dict[str, set[str]]) -> set[str]:
    """Return the splits whose only folder is called as folders of images are, and is no landmark of another split."""
    landmarks = set().union(*(names for names in named.values() if len(names) > 1))
    alone = {top: next(iter(names)) for top, names in named.items() if len(names) == 1}
    return {top for top, name in alone.items() if name not in landmarks and _tells_nothing(name)}


def _tells_nothing(name: str) -> bool:
    """Return whether a folder that is alone in a split is called by the split or by what lies in it: `img_val`."""
    return any(word.casefold() in _OF_IMAGES or split_meant(word) for word in words_of(name))


def _remarks(base: Path, splits: dict[str, str], deep: Sequence[str], wrappers: dict[str, str]) -> list[str]:
    told = []
    if wrapped := sorted({wrappers[top] for top in deep if top in wrappers}):
        each = "each split holds the folder" if len(wrapped) == 1 else "splits hold the folders"
        told.append(f"{each} {', '.join(wrapped)} alone: the folders in it are taken as landmarks")
    for folder in folders_in(base):
        if folder.name not in splits and split_meant(folder.name):
            told.append(f"the folder {readable(folder.name)} holds no image")
    if flat := [top for top in splits if top not in deep]:
        hold = "hold" if len(flat) > 1 else "holds"
        told.append(f"{', '.join(flat)} {hold} images but no folders of landmarks: without labels they are left out")
    return told
