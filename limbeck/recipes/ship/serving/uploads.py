"""Images that strangers send: held in memory alone, in bounds, and known by their content."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from limbeck.data.decode import NotAnImage, TooManyPixels, read_header
from limbeck.data.source import BadImage

HELD_BYTES = 2**28
"""Of all uploads together; many slow ones could else fill the memory."""
MAX_SCANS = 100
"""Of a JPEG: each is decoded over all pixels, and a few bytes are enough for one."""
UNBOUNDED = ("AVIF", "HEIF")
"""Formats whose frames are decoded before they are held against the header."""
JPEG_START, JPEG_SCAN = b"\xff\xd8", b"\xff\xda"
BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^;"\s]{1,70}))')


class Uploads:
    """What may come in: ``max_bytes`` of ``max_pixels``, within ``patience`` seconds."""

    def __init__(self, max_bytes: int, max_pixels: int, patience: float) -> None:
        self.max_bytes, self.max_pixels, self.patience = max_bytes, max_pixels, patience
        self.held = 0

    @asynccontextmanager
    async def image(self, request: Request) -> AsyncIterator[bytes]:
        """The bytes of the image that a request brings, counted until the block ends.

        Raises HTTPException for what is too large, too slow, too much or no image, which may be
        found inside the block, too (BadImage).
        """
        body, data = bytearray(), b""
        try:
            async with asyncio.timeout(self.patience):
                await self._read(request, body)
            data = image_of(body, request.headers.get("content-type", ""))
            self.held += len(data) - len(body)
            body.clear()
            await asyncio.to_thread(self.check, data)
            yield data
        except BadImage as error:
            kinds: dict[type, int] = {NotAnImage: 415, TooManyPixels: 413}
            why = f"The image can't be read: {error}."
            raise HTTPException(kinds.get(type(error), 400), why) from None
        except TimeoutError:
            raise HTTPException(408, f"The upload took over {self.patience:g} seconds.") from None
        except ClientDisconnect:
            raise HTTPException(400, "The upload was cut off.") from None
        finally:
            self.held -= len(body) + len(data)

    async def _read(self, request: Request, body: bytearray) -> None:
        stated = request.headers.get("content-length", "")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException(415, "Send the image as it is, without a Content-Encoding.")
        if stated.isdecimal() and len(stated) < 20 and int(stated) > self.max_bytes:
            raise HTTPException(413, f"The upload is larger than {self.max_bytes} bytes.")
        async for chunk in request.stream():  # whatever was stated
            body += chunk
            self.held += len(chunk)
            if len(body) > self.max_bytes:
                raise HTTPException(413, f"The upload is larger than {self.max_bytes} bytes.")
            if self.held > HELD_BYTES:
                raise HTTPException(429, "Too many uploads at once; try again soon.")

    def check(self, data: bytes) -> None:
        """Raise BadImage for what is told before a pixel is decoded."""
        if (form := read_header(data, self.max_pixels).format) in UNBOUNDED:
            raise NotAnImage(f"{form} is not taken here; send it as JPEG or PNG")
        if data.startswith(JPEG_START) and data.count(JPEG_SCAN) > MAX_SCANS:
            raise TooManyPixels(f"it is a JPEG of more than {MAX_SCANS} scans")


def image_of(body: bytes | bytearray, content_type: str) -> bytes:
    """A copy of the image in a body: the whole, or of a form its one part. Its name is not looked
    at.

    Raises HTTPException for a form with more or less.
    """
    if not content_type.lower().startswith("multipart/"):
        return bytes(body)
    if found := BOUNDARY.search(content_type):
        mark = b"\r\n--" + (found[1] or found[2]).encode("latin-1")
        first = -2 if body.startswith(mark[2:]) else body.find(mark)  # the body's begin is a line's
        last, count = body.rfind(mark), body.count(mark) + (first == -2)
        if count == 2 and body.startswith(b"--", last + len(mark)):
            head = body.find(b"\r\n\r\n", first + len(mark), last)
            return bytes(memoryview(body)[head + 4 : last]) if head >= 0 else b""
    raise HTTPException(400, "Send a form of exactly one part, the image; or the image alone.")
