"""The addresses' schemas, and the page that may ask nobody else."""

import asyncio
import base64
import hashlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi")
from limbeck.recipes.ship.serving.app import PROBLEMS, build, page
from limbeck.recipes.ship.serving.guard import Metrics


def application(**changes):
    network = SimpleNamespace(**{"is_dense": False, "gallery": None} | changes)
    return build(network, None, None, Metrics(), "127.0.0.1")


def test_every_answer_has_a_schema():
    told = application().app.openapi()
    assert sorted(told["paths"]) == ["/", "/embed", "/health", "/metrics", "/predict"]
    predict = told["paths"]["/predict"]["post"]
    assert set(predict["responses"]) == {"200", *map(str, PROBLEMS)}
    for code, answer in predict["responses"].items():
        schema = answer["content"]["application/json"]["schema"]["$ref"]
        assert schema.endswith("/Prediction" if code == "200" else "/Problem")
    assert set(predict["requestBody"]["content"]) == {
        "application/octet-stream", "image/*", "multipart/form-data"
    }  # fmt: skip
    classes = told["components"]["schemas"]["Prediction"]["properties"]["classes"]
    assert classes["description"] == "Probabilities, the likeliest class first."


def test_what_a_network_can_t_do_has_no_address():
    assert "/embed" not in application(is_dense=True).app.openapi()["paths"]
    assert "/neighbour" in application(gallery=object()).app.openapi()["paths"]


def test_neighbours_are_decoded_by_who_decodes_images():
    def picture(name):
        return threading.current_thread().name.encode()

    with ThreadPoolExecutor(1, "decoder") as decoders:
        guard = application(gallery=object(), decoders=decoders, picture=picture)
        (route,) = (each for each in guard.app.routes if each.path == "/neighbour")
        assert asyncio.run(route.endpoint("red.png")).body == b"decoder_0"


def test_nothing_of_elsewhere_is_asked_for():
    guard = application()
    assert guard.app.docs_url is None and guard.app.redoc_url is None
    telemetry = getattr(guard.app, "_telemetry", {})  # an old FastAPI has none
    assert not any(telemetry.get(name) for name in ("tracing", "metrics", "logs", "auto_configure"))
    text, policy = page()
    assert "://" not in text and "//" not in text.replace("<!", "")
    assert not re.search(r'(src|href)="(?!data:,)', text)
    assert not re.search(r"\son\w+=|style=", text.partition("<body>")[2].partition("<script>")[0])
    for tag in ("script", "style"):
        (own,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy and "default-src 'none'" in policy
