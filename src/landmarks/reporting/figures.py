"""Figures: each chart is an image in the page, and an SVG and a CSV beside it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import vl_convert
from markupsafe import Markup

from landmarks.reporting.charts import GRID, INK, MUTED, SERIES
from landmarks.support.files import written_whole
from landmarks.support.tables import write_csv

_SVG = "http://www.w3.org/2000/svg"
_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)"} | {
    colour: f"var(--s{position})" for position, colour in enumerate(SERIES)
}
_NOT_IN_THE_PAGE = ("role", "aria-roledescription", "aria-hidden", "pointer-events", "font-family", "stroke-miterlimit")


@dataclass(frozen=True)
class Figure:
    """A chart in the page: `svg` is safe markup, `alt` describes it, `file` is its path beside the page, no suffix."""

    title: str
    alt: str
    caption: str
    svg: Markup
    file: str
    wide: bool = False


@dataclass(frozen=True)
class FigureFolder:
    """The folder where every figure is also written as SVG and CSV."""

    folder: Path

    def draw(
        self,
        chart: Any,
        numbers: pl.DataFrame,
        *,
        file: str,
        title: str,
        alt: str,
        caption: str = "",
        wide: bool = False,
    ) -> Figure:
        """Render `chart`, write `<file>.svg` and its `numbers` as `<file>.csv`, and return the image for the page."""
        svg = render_svg(chart)
        with written_whole(self.folder / f"{file}.svg", tidy=True) as aside:
            aside.write_text(svg, encoding="utf-8")
        self.save_numbers(numbers, file=file)
        return Figure(title, alt, caption, inlined(svg, alt, prefix=file), f"{self.folder.name}/{file}", wide)

    def save_numbers(self, numbers: pl.DataFrame, *, file: str) -> str:
        """Write `numbers` to `<file>.csv` and return its path relative to the page."""
        flat = numbers.drop("description", strict=False)
        write_csv(self.folder / f"{file}.csv", flat)
        return f"{self.folder.name}/{file}.csv"


def render_svg(chart: Any) -> str:
    """Return an altair chart as a standalone SVG; nothing is fetched for it."""
    spec = chart.to_json(validate=False, indent=None)  # altair validates the parts when they are made
    svg: str = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    return svg


def inlined(svg: str, alt: str, prefix: str) -> Markup:
    """Return `svg` as markup for the page: it fills its column and takes the page's colours and font.

    Descriptions of marks become `data-tip`, which the page's script shows. Identifiers get `prefix`, to be unique
    among the images of the page.
    """
    ET.register_namespace("", _SVG)
    root = ET.fromstring(svg)
    root.attrib |= {"role": "img", "aria-label": alt}
    width = float(root.attrib.pop("width"))
    root.attrib.pop("height", None)
    root.attrib.pop("version", None)
    for element in root.iter():
        if element is not root:
            _move_description(element)
        for name, value in list(element.attrib.items()):
            if name == "id":
                element.set(name, f"{prefix}-{value}")
            elif "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{prefix}-"))
            elif value in _COLOURS:
                element.set(name, _COLOURS[value])
    _drop_empty_paths(root)
    root.set("style", f"--width:{width:.0f}px;max-width:var(--width)")
    text = ET.tostring(root, encoding="unicode")
    return Markup(re.sub(r"(\d\.\d\d)\d+", r"\1", text) if len(text) > 200_000 else text)


def _move_description(element: ET.Element) -> None:
    """Turn a mark's `aria-label` into `data-tip`, and remove attributes that the page does not need."""
    label, kind = element.attrib.pop("aria-label", None), element.attrib.get("aria-roledescription", "")
    if label and element.attrib.get("role") == "graphics-symbol" and "axis" not in kind:
        element.set("data-tip", label)
    for name in _NOT_IN_THE_PAGE:
        element.attrib.pop(name, None)


def _drop_empty_paths(root: ET.Element) -> None:
    for parent in root.iter():
        for child in list(parent):
            if child.attrib.get("class") in ("background", "foreground") and "stroke" not in child.attrib:
                parent.remove(child)
