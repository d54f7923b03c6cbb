"""Deletion and insertion curves on a network whose reasons are known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from landmarks.explanation.faithfulness import area, blur, centre, curves, faithfulness, summary
from landmarks.support.files import read_record
from landmarks.training.run import Run


class Corner(torch.nn.Module):
    """Answers 0 as surely as one corner of the image is bright, else 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images[:, 0, 4:10, 20:26].mean((1, 2))
        return torch.stack([10 * bright, 5 * torch.ones_like(bright)], dim=1)


def test_a_map_that_knows_the_reason_beats_one_that_does_not():
    images = torch.zeros(1, 3, 32, 32)
    images[:, 0, 4:10, 20:26] = 1.0
    right, wrong = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    right[:, 2:5, 10:13] = 1
    wrong[:, 10:15, 1:6] = 1
    label = torch.tensor([0])
    deletion, insertion = curves(Corner(), images, label, right)
    worse_deletion, worse_insertion = curves(Corner(), images, label, wrong)
    assert deletion.shape == insertion.shape == (1, 11)
    assert deletion[0, 0] == insertion[0, -1] > 0.99 and deletion[0, -1] == insertion[0, 0] < 0.85
    assert area(deletion) < area(worse_deletion) - 0.05
    assert area(insertion) > area(worse_insertion) + 0.05


def test_areas_are_those_of_the_trapezoidal_rule():
    curve = torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]])
    assert area(curve).tolist() == [0.5, 1.0]


def test_the_centre_is_the_warmest_place_of_the_centre_map():
    warm = centre(5, 7)
    assert warm.shape == (5, 7) and warm.argmax() == 2 * 7 + 3


def test_a_blur_keeps_an_even_image_and_spreads_a_point():
    even = torch.full((1, 3, 40, 40), 0.3)
    torch.testing.assert_close(blur(even), even)
    point = torch.zeros(1, 3, 41, 41)
    point[..., 20, 20] = 1
    spread = blur(point)
    assert spread.sum().item() == pytest.approx(3.0, rel=1e-3)
    assert spread[0, 0].argmax() == 20 * 41 + 20 and spread.max() < 0.05


def test_gains_are_means_of_paired_differences_with_their_intervals():
    table = pl.DataFrame(
        {
            "deletion_heat": [0.2, 0.4],
            "insertion_heat": [0.8, 0.9],
            "deletion_random": [0.5, 0.5],
            "insertion_random": [0.4, 0.6],
            "deletion_centre": [0.2, 0.4],
            "insertion_centre": [0.8, 0.9],
        }
    )
    heat, random, middle = summary(table)
    assert heat["deletion"] == {"area": pytest.approx(0.3)}
    assert random["deletion"]["gain"] == pytest.approx(0.2)
    assert random["insertion"]["gain"] == pytest.approx(0.35)
    error = 1.96 * np.std([0.3, 0.1], ddof=1) / np.sqrt(2)
    assert random["deletion"]["low"] == pytest.approx(0.2 - error)
    assert middle["insertion"]["gain"] == 0


def test_a_run_is_measured_landmark_by_landmark(colour_run: Run, capsys):
    record = faithfulness(colour_run, count=6)
    assert record["images"] == 6
    table = pl.read_parquet(colour_run.folder / "maps" / "faithfulness.parquet")
    assert table["label"].to_list() == [0, 1, 2] and table["images"].to_list() == [2, 2, 2]
    assert read_record(colour_run.folder / "maps" / "faithfulness.json")["maps"] == record["maps"]

    from landmarks.cli.result_verbs import explain as verb

    assert verb(colour_run.folder, count=3, faithfulness=True) == 0
    assert "insertion, more is better" in capsys.readouterr().out
