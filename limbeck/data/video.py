"""Videos: read frame by frame as a stream, upright, and written. Needs the extra "video"."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from limbeck.data.formats import VIDEO_SUFFIXES
from limbeck.data.source import BadImage
from limbeck.errors import require_extra
from limbeck.files import open_file, write_whole

CLOCK = Fraction(1, 60_000)  # seconds, in which what is written counts; MPEG-4 has 16 bits


class Frame(NamedTuple):
    """``number`` counts the frames of the file from 0, ``pixels`` (H, W, 3) uint8 RGB."""

    number: int
    seconds: float
    pixels: np.ndarray


def is_video(file: Path) -> bool:
    """By its name."""
    return file.suffix.lower() in VIDEO_SUFFIXES


def count_frames(file: Path) -> int:
    """About how many frames a video has, as it says itself; 0 where that can't be known."""
    try:
        with _opened(file, 2**31) as (container, stream):
            seconds = (container.duration or 0) / import_av().time_base
            return int(stream.frames or seconds * float(stream.average_rate or 0))
    except BadImage:
        return 0


def read_frames(file: Path, every: int, max_pixels: int, start: int = 0) -> Iterator[Frame]:
    """Each ``every``-th frame of a video from frame ``start`` on, none of them kept.

    Raises BadImage for what is no video, is larger than ``max_pixels``, or is damaged: then after
    the frames that are before the damage.
    """
    number = 0
    with _opened(file, max_pixels) as (container, stream):
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or 25)
        try:
            for frame in container.decode(stream):
                if number >= start and number % every == 0:
                    pixels = frame.to_ndarray(format="rgb24")
                    if frame.rotation:  # a phone that was held upright
                        pixels = np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
                    seconds = number / rate if frame.time is None else float(frame.time)
                    yield Frame(number, round(seconds, 6), pixels)
                number += 1
        except import_av().FFmpegError as error:
            raise BadImage(f"damaged after {number} frames: {error.strerror}") from error


def write_video(file: Path, pictures: Iterable[tuple[float, Image.Image]]) -> None:
    """An MP4 of (seconds, picture) pairs, in order; the first one's size is that of all.

    Raises RunError where the disk is full or refuses.
    """

    def write(target: BinaryIO) -> None:
        av = import_av()
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        with av.open(target, "w", format="mp4") as container:
            stream = container.add_stream(codec, rate=30, options={"preset": "veryfast"})
            stream.pix_fmt, stream.codec_context.time_base = "yuv420p", CLOCK
            canvas, last = None, -1
            for seconds, picture in pictures:
                if canvas is None:  # its sides have to be even
                    stream.width, stream.height = (side + side % 2 for side in picture.size)
                canvas = Image.new("RGB", (stream.width, stream.height), "white")
                canvas.paste(picture)
                frame = av.VideoFrame.from_image(canvas)
                frame.pts, frame.time_base = max(last + 1, round(seconds / CLOCK)), CLOCK
                last = frame.pts
                container.mux(stream.encode(frame))
            if canvas is not None:
                container.mux(stream.encode())

    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, write)


def import_av() -> Any:
    """PyAV, or a UserError that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise require_extra("av", "video", "A video") from error
    return av


@contextmanager
def _opened(file: Path, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """A video's container and its stream of pictures; raises BadImage for what is none."""
    av = import_av()
    with ExitStack() as stack:
        try:
            # Of an opened file, or a playlist might lead elsewhere.
            container = stack.enter_context(av.open(stack.enter_context(open_file(file))))
        except (av.FFmpegError, OSError) as error:
            raise BadImage(f"it can't be opened as a video: {error.strerror}") from error
        if not container.streams.video:
            raise BadImage("it has no pictures")
        stream = container.streams.video[0]
        if not 0 < stream.width * stream.height <= max_pixels:
            size = f"{stream.width} x {stream.height}"
            raise BadImage(f"{size} pixels are more than the limit of {max_pixels}")
        yield container, stream
