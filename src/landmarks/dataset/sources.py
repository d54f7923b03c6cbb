"""The files in a folder of images, found by their names alone, and a count of those that are ignored."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from landmarks.dataset.naming import Landmark, normalised_name, safe_name, with_digest
from landmarks.support.console import note, plural
from landmarks.support.disk import is_leftover
from landmarks.support.errors import LandmarksError, NothingThereError, UsageError
from landmarks.support.places import Place, as_given, in_shell, paths_of
from landmarks.support.systems import readable

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp",
    ".dib", ".tif", ".tiff", ".avif", ".avifs", ".heic", ".heif", ".heics", ".hif", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
"""Endings of image files. Files that cannot be decoded are rejected by name rather than overlooked."""

SYSTEM_FOLDERS = frozenset(
    {
        "__macosx", "__pycache__", "lost+found", "found.000", "$recycle.bin", "recycler", "recycled", "$extend",
        "system volume information", "network trash folder", "temporary items", "desktop folder", "_vti_cnf",
        "@eadir", "@__thumb", "@recycle", "#recycle", "#snapshot", "@recently-snapshot", "@sharesnap", "@tmp", "#tmp",
        "~snapshot", "ipod photo cache", "lightroom previews.lrdata",
    }
)  # fmt: skip
"""Folders (lower case) that systems, network disks and programs create by themselves, for thumbnails and waste."""

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
LISTS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class FoundImage:
    """A file that should become an image of the dataset."""

    path: Path
    where: str  # relative to the source, with forward slashes
    name: str | None  # of the landmark; None: shows nothing known
    split: str | None = None
    id: str = ""
    author: str | None = None
    license: str | None = None
    title: str | None = None


@dataclass(frozen=True)
class Source:
    """Everything found in a folder or a CSV that is imported."""

    rule: str  # how it is laid out, in words
    found: list[FoundImage] = field(default_factory=list)  # sorted by `where`, each with its own id
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (where, why)
    ignored: str = ""  # counts of the files that were ignored because of their names, in words
    listed: dict[str, Landmark] | None = None  # folder → landmark, from labels.csv
    empty: list[str] = field(default_factory=list)  # folders of landmarks without any image
    remarks: list[str] = field(default_factory=list)  # guesses that were made, and what the user should check
    way_out: str = ""  # advice for the case that nothing is found

    @property
    def has_splits(self) -> bool:
        """Whether the source says which split each image is in."""
        return bool(self.found) and self.found[0].split is not None


@dataclass(frozen=True)
class FolderImages:
    """The contents of a folder and the folders below it, by name alone."""

    images: list[Path]  # sorted; with links and special files, so that these can be named in messages
    linked_folders: list[Path]  # not followed
    others: list[Path]  # files that are no images by name
    hidden: int  # number of files and folders whose names begin with a dot; such folders are not entered
    system: list[Path] = field(default_factory=list)  # folders among `SYSTEM_FOLDERS`; they are not entered
    unlisted: list[tuple[Path, str]] = field(default_factory=list)  # folders that cannot be read, and why

    def ignored(self) -> str:
        """Return a text such as `2 that are no images by name (.txt), 1 hidden`; empty if nothing was ignored."""
        endings = Counter(path.suffix.lower() or "without an ending" for path in self.others)
        common = ", ".join(ending for ending, _ in endings.most_common(3)) + (" …" if len(endings) > 3 else "")
        return _counted(
            {
                "that are no images by name" + (f" ({common})" if common else ""): len(self.others),
                "hidden": self.hidden,
                f"{_plural('folder', len(self.system))} of a system's own": len(self.system),
            }
        )

    def unread(self) -> str:
        """Return a count of the links that lead nowhere or to folders, and of pipes and devices; empty if none are."""
        no_files = [path for path in self.images if not path.is_file()]
        broken = sum(path.is_symlink() and not path.exists() for path in no_files)
        linked, special = len(self.linked_folders), len(no_files) - broken
        return _counted(
            {
                f"{_plural('link', broken)} to a file that is not there": broken,
                f"{_plural('link', linked)} to a folder": linked,
                "no plain file" if special == 1 else "no plain files": special,
            }
        )


def images_in(folder: Path) -> FolderImages:
    """List the images in `folder` and in the folders below it, by the endings of their names (`SUFFIXES`)."""
    images: list[Path] = []
    linked: list[Path] = []
    others: list[Path] = []
    system: list[Path] = []
    unlisted: list[tuple[Path, str]] = []
    hidden = 0

    def not_listed(error: OSError) -> None:
        unlisted.append((Path(error.filename or folder), error.strerror or str(error)))

    for here, folders, files in os.walk(folder, onerror=not_listed):
        shown = sorted(name for name in folders if not name.startswith("."))
        hidden += len(folders) - len(shown)
        hidden += sum(name.startswith(".") and not is_leftover(name) for name in files)
        system += [Path(here, name) for name in shown if name.casefold() in SYSTEM_FOLDERS]
        folders[:] = [name for name in shown if name.casefold() not in SYSTEM_FOLDERS]
        linked += [path for path in (Path(here) / name for name in folders) if path.is_symlink()]
        for path in (Path(here) / name for name in files if not name.startswith(".")):
            (images if path.suffix.lower() in SUFFIXES else others).append(path)
    return FolderImages(sorted(images), linked, sorted(others), hidden, system, unlisted)


def find_images(places: Place | Iterable[Place]) -> list[Path]:
    """Return the files among `places`, and the images in the folders among `places`, sorted by name in each folder.

    A file that is named more than once is returned once. A note counts these, and what is ignored in a folder. Raises
    `LandmarksError` if a place does not exist or is a folder without images, and `UsageError` if it is no path.
    """
    found: list[Path] = []
    for place in map(Path, paths_of(places, way_out=_IN_MEMORY)):
        if place.is_dir():
            listed = images_in(place)
            if (place / "dataset.json").is_file() and not listed.images:
                raise LandmarksError(
                    f"{readable(place)} is a dataset, whose images lie in shards",
                    way_out="landmarks evaluate RUN --data FOLDER answers it; landmarks unpack writes its images",
                )
            refuse_run(place)
            images = [path for path in listed.images if path.is_file()]
            ignored = ", ".join(filter(None, (listed.ignored(), listed.unread())))
            for folder, why in listed.unlisted:
                note(f"{folder} cannot be listed ({why}): what lies in it is left out")
            if not images:
                received = ignored or "an empty folder"
                raise NothingThereError(
                    f"the folder {place} holds no images",
                    received=received,
                    expected=" or ".join(SUFFIXES[:2]),
                    way_out=way_out_of(listed.others),
                )
            if ignored:
                note(f"{place}: passed by {ignored}")
            found += images
        elif place.is_file():
            found.append(place)
        elif place.exists():
            raise LandmarksError(f"{readable(place)} is no plain file", expected="an image, or a folder of images")
        else:
            raise LandmarksError(f"there is no image {as_given(place)}", way_out=way_out_of_name(as_given(place)))
    return _without_repeats(found)


def _without_repeats(paths: Sequence[Path]) -> list[Path]:
    """Return `paths` without those that name an earlier one's file again; a note counts them. Links stay apart."""
    kept: dict[str, Path] = {}
    for path in paths:
        kept.setdefault(os.path.normcase(os.path.abspath(path)), path)  # noqa: PTH100 - resolve() follows links
    if more := len(paths) - len(kept):
        note(f"{plural(more, 'image', 'are')} named more than once, and taken once")
    return list(kept.values())


def refuse_run(folder: Path) -> None:
    """Raise `UsageError` if a folder is a run, whose only images are its heat maps."""
    if (folder / "run.json").is_file() and (folder / "labels.parquet").is_file():
        raise UsageError(f"{readable(folder)} is a run, and no folder of images", way_out="name a folder of images")


_IN_MEMORY = "landmarks.load(RUN).recognise answers bytes, arrays and Pillow's images"


def way_out_of_name(name: str) -> str:
    """Return advice for a name under which no image was found; empty if there is none."""
    return next((way_out for pattern, way_out in _WAYS_OUT_OF_NAMES.items() if re.search(pattern, name)), "")


_WAYS_OUT_OF_NAMES = {
    "^file:": "name the file by its path, without file://",
    "://": "an address is not fetched: bring what lies there here first",
    "^-$": "standard input is not read: name files or folders",
    "[*?]": "patterns are replaced by the shell, where it finds something: name a folder for all images in it",
    "^@": "no lists are read: xargs puts the lines of one behind a command",
    r"\\": "folders are separated by / here",
}
"""Pattern of a name under which nothing was found → advice."""


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def way_out_of(others: Sequence[Path]) -> str:
    """Return advice for a folder of archives, spreadsheets or lists instead of images; empty if none applies."""
    for path in others:
        suffix = path.suffix.lower()
        if suffix in ARCHIVES:
            return f"{path.name} is an archive: unpack it, and give the folder"
        if suffix in SPREADSHEETS:
            return f"{path.name} is a spreadsheet: save it as CSV with the columns path and label, and give that"
        if suffix in (".csv", ".tsv"):
            return f"with paths and labels in {path.name}: landmarks import {in_shell(path)} -o DATA"
    for path in others:
        if path.suffix.lower() in LISTS:
            return f"{path.name} is JSON: write the path and the label of each image into a CSV, and give that"
        for endings, way_out in _OTHER_KINDS.items():
            if path.suffix.lower() in endings:
                return f"{path.name} {way_out}"
    return image_by_its_bytes(others)


_OTHER_KINDS = {
    (".parquet", ".arrow", ".tfrecord", ".tfrecords", ".mdb", ".lmdb", ".npz", ".npy", ".h5", ".hdf5", ".mat", ".pkl",
     ".pickle", ".rec", ".bin"): "holds images as a table does: write them as files, in a folder per landmark",
    (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"): "is a video: save frames of it as JPEG",
    (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"):
        "is a camera's raw file: save it as JPEG",
    (".jp2", ".j2k", ".jxl", ".psd", ".svg", ".pdf", ".ico", ".tga", ".pcx", ".xcf", ".eps", ".dcm"):
        "is an image of a kind that is not decoded here: save it as JPEG or PNG",
}  # fmt: skip
"""Endings of files that cannot be imported → what they are, and advice."""


def image_by_its_bytes(others: Sequence[Path]) -> str:
    """Return advice if a file that is no image by name is one by its first bytes; empty if there is none.

    One file of each ending is checked.
    """
    for path in {path.suffix: path for path in reversed(others)}.values():
        if _is_image_by_bytes(path):
            return f"{readable(path.name)} is an image by its first bytes: files need an ending, such as .jpg"
    return ""


def _is_image_by_bytes(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    bitmap = not path.suffix and start.startswith(b"BM")  # with another ending, two letters prove too little
    return bitmap or start.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8")) or start[8:12] in (b"WEBP", b"avif")


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden and system folders; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:  # reported elsewhere: see `FolderImages.unlisted`
        return []
    return sorted(folder / name for name in names if name.casefold() not in SYSTEM_FOLDERS)


def with_image_ids(found: list[FoundImage]) -> list[FoundImage]:
    """Return `found` with an id for each image: the name of its file, with a digest of its path if it is not unique.

    Images thus keep their ids through `unpack` and `import`, and two files of the same name stay two images. An id that
    a CSV gives is kept.
    """
    stems = [image.path.stem for image in found]
    counts = Counter(normalised_name(image.id or stem).casefold() for image, stem in zip(found, stems, strict=True))
    identified = []
    for image, stem in zip(found, stems, strict=True):
        id = image.id or (stem if counts[normalised_name(stem).casefold()] == 1 else "")
        if not id or id != safe_name(id):
            id = with_digest(id or stem, image.where)
        identified.append(replace(image, id=id))
    return identified
