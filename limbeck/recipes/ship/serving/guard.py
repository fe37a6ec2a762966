"""What stands before every address: who may ask, what every answer carries, and what is counted."""

import asyncio
import ipaddress
import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limbeck.errors import explain

log = logging.getLogger("limbeck")

MAX_REQUESTS = 512
"""In flight at once, uploads that are still coming among them."""
LINGER = 1.0
"""Seconds in which the rest of what is refused is read away (not of who was too slow already): who
still sends hears no answer."""
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
REFUSED = {"connection": "close", "retry-after": "1"}
"""Of 429 and 503; what a client may still send after any refusal is no next request."""


class Metrics:
    """What has been asked and answered since the start."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds = 0.0
        self.batches, self.images = 0, 0

    def add_batch(self, size: int) -> None:
        """Count one more that the network worked on."""
        self.batches += 1
        self.images += size

    def text(self, **gauges: int) -> str:
        """Prometheus' text format."""
        lines = ["# TYPE limbeck_requests_total counter"]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'limbeck_requests_total{{path="{path}",status="{status}"}} {count}')
        sums = {
            "request_seconds": (self.seconds, self.requests.total()),
            "batch_size": (self.images, self.batches),
        }
        for name, (total, count) in sums.items():
            lines.append(f"# TYPE limbeck_{name} summary")
            lines += [f"limbeck_{name}_sum {total:g}", f"limbeck_{name}_count {count}"]
        for name, value in gauges.items():
            lines += [f"# TYPE limbeck_{name} gauge", f"limbeck_{name} {value}"]
        return "\n".join([*lines, ""])


def is_loopback(host: str) -> bool:
    """Whether only this machine can ask."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """An application behind its doors; requests of ``paths`` are counted by these names.

    On loopback only names of this machine are answered: a page of elsewhere whose name is made to
    point here (DNS rebinding) could else read the answers.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, host: str, paths: Sequence[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths
        self.hosts = {host, "localhost", "127.0.0.1", "::1"} if is_loopback(host) else None
        self.is_draining, self.num_active, self.idle = False, 0, asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begin, status = time.perf_counter(), 500
        # Who waits for a word before sending has nothing on its way.
        is_read = any(name == b"expect" for name, _ in scope["headers"])

        async def received() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = not message.get("more_body")
            return message

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name.decode(): text.decode("latin-1") for name, text in message["headers"]}
                headers = HEADERS | own
                if status >= 400:
                    headers |= REFUSED if status in (429, 503) else {"connection": "close"}
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LINGER):
                            while not is_read and status != 408:
                                await received()
                message["headers"] = [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]
            await send(message)

        self.num_active += 1
        try:
            self._check(Request(scope))
            await self.app(scope, received, guarded)
        except HTTPException as error:
            answer = JSONResponse({"error": error.detail}, error.status_code)
            await answer(scope, received, guarded)
        except Exception as error:  # it has been answered with 500
            log.error("%s %s failed: %s", scope["method"], scope["path"], explain(error))
        finally:
            self.num_active -= 1
            self.idle.set()
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests[path, status] += 1
            self.metrics.seconds += time.perf_counter() - begin

    def _check(self, request: Request) -> None:
        host, origin = (request.headers.get(name) for name in ("host", "origin"))
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            name = None
        if self.hosts is not None and name not in self.hosts:
            raise HTTPException(421, "This service answers to names of its own machine alone.")
        if origin is not None and origin.partition("://")[2] != host:
            raise HTTPException(403, "This service answers no page but its own.")
        if self.is_draining and request.url.path not in ("/health", "/metrics"):
            raise HTTPException(503, "The service is stopping.")
        if self.num_active > MAX_REQUESTS:
            raise HTTPException(429, "Too many requests at once; try again soon.")

    async def drain(self) -> None:
        """Refuse what comes from now on, and wait for what is in flight."""
        self.is_draining = True
        while self.num_active:
            self.idle.clear()
            await self.idle.wait()
