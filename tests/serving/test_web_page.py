"""The parts of the web page, put together: what a stranger's export says stays text, and only our script may run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from toy_export import write_toy_export

from landmarks.serving.one_page import facts_of, packed_text, page_facts, with_readable_number, write_page
from landmarks.serving.web_page import AUTHORS_SHOWN, PARTS, PageFacts, page_that_answers, page_that_asks
from landmarks.support.errors import LandmarksError

EVIL = '</script><script>alert("1")</script><!-- {{script}} "'


class Read(HTMLParser):
    """What a browser finds in a page: elements with their attributes, and the text inside each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside = False
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes), []))
        self.inside = True

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1][2].append(data)

    def handle_endtag(self, _: str) -> None:
        self.inside = False

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(texts)) for name, attributes, texts in self.found if name == tag]


def answering(facts: PageFacts) -> str:
    return page_that_answers(facts, runtime="var ort", wasm="AA", network="BB")


@pytest.mark.parametrize(
    "page",
    [answering(PageFacts(["A"], 0.5, 64)), answering(PageFacts(["A"], 0.5, 64, learning={})), page_that_asks()],
    ids=["answers", "learns", "asks"],
)
def test_the_policy_allows_the_script_and_the_style_of_the_page_and_no_others(page: str) -> None:
    read = Read(page)
    [policy] = [meta["content"] for meta, _ in read.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    scripts = [text for attributes, text in read.all("script") if "type" not in attributes]
    for kind, texts in (("script", scripts), ("style", [text for _, text in read.all("style")])):
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert re.findall(r"'sha256-([^']+)'", rules[f"{kind}-src"]) == digests
        assert len(digests) == 1
    assert rules["default-src"] == "'none'"
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy
    assert not re.search(r"""(src|href|action)\s*=\s*["']?(https?:)?//""", page)
    assert not re.search(r"\son\w+=|\sstyle=", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))


def test_a_page_that_answers_connects_to_nothing_and_one_that_asks_to_its_server_alone() -> None:
    assert "connect-src 'none'" in answering(PageFacts(["A"], 0.5, 64))
    assert "connect-src 'none'" in answering(PageFacts(["A"], 0.5, 64, learning={}))
    assert "connect-src 'self'" in page_that_asks()


def test_names_and_credits_that_look_like_markup_stay_text() -> None:
    facts = PageFacts([EVIL, "B"], None, 64, details={"Network": EVIL}, authors=[EVIL])
    read = Read(answering(facts))
    plain = Read(answering(PageFacts(["A", "B"], None, 64, details={"Network": "x"}, authors=["x"])))
    assert [tag for tag, _, _ in read.found] == [tag for tag, _, _ in plain.found]
    [text] = [text for attributes, text in read.all("script") if attributes.get("id") == "facts"]
    assert json.loads(text)["names"] == [EVIL, "B"]
    assert read.all("dd")[0][1] == EVIL
    assert EVIL in [text for _, text in read.all("li")]


def test_authors_that_are_not_named_are_counted() -> None:
    authors = [f"maker {n}" for n in range(AUTHORS_SHOWN + 7)]
    page = answering(PageFacts(["A"], None, 64, authors=authors))
    assert "and 7 more" in page
    assert f"maker {AUTHORS_SHOWN}<" not in page
    assert "and 5,000 more" in answering(PageFacts(["A"], None, 64, authors=["x"], authors_in_all=5001))
    assert "more</li>" not in answering(PageFacts(["A"], None, 64, authors=["x"], authors_in_all=1))


def test_what_an_export_lacks_is_not_told_and_a_threshold_of_none_stays_none() -> None:
    facts = page_facts({"labels": [{"name": "A"}], "image_size": 64, "backbone": "b", "threshold": None})
    assert facts.threshold is None
    assert set(facts.details) == {"Network", "Runs with"}
    assert "always names a landmark" in answering(facts)


def test_a_file_that_is_no_export_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(LandmarksError, match=r"text\.onnx cannot be opened .*expected a file that `landmarks export`"):
        facts_of(tmp_path / "text.onnx")
    with pytest.raises(LandmarksError, match=r"none\.onnx cannot be opened"):
        write_page(tmp_path / "none.onnx", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_an_export_tells_its_facts(tmp_path: Path) -> None:
    images = [np.full((8, 8, 3), shade, dtype=np.uint8) for shade in (10, 200)]
    facts = facts_of(
        write_toy_export(tmp_path / "a.onnx", images, [0, 1], ["dark", "light"], preprocessing={"crop": 0.875})
    )
    assert (list(facts.names), facts.threshold, facts.image_size) == (["dark", "light"], 0.5, 64)
    assert facts.crop == 64 / 73  # the shorter side is resized to whole pixels first
    assert facts.details["Run"] == "toy · 0123456789abcdef"


def test_a_file_format_newer_than_the_runtime_gets_the_number_that_its_operators_came_with(tmp_path: Path) -> None:
    plain = tmp_path / "a.onnx"
    write_toy_export(plain, [np.zeros((8, 8, 3), dtype=np.uint8)], [0], ["A"])
    newest = onnx.load(plain)
    newest.ir_version = onnx.IR_VERSION
    assert newest.ir_version > 8
    lowered = onnx.ModelProto.FromString(with_readable_number(newest.SerializeToString()))
    assert lowered.ir_version == 8
    newest.ir_version = 8
    assert lowered == newest
    assert with_readable_number(plain.read_bytes()) == plain.read_bytes()


def test_every_part_in_the_folder_is_in_a_page() -> None:
    both = answering(PageFacts(["A"], 0.5, 64, learning={})) + page_that_asks()
    for part in PARTS.glob("*.*s"):
        first_line = part.read_text(encoding="utf-8").splitlines()[0]
        assert first_line in both, part.name


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the page's script with")
def test_the_page_reads_the_bytes_that_were_packed_into_it(tmp_path: Path) -> None:
    given = [np.random.default_rng(length).bytes(length) for length in (0, 1, 2, 3, 4, 5, 4096)]
    packed = [packed_text(data) for data in given]
    assert "<" not in "".join(packed)
    script = (PARTS / "worker.js").read_text(encoding="utf-8")
    reading = script[script.index("const DIGITS") : script.index("async function answered")]
    (tmp_path / "read.mjs").write_text(
        f"const self = {{}};\n{reading}\nimport {{ gunzipSync }} from 'node:zlib';\n"
        f"const texts = {json.dumps(packed)};\n"
        "console.log(JSON.stringify(texts.map((text) => gunzipSync(bytesOf(text)).toString('hex'))));\n"
    )
    output = subprocess.run(["node", str(tmp_path / "read.mjs")], capture_output=True, text=True, check=True)
    assert json.loads(output.stdout) == [data.hex() for data in given]
