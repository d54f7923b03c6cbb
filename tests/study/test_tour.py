"""The notebook of the whole way runs from its first cell to its last, on the miniature."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from landmarks.miniature.make import make_miniature

TOUR = Path(__file__).parents[2] / "docs" / "tour.ipynb"


def cells() -> list[str]:
    return [cell.source for cell in nbformat.read(TOUR, as_version=4).cells if cell.cell_type == "code"]


def test_the_notebook_imports_nothing_but_landmarks_and_keeps_no_output() -> None:
    imported = [
        alias.name
        for cell in cells()
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    assert imported == ["landmarks"]
    assert not any(cell.get("outputs") for cell in nbformat.read(TOUR, as_version=4).cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs_and_shows_tables_images_and_curves(tmp_path: Path) -> None:
    make_miniature(tmp_path / "demo" / "mirror", landmarks=4, images=20, unknown=4, seed=0)
    notebook = nbformat.read(TOUR, as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    page, _ = HTMLExporter().from_notebook_node(notebook)
    (tmp_path / "tour.html").write_text(page, encoding="utf-8")
    for shown in ("<caption", "data:image/jpeg;base64,", "<svg", "top1", "label_smoothing"):
        assert shown in page
    assert "Warning" not in page  # of a library, in red
    assert "Traceback" not in page and (tmp_path / "report.html").is_file()
