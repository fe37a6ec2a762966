"""Who is answered, what every answer carries, and what is counted."""

import asyncio
import json

import pytest

pytest.importorskip("fastapi")
from starlette.responses import PlainTextResponse

from limbeck.recipes.ship.serving import guard as module
from limbeck.recipes.ship.serving.guard import Guard, Metrics, is_loopback


async def answers(scope, receive, send):
    """An application that answers at once, to /fail never."""
    if scope["path"] == "/fail":
        raise ZeroDivisionError("of the application")
    await PlainTextResponse("fine")(scope, receive, send)


def guard_of(host="127.0.0.1", app=answers):
    return Guard(app, Metrics(), host, ["/"])


def ask(guard, path="/", host="localhost:8000", origin=None, chunks=(), more=()):
    """(status, headers, body) of a request with a body in chunks."""
    sent, left = [], list(chunks)
    headers = [(b"host", host.encode())] if host is not None else []
    headers += [*more, *([(b"origin", origin.encode())] if origin else [])]
    scope = {"type": "http", "path": path, "method": "POST", "headers": headers,
             "query_string": b"", "server": ("127.0.0.1", 8000), "scheme": "http"}  # fmt: skip

    async def receive():
        return {
            "type": "http.request",
            "body": left.pop(0) if left else b"",
            "more_body": bool(left),
        }

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    if not sent:
        return None
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], told, sent[1]["body"], left


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:8000", "LOCALHOST:1"])
def test_names_of_this_machine(host):
    status, headers, body, _ = ask(guard_of(), host=host)
    assert (status, body) == (200, b"fine")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "access-control-allow-origin" not in headers and "connection" not in headers


@pytest.mark.parametrize(
    "host", [None, "", "evil.com", "localhost.evil.com", "evil.com@localhost.x", "[::1", "a b"]
)
def test_other_names_are_refused_on_loopback_alone(host):
    status, headers, body, _ = ask(guard_of(), host=host)
    assert status == 421 and "its own machine" in json.loads(body)["error"]
    assert headers["connection"] == "close" and headers["referrer-policy"] == "no-referrer"
    assert ask(guard_of("0.0.0.0"), host=host)[0] == 200


def test_pages_of_elsewhere_are_refused():
    assert ask(guard_of(), origin="http://localhost:8000")[0] == 200
    for origin in ("http://evil.com", "null", "http://localhost:9000"):
        assert ask(guard_of(), origin=origin)[0] == 403


def test_what_is_refused_is_read_away():
    status, _, _, left = ask(guard_of(), host="evil.com", chunks=[bytes(10)] * 5)
    assert status == 421 and not left
    waits = [(b"expect", b"100-continue")]
    status, _, _, left = ask(guard_of(), host="evil.com", chunks=[bytes(10)] * 5, more=waits)
    assert status == 421 and len(left) == 5


def test_who_sends_for_ever_is_answered_all_the_same(monkeypatch):
    monkeypatch.setattr(module, "LINGER", 0.01)
    guard, sent = guard_of(), []

    async def receive():
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/", "method": "POST", "headers": [(b"host", b"evil.com")]}
    asyncio.run(guard(scope | {"query_string": b""}, receive, send))
    assert sent[0]["status"] == 421


def test_while_stopping_and_while_too_many_ask(monkeypatch):
    guard = guard_of()
    asyncio.run(guard.drain())  # nothing is in flight
    status, headers, _, _ = ask(guard)
    assert status == 503 and headers["retry-after"] == "1"
    assert ask(guard, "/health")[0] == 200
    monkeypatch.setattr(module, "MAX_REQUESTS", 0)
    assert ask(guard_of())[0] == 429


def test_draining_waits_for_who_is_in_flight():
    async def main():
        going, ends = asyncio.Event(), []

        async def app(scope, receive, send):
            await going.wait()
            ends.append("answered")

        guard = guard_of(app=app)
        scope = {"type": "http", "path": "/", "headers": [(b"host", b"localhost")]}
        flight = asyncio.create_task(guard(scope, None, None))
        await asyncio.sleep(0)
        drained = asyncio.create_task(guard.drain())
        await asyncio.sleep(0.01)
        assert not drained.done() and guard.num_active == 1
        going.set()
        await drained
        assert ends == ["answered"]
        await flight

    asyncio.run(main())


def test_faults_are_logged_and_counted(caplog):
    guard = guard_of()
    assert ask(guard, "/fail") is None
    assert "POST /fail failed: " in caplog.text
    assert "ZeroDivisionError: of the application" in caplog.text
    ask(guard)
    assert guard.metrics.requests == {("other", 500): 1, ("/", 200): 1}


def test_the_text_of_the_counts():
    metrics = Metrics()
    metrics.requests["/predict", 200] += 3
    for size in (1, 2, 3, 1000):
        metrics.add_batch(size)
    lines = metrics.text(queue_length=7).splitlines()
    assert 'limbeck_requests_total{path="/predict",status="200"} 3' in lines
    assert "limbeck_batch_size_sum 1006" in lines and "limbeck_batch_size_count 4" in lines
    assert lines[-1] == "limbeck_queue_length 7"
    assert "limbeck_request_seconds_count 3" in lines


def test_loopback():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.org")))
