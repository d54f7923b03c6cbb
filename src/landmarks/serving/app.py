"""The HTTP interface: images in, answers out, and the page that asks for them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException

from landmarks import __version__
from landmarks.recognition.answers import Answer
from landmarks.serving.batching import TOP, Answering, Batches, Reply, ServedRecogniser
from landmarks.serving.counters import CONTENT_TYPE, Counters
from landmarks.serving.forms import FORM_TYPE, HOW_TO_TEACH, Upload, lesson_of, require_image_type, uploads
from landmarks.serving.front import Front, token_of_environment
from landmarks.serving.reloading import keep_up, stamp
from landmarks.serving.request_limits import Body, Held, HungUpError, Limits, Receive, RefusalError, read_body, stopping
from landmarks.serving.schemas import REQUEST_BODY, TEACH_BODY, Health, Known, Recognised, TaughtBody, problems
from landmarks.serving.teaching import TeachingResult, can_be_taught, forget_landmark, require_teaching, teach_landmark
from landmarks.serving.web_page import page_that_asks
from landmarks.support.errors import UsageError

MAX_FORM_ON_LOOP = 256 * 1024
"""A form beyond this is taken apart in a thread, so that no other request waits for it."""


class Service:
    """What the paths of one application share, from its start to its end."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.counters = Counters()
        self.held = Held(limits.held_bytes)
        self.stopped = asyncio.Event()
        self.batches: Batches | None = None

    @property
    def queue(self) -> Batches:
        """The queue before the recogniser; there is none before the application has started."""
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

    `token` is what every path but `/`, `/healthz` and `/openapi.json` then wants; None: what `LANDMARKS_TOKEN` holds,
    if anything. `allow_origin` names web origins whose pages may ask. With `place` and `load`, a recogniser that is put
    in place of the one there is opened by `load` and asked from then on; with `teach` too, whoever may ask may
    teach the run, or export, at `place` landmarks, on `device`. Raises `UsageError` for a token that no header
    can carry, and for what is no web origin.
    """
    origins = [_origin(one) for one in allow_origin]
    service = Service(limits or Limits())
    seen = () if place is None else stamp(place)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batches = service.batches = Batches(recogniser, service.limits, service.counters, threads=threads)
        watching = None
        if place is not None and load is not None:
            watching = asyncio.create_task(keep_up(place, load, batches, seen))
        yield
        service.stopped.set()
        if watching is not None:
            watching.cancel()
        await batches.close()

    app = FastAPI(
        title="landmarks",
        version=__version__,
        description="Which landmark does an image show? No image is kept.",
        lifespan=lifespan,
        docs_url=None,  # both pages would fetch their scripts from somebody else's server
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


def _origin(given: str) -> str:
    """Return a web origin as browsers send it, without the slash that addresses end with; raise for what is none."""
    origin = given.removesuffix("/")
    if origin not in ("*", "null") and not re.fullmatch(r"https?://[^/?#@\s]+", origin):
        raise UsageError(
            "that is no web origin, and no page would be let in", received=given,
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
        body = Body(service.held)
        try:
            return _json(await _answered(service, request, body, top, maps))
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
        body, limits = Body(service.held), service.limits
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
    """Return everything that a recogniser knows, and how many images it was taught with, if it was."""
    images = dict(zip(recogniser.learned.names, recogniser.learned.counts(), strict=True))
    pairs = zip(recogniser.landmark_ids, recogniser.names, strict=True)
    return [
        {"label": label, "landmark_id": id, "name": name, "images": images.get(name)}
        for label, (id, name) in enumerate(pairs)
    ]


async def _answered(service: Service, request: Request, body: Body, top: int, maps: bool) -> dict[str, Any]:
    """Read a request, have its images answered, and return the body of the response."""
    content_type = request.headers.get("content-type", "")
    require_image_type(content_type)
    if service.stopped.is_set():
        raise stopping()
    service.queue.require_places(1)  # before a byte of the body is read
    await read_body(request.receive, request.headers.get("content-length"), body, service.limits, service.stopped)
    data, body.data = bytes(body.data), bytearray()
    images = (
        uploads(content_type, data, service.limits.most_files)
        if len(data) <= MAX_FORM_ON_LOOP or content_type.startswith("image/")
        else await asyncio.to_thread(uploads, content_type, data, service.limits.most_files)
    )
    del data
    replies = await _while_connected(request.receive, service.queue.answer([one.data for one in images], top, maps))
    alone = replies[0].found.problem if len(images) == 1 and images[0].file is None else None
    if alone is not None:
        raise RefusalError(422, alone, way_out="send a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF image")
    return {"images": [_image(one, reply, maps) for one, reply in zip(images, replies, strict=True)]}


async def _while_connected(receive: Receive, answer: Any) -> list[Reply]:
    """Return the replies; when the client hangs up first, take its images out of the queue and raise `HungUpError`."""
    answering, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_hung_up(receive))
    try:
        await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise HungUpError
        replies: list[Reply] = answering.result()
        return replies
    finally:
        answering.cancel()
        gone.cancel()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _image(upload: Upload, reply: Reply, maps: bool) -> dict[str, Any]:
    image: dict[str, Any] = {
        "file": upload.file,
        "known": reply.found.known,
        "answers": [_answer(one) for one in reply.found.answers],
        "problem": reply.found.problem,
        "generation": reply.generation,
    }
    if maps and reply.explained is not None:
        drawn = {one.label: at for at, one in enumerate(reply.explained.answers)}
        for answer in image["answers"]:
            at = drawn.get(answer["label"])
            answer["map"] = None if at is None else reply.explained.maps[at].astype(float).round(3).tolist()
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
    """Make every error of the framework a body of four facts, like our own."""

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
        given = str(first.get("input"))[:100]
        return response(RefusalError(422, what, received=given, expected=first["msg"], way_out="see /openapi.json"))

    app.add_exception_handler(HTTPException, wrong_path)
    app.add_exception_handler(RequestValidationError, wrong_parameter)


def policy_of(page: str) -> str:
    """Return the Content-Security-Policy of a page whose scripts and styles stand in it: those, and no others, run."""
    allowed = {kind: _digests(page, kind) for kind in ("script", "style")}
    return (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; img-src blob: data:; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )


def _digests(page: str, kind: str) -> str:
    found = re.findall(rf"<{kind}[^>]*>(.*?)</{kind}>", page, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found)
