"""Runs from strangers: no answer of `nan %`, no network of a size that nobody has, nothing written outside."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from made_up_runs import image
from safetensors.torch import load_file, save_file

from landmarks.cli.main import run as command
from landmarks.evaluation.evaluate import evaluate
from landmarks.evaluation.predictions import read_predictions
from landmarks.recognition.recogniser import load
from landmarks.support.errors import LandmarksError
from landmarks.training.run import Run

Change = Callable[[Path], object]


def with_fields(file: str, **fields: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def preprocessing(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "model.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "preprocessing": {**record["preprocessing"], **fields}}))

    return change


def weights(value: float) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[max(tensors)].view(-1)[0] = value
        save_file(tensors, folder / "model.safetensors")

    return change


def labels(table: Callable[[pl.DataFrame], pl.DataFrame]) -> Change:
    def change(folder: Path) -> None:
        path = folder / "labels.parquet"
        table(pl.read_parquet(path)).write_parquet(path)

    return change


def instead(file: str, make: Callable[[Path], object]) -> Change:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return change


def gallery_of_nothing(folder: Path) -> None:
    digest = np.frombuffer(Run(folder, {}, pl.DataFrame()).digest.encode(), dtype=np.uint8)
    tensors = {name: torch.full((2, 2), torch.nan) for name in ("images", "mean", "centres", "within", "overall")}
    tensors |= {"labels": torch.tensor([0, 99]), "digest": torch.zeros(1, dtype=torch.uint8)}
    save_file({**tensors, "model": torch.from_numpy(digest.copy())}, folder / "gallery.safetensors")


RULE = {"name": "energy", "weights": {"energy": 1.0}, "constant": 0.0}

HOSTILE: dict[str, Change] = {
    "a weight that is no number": weights(float("nan")),
    "an infinite weight": weights(float("inf")),
    "weights of rubbish": instead("model.safetensors", lambda path: path.write_bytes(os.urandom(500))),
    "weights that claim a terabyte": instead(
        "model.safetensors", lambda path: path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    ),
    "weights that are a pipe": instead("model.safetensors", os.mkfifo),
    "images of a million pixels a side": preprocessing(image_size=1_000_000),
    "images of no pixel": preprocessing(image_size=0),
    "an image size that is text": preprocessing(image_size="large"),
    "a standard deviation of nought": preprocessing(std=[0.0, 1.0, 1.0]),
    "a mean that is no number": preprocessing(mean=[float("nan")] * 3),
    "a trillion landmarks": with_fields("model.json", classes=10**12),
    "more landmarks than labels": with_fields("model.json", classes=4),
    "no preprocessing": with_fields("model.json", preprocessing=None),
    "a network by its path": with_fields("model.json", backbone="../../x"),
    "an epsilon that is no number": with_fields("model.json", batch_norm_epsilon=float("nan")),
    "a temperature that is no number": with_fields("model.json", temperature=float("nan")),
    "a threshold that is none": with_fields("model.json", rejection={"rule": RULE, "threshold": float("inf")}),
    "a rule of rubbish": with_fields("model.json", rejection={"rule": [1], "threshold": 0.0}),
    "labels that count otherwise": labels(lambda table: table.with_columns(pl.col("label") + 1)),
    "one label fewer": labels(lambda table: table.head(2)),
    "a record that is a list": instead("run.json", lambda path: path.write_text("[]")),
    "a record that is a pipe": instead("run.json", os.mkfifo),
    "a recipe that is a list": with_fields("run.json", recipe=[1]),
    "predictions that lead out": instead("predictions", lambda path: path.symlink_to("/tmp")),
    "a gallery of rubbish": instead("gallery.safetensors", lambda path: path.write_bytes(b"x" * 99)),
    "a gallery of nothing": gallery_of_nothing,
    **{
        f"a record with {wrong}": with_fields("run.json", **wrong)
        for wrong in (
            {"seconds": "x"},
            {"seconds": {"total": "x"}},
            {"machine": 5},
            {"choices": 7},
            {"versions": 3},
            {"best": {"phase": 5}},
            {"best": {"val_accuracy": "y"}},
            {"network": {"backbone": 5}},
            {"data": {"images": 7}},
        )
    },
}


@pytest.mark.linux
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_run_is_refused_in_one_line(
    what: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "asked.jpg").write_bytes(image(11, 1))
    HOSTILE[what](run.folder)
    with pytest.raises(LandmarksError):
        load(run.folder, device="cpu")
    assert command(["predict", str(run.folder), str(tmp_path / "asked.jpg"), "--device", "cpu"]) in (1, 2)
    printed = capsys.readouterr()
    assert "nan" not in printed.out
    assert "\n" not in printed.err.strip()
    assert "unforeseen" not in printed.err


@pytest.mark.parametrize("with_gallery", [False, True])
def test_a_run_whose_weights_are_gone_says_so_and_nothing_else_is_blamed(with_gallery: bool, run: Run) -> None:
    if with_gallery:
        evaluate(run.folder, retrieval=True)
        assert (run.folder / "gallery.safetensors").is_file()
    (run.folder / "model.safetensors").unlink()
    with pytest.raises(LandmarksError, match=r"there is no model\.safetensors in .*; take the run's folder anew"):
        load(run.folder, device="cpu")


@pytest.mark.parametrize(
    ("label", "score"), [([0, 1], [0.5]), ([0], [float("nan")]), ([None], [0.5]), (list(range(9)), [0.1] * 9)]
)
def test_predictions_that_cannot_be_meant_are_refused(label: list[int], score: list[float], tmp_path: Path) -> None:
    row = {"image_id": ["a"], "truth": [[0]], "label": [label], "score": [score], "truth_score": [0.0]}
    row |= {"untempered": [0.5], "group": [0], "usage": ["Public"]}
    pl.DataFrame(row).write_parquet(tmp_path / "test.parquet")
    with pytest.raises(LandmarksError, match="holds invalid answers"):
        read_predictions(tmp_path / "test.parquet")
