"""Charts become SVG that holds what they were given, and nothing that two of them could share."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import polars as pl
import pytest

from landmarks.reporting import charts
from landmarks.reporting.drawings import MOST_CELLS
from landmarks.reporting.figures import FigureFolder, inlined, render_svg

UNIT = pl.DataFrame({"confidence": [0.2, 0.9], "accuracy": [0.3, 0.8], "images": [5, 40]}).with_columns(
    pl.Series("description", ["low", "high"])
)


def tips(svg: str) -> list[str]:
    return [tip for element in ET.fromstring(svg).iter() if (tip := element.get("data-tip"))]


def test_marks_say_what_they_are_and_the_image_as_a_whole_has_one_alternative_text() -> None:
    svg = inlined(render_svg(charts.reliability_chart(UNIT)), "Reliability", prefix="a")
    assert {"low", "high"} <= set(tips(svg))
    root = ET.fromstring(svg)
    assert root.get("role") == "img" and root.get("aria-label") == "Reliability"
    assert [element for element in root.iter() if element is not root and element.get("aria-label")] == []


def test_two_images_in_one_page_share_no_identifier() -> None:
    svg = render_svg(charts.risk_coverage_chart(pl.DataFrame({"coverage": [0.0, 1.0], "risk": [0.0, 0.1]})))
    svg = svg.replace("<g ", '<g id="clip0" ', 1)
    roots = [ET.fromstring(inlined(svg, "", prefix=prefix)) for prefix in ("a", "b")]
    ids = [{element.get("id") for element in root.iter()} - {None} for root in roots]
    assert all(ids) and not ids[0] & ids[1]


def test_the_page_gets_its_own_colours_and_the_file_real_ones(tmp_path: Path) -> None:
    folder = FigureFolder(tmp_path / "figures")
    figure = folder.draw(charts.reliability_chart(UNIT), UNIT, file="run-reliability", title="t", alt="a")
    assert "var(--s0)" in figure.svg and charts.RIGHT not in figure.svg
    written = (tmp_path / "figures" / "run-reliability.svg").read_text()
    assert charts.RIGHT in written and "var(" not in written
    assert pl.read_csv(tmp_path / "figures" / "run-reliability.csv").columns == [
        "confidence",
        "accuracy",
        "images",
    ]


def test_a_confusion_matrix_has_one_cell_per_pair_that_occurs() -> None:
    cells = pl.DataFrame({"row": [0, 1, 2, 2], "column": [0, 1, 2, 0], "share": [1.0, 1.0, 0.5, 0.5]})
    cells = cells.with_columns(pl.Series("right", [True, True, True, False]), pl.Series("description", list("abcd")))
    assert sorted(tips(inlined(render_svg(charts.confusion_matrix(cells, ["A", "B", "C"])), "", "x"))) == list("abcd")


@pytest.mark.parametrize("landmarks", [2, 20, 100, MOST_CELLS])
def test_a_confusion_matrix_draws_as_many_rows_as_there_are_landmarks(landmarks: int) -> None:
    places = list(range(landmarks))
    cells = pl.DataFrame({"row": places, "column": places, "share": [1.0] * landmarks, "right": [True] * landmarks})
    cells = cells.with_columns(pl.Series("description", [f"cell {place}" for place in places]))
    svg = inlined(render_svg(charts.confusion_matrix(cells, [f"L{place:03d}" for place in places])), "", "x")
    assert len(tips(svg)) == landmarks


def test_a_run_from_scratch_has_learning_curves_of_one_phase() -> None:
    frame = pl.DataFrame(
        {"phase": ["finetune"] * 2, "epoch": [1, 2], "series": ["validation"] * 2, "value": [0.1, 0.2]}
    )
    svg = render_svg(
        charts.learning_curves_chart(frame.with_columns(pl.Series("description", ["x", "y"])), "accuracy", True)
    )
    assert "fine-tuning" in svg and "head training" not in svg


def test_a_curve_without_any_error_has_an_axis_that_begins_at_none() -> None:
    frame = pl.DataFrame({"coverage": [0.0, 0.5, 1.0], "risk": [0.0, 0.0, 0.0]})
    scale = charts.risk_coverage_chart(frame).to_dict()["encoding"]["y"]["scale"]
    assert (scale["domainMin"], scale["domainMax"]) == (0, 0.05)
