"""``limbeck serve``: a small HTTP service for a finished network, and a page to try it.

Imports of torch, and of the extra "serve", are inside the functions.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic
import tyro

from limbeck.config import NumThreads, PositiveInt, Probability, options
from limbeck.errors import CutError, UserError, require_extra
from limbeck.recipes.run import checks
from limbeck.recipes.ship.options import ShownMapOptions

log = logging.getLogger("limbeck")

PACKAGES = ("fastapi", "uvicorn")
Seconds = Annotated[float, pydantic.Field(gt=0, le=3600)]


@options
class ServeConfig:
    """Answer images over HTTP: POST /predict gives JSON, and / is a page to drop an image on."""

    network: Annotated[str, tyro.conf.Positional] = ""
    """The finished network: a run's folder."""
    file: Path | None = None
    """What limbeck export has written of it, to answer in PyTorch's place; its JSON lies beside."""
    gallery: str = ""
    """Images (whatever --data of a training takes) of which the nearest are shown."""

    host: str = "127.0.0.1"
    """The address to listen on; another than this machine's own lets others ask."""
    port: Annotated[int, pydantic.Field(ge=0, le=65535)] = 8000
    """0 takes a free one."""
    threads: NumThreads | None = None
    """Of the network; all cores if not given."""
    batch_size: Annotated[int, pydantic.Field(gt=0, le=1024)] = 16
    """The most images that are worked on together."""
    window: Probability = 0.002
    """Seconds that the first image waits for others."""
    queue: Annotated[int, pydantic.Field(gt=0, le=4096)] = 64
    """Images that may wait; more are refused (429)."""
    max_bytes: PositiveInt = 20 * 2**20
    """Of an upload."""
    max_pixels: Annotated[int, pydantic.Field(gt=0, le=178_000_000)] = 50_000_000
    """Of an image, read in its header before it is decoded."""
    patience: Seconds = 10.0
    """Seconds that an upload may take (408)."""
    grace: Seconds = 10.0
    """Seconds in which SIGTERM or Ctrl-C lets requests in flight be answered; a second one does
    not."""

    maps: ShownMapOptions = ShownMapOptions()


@dataclass(frozen=True)
class Served:
    """How many requests were answered, by status."""

    requests: dict[int, int]


def check(config: ServeConfig) -> None:
    """All that can be wrong without reading the network; raises UserError."""
    checks.check_one_process("serve is one process")
    if not config.network:
        raise UserError("A network is needed; run: limbeck serve RUN.")
    for each in PACKAGES:
        if not importlib.util.find_spec(each):
            raise require_extra(each, "serve", "limbeck serve")
    checks.check_path(config.network, "limbeck serve")
    if config.file:
        checks.check_path(str(config.file), "--file")


def serve(config: ServeConfig) -> Served:
    """Serve until SIGTERM or Ctrl-C.

    Raises UserError for what can't be served, and CutError where requests in flight were not
    answered in time.
    """
    check(config)
    from limbeck.limits import num_cores
    from limbeck.recipes.ship.serving.app import build
    from limbeck.recipes.ship.serving.batching import Batcher
    from limbeck.recipes.ship.serving.guard import Metrics, is_loopback
    from limbeck.recipes.ship.serving.network import Network
    from limbeck.recipes.ship.serving.server import Server, listen
    from limbeck.recipes.ship.serving.uploads import Uploads

    with listen(config.host, config.port) as place:
        if not is_loopback(config.host):
            log.warning(
                "Whoever reaches %s can ask: there is no password and no encryption here; put a "
                "proxy with both before it.", config.host,
            )  # fmt: skip
        network = Network(
            config.network, config.file, gallery=config.gallery, maps=config.maps,
            threads=config.threads or num_cores(), max_pixels=config.max_pixels,
        )  # fmt: skip
        if not network.is_dense:
            checks.check_unset(config, ["maps"], f"on {config.network}, which sees centre crops")
        metrics = Metrics()
        waits: dict[str, Any] = {"window": config.window, "capacity": config.queue}
        batcher = Batcher(network, largest=config.batch_size, seen=metrics.add_batch, **waits)
        uploads = Uploads(config.max_bytes, config.max_pixels, config.patience)
        guard = build(network, batcher, uploads, metrics, config.host)
        server = Server(guard, config.patience, config.grace)
        server.run([place])
    if server.num_cut:
        raise CutError(f"{server.num_cut} requests were not answered in {config.grace:g} s.")
    requests: dict[int, int] = {}
    for (_, status), count in metrics.requests.items():
        requests[status] = requests.get(status, 0) + count
    return Served(requests)


def report(done: Served) -> str:
    """What was answered, for the command line."""
    counts = ", ".join(f"{count} with {status}" for status, count in sorted(done.requests.items()))
    return f"Stopped. Requests answered: {counts or 'none'}."
