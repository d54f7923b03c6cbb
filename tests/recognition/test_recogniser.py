"""The recogniser: images in any form go in; answers, features and heat maps come out, from a network loaded once."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from colour_runs import NAMES, colour_run, striped
from made_up_runs import image
from PIL import Image

import landmarks
import landmarks.models.network as networks
import landmarks.recognition.recogniser as room
from landmarks.dataset.images import decode
from landmarks.models.preprocessing import evaluation_image
from landmarks.recognition import trained
from landmarks.recognition.answers import NOT_KNOWN, Answer, Explanation, Recognition, overlay_heat_map
from landmarks.recognition.predict import predict
from landmarks.recognition.recogniser import Recogniser, load
from landmarks.recognition.trained import in_half_precision
from landmarks.support.errors import LandmarksError, StaleError, UsageError
from landmarks.support.files import read_record, write_record
from landmarks.training.loader import normalised
from landmarks.training.run import Run

__all__ = ["colour_run", "striped"]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An image without loss, so that every decoder has the same pixels of it."""
    path = tmp_path / "one.png"
    path.write_bytes(png(decode(image(11, 1))))
    return path


FORMS: dict[str, Callable[[Path], Any]] = {
    "path": lambda file: file,
    "text": str,
    "bytes": lambda file: file.read_bytes(),
    "open file": lambda file: io.BytesIO(file.read_bytes()),
    "pillow": Image.open,
    "pixels": lambda file: np.asarray(Image.open(file)),
}


def set_threshold(run: Run, threshold: float, rule: str = "msp") -> None:
    rejection = {"rule": {"name": rule, "weights": {rule: 1.0}, "constant": 0.0}, "threshold": threshold}
    write_record(
        run.folder / "model.json", {**read_record(run.folder / "model.json"), "rejection": rejection}, verb="t"
    )


@pytest.mark.parametrize("form", FORMS)
def test_an_image_in_any_form_gets_the_answers_that_predict_gives_its_file(form: str, run: Run, file: Path) -> None:
    table = predict(run.folder, file)
    recogniser = landmarks.load(run)
    given = FORMS[form](file)
    alone, (among,) = recogniser.recognise(given), recogniser.recognise([given])
    assert alone == among
    assert [answer.landmark_id for answer in alone.answers] == table["landmark_id"].to_list()
    assert [answer.name for answer in alone.answers] == table["name"].to_list()
    assert pl.Series([answer.probability for answer in alone.answers], dtype=pl.Float32).equals(table["probability"])
    assert (alone.known, alone.problem) == (None, None)
    assert alone.path == (str(file) if form in ("path", "text") else None)


def test_many_images_come_back_in_their_order_whatever_is_wrong_with_some(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "BATCH_SIZE", 2)
    torn = Image.open(io.BytesIO(file.read_bytes()[:300]))
    given = [file, b"no image", file.parent / "nowhere.jpg", torn, image(22, 2), np.zeros((0, 4, 3), np.uint8), file]
    found = landmarks.load(run).recognise(iter(given), top=2)
    assert [one.problem is None for one in found] == [True, False, False, False, True, False, True]
    assert [len(one.answers) for one in found] == [2, 0, 0, 0, 2, 0, 2]
    assert found[0].answers == found[6].answers != found[4].answers
    assert "there is no such file" in str(found[2]) and "damaged or truncated" in str(found[3])


def test_a_turned_image_of_pillow_is_answered_upright(run: Run) -> None:
    upright = Image.fromarray(decode(image(22, 2)))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    recogniser = landmarks.load(run)
    opened = Image.open(io.BytesIO(buffer.getvalue()))
    assert recogniser.recognise(opened).answers == recogniser.recognise(upright).answers


def test_nothing_is_loaded_twice(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    for module, name in ((networks, "load_network"), (trained, "open_gallery"), (trained, "read_record")):
        original = getattr(module, name)

        def counted(*given: Any, original: Any = original, name: str = name) -> Any:
            loaded.append(name)
            return original(*given)

        monkeypatch.setattr(module, name, counted)
    recogniser = landmarks.load(run.folder)
    for _ in range(2):
        recogniser.recognise(file)
        recogniser.embed([file, file])
        recogniser.explain(file)
    assert sorted(loaded) == ["load_network", "open_gallery", "read_record"]


def test_features_are_those_of_the_network(run: Run, file: Path) -> None:
    network = run.network()
    seen = np.stack([evaluation_image(data, network.preprocessing) for data in (file.read_bytes(), image(33, 3))])
    with torch.no_grad():
        expected = network.features(normalised(torch.from_numpy(seen).permute(0, 3, 1, 2), network.preprocessing))
    found = landmarks.load(run).embed([file, image(33, 3)])
    assert found.dtype == np.float32 and found.shape == (2, network.width)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_no_images_have_no_features_and_a_damaged_one_is_named(run: Run, file: Path) -> None:
    recogniser = landmarks.load(run)
    assert recogniser.embed([]).shape == (0, run.network().width)
    with pytest.raises(LandmarksError, match="image 1 cannot be used: not an image"):
        recogniser.embed([file, b"no image"])


def test_heat_maps_are_warmest_at_what_the_answer_is_known_by(colour_run: Run) -> None:
    pixels = np.full((32, 32, 3), 100, dtype=np.uint8)
    pixels[4:12, 20:28] = (250, 40, 40)
    found = landmarks.load(colour_run).explain(pixels, top=2)
    assert found.answers[0].name == NAMES[0] and len(found.answers) == 2
    assert found.image.shape == (32, 32, 3) and found.image.dtype == np.uint8
    assert found.maps.shape[0] == 2 and found.maps.dtype == np.float32
    assert found.maps.min() >= 0 and found.maps[0].max() == 1
    rows, columns = np.nonzero(found.maps[0] > 0.5)
    assert rows.mean() < 0.4 * found.maps.shape[1] and columns.mean() > 0.6 * found.maps.shape[2]
    assert "Grad-CAM" in found.method


def test_what_cannot_be_explained_has_a_problem_and_no_maps(colour_run: Run) -> None:
    (found,) = landmarks.load(colour_run).explain([b"no image"])
    assert found.problem is not None and found.maps.size == found.image.size == 0


WRONG: list[tuple[Any, str]] = [
    (3, "received int"),
    (None, "received NoneType"),
    ({"a.jpg": 1}, "received dict"),
    ([3.5], "received float"),
    (np.zeros((8, 8), np.uint8), r"received a uint8 array \(8, 8\)"),
    (np.zeros((8, 8, 3)), r"received a float64 array \(8, 8, 3\)"),
    (torch.zeros(1, 3, 8, 8), "received torch.Tensor"),
    (io.StringIO("a file that was opened as text"), "received _io.StringIO"),
]


@pytest.mark.parametrize(("given", "received"), WRONG)
@pytest.mark.parametrize("method", ["recognise", "embed", "explain"])
def test_anything_else_is_one_line(method: str, given: Any, received: str, run: Run) -> None:
    with pytest.raises(UsageError, match=rf"{received}; expected a path, bytes, an open file, a Pil") as raised:
        getattr(landmarks.load(run), method)(given)
    assert "\n" not in str(raised.value)


def test_numbers_of_answers_that_cannot_be_had_are_one_line(run: Run, file: Path) -> None:
    recogniser = landmarks.load(run)
    with pytest.raises(UsageError, match="received 6; expected 1 to 5"):
        recogniser.recognise(file, top=6)
    with pytest.raises(UsageError, match="received 0; expected 1 or more"):
        recogniser.explain(file, top=0)


def test_the_threshold_of_the_model_tells_known_from_unknown(run: Run, file: Path) -> None:
    set_threshold(run, 2.0)
    found = landmarks.load(run).recognise(file)
    assert found.known is False and NOT_KNOWN in str(found) and NOT_KNOWN in found._repr_html_()
    set_threshold(run, 0.0)
    assert landmarks.load(run).recognise(file).known is True


def test_a_threshold_without_its_gallery_stops_answers_and_nothing_else(run: Run, file: Path) -> None:
    set_threshold(run, 0.0, rule="knn")
    recogniser = landmarks.load(run)
    assert len(recogniser.embed(file)) == 1 and recogniser.explain(file).answers
    with pytest.raises(StaleError, match="choose it again"):
        recogniser.recognise(file)


def test_strange_names_are_escaped_in_a_notebook_and_kept_on_one_line_in_print() -> None:
    nasty = "<script>alert('x')</script>\n\x1b[31m&"
    found = Recognition((Answer(0, 7, nasty, 0.25),), path="<b>.jpg")
    page = found._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page and "<b>" not in page and "width:25.0px" in page
    assert str(found).splitlines() == ["<b>.jpg", "  25.0%  <script>alert('x')</script> [31m&"]
    assert "<i>" not in Recognition(problem="<i>")._repr_html_()


def test_what_a_recogniser_says_cannot_be_changed(run: Run, file: Path) -> None:
    found = landmarks.load(run).recognise([file, file])
    with pytest.raises(FrozenInstanceError):
        found[0].known = True  # type: ignore[misc]
    assert found._repr_html_().count("<table>") == 2 and str(found).count(str(file)) == 2


def test_a_recogniser_prints_as_one_line(run: Run) -> None:
    assert repr(landmarks.load(run)) == "Recogniser(baseline, 3 landmarks, on cpu)"
    assert isinstance(landmarks.load(run, device="cpu"), Recogniser)


def test_outputs_of_any_size_keep_their_probabilities() -> None:
    logits = torch.tensor([[3.1e5, -2e6, 3.1e5 - 2], [0.5, 0.25, -4.0]])
    kept = in_half_precision(logits)
    assert kept.dtype == torch.float16 and bool(kept.isfinite().all())
    torch.testing.assert_close(kept.float().softmax(1), logits.softmax(1), atol=1e-3, rtol=0)


def test_a_heat_map_lies_over_the_image_where_it_is_warm() -> None:
    image = np.full((8, 8, 3), 100, dtype=np.uint8)
    heat = np.zeros((8, 8), dtype=np.float32)
    heat[:4] = 1
    shown = overlay_heat_map(image, heat)
    assert (shown[6:] == 100).all()
    assert shown[0, 0].tolist() == [201, 82, 35]  # 35 % of the image, 65 % of the colour


def test_an_explanation_shows_the_image_and_a_heat_map_for_each_answer(run: Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    found = load(run, device="cpu").explain(pixels, top=2)
    assert found._repr_html_().count("<figure") == 3
    assert "no such" in Explanation(problem="no such image", path="<x>")._repr_html_()


def test_an_open_file_is_one_image_from_its_beginning_and_no_lines(run: Run, file: Path) -> None:
    recogniser = landmarks.load(run)
    with open(file, "rb") as opened:
        opened.read(100)
        assert recogniser.recognise(opened).answers == recogniser.recognise(file).answers
        assert recogniser.embed([opened, opened]).shape[0] == 2
    assert "closed file" in str(recogniser.recognise(opened).problem)


@pytest.mark.parametrize("empty", [Image.new("RGB", (0, 5)), np.zeros((5, 0, 3), np.uint8)])
def test_an_image_without_pixels_has_no_answer(empty: Any, run: Run) -> None:
    found = landmarks.load(run).recognise(empty)
    assert (found.answers, found.problem) == ((), "an image without pixels")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("https://example.org/a.jpg", "an address is not fetched: bring what lies there here first"),
        ("file:///holiday/a.jpg", "name the file by its path, without file://"),
        ("holiday/*.jpg", "patterns are replaced by the shell"),
    ],
)
def test_a_name_that_no_file_has_is_told_as_predict_tells_it(name: str, hint: str, run: Run) -> None:
    assert f"there is no such file; {hint}" in str(landmarks.load(run).recognise(name))


def test_recognisers_are_told_apart_and_kept_in_sets(run: Run) -> None:
    first, second = landmarks.load(run), landmarks.load(run)
    assert first != second and first in [second, first] and len({first, second, first}) == 2
