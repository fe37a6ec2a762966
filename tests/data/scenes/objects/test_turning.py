import numpy as np
import pytest
from PIL import Image

from limbeck.data.decode import ORIENTATION_TAG, UPRIGHT, decode_image
from limbeck.data.scenes.objects.source import Annotated
from limbeck.data.scenes.objects.turning import size_of_file, turned
from limbeck.data.source import BadImage

BOX = (3, 2, 11, 6)


def photo(orientation, tmp_path):
    """24 x 16 as stored, black with a white box."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    file = tmp_path / "x.png"
    Image.fromarray(pixels).save(file, exif=exif)
    return file


def annotated(shape=None):
    one = np.array([1.0])
    return Annotated(np.array([BOX], float), one.astype(int), one < 0, one, (shape,))


def lit(pixels):
    rows, columns = np.nonzero(pixels[:, :, 0])
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("orientation", [orientation for orientation in UPRIGHT if orientation > 4])
def test_boxes_of_a_lying_photo_are_turned_with_it(orientation, tmp_path):
    file = photo(orientation, tmp_path)
    data = file.read_bytes()
    pixels = decode_image(data, 10**6)
    left, top, right, bottom = BOX
    outline = [[left, top, right, top, right, bottom, left, bottom]]
    found = turned(annotated(outline), (16, 24), data, pixels, 10**6)
    assert found.boxes[0].tolist() == lit(pixels)
    xs, ys = found.shapes[0][0][::2], found.shapes[0][0][1::2]
    assert [min(xs), min(ys), max(xs), max(ys)] == lit(pixels)
    # Annotated as it is shown: as it is.
    assert turned(annotated(), (24, 16), data, pixels, 10**6).boxes[0].tolist() == list(BOX)
    assert size_of_file(file, 10**6) == (24, 16)
    with pytest.raises(BadImage, match="run lengths"):
        turned(annotated({"counts": [384], "size": [16, 24]}), (16, 24), data, pixels, 10**6)


@pytest.mark.parametrize("orientation", [1, 3])
def test_another_size_is_refused(orientation, tmp_path):
    file = photo(orientation, tmp_path)
    assert size_of_file(file, 10**6) == (16, 24)
    data = file.read_bytes()
    with pytest.raises(BadImage, match="of 30 x 20 pixels, the image has 24 x 16"):
        turned(annotated(), (20, 30), data, decode_image(data, 10**6), 10**6)


def test_a_header_beyond_the_start_is_read_too(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.data.scenes.objects.turning.START_BYTES", 10)
    assert size_of_file(photo(1, tmp_path), 10**6) == (16, 24)
    with pytest.raises(BadImage):
        size_of_file(tmp_path / "gone.png", 10**6)
