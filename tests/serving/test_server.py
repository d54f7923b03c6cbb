"""The server asked by real clients: right answers, many at once, limits, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import patient
import pytest
from serving.conftest import IMAGES, Held, Serving, command

import landmarks
from landmarks.serving.server import bind, is_private

JPEG = {"Content-Type": "image/jpeg"}


def as_said(found: Any) -> list[tuple[str, float]]:
    return [(one.name, pytest.approx(one.probability, abs=2e-6)) for one in found.answers]


def answers_of(image: dict[str, Any]) -> list[tuple[str, float]]:
    return [(one["name"], one["probability"]) for one in image["answers"]]


def test_its_answers_are_the_recognisers(serving: Serving, recogniser: Any) -> None:
    url = serving(recogniser).url
    expected = [recogniser.recognise(data, top=2) for data in IMAGES]
    with httpx.Client(base_url=url) as client:
        for data, one in zip(IMAGES, expected, strict=True):
            raw = client.post("/recognise?top=2", content=data, headers=JPEG).json()["images"]
            assert [answers_of(image) for image in raw] == [as_said(one)]
            assert raw[0] | {"answers": []} == {
                "file": None, "known": None, "problem": None, "generation": 1, "answers": [],
            }  # fmt: skip
        form = [("images", (f"{number}.jpg", data, "image/jpeg")) for number, data in enumerate(IMAGES)]
        many = client.post("/recognise?top=2", files=form).json()["images"]
        assert [image["file"] for image in many] == [f"{number}.jpg" for number in range(12)]
        assert [answers_of(image) for image in many] == [as_said(one) for one in expected]


def test_heat_maps_come_when_they_are_asked_for(serving: Serving, recogniser: Any) -> None:
    answer = patient.post(
        f"{serving(recogniser).url}/recognise?top=2&maps=true", content=IMAGES[0], headers=JPEG
    ).json()
    explained = recogniser.explain(IMAGES[0], top=2)
    for one, map in zip(answer["images"][0]["answers"], explained.maps, strict=True):
        assert one["map"] == pytest.approx(map.astype(float), abs=6e-4)
    assert answer["images"][0]["seen"] == [0.125, 0, 0.875, 1]  # the middle square of 64 × 48 pixels


def test_a_recogniser_without_maps_says_so(serving: Serving) -> None:
    answer = patient.post(f"{serving(Held()).url}/recognise?maps=true", content=IMAGES[0], headers=JPEG)
    assert (answer.status_code, answer.json()["what"]) == (422, "this network has no maps")
    assert answer.json()["way_out"] == "ask without maps"


def test_a_hundred_uploads_at_once_are_all_answered_rightly(serving: Serving, recogniser: Any) -> None:
    running = serving(recogniser)
    expected = [as_said(recogniser.recognise(data, top=3)) for data in IMAGES]

    async def ask() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=running.url, limits=limits, timeout=None) as client:
            posts = (client.post("/recognise", content=IMAGES[n % 12], headers=JPEG) for n in range(100))
            return await asyncio.gather(*posts)

    answers = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [200] * 100
    for number, answer in enumerate(answers):
        assert answers_of(answer.json()["images"][0]) == expected[number % 12]
    assert running.counted("landmarks_images_total", outcome="answered") == 100
    assert running.counted("landmarks_accepted_images") == 0


def test_what_arrives_while_others_are_answered_is_answered_together(serving: Serving) -> None:
    held = Held(go=False)
    running = serving(held, threads=1)
    with ThreadPoolExecutor(11) as clients:
        first = clients.submit(httpx.post, f"{running.url}/recognise", content=IMAGES[0], headers=JPEG, timeout=None)
        held.begun.acquire()
        others = [
            clients.submit(httpx.post, f"{running.url}/recognise", content=data, headers=JPEG, timeout=None)
            for data in IMAGES[1:11]
        ]
        while running.counted("landmarks_accepted_images") < 11:
            time.sleep(0.01)
        held.go.set()
        assert {one.result().status_code for one in (first, *others)} == {200}
    assert len(held.batches) == 2
    assert sorted(held.batches[1]) == sorted(IMAGES[1:11])


def test_one_image_that_the_recogniser_stumbles_over_takes_no_other_with_it(
    serving: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    held = Held(go=False)
    running = serving(held, threads=1)
    bad = IMAGES[2] + b"stumble"
    with ThreadPoolExecutor(4) as clients:

        def post(data: bytes) -> httpx.Response:
            return patient.post(f"{running.url}/recognise", content=data, headers=JPEG)

        first = clients.submit(post, IMAGES[0])
        held.begun.acquire()
        others = [clients.submit(post, data) for data in (IMAGES[1], bad, IMAGES[3])]
        while running.counted("landmarks_accepted_images") < 4:
            time.sleep(0.01)
        held.go.set()
        assert [one.result().status_code for one in (first, *others)] == [200, 200, 500, 200]
        assert others[1].result().json()["what"] == "the server made a mistake"
    assert "error: ValueError at conftest.py:" in capsys.readouterr().err


def test_a_full_queue_is_told_and_what_was_accepted_is_answered(serving: Serving) -> None:
    held = Held(go=False)
    from landmarks.serving.front import Limits

    running = serving(held, limits=Limits(queue=3), threads=1)
    with ThreadPoolExecutor(8) as clients:

        def post(data: bytes) -> httpx.Response:
            return patient.post(f"{running.url}/recognise", content=data, headers=JPEG)

        accepted = [clients.submit(post, data) for data in IMAGES[:3]]
        while running.counted("landmarks_accepted_images") < 3:
            time.sleep(0.01)
        refused = [post(data) for data in IMAGES[3:6]]
        assert [one.status_code for one in refused] == [503] * 3
        assert all(1 <= int(one.headers["Retry-After"]) <= 60 for one in refused)
        assert refused[0].json()["what"] == "too many images are waiting"
        assert patient.get(f"{running.url}/healthz").status_code == 200
        held.go.set()
        assert [one.result().status_code for one in accepted] == [200] * 3
    assert post(IMAGES[6]).status_code == 200
    form = [("images", ("a.jpg", data)) for data in IMAGES[:4]]
    assert patient.post(f"{running.url}/recognise", files=form).status_code == 413  # more than could ever be accepted


def test_whoever_hangs_up_is_taken_out_of_the_queue(serving: Serving) -> None:
    held = Held(go=False)
    running = serving(held, threads=1)
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(httpx.post, f"{running.url}/recognise", content=IMAGES[0], headers=JPEG, timeout=None)
        held.begun.acquire()
        with socket.create_connection(running.address) as client:
            client.sendall(request(IMAGES[1]))
            while running.counted("landmarks_accepted_images") < 2:
                time.sleep(0.01)
        while running.counted("landmarks_images_total", outcome="abandoned") < 1:
            time.sleep(0.01)
        held.go.set()
        assert first.result().status_code == 200
    running.stop()
    assert held.batches == [[IMAGES[0]]]


def request(data: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = ["POST /recognise HTTP/1.1", "Host: x", "Content-Type: image/jpeg", *headers]
    length = len(data) if length is None else length
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode() + data


def everything_from(client: socket.socket) -> bytes:
    received = b""
    while chunk := client.recv(65536):
        received += chunk
    return received


@pytest.mark.slow
@pytest.mark.linux
def test_sigterm_finishes_what_was_accepted_and_ends_with_0(run_folder: Path) -> None:
    with command(run_folder) as (process, url, lines), ThreadPoolExecutor(8) as clients:
        statuses: list[int | str] = []
        enough = threading.Event()

        def ask(first: int) -> None:
            with httpx.Client(base_url=url, timeout=None) as client:
                for number in range(first, first + 10_000):
                    try:
                        answer = client.post("/recognise", content=IMAGES[number % 12], headers=JPEG)
                    except httpx.HTTPError as error:  # not accepted: the server no longer listens
                        statuses.append(type(error).__name__)
                        return
                    statuses.append(answer.status_code)
                    if len(statuses) > 40:
                        enough.set()

        asking = [clients.submit(ask, first) for first in range(8)]
        enough.wait()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        for one in asking:
            one.result()
    answered = statuses.count(200)
    assert answered > 40
    assert {status for status in statuses if isinstance(status, int)} <= {200, 503}
    assert f"stopped: {answered} of {answered} accepted images answered" in lines[-1]


@pytest.mark.linux
def test_an_interruption_finishes_too_and_ends_with_130(export_by_hand: Path) -> None:
    with command(export_by_hand) as (process, url, lines):
        assert patient.post(f"{url}/recognise", content=IMAGES[0], headers=JPEG).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert "stopped: 1 of 1 accepted images answered" in "".join(lines)
    assert "Traceback" not in "".join(lines)


@pytest.mark.slow
@pytest.mark.linux
def test_neither_images_nor_names_nor_the_token_reach_the_log(run_folder: Path) -> None:
    token = "a-token-that-nobody-should-read"
    with command(run_folder, LANDMARKS_TOKEN=token) as (process, url, lines):
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
            answers = [
                client.post("/recognise", files={"images": ("private-name.jpg", IMAGES[0])}),
                client.post("/recognise?token=query-secret", content=b"secret bytes", headers=JPEG),
                client.post("/recognise", content=IMAGES[0] + b"secret bytes", headers={"Content-Type": "text/plain"}),
                client.get("/secret-path"),
            ]
            assert [one.status_code for one in answers] == [200, 422, 415, 404]
            assert patient.post(f"{url}/recognise", headers={"Authorization": "Bearer wrong-secret"}).status_code == 401
            assert not {"secret", "private", token} & set(client.get("/metrics").text.split('"'))
        with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port)) as client:
            client.sendall(b"secret nonsense\r\n\r\n")
            assert b"400" in everything_from(client)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    written = "".join(lines)
    assert not [word for word in ("secret", "private", token) if word in written]


def test_requests_still_being_sent_are_told_when_the_server_stops(serving: Serving) -> None:
    running = serving(Held())
    with socket.create_connection(running.address) as client:
        client.sendall(request(b"half", length=100))
        while not running.server.server_state.tasks:
            time.sleep(0.01)
        running.stop()
        assert b"the server is stopping" in everything_from(client)


def test_a_token_is_wanted_where_one_is_set(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANDMARKS_TOKEN", "right")
    url = serving(Held()).url
    for path in ("/landmarks", "/metrics", "/nothing"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}):
            answer = patient.get(url + path, headers=headers)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert set(answer.json()) == {"what", "received", "expected", "way_out"}
    assert patient.post(f"{url}/recognise", content=IMAGES[0], headers=JPEG).status_code == 401
    assert patient.get(f"{url}/landmarks", headers={"Authorization": "Bearer right"}).status_code == 200
    assert [patient.get(url + path).status_code for path in ("/", "/healthz", "/openapi.json")] == [200] * 3


@pytest.mark.parametrize("token", ["", "two words", "line\n", "schlüssel"])
def test_a_token_that_no_header_can_carry_is_a_wrong_command(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANDMARKS_TOKEN", token)
    with pytest.raises(landmarks.LandmarksError, match="LANDMARKS_TOKEN is no token") as caught:
        landmarks.serve("nothing")
    assert caught.value.exit_code == 2
    assert "schl" not in str(caught.value)


@pytest.mark.linux
def test_a_server_open_to_everybody_says_so(export_by_hand: Path) -> None:
    with command(export_by_hand, "--host", "0.0.0.0") as (process, _, lines):
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert "no LANDMARKS_TOKEN is set: everybody who can reach" in "".join(lines)
    assert [is_private(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "example.org")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_an_address_that_cannot_be_had_is_one_line(run_folder: Path) -> None:
    with bind("127.0.0.1", 0) as occupied:
        occupied.listen()
        with pytest.raises(landmarks.LandmarksError, match=r"127\.0\.0\.1 port \d+ is not available"):
            landmarks.serve(run_folder, port=occupied.getsockname()[1])
    with pytest.raises(landmarks.LandmarksError, match="no address"):
        landmarks.serve(run_folder, host="no.such.host.invalid", port=0)
    with pytest.raises(landmarks.LandmarksError, match="no such port"):
        landmarks.serve(run_folder, port=70000)


def test_every_answer_forbids_what_a_browser_need_not_do(serving: Serving) -> None:
    url = serving(Held()).url
    for path in ("/", "/healthz", "/nothing", "/openapi.json"):
        headers = patient.get(url + path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in headers
        assert "server" not in headers


def test_other_origins_may_ask_where_they_are_named(serving: Serving) -> None:
    url = serving(Held(), allow_origin=["https://a.example/"], token="right").url  # as it stands in an address bar
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    allowed = httpx.options(f"{url}/recognise", headers=preflight)
    assert (allowed.status_code, allowed.headers["Access-Control-Allow-Origin"]) == (200, "https://a.example")
    assert httpx.options(f"{url}/recognise", headers=preflight | {"Origin": "https://b.example"}).status_code == 400
    answer = patient.post(f"{url}/recognise", headers=JPEG | {"Origin": "https://a.example"})
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (401, "https://a.example")


def test_numbers_for_prometheus_are_what_prometheus_reads(serving: Serving) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    running = serving(Held())
    patient.post(f"{running.url}/recognise", content=IMAGES[0], headers=JPEG)
    answer = patient.get(f"{running.url}/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["landmarks_images_total", ("known",)] == 1
    assert samples["landmarks_requests_total", ("/recognise", "200")] == 1
    assert samples["landmarks_batch_images_count", ()] == 1
    assert samples["landmarks_accepted_images", ()] == 0


def test_it_knows_its_landmarks(serving: Serving, recogniser: Any) -> None:
    answer = patient.get(f"{serving(recogniser).url}/landmarks").json()
    assert answer["landmarks"] == [
        {"label": label, "landmark_id": id, "name": f"Tower {id}", "images": None}
        for label, id in enumerate((11, 22, 33))
    ]


def test_the_page_may_run_what_stands_in_it_and_nothing_else(serving: Serving) -> None:
    answer = patient.get(f"{serving(Held()).url}/")
    policy = answer.headers["Content-Security-Policy"]
    for kind in ("script", "style"):
        (text,) = re.findall(rf"<{kind}[^>]*>(.*?)</{kind}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy


def test_a_server_in_a_notebook_is_told_of_its_loop_and_of_a_thread() -> None:
    async def cell() -> None:
        landmarks.serve("nothing")

    with pytest.raises(landmarks.LandmarksError, match=r"an event loop is running already.*threading\.Thread"):
        asyncio.run(cell())


@pytest.mark.parametrize(
    "origin", ["a.example", "localhost:3000", "https://a.example/path", "ftp://a.example", "", "*.a.example"]
)
def test_what_no_browser_sends_as_its_origin_is_a_wrong_command(origin: str, run_folder: Path) -> None:
    with pytest.raises(landmarks.LandmarksError, match="no web origin, and no page would be let in") as caught:
        landmarks.serve(run_folder, port=0, allow_origin=[origin])
    assert caught.value.exit_code == 2
