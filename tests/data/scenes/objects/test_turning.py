"""Turned photos: what can't be turned is said; the rest is in test_open.py, on real files."""

import io

import numpy as np
import pytest
from PIL import Image

from limbeck.data.scenes.objects.source import Annotated
from limbeck.data.scenes.objects.turning import turned
from limbeck.data.source import BadImage


def test_run_lengths_of_a_lying_photo_are_refused():
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (6, 4)).save(out, "PNG", exif=exif)
    runs = {"counts": [0, 24], "size": [4, 6]}
    found = Annotated(
        np.array([[0.0, 0, 6, 4]]), np.zeros(1, int), np.zeros(1, bool), np.ones(1), (runs,)
    )
    upright = np.zeros((6, 4, 3), np.uint8)
    with pytest.raises(BadImage, match="run lengths of the photo as it was stored"):
        turned(found, (4, 6), out.getvalue(), upright, 10**6)
    assert turned(found, (6, 4), out.getvalue(), upright, 10**6) is found
