"""A finished run: the folder that training writes and every later verb reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from landmarks.dataset.manifest import LABELS
from landmarks.dataset.trust import require_own_folders, require_sound_labels
from landmarks.support.console import html_table, plural
from landmarks.support.errors import LandmarksError
from landmarks.support.files import file_digest, read_record, write_record
from landmarks.support.places import Place, as_given, in_shell
from landmarks.support.tables import read_table, write_table

if TYPE_CHECKING:
    from landmarks.models.network import Network


RECORD = "run.json"
"""Written last: a folder with this file is a finished run."""


@dataclass(frozen=True)
class Epoch:
    """One epoch of a training: a row of `history.parquet`."""

    phase: str  # head or finetune
    epoch: int  # from 1
    step: int  # optimizer steps since the start of the phase
    seconds: float  # since the start of the phase
    learning_rate: float | None  # of the head, at the end of the epoch; None: solved in closed form
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


HISTORY = {field.name: {"str": pl.String, "int": pl.UInt32}.get(str(field.type), pl.Float64) for field in fields(Epoch)}
"""Columns of `history.parquet`: the fields of `Epoch`; null where nothing was measured."""

SEEN = {
    "image_id": pl.String,
    "split": pl.String,  # train or val
    "landmark_id": pl.Int64,  # its label in the dataset
    "length": pl.UInt32,  # in bytes; this and the next three describe the image's content, whatever its id
    "width": pl.UInt32,
    "height": pl.UInt32,
    "phash": pl.UInt64,
    "through": pl.String,  # null: seen by this run; else the run that saw it, whose weights this one began from
}
"""Columns of `images.parquet`, sorted by id: the images that a run was trained on and validated with."""

OWN_FOLDERS = ("predictions", "metrics", "maps", "checkpoint", "gallery")
"""Subfolders that are read and written; none may be a link to elsewhere."""

SEEN_FILE = "images.parquet"


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder: its record, its labels and, on request, its network.

    A `Run` can be passed wherever its folder can.
    """

    folder: Path
    record: dict[str, Any]
    labels: pl.DataFrame

    def __repr__(self) -> str:
        backbone = (self.record.get("network") or {}).get("backbone")
        parts = [str(self.folder), *([backbone] if backbone else []), plural(len(self.labels), "landmark")]
        return f"Run({', '.join(parts)})"

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        """The name of the run's folder, by which tables call it."""
        return self.folder.resolve().name

    @cached_property
    def digest(self) -> str:
        """The digest of the weights; predictions store it to identify their model."""
        require_run_file(self.folder, "model.safetensors")
        return file_digest(self.folder / "model.safetensors")

    @property
    def history(self) -> pl.DataFrame:
        """Loss and accuracy per epoch of both phases; columns `HISTORY`."""
        return read_table(self.folder / "history.parquet", HISTORY)

    @cached_property
    def seen(self) -> pl.DataFrame | None:
        """The images it was trained on and validated with, columns `SEEN`; None for a run from before they were kept.

        Raises `LandmarksError` when the table is missing, or is not the one that the record names.
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
        """Load the saved network, in evaluation mode, on the CPU."""
        from landmarks.models.network import load_network

        return load_network(self.folder).eval()

    def predictions(self, name: str = "test") -> pl.DataFrame:
        """Return the predictions that `evaluate` stored as `name`, one row per image, sorted by id.

        `shows` lists the names of the landmarks shown, `answer` is the best answer with its `probability`, and
        `correct` is null for images that show nothing known.

        Raises `LandmarksError` when the run was not evaluated under that name.
        """
        path = self.folder / "predictions" / f"{name}.parquet"
        if not path.is_file():
            stored = sorted(file.stem for file in path.parent.glob("*.parquet"))
            raise LandmarksError(
                f'{self.name} has no predictions called "{name}"',
                received=", ".join(stored) or "none at all",
                way_out=f"make them with: landmarks evaluate {in_shell(self.folder)}",
            )
        table, names = read_table(path), self.labels.sort("label")["name"]
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
        return run_html(self)

    def name_of(self, labels: list[int]) -> list[str]:
        """Return the readable names of `labels`."""
        return self.labels["name"].gather(labels).to_list()


def require_run_file(folder: Path, name: str) -> None:
    """Raise `LandmarksError` unless the run's folder holds the file `name`."""
    if not (folder / name).is_file():
        raise LandmarksError(
            f"there is no {name} in {folder}",
            way_out="take the run's folder anew from where it was trained, or train again in another folder",
        )


def open_run(folder: Place) -> Run:
    """Open a run folder; raise `LandmarksError` when it is not a finished run, or was written by a newer version.

    A run may be untrusted: its record and labels are checked here, its weights when they are loaded.
    """
    folder = Path(folder)
    if folder.is_file() and folder.suffix.lower() == ".onnx":
        raise LandmarksError(
            f"{folder} is an export, and no run's folder",
            way_out="name the run that it was made of; predict, evaluate, compare and serve take an export, too",
        )
    if folder.is_file():
        raise LandmarksError(f"{folder} is a file, and no run's folder", expected=f"a folder with {RECORD}")
    if "://" in (address := as_given(folder)):
        raise LandmarksError(f"a run is not opened at an address: {address}", way_out="bring its folder here first")
    if not folder.is_dir():
        raise LandmarksError(
            f"there is no run {folder}", way_out=f"train one with: landmarks train DATA -o {in_shell(folder)}"
        )
    if not (folder / RECORD).exists():
        if (folder / "checkpoint").is_dir():
            raise LandmarksError(f"{folder} is not trained to its end", way_out="run the same landmarks train again")
        if (folder / "dataset.json").is_file():
            way_out = f"train a run on it with: landmarks train {in_shell(folder)} -o RUN"
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
"""Field of a run's record → its type; every field may be missing."""


def _require_kinds(path: Path, record: dict[str, Any]) -> None:
    """Raise `LandmarksError` for a field of a record, which may be untrusted, that has the wrong type."""
    for field, kind in KINDS.items():
        parent, _, name = field.rpartition(".")
        value = (record.get(parent) or {} if parent else record).get(name)
        if value is not None and not isinstance(value, kind):
            raise LandmarksError(f"{path} is not the record of a run", received=f'"{field}" {value!r}'[:100])


def write_run(
    folder: Path,
    network: Network,
    labels: pl.DataFrame,
    rows: Sequence[Epoch],
    record: dict[str, Any],
    *,
    seen: pl.DataFrame,
) -> None:
    """Write a run's files, the record last, so that a folder with a record is complete.

    `rows` become the history; `seen` is the table `SEEN`, whose digest is added to the record.
    """
    from landmarks.models.network import save_network

    write_table(folder / "labels.parquet", labels)
    write_table(folder / "history.parquet", pl.DataFrame([asdict(row) for row in rows], schema=HISTORY))
    write_table(folder / SEEN_FILE, seen)
    save_network(network, folder)
    data = {**record["data"], "seen": file_digest(folder / SEEN_FILE)}
    write_record(folder / RECORD, {**record, "data": data}, verb="train", inputs=data["digest"])


# ── A run in a notebook: a table of its key facts, and its accuracy curves ──────────────────────────────────────────


WIDTH, HEIGHT, MARGIN = 420, 160, 28
"""Size of the curves in pixels."""

CURVES = {"train_accuracy": "#e8a33d", "val_accuracy": "#2f6db5"}
"""Column of the history → its colour."""


def run_html(run: Run) -> str:
    """Return a table of the run's key facts and its accuracy curves, as self-contained HTML."""
    record = run.record
    network, best, data = (record.get(name) or {} for name in ("network", "best", "data"))
    rows: list[tuple[str, object]] = [
        ("network", f"{network.get('backbone')}, {network.get('image_size')} pixels"),
        ("landmarks", len(run.labels)),
        ("dataset", data.get("folder")),
    ]
    if best.get("val_accuracy") is not None:
        phase = "head training" if best.get("phase") == "head" else f"epoch {best.get('epoch')}"
        rows.append(("validation", f"{100 * best['val_accuracy']:.1f} % after {phase}"))
    seconds = (record.get("seconds") or {}).get("total")
    if seconds is not None:
        rows.append(("trained in", f"{seconds / 60:.1f} min"))
    has_history = (run.folder / "history.parquet").is_file()  # a folder assembled by hand may lack it
    return html_table(["run", run.name], rows, "") + (curves_svg(run.history) if has_history else "")


def curves_svg(history: pl.DataFrame) -> str:
    """Return the accuracy over the epochs of fine-tuning as SVG, or an empty text for fewer than two epochs."""
    epochs = history.filter(pl.col("phase") == "finetune").sort("epoch")
    curves = {name: epochs.drop_nulls(name).select("epoch", name).rows() for name in CURVES}
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return ""
    last = max(epoch for points in curves.values() for epoch, _ in points)
    lowest = min(value for points in curves.values() for _, value in points)
    floor = max(0.0, min(lowest, 0.95) - 0.05)

    def point(epoch: float, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * epoch / max(last, 1)
        return f"{x:.1f},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - floor) / (1 - floor):.1f}"

    lines = []
    for number, (name, points) in enumerate(curves.items()):
        path = " ".join(point(*pair) for pair in points)
        label = f"{name.removesuffix('_accuracy')} {100 * points[-1][1]:.1f} %"
        lines.append(f'<polyline points="{path}" fill="none" stroke="{CURVES[name]}" stroke-width="2"/>')
        lines.append(f'<text x="{MARGIN + 110 * number}" y="14" fill="{CURVES[name]}">{label}</text>')
    axis = f'<text x="{MARGIN}" y="{HEIGHT - 8}">epoch 0 to {last}; accuracy {100 * floor:.0f} to 100 %</text>'
    style = 'font-family="sans-serif" font-size="12" fill="#777"'
    return (
        f'<svg role="img" aria-label="accuracy over the epochs" width="{WIDTH}" height="{HEIGHT}" {style}>'
        f"{''.join(lines)}{axis}</svg>"
    )
