"""Which image files are read, by their names and by their content.

Pillow opens whatever it knows by content alone: an EPS named x.jpg would start Ghostscript with a
stranger's program. Images are opened here and nowhere else.
"""

import io
import logging
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import PurePosixPath

from PIL import Image

log = logging.getLogger("limbeck")

# fmt: off
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF")
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2",
})
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".mts", ".3gp",
})
HEIF_PLUGINS = ("pillow_heif", "pi_heif")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# fmt: on
HEIF_ADVICE = "pip install pillow-heif, or convert them to JPEG"


def open_image(data: bytes) -> Image.Image:
    """An image of one of the formats that are read; raises whatever Pillow raises for others."""
    return Image.open(io.BytesIO(data), formats=_known_formats())


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its suffix; HEIC is one where a plug-in for it works."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in SUFFIXES or (suffix in HEIF_SUFFIXES and heif_plugin() is not None)


def format_of(start: bytes) -> str | None:
    """The format that a file's first bytes announce, None if it is none of those known."""
    known = _known_formats()
    found = (name for name in known if (accept := Image.OPEN[name][1]) and accept(start) is True)
    return next(found, "HEIF" if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS else None)


@cache
def heif_plugin() -> str | None:
    """The module by which Pillow reads HEIC from now on, if one is installed and works."""
    for name in HEIF_PLUGINS:
        if find_spec(name) is None:
            continue
        try:
            import_module(name).register_heif_opener()
        except (ImportError, OSError, AttributeError) as error:  # built for another system
            log.warning(
                "HEIC photos can't be read: the plug-in %s does not load (%s); install it again, "
                "or convert them to JPEG.", name, error,
            )  # fmt: skip
        else:
            return name
    return None


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    heif_plugin()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # an old Pillow has no AVIF
