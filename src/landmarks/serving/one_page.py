"""An export as one HTML file that recognises images without a server or a connection, wherever it is opened.

onnxruntime's files in it come from an npm package, pinned by version and integrity: they are fetched once with the npm
client, then cached. The pinned version and digests stand in a lock file of the project, without addresses; the client's
settings decide which registry is used. Nothing of a package is run, and only the named files of its archive are read.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime

from landmarks.recognition.learned import learned_file, learned_text, read_learned_file, read_learning
from landmarks.serving.web_page import PARTS, PageFacts, page_that_answers
from landmarks.support.console import note
from landmarks.support.errors import DifferentAnswersError, LandmarksError, UsageError
from landmarks.support.files import cache_folder, digest_of, refuse_other_kind, require_writable, written_whole
from landmarks.support.places import Place

RUNTIME = PARTS / "runtime.lock.json"
"""The onnxruntime-web in a page: the last version with single-threaded wasm, for which phones have enough memory."""

NEEDED = {"probabilities", "best", "known_score"}
"""Outputs of an export that a page requires; `maps` are optional."""


@dataclass(frozen=True)
class WrittenPage:
    """A written page, and the size of its parts."""

    path: Path
    bytes: int
    network_bytes: int
    """Size of the network as stored in the page."""
    runtime_bytes: int
    """Size of onnxruntime as stored in the page."""


def write_page(export: Path, page: Path, *, runtime: Path | None = None) -> WrittenPage:
    """Write `page`, which contains the export `NAME.onnx` and everything that answers with it; no image leaves it.

    Landmarks that the export has learned (`NAME.learned.json` beside it) are included. `runtime` is a folder with the
    pinned onnxruntime-web; by default the npm client fetches it, once. Raises `LandmarksError` when `export` is not an
    export, or the runtime is not available.
    """
    refuse_other_kind(page, ".html", ".htm")
    facts = facts_of(export)
    pinned = read_pinned(RUNTIME)
    script, wasm = (pinned_files(pinned, runtime)[name] for name in pinned.files)
    packed_wasm, packed_network = packed_text(wasm), packed_text(with_readable_number(export.read_bytes()))
    text = page_that_answers(facts, runtime=script.decode(), wasm=packed_wasm, network=packed_network)
    data = text.encode()
    with written_whole(page, tidy=True) as aside:
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

    If 8 bits change the answers too much, the network is stored in half precision, with a note. `runtime` is as in
    `write_page`, `data` and `learning` as in `landmarks.export`. Raises `LandmarksError` when the run cannot be
    exported, or the runtime is not available.
    """
    page, runtime = Path(page), None if runtime is None else Path(runtime)
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError("a page is one HTML file", received=page.name, expected="a name that ends with .html")
    if Path(run).suffix.lower() == ".onnx":
        return write_page(Path(run), page, runtime=runtime)
    refuse_other_kind(page, ".html", ".htm")  # before the work, as is a missing runtime
    require_writable(page)
    pinned_files(read_pinned(RUNTIME), runtime)
    import landmarks  # loads PyTorch only to export a run

    with tempfile.TemporaryDirectory() as folder:
        export = Path(folder) / "network.onnx"
        try:
            landmarks.export(run, export, int8=True, data=data, learning=learning)
        except DifferentAnswersError as error:
            note(f"in half precision, since: {error}")
            landmarks.export(run, export, half=True, data=data, learning=learning)
        return write_page(export, page, runtime=runtime)


def facts_of(export: Path) -> PageFacts:
    """Return the facts for a page from an export's metadata. Raises `LandmarksError` if it is not an export of ours."""
    try:
        session = onnxruntime.InferenceSession(export, providers=["CPUExecutionProvider"])
        record = json.loads(session.get_modelmeta().custom_metadata_map["landmarks"])
        outputs = {output.name for output in session.get_outputs()}
    except KeyError as error:
        raise LandmarksError(f"{export} says nothing about landmarks", expected=_EXPORT) from error
    except Exception as error:  # onnxruntime raises types that are not public
        raise LandmarksError(f"{export} cannot be opened ({str(error).splitlines()[0]})", expected=_EXPORT) from error
    if missing := NEEDED - outputs:
        raise LandmarksError(f"{export} does not answer {', '.join(sorted(missing))}", expected=_EXPORT)
    return replace(page_facts(record), learned=_learned_beside(export, record))


def _learned_beside(export: Path, record: dict[str, Any]) -> dict[str, str] | None:
    """Return what an export has learned; None if nothing. Raises `LandmarksError` if it cannot be read."""
    file = learned_file(export)
    if not record.get("learning") or not file.exists():
        return None
    learning = read_learning(record["learning"])
    learned = read_learned_file(file, learning)
    if not learned.names:
        return None
    text = learned_text(learned, learning.digest)
    return {"text": text, "digest": digest_of(text)}


_EXPORT = "a file that `landmarks export` wrote"


def page_facts(record: dict[str, Any]) -> PageFacts:
    """Return the facts for a page, from the record of an export."""
    labels = record["labels"]
    threshold = record.get("threshold")
    preprocessing, licence, credits, run = (
        record.get(key) or {} for key in ("preprocessing", "licence", "credits", "run")
    )
    size = int(record["image_size"])
    details = {
        "Network": f"{record['backbone']}, {size} × {size} pixels",
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
        learning=record.get("learning"),
        details={name: str(text) for name, text in details.items() if text},
        authors=[str(name) for name in credits.get("authors") or ()],
        authors_in_all=int(credits.get("authors_in_all") or 0),
    )


def _trained_on(credits: dict[str, Any]) -> str | None:
    """Return the number and licences of the images that a network was trained on; None if not known."""
    if "images" not in credits:
        return None
    licences = ", ".join(f"{count:,} {licence}" for licence, count in (credits.get("licences") or {}).items())
    return f"{credits['images']:,} images" + (f": {licences}" if licences else "")


def with_readable_number(model: bytes) -> bytes:
    """Return an ONNX file with `ir_version` 8 at most, which the runtime in the page can read.

    The runtime of a page is older than the software that writes exports, and refuses newer versions outright. Exports
    have opset 18, which came with version 8, and use nothing that newer versions added (ONNX, docs/IR.md).
    """
    tag, number = 0x08, 8  # the first field of a ModelProto, a varint
    if len(model) < 2 or model[0] != tag or not number < model[1] < 0x80:
        return model
    return bytes([tag, number]) + model[2:]


def packed_text(data: bytes) -> str:
    """Return bytes as a page stores them: gzip, which browsers can decompress, in base 85 without `<`."""
    return base64.b85encode(gzip.compress(data, 9, mtime=0)).decode().replace("<", ",")


# ── Files of an npm package, pinned by version and integrity ────────────────────────────────────────────────────────


@dataclass(frozen=True)
class PinnedPackage:
    """One version of a package, with the integrity of its archive and of the files that are used."""

    package: str
    version: str
    integrity: str
    """Integrity of the archive, as in npm's lock files: `sha512-` and base64."""
    megabytes: int
    """Size of the archive."""
    files: dict[str, str]
    """Path inside the package → its integrity, `sha256-` and base64."""

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def read_pinned(lock: Path) -> PinnedPackage:
    """Read a lock file of the project."""
    return PinnedPackage(**json.loads(lock.read_text(encoding="utf-8")))


def pinned_files(pinned: PinnedPackage, folder: Path | None = None) -> dict[str, bytes]:
    """Return the pinned files of a package by their paths in it, after checking their integrity.

    They are read from `folder` (the unpacked package, or just the files) if given; otherwise from the user's cache,
    which the npm client fills if necessary. Raises `LandmarksError` when they cannot be obtained or differ from the
    pinned ones.
    """
    if folder is not None:
        return _from_folder(pinned, folder)
    try:
        cache: Path | None = cache_folder() / f"{pinned.package.replace('/', '-')}-{pinned.version}"
    except LandmarksError as error:
        note(f"{error}; {pinned} is fetched anew each time")
        cache = None
    if cache is not None and (cached := _cached(pinned, cache)) is not None:
        return cached
    files = _fetched(pinned)
    if cache is not None:
        for name, data in files.items():
            with written_whole(cache / Path(name).name, tidy=True) as aside:
                aside.write_bytes(data)
    return files


def _cached(pinned: PinnedPackage, cache: Path) -> dict[str, bytes] | None:
    """Return the files from the cache; None if one is missing or damaged."""
    try:
        files = {name: (cache / Path(name).name).read_bytes() for name in pinned.files}
    except OSError:
        return None
    return None if _differing(pinned, files) else files


def _from_folder(pinned: PinnedPackage, folder: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name in pinned.files:
        places = [folder / name, folder / "package" / name, folder / Path(name).name]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise LandmarksError(f"{folder} lacks {name} of {pinned}", way_out=_BY_HAND.format(pinned=pinned))
        files[name] = found.read_bytes()
    for name in _differing(pinned, files):
        raise LandmarksError(
            f"{folder} holds another {name} than that of {pinned}", way_out=_BY_HAND.format(pinned=pinned)
        )
    return files


def _fetched(pinned: PinnedPackage) -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise LandmarksError(
            f"{pinned} is needed, and there is no npm on this machine to fetch it",
            way_out=_BY_HAND.format(pinned=pinned),
        )
    note(f"fetching {pinned} with npm, once ({pinned.megabytes} MB)")
    with tempfile.TemporaryDirectory(prefix="landmarks-") as folder:
        options = ("--ignore-scripts", "--prefer-offline", "--loglevel=error")
        command = [npm, "pack", f"{pinned.package}@{pinned.version}", *options]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        archives = list(Path(folder).glob("*.tgz"))
        if result.returncode or len(archives) != 1:
            raise LandmarksError(
                f"npm could not fetch {pinned} ({_reason(result.stderr)})", way_out=_BY_HAND.format(pinned=pinned)
            )
        if _integrity("sha512", archives[0].read_bytes()) != pinned.integrity:
            raise LandmarksError(
                f"what npm fetched is not the {pinned} that is pinned",
                way_out=f"is another registry set? {_BY_HAND.format(pinned=pinned)}",
            )
        with tarfile.open(archives[0]) as archive:
            files = {name: _member(archive, f"package/{name}") for name in pinned.files}
    if wrong := _differing(pinned, files):
        raise AssertionError(f"{wrong} differ though the archive is the pinned one: the lock contradicts itself")
    return files


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None, f"{name} is no file of the archive"
    return file.read()


def _reason(stderr: str) -> str:
    lines = [line.removeprefix("npm error ").removeprefix("npm ERR! ") for line in stderr.splitlines()]
    messages = [line for line in lines if line.strip() and "complete log of this run" not in line]
    return next((line for line in messages if not line.startswith(("code ", "errno ", "syscall "))), "it says nothing")


def _differing(pinned: PinnedPackage, files: Mapping[str, bytes]) -> list[str]:
    return [name for name, data in files.items() if _integrity("sha256", data) != pinned.files[name]]


def _integrity(algorithm: str, data: bytes) -> str:
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


_BY_HAND = (
    "give the unpacked package with --runtime FOLDER "
    "(anywhere: npm pack {pinned.package}@{pinned.version}, then tar -xf)"
)
