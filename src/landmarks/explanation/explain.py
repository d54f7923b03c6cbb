"""The verb `explain`: heat maps of given images, or of images of a dataset that the run recognises, as panels."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from landmarks.dataset.images import encode
from landmarks.dataset.shards import ImageReader, require_images
from landmarks.dataset.sources import find_images
from landmarks.recognition.answers import Explanation
from landmarks.recognition.recogniser import CLASSIFIER, Recogniser
from landmarks.recognition.trained import open_trained
from landmarks.support.console import note, progress
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import digest_of, held, read_record, write_record, written_whole
from landmarks.support.places import Place
from landmarks.support.seeds import generator
from landmarks.support.systems import printable, readable
from landmarks.training.eligible_images import EligibleImages, eligible_images
from landmarks.training.run import Run, open_run

ANSWERS = 4
"""Heat maps per image."""


def explain(
    run: Place,
    images: Sequence[Place] | None = None,
    *,
    data: Place | None = None,
    split: str = "test",
    count: int | None = None,
    faithfulness: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Draw the heat maps of the 4 best answers for `images`, or for `count` (12) recognised images of a dataset.

    `images` are files and folders. Without them the images come from `split` of `data` (or of the run's own dataset):
    images that are recognised correctly and that the run has not seen (see `eligible_images`), one per landmark in
    turn. The answers are those of `predict`.
    Writes `maps/<id>.jpg` and `maps/index.json` into the run and returns the latter: `method`, `panels`, `rejected`
    (files that are no images), and `made`, the panels of this call. `device` is auto, cpu, cuda or mps.

    With `faithfulness` nothing is drawn: the faithfulness of the maps is measured on `count` (200) images of the
    dataset, and that record is returned.
    Raises `LandmarksError` when there is nothing to draw.
    """
    if faithfulness:
        from landmarks.explanation import faithfulness as measurement  # imports this module

        if images:
            raise UsageError("faithfulness is measured on a dataset's images", way_out="name it with --data")
        return measurement.faithfulness(
            run, data=data, split=split, count=200 if count is None else count, device=device
        )
    if images and (count is not None or data is not None):
        raise UsageError(
            "the images to explain are named already", received=f"--{'data' if data else 'count'} too",
            way_out="leave it out, or the images",
        )  # fmt: skip
    count = 12 if count is None else count
    run = run if isinstance(run, Run) else open_run(run)
    if count < 1:
        raise UsageError("the number of images must be positive", received=count)
    files = find_images(images) if images else []
    recogniser = open_trained(run, device)
    with held(run.folder / "maps") as folder:
        if files:
            drawn = _explain_files(run, recogniser, files, folder)
        else:
            drawn = _explain_recognised(run, recogniser, eligible_images(run, data, split), count, folder)
        earlier = _earlier_panels(folder, run.digest, recogniser.by)
        panels = earlier | {entry["image_id"]: entry for entry in drawn.made}
        method = drawn.methods[-1] if drawn.methods else ""
        record = {"method": method, "panels": list(panels.values()), "rejected": drawn.rejected}
        if drawn.made:
            write_record(folder / "index.json", record, verb="explain", inputs=run.digest)
    return {**record, "made": drawn.made}


def _write_panel(
    folder: Path, run: Run, identity: str, truth: int | None, explanation: Explanation, *, by: str
) -> dict[str, Any]:
    """Write the panel of one image into `folder` and return its entry in the index."""
    truth_name = None if truth is None else run.name_of([truth])[0]
    answers = explanation.answers
    captions = [Caption(answer.name, answer.probability, answer.label == truth) for answer in answers]
    sheet = draw_panel(explanation.image, explanation.maps, captions, truth_name or identity)
    name = f"{_file_name(identity)}.jpg"
    with written_whole(folder / name) as aside:
        aside.write_bytes(encode(sheet))
    return {
        "image_id": identity,
        "image": name,
        "truth": truth,
        "truth_name": truth_name,
        "by": by,
        "answers": [
            {"label": answer.label, "name": answer.name, "probability": answer.probability} for answer in answers
        ],
        "correct": None if truth is None else answers[0].label == truth,
    }


@dataclass(frozen=True)
class _Drawn:
    """The result of one call: entries of the index, images left out, and how the maps were computed."""

    made: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)

    def leave_out(self, name: str, why: str) -> None:
        """Record, and say, that an image is left out."""
        note(f"{name} is left out: {why}")
        self.rejected.append({"image": name, "why": why})


def _explain_files(run: Run, recogniser: Recogniser, files: Sequence[Path], folder: Path) -> _Drawn:
    stems = Counter(file.stem for file in files)
    drawn = _Drawn()
    with progress("explaining", total=len(files)) as advance:
        for file, explanation in zip(files, recogniser.explanations(files, ANSWERS), strict=True):
            if explanation.problem is not None:
                drawn.leave_out(readable(file), explanation.problem)
            else:
                identity = readable(file.stem if stems[file.stem] == 1 else file)
                drawn.made.append(_write_panel(folder, run, identity, None, explanation, by=recogniser.by))
                drawn.methods.append(explanation.method)
            advance(1)
    return drawn


def _explain_recognised(run: Run, recogniser: Recogniser, eligible: EligibleImages, count: int, folder: Path) -> _Drawn:
    images = images_in_turn(run, eligible)
    require_images(eligible.dataset, [image.place[0] for image in images[:count]], "explain")
    reader = ImageReader(eligible.dataset)
    drawn = _Drawn()
    explanations = recogniser.explanations((reader.read(*image.place) for image in images), ANSWERS)
    with progress("explaining", total=count) as advance:
        for image, explanation in zip(images, explanations, strict=False):
            if explanation.problem is not None:
                drawn.leave_out(image.id, explanation.problem)
            elif explanation.answers[0].label == image.truth:
                drawn.made.append(_write_panel(folder, run, image.id, image.truth, explanation, by=recogniser.by))
                drawn.methods.append(explanation.method)
                advance(1)
            if len(drawn.made) == count:
                break
    if not drawn.made:
        raise LandmarksError(f"{run.name} recognises none of the {len(images)} images of {eligible.dataset.folder}")
    if len(drawn.made) < count:
        note(f"only {len(drawn.made)} of {len(images)} images are recognised; {count} were asked for")
    return drawn


def _earlier_panels(folder: Path, digest: str, by: str) -> dict[str, dict[str, Any]]:
    """Return, by image id, the index entries of earlier calls with the same weights and way of answering."""
    index = folder / "index.json"
    if not index.exists():
        return {}
    record = read_record(index)
    if record["inputs"] != digest:
        return {}
    return {entry["image_id"]: entry for entry in record["panels"] if entry.get("by", CLASSIFIER) == by}


def _file_name(identity: str) -> str:
    """Return a safe file name for an untrusted `identity`; two identities never share one."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", identity).lstrip(".")[:80]
    return plain if plain == identity else f"{plain}-{digest_of(identity)[:8]}"


# The images that are explained when none are given: from the landmarks in turn, always in the same order.


@dataclass(frozen=True)
class KnownImage:
    """An image of a dataset that shows a landmark the run knows, and the location of its bytes."""

    id: str
    truth: int
    """The run's label of the landmark."""
    place: tuple[str, int, int]
    """Shard, offset, length."""


def images_in_turn(run: Run, eligible: EligibleImages) -> list[KnownImage]:
    """Return the `eligible` images that show a known landmark: one of each landmark, then a second of each, …

    The order of the landmarks and of the images of each is derived from their ids, so it is the same everywhere.
    Raises `LandmarksError` when there is none.
    """
    known = dict(zip(eligible.labels["landmark_id"], eligible.labels["label"], strict=True))
    table = eligible.images.filter(pl.col("landmark_id").is_in(list(known)))
    if table.is_empty():
        raise LandmarksError(
            f"{eligible.dataset.folder} holds no image of a landmark that {run.name} knows", received=eligible.split
        )
    queues: dict[int, list[KnownImage]] = {}
    for row in table.select("image_id", "landmark_id", "shard", "offset", "length").iter_rows(named=True):
        image = KnownImage(row["image_id"], known[row["landmark_id"]], (row["shard"], row["offset"], row["length"]))
        queues.setdefault(known[row["landmark_id"]], []).append(image)
    labels = sorted(queues, key=lambda label: generator("explain", label).random())
    for queue in queues.values():
        queue.sort(key=lambda image: generator("explain", image.id).random())
    longest = max(len(queue) for queue in queues.values())
    return [queues[label][turn] for turn in range(longest) for label in labels if turn < len(queues[label])]


# ── Drawing: an image and its heat maps side by side, with the answers they explain ─────────────────────────────────


INFERNO = np.array(
    [
        (0, 0, 4), (11, 7, 36), (33, 12, 74), (61, 9, 101), (87, 16, 110), (113, 25, 110), (138, 34, 106),
        (163, 44, 97), (188, 55, 84), (210, 70, 68), (228, 90, 49), (241, 115, 29), (249, 142, 9), (252, 172, 17),
        (249, 203, 53), (242, 234, 105), (252, 255, 164),
    ],
    dtype=np.float32,
)  # fmt: skip
"""Seventeen steps of the colour map "inferno" (Smith & van der Walt 2015, CC0): lightness grows evenly with heat."""

TILE = 240
"""Side of each image in a panel, in pixels."""
MARGIN = 14
CAPTION = 62
PAPER, INK, QUIET, BAR, TRUE = "#ffffff", "#1c1c1e", "#6b6b70", "#c9c9ce", "#1a7f4b"
HOTTEST = 0.78
"""Opacity of the heat map where it is 1; where it is 0 the image shows, slightly dimmed."""


@dataclass(frozen=True)
class Caption:
    """One answer under its heat map."""

    name: str
    probability: float
    is_true: bool


def colours(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the colour `(H, W, 3)`, 0..255, of each value 0..1 in `heat` `(H, W)`."""
    steps = np.linspace(0, 1, len(INFERNO))
    return np.stack([np.interp(heat, steps, INFERNO[:, channel]) for channel in range(3)], axis=-1).astype(np.float32)


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return uint8 `image` `(H, W, 3)` under a heat map `(h, w)` of values 0..1, enlarged smoothly.

    The image fades to grey where heat is low, so that only heat is colourful.
    """
    height, width = image.shape[:2]
    smooth = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    warmth = np.clip(np.asarray(smooth, dtype=np.float32), 0, 1)
    grey = (image @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    faded = 0.55 * grey + 0.35 * image
    opacity = (HOTTEST * warmth**0.7)[..., None]
    mixed = (1 - opacity) * faded + opacity * colours(warmth)
    return np.clip(mixed + 0.5, 0, 255).astype(np.uint8)


def draw_panel(
    image: NDArray[np.uint8], heats: NDArray[np.float32], answers: Sequence[Caption], title: str
) -> NDArray[np.uint8]:
    """Return a uint8 image: `image` with its `title`, then an overlay for each answer with name and probability.

    `image` is uint8 `(S, S, 3)`, `heats` `(k, h, w)` holds values 0..1.
    """
    columns = 1 + len(answers)
    width, height = columns * TILE + (columns + 1) * MARGIN, TILE + 2 * MARGIN + CAPTION
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    names = " ".join([title, *(answer.name for answer in answers)])
    _place(sheet, 0, image)
    _caption(draw, 0, names, title)
    for column, (heat, answer) in enumerate(zip(heats, answers, strict=True), start=1):
        _place(sheet, column, overlay(image, heat))
        _caption(draw, column, names, answer)
    return np.asarray(sheet)


def _left(column: int) -> int:
    return MARGIN + column * (TILE + MARGIN)


def _place(sheet: Image.Image, column: int, image: NDArray[Any]) -> None:
    tile = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.LANCZOS)
    sheet.paste(tile, (_left(column), MARGIN))


def _caption(draw: ImageDraw.ImageDraw, column: int, names: str, entry: Caption | str) -> None:
    """Write the caption under an image: an answer with its probability, or the image's title."""
    left, top = _left(column), MARGIN + TILE + 8
    answer = entry if isinstance(entry, Caption) else None
    colour = TRUE if answer is not None and answer.is_true else INK
    text, font = text_and_font(entry.name if isinstance(entry, Caption) else entry, 17, context=names)
    draw.text((left, top), shortened(text, font, TILE), fill=colour, font=font)
    second_line, small = text_and_font("image" if answer is None else _percent(answer.probability), 14)
    draw.text((left, top + 26), second_line, fill=QUIET, font=small)
    if answer is not None:
        start, end, line = left + 58, left + TILE, top + 34
        draw.line([(start, line), (end, line)], fill=BAR, width=3)
        filled = start + round((end - start) * min(max(answer.probability, 0.0), 1.0))
        if filled > start:
            draw.line([(start, line), (filled, line)], fill=colour, width=3)


def _percent(probability: float) -> str:
    percent = 100 * probability
    return "< 0.1 %" if percent < 0.1 else "> 99.9 %" if percent > 99.9 else f"{percent:.1f} %"


# Fonts: one of this machine that has all letters of a text, or Pillow's own with the nearest plain letters.


FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "Arial Unicode.ttf",
    "Arial.ttf",
    "arial.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "PingFang.ttc",
    "msyh.ttc",
)
"""Sans-serif fonts that come with operating systems, the widest alphabets first; Pillow knows their folders."""

PLAIN = str.maketrans({"ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "ß": "ss", "æ": "ae", "Æ": "Ae"})
"""Letters that Unicode does not decompose into a plain letter and an accent."""

PLAIN.update(str.maketrans({"œ": "oe", "Œ": "Oe", "þ": "th", "Þ": "Th", "ð": "d", "ı": "i", "–": "-", "—": "-"}))


def text_and_font(text: str, size: int, context: str = "") -> tuple[str, ImageFont.FreeTypeFont]:
    """Return `text` and a font of `size` pixels that can draw it, preferably one that can draw `context` as well.

    Pillow's own font, which has English letters only, is tried first, then the machine's fonts. If none has all
    letters, accents are removed, and letters that are still missing become question marks.
    """
    text = printable(text)
    for required in (text + printable(context), text):
        for font in _fonts(size):
            if _has(font, required):
                return text, font
    decomposed = unicodedata.normalize("NFKD", text.translate(PLAIN))
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    font = _fonts(size)[0]
    return "".join(letter if _has(font, letter) else "?" for letter in plain), font


def shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return `text`, cut and ended with three dots if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip(" ,(") + "..."


@lru_cache(maxsize=8)
def _fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    default = ImageFont.load_default(size)
    fonts = [default] if isinstance(default, ImageFont.FreeTypeFont) else []
    for name in FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(fonts)


def _has(font: ImageFont.FreeTypeFont, text: str) -> bool:
    return all(_has_letter(font, letter) for letter in set(text) if letter != " ")


@lru_cache(maxsize=4096)
def _has_letter(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Return whether the font draws `letter` differently from its box for missing characters."""
    return bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))
