import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from limbeck.data import formats
from limbeck.data.decode import decode_as_stored, decode_image, read_header
from limbeck.data.formats import FORMATS, format_of, is_image_name, open_image
from limbeck.data.source import BadImage
from tests.data.images import encode, photo

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


@pytest.fixture(autouse=True)
def _no_plugin(monkeypatch):
    monkeypatch.setattr(formats, "HEIF_PLUGINS", ("a_plug_in_for_tests",))
    caches = (formats.heif_plugin, formats._known_formats)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_image_names():
    assert is_image_name("a/b.JPG") and is_image_name("b.tiff")
    assert not is_image_name("jpg") and not is_image_name("a.jpg.txt")
    assert not is_image_name("a.eps") and not is_image_name("a.heic")


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "HEIF"])
def test_formats_are_known_by_their_content(name):
    data = encode(photo(), name)
    assert open_image(data).format == name == format_of(data[:16])


@pytest.mark.parametrize("read", [decode_image, decode_as_stored, read_header])
def test_an_eps_by_another_name_starts_nothing(monkeypatch, read):
    """Pillow itself would start Ghostscript with it."""

    def refuse(*arguments, **named):
        raise AssertionError("a process was started")

    for function in ("Popen", "check_call", "run"):
        monkeypatch.setattr(subprocess, function, refuse)
    with pytest.raises(BadImage, match="not an image file, or of an unknown format"):
        read(EPS, 10**6)
    assert format_of(EPS[:16]) is None


@pytest.mark.parametrize("name", ["TGA", "ICO", "PCX", "SGI", "PDF", "DDS"])
def test_other_formats_are_not_read(name):
    with pytest.raises(BadImage, match="unknown format"):
        decode_image(encode(photo(), name), 10**6)


def test_heic_without_a_plug_in_is_told():
    assert format_of(HEIC[:16]) == "HEIF"
    with pytest.raises(BadImage, match="HEIC photo.*pip install pillow-heif"):
        decode_image(HEIC, 10**6)


PLUGIN = """
from PIL import Image, ImageFile

class HeifFile(ImageFile.ImageFile):
    format = "HEIF"
    def _open(self):
        self._mode, self._size = "RGB", (3, 2)
    def load(self):
        self.im = Image.new("RGB", (3, 2), (1, 2, 3)).im
        return super().load()

def register_heif_opener():
    Image.register_open("HEIF", HeifFile, lambda start: start[4:12] == b"ftypheic")
"""


def test_a_plug_in_for_heic_is_used(tmp_path, monkeypatch):
    (tmp_path / "a_plug_in_for_tests.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    for registered in ("OPEN", "ID"):
        monkeypatch.setattr(Image, registered, getattr(Image, registered).copy())
    assert is_image_name("a.HEIC") and is_image_name("b.heif")
    assert decode_image(HEIC, 10**6).tolist() == [[[1, 2, 3]] * 3] * 2
    del sys.modules["a_plug_in_for_tests"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("raise ImportError('libheif.so.1: no such file')", "libheif"),
        ("raise OSError('of another machine')", "of another machine"),
        ("", "register_heif_opener"),
    ],
)
def test_a_plug_in_that_does_not_load_is_none(tmp_path, monkeypatch, caplog, content, reason):
    (tmp_path / "a_plug_in_for_tests.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "a_plug_in_for_tests", raising=False)
    assert not is_image_name("a.heic") and not is_image_name("b.heic")
    assert open_image(encode(photo())).format == "JPEG"
    with pytest.raises(BadImage, match="HEIC photo"):
        decode_image(HEIC, 10**6)
    (record,) = caplog.records
    assert reason in record.message and "install it again" in record.message
    sys.modules.pop("a_plug_in_for_tests", None)


def chunk(kind, content, check=None):
    check = zlib.crc32(kind + content) if check is None else check
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def test_pixels_count_and_metadata_does_not():
    image = photo(9, 7)
    png = encode(image, "PNG")
    head, rest = png[:33], png[33:]
    turned = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    beside = {
        "a text that unpacks to much": chunk(b"zTXt", b"c\0\0" + zlib.compress(b"y" * 3_000_000)),
        "a text that does not unpack": chunk(b"zTXt", b"c\0\0" + b"no zlib"),
        "a profile that unpacks to much": chunk(b"iCCP", b"c\0\0" + zlib.compress(bytes(3 << 20))),
        "a wrong check sum": chunk(b"tEXt", b"a\0b", check=1),
        "EXIF with a wrong check sum": chunk(b"eXIf", turned, check=1),
        "garbled EXIF": chunk(b"eXIf", b"no TIFF!"),
        "cut EXIF": chunk(b"eXIf", b"II*\0"),
    }
    for name, part in beside.items():
        for read in (decode_image, decode_as_stored):
            assert (read(head + part + rest, 10**6) == np.array(image)).all(), name
        assert read_header(head + part + rest, 10**6).width == 9
    bomb = beside["a text that unpacks to much"]
    upright = decode_image(head + chunk(b"eXIf", turned) + bomb + rest, 10**6)
    assert (upright == np.rot90(np.array(image), -1)).all()  # sound EXIF counts all the same


@pytest.mark.parametrize("name", ["JPEG", "WEBP"])
@pytest.mark.parametrize("content", [b"no TIFF!", b"II*\0", b"II*\0\x08\0\0\0"])
def test_broken_exif_beside_sound_pixels(name, content):
    exif = b"Exif\0\0" + content
    odd, plain = (encode(photo(), name, **more) for more in ({"exif": exif}, {}))
    assert (decode_image(odd, 10**6) == decode_image(plain, 10**6)).all()


def test_pillow_s_settings_are_left_alone():
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    decode_image(encode(photo()), 10**6)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is before
    assert "limbeck" in sys.modules
