"""``limbeck serve`` as a process of its own, asked over loopback: by friends and a browser too."""

import io
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limbeck.cli import main
from limbeck.errors import UserError
from limbeck.recipes.ship import serve as verb
from limbeck.recipes.ship.serve import ServeConfig, Served, serve
from tests.processes import Started

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
CHROMIUM = Path("/usr/bin/chromium")


@contextmanager
def serving(run, folder, *words, begin=main):
    """The process, and its address once it answers; it is ended in the end."""
    started = Started(begin, ["serve", str(run), "--port", "0", *map(str, words)], folder=folder)
    try:
        found = None
        while started.process.is_alive() and not found:
            time.sleep(0.05)
            text = started.stderr.read_text() if started.stderr.exists() else ""
            found = re.search(r"http://([\d.]+):(\d+)/", text)
        assert found, started.stderr.read_text()
        yield started, found[0]
    finally:
        started.process.kill()
        started.process.join()


@pytest.fixture(scope="module")
def service(classifier, images, tmp_path_factory):
    """A small service of a classifier with a gallery, in a folder of its own."""
    limits = ("--max-bytes", 300_000, "--max-pixels", 1_000_000, "--patience", 0.5)
    folder = tmp_path_factory.mktemp("service")
    with serving(classifier, folder, "--gallery", images, *limits) as (started, address):
        yield address
        started.process.terminate()
        done = started.end(60)
        assert done.returncode == 0, done.stderr
        assert re.search(r"Stopped\. Requests answered: \d+ with 200", done.stdout)
        assert "failed" not in done.stderr
        assert not list(folder.iterdir())  # nothing has touched the disk


@pytest.fixture(scope="module")
def red(images):
    return (images / "red" / "000.png").read_bytes()


def test_an_image_however_it_is_sent(service, red):
    with httpx.Client(base_url=service) as client:
        whole = client.post("/predict?attention=true", content=red).json()
        assert next(iter(whole["classes"])) == "red" and np.shape(whole["attention"]) == (4, 4)
        assert whole["mask"] is None and len(whole["neighbours"]) == 5
        for name in ("x.png", "../../../etc/passwd", "/etc/passwd", "C:\\x\0.png", "x" * 5000):
            said = client.post("/predict?top=1", files={"image": (name, red, "text/html")})
            assert list(said.json()["classes"]) == ["red"], name
        chunked = client.post("/predict", content=iter([red[:50], red[50:]]))
        assert chunked.json()["classes"] == pytest.approx(whole["classes"])
        (nearest, *_) = whole["neighbours"]
        picture = client.get("/neighbour", params={"name": nearest})
        assert picture.headers["content-type"] == "image/jpeg"
        assert len(client.post("/embed", content=red).json()["embedding"]) == 32
        counts = client.get("/metrics").text
        assert 'limbeck_requests_total{path="/predict",status="200"}' in counts
        assert client.get("/health").json()["status"] == "ready"


def bomb(form, **options):
    file = io.BytesIO()
    Image.new("L", (3000, 3000)).save(file, form, **options)
    return file.getvalue()


def test_hostile_uploads(service, red):
    cases = [
        (b"", 400), (b"garbage", 415), (bytes(400_000), 413), (red[:-400], 400), (red[:60], 400),
        (b"PK\x03\x04" + bytes(50_000), 415), (b"<svg><image href='/etc/passwd'/></svg>", 415),
        (b"\x1f\x8b\x08" + bytes(1000), 415), (b"%!PS\n(/etc/passwd) (r) file", 415),
        (bomb("PNG"), 413), (bomb("GIF"), 413), (bomb("TIFF", compression="tiff_lzw"), 413),
        (bomb("WEBP"), 413), (bomb("BMP")[:1000], 413),
    ]  # fmt: skip
    with httpx.Client(base_url=service) as client:
        for data, status in cases:
            answer = client.post("/predict", content=data, headers={"content-type": "image/png"})
            assert answer.status_code == status, data[:20]
            assert set(answer.json()) == {"error"} and "passwd" not in answer.text
        many = [("image", (f"{n}.png", red)) for n in range(20)]
        assert client.post("/predict", files=many).status_code == 400
        for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.html", "/docs"):
            assert client.get(path).status_code == 404
        for name in ("../classifier/student.json", "/etc/passwd", "red"):
            assert client.get("/neighbour", params={"name": name}).status_code == 404
        assert client.get("/", headers={"host": "evil.com"}).status_code == 421
        assert client.post("/predict", content=red).status_code == 200


POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (POST + b"Content-Length: 100\r\n\r\nshort", 408),
        (POST + b"Content-Length: 99999999999\r\n\r\nshort", 413),
        (POST + b"Content-Length: 5\r\n\r\nlonger than that\r\n\r\n", 415),
        (POST + b"Content-Length: -5\r\n\r\n", 400),
        (POST + b"Content-Length: 5\r\nContent-Length: 9\r\n\r\nwhole", 400),
        (CHUNKED + b"5\r\nhello\r\n", 408),
        (CHUNKED + b"zzz\r\n", 400),
        (CHUNKED + 80 * (b"1388\r\n" + bytes(5000) + b"\r\n"), 413),
        (b"POST /predict HTTP/1.1\r\nHost: loc", 408),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nx: " + bytes(20_000), 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01 no HTTP at all\r\n\r\n", 400),
    ],
)  # fmt: skip
def test_clients_that_are_slow_or_lie(service, red, sent, status):
    """Each is answered and cut off, and nobody else has to wait for it."""
    host, port = re.findall(r"[\d.]+", service)
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(sent)
        assert httpx.post(f"{service}predict", content=red).status_code == 200
        answer = b""
        while part := client.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 %d " % status)


def test_who_asks_and_does_not_read_is_cut_off(service):
    host, port = re.findall(r"[\d.]+", service)
    client = socket.create_connection((host, int(port)), timeout=60)
    with client, pytest.raises(ConnectionError):
        while True:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
    assert httpx.get(f"{service}health").json()["status"] == "ready"


def test_many_clients_at_once(service, red):
    def ask(number):
        with httpx.Client(base_url=service, timeout=60) as client:
            return [client.post("/predict", content=red).status_code for _ in range(2)]

    with ThreadPoolExecutor(64) as pool:
        found = [status for each in pool.map(ask, range(64)) for status in each]
    assert len(found) == 128 and set(found) <= {200, 429}
    assert found.count(200) > 64


def test_its_own_schemas_hold(service):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    wanted = [
        not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
        checks.response_schema_conformance,
    ]  # fmt: skip
    schema = schemathesis.openapi.from_url(f"{service}openapi.json")
    seen = set()
    for operation in (each.ok() for each in schema.get_all_operations()):

        @settings(
            max_examples=25, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def asked(case):
            case.call_and_validate(checks=wanted)
            seen.add(case.path)

        asked()
    assert seen == {"/", "/predict", "/embed", "/neighbour", "/health", "/metrics"}


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}, in which the page is tested (Debian: apt install chromium)")
    with playwright.sync_playwright() as tool:
        found = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def test_the_page_in_a_browser(service, images, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(service)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.set_input_files("#file", images / "red" / "000.png")
    page.wait_for_selector("#classes li")
    assert page.locator("#classes li").first.inner_text().startswith("red")
    assert page.locator("#classes i").first.bounding_box()["width"] > 50
    assert "000.png: 40 × 36 pixels" in page.inner_text("#say")
    assert page.get_by_role("img", name="Your image 000.png, most of all red").is_visible()
    page.wait_for_function("[...document.images].every(each => each.naturalWidth === 128)")
    assert page.get_by_role("img", name="Neighbour red/000.png").is_visible()
    before = page.evaluate("document.getElementById('picture').toDataURL()")
    page.get_by_label("Attention").fill("0")
    assert page.evaluate("document.getElementById('picture').toDataURL()") != before
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing to the side
    drop = """text => {
        const data = new DataTransfer();
        data.items.add(new File([text], "letter.txt"));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
    }"""
    page.evaluate(drop, "x".ljust(400_000))
    page.get_by_role("alert").filter(has_text="letter.txt has 1 MiB").wait_for()
    assert not said
    page.evaluate(drop, "no image")
    page.get_by_role("alert").filter(has_text="not an image file").wait_for()
    assert all("415" in each for each in said)  # the browser's own word on it
    assert all(url.startswith((service, "blob:", "data:")) for url in asked)
    page.close()


def test_boxes_on_the_page(detector, objects, browser, tmp_path):
    with serving(detector, tmp_path) as (started, address):
        page = browser.new_page()
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        page.set_input_files("#file", objects / "000.png")
        page.wait_for_selector("#boxes li")
        assert "bright" in page.inner_text("#boxes") or "red" in page.inner_text("#boxes")
        assert page.locator("#boxes i").first.bounding_box()["width"] > 4
        assert page.locator("#of-classes").is_hidden() and page.locator("#nothing").is_hidden()
        page.close()
        started.process.terminate()
        assert started.end(60).returncode == 0
    assert not said


def half_sent(address, data):
    """A connection with half of an image on its way, of which the service knows."""
    host, port = re.findall(r"[\d.]+", address)
    client = socket.create_connection((host, int(port)), timeout=60)
    client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(data) + data[:100])
    held = 0
    while not held:
        held = int(re.search(r"upload_bytes (\d+)", httpx.get(f"{address}metrics").text)[1])
    return client


def test_its_end_answers_who_is_in_flight_and_refuses_others(teacher, red, tmp_path):
    with serving(teacher, tmp_path, "--grace", 60) as (started, address):
        client = half_sent(address, red)
        started.process.terminate()
        while httpx.get(f"{address}health").json()["status"] != "draining":
            pass
        late = httpx.post(f"{address}predict", content=red)
        assert late.status_code == 503 and late.headers["retry-after"] == "1"
        client.sendall(red[100:])
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        client.close()
        done = started.end(60)
        assert done.returncode == 0 and "1 requests are in flight" in done.stderr


def stuck(words):
    """The service of a network that never answers."""
    from limbeck.recipes.ship.serving.network import Network

    Network.__call__ = lambda *_: time.sleep(600)
    main(words)


def test_its_end_does_not_wait_for_ever(teacher, red, tmp_path):
    with serving(teacher, tmp_path, "--grace", 0.1, begin=stuck) as (started, address):
        client = half_sent(address, red)
        client.sendall(red[100:])
        while "batch_size_count 1" not in httpx.get(f"{address}metrics").text:
            pass
        started.process.terminate()
        done = started.end(60)
        assert done.returncode == 1
        assert "1 requests were not answered in 0.1 s." in done.stderr
        client.close()


def test_a_second_signal_ends_it_at_once(teacher, red, tmp_path):
    with serving(teacher, tmp_path, "--grace", 600, "--patience", 600) as (started, address):
        client = half_sent(address, red)
        started.process.terminate()
        while httpx.get(f"{address}health").json()["status"] != "draining":
            pass
        started.process.terminate()
        assert started.end(60).returncode == -signal.SIGTERM
        client.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": ""}, "run: limbeck serve RUN"),
        ({"network": "nowhere"}, "nowhere does not exist"),
        ({"file": Path("nowhere.onnx")}, r"--file: nowhere\.onnx does not exist"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_read(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        serve(ServeConfig(**{"network": str(tmp_path)} | changes))


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr(verb.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'limbeck\[serve\]'"):
        serve(ServeConfig(network="."))


def test_options_of_segmenters_are_refused(teacher, scenes):
    changed = ServeConfig(network=str(teacher), port=0, maps=verb.ShownMapOptions(flip=True))
    with pytest.raises(UserError, match="maps has no effect"):
        serve(changed)


def test_the_report():
    assert verb.report(Served({429: 1, 200: 3})) == (
        "Stopped. Requests answered: 3 with 200, 1 with 429."
    )
    assert verb.report(Served({})).endswith("none.")
