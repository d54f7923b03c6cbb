"""Parsing request bodies: one raw image, or the files of a form, all in memory and never on disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from landmarks.dataset.naming import normalised_name
from landmarks.serving.request_limits import RefusalError

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
