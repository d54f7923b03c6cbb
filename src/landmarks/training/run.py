"""A finished run: the folder that training leaves, and that every later verb reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from landmarks.dataset.manifest import LABELS
from landmarks.dataset.trust import require_own_folders, require_sound_labels
from landmarks.support.console import plural
from landmarks.support.errors import LandmarksError
from landmarks.support.files import file_digest, read_record, write_record
from landmarks.support.places import Place, as_given
from landmarks.support.tables import read_table, write_table

if TYPE_CHECKING:
    from landmarks.models.network import Network


RECORD = "run.json"
"""Written last: a folder that holds it is a finished run."""

HISTORY = {
    "phase": pl.String,  # head or finetune
    "epoch": pl.UInt32,  # from 1; 0 is the network as the phase found it
    "step": pl.UInt32,  # optimizer steps since the start of the phase
    "seconds": pl.Float64,  # since the start of the phase
    "learning_rate": pl.Float64,  # of the head, at the end of the epoch
    "train_loss": pl.Float64,
    "train_accuracy": pl.Float64,
    "val_loss": pl.Float64,
    "val_accuracy": pl.Float64,
}
"""Columns of `history.parquet`, one row per epoch; null where nothing was measured."""


SEEN = {
    "image_id": pl.String,
    "split": pl.String,  # train or val
    "landmark_id": pl.Int64,  # that it was said to show
    "length": pl.UInt32,  # this and what follows is what the image is, whatever it is called
    "width": pl.UInt32,
    "height": pl.UInt32,
    "phash": pl.UInt64,
    "through": pl.String,  # null: seen in this training; else the run that had, whose weights this one began from
}
"""Columns of `images.parquet`, sorted by id: the images that a run was trained on and validated with."""

OWN_FOLDERS = ("predictions", "metrics", "maps", "checkpoint", "gallery")
"""Folders in a run's folder that are read from and written to: none of them may lead elsewhere."""

SEEN_FILE = "images.parquet"


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder: its record, the labels its network answers, and the network itself when asked for.

    It may be named wherever its folder may.
    """

    folder: Path
    record: dict[str, Any]
    labels: pl.DataFrame

    def __repr__(self) -> str:
        backbone = (self.record.get("network") or {}).get("backbone")
        told = [str(self.folder), *([backbone] if backbone else []), plural(len(self.labels), "landmark")]
        return f"Run({', '.join(told)})"

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        """What tables call the run: the name of its folder."""
        return self.folder.resolve().name

    @cached_property
    def digest(self) -> str:
        """Changes with the weights: predictions keep it to tell which model made them."""
        return file_digest(self.folder / "model.safetensors")

    @property
    def history(self) -> pl.DataFrame:
        """Loss and accuracy per epoch, both phases, see `HISTORY`."""
        return read_table(self.folder / "history.parquet", HISTORY)

    @cached_property
    def seen(self) -> pl.DataFrame | None:
        """Which images it has seen, see `SEEN`; None when it was trained before runs kept that.

        Raises `LandmarksError` when the record tells of a table that is gone, or is not the one that was written.
        """
        digest = (self.record.get("data") or {}).get("seen")
        if digest is None:
            return None
        path = self.folder / SEEN_FILE
        if not path.is_file() or file_digest(path) != digest:
            raise LandmarksError(
                f"{path} is not the table that was written when {self.name} was trained",
                received="another one" if path.is_file() else "none",
                way_out="take the run's folder anew from where it was trained, or train again",
            )
        return read_table(path, SEEN)

    def network(self) -> Network:
        """Load the network as it was saved, in evaluation mode, on the processor."""
        from landmarks.models.network import load_network

        return load_network(self.folder).eval()

    def predictions(self, name: str = "test") -> pl.DataFrame:
        """Return what `evaluate` wrote down as `name`, one row per image, sorted by id.

        `shows` are the names of what it shows, `answer` is the best answer with its `probability`; `correct` is null
        where the image shows nothing known.

        Raises `LandmarksError` when the run was not evaluated under that name.
        """
        path = self.folder / "predictions" / f"{name}.parquet"
        if not path.is_file():
            there = sorted(one.stem for one in path.parent.glob("*.parquet"))
            raise LandmarksError(
                f'{self.name} has no predictions called "{name}"',
                received=", ".join(there) or "none at all",
                way_out=f"make them with: landmarks evaluate {self.folder}",
            )
        table, names = pl.read_parquet(path, glob=False), self.labels.sort("label")["name"]
        shown = pl.col("truth").list.eval(pl.element().replace_strict(dict(enumerate(names)), return_dtype=pl.String))
        best = pl.col("label").list.first()
        return table.select(
            "image_id",
            shows=shown,
            answer=best.replace_strict(dict(enumerate(names)), default=None, return_dtype=pl.String),
            probability=pl.col("score").list.first(),
            correct=pl.when(pl.col("truth").list.len() > 0).then(pl.col("truth").list.contains(best)),
        )

    def _repr_html_(self) -> str:
        from landmarks.training.run_html import run_html

        return run_html(self)

    def name_of(self, labels: list[int]) -> list[str]:
        """Return the readable names of `labels`."""
        return self.labels["name"].gather(labels).to_list()


def open_run(folder: Place) -> Run:
    """Open a run folder; raise `LandmarksError` when it is none, is unfinished, or was written by a newer version.

    A run may come from a stranger: its record and labels are looked at here, its weights where they are loaded.
    """
    folder = Path(folder)
    if folder.is_file():
        raise LandmarksError(f"{folder} is a file, and no run's folder", expected=f"a folder with {RECORD}")
    if "://" in (address := as_given(folder)):
        raise LandmarksError(f"a run is not opened at an address: {address}", way_out="bring its folder here first")
    if not folder.is_dir():
        raise LandmarksError(f"there is no run {folder}", way_out=f"train one with: landmarks train DATA -o {folder}")
    if not (folder / RECORD).exists():
        if (folder / "checkpoint").is_dir():
            raise LandmarksError(f"{folder} is not trained to its end", way_out="run the same landmarks train again")
        if (folder / "dataset.json").is_file():
            way_out = f"train a run on it with: landmarks train {folder} -o RUN"
            raise LandmarksError(f"{folder} is a dataset, and no run", way_out=way_out)
        raise LandmarksError(f"{folder} is not a run", expected=f"a folder with {RECORD}, as landmarks train writes it")
    require_own_folders(folder, OWN_FOLDERS)
    record = read_record(folder / RECORD)
    _require_kinds(folder / RECORD, record)
    labels = read_table(folder / "labels.parquet", LABELS).sort("label")
    require_sound_labels(folder, labels)
    return Run(folder=folder, record=record, labels=labels)


KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("data", "recipe", "network", "best", "seconds", "machine", "versions"), dict),
    "choices": list,
    "ended": str,
    "peak_memory_mb": (int, float),
    **dict.fromkeys(("data.digest", "data.seen", "data.origin", "data.set"), str),
    **dict.fromkeys(("data.images", "data.split"), dict),
    "network.backbone": str,
    "network.image_size": int,
    "best.phase": str,
    "best.epoch": int,
    **dict.fromkeys(("best.val_accuracy", "best.val_loss", "seconds.total"), (int, float)),
}
"""What stands in a run's record → what it is, where it is there at all."""


def _require_kinds(path: Path, record: dict[str, Any]) -> None:
    """Raise `LandmarksError` where a record, which may be a stranger's, holds something else than is read from it."""
    for place, kind in KINDS.items():
        above, _, name = place.rpartition(".")
        value = (record.get(above) or {} if above else record).get(name)
        if value is not None and not isinstance(value, kind):
            raise LandmarksError(f"{path} cannot be meant", received=f'"{place}" {value!r}'[:100])


def write_run(
    folder: Path,
    network: Network,
    labels: pl.DataFrame,
    rows: list[dict[str, Any]],
    record: dict[str, Any],
    *,
    seen: pl.DataFrame,
) -> None:
    """Write a run's files; its record comes last, so that a folder which holds one is whole.

    `rows` are those of `HISTORY`, `seen` is the table `SEEN`, whose digest is added to the record.
    """
    from landmarks.models.network import save_network

    write_table(folder / "labels.parquet", labels)
    write_table(folder / "history.parquet", pl.DataFrame(rows, schema=HISTORY))
    write_table(folder / SEEN_FILE, seen)
    save_network(network, folder)
    data = {**record["data"], "seen": file_digest(folder / SEEN_FILE)}
    write_record(folder / RECORD, {**record, "data": data}, verb="train", inputs=data["digest"])
