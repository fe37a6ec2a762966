"""The addresses of the service, and what each takes and gives."""

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from limbeck import __version__
from limbeck.recipes.ship.serving.batching import Batcher
from limbeck.recipes.ship.serving.guard import Guard, Metrics
from limbeck.recipes.ship.serving.network import Asked, Network
from limbeck.recipes.ship.serving.uploads import Uploads

Share = Annotated[float, Field(ge=0, le=1)]
Shares = dict[str, Share]


class Problem(BaseModel):
    """Why there is no answer."""

    error: str


class Box(BaseModel):
    """An object: its class, how sure that is, and left, top, width and height in pixels."""

    class_: Annotated[str, Field(alias="class")]
    score: Share
    box: Annotated[list[float], Field(min_length=4, max_length=4)]


class Prediction(BaseModel):
    """What the network says of an image of ``width`` x ``height`` pixels, turned upright; null is
    what it can't say, or was not asked for."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    width: int
    height: int
    seen: Annotated[list[float], Field(min_length=4, max_length=4)] | None = None
    """Left, top, width and height of what it saw, in parts of the image's; all of it where null."""
    classes: Shares | None = None
    """Probabilities, the likeliest class first."""
    neighbours: dict[str, Annotated[float, Field(ge=-1, le=1)]] | None = None
    """Cosine similarities, the nearest image of the gallery first."""
    mask: str | None = None
    """The class of each pixel, in base64 a PNG of indices."""
    shares: Shares | None = None
    """Of the classes in the mask, the largest first."""
    boxes: list[Box] | None = None
    """Objects, the surest first."""
    colours: dict[str, str] | None = None
    """Of the classes in the mask, as the PNG has them, or of the boxes."""
    attention: list[list[Share]] | None = None
    """In rows over what was seen: where the last block looks; most is 1."""


class Embedding(BaseModel):
    """The vector of an image."""

    embedding: list[float]


class Health(BaseModel):
    """Whether requests are taken, and by what network."""

    status: Literal["ready", "draining"]
    network: str
    weight_hash: str | None
    runtime: str
    max_bytes: int


PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem} for code in (400, 403, 404, 408, 413, 415, 421, 422, 429, 500, 503)
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
FORM = {"type": "object", "properties": {"image": BINARY["schema"]}, "required": ["image"]}
KINDS = {
    "application/octet-stream": BINARY,
    "image/*": BINARY,
    "multipart/form-data": {"schema": FORM},
}
IMAGE = {"requestBody": {"required": True, "content": KINDS}}
"""An image is known by its first bytes, whatever its Content-Type."""
Top = Annotated[int, Query(ge=1, le=1000, description="Classes, and neighbours, at most.")]
NO_TELEMETRY: dict[str, Any] = dict.fromkeys(
    ("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False
)


def page() -> tuple[str, str]:
    """The page, and the Content-Security-Policy that allows its own script and style alone."""
    text = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    policy = "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; "
    for tag in ("script", "style"):
        own = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[0]
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        policy += f"{tag}-src 'sha256-{digest}'; "
    return text, policy + "form-action 'none'; frame-ancestors 'none'"


def build(
    network: Network, batcher: Batcher, uploads: Uploads, metrics: Metrics, host: str
) -> Guard:
    """The whole service, behind its guard."""

    @asynccontextmanager
    async def working(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    app = FastAPI(
        title="limbeck serve", version=__version__, lifespan=working, responses=PROBLEMS,
        docs_url=None, redoc_url=None,  # they would load scripts of elsewhere
        telemetry=NO_TELEMETRY, redirect_slashes=False,
    )  # fmt: skip

    async def ask(request: Request, **wanted: Any) -> dict[str, Any]:
        async with uploads.image(request) as data:
            return await batcher.ask(Asked(data, **wanted))

    @app.post("/predict", openapi_extra=IMAGE)
    async def predict(request: Request, top: Top = 5, attention: bool = False) -> Prediction:
        """What the network says of an image."""
        return Prediction(**await ask(request, top=top, attention=attention))

    if not network.is_dense:

        @app.post("/embed", openapi_extra=IMAGE)
        async def embed(request: Request) -> Embedding:
            """The vector of an image."""
            return Embedding(**await ask(request, embedding=True))

    if network.gallery:
        jpeg: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": BINARY}}}

        @app.get("/neighbour", response_class=Response, responses=jpeg)
        async def neighbour(name: str) -> Response:
            """A small picture of an image of the gallery, by its name in an answer."""
            loop = asyncio.get_running_loop()  # its own threads decode any number at a time
            picture = await loop.run_in_executor(network.decoders, network.picture, name)
            if picture is None:
                raise HTTPException(404, "There is no such image")
            return Response(picture, media_type="image/jpeg")

    text, policy = page()

    @app.get("/", response_class=HTMLResponse)
    async def home() -> HTMLResponse:
        """A page to drop an image on."""
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """Whether requests are taken."""
        response.status_code = 503 if guard.is_draining else 200
        return Health(
            status="draining" if guard.is_draining else "ready", max_bytes=uploads.max_bytes,
            network=network.facts.architecture["name"], runtime=network.runtime,
            weight_hash=network.facts.origin.get("weight_hash"),
        )  # fmt: skip

    @app.get("/metrics", response_class=PlainTextResponse)
    async def counts() -> PlainTextResponse:
        """Counts in Prometheus' text format."""
        gauges = {"queue_length": batcher.queue.qsize(), "upload_bytes": uploads.held}
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return PlainTextResponse(metrics.text(**gauges), media_type=kind)

    async def failed(request: Request, error: Any) -> JSONResponse:
        status, why, headers = 500, "The service met a fault; its log says more.", None
        if isinstance(error, RequestValidationError):
            first = error.errors()[0]
            status, why = 422, f"'{first['loc'][-1]}': {first['msg']}."
        elif isinstance(error, HTTPException):
            status, why, headers = error.status_code, error.detail, error.headers
        return JSONResponse({"error": why}, status, headers)

    for kind in (HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, failed)
    guard = Guard(app, metrics, host, [each.path for each in app.routes])
    return guard
