"""Three newcomers, who know README and -h: a student in a notebook, somebody from the challenge, an engineer."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import altair as alt
import numpy as np
import polars as pl
import pytest
import torch
from made_up_runs import _short_features, image, own_data, run

import landmarks
from landmarks.dataset.manifest import Dataset
from landmarks.training.run import Run

__all__ = ["_short_features", "own_data", "run"]

SMALL = {"backbone": "baseline", "image_size": 32, "epochs": 2, "batch_size": 8, "tracking": "none", "device": "cpu"}


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per landmark, as anybody has them: 12 images of each of three."""
    folder = tmp_path_factory.mktemp("album")
    for landmark, name in ((11, "bridge"), (22, "castle"), (33, "tower")):
        (folder / name).mkdir()
        for number in range(12):
            (folder / name / f"{number}.jpg").write_bytes(image(landmark, number))
    return folder


def test_a_student_ends_with_a_plot_the_wrong_answers_and_features_in_torch(album: Path, tmp_path: Path) -> None:
    dataset = landmarks.import_(album, tmp_path / "data")
    landmarks.split(tmp_path / "data", val=0.2, test=0.25)
    trained = landmarks.train(tmp_path / "data", tmp_path / "run", weights="none", **SMALL)
    for shown in (dataset, trained):
        assert "<table" in shown._repr_html_() and len(shown._repr_html_()) < 20_000
    numbers = landmarks.evaluate(tmp_path / "run")
    low, high = numbers.top1.low, numbers.top1.high
    assert low is not None and high is not None and low < high

    chart = alt.Chart(alt.InlineData(values=trained.history.to_dicts())).mark_line().encode(x="epoch:Q", y="val_loss:Q")
    assert "val_loss" in chart.to_json()

    answers = trained.predictions("test")
    wrong = answers.filter(~pl.col("correct"))
    assert {"shows", "answer", "probability"} <= set(wrong.columns)
    assert 1 - len(wrong) / len(answers) == pytest.approx(numbers.top1.value)

    recogniser = landmarks.load(tmp_path / "run")
    files = sorted(album.glob("*/*.jpg"))
    images = torch.from_numpy(recogniser.transform(files))
    own = torch.nn.Linear(recogniser.network.width, 3)  # the student's own
    with torch.no_grad():
        features = recogniser.network.features(images)
    assert own(features.float()).shape == (36, 3)
    assert np.allclose(features.float().numpy(), recogniser.embed(files), atol=1e-3)


@pytest.mark.slow
def test_somebody_from_the_challenge_ends_with_a_submission_and_its_gap(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = landmarks.select(miniature, "chosen.parquet", images_per_landmark=6)
    assert chosen.landmarks["images"].max() == 6
    landmarks.fetch("chosen.parquet", "data")
    landmarks.split("data", test=0.0)
    landmarks.train("data", "run", weights="none", head="arcface", **SMALL)
    landmarks.select(miniature, "test.parquet", set="test", landmarks="run")
    landmarks.fetch("test.parquet", "test")
    numbers = landmarks.evaluate("run", data="test", submission="submission.csv")
    with open("submission.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "landmarks"]
    scored = landmarks.score("submission.csv", next(miniature.rglob("recognition_solution*.csv")))
    assert scored.images == numbers.images == len(rows)
    assert scored.gap == pytest.approx(numbers.gap, abs=1e-6)


def shell(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "landmarks", *map(str, words)], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.linux
def test_an_engineer_gets_codes_json_a_log_and_every_answer_but_one(
    run: Run, own_data: Dataset, tmp_path: Path
) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for number in range(3):
        (inbox / f"{number}.jpg").write_bytes(image(22, 50 + number))
    (inbox / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    job = ("predict", run.folder, "inbox", "--csv", "out.csv", "--log", "day.log", "--quiet")
    before = os.umask(0o027)
    try:
        strict, lenient = shell(*job, folder=tmp_path), shell(*job, "--partial-ok", folder=tmp_path)
    finally:
        os.umask(before)
    assert (strict.returncode, lenient.returncode) == (1, 0)
    assert strict.stderr == ""
    table = pl.read_csv(tmp_path / "out.csv", glob=False)
    assert table.filter(pl.col("rank") == 1)["path"].n_unique() == 3
    assert table.filter(pl.col("problem").is_not_null())["path"].to_list() == ["inbox/broken.jpg"]
    modes = {(tmp_path / name).stat().st_mode & 0o777 for name in ("out.csv", "day.log")}
    assert modes == {0o640}
    log = (tmp_path / "day.log").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]", line) for line in log)
    assert [line.split(" ")[3] for line in log if " exit code " in line] == ["1", "0"]
    assert any("broken.jpg" in line for line in log)
    answered = shell("predict", run.folder, "inbox", "--json", "--partial-ok", folder=tmp_path)
    assert [bool(one["problem"]) for one in json.loads(answered.stdout)] == [False, False, False, True]
    assert shell("predict", run.folder, "nowhere", folder=tmp_path).returncode == 1
    assert shell("predict", run.folder, "inbox", "--tpo", "3", folder=tmp_path).returncode == 2
