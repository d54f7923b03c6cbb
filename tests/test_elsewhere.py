"""Machines that are not here: the command line without POSIX, on Apple's graphics processor, in another encoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from landmarks.archive.miniature import make_miniature
from landmarks.dataset.pictures import encode, resize
from landmarks.training.checkpoint import load_checkpoint, save_checkpoint
from landmarks.training.finetune import copy_of_weights

HERE = Path(__file__).parent / "elsewhere"
TRAINED = ["--backbone", "test_resnet", "--weights", "none", "--image-size", "32", "--epochs", "2", "--batch-size", "8",
           "--tracking", "none"]  # fmt: skip


def landmarks(
    *words: str | Path | bytes, script: str = "", code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the program, or one of the scripts in `elsewhere` that stand for another machine, and return what it said."""
    program = [str(HERE / script)] if script else ["-m", "landmarks"]
    ended = subprocess.run(
        [sys.executable, *program, *words],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )
    assert "unforeseen" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode == code, ended.stderr
    return ended


def album(folder: Path, *names: str, each: int = 6, seed: int = 0) -> Path:
    """Write pictures of noise, `each` in a folder per name."""
    for number, name in enumerate(names):
        for one in range(each):
            noise = np.random.default_rng([seed, number, one]).integers(0, 256, (4, 5, 3), dtype=np.uint8)
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{number}{one}.jpg").write_bytes(encode(resize(noise, 60, 40)))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photographs`, a `dataset` of them, and a `run` over them; nothing in it is changed."""
    place = tmp_path_factory.mktemp("trained")
    landmarks("import", album(place / "photographs", "Arch", "Łódź", "Tower"), "-o", place / "dataset")
    landmarks("split", place / "dataset", "--by", "random", "--val", "0.3", "--test", "0.3")
    landmarks("train", place / "dataset", "-o", place / "run", *TRAINED)
    return place


@pytest.mark.linux
def test_the_verbs_need_no_posix_and_no_file_is_replaced_while_it_is_open(tmp_path: Path) -> None:
    place = tmp_path
    album(place / "photographs", "Arch", "Tower")

    def elsewhere(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return landmarks(*words, script="windows.py")

    elsewhere("import", place / "photographs", "-o", place / "data")
    elsewhere("split", place / "data", "--by", "random", "--val", "0.3", "--test", "0.3")
    elsewhere("train", place / "data", "-o", place / "run", *TRAINED)
    elsewhere("train", place / "data", "-o", place / "warm", *TRAINED, "--weights", place / "run", "--head", "linear")
    elsewhere("predict", place / "run", place / "photographs", "--csv", place / "answers.csv")
    elsewhere("evaluate", place / "run", "--false-acceptance", "0.25", "--others", place / "data")
    elsewhere("explain", place / "run", place / "photographs" / "Arch")
    elsewhere("evaluate", place / "warm", "--suspects", place / "suspects.csv")
    elsewhere("unpack", place / "data", "-o", place / "unpacked")
    elsewhere("import", place / "unpacked", "-o", place / "again", "--labels", place / "run")
    assert pl.read_csv(place / "answers.csv")["path"].n_unique() == 12
    assert len(list((place / "unpacked").rglob("*.jpg"))) == 12
    assert pl.read_parquet(place / "again" / "labels.parquet")["name"].to_list() == ["Arch", "Tower"]
    assert json.loads((place / "run" / "run.json").read_text())["peak_memory_mb"] > 10


@pytest.mark.linux
def test_the_archive_is_chosen_and_fetched_without_posix(tmp_path: Path) -> None:
    make_miniature(tmp_path / "mirror", landmarks=2, photographs=4, others=2, size=64)
    landmarks("select", tmp_path / "mirror", "-o", tmp_path / "both.parquet", "--take", "2", script="windows.py")
    landmarks("locate", tmp_path / "mirror", "-o", tmp_path / "index.parquet", script="windows.py")
    fetched = tmp_path / "fetched"
    landmarks("fetch", tmp_path / "both.parquet", "-o", fetched, script="windows.py")
    index = ("--index", tmp_path / "index.parquet")
    landmarks("fetch", tmp_path / "both.parquet", "-o", tmp_path / "by-ranges", *index, script="windows.py")
    photos = [pl.read_parquet(folder / "photos.parquet") for folder in (fetched, tmp_path / "by-ranges")]
    assert len(photos[0]) > 0
    assert photos[0].equals(photos[1])


@pytest.mark.linux
def test_a_checkpoint_that_was_read_is_not_mapped_any_more(tmp_path: Path) -> None:
    network = torch.nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, network, optimizer, copy_of_weights(network), {"step": 1})
    best, state = load_checkpoint(tmp_path, network, optimizer) or ({}, {})
    assert state == {"step": 1}
    assert torch.equal(best["weight"], network.weight)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
