"""Generated images and sources for the tests of data."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from limbeck.data.source import BadImage, RawImage, Source


def photo(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
    """A smooth image with four different corners."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def write_photos(folder: Path, names: list[str]) -> None:
    """One different JPEG file for each name."""
    for seed, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(photo(seed=seed)))


def write_shard(file: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(file, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


class MemorySource(Source):
    """Images in memory; None in place of the bytes can't be read."""

    def __init__(self, files: list[bytes | None], labels: list[int] | None = None) -> None:
        self.files = files
        self.labels = labels
        self.classes = tuple(f"class {i}" for i in range(max(labels) + 1)) if labels else ()

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        return f"image {index}"

    def label(self, index: int) -> int | None:
        return self.labels[index] if self.labels else None

    def read(self, index: int) -> RawImage:
        data = self.files[index]
        if data is None:
            raise BadImage("it is gone")
        return RawImage(data, self.label(index))


def memory_photos(num_images: int, num_classes: int = 0) -> MemorySource:
    labels = [index % num_classes for index in range(num_images)] if num_classes else None
    return MemorySource([encode(photo(seed=seed)) for seed in range(num_images)], labels)
