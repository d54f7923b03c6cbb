"""The files that a list names, also where it spells their paths as another system or another folder would."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from landmarks.dataset.sources import SUFFIXES
from landmarks.support.systems import readable

_MOST_FOLDERS = 20
"""Folders beside a CSV in which a file that is not there is looked for, to name it."""

_ARCHIVES_ID = r"[0-9a-f]{16}(\.jpg)?"


@dataclass
class ListedFiles:
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
            self.guessed[_difference(text, found)] += 1
            return found, ""
        return None, why

    def _spelt(self, text: str) -> tuple[Path | None, str]:
        """Return the file of a path that is spelt as another system would, or why there is none."""
        steps = [step for step in text.strip().replace("\\", "/").split("/") if step not in ("", ".")]
        found = self._below(Path("/") if text.strip().startswith("/") else self.folder, steps)
        if found is not None and found.is_file():
            return found, ""
        if re.fullmatch(_ARCHIVES_ID, text.strip()):
            unpacked = self.folder.joinpath(*text.strip()[:3], f"{text.strip()[:16]}.jpg")
            if unpacked.is_file():
                return unpacked, ""
        return None, f"there is no such file{self._nearby(text, steps)}"

    def _below(self, folder: Path, steps: list[str]) -> Path | None:
        """Return what these steps lead to from a folder, each of them in its own spelling or another system's."""
        here: Path | None = folder
        for number, step in enumerate(steps):
            here = self._inside(here, step, last=number == len(steps) - 1) if here is not None else None
        return here

    def _nearby(self, text: str, steps: list[str]) -> str:
        """Return where a file lies that a path may mean: nothing is guessed, as it could be another image."""
        if Path(text).is_file():
            return "; paths are relative to the folder of the CSV"
        root = "/" if text.strip().startswith("/") else ""
        for start in range(0 if root else 1, len(steps)):
            if self.folder.joinpath(*steps[start:]).is_file():
                return f"; {'/'.join(steps[start:])} is there: take {root}{'/'.join(steps[:start])} off the paths"
        if (other := self._of_another_ending(steps)) is not None:
            return f"; {readable(other.relative_to(self.folder).as_posix())} is there, of another ending"
        if self._beside is None:
            self._beside = sorted(path for path in self.folder.iterdir() if path.is_dir())[:_MOST_FOLDERS]
        for folder in self._beside:
            meant = self._below(folder, steps)
            if meant is not None and meant.is_file():
                there = readable(meant.relative_to(self.folder).as_posix())
                return f"; {there} is there: put the CSV into {folder.name}, or {folder.name}/ before the paths"
        return "" if Path(text).suffix.lower() in SUFFIXES else ", with no ending of an image either"

    def _of_another_ending(self, steps: list[str]) -> Path | None:
        """Return the image that has the name of a path before its ending: `a.jpg` for `a.jpeg`; one, or none."""
        if not steps or Path(steps[-1]).suffix.lower() not in SUFFIXES:
            return None
        meant = self._below(self.folder, [*steps[:-1], Path(steps[-1]).stem])
        return meant if meant is not None and meant.is_file() and meant.is_relative_to(self.folder) else None

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


def _difference(text: str, found: Path) -> str:
    if re.fullmatch(_ARCHIVES_ID, text.strip()) and found.parts[-4:-1] == tuple(text.strip()[:3]):
        return "in the folders of an id's first digits, as the archive's TARs hold them"
    name, written = found.name, text.strip().replace("\\", "/").rsplit("/", 1)[-1]
    if _key(written) != _key(name) and _key(unquote(written)) == _key(name):
        return "with letters for the %41 of the list"
    if _key(written) != _key(name):
        return "with an ending that the list does not have"
    if "\\" in text:
        return "with / for the \\ of the list"
    return "in another case, or another form of Unicode"
