"""Request and response bodies: requests parsed, in memory and never on disk, and both as OpenAPI describes them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field, JsonValue
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from landmarks.dataset.naming import normalised_name
from landmarks.serving.front import RefusalError

logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # errors of a form go to its sender only

MAX_FIELD_BYTES = 64 * 1024
"""Total size of the headers of one part of a form."""

RAW_TYPES = ("image/*", "application/octet-stream")
"""Content types whose body is one image; its format is recognised by its bytes."""

FORM_TYPE = "multipart/form-data"

NO_ADDRESSES = "no addresses are fetched: whoever may ask this server is not thereby allowed to use its network"

HOW_TO_SEND = "send an image's bytes: curl --data-binary @IMAGE.jpg -H 'Content-Type: image/jpeg' ADDRESS/recognise"


HOW_TO_TEACH = "send a form: curl -F name=NAME -F images=@ONE.jpg -F images=@TWO.jpg ADDRESS/landmarks"

TAUGHT_FIELDS = frozenset({"name", "landmark_id"})
"""Text fields of a form that teaches a landmark."""


@dataclass(frozen=True)
class Upload:
    """One image of a request: its bytes, and the file name given by the client."""

    data: bytes
    file: str | None = None


@dataclass(frozen=True)
class Lesson:
    """A landmark that a request teaches: its name, and images of it."""

    name: str
    images: list[Upload]
    landmark_id: int | None = None


def lesson_of(content_type: str, data: bytes, most_files: int) -> Lesson:
    """Return what a form teaches. Raises `RefusalError`: 400 for a form without images, 422 for a wrong name or id."""
    _, options = parse_options_header(content_type)
    form = _parsed_form(data, options.get(b"boundary"), most_files, TAUGHT_FIELDS)
    name = normalised_name(_text(form.texts.get("name", b"")))
    id = _text(form.texts.get("landmark_id", b""))
    if not name:
        raise RefusalError(422, "the landmark has no name", expected="a text field name", way_out=HOW_TO_TEACH)
    if "landmark_id" in form.texts and not (id.isascii() and id.isdigit() and len(id) <= 18):
        raise RefusalError(422, "no such landmark id", received=id, expected="a whole number from 0, or no such field")
    if not any(file.data for file in form.files):
        raise RefusalError(400, "the request holds no image", expected="images' bytes", way_out=HOW_TO_TEACH)
    return Lesson(name, form.files, int(id) if id else None)


def require_image_type(content_type: str) -> None:
    """Raise `RefusalError` (415) unless a body of this type can hold images."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind in (RAW_TYPES[1], FORM_TYPE):
        return
    what = "a request of this type holds no image"
    if kind == "application/json":
        what = f"images come as bytes and not in JSON; {NO_ADDRESSES}"
    if kind == "text/uri-list":
        what = NO_ADDRESSES
    raise RefusalError(
        415, what, received=kind[:100] or "no Content-Type", expected=", ".join((*RAW_TYPES, FORM_TYPE)),
        way_out=HOW_TO_SEND,
    )  # fmt: skip


def uploads(content_type: str, data: bytes, most_files: int) -> list[Upload]:
    """Return the images of a body: one, or every file of a form. Raises `RefusalError` for a body without any."""
    kind, options = parse_options_header(content_type)
    if kind == FORM_TYPE.encode():
        images = _parsed_form(data, options.get(b"boundary"), most_files).files
    else:
        images = [Upload(data)]
    if not any(image.data for image in images):
        raise RefusalError(
            400, "an image without bytes" if images else "the request holds no image", expected="the bytes of an image",
            way_out=HOW_TO_SEND,
        )  # fmt: skip
    return images


@dataclass
class _Form:
    """Collects the parts of a form; a text field not in `fields` is an error, as it could only be an address."""

    most_files: int
    fields: frozenset[str] = frozenset()
    texts: dict[str, bytes] = field(default_factory=dict)
    text: str | None = None
    files: list[Upload] = field(default_factory=list)
    headers: dict[str, bytes] = field(default_factory=dict)
    name: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    data: list[bytes] = field(default_factory=list)
    ended: bool = False

    def begin(self) -> None:
        self.headers, self.data = {}, []

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self.name += data[start:end]
        self._bounded()

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]
        self._bounded()

    def _bounded(self) -> None:
        if len(self.name) + len(self.value) + sum(map(len, self.headers.values())) > MAX_FIELD_BYTES:
            raise RefusalError(
                400, "a part of the form has too long headers", expected=f"at most {MAX_FIELD_BYTES:,} bytes"
            )

    def header_end(self) -> None:
        self.headers[self.name.decode("latin-1").lower()] = bytes(self.value)
        self.name.clear()
        self.value.clear()

    def headers_finished(self) -> None:
        _, options = parse_options_header(self.headers.get("content-disposition", b""))
        self.text = _text(options.get(b"name", b"")) if b"filename" not in options else None
        if self.text in self.fields:
            return
        if self.text is not None:
            raise RefusalError(
                422, f"a text field is no image, and {NO_ADDRESSES}", received=f'the text field "{self.text}"',
                expected=" and ".join(("files", *sorted(self.fields))),
                way_out="send files: curl -F images=@IMAGE.jpg 'ADDRESS/recognise?top=3'; parameters stand there",
            )  # fmt: skip
        if len(self.files) == self.most_files:
            raise RefusalError(
                413, "too many images in one request", received=f"more than {self.most_files}",
                expected=f"at most {self.most_files}", way_out="send several requests", reason="size",
            )  # fmt: skip
        self.files.append(Upload(b"", _text(options[b"filename"])))

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self.data.append(data[start:end])

    def part_end(self) -> None:
        if self.text is not None:
            self.texts[self.text] = b"".join(self.data)
            return
        self.files[-1] = Upload(b"".join(self.data), self.files[-1].file)
        if not self.files[-1].data and not self.files[-1].file:  # a browser sends this if no file was chosen
            del self.files[-1]

    def end(self) -> None:
        self.ended = True


def _parsed_form(data: bytes, boundary: bytes | None, most_files: int, fields: frozenset[str] = frozenset()) -> _Form:
    """Return the parts of a form, in memory, as no image is ever written to disk."""
    form = _Form(most_files, fields)
    try:
        if boundary is None:
            raise FormParserError("it names no boundary")
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_part_data": form.part_data,
                "on_part_end": form.part_end,
                "on_header_field": form.header_name,
                "on_header_value": form.header_value,
                "on_header_end": form.header_end,
                "on_headers_finished": form.headers_finished,
                "on_end": form.end,
            },
        )
        parser.write(data)
        parser.finalize()
        if not form.ended:
            raise FormParserError("it ends too early")
    except FormParserError as error:
        raise RefusalError(
            400, "a form that cannot be read", received=str(error)[:200], expected=FORM_TYPE, way_out=HOW_TO_SEND
        ) from error
    return form


def _text(data: bytes) -> str:
    """Return untrusted text, shortened and without control characters."""
    text = data.decode("utf-8", errors="replace")
    return "".join(letter if letter.isprintable() else " " for letter in text)[:200]


# ── Bodies as OpenAPI describes them ────────────────────────────────────────────────────────────────────────────────


_TOWER: dict[str, JsonValue] = {"label": 3, "landmark_id": 47378, "name": "Eiffel Tower", "probability": 0.9731}


class AnswerBody(BaseModel):
    """One landmark that an image may show."""

    label: int = Field(description="Its position among the landmarks that the recogniser knows, from 0.")
    landmark_id: int = Field(description="Its number in the archive, or in the dataset that the recogniser learnt.")
    name: str
    probability: float = Field(ge=0, le=1)
    map: list[list[float]] | None = Field(
        None,
        description="With ?maps=true: where the recogniser looked for it, rows from top to bottom, 0 (cold) to 1. "
        "They divide the square `seen` evenly.",
    )


class ImageBody(BaseModel):
    """What the recogniser says about one image."""

    file: str | None = Field(description="The name that the form gave the image; null for a raw body.")
    known: bool | None = Field(
        description="Whether it shows a landmark that the recogniser knows; null where it has no threshold to tell."
    )
    answers: list[AnswerBody] = Field(description="The best answers, best first; empty where there is a problem.")
    problem: str | None = Field(description="Why there are no answers: the image cannot be decoded, or is too large.")
    generation: int = Field(description="Which recogniser answered: 1, and 1 more after each that was put in place.")
    seen: list[float] | None = Field(
        None,
        description="With ?maps=true: left, top, right and bottom of the square that the recogniser saw, as shares of "
        "the upright image's width and height.",
    )


class Recognised(BaseModel):
    """Answers to every image of a request, in its order."""

    images: list[ImageBody]
    model_config = {
        "json_schema_extra": {
            "examples": [
                {
                    "images": [
                        {"file": "paris.jpg", "known": True, "answers": [_TOWER], "problem": None, "generation": 1}
                    ]
                }
            ]
        }
    }


class LandmarkBody(BaseModel):
    """One landmark that the recogniser knows."""

    label: int
    landmark_id: int
    name: str
    images: int | None = Field(description="Images that it was taught with; null for one that was trained.")


class Known(BaseModel):
    """Everything that the recogniser knows."""

    landmarks: list[LandmarkBody]


class PassedBody(BaseModel):
    """An image that nothing was learned from."""

    file: str | None
    problem: str


class TaughtBody(BaseModel):
    """What is known now, and what was passed by."""

    landmarks: list[LandmarkBody]
    passed: list[PassedBody] = Field(description="Images that could not be read.")
    generation: int = Field(description="Which recogniser answers from now on.")


class Health(BaseModel):
    """The server is up and has a recogniser that answers."""

    status: str = Field(description='"ok", or "stale" where what lies in place was refused and the old one answers.')
    landmarks: int = Field(description="Landmarks that the recogniser knows.")
    generation: int
    refused: str | None = Field(description="Why what was put in place last is not asked.")
    teach: bool = Field(description="Whether it may be taught landmarks: POST /landmarks.")
    version: str


class Problem(BaseModel):
    """Why a request was not answered: four facts, each null where there is nothing to say."""

    what: str
    received: str | None = None
    expected: str | None = None
    way_out: str | None = None
    model_config = {
        "json_schema_extra": {
            "examples": [
                {
                    "what": "the request is too large",
                    "received": "31,457,280 bytes",
                    "expected": "at most 20,000,000 bytes",
                    "way_out": "send fewer images at once, or smaller ones: a side of 1,000 pixels is plenty",
                }
            ]
        }
    }


_BINARY = {"schema": {"type": "string", "format": "binary"}}

REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "description": "One image as it lies on disk, or a form with one file or several under any name.",
    "content": {
        **dict.fromkeys(("image/jpeg", "image/png", "image/webp", *RAW_TYPES), _BINARY),
        FORM_TYPE: {
            "schema": {
                "type": "object",
                "properties": {"images": {"type": "array", "minItems": 1, "items": _BINARY["schema"]}},
                "required": ["images"],
                "additionalProperties": False,
            }
        },
    },
}

TEACH_BODY: dict[str, Any] = {
    "required": True,
    "description": "A form: the landmark's name, one image or several, and an id if it has one.",
    "content": {
        FORM_TYPE: {
            "schema": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 1},
                    "landmark_id": {"type": "integer", "minimum": 0},
                    "images": {"type": "array", "minItems": 1, "items": _BINARY["schema"]},
                },
                "required": ["name", "images"],
                "additionalProperties": False,
            }
        }
    },
}

STATUSES = {
    400: "A request without an image, or a form that cannot be read.",
    401: "No bearer token, or another one.",
    403: "A server that is not taught: it was started without --teach.",
    404: "Nothing of this name was learned.",
    408: "The request came too slowly.",
    409: "A name or id that is taken, or an export that cannot learn.",
    413: "Too many bytes, or too many images.",
    415: "A content type that holds no image; addresses are not fetched.",
    422: "An image that cannot be decoded or is too large, or a parameter out of its range.",
    500: "A fault of the server's.",
    503: "Too many images are waiting, or the server is stopping; Retry-After says when to try again.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a path for OpenAPI."""
    responses: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        responses[status] = {"model": Problem, "description": STATUSES[status]}
        if status == 503:
            responses[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
        if status == 401:
            responses[status]["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return responses
