"""The process that listens: patient with clients for a while, and its end answers who has asked."""

import asyncio
import logging
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from limbeck.errors import UserError
from limbeck.files import reason_of
from limbeck.recipes.ship.serving.guard import Guard

log = logging.getLogger("limbeck")

HEAD_BYTES = 2**14
"""Of a request line and its headers."""
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises UserError where it can't be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise UserError(
            f"Can't listen on {host}, port {port}: {reason_of(error)}. Another --port may be free; "
            "0 takes one that is."
        ) from error
    return found


class Patient(H11Protocol):
    """uvicorn's, which would wait for ever for a request's head, and for who does not read."""

    patience = 10.0
    timer: asyncio.TimerHandle | None = None
    unread: asyncio.TimerHandle

    def connection_made(self, transport: Any) -> None:
        """Called by asyncio; so are the others."""
        super().connection_made(transport)
        self.timer = self.loop.call_later(self.patience, self._give_up)

    def data_received(self, data: bytes) -> None:
        """The clock runs while no request is whole enough to be worked on."""
        super().data_received(data)
        is_asked = self.cycle is not None and not self.cycle.response_complete
        if self.timer and is_asked:
            self.timer.cancel()
            self.timer = None
        elif not self.timer and not is_asked:
            self.timer = self.loop.call_later(self.patience, self._give_up)

    def pause_writing(self) -> None:
        """The other clock runs while what was answered is not read."""
        super().pause_writing()
        self.unread = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        """Most of it has been."""
        super().resume_writing()
        self.unread.cancel()

    def timeout_keep_alive_handler(self) -> None:
        """Closing waits until all that was answered is read."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(self.patience, self.transport.abort)

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(TOO_SLOW)
            self.transport.close()


class Server(uvicorn.Server):
    """One whose first SIGTERM or SIGINT lets requests in flight be answered within ``grace``
    seconds, and refuses others; the second ends it at once. ``num_cut`` were not answered."""

    def __init__(self, guard: Guard, patience: float, grace: float) -> None:
        protocol = type("Patient", (Patient,), {"patience": patience})
        config = uvicorn.Config(
            guard, http=protocol, ws="none", loop="asyncio", lifespan="on", log_config=None,
            access_log=False, server_header=False, proxy_headers=False,
            timeout_graceful_shutdown=1, h11_max_incomplete_event_size=HEAD_BYTES,
        )  # fmt: skip
        super().__init__(config)
        self.guard, self.grace, self.num_cut = guard, grace, 0
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # a stranger's nonsense is no news

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the first signal."""
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        if self.started:
            self.loop.call_soon_threadsafe(lambda: setattr(self, "ending", self._end()))
        self.should_exit = not self.started

    def _end(self) -> asyncio.Task[None]:
        log.info("Stopping; %d requests are in flight.", self.guard.num_active)
        return asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self.grace):
                await self.guard.drain()
        except TimeoutError:
            self.num_cut = self.guard.num_active
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say where."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for each in sockets or ():
            host, port = each.getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            log.info("Open http://%s:%d/ (Ctrl-C ends it).", host, port)
