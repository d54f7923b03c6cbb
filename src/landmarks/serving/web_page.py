"""The web page: one HTML file assembled from the files in `page/`, which answers by itself or asks its server.

The page contains everything it needs. Its Content-Security-Policy names the digests of its only script and style, and
allows connections to nothing, or to its own server. Texts from an export (names, credits) are escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

PARTS = Path(__file__).parent / "page"

AUTHORS_SHOWN = 1000
"""Most authors that a page names, followed by the number of others."""


@dataclass(frozen=True)
class PageFacts:
    """What a page contains about its recogniser."""

    names: Sequence[str]
    """The name of each label."""
    threshold: float | None
    """An image with a lower score is unknown; None: it does not tell known from unknown."""
    image_size: int
    """Side in pixels of the square that the network sees."""
    crop: float = 1.0
    """Side of that square as a share of an image's shorter side."""
    learning: Mapping[str, object] | None = None
    """The export's record for learning; None: it cannot learn."""
    learned: Mapping[str, str] | None = None
    """Landmarks learned already: the `text` of their file, and its `digest`; None: there are none."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Other facts, by heading."""
    authors: Sequence[str] = ()
    """Authors of the images that it was trained on."""
    authors_in_all: int = 0
    """Their number, including those not in `authors`."""


def page_that_answers(facts: PageFacts, *, runtime: str, wasm: str, network: str) -> str:
    """Return a page that answers by itself: onnxruntime's script, its wasm and the network as `one_page` packs them."""
    count, learns = len(facts.names), facts.learning is not None
    details = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.details.items())
    worker = _joined("pixels.js", "worker.js")
    return _page(
        scripts=(
            "heat.js",
            *(("learning.js",) if learns else ()),
            "answering-here.js",
            "page.js",
            *(("teach.js",) if learns else ()),
        ),
        data={
            "licence": _joined("onnxruntime-licence.txt"),
            "runtime": runtime,
            "worker": worker,
            "wasm": wasm,
            "network": network,
            "facts": _as_json(facts),
        },
        allowed="script-src {script} 'wasm-unsafe-eval'; worker-src blob:; connect-src 'none'",
        fill={
            "lead": f"This page knows {count:,} landmark{'' if count == 1 else 's'}{_AND_TAUGHT if learns else ''}. "
            "Images are recognised on this device and never leave it.",
            "summary": "The landmarks it knows" if learns or count > 1 else "The landmark it knows",
            "unknown": _WITHOUT_THRESHOLD if facts.threshold is None else _WITH_THRESHOLD,
            "privacy": "This page works without a network. Its Content-Security-Policy forbids every connection, so no "
            "image can leave this device; " + (_KEPT_HERE if learns else "nothing is kept when the page is closed."),
            "token": "",
            "teach": _teach_form(_TAUGHT_HERE) if learns else "",
            "facts": f'<dl class="facts">{details}</dl>',
            "credits": _credits(facts),
        },
    )


def page_that_asks() -> str:
    """Return a page that asks the server it came from, by the relative paths `recognise`, `landmarks` and `healthz`."""
    return _page(
        scripts=("pixels.js", "heat.js", "asking-the-server.js", "page.js", "teach.js"),
        data={},
        allowed="script-src {script}; connect-src 'self'",
        fill={
            "lead": "Images are sent to this server, which answers and keeps none of them.",
            "summary": "What it knows",
            "unknown": _WITH_THRESHOLD,
            "privacy": "Images go to the server that this page came from, and nowhere else; it keeps none of them.",
            "token": _TOKEN,
            "teach": _teach_form(_TAUGHT_THERE),
            "facts": "",
            "credits": "",
        },
    )


_AND_TAUGHT = '<span id="and-taught"></span>'

_TOKEN = """    <form id="token" class="find" hidden>
      <label for="token-text">This server wants a token</label>
      <input type="password" id="token-text" name="token" autocomplete="off" required>
      <button type="submit">Go on</button>
    </form>
"""

_TAUGHT_THERE = "This server keeps what it learns, and answers with it whoever asks; the images are not kept."

_TAUGHT_HERE = (
    "It learns on this device, and keeps what it learned in this browser; the images are not kept, and never leave it."
)

_KEPT_HERE = (
    "when the page is closed nothing is kept but what it was taught: names, and numbers that the network makes of "
    "images."
)


def _teach_form(where: str) -> str:
    return _joined("teach.html").replace("{{where}}", where)


_WITH_THRESHOLD = (
    "An image that resembles none of them closely enough is called “not a landmark I know”; that can be wrong too."
)

_WITHOUT_THRESHOLD = (
    "This recogniser does not tell whether an image shows anything else: it always names a landmark that it knows."
)


def _page(*, scripts: Sequence[str], data: Mapping[str, str], allowed: str, fill: Mapping[str, str]) -> str:
    style = (PARTS / "style.css").read_text(encoding="utf-8")
    script = f'(() => {{\n"use strict";\n{_joined(*scripts)}\n}})();\n'
    policy = (
        f"default-src 'none'; {allowed.format(script=_digest(script))}; style-src {_digest(style)}; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'"
    )
    blocks = "\n".join(_block(id, text) for id, text in data.items())
    values = {**fill, "policy": policy, "style": style, "data": blocks, "script": script}
    page = (PARTS / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], page)


def _credits(facts: PageFacts) -> str:
    if not facts.authors:
        return ""
    shown = facts.authors[:AUTHORS_SHOWN]
    beyond = max(facts.authors_in_all, len(facts.authors)) - len(shown)
    lines = [*(f"<li>{escape(name)}</li>" for name in shown), *([f"<li>and {beyond:,} more</li>"] if beyond else [])]
    return f'<p class="about">The network learned from images by:</p><ul class="credits">{"".join(lines)}</ul>'


def _as_json(facts: PageFacts) -> str:
    record = {
        "names": list(facts.names),
        "threshold": facts.threshold,
        "image_size": facts.image_size,
        "crop": facts.crop,
        "learning": facts.learning,
        "learned": facts.learned,
    }
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _block(id: str, text: str) -> str:
    """Return text as a data block, which browsers do not run; raise `ValueError` if the text would end it early."""
    if re.search(r"</script|<!--", text, re.IGNORECASE):
        raise ValueError(f"the text of {id} would end its element early")
    return f'<script type="text/plain" id="{id}">{text}</script>'


def _joined(*names: str) -> str:
    return "\n".join((PARTS / name).read_text(encoding="utf-8") for name in names)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
