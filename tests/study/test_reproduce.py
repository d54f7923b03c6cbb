"""The study's table again: from scratch and small, killed and gone on with, and with networks that cannot be had."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

import landmarks
from landmarks.cli.main import run as run_verb
from landmarks.cli.result_verbs import reproduce as verb
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.shards import ImageReader
from landmarks.miniature.make import make_miniature
from landmarks.study.protocol import IN_THE_TABLE, PROTOCOLS, attempts, by_reference, divided, starting_weights
from landmarks.study.reproduce import Reproduction, reproduce
from landmarks.support.errors import LandmarksError, StaleError, UsageError
from landmarks.support.files import read_record, write_record
from landmarks.support.tables import read_table, write_table
from landmarks.training.run import open_run

TWO = {"networks": "baseline,resnet18", "weights": "none", "image_size": 32, "epochs": 2}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images that groups of them fit into every split."""
    return make_miniature(tmp_path_factory.mktemp("mirror"), landmarks=3, images=20, unknown=6, size=64)


@pytest.fixture(scope="module")
def data(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("study")
    landmarks.select(mirror, folder / "train.parquet")
    return landmarks.fetch(folder / "train.parquet", folder / "data")


@pytest.fixture(scope="module")
def test_set(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("study")
    landmarks.select(mirror, folder / "test.parquet", set="test")
    return landmarks.fetch(folder / "test.parquet", folder / "test")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lasting(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of the table without the times, which no two trainings share."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in record["rows"]]


PROGRAM = """
import os, signal, sys
from landmarks.cli.main import run
from landmarks.evaluation import predictions
from landmarks.training import finetune
step, answer = int(sys.argv[1]), int(sys.argv[2])
finetune.SECONDS_BETWEEN_CHECKPOINTS = -1.0

def mortal(module, name, last):
    original, calls = getattr(module, name), iter(range(1, 10**6))
    def called(*arguments, **named):
        if next(calls) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)
    setattr(module, name, called)

mortal(finetune, "accumulate_gradients", step)
mortal(predictions, "_answers", answer)
sys.exit(run(sys.argv[3:]))
"""


def test_whether_the_protocols_test_on_the_same_images_is_looked_up(data: Dataset, tmp_path: Path) -> None:
    every = attempts("baseline", "none", image_size=32, epochs=1, seed=0)
    study = Reproduction(tmp_path, data, {}, every, None)

    def notes() -> list[str]:
        return [note for note in study.write_table()["notes"] if "protocols test on" in note]

    assert notes() == []  # nothing is divided yet
    for protocol in PROTOCOLS:
        landmarks.split(by_reference(data, tmp_path / "data" / protocol.by).folder, by=protocol.by, val=0.2, test=0.2)
    assert notes() == ["The two protocols test on different images."]
    same = read_table(tmp_path / "data" / "random" / "splits.parquet")
    write_table(tmp_path / "data" / "group" / "splits.parquet", same)
    assert notes() == ["The two protocols test on the same images."]


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_in_the_same_table(data: Dataset, test_set: Dataset, tmp_path: Path) -> None:
    options = [word for name, value in TWO.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    options += ["--test", str(test_set.folder)]

    def life(folder: Path, *, step: int = 0, answer: int = 0) -> int:
        words = ["reproduce", str(data.folder), "-o", str(folder), *options]
        command = [sys.executable, "-c", PROGRAM, str(step), str(answer), *words]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode

    before = bytes_of(data.folder)
    assert life(tmp_path / "whole") == 0
    broken = tmp_path / "broken"
    assert life(broken, step=2) == -signal.SIGKILL  # in the baseline's training
    begun = read_record(broken / "study.json")
    assert [row["why"] for row in begun["rows"]] == ["not trained yet"] * 4
    assert life(broken, answer=2) == -signal.SIGKILL  # between its two evaluations
    assert life(broken, step=3) == -signal.SIGKILL  # in the next network's training
    first = open_run(broken / "study" / "baseline").record
    assert life(broken) == 0
    assert open_run(broken / "study" / "baseline").record == first

    table = read_record(broken / "study.json")
    assert lasting(table) == lasting(read_record(tmp_path / "whole" / "study.json"))
    assert not any(row["why"] for row in table["rows"])
    for run in ("study/baseline", "study/resnet18", "corrected/baseline", "corrected/resnet18"):
        assert open_run(broken / run).digest == open_run(tmp_path / "whole" / run).digest
    assert bytes_of(data.folder) == before
    made = bytes_of(broken / "corrected")
    assert life(broken) == 0
    assert bytes_of(broken / "corrected") == made


@pytest.mark.slow
def test_the_table_says_what_was_reached_what_was_published_and_what_was_changed(
    data: Dataset, test_set: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["reproduce", str(data.folder), "-o", str(tmp_path / "out"), "--test", str(test_set.folder)]
    words += ["--networks", "baseline,xception", "--image-size", "32", "--epochs", "1"]
    assert run_verb([*words, "--weights", f"xception={tmp_path}/nowhere.safetensors"]) == 1
    printed = capfd.readouterr()
    assert printed.err.count("left out: study/xception, corrected/xception, as there are no weights") == 1
    for text in ("85.31", "85.95", "not given", "32 px, not 112", "1 epoch, not 30", "split by group", "not done"):
        assert text in printed.out
    record = read_record(tmp_path / "out" / "study.json")
    assert record["test_set"] == "test-set"  # "test" is the name of a split
    reached, missed = record["rows"][0], record["rows"][1]
    judged = read_record(tmp_path / "out" / "study" / "baseline" / "metrics" / "test-set.json")
    assert reached["test_set"] == judged["top1"] and judged["unknown"] == 6
    assert reached["epochs"] == [1] and reached["image_size"] == 32 and reached["head"] is None
    assert missed["published"] == {"validation": 0.8595, "test": 0.8531} and missed["run"] is None
    numbers = pl.read_csv(tmp_path / "out" / "study.csv")
    assert numbers["test"].to_list()[0] == reached["test"]["value"]
    assert numbers["published_test"].to_list() == [None, 0.8531, None, None]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'id="study"' in page and 'href="#study"' in page and "85.31\N{NO-BREAK SPACE}%" in page
    assert (tmp_path / "out" / "figures" / "report-protocols.svg").exists()


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet50", "xception", "inception_v3", "inception_resnet_v2", "nasnet_large"])
def test_the_large_networks_take_their_steps(data: Dataset, tmp_path: Path, network: str) -> None:
    record = reproduce(data.folder, tmp_path / "out", networks=[network], weights="none", image_size=96, epochs=1)
    assert [(row["network"], row["epochs"], row["why"]) for row in record["rows"]] == [(network, [1], "")] * 2
    assert open_run(tmp_path / "out" / "study" / network).history["step"].to_list()[-1] == 2
    assert all(row["parameters"] > 20e6 for row in record["rows"])


def test_a_dataset_by_reference_holds_the_same_images_and_no_copy(data: Dataset, tmp_path: Path) -> None:
    made = by_reference(data, tmp_path / "view")
    assert made.record["digest"] == data.record["digest"] and not (tmp_path / "view" / "shards").exists()
    place = ["shard", "offset", "length"]
    ours, theirs = ImageReader(made), ImageReader(data)
    for our_place, their_place in zip(made.images.select(place).rows(), data.images.select(place).rows(), strict=True):
        assert ours.read(*our_place) == theirs.read(*their_place)


def test_a_dataset_by_reference_follows_images_that_were_moved(data: Dataset, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(data.folder, tmp_path / "here")
    landmarks.split(by_reference(open_dataset(tmp_path / "here"), tmp_path / "view").folder, by="random")
    divided = open_dataset(tmp_path / "view")
    (tmp_path / "here").rename(tmp_path / "there")
    made = by_reference(open_dataset(tmp_path / "there"), tmp_path / "view")
    assert made.splits is None  # to be divided again, in the same way
    assert landmarks.split(made.folder, by="random").digest == divided.digest
    shard, offset, length = made.images.select("shard", "offset", "length").row(0)
    assert len(ImageReader(made).read(shard, offset, length)) == length


def test_too_few_images_for_one_protocol_leave_the_other(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    landmarks.select(miniature, tmp_path / "few.parquet")
    few = landmarks.fetch(tmp_path / "few.parquet", tmp_path / "few")  # groups leave nothing to validate with
    record = reproduce(few.folder, tmp_path / "out", networks="xception", weights={"xception": tmp_path / "no.pth"})
    assert [row["why"].split("; ")[0] for row in record["rows"]] == [
        f"there are no weights {tmp_path / 'no.pth'}",
        f"{few.folder} cannot be divided by group: nothing is left for val",
    ]


def test_parts_that_somebody_else_made_are_made_again(data: Dataset, tmp_path: Path) -> None:
    made = divided(data, tmp_path / "view", PROTOCOLS[0], seed=0)
    landmarks.split(tmp_path / "view", by="group", val=0.3)
    assert divided(data, tmp_path / "view", PROTOCOLS[0], seed=0).digest == made.digest


def test_weights_are_named_for_all_or_for_each() -> None:
    names = ["baseline", "resnet50", "xception"]
    assert starting_weights(names, "imagenet") == {"baseline": "none", "resnet50": "imagenet", "xception": "imagenet"}
    assert starting_weights(names, "none") == dict.fromkeys(names, "none")
    assert starting_weights(names, "none, xception=a b.pth") == {
        "baseline": "none",
        "resnet50": "none",
        "xception": "a b.pth",
    }
    assert starting_weights(names, {"resnet50": Path("x")}) == {
        "baseline": "none",
        "resnet50": "x",
        "xception": "imagenet",
    }
    with pytest.raises(UsageError, match=r'"resnet5O", which is not among the networks.*did you mean "resnet50"'):
        starting_weights(names, "resnet5O=x")
    with pytest.raises(UsageError, match=r'no weights "imagnet" for all networks.*did you mean "imagenet"'):
        starting_weights(names, "imagnet")


def test_what_differs_from_the_study_is_said_of_each_network() -> None:
    from landmarks.study.protocol import differences_from_study

    every = attempts("xception,mobilenetv2_100,nasnet_large", "xception=w.pth", image_size=160, epochs=None, seed=0)
    assert [differences_from_study(attempt) for attempt in every] == [
        ["160 px, not 299", "weights w.pth"],
        ["not in the study", "160 px, not 224"],
        ["dropped by the study", "160 px, not 331"],
        ["split by group", "recipe default", "160 px, not 299", "weights w.pth"],
        ["split by group", "recipe default", "not in the study", "160 px, not 224"],
        ["split by group", "recipe default", "dropped by the study", "160 px, not 331"],
    ]
    assert [
        differences_from_study(attempt)
        for attempt in attempts(IN_THE_TABLE, "imagenet", image_size=None, epochs=10, seed=0)
    ][1:5] == [[]] * 4


def test_wrong_words_are_told_before_anything_is_written(data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match='no network "resnet5O"'):
        reproduce(data.folder, out, networks="resnet5O")
    with pytest.raises(UsageError, match="needs a network"):
        reproduce(data.folder, out, networks=[])
    with pytest.raises(UsageError, match="the recipe's epochs"):
        reproduce(data.folder, out, epochs=-1)
    with pytest.raises(LandmarksError, match="there is no folder"):
        reproduce(tmp_path / "nowhere", out)
    for name, landmarks_of in {"mine": "ab", "other": "cd"}.items():  # both have the ids 0 and 1
        for landmark in landmarks_of:
            (tmp_path / "images" / name / landmark).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / "images" / name / landmark / "1.jpg")
        landmarks.import_(tmp_path / "images" / name, tmp_path / name)
    with pytest.raises(LandmarksError, match="other shows none of the 2 landmarks of"):
        reproduce(tmp_path / "mine", out, test=tmp_path / "other")
    assert not out.exists()
    with pytest.raises(LandmarksError, match="holds no reproduction"):
        reproduce(data.folder, data.folder)


def test_other_settings_do_not_mix_into_a_begun_reproduction(data: Dataset, tmp_path: Path) -> None:
    settings = {"data": data.record["digest"], "seed": 0, "image_size": 32, "epochs": 2}
    write_record(tmp_path / "out" / "study.json", {"settings": settings}, verb="reproduce")
    with pytest.raises(StaleError, match="another reproduction; received epochs 3; expected epochs 2"):
        reproduce(data.folder, tmp_path / "out", **{**TWO, "epochs": 3})


def test_the_verb_and_the_function_have_the_same_words_and_the_same_networks() -> None:
    words, parameters = inspect.signature(verb).parameters, inspect.signature(reproduce).parameters
    assert list(words) == [*parameters, "json"]
    assert words["networks"].default.split(",") == list(parameters["networks"].default)
    assert landmarks.reproduce is reproduce


def test_the_record_can_be_read_by_programs(data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", str(data.folder), "-o", str(tmp_path / "out"), "--networks", "xception", "--json"]
    assert run_verb([*words, "--weights", "xception=nowhere.pth"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert (
        record["report"] is None and [row["why"] for row in record["rows"]] == ["there are no weights nowhere.pth"] * 2
    )
