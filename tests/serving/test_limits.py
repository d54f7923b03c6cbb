"""What strangers send: too much, too slowly, broken, or nothing that is an image."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import time
import zlib
from typing import Any

import httpx
import numpy as np
import patient
import pytest
from PIL import Image
from serving.conftest import IMAGES, Held, Serving

import landmarks
from landmarks.serving.front import Limits

JPEG = {"Content-Type": "image/jpeg"}
HEAD = b"POST /recognise HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"


def everything_from(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):  # the server hung up with some of what was sent unread
        while chunk := client.recv(65536):
            received += chunk
    return received


def exchange(address: tuple[str, int], *sent: bytes) -> bytes:
    """Send bytes and return all that comes back until the server hangs up."""
    with socket.create_connection(address) as client:
        for one in sent:
            client.sendall(one)
        return everything_from(client)


def facts(answer: httpx.Response) -> dict[str, Any]:
    assert set(answer.json()) == {"what", "received", "expected", "way_out"}
    return dict(answer.json())


def png(width: int, height: int) -> bytes:
    """A sound PNG that claims to be huge: a few kilobytes that would unfold to as many pixels as it says."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 5_000_000)) + chunk(b"IEND", b"")


BROKEN = {
    "no bytes of an image": b"hello, I am no image",
    "cut in the middle": IMAGES[0][: len(IMAGES[0]) // 2],
    "headers alone": IMAGES[0][:30],
    "a bomb of 1.6 thousand million pixels": png(40_000, 40_000),
    "noise behind a JPEG's first bytes": b"\xff\xd8\xff\xe0" + np.random.default_rng(0).bytes(3000),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_named_and_harms_nothing(kind: str, serving: Serving, recogniser: Any) -> None:
    url = serving(recogniser).url
    alone = patient.post(f"{url}/recognise", content=BROKEN[kind], headers=JPEG)
    assert alone.status_code == 422
    assert facts(alone)["what"]
    form = [("images", ("good.jpg", IMAGES[0])), ("images", ("bad.jpg", BROKEN[kind])), ("i", ("g.jpg", IMAGES[1]))]
    images = patient.post(f"{url}/recognise", files=form).json()["images"]
    assert [bool(image["problem"]) for image in images] == [False, True, False]
    assert [len(image["answers"]) for image in images] == [3, 0, 3]


def test_an_image_of_more_pixels_than_allowed_is_refused_before_it_is_decoded(serving: Serving) -> None:
    held = Held()
    running = serving(held, limits=Limits(max_pixels=64 * 48 - 1))
    answer = patient.post(f"{running.url}/recognise", content=IMAGES[0], headers=JPEG)
    assert answer.status_code == 422
    assert "received 64 × 48 pixels; expected at most 3,071 pixels" in facts(answer)["what"]
    assert held.batches == []


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_other_formats_are_answered_whatever_type_they_are_sent_under(
    format: str, serving: Serving, recogniser: Any
) -> None:
    data = io.BytesIO()
    Image.open(io.BytesIO(IMAGES[0])).save(data, format)
    url = serving(recogniser).url
    for kind in ("application/octet-stream", "image/jpeg", f"IMAGE/{format}; charset=binary"):
        answer = patient.post(f"{url}/recognise", content=data.getvalue(), headers={"Content-Type": kind})
        assert answer.status_code == 200
    assert answer.json()["images"][0]["answers"][0]["name"] == recogniser.recognise(data.getvalue()).answers[0].name


@pytest.mark.parametrize(
    ("kind", "body", "what"),
    [
        ("application/json", b'{"urls": ["http://x/a.jpg"]}', "images come as bytes and not in JSON; no addr"),
        ("text/uri-list", b"http://x/a.jpg", "no addresses are fetched"),
        ("application/x-www-form-urlencoded", b"url=http://x", "a request of this type holds no image"),
        ("text/plain", b"x", "a request of this type holds no image"),
        ("", b"x", "a request of this type holds no image"),
    ],
)
def test_a_type_that_holds_no_image_is_refused(kind: str, body: bytes, what: str, serving: Serving) -> None:
    answer = patient.post(f"{serving(Held()).url}/recognise", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert facts(answer)["what"].startswith(what)
    assert "curl --data-binary" in facts(answer)["way_out"]


FORM = "multipart/form-data; boundary=XX"


@pytest.mark.parametrize(
    ("kind", "body", "status", "what"),
    [
        (FORM, b"", 400, "a form that cannot be read"),
        (FORM, b"nonsense", 400, "a form that cannot be read"),
        ("multipart/form-data", b"--XX--", 400, "a form that cannot be read"),
        (f"multipart/form-data; boundary={'x' * 5000}", b"--XX--", 400, "a form that cannot be read"),
        (FORM, b"--XX--\r\n", 400, "the request holds no image"),
        (FORM, b'--XX\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\n', 400, "a form that cannot be"),
        (
            FORM,
            b'--XX\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\n\r\n--XX--',
            400,
            "an image with",
        ),
        (
            FORM,
            b'--XX\r\nContent-Disposition: form-data; name="url"\r\n\r\nhttp://x\r\n--XX--',
            422,
            "a text field is no image, and no addresses",
        ),
        (FORM, b"--XX\r\nContent-Type: image/png\r\n\r\nx\r\n--XX--", 422, "a text field is no image"),
        (FORM, b"--XX\r\nX: " + b"x" * 100_000 + b"\r\n\r\nx\r\n--XX--", 400, "a "),
        ("image/jpeg", b"", 400, "an image without bytes"),
    ],
)
def test_a_request_without_an_image_is_told_why(
    kind: str, body: bytes, status: int, what: str, serving: Serving
) -> None:
    answer = patient.post(f"{serving(Held()).url}/recognise", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert facts(answer)["what"].startswith(what)


def test_names_of_files_come_back_short_and_on_one_line(serving: Serving) -> None:
    form = {"images": ("é\u202e" + "x" * 500 + ".jpg", IMAGES[0])}
    name = patient.post(f"{serving(Held()).url}/recognise", files=form).json()["images"][0]["file"]
    assert len(name) == 200
    assert name.isprintable()


def test_a_huge_body_is_refused_with_and_without_its_length(serving: Serving) -> None:
    running = serving(Held(), limits=Limits(max_bytes=100_000))
    with_length = patient.post(f"{running.url}/recognise", content=b"x" * 100_001, headers=JPEG)
    chunks = patient.post(f"{running.url}/recognise", content=(b"x" * 9_000 for _ in range(12)), headers=JPEG)
    for answer in (with_length, chunks):
        assert (answer.status_code, facts(answer)["expected"]) == (413, "at most 100,000 bytes")
    assert facts(with_length)["received"] == "100,001 bytes"
    # One that says so is refused without reading it.
    with socket.create_connection(running.address) as client:
        client.sendall(HEAD + b"Content-Length: 99999999999999\r\n\r\n")
        assert client.recv(20) == b"HTTP/1.1 413 Request"[:20]


def test_a_client_that_waits_for_leave_need_not_send_a_body_that_is_refused(serving: Serving) -> None:
    running = serving(Held(), limits=Limits(max_bytes=1000))
    with socket.create_connection(running.address) as client:
        client.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 5000\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 413"
    with socket.create_connection(running.address) as client:
        client.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 900\r\n\r\n")
        assert client.recv(21) == b"HTTP/1.1 100 Continue"


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        HEAD + b"Content-Length: minus\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    ],
)
def test_what_is_no_http_ends_that_connection_alone(sent: bytes, serving: Serving) -> None:
    running = serving(Held())
    assert exchange(running.address, sent).startswith(b"HTTP/1.1 400")
    assert patient.get(f"{running.url}/healthz").status_code == 200


def test_endless_headers_end_that_connection_alone(serving: Serving) -> None:
    running = serving(Held())
    with contextlib.suppress(OSError):
        exchange(running.address, HEAD, *[b"X: " + b"x" * 1000 + b"\r\n"] * 1000)
    while running.server.server_state.connections:
        time.sleep(0.01)
    assert patient.get(f"{running.url}/healthz").status_code == 200


def test_slow_clients_are_told_and_do_not_stay(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmarks.serving.server.LINGER_SECONDS", 0.3)
    running = serving(Held(), limits=Limits(seconds=0.3))
    assert exchange(running.address) == b""  # a connection that never says anything
    assert exchange(running.address, b"POST /recognise HTT").startswith(b"HTTP/1.1 408")
    with socket.create_connection(running.address) as client:
        client.sendall(HEAD + b"Content-Length: 1000\r\n\r\nsome")
        received = everything_from(client)
    assert received.startswith(b"HTTP/1.1 408")
    assert b'"what": "the request came too slowly", "received": "4 bytes in 0.3 s"' in received
    assert running.server.server_state.connections == set()


def test_slow_clients_keep_nobody_else_waiting(serving: Serving) -> None:
    running = serving(Held())
    slow = [socket.create_connection(running.address) for _ in range(60)]
    try:
        for client in slow:
            client.sendall(HEAD + b"Content-Length: 1000\r\n\r\nsome")
        assert patient.post(f"{running.url}/recognise", content=IMAGES[0], headers=JPEG).status_code == 200
    finally:
        for client in slow:
            client.close()
    while running.counted("landmarks_requests_total", path="/recognise", status="499") < 60:
        time.sleep(0.01)
    assert running.app.state.service.memory.used == 0


def test_many_uploads_at_once_are_bounded_together(serving: Serving) -> None:
    running = serving(Held())
    running.app.state.service.memory.limit = 5000
    with socket.create_connection(running.address) as client:
        client.sendall(HEAD + b"Content-Length: 9000\r\n\r\n" + b"x" * 4000)
        while running.app.state.service.memory.used < 4000:
            time.sleep(0.01)
        answer = patient.post(f"{running.url}/recognise", content=b"x" * 2000, headers=JPEG)
        assert (answer.status_code, facts(answer)["what"]) == (503, "too many uploads at once")
        assert answer.headers["Retry-After"] == "2"
    while running.app.state.service.memory.used:
        time.sleep(0.01)
    assert patient.post(f"{running.url}/recognise", content=IMAGES[0], headers=JPEG).status_code == 200


def test_an_answer_that_nobody_reads_does_not_hold_its_connection(serving: Serving) -> None:
    running = serving(Held(), limits=Limits(seconds=0.3))
    with socket.create_connection(running.address) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(0.2)
        try:
            while True:  # ask again and again without reading, until nobody takes any more
                client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        except OSError:
            pass
        while running.server.server_state.connections:
            time.sleep(0.01)


def test_more_connections_than_can_be_kept_are_told(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmarks.serving.server.CONNECTIONS", 3)
    running = serving(Held())
    kept = [socket.create_connection(running.address) for _ in range(3)]
    while len(running.server.server_state.connections) < 3:
        time.sleep(0.01)
    assert exchange(running.address).startswith(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5")
    for client in kept:
        client.close()


def test_too_many_files_are_refused(serving: Serving) -> None:
    form = [("images", (f"{number}.jpg", IMAGES[0])) for number in range(33)]
    answer = patient.post(f"{serving(Held()).url}/recognise", files=form)
    assert (answer.status_code, facts(answer)["expected"]) == (413, "at most 32")


@pytest.mark.parametrize("query", ["top=0", "top=6", "top=many", "maps=perhaps"])
def test_a_parameter_out_of_its_range_is_named(query: str, serving: Serving) -> None:
    answer = patient.post(f"{serving(Held()).url}/recognise?{query}", content=IMAGES[0], headers=JPEG)
    name, _, value = query.partition("=")
    assert (answer.status_code, facts(answer)["what"]) == (422, f"the parameter {name} is wrong")
    assert facts(answer)["received"] == value


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"max_pixels": 0}, {"queue": 0}, {"seconds": 0}, {"threads": 0}])
def test_a_limit_that_lets_nothing_through_is_a_wrong_command(options: dict[str, Any]) -> None:
    with pytest.raises(landmarks.LandmarksError, match="too small") as caught:
        landmarks.serve("nothing", **options)
    assert caught.value.exit_code == 2


def test_no_image_is_written_to_a_disk(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    # Forms of more than a megabyte are where a framework's own reading begins to use temporary files.
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile", refuse)
    monkeypatch.setattr("tempfile._TemporaryFileWrapper", refuse)
    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", refuse)
    form = [("images", ("big.jpg", IMAGES[0] + b"\0" * 3_000_000))] * 2
    assert patient.post(f"{serving(Held()).url}/recognise", files=form).status_code == 200


def test_a_file_that_was_not_chosen_takes_no_other_with_it(serving: Serving, capfd: pytest.CaptureFixture[str]) -> None:
    url = f"{serving(Held()).url}/recognise"

    def part(named: bytes, data: bytes) -> bytes:
        return b'--XX\r\nContent-Disposition: form-data; name="i"; filename="' + named + b'"\r\n\r\n' + data + b"\r\n"

    for empty, answers in ((b"", 1), (b"b.jpg", 2)):  # as browsers send a field left empty, and a file without bytes
        body = part(b"a.jpg", IMAGES[0]) + part(empty, b"") + b"--XX--"
        answer = patient.post(url, content=body, headers={"Content-Type": FORM})
        assert answer.status_code == 200
        problems = [one["problem"] for one in answer.json()["images"]]
        assert len(problems) == answers and problems[0] is None and all(problems[1:])
    patient.post(url, content=part(b"a.jpg", IMAGES[0]), headers={"Content-Type": FORM.replace("XX", "YY")})
    assert "boundary" not in capfd.readouterr().err
