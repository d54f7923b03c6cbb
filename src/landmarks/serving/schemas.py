"""Request and response bodies, as OpenAPI describes them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, JsonValue

from landmarks.serving.forms import FORM_TYPE, RAW_TYPES

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
