"""Another recogniser put in place while the server runs: taken without losing a request, or left alone when broken."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import patient
import pytest
from serving.conftest import IMAGES, Held, Serving

import landmarks
from landmarks.recognition.answers import Recognition
from landmarks.serving.exchanging import open_tested, stamp

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmarks.serving.exchanging.POLL_SECONDS", 0.02)


def loader(place: Path) -> Any:
    """Open a made-up recogniser: the file's text is the name of its only landmark."""

    def load() -> Held:
        text = place.read_text()
        if not text.startswith("Tower"):
            raise landmarks.LandmarksError(f"{place.name} is no export")
        held = Held()
        held.names = (text,)
        return held

    return load


def put(place: Path, text: str) -> None:
    aside = place.with_suffix(".new")
    aside.write_text(text)
    aside.replace(place)


def health(url: str) -> dict[str, Any]:
    return dict(patient.get(f"{url}/healthz").json())


def until(url: str, **expected: Any) -> None:
    while not expected.items() <= health(url).items():
        time.sleep(0.01)


def test_a_replaced_file_answers_from_then_on_and_a_broken_one_does_not(
    serving: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "export.onnx"
    put(place, "Tower 1")
    load = loader(place)
    running = serving(open_tested(load), place=place, load=load)
    assert health(running.url) | {"version": ""} == {
        "status": "ok", "landmarks": 1, "generation": 1, "refused": None, "teach": False, "version": "",
    }  # fmt: skip
    put(place, "nonsense")
    until(running.url, status="stale", refused="export.onnx is no export", generation=1)
    assert patient.get(f"{running.url}/landmarks").json()["landmarks"][0]["name"] == "Tower 1"
    assert patient.post(f"{running.url}/recognise", content=IMAGES[0], headers=JPEG).status_code == 200
    put(place, "Tower 2")
    until(running.url, status="ok", refused=None, generation=2)
    assert patient.get(f"{running.url}/landmarks").json()["landmarks"][0]["name"] == "Tower 2"
    place.unlink()
    until(running.url, status="stale", generation=2)
    assert patient.post(f"{running.url}/recognise", content=IMAGES[0], headers=JPEG).status_code == 200
    stderr = capsys.readouterr().err
    assert stderr.count("was replaced, but not by a recogniser that answers; the old one goes on") == 2
    assert stderr.count("asked from now on") == 1
    assert running.counted("landmarks_reloads_total", outcome="taken") == 1


def test_no_request_is_lost_while_recognisers_come_and_go(serving: Serving, tmp_path: Path) -> None:
    place = tmp_path / "export.onnx"
    put(place, "Tower 1")
    load = loader(place)
    running = serving(open_tested(load), place=place, load=load)
    begun, done = threading.Barrier(5), threading.Event()

    def ask() -> list[httpx.Response]:
        with httpx.Client(base_url=running.url, timeout=None) as client:
            answers, is_last = [client.post("/recognise", content=IMAGES[0], headers=JPEG)], False
            begun.wait()  # the first recogniser has answered
            while not is_last:
                is_last = done.is_set()  # asked before, so that the last one answers too
                answers.append(client.post("/recognise", content=IMAGES[0], headers=JPEG))
            return answers

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(ask) for _ in range(4)]
        begun.wait()
        for generation in range(2, 6):
            put(place, "broken")
            until(running.url, status="stale")
            put(place, f"Tower {generation}")
            until(running.url, status="ok", generation=generation)
        done.set()
        answers = [answer for one in asking for answer in one.result()]
    assert {answer.status_code for answer in answers} == {200}
    assert {1, 5} <= {answer.json()["images"][0]["generation"] for answer in answers} <= {1, 2, 3, 4, 5}


def test_a_batch_keeps_the_recogniser_that_it_began_with(serving: Serving, tmp_path: Path) -> None:
    place = tmp_path / "export.onnx"
    put(place, "Tower 1")
    held = Held(go=False)
    running = serving(held, place=place, load=loader(place))
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(httpx.post, f"{running.url}/recognise", content=IMAGES[0], headers=JPEG, timeout=None)
        held.begun.acquire()
        put(place, "Tower 2")
        until(running.url, generation=2)
        held.go.set()
        assert first.result().json()["images"][0]["generation"] == 1


@pytest.mark.parametrize("kept", ["learned.safetensors", "unknown.safetensors"])
def test_a_run_that_learned_a_landmark_or_chose_a_threshold_is_noticed(
    run_folder: Path, tmp_path: Path, kept: str
) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    before = stamp(tmp_path / "run")
    (tmp_path / "run" / kept).write_bytes(b"new")
    assert stamp(tmp_path / "run") != before


def test_a_run_put_in_place_of_another_is_noticed(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    before = stamp(tmp_path / "run")
    assert stamp(tmp_path / "run") == before
    (tmp_path / "run" / "history.parquet").write_bytes(b"")  # decides no answer
    assert stamp(tmp_path / "run") == before
    put(tmp_path / "run" / "model.json", (run_folder / "model.json").read_text())
    assert stamp(tmp_path / "run") != before
    assert stamp(tmp_path / "nothing") == (None,)


class Wrong(Held):
    """Opens well, and answers nonsense."""

    def __init__(self, found: Recognition | None) -> None:
        super().__init__()
        self.found = found

    def recognise(self, images: Any, top: int) -> list[Recognition]:
        if self.found is None:
            raise RuntimeError("a runtime's own words")
        return [self.found for _ in images]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "it cannot be opened (RuntimeError: a runtime's own words)"),
        (Recognition(), "it does not answer"),
        (Recognition(problem="no"), "it does not answer"),
    ],
)
def test_what_opens_but_does_not_answer_is_refused(found: Recognition | None, message: str) -> None:
    with pytest.raises(landmarks.LandmarksError) as caught:
        open_tested(lambda: Wrong(found))
    assert str(caught.value).startswith(message)


def test_a_place_without_a_recogniser_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(landmarks.LandmarksError):
        landmarks.serve(tmp_path / "nothing", port=0)
