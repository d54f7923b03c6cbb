"""What a notebook shows of runs, datasets and numbers, and what one's own code can ask of a run."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
import torch

from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.compare import compare
from landmarks.evaluation.evaluate import evaluate
from landmarks.evaluation.subsets import subsets
from landmarks.recognition.recogniser import load
from landmarks.support.errors import LandmarksError
from landmarks.training.run import Run, curves_svg, open_run

VOID = {"img", "br", "hr"}


class Closed(HTMLParser):
    """Raises where a tag is closed that was not open; collects the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def test_runs_datasets_and_numbers_show_themselves(run: Run, own_data: Dataset) -> None:
    numbers = evaluate(run.folder)
    assert f"{numbers.known} images" in Closed(numbers._repr_html_()).text
    assert run.name in Closed(run._repr_html_()).text
    shown = own_data._repr_html_()
    assert "train" in Closed(shown).text and "data:image/jpeg;base64," in shown
    compared = compare(run.folder, run.folder)
    assert compared.verdict in Closed(compared._repr_html_()).text
    assert "3 draws" in Closed(subsets(run.folder, 2, draws=3)._repr_html_()).text


def test_numbers_are_those_of_the_record(run: Run) -> None:
    numbers = evaluate(run.folder)
    assert numbers.top1.value == numbers.record["top1"]["value"] and numbers.top1.low == numbers.record["top1"]["low"]
    assert str(numbers).splitlines()[0] == numbers.title
    assert numbers.threshold is None


def test_the_thresholds_that_are_compared_say_what_they_lose_and_where(run: Run) -> None:
    numbers = replace(evaluate(run.folder), halves=("Public", "Private"))
    assert numbers.known_title == (
        "known or not: thresholds that lose 5 % of the known images of Public, numbers from Private"
    )
    assert replace(numbers, halves=None).known_title == "known or not"


def test_a_name_with_markup_stays_text(run: Run) -> None:
    labels = run.labels.with_columns(name=pl.lit("<script>alert(1)</script>"))
    shown = Run(run.folder, {**run.record, "network": {"backbone": "<b>", "image_size": 8}}, labels)._repr_html_()
    assert "<script" not in shown and "&lt;b&gt;" in shown


def test_curves_need_two_epochs(run: Run) -> None:
    row = {"phase": "finetune", "train_accuracy": 0.5, "val_accuracy": 0.6}
    one = pl.DataFrame([{**row, "epoch": 1}])
    assert curves_svg(one) == ""
    two = curves_svg(pl.DataFrame([{**row, "epoch": 1}, {**row, "epoch": 2, "val_accuracy": 0.7}]))
    assert two.count("<polyline") == 2 and "val 70.0 %" in two


def test_the_predictions_of_a_run_are_a_table_of_names(run: Run, own_data: Dataset) -> None:
    numbers = evaluate(run.folder)
    table = open_run(run.folder).predictions("test")
    assert table.columns == ["image_id", "shows", "answer", "probability", "correct"]
    assert table["correct"].mean() == pytest.approx(numbers.top1.value)
    wrong = table.filter(~pl.col("correct"))
    assert not any(row["answer"] in row["shows"] for row in wrong.iter_rows(named=True))
    with pytest.raises(LandmarksError, match='no predictions called "tset"; received test'):
        run.predictions("tset")


def test_the_transform_gives_what_the_network_answers(run: Run) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), dtype=np.uint8)
    recogniser = load(run, device="cpu")
    images = recogniser.transform(list(pixels))
    with torch.no_grad():
        logits = recogniser.network(torch.from_numpy(images)) / recogniser.temperature
    answered = [one.answers[0].probability for one in recogniser.recognise(list(pixels))]
    assert torch.softmax(logits, 1).amax(1).tolist() == pytest.approx(answered, abs=1e-5)
