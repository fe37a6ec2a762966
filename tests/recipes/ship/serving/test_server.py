"""Where the service listens, and with whom it has no patience; its end is of ``test_serve.py``."""

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi")
import uvicorn

from limbeck.errors import UserError
from limbeck.recipes.ship.serving.server import TOO_SLOW, Patient, Server, listen


def test_a_free_port_a_taken_one_and_no_address():
    with listen("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        assert port > 0
        with pytest.raises(UserError, match=f"port {port}: Address already in use"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match="Can't listen on 192.0.2.1"):
        listen("192.0.2.1", 0)


def test_a_signal_before_it_listens_ends_it(monkeypatch):
    set_back = []
    monkeypatch.setattr("signal.signal", lambda number, handler: set_back.append(number))
    server = Server(SimpleNamespace(), 1.0, 1.0)
    server.handle_exit(15, None)
    assert server.should_exit and len(set_back) == 2


class Transport(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.written, self.is_closed = b"", False

    def write(self, data):
        self.written += data

    def close(self):
        self.is_closed = True

    abort = close

    def is_closing(self):
        return self.is_closed


def test_who_sends_no_whole_head_is_told_so():
    async def main():
        config = uvicorn.Config(None, http=Patient, ws="none", log_config=None)
        config.load()
        state = SimpleNamespace(connections=set(), tasks=set(), default_headers=[])
        protocol, transport = Patient(config, state, {}), Transport()
        protocol.patience = 0.01
        protocol.connection_made(transport)
        protocol.data_received(b"GET / HTTP/1.1\r\n")
        protocol.data_received(b"x-slow: 1\r\n")
        await asyncio.sleep(0.05)
        assert transport.written == TOO_SLOW and transport.is_closed
        protocol._give_up()
        assert transport.written == TOO_SLOW

    asyncio.run(main())
