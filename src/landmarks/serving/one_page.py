"""An export as one HTML file that recognises without a server and without a network, opened from disk or anywhere."""

from __future__ import annotations

import base64
import gzip
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime

from landmarks.recognition.portable_learning import learned_file, learned_text, read_learned_file, read_learning
from landmarks.serving.npm_package import pinned_files, read_pinned
from landmarks.serving.web_page import PARTS, PageFacts, page_that_answers
from landmarks.support.console import note
from landmarks.support.errors import DifferentAnswersError, LandmarksError, UsageError
from landmarks.support.files import digest_of, refuse_other_kind, written_whole
from landmarks.support.places import Place

RUNTIME = PARTS / "runtime.lock.json"
"""Which onnxruntime-web lies inside: the last version with a wasm for one thread, which phones have the memory for."""

NEEDED = {"probabilities", "best", "known_score"}
"""Outputs of an export that the page reads; `maps` are drawn where there are any."""


@dataclass(frozen=True)
class WrittenPage:
    """A page, and what its bytes are for."""

    path: Path
    bytes: int
    network_bytes: int
    """Of the network, as it lies in the page."""
    runtime_bytes: int
    """Of onnxruntime, as it lies in the page."""


def write_page(export: Path, page: Path, *, runtime: Path | None = None) -> WrittenPage:
    """Write `page`, which holds the export `NAME.onnx` and all that answers with it; no image leaves it.

    What the export was taught (`NAME.learned.json` beside it) goes along.
    `runtime` is a folder with the pinned onnxruntime-web; without one it comes through the npm client, once. Raises
    `LandmarksError` when `export` is none, or the runtime cannot be had.
    """
    refuse_other_kind(page, ".html", ".htm")
    facts = facts_of(export)
    pinned = read_pinned(RUNTIME)
    script, wasm = (pinned_files(pinned, runtime)[name] for name in pinned.files)
    packed_wasm, packed_network = packed_text(wasm), packed_text(with_readable_number(export.read_bytes()))
    text = page_that_answers(facts, runtime=script.decode(), wasm=packed_wasm, network=packed_network)
    data = text.encode()
    with written_whole(page) as aside:
        aside.write_bytes(data)
    return WrittenPage(page, len(data), len(packed_network), len(script) + len(packed_wasm))


def export_page(
    run: Place,
    page: Place,
    *,
    runtime: Place | None = None,
    data: Place | None = None,
    learning: bool = False,
) -> WrittenPage:
    """Write one HTML file that recognises images by itself, from a run (in eight bits) or from an export as it is.

    A network that eight bits change too much is taken in half precision, with a note. `runtime` is as in
    `write_page`, `data` and `learning` as in `landmarks.export`. Raises `LandmarksError` when the export or the runtime
    cannot be had.
    """
    page, runtime = Path(page), None if runtime is None else Path(runtime)
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError("a page is one HTML file", received=page.name, expected="a name that ends with .html")
    if Path(run).suffix.lower() == ".onnx":
        return write_page(Path(run), page, runtime=runtime)
    import landmarks  # which brings PyTorch only when it is asked for a run

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "network.onnx"
        try:
            landmarks.export(run, made, int8=True, data=data, learning=learning)
        except DifferentAnswersError as error:
            note(f"in half precision, since: {error}")
            landmarks.export(run, made, half=True, data=data, learning=learning)
        return write_page(made, page, runtime=runtime)


def facts_of(export: Path) -> PageFacts:
    """Read what an export says about itself; raise `LandmarksError` when it is no export of ours."""
    try:
        session = onnxruntime.InferenceSession(export, providers=["CPUExecutionProvider"])
        told = json.loads(session.get_modelmeta().custom_metadata_map["landmarks"])
        outputs = {one.name for one in session.get_outputs()}
    except KeyError as error:
        raise LandmarksError(f"{export} says nothing about landmarks", expected=_EXPORT) from error
    except Exception as error:  # onnxruntime raises its own kinds, none of which it makes public
        raise LandmarksError(f"{export} cannot be opened ({str(error).splitlines()[0]})", expected=_EXPORT) from error
    if missing := NEEDED - outputs:
        raise LandmarksError(f"{export} does not answer {', '.join(sorted(missing))}", expected=_EXPORT)
    return replace(page_facts(told), learned=_learned_beside(export, told))


def _learned_beside(export: Path, told: dict[str, Any]) -> dict[str, str] | None:
    """Return what an export was taught; None where that is nothing. Raises `LandmarksError` as reading does."""
    beside = learned_file(export)
    if not told.get("learning") or not beside.exists():
        return None
    record = read_learning(told["learning"])
    learned = read_learned_file(beside, record)
    if not learned.names:
        return None
    text = learned_text(learned, record.digest)
    return {"text": text, "digest": digest_of(text)}


_EXPORT = "a file that `landmarks export` wrote"


def page_facts(told: dict[str, Any]) -> PageFacts:
    """Return what a page says, of an export's metadata."""
    labels = told["labels"]
    threshold = told.get("threshold")
    preprocessing, licence, credits, run = (
        told.get(key) or {} for key in ("preprocessing", "licence", "credits", "run")
    )
    size = int(told["image_size"])
    details = {
        "Network": f"{told['backbone']}, {size} × {size} pixels",
        "Its weights": f"licence {licence['weights']}" if licence.get("weights") else None,
        "Trained on": _trained_on(credits),
        "Run": " · ".join(str(run[key]) for key in ("name", "digest") if run.get(key)),
        "Runs with": "ONNX Runtime Web, © Microsoft Corporation, MIT licence",
    }
    return PageFacts(
        names=[label["name"] for label in labels],
        threshold=None if threshold is None else float(threshold),
        image_size=size,
        crop=size / round(size / float(preprocessing.get("crop", 1))),
        learning=told.get("learning"),
        details={name: str(text) for name, text in details.items() if text},
        authors=[str(name) for name in credits.get("authors") or ()],
        authors_in_all=int(credits.get("authors_in_all") or 0),
    )


def _trained_on(credits: dict[str, Any]) -> str | None:
    """Return how many images of which licences a network learned from; None where that is not known."""
    if "images" not in credits:
        return None
    licences = ", ".join(f"{count:,} {licence}" for licence, count in (credits.get("licences") or {}).items())
    return f"{credits['images']:,} images" + (f": {licences}" if licences else "")


def with_readable_number(model: bytes) -> bytes:
    """Return an ONNX file whose number of the file format (`ir_version`) the runtime in the page reads: 8 at most.

    The runtime of a page is older than what writes exports, and refuses newer numbers before it looks at anything else.
    Exports have opset 18, which came with number 8; what newer numbers added (ONNX, docs/IR.md) is not in them.
    """
    tag, number = 0x08, 8  # the first field of a ModelProto, a varint
    if len(model) < 2 or model[0] != tag or not number < model[1] < 0x80:
        return model
    return bytes([tag, number]) + model[2:]


def packed_text(data: bytes) -> str:
    """Return bytes as a page holds them: gzip, which browsers open by themselves, in base 85 without `<`."""
    return base64.b85encode(gzip.compress(data, 9, mtime=0)).decode().replace("<", ",")
