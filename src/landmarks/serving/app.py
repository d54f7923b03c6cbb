"""The HTTP application: images in, answers out, and the web page that uses it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException

from landmarks import __version__
from landmarks.recognition.answers import Answer
from landmarks.serving.batching import TOP, Answering, Batches, Reply, ServedRecogniser
from landmarks.serving.bodies import (
    FORM_TYPE,
    HOW_TO_TEACH,
    REQUEST_BODY,
    TEACH_BODY,
    Health,
    Known,
    Recognised,
    TaughtBody,
    Upload,
    lesson_of,
    problems,
    require_image_type,
    uploads,
)
from landmarks.serving.exchanging import (
    TeachingResult,
    can_be_taught,
    forget_landmark,
    require_teaching,
    stamp,
    teach_landmark,
    watch,
)
from landmarks.serving.front import (
    CONTENT_TYPE,
    Body,
    Counters,
    Front,
    HungUpError,
    Limits,
    Receive,
    RefusalError,
    UploadMemory,
    read_body,
    stopping,
    token_of_environment,
)
from landmarks.serving.web_page import page_that_asks
from landmarks.support.errors import UsageError

MAX_FORM_ON_LOOP = 256 * 1024
"""Larger forms are parsed in a thread, so that other requests need not wait."""


class Service:
    """The state that all paths of one application share."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.counters = Counters()
        self.memory = UploadMemory(limits.held_bytes)
        self.stopped = asyncio.Event()
        self.batches: Batches | None = None

    @property
    def queue(self) -> Batches:
        """The queue of the recogniser, which exists once the application has started."""
        if self.batches is None:
            raise RuntimeError("the application was not started: run it with a server that knows ASGI's lifespan")
        return self.batches


def create_app(
    recogniser: Answering,
    *,
    limits: Limits | None = None,
    threads: int = 2,
    token: str | None = None,
    allow_origin: Sequence[str] = (),
    place: Path | None = None,
    load: Callable[[], Answering] | None = None,
    teach: bool = False,
    device: str = "auto",
) -> FastAPI:
    """Return an ASGI application that answers with `recogniser`, for a server of your own.

    `token` is required by every path except `/`, `/healthz` and `/openapi.json`; by default it is the value of the
    environment variable `LANDMARKS_TOKEN`, if that is set. `allow_origin` names web origins whose pages may send
    requests. With `place` and `load`, the file or folder at `place` is watched; when it is replaced, the new one is
    opened with `load` and answers from then on. With `teach` as well, clients may teach landmarks to the run or export
    at `place`, on `device`. Raises `UsageError` for a token that no header can carry, and for an invalid web origin.
    """
    origins = [_origin(origin) for origin in allow_origin]
    service = Service(limits or Limits())
    initial_stamp = () if place is None else stamp(place)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batches = service.batches = Batches(recogniser, service.limits, service.counters, threads=threads)
        watcher = None
        if place is not None and load is not None:
            watcher = asyncio.create_task(watch(place, load, batches, initial_stamp))
        yield
        service.stopped.set()
        if watcher is not None:
            watcher.cancel()
        await batches.close()

    app = FastAPI(
        title="landmarks",
        version=__version__,
        description="Which landmark does an image show? No image is kept.",
        lifespan=lifespan,
        docs_url=None,  # both pages would load scripts from other servers
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name.strip("_"),
    )
    app.state.service = service
    _add_paths(app, service, place=place if load is not None else None, teach=teach)
    _add_teaching(app, service, place=place if load is not None else None, load=load, teach=teach, device=device)
    _add_errors(app, service.counters)
    app.add_middleware(Front, counters=service.counters, token=token_of_environment() if token is None else token)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"] if teach else ["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    return app


def _origin(text: str) -> str:
    """Return a web origin as browsers send it, without a final slash; raise `UsageError` if it is invalid."""
    origin = text.removesuffix("/")
    if origin not in ("*", "null") and not re.fullmatch(r"https?://[^/?#@\s]+", origin):
        raise UsageError(
            "that is no web origin, and no page would be let in", received=text,
            expected="https://app.example or http://localhost:3000, or * for every one",
        )  # fmt: skip
    return origin


def _add_paths(app: FastAPI, service: Service, *, place: Path | None, teach: bool) -> None:
    page = page_that_asks()
    policy = {"Content-Security-Policy": policy_of(page)}

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def _page() -> Response:
        return Response(page, media_type="text/html", headers=policy)

    @app.post(
        "/recognise",
        summary="Say which landmark each image shows",
        response_model=Recognised,
        responses=problems(400, 401, 408, 413, 415, 422, 500, 503),
        openapi_extra={"requestBody": REQUEST_BODY},
    )
    async def _recognise(
        request: Request,
        top: Annotated[int, Query(ge=1, le=TOP, description="Answers per image.")] = 3,
        maps: Annotated[bool, Query(description="Return a heat map for each answer.")] = False,
    ) -> Response:
        body = Body(service.memory)
        try:
            return _json(await _recognise_images(service, request, body, top, maps))
        finally:
            body.release()

    @app.get("/landmarks", summary="Everything the recogniser knows", response_model=Known, responses=problems(401))
    async def _landmarks() -> Response:
        return _json({"landmarks": _known(service.queue.served.recogniser)})

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="Is the server up?", response_model=Health)
    async def _healthz() -> Response:
        served = service.queue.served
        return _json(
            {
                "status": "ok" if served.refused is None else "stale",
                "landmarks": len(served.recogniser.names),
                "generation": served.generation,
                "refused": served.refused,
                "teach": can_be_taught(teach, place, served.recogniser),
                "version": __version__,
            }
        )

    @app.get("/metrics", summary="Numbers for Prometheus", response_class=Response, responses=problems(401))
    async def _metrics() -> Response:
        return Response(service.counters.text(), headers={"Content-Type": CONTENT_TYPE})


def _add_teaching(
    app: FastAPI,
    service: Service,
    *,
    place: Path | None,
    load: Callable[[], Answering] | None,
    teach: bool,
    device: str,
) -> None:
    @app.post(
        "/landmarks",
        summary="Teach the served run or export a landmark from a few images",
        response_model=TaughtBody,
        responses=problems(400, 401, 403, 408, 409, 413, 415, 422, 500, 503),
        openapi_extra={"requestBody": TEACH_BODY},
    )
    async def _teach(request: Request) -> Response:
        run = require_teaching(teach, place, service.queue.served.recogniser)
        assert load is not None
        content_type = request.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() != FORM_TYPE:
            raise RefusalError(415, "a landmark is taught with a form", expected=FORM_TYPE, way_out=HOW_TO_TEACH)
        body, limits = Body(service.memory), service.limits
        try:
            if service.stopped.is_set():
                raise stopping()
            await read_body(request.receive, request.headers.get("content-length"), body, limits, service.stopped)
            data, body.data = bytes(body.data), bytearray()
            lesson = await asyncio.to_thread(lesson_of, content_type, data, limits.most_files)
            del data
            async with service.queue.exchanging:
                result = await asyncio.to_thread(
                    teach_landmark, run, lesson, load, max_pixels=limits.max_pixels, device=device
                )
                return _json(_serve_result(service, result, "taught"))
        finally:
            body.release()

    @app.delete(
        "/landmarks/{name:path}",
        summary="Have the served run or export forget a landmark that it was taught",
        response_model=TaughtBody,
        responses=problems(401, 403, 404, 409, 422, 500, 503),
    )
    async def _forget(name: str) -> Response:
        run = require_teaching(teach, place, service.queue.served.recogniser)
        assert load is not None
        async with service.queue.exchanging:
            result = await asyncio.to_thread(forget_landmark, run, name, load, service.queue.served.recogniser)
            return _json(_serve_result(service, result, "forgotten"))


def _serve_result(service: Service, result: TeachingResult, outcome: str) -> dict[str, Any]:
    """Answer every batch from now on with the changed recogniser; return the body of the response."""
    generation = service.queue.served.generation + 1
    service.queue.served = ServedRecogniser(result.recogniser, generation, result.stamp)
    service.counters.lessons.labels(outcome).inc()
    skipped = [{"file": image.file, "problem": image.problem} for image in result.skipped]
    return {"landmarks": _known(result.recogniser), "passed": skipped, "generation": generation}


def _known(recogniser: Answering) -> list[dict[str, Any]]:
    """Return all landmarks of a recogniser, with the number of images for those that it was taught."""
    images = dict(zip(recogniser.learned.names, recogniser.learned.counts(), strict=True))
    pairs = zip(recogniser.landmark_ids, recogniser.names, strict=True)
    return [
        {"label": label, "landmark_id": id, "name": name, "images": images.get(name)}
        for label, (id, name) in enumerate(pairs)
    ]


async def _recognise_images(service: Service, request: Request, body: Body, top: int, maps: bool) -> dict[str, Any]:
    """Read a request, answer its images, and return the body of the response."""
    content_type = request.headers.get("content-type", "")
    require_image_type(content_type)
    if service.stopped.is_set():
        raise stopping()
    service.queue.require_places(1)  # refuses before reading the body
    await read_body(request.receive, request.headers.get("content-length"), body, service.limits, service.stopped)
    data, body.data = bytes(body.data), bytearray()
    images = (
        uploads(content_type, data, service.limits.most_files)
        if len(data) <= MAX_FORM_ON_LOOP or content_type.startswith("image/")
        else await asyncio.to_thread(uploads, content_type, data, service.limits.most_files)
    )
    del data
    answers = service.queue.answer([image.data for image in images], top, maps)
    replies = await _while_connected(request.receive, answers)
    is_raw_body = len(images) == 1 and images[0].file is None
    if is_raw_body and replies[0].recognition.problem is not None:
        raise RefusalError(
            422, replies[0].recognition.problem, way_out="send a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF image"
        )
    return {"images": [_image(image, reply, maps) for image, reply in zip(images, replies, strict=True)]}


async def _while_connected(receive: Receive, answers: Coroutine[Any, Any, list[Reply]]) -> list[Reply]:
    """Return the replies; if the client disconnects first, cancel `answers` and raise `HungUpError`."""
    answering, disconnected = asyncio.ensure_future(answers), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((answering, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise HungUpError
        return answering.result()
    finally:
        answering.cancel()
        disconnected.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _image(upload: Upload, reply: Reply, maps: bool) -> dict[str, Any]:
    image: dict[str, Any] = {
        "file": upload.file,
        "known": reply.recognition.known,
        "answers": [_answer(answer) for answer in reply.recognition.answers],
        "problem": reply.recognition.problem,
        "generation": reply.generation,
    }
    if maps and reply.explanation is not None:
        positions = {answer.label: position for position, answer in enumerate(reply.explanation.answers)}
        for answer in image["answers"]:
            at = positions.get(answer["label"])
            answer["map"] = None if at is None else reply.explanation.maps[at].astype(float).round(3).tolist()
        image["seen"] = None if reply.seen is None else [round(share, 5) for share in reply.seen]
    return image


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "label": answer.label,
        "landmark_id": answer.landmark_id,
        "name": answer.name,
        "probability": round(answer.probability, 6),
    }


def _json(value: object) -> Response:
    return Response(json.dumps(value, ensure_ascii=False, allow_nan=False), media_type="application/json")


def _add_errors(app: FastAPI, counters: Counters) -> None:
    """Answer the framework's errors with the same four facts as our own."""

    def response(refusal: RefusalError) -> Response:
        counters.refused.labels(refusal.reason).inc()
        return Response(refusal.body, refusal.status, refusal.headers)

    async def wrong_path(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = {404: "there is nothing at this path", 405: "this path is not asked in this way"}
        refusal = RefusalError(
            error.status_code,
            what.get(error.status_code, str(error.detail)),
            received=f"{request.method} {request.url.path[:100]}",
            expected="GET / /landmarks /healthz /metrics /openapi.json, POST /recognise /landmarks, "
            "DELETE /landmarks/NAME",
        )
        refusal.headers |= dict(error.headers or {})
        return response(refusal)

    async def wrong_parameter(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        what = f"the parameter {first['loc'][-1]} is wrong"
        received = str(first.get("input"))[:100]
        return response(RefusalError(422, what, received=received, expected=first["msg"], way_out="see /openapi.json"))

    app.add_exception_handler(HTTPException, wrong_path)
    app.add_exception_handler(RequestValidationError, wrong_parameter)


def policy_of(page: str) -> str:
    """Return a Content-Security-Policy that allows exactly the scripts and styles contained in `page`."""
    allowed = {kind: _digests(page, kind) for kind in ("script", "style")}
    return (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; img-src blob: data:; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )


def _digests(page: str, kind: str) -> str:
    texts = re.findall(rf"<{kind}[^>]*>(.*?)</{kind}>", page, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)
