"""Videos as streams of frames: which, when, how large, which way up, and what is none."""

import sys
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from limbeck.data.source import BadImage
from limbeck.data.video import count_frames, is_video, read_frames, write_video
from limbeck.errors import UserError

av = pytest.importorskip("av")
MANY = 10**6


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """20 frames of 64 x 46 pixels, each of a brightness of its own, and 0.2 s apart."""
    file = tmp_path_factory.mktemp("clip") / "a b.mp4"
    frames = ((place / 5, picture(10 * place)) for place in range(20))
    write_video(file, frames)
    return file


def picture(value, size=(64, 46)):
    return Image.new("RGB", size, (value, value, value))


def test_each_nth_frame_with_its_time(clip):
    found = list(read_frames(clip, 6, MANY))
    assert [(each.number, each.seconds) for each in found] == [
        (0, 0), (6, 1.2), (12, 2.4), (18, 3.6)
    ]  # fmt: skip
    assert {each.pixels.shape for each in found} == {(46, 64, 3)}
    assert [each.pixels.mean() for each in found] == pytest.approx([0, 60, 120, 180], abs=3)
    assert [each.number for each in read_frames(clip, 6, MANY, 7)] == [12, 18]
    assert count_frames(clip) == 20 and is_video(clip) and not is_video(clip.with_suffix(".png"))
    assert [each.number for each in islice(read_frames(clip, 1, MANY), 2)] == [0, 1]


def test_without_x264_it_is_mpeg_4(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", set())
    write_video(tmp_path / "v.mp4", ((place / 3, picture(9)) for place in range(3)))
    found = [each.seconds for each in read_frames(tmp_path / "v.mp4", 1, MANY)]
    assert found == pytest.approx([0, 1 / 3, 2 / 3], abs=1e-4)


def test_odd_sides_are_filled_and_other_sizes_are_cut(tmp_path):
    write_video(tmp_path / "v.mp4", [(0, picture(0, (31, 17))), (1, picture(0, (64, 64)))])
    first, second = read_frames(tmp_path / "v.mp4", 1, MANY)
    assert first.pixels.shape == second.pixels.shape == (18, 32, 3)
    assert first.pixels[:, -1].mean() > 200 > 20 > second.pixels.mean()


def test_a_phone_s_video_is_upright(tmp_path):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24] = 200  # above
    with av.open(str(tmp_path / "turned.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(90)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    (frame,) = read_frames(tmp_path / "turned.mp4", 1, MANY)
    assert frame.pixels.shape == (64, 48, 3)  # counterclockwise: above is left
    assert frame.pixels[:, :20].mean() > 190 and frame.pixels[:, 28:].mean() < 10


def test_what_is_no_video_or_too_large(clip, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    for file, limit, reason in (
        (tmp_path / "bad.mp4", MANY, "can't be opened as a video: Invalid data"),
        (tmp_path / "gone.mp4", MANY, "can't be opened as a video: No such file"),
        (tmp_path, MANY, "can't be opened as a video"),
        (clip, 64 * 46 - 1, "64 x 46 pixels are more than the limit"),
    ):
        with pytest.raises(BadImage, match=reason):
            list(read_frames(file, 1, limit))
    assert count_frames(tmp_path / "bad.mp4") == 0


def test_frames_before_the_damage_are_given(clip, tmp_path, monkeypatch):
    def decode(self, stream):
        yield from islice(real(self, stream), 3)
        raise av.error.InvalidDataError(1, "Invalid data found")

    real = av.container.InputContainer.decode

    class Damaged:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.inner.close()

        def decode(self, stream):
            return decode(self.inner, stream)

    opens = av.open
    monkeypatch.setattr(av, "open", lambda *given: Damaged(opens(*given)))
    found = []
    with pytest.raises(BadImage, match="damaged after 3 frames"):
        found.extend(each.number for each in read_frames(clip, 1, MANY))
    numbers = read_frames(clip, 2, MANY)
    assert [next(numbers).number, next(numbers).number] == [0, 2]


def test_without_the_package_it_is_named(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'limbeck\[video\]'"):
        list(read_frames(clip, 1, MANY))
