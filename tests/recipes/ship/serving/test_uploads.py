"""What strangers send: bounded, timed, and taken by its content."""

import asyncio
import io
import struct
import zlib

import pytest
from PIL import Image

pytest.importorskip("fastapi")
from starlette.exceptions import HTTPException
from starlette.requests import Request

from limbeck.data.source import BadImage
from limbeck.recipes.ship.serving import uploads as module
from limbeck.recipes.ship.serving.uploads import Uploads, image_of


def png(size=(8, 6), form="PNG", **options):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, form, **options)
    return file.getvalue()


def request_of(*chunks, headers=(), end="whole"):
    """A request that brings these chunks; its end is whole, never or a disconnect."""
    left = [{"type": "http.request", "body": each, "more_body": True} for each in chunks]
    left.append({"type": "http.request" if end == "whole" else "http.disconnect"})

    async def receive():
        if end == "never" and len(left) == 1:
            await asyncio.Event().wait()
        return left.pop(0)

    raw = [(name.encode(), value.encode()) for name, value in headers]
    return Request({"type": "http", "headers": raw, "method": "POST", "path": "/"}, receive)


def taken(request, uploads=None, inside=None):
    """(status, what was held inside and after) of an upload."""
    uploads = uploads or Uploads(1000, 100, 0.05)

    async def main():
        async with uploads.image(request):
            if inside:
                raise inside
            return uploads.held

    try:
        return 200, asyncio.run(main()), uploads.held
    except HTTPException as error:
        assert error.detail.endswith(".") and "/" not in error.detail.replace("http/", "")
        return error.status_code, error.detail, uploads.held


def test_an_image_in_pieces():
    data = png()
    assert taken(request_of(data[:20], data[20:])) == (200, len(data), 0)


def bomb():
    """A PNG of 60000 x 60000 pixels in a few bytes."""
    size = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    head = struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))
    return b"\x89PNG\r\n\x1a\n" + head + struct.pack(">I", 0) + b"IDAT" + b"\0" * 4


def scans():
    """A progressive JPEG whose last scan comes again and again."""
    data = png((16, 16), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + 200 * data[last:-2] + b"\xff\xd9"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"garbage", 415),
        (b"P", 415),
        (b"PK\x03\x04" + bytes(100), 415),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", 415),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", 415),
        (png()[:20], 400),
        (png((20, 20)), 413),
        (png((20, 20), "GIF"), 413),
        (png((20, 20), "TIFF", compression="tiff_lzw"), 413),
        (bomb(), 413),
        (bytes(1001), 413),
    ],
)
def test_what_is_no_image_that_may_come_in(data, status):
    code, why, held = taken(request_of(data))
    assert (code, held) == (status, 0) and why


def test_a_jpeg_of_endless_scans():
    code, why, _ = taken(request_of(scans()), Uploads(100_000, 1000, 1.0))
    assert code == 413 and "100 scans" in why


def test_whatever_its_length_is_said_to_be():
    data = png()
    for said in ("0", "-5", "1e3", "9" * 5000, str(len(data))):
        assert taken(request_of(data, headers=[("content-length", said)]))[0] == 200
    assert taken(request_of(data, headers=[("content-length", "1001")]))[0] == 413
    assert taken(request_of(*[bytes(500)] * 3))[0] == 413
    assert taken(request_of(data, headers=[("content-encoding", "gzip")]))[0] == 415


def test_slow_and_gone_clients():
    code, why, held = taken(request_of(png()[:30], end="never"))
    assert (code, held) == (408, 0) and "0.05 seconds" in why
    assert taken(request_of(png()[:30], end="gone"))[0] == 400


def test_all_uploads_together_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "HELD_BYTES", 100)
    uploads = Uploads(1000, 100, 0.05)
    uploads.held = 80
    assert taken(request_of(bytes(30)), uploads) == (
        429, "Too many uploads at once; try again soon.", 80
    )  # fmt: skip


def test_what_is_found_while_it_is_decoded():
    code, why, held = taken(request_of(png()), inside=BadImage("it is truncated"))
    assert (code, why, held) == (400, "The image can't be read: it is truncated.", 0)


def form(*parts, boundary="b0", end="--"):
    text = b"".join(b"--b0\r\n" + head + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
    return text + b"--b0" + end.encode(), f"multipart/form-data; boundary={boundary}"


NAME = b'Content-Disposition: form-data; name="image"; filename="../../etc/passwd\0.png"'


def test_a_form_of_one_part_whatever_its_name():
    assert image_of(*form((NAME, b"data\r\n--b1"))) == b"data\r\n--b1"
    body, kind = b"preamble\r\n--b0\r\n\r\ndata\r\n--b0--\r\n", 'Multipart/Mixed; boundary="b0"'
    assert image_of(body, kind) == b"data"
    assert image_of(b"--b0", "image/png") == b"--b0"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        form((NAME, b"1"), (NAME, b"2")),
        form(*[(NAME, b"")] * 10_000),
        form(),
        form((NAME, b"1"), end=""),
        form((NAME, b"1"), boundary="other"),
        (b"--b0\r\n\r\n\r\n--b0--", "multipart/form-data"),
        (b"", "multipart/form-data; boundary="),
        (b"", "multipart/form-data; boundary=" + 100 * "x"),
    ],
)
def test_forms_that_are_none(body, kind):
    with pytest.raises(HTTPException, match="exactly one part"):
        image_of(body, kind)


def test_of_a_form_only_the_image_is_kept():
    body, kind = form((NAME, png()))
    asked = request_of(body[:9], body[9:], headers=[("content-type", kind)])
    assert taken(asked) == (200, len(png()), 0)


def test_forms_in_forms_are_no_image():
    body, kind = form((b"Content-Type: multipart/mixed; boundary=b1", b"--b1\r\n" * 1000))
    code, _, _ = taken(request_of(body, headers=[("content-type", kind)]), Uploads(10**5, 9, 1.0))
    assert code == 415


def test_formats_whose_header_bounds_nothing():
    with pytest.raises(BadImage, match="AVIF is not taken here"):
        Uploads(1000, 100, 1.0).check(png(form="AVIF"))
