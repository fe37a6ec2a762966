"""Hostile image files and folders of them."""

import io
import os
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from tests.campaign.hostile import Hostile

TINY = [
    *("--method", "masked-pixel", "--student.name", "vit_tiny", "--student.embed-dim", "24"),
    *("--student.depth", "2", "--student.num-heads", "2", "--student.img-size", "16"),
    *("--student.patch-size", "8", "--data.num-workers", "0", "--train.precision", "fp32"),
    *("--train.epochs", "1", "--optim.warmup-epochs", "0", "--train.global-batch-size", "4"),
]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"


def inputs(folder: Path) -> Iterator[Hostile]:
    """Every input lies in a folder of its own beside a few sound images."""
    for name, data in {**_odd_files(), **_metadata()}.items():
        root = _root(folder, name)
        (root / "cat" / f"odd.{name.split()[0]}").write_bytes(data)
        yield Hostile(f"image: {name}", _doctor(root), (0, 1))
    for name, data in _bad_files().items():
        root = _root(folder, name)
        (root / "cat" / f"odd.{name.split()[0]}").write_bytes(data)
        yield Hostile(f"image: {name}", _doctor(root), (0, 1), "bad         cat/odd")
    yield from _things_that_are_no_files(folder)
    yield from _names(folder)
    yield from _layouts(folder)


def _doctor(root: Path | str, *more: str) -> list[str]:
    words = ["doctor", "--data", str(root), "--data.max-bad-ratio", "0.5", "--data.num-workers"]
    return [*words, "0", "--train.global-batch-size", "4", *more]


def _distill(root: Path | str, out: Path | str, *more: str) -> list[str]:
    words = ["distill", "--data", str(root), "--out", str(out), "--data.holdout-ratio", "0"]
    return [*words, "--data.max-bad-ratio", "0.5", *TINY, *more]


def _photo(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _encode(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _root(folder: Path, name: str, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    root = folder / "".join(letter if letter.isalnum() else "-" for letter in name)
    for top in classes:
        (root / top).mkdir(parents=True)
        for seed in range(4):
            (root / top / f"{seed}.png").write_bytes(_encode(_photo(seed), "PNG"))
    return root


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def _png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    body = _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


def _odd_files() -> dict[str, bytes]:
    """Odd, and sound or nearly so: their pixels are read."""
    photo, gray = _photo(), _photo().convert("L")
    deep = np.linspace(0, 65535, 768, dtype=np.uint16).reshape(24, 32)
    frames, png = [_photo(1), _photo(2)], _encode(photo, "PNG")
    clear = photo.convert("RGBA")
    clear.putalpha(0)
    return {
        "jpg CMYK": _encode(photo.convert("CMYK"), "JPEG"),
        "jpg grey": _encode(gray, "JPEG"),
        "jpg progressive": _encode(photo, "JPEG", progressive=True),
        "jpg with bytes behind it": _encode(photo, "JPEG") + b"PK\3\4" * 100,
        "jpg that is a PNG": _encode(photo, "PNG"),
        "png that is a WebP": _encode(photo, "WEBP"),
        "png 16 bit": _encode(Image.fromarray(deep), "PNG"),
        "png palette": _encode(photo.quantize(8), "PNG"),
        "png palette with transparency": _encode(photo.quantize(8), "PNG", transparency=0),
        "png LA": _encode(gray.convert("LA"), "PNG"),
        "png all transparent": _encode(clear, "PNG"),
        "png one bit": _encode(photo.convert("1"), "PNG"),
        "png that says to have four gigabytes": png[:33] + b"\xff\xff\xff\xff" + png[37:],
        "png one pixel": _encode(Image.new("RGB", (1, 1)), "PNG"),
        "png ribbon": _encode(Image.new("RGB", (1, 20_000)), "PNG"),
        "gif animated": _encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "webp animated": _encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "png animated": _encode(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "tif of two pages": _encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "tif float": _encode(Image.fromarray(deep.astype(np.float32)), "TIFF"),
        "tif 32 bit": _encode(Image.fromarray(deep.astype(np.int32)), "TIFF"),
        "tif LAB": _encode(photo.convert("RGB").convert("LAB"), "TIFF"),
        "bmp one row": _encode(Image.new("RGB", (32, 1)), "BMP"),
        "jp2 plain": _encode(photo, "JPEG2000"),
        "ppm plain": _encode(photo, "PPM"),
    }


def _metadata() -> dict[str, bytes]:
    photo = _photo()
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "y" * 30_000_000, zip=True)
    exif = b"Exif\0\0II*\0" + b"\xff" * 40
    return {
        "png text bomb": _encode(photo, "PNG", pnginfo=text),
        "png profile bomb": _encode(photo, "PNG", icc_profile=bytes(30_000_000)),
        "png broken EXIF": _encode(photo, "PNG", exif=exif),
        "webp broken EXIF": _encode(photo, "WEBP", exif=exif),
        "jpg broken EXIF": _encode(photo, "JPEG", exif=exif),
        "jpg broken profile": _encode(photo, "JPEG", icc_profile=b"no profile"),
    }


def _bad_files() -> dict[str, bytes]:
    """What is no image of a kind that is read, or of too many pixels, or cut."""
    photo = _photo()
    whole = {name: _encode(photo, form) for name, form in
             {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "tif": "TIFF",
              "bmp": "BMP", "jp2": "JPEG2000"}.items()}  # fmt: skip
    cut = {f"{name} cut in its head": data[:20] for name, data in whole.items()}
    cut |= {f"{name} cut in the middle": whole[name][: len(whole[name]) // 2]
            for name in ("png", "webp", "tif", "bmp")}  # fmt: skip
    rows = b"\0" * 1000
    giant_tiff = bytearray(whole["tif"])
    place = giant_tiff.find(struct.pack("<HHI", 256, 3, 1))
    giant_tiff[place + 8 : place + 10] = b"\xff\xff"
    return cut | {
        "jpg empty": b"",
        "jpg of zeros": bytes(1000),
        "jpg EPS": EPS,
        "png PDF": _encode(photo, "PDF"),
        "jpg TGA": _encode(photo, "TGA"),
        "jpg ICO": _encode(photo, "ICO"),
        "jpg HTML": b"<html>404 not found</html>",
        "png giant header": _png(2**31 - 1, 2**31 - 1, 8, 2, rows),
        "png bomb": _png(30_000, 30_000, 1, 0, b"\0" * (30_000 * 3751)),
        "png no size": _png(0, 0, 8, 2, b""),
        "png no pixels": _png(100, 100, 8, 2, b""),
        "gif giant screen": b"GIF89a\xff\xff\xff\xff\0\0\0;",
        "bmp giant": whole["bmp"][:18] + struct.pack("<ii", 2**31 - 1, 1) + whole["bmp"][26:],
        "bmp negative": whole["bmp"][:18] + struct.pack("<ii", -5, -5) + whole["bmp"][26:],
        "tif giant width": bytes(giant_tiff),
        "tif directory in a circle": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "ppm giant": b"P6\n1000000000 1000000000\n255\n",
        "webp giant": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff",
        "tif not finite": _encode(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"),
    }


def _things_that_are_no_files(folder: Path) -> Iterator[Hostile]:
    root = _root(folder, "pipe")
    os.mkfifo(root / "cat" / "pipe.jpg")
    yield Hostile("a pipe as an image", _doctor(root), (0,), "named pipe")
    yield Hostile("a pipe in a run", _distill(root, folder / "run of a pipe"), (0,), "named pipe")
    root = _root(folder, "device")
    (root / "cat" / "zero.jpg").symlink_to("/dev/zero")
    yield Hostile("a device as an image", _doctor(root), (0,), "a device")
    root = _root(folder, "socket")
    here = os.getcwd()
    os.chdir(root / "cat")  # a socket's whole path has to be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.jpg")
    os.chdir(here)
    yield Hostile("a socket as an image", _doctor(root), (0,), "socket.jpg")
    root = _root(folder, "giant")
    with open(root / "cat" / "giant.jpg", "wb") as stream:
        stream.truncate(2**42)
    yield Hostile("a sparse giant", _doctor(root), (0,), "over the limit")
    root = _root(folder, "links")
    (root / "me").symlink_to("me")
    (root / "cat" / "a.jpg").symlink_to("b.jpg")
    (root / "cat" / "b.jpg").symlink_to("a.jpg")
    (root / "dog" / "up").symlink_to(root)
    (root / "dog" / "gone.jpg").symlink_to("nowhere.jpg")
    yield Hostile("links in circles", _doctor(root), (0,), "symbolic links")
    yield Hostile("links in a run", _distill(root, folder / "run of links"), (0,))
    root = _root(folder, "folder named as an image")
    (root / "cat" / "album.jpg").mkdir()
    yield Hostile("a folder with an image's name", _doctor(root), (0,))
    os.mkfifo(folder / "pipe.parquet")
    yield Hostile("a pipe as data", _doctor(folder / "pipe.parquet"), (2,))
    yield Hostile("an image as data", _doctor(root / "cat" / "0.png"), (2,), "one image")
    yield Hostile("a device as data", _doctor("/dev/zero"), (2,))


def _names(folder: Path) -> Iterator[Hostile]:
    odd = {
        "not UTF-8": b"caf\xe9",
        "line break": b"a\nb",
        "escape": b"\x1b[31mred\x1b]0;title\x07",
        "emoji": "\N{GRINNING FACE} \u6c34".encode(),
        "right to left": "\u202egnp.exe".encode(),
        "dollars": b"$x_^$",
        "brackets": b"[bold]{x}%s",
        "dashes": b"--out",
        "long": b"n" * 250,
    }
    for name, encoded in odd.items():
        root = _root(folder, f"named {name}")
        named = root / os.fsdecode(encoded)
        os.rename(root / "dog", named)
        os.rename(named / "0.png", named / os.fsdecode(encoded[:200] + b".png"))
        (named / os.fsdecode(encoded[:200] + b".jpg")).write_bytes(b"bad")
        yield Hostile(f"class name: {name}", _doctor(root), (0,), "bad         ")
        out = folder / os.fsdecode(encoded[:200] + b" run")
        yield Hostile(f"run of a class name: {name}", _distill(root, out), (0,), "skipped")
    yield Hostile("a NUL in a name", _doctor("photos\\0"), (2,))
    yield Hostile("a name beyond any disk's", _doctor("n" * 5000), (2,))


def _layouts(folder: Path) -> Iterator[Hostile]:
    root = _root(folder, "deep")
    here = os.open(root / "cat", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    yield Hostile("1,500 folders deep", _doctor(root), (0,))
    for name, kind, said in (
        ("heic", "IMG_1.HEIC", "pillow-heif"),
        ("videos", "clip.mov", "ffmpeg"),
        ("no suffix", "IMG_1", "suffix"),
        ("unknown suffix", "IMG_1.jpg_large", ".jpg_large"),
    ):
        place = folder / f"only {name}"
        place.mkdir()
        (place / kind).write_bytes(_encode(_photo(), "JPEG"))
        yield Hostile(f"only {name}", _doctor(place), (2,), said)
    (folder / "nothing").mkdir()
    yield Hostile("an empty folder", _doctor(folder / "nothing"), (2,), "no images")
    root = _root(folder, "stray")
    (root / "cover.png").write_bytes(_encode(_photo(), "PNG"))
    yield Hostile("an image beside class folders", _doctor(root), (0,), "cover.png")
    root = _root(folder, "empty class")
    (root / "emu").mkdir()
    yield Hostile("a class without images", _doctor(root), (0,), "emu")
    root = _root(folder, "one deeper", ("all/cat", "all/dog"))
    yield Hostile("class folders one level deeper", _doctor(root), (0,), "one folder all")
    root = _root(folder, "splits", ("train", "val"))
    yield Hostile("splits in place of classes", _doctor(root), (2,), "are splits")
    root = _root(folder, "train and dev", ("train", "dev"))
    yield Hostile("another word for a split", _doctor(root), (2,), "are splits")
    root = _root(folder, "other programs", ("cat", "@eaDir", "__MACOSX", "#recycle", "lost+found"))
    yield Hostile("folders of other programs", _doctor(root), (0, 1), "of other programs")
    root = _root(folder, "unreadable")
    (root / "cat" / "0.png").chmod(0)
    (root / "dog").chmod(0)
    yield Hostile("what may not be read", _doctor(root), (0, 1, 2))
    root = folder / "all bad"
    for seed in range(8):
        (root / "ab"[seed % 2]).mkdir(parents=True, exist_ok=True)
        (root / "ab"[seed % 2] / f"{seed}.jpg").write_bytes(b"bad")
    yield Hostile("nothing but bad images", _doctor(root), (1,), "can't be read")
    yield Hostile(
        "a run of bad images", _distill(root, folder / "run of bad"), (1,), "can't be used"
    )
