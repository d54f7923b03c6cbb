"""Answers as HTML for notebooks: the image, bars for the best answers, and a heat map for each."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from landmarks.dataset.images import ImageError, decode, encode, shrink

if TYPE_CHECKING:
    from landmarks.recognition.answers import Answer, Explanation

SIDE = 160
"""Longer side in pixels of the images shown."""

WARM = np.array([255.0, 72.0, 0.0])
"""Colour of the warmest position of a heat map, RGB."""

MOST_WARMTH = 0.65
"""Opacity of `WARM` at the warmest position."""


def answers_html(answers: Sequence[Answer], remark: str | None, path: str | None) -> str:
    """Return the answers with bars, beside the image if `path` is a readable file.

    `remark` stands above the answers: why there are none, or that the image shows no known landmark.
    """
    caption = "" if path is None else f'<caption style="text-align:left">{escape(path)}</caption>'
    rows = [] if remark is None else [f'<tr><td colspan="3" style="text-align:left">{escape(remark)}</td></tr>']
    table = f"<table>{caption}{''.join(rows + [_row(answer) for answer in answers])}</table>"
    image = "" if path is None else _file_html(path)
    return f'<div style="display:flex;gap:16px;align-items:center">{image}{table}</div>' if image else table


def explanation_html(explanation: Explanation) -> str:
    """Return the image as the network saw it, then once for each answer under its heat map."""
    if explanation.problem is not None:
        return f"<p>{escape(explanation.path or '')}: {escape(explanation.problem)}</p>"
    name = "as the network sees it" if explanation.path is None else Path(explanation.path).name
    figures = [_figure(explanation.image, escape(name))]
    for answer, heat in zip(explanation.answers, explanation.maps, strict=True):
        caption = f"{escape(answer.name)}<br>{answer.probability:.1%}"
        figures.append(_figure(overlay_heat_map(explanation.image, heat), caption))
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(figures)}</div>'


def overlay_heat_map(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image (S, S, 3) with a heat map (h, w), from 0 to 1, blended over it."""
    size = (image.shape[1], image.shape[0])
    large = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    opacity = MOST_WARMTH * np.clip(large, 0, 1)[..., None]
    return np.asarray(image * (1 - opacity) + WARM * opacity).round().astype(np.uint8)


def _row(answer: Any) -> str:
    bar = f'<div style="width:{100 * answer.probability:.1f}px;height:0.8em;background:#4c78a8"></div>'
    return (
        f'<tr><td style="text-align:left">{escape(answer.name)}</td><td style="width:100px">{bar}</td>'
        f"<td>{answer.probability:.1%}</td></tr>"
    )


def _figure(image: NDArray[np.uint8], caption: str) -> str:
    small = encode(shrink(image, SIDE), quality=85)
    return f'<figure style="margin:0;text-align:center">{_img(small)}<figcaption>{caption}</figcaption></figure>'


def _file_html(path: str) -> str:
    try:
        return _img(encode(shrink(decode(Path(path).read_bytes(), min_side=SIDE), SIDE), quality=85))
    except (ImageError, OSError, ValueError):  # no longer there, or not an image: the answers are still shown
        return ""


def _img(jpeg: bytes) -> str:
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
