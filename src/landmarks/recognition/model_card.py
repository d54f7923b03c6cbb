"""The model card of a run: its landmarks, its accuracy, the sources and licences of its images, and its limits."""

from __future__ import annotations

import json
from typing import Any

from landmarks.support.errors import LandmarksError
from landmarks.support.files import read_record
from landmarks.training.run import Run

MAX_NAMED = 200
"""Most landmarks that are named in the card; `config.json` has all."""


def model_card(run: Run, record: dict[str, Any]) -> str:
    """Return the card as Markdown, from the record of an export (`export_record`) and the run's metrics."""
    names = [_plain(label["name"]) for label in record["labels"]]
    licence, credits = record["licence"], record["credits"]
    lines = [
        "---",
        "library_name: timm",
        "tags: [image-classification, timm, landmarks]",
        f"license: {json.dumps(licence['weights'] or 'unknown')}",
        "---",
        "",
        f"# {_plain(run.name)}",
        "",
        f"Recognises {len(names)} landmarks in images: {record['backbone']} at {record['image_size']} pixels.",
        "",
        "```python",
        "import timm",
        "",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()   # logits; label_names in config.json',
        "```",
        "",
        f"Divide the logits by {record['temperature']:.4f} before the softmax for calibrated probabilities. "
        "The model alone does not tell other images from landmarks it knows: `landmarks export RUN -o NAME.onnx` "
        "keeps that rule.",
        "",
        "## Numbers",
        "",
        *_numbers(run),
        "",
        "## Data and licences",
        "",
        f"- Weights it started from: {_plain(licence['start']) or 'unknown'}; "
        f"licence {licence['weights'] or 'unknown'}.",
        *_data(credits),
        "",
        "## Limits",
        "",
        "- Every image gets an answer among these landmarks, also one that shows none of them.",
        "- It has seen landmarks as the images of its dataset show them: other seasons, nights, interiors and details "
        "may be answered worse than the numbers say.",
        "- The numbers hold for images like those they were measured on.",
        "",
        "## Landmarks",
        "",
        ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} others" if len(names) > MAX_NAMED else ""),
    ]
    return "\n".join(lines) + "\n"


def _numbers(run: Run) -> list[str]:
    rows = []
    for path in sorted((run.folder / "metrics").glob("*.json")):
        try:
            record = read_record(path)
        except LandmarksError:
            continue
        top1 = record.get("top1")
        if isinstance(top1, dict) and top1.get("value") is not None:
            value, low, high = (100 * top1[key] for key in ("value", "low", "high"))
            rows.append(f"| {_plain(path.stem)} | {record['known']} | {value:.1f} % ({low:.1f} to {high:.1f}) |")
    if not rows:
        return ["Not measured yet (`landmarks evaluate RUN`)."]
    return ["| images of | images | top-1 (95 % interval) |", "| --- | --- | --- |", *rows]


def _data(credits: dict[str, Any]) -> list[str]:
    if "images" not in credits:
        return ["- Whose images it was trained on is not known here: its dataset is not there."]
    licences = ", ".join(f"{_plain(name)} ({count})" for name, count in list(credits["licences"].items())[:20])
    return [
        f"- Trained on {credits['images']} images by {credits['authors_in_all']} authors; licences: {licences}.",
        "- `landmarks credits DATA` lists every author, as many licences ask.",
    ]


def _plain(text: str) -> str:
    """Return untrusted text on one line, with the characters escaped that mean something in Markdown or HTML."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join("".join(f"\\{letter}" if letter in "\\`*_[]<>|#&" else letter for letter in printable).split())
