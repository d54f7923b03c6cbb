"""A served run is taught a landmark over HTTP, answers with it at once, and forgets it again."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import patient
import pytest
from made_up_runs import _short_features, image
from serving.conftest import IMAGES, Held, Running, Serving

import landmarks
from landmarks.serving.exchanging import POLL_SECONDS

__all__ = ["_short_features"]

JPEG = {"Content-Type": "image/jpeg"}
FIVE = [image(58, number) for number in range(500, 505)]
SIXTH = image(58, 700)


@pytest.fixture
def place(run_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


def started(serving: Serving, place: Path, **options: Any) -> Running:
    def load() -> Any:
        return landmarks.load(place, device="cpu")

    return serving(load(), place=place, load=load, device="cpu", **{"teach": True, **options})


def taught(running: Running, images: list[bytes], headers: dict[str, str] | None = None, **fields: str) -> Any:
    files = [("images", (f"{number}.jpg", data)) for number, data in enumerate(images)]
    return patient.post(f"{running.url}/landmarks", files=files, data=fields, headers=headers)


def recognised(running: Running, data: bytes) -> Any:
    answer = patient.post(f"{running.url}/recognise", content=data, headers=JPEG)
    return answer.json()["images"][0]


def test_a_landmark_taught_with_five_images_is_recognised_in_the_sixth_and_forgotten_again(
    serving: Serving, place: Path
) -> None:
    running = started(serving, place)
    answer = taught(running, FIVE, name="Torre de Belém")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["landmarks"][-1] == {"label": 3, "landmark_id": -2, "name": "Torre de Belém", "images": 5}
    assert [one["images"] for one in body["landmarks"][:-1]] == [None] * 3
    now = recognised(running, SIXTH)  # at once: nobody waited for the folder to be looked at
    assert (now["answers"][0]["name"], now["generation"]) == ("Torre de Belém", 2)
    assert landmarks.load(place, device="cpu").recognise(SIXTH).answers[0].name == "Torre de Belém"
    gone = patient.delete(f"{running.url}/landmarks/Torre de Belém")
    assert gone.status_code == 200, gone.text
    assert len(gone.json()["landmarks"]) == 3
    assert "Torre de Belém" not in [one["name"] for one in recognised(running, SIXTH)["answers"]]
    assert running.counted("landmarks_lessons_total", outcome="taught") == 1
    assert running.counted("landmarks_lessons_total", outcome="forgotten") == 1
    assert patient.delete(f"{running.url}/landmarks/Torre de Belém").status_code == 404
    threading.Event().wait(3 * POLL_SECONDS)
    assert running.counted("landmarks_reloads_total", outcome="taken") == 0  # what was taught here is not opened twice


def test_broken_images_are_named_and_passed_by_and_with_all_broken_nothing_is_learned(
    serving: Serving, place: Path
) -> None:
    running = started(serving, place)
    refused = taught(running, [b"no image", b"nor this"], name="Broken")
    assert refused.status_code == 422
    assert not (place / "learned.safetensors").exists()
    body = taught(running, [FIVE[0], b"no image"], name="One", landmark_id="400").json()
    assert [one["file"] for one in body["passed"]] == ["1.jpg"]
    assert body["landmarks"][-1] == {"label": 3, "landmark_id": 400, "name": "One", "images": 1}
    trained = body["landmarks"][0]["name"]
    assert taught(running, FIVE, name=trained).status_code == 409
    assert taught(running, FIVE, name="Two", landmark_id="400").status_code == 409
    assert taught(running, FIVE, name="Two", landmark_id="four").status_code == 422
    assert taught(running, FIVE, name=" ").status_code == 422
    assert taught(running, FIVE, name="Two", address="http://x").status_code == 422


def test_a_server_is_taught_only_where_it_was_started_for_it_and_with_its_token(serving: Serving, place: Path) -> None:
    off = started(serving, place, teach=False)
    refused = taught(off, FIVE, name="New")
    assert refused.status_code == 403
    assert "--teach" in refused.json()["way_out"]
    assert patient.delete(f"{off.url}/landmarks/New").status_code == 403
    locked = started(serving, place, token="secret")
    assert taught(locked, FIVE, name="New").status_code == 401
    assert patient.delete(f"{locked.url}/landmarks/New").status_code == 401
    assert taught(locked, FIVE, {"Authorization": "Bearer secret"}, name="New").status_code == 200


def test_an_export_is_taught_beside_its_file_and_one_that_cannot_learn_says_how_to_make_one_that_can(
    serving: Serving, recogniser: Any, place: Path, tmp_path: Path
) -> None:
    made = landmarks.export(place, tmp_path / "a.onnx", images=6, learning=True).path
    running = started(serving, made)
    assert patient.get(f"{running.url}/healthz").json()["teach"] is True
    body = taught(running, [*FIVE, b"no image"], name="Torre de Belém").json()
    assert body["landmarks"][-1] == {"label": 3, "landmark_id": -2, "name": "Torre de Belém", "images": 5}
    assert [one["file"] for one in body["passed"]] == ["5.jpg"]
    now = recognised(running, SIXTH)
    assert (now["answers"][0]["name"], now["generation"]) == ("Torre de Belém", 2)
    assert landmarks.load(made).names[-1] == "Torre de Belém"
    assert taught(running, FIVE, name=landmarks.load(made).names[0]).status_code == 409
    landmarks.learn(made, FIVE, name="From elsewhere")  # is noticed, as an export put in place is
    until_generation(running, 3)
    gone = patient.delete(f"{running.url}/landmarks/From elsewhere")
    assert [one["name"] for one in gone.json()["landmarks"][3:]] == ["Torre de Belém"]
    assert patient.delete(f"{running.url}/landmarks/From elsewhere").status_code == 404
    (tmp_path / "b.onnx").write_bytes(b"an export")
    bare = serving(Held(), place=tmp_path / "b.onnx", load=lambda: recogniser, teach=True)
    refused = taught(bare, FIVE, name="New")
    assert refused.status_code == 409
    assert "landmarks export RUN -o NAME.onnx --learning" in refused.json()["way_out"]
    assert patient.get(f"{bare.url}/healthz").json()["teach"] is False


def until_generation(running: Running, wanted: int) -> None:
    while patient.get(f"{running.url}/healthz").json()["generation"] < wanted:
        threading.Event().wait(0.1)


def test_images_are_limited_as_they_are_for_recognition(serving: Serving, place: Path) -> None:
    from landmarks.serving.front import Limits

    running = started(serving, place, limits=Limits(max_bytes=20_000, max_pixels=100, max_files=2))
    assert taught(running, [b"x" * 30_000], name="New").status_code == 413
    assert taught(running, [b"x"] * 3, name="New").status_code == 413
    assert taught(running, [FIVE[0]], name="New").status_code == 422  # more pixels than allowed
    assert recognised(started(serving, place), IMAGES[0])["problem"] is None
