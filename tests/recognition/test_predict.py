from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import image
from PIL import Image

from landmarks.cli.main import run as landmarks
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.evaluation.evaluate import evaluate
from landmarks.recognition.answers import NOT_KNOWN
from landmarks.recognition.predict import PREDICTED, predict
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import read_record, write_record
from landmarks.training.run import Run, open_run


def make_file(folder: Path, name: bytes, data: bytes) -> None:
    """Write a file whose name may be any bytes, or skip where a system has no such names."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / os.fsdecode(name)).write_bytes(data)
    except OSError:
        pytest.skip("names of files are Unicode here")


@pytest.fixture
def holiday(tmp_path: Path) -> Path:
    """A folder with two images, a text that calls itself an image, and one that does not."""
    folder = tmp_path / "holiday"
    (folder / "day 2").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(image(11, 1))
    (folder / "day 2" / "b.JPG").write_bytes(image(22, 2))
    (folder / "c.jpg").write_text("not an image at all")
    (folder / "notes.txt").write_text("by name no image either")
    return folder


def test_an_image_gets_the_answers_that_evaluation_gave_it(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    evaluate(run.folder)
    from landmarks.dataset.shards import ImageReader
    from landmarks.evaluation.predictions import read_predictions

    image = own_data.split("test").rows(named=True)[2]
    path = tmp_path / "one.jpg"
    path.write_bytes(ImageReader(own_data).read(image["shard"], image["offset"], image["length"]))
    table = predict(run.folder, path)
    stored = read_predictions(run.folder / "predictions" / "test.parquet").row(2, named=True)
    assert table["landmark_id"].to_list() == run.labels["landmark_id"].gather(stored["label"]).to_list()
    assert table["probability"].to_list() == pytest.approx(stored["score"], abs=1e-6)
    assert table["rank"].to_list() == [1, 2, 3]
    assert table["known"].to_list() == [None, None, None]


def test_what_does_not_decode_is_named_and_the_rest_answered(run: Run, holiday: Path) -> None:
    table = predict(run.folder, [holiday], top=1)
    assert predict(run, (path for path in [holiday]), top=1).equals(table)
    assert dict(table.schema) == PREDICTED
    assert [Path(path).name for path in table["path"]] == ["a.jpg", "c.jpg", "b.JPG"]
    assert table["rank"].to_list() == [1, None, 1]
    assert [problem is None for problem in table["problem"]] == [True, False, True]


def test_the_program_prints_a_table_writes_a_csv_and_ends_with_1_when_some_failed(
    run: Run, holiday: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "answers.csv"
    assert landmarks(["predict", str(run.folder), str(holiday), "--csv", str(target), "--top", "2"]) == 1
    printed = capsys.readouterr()
    assert "Tower" in printed.out
    assert "c.jpg" in printed.err
    assert "1 of 3 images could not be answered" in printed.err
    rows = list(csv.DictReader(target.read_text().splitlines()))
    assert len(rows) == 2 * 2 + 1
    assert list(rows[0]) == list(PREDICTED)


def test_json_has_one_entry_per_image(run: Run, holiday: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert landmarks(["predict", str(run.folder), str(holiday / "a.jpg"), "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == 1
    assert [answer["name"][:5] for answer in entries[0]["answers"]] == ["Tower"] * 3


def test_below_the_threshold_it_is_not_a_landmark_i_know(
    run: Run, holiday: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_record(run.folder / "model.json")
    rejection = {"rule": {"name": "msp", "weights": {"msp": 1.0}, "constant": 0.0}, "threshold": 2.0}
    write_record(run.folder / "model.json", {**record, "rejection": rejection}, verb="train")
    assert predict(run.folder, holiday / "a.jpg")["known"].to_list() == [False] * 3
    landmarks(["predict", str(run.folder), str(holiday / "a.jpg")])
    assert NOT_KNOWN in capsys.readouterr().out


def test_a_threshold_chosen_by_evaluate_is_used(run: Run, test_data: Dataset, holiday: Path) -> None:
    evaluate(run.folder, data=test_data.folder, false_acceptance=0.25)
    assert set(predict(run.folder, holiday / "a.jpg")["known"].to_list()) <= {True, False}
    rule = read_record(run.folder / "model.json")["rejection"]["rule"]
    (run.folder / "gallery.safetensors").unlink()
    if {"knn", "mahalanobis"} & set(rule["weights"]):
        with pytest.raises(LandmarksError, match="choose it again"):
            predict(run.folder, holiday / "a.jpg")


def test_clumsy_calls_are_one_line(run: Run, tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match="there is no image"):
        predict(run.folder, tmp_path / "nowhere.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LandmarksError, match="holds no images"):
        predict(run.folder, tmp_path / "empty")
    with pytest.raises(UsageError, match="1 to 5"):
        predict(run.folder, tmp_path, top=0)


def test_what_is_no_run_is_told_with_what_it_is(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match="is a dataset, and no run; train a run on it with: landmarks train"):
        predict(own_data.folder, tmp_path)
    with pytest.raises(LandmarksError, match=r"model\.safetensors is a file, and no run's folder"):
        predict(run.folder / "model.safetensors", tmp_path)
    with pytest.raises(LandmarksError, match="is a run, and no dataset"):
        open_dataset(run.folder)
    with pytest.raises(LandmarksError, match="is a run, and no folder of images"):
        predict(run.folder, run.folder)
    (tmp_path / "mine.onnx").write_bytes(b"-")
    with pytest.raises(LandmarksError, match=r"mine\.onnx is an export, and no run's folder; name the run that it"):
        open_run(tmp_path / "mine.onnx")


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_a_device_that_nobody_has_is_wrong_usage(
    verb: str, run: Run, holiday: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [verb, str(run.folder)] + ([str(holiday)] if verb == "predict" else [])
    assert landmarks([*words, "--device", "gpu"]) == 2
    assert 'no device "gpu"; expected auto, cuda, mps, cpu' in capsys.readouterr().err
    assert landmarks([*words, "--device", "cpu"]) == (1 if verb == "predict" else 0)


def test_a_name_that_is_not_utf8_is_answered_like_any_other(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (b"caf\xe9.jpg", b"caf\xe8.jpg", b"plain.jpg"):
        make_file(tmp_path / "holiday", name, image(11, 1))
    target = tmp_path / "answers.csv"
    words = ["predict", str(run.folder), str(tmp_path / "holiday"), "--top", "1"]
    assert landmarks([*words, "--csv", str(target)]) == 0
    names = [Path(row["path"]).name for row in csv.DictReader(target.read_text(encoding="utf-8").splitlines())]
    assert sorted(names) == ["caf\\xe8.jpg", "caf\\xe9.jpg", "plain.jpg"]
    capsys.readouterr()
    assert landmarks([*words, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


@pytest.mark.parametrize("given", [b"bytes", np.zeros((8, 8, 3), np.uint8), Image.new("RGB", (8, 8)), [b"bytes"], None])
def test_images_in_memory_are_sent_to_the_recogniser(given: Any, run: Run) -> None:
    with pytest.raises(UsageError, match=r"no path of a file or folder; received .*landmarks\.load\(RUN\)\.recognise"):
        predict(run.folder, given)


@pytest.mark.linux
def test_nothing_is_answered_for_a_table_that_cannot_be_written(
    run: Run, holiday: Path, tmp_path: Path, read_only: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shut").mkdir()
    read_only(tmp_path / "shut")
    monkeypatch.setattr("landmarks.recognition.predict.load", None)
    monkeypatch.setattr("landmarks.evaluation.evaluate.prepare_recogniser", None)
    for table in (tmp_path / "shut" / "answers.csv", tmp_path / "shut" / "new" / "answers.csv"):
        with pytest.raises(LandmarksError, match=r"answers\.csv could not be written .no file can be made in"):
            predict(run.folder, holiday, csv=table)
        with pytest.raises(LandmarksError, match="no file can be made in"):
            evaluate(run.folder, wrong=table)
