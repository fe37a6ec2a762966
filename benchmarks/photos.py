"""The photos of a benchmark: a folder, or 64 generated ones."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from limbeck.data.folder import FolderSource
from limbeck.data.source import Source


@contextmanager
def open_photos(folder: Path | None) -> Iterator[Source]:
    """The folder's images, or generated ones that are gone afterwards."""
    with tempfile.TemporaryDirectory() as generated:
        if folder is None:
            write_photos(Path(generated))
        yield FolderSource(folder or Path(generated))


def write_photos(folder: Path, num_photos: int = 64) -> None:
    """JPEG files with edges and grain, about as costly to decode as photos of 0.2 megapixels."""
    rng = np.random.default_rng(0)
    for number in range(num_photos):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 400), Image.Resampling.BICUBIC), dtype=np.float32)
        grain = rng.normal(0, 12, smooth.shape)
        pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.jpg", quality=90)
