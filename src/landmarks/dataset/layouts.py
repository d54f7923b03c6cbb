"""The layouts of image folders: which folders are landmarks, which are splits, and which only wrap the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from landmarks.dataset.naming import UNKNOWN, normalised_name
from landmarks.dataset.sources import LISTS, folders_in, way_out_of
from landmarks.dataset.spelling import parse_split, split_in_words, words_of
from landmarks.support.console import plural
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


def layout_of(source: Path, images: Sequence[Steps], known: Collection[str] = ()) -> Layout:
    """Return the layout of a folder with these images, given as paths relative to it.

    Folders of splits are recognised by their names in any case and spelling; empty folders and files beside them do
    not matter. A folder that wraps all others is skipped, outside the splits and inside them, but not one of a `known`
    landmark's name. Raises `UsageError` if the images have no labels, or if only some of the folders look like splits.
    """
    base, remarks = _unwrapped(source, images, known)
    folders = _top_folders(source, images, base)
    if folders.splits and len(folders.splits) == len(folders.names):
        return _layout_of_splits(folders, folders.splits, remarks, known)
    if not folders.others and (why := _why_splits(folders)):
        remarks.append(f"{', '.join(folders.names)} are taken as splits: {why}")
        return _layout_of_splits(folders, folders.likely, remarks, known)
    _refuse_landmark_beside_splits(folders)
    remarks += _doubts(folders)
    return _layout_of_landmarks_with_splits(folders, remarks) or _layout_of_landmarks(folders, remarks, known)


@dataclass(frozen=True)
class _TopFolders:
    """The images of a source, and the folders at its top, or in the folders that wrap everything."""

    source: Path
    images: Sequence[Steps]
    base: Steps  # the folders that wrap everything
    names: list[str]  # sorted
    splits: dict[str, str]  # folder → split, for those that are called as a split
    likely: dict[str, str]  # folder → split, for those whose names hold a split's, such as `my_train_data`
    deep: set[str]  # those that hold folders themselves

    @property
    def depth(self) -> int:
        """Position of the top folder among the steps that lead to an image."""
        return len(self.base)

    @property
    def others(self) -> list[str]:
        """The folders whose names hold no split's."""
        return [name for name in self.names if name not in self.likely]

    @property
    def deep_splits(self) -> list[str]:
        """The folders that are called as a split and hold folders themselves."""
        return [name for name in self.splits if name in self.deep]


def _top_folders(source: Path, images: Sequence[Steps], base: Steps) -> _TopFolders:
    depth = len(base)
    names = sorted({steps[depth] for steps in images if len(steps) > depth + 1} - {UNKNOWN})
    return _TopFolders(
        source,
        images,
        base,
        names,
        splits={name: split for name in names if (split := parse_split(name))},
        likely={name: split for name in names if (split := split_in_words(name))},
        deep={steps[depth] for steps in images if len(steps) > depth + 2},
    )


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
        if not _is_image_folder(top) and any(not any(folder.iterdir()) for folder in siblings):
            break  # an empty folder is probably a landmark's
        base = (*base, top)
    if not base:
        return base, []
    return base, [f"everything lies in the folder {'/'.join(base)}: the folders in it are taken as if they lay outside"]


def _why_splits(folders: _TopFolders) -> str:
    """Return why folders are splits whose names only hold those of splits; empty if nothing shows that they are."""
    if _with_names_of_train(folders):
        return "they hold folders of the same names"
    if any(folders.splits[name] == "train" for name in folders.deep_splits):
        return "all are called so, and train holds folders"
    if _named_alike(folders):
        return "their names differ only by train, val and test"
    return ""


def _named_alike(folders: _TopFolders) -> bool:
    """Return whether the names differ only by their splits, as `cars_train` and `cars_test` do.

    A train folder with a single folder in it proves nothing: that may be an album of a landmark.
    """
    trained = [name for name, split in folders.likely.items() if split == "train"]
    rest = {tuple(word.casefold() for word in words_of(name) if not parse_split(word)) for name in folders.likely}
    if len(set(folders.likely.values())) < 2 or not trained or len(rest) > 1:
        return False
    inside = _names_inside(folders.images, folders.depth)
    return all(len(inside.get(name, ())) != 1 for name in trained)


def _refuse_landmark_beside_splits(folders: _TopFolders) -> None:
    """Raise if some of the folders are surely splits, and another beside them is not."""
    same_names, deep, likely = _with_names_of_train(folders), folders.deep_splits, folders.likely
    found = {folders.splits[name] for name in deep}
    sure = "train" in found or len(set(likely.values())) > 1  # a single `Train Station` proves nothing
    if (len(found) > 1 and "train" in found) or (same_names and sure and len(likely) >= len(folders.others)):
        other = next(name for name in folders.names if name not in (likely if same_names else folders.splits))
        raise UsageError(
            f"{folders.source} looks divided into {', '.join(likely if same_names else deep)}, but the folder {other}"
            f" beside {'them' if len(likely) > 1 else 'it'} is no split",
            way_out=f"call it val or test, move {other} elsewhere, or name the images in a CSV that tells the split",
        )


def _doubts(folders: _TopFolders) -> list[str]:
    """Return a remark about folders that are taken as landmarks and may be meant as splits, if there are any."""
    names = ", ".join(folders.splits)
    if folders.deep_splits or len(folders.splits) > 1:
        return [f"{names} may be meant as splits, but others lie beside: all are taken as landmarks"]
    if set(folders.splits.values()) & {"val", "test"} and len(folders.names) > 1:
        return [f"{names} may be meant as a split, but landmarks lie beside: it is taken as a landmark, too"]
    doubtful = [name for name in folders.names if any(parse_split(word) for word in words_of(name))]
    if len(doubtful) > 1:
        return [f"{', '.join(doubtful)} may be meant as splits, but are called otherwise: they are taken as landmarks"]
    return []


def _with_names_of_train(folders: _TopFolders) -> list[str]:
    """Return the folders beside train that hold folders of the same names as train does: splits do, landmarks do not.

    A folder that is alone in its split wraps the others.
    """
    if "train" not in folders.likely.values():
        return []
    names = _names_inside(folders.images, folders.depth)
    trained = set().union(*(names.get(top, set()) for top, split in folders.likely.items() if split == "train"))
    return [top for top in folders.names if folders.likely.get(top) != "train" and names.get(top, set()) & trained]


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


# ── A folder per landmark, perhaps with folders of splits inside ────────────────────────────────────────────────────


def _layout_of_landmarks_with_splits(folders: _TopFolders, remarks: list[str]) -> Layout | None:
    """Return the layout `LANDMARK/train/IMAGE.jpg`, or None if the folders do not have it."""
    depth = folders.depth

    def in_split(steps: Steps) -> bool:
        return len(steps) == depth + 3 and parse_split(steps[depth + 1]) is not None

    def read(steps: Steps) -> tuple[str | None, str | None] | str:
        if not in_split(steps):
            return "it lies in no split of a landmark"
        return steps[depth], parse_split(steps[depth + 1])

    inside = [steps for steps in folders.images if len(steps) > depth + 1 and steps[depth] in folders.names]
    if len(folders.names) < 2 or not all(in_split(steps) for steps in inside):
        return None
    if len({parse_split(steps[depth + 1]) for steps in inside}) < 2:
        return None
    return Layout("train, val and test in a folder per landmark", read, [folders.base], remarks)


def _layout_of_landmarks(folders: _TopFolders, remarks: list[str], known: Collection[str]) -> Layout:
    """Return the layout `LANDMARK/IMAGE.jpg`; folders inside a landmark's folder do not count."""
    depth, tops = folders.depth, folders.names
    here = folders.source.joinpath(*folders.base)
    if len(tops) == 1 and _is_image_folder(tops[0]) and not known:
        raise UsageError(
            f"{folders.source} holds images in the folder {tops[0]} alone, and no folders of landmarks: they have no"
            " labels",
            expected="a folder per landmark with images inside, or a CSV of paths and labels",
            way_out=_way_out_by_list([here, here / tops[0]])
            or f"were {tops[0]} a landmark: rename it to the landmark that its images show",
        )
    deeper = [steps for steps in folders.images if len(steps) > depth + 2]
    remarks = remarks + _nested_remarks(deeper, depth)
    inner = {steps[depth + 1] for steps in deeper if len(steps) == depth + 3 and steps[depth] != UNKNOWN}
    names = _names_inside(folders.images, depth)
    all_deeper = len(tops) > 1 and len(deeper) == len(folders.images)
    if all_deeper and len(inner) > 1 and all(names.get(top) == inner for top in tops):
        remarks.append(
            f"all of them hold folders of the same names ({', '.join(sorted(inner)[:3])}): were those the"
            " landmarks, give one of the folders, or name path, label and split in a CSV"
        )
    elif inner_splits := _inner_splits(names, tops):
        remarks.append(inner_splits)
    elif all_deeper:
        remarks.append(
            "none lies in a landmark's folder itself: were the inner folders the landmarks, name path and"
            " label of each image in a CSV"
        )
    if len(tops) > 1 and (generic := [top for top in tops if _is_image_folder(top)]):
        remarks.append(
            f"{', '.join(generic)} {'are' if len(generic) > 1 else 'is'} taken as a landmark, though the name says only"
            " that images lie there"
        )

    def read(steps: Steps) -> tuple[str | None, str | None]:
        return (steps[depth] if len(steps) > depth + 1 else None), None

    return Layout("a folder per landmark", read, [folders.base], remarks)


def _inner_splits(names: Mapping[str, set[str]], tops: Sequence[str]) -> str:
    """Return a remark about the first landmark's folder that holds train and another split; empty if none does.

    `names` holds the names of the folders in each of `tops`.
    """
    for top in tops:
        splits = {name: split for name in sorted(names.get(top, ())) if (split := parse_split(name))}
        if "train" in splits.values() and len(set(splits.values())) > 1:
            return (
                f"{', '.join(splits)} in {top} are not taken as splits, as others lie beside {top}: give {top} alone,"
                " or name path, label and split in a CSV"
            )
    return ""


# ── Folders of splits, with folders of landmarks inside ─────────────────────────────────────────────────────────────


def _layout_of_splits(
    folders: _TopFolders, splits: Mapping[str, str], remarks: list[str], known: Collection[str]
) -> Layout:
    """Return the layout `train/LANDMARK/IMAGE.jpg`; `splits` holds the split of each top folder.

    A folder that is alone in its split and holds folders wraps the landmarks. One that holds images is no landmark if
    it has a generic name, such as `images`, and no other split has it. A folder of a `known` landmark's name is that
    landmark's.
    """
    depth, here = folders.depth, folders.source.joinpath(*folders.base)
    deep = [top for top in splits if top in folders.deep]
    inside = {top: [steps[depth + 1 :] for steps in folders.images if steps[depth] == top] for top in deep}
    wrappers = {top: name for top, name in _wrappers(inside).items() if normalised_name(name) not in known}
    foldered = {top: [steps[top in wrappers :] for steps in below] for top, below in inside.items()}
    foldered = {top: [steps for steps in below if len(steps) > 1] for top, below in foldered.items()}
    names_of = {top: {steps[0] for steps in below} - {UNKNOWN} for top, below in foldered.items()}
    with_known = {top for top, names in names_of.items() if any(normalised_name(name) in known for name in names)}
    unlabelled = _splits_without_labels(names_of) - with_known
    deep = [top for top in deep if top not in unlabelled]
    if not deep:
        raise UsageError(
            f"{folders.source} holds images in {', '.join(splits)}, but no folders of landmarks in them: they have no"
            " labels",
            expected="train/LANDMARK/IMAGE.jpg and the same for val and test, or a CSV of path, label and split",
            way_out=_way_out_by_list([here, *(here / top for top in splits)])
            or "images to be answered need no import: landmarks predict RUN FOLDER",
        )
    remarks = remarks + _remarks_on_splits(here, splits, deep, wrappers)
    wrapper = {top: (wrappers[top],) if top in wrappers else () for top in deep}
    remarks += _nested_remarks(
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

    levels = [(*folders.base, top, *wrapper[top]) for top in deep]
    return Layout(f"a folder per landmark in {', '.join(deep)}", read, levels, remarks)


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


def _remarks_on_splits(
    base: Path, splits: Mapping[str, str], deep: Sequence[str], wrappers: dict[str, str]
) -> list[str]:
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


# ── What both kinds need: folders that hold only images, lists of labels, folders inside landmarks ──────────────────


def _is_image_folder(name: str) -> bool:
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


def _nested_remarks(deeper: Sequence[Steps], depth: int) -> list[str]:
    """Return a remark about images in folders inside a landmark's folder, which is the one at `depth`, if any."""
    if not deeper:
        return []
    return [
        f"{plural(len(deeper), 'image', 'lie')} in folders inside a landmark's folder, such as"
        f" {'/'.join(deeper[0][:-1])}: these are taken for images of {deeper[0][depth]}"
    ]


def _way_out_by_list(folders: Sequence[Path]) -> str:
    """Return advice about a list of labels that lies in one of these folders; empty if there is none."""
    lists = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.suffix.lower() in LISTS]
    return way_out_of(sorted(path for path in lists if path.is_file()))
