"""Images and videos in any places, each once and under a name of its own."""

import pytest
from PIL import Image

from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.recipes.ship.places import open_files, open_places
from tests.recipes.scenes import draw_scenes


def keys_of(source):
    return [source.key(index) for index in range(len(source))]


def test_images_of_one_name_in_several_folders_keep_apart(tmp_path):
    for name in ("a", "b"):
        draw_scenes(tmp_path / name, 1)
    (tmp_path / "a/images/000.jpg").write_bytes((tmp_path / "a/images/000.png").read_bytes())
    found = open_files((str(tmp_path / "a/images"), str(tmp_path / "b/images")))
    assert keys_of(found) == ["a/images/000.jpg", "a/images/000.png", "b/images/000.png"]


def test_patterns_names_that_look_like_them_and_videos(tmp_path):
    for name in ("a.png", "b[1].png", "clip.MP4", "c.png"):
        (tmp_path / name).write_bytes(b"")
    places = (str(tmp_path / "b[1].png"), str(tmp_path / "[ac]*"), str(tmp_path / "a.png"))
    source, videos, root = open_places(places, DataOptions())
    assert keys_of(source) == ["b[1].png", "a.png", "c.png"]
    assert videos == {"clip.MP4": tmp_path / "clip.MP4"} and root == str(tmp_path)
    only = open_places((str(tmp_path / "clip.MP4"),), DataOptions())
    assert len(only.source) == 0 and list(only.videos) == ["clip.MP4"]


def test_tables_beside_files(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    row = {"bytes": (tmp_path / "a.png").read_bytes(), "path": "x.png"}
    for name, count in (("t-0.parquet", 2), ("t-1.parquet", 1)):
        parquet.write_table(pyarrow.table({"image": [row] * count}), tmp_path / name)
    places = (str(tmp_path / "t-*.parquet"), str(tmp_path / "a.png"))
    found = open_places(places, DataOptions())
    assert len(found.source) == 4 and found.source.key(0) == "a.png"
    assert found.source.read(3).data == row["bytes"]
    alone = open_files((str(tmp_path / "t-1.parquet"),))
    assert len(alone) == 1 and alone.read(0).data == row["bytes"]


def test_nothing_there_is_told(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"Nothing matches .*phtos/\*\.jpg"):
        open_files((str(tmp_path / "clip.mp4"), str(tmp_path / "phtos/*.jpg")))
    with pytest.raises(UserError, match="There are no images in"):
        open_files((str(tmp_path / "clip.mp4"),))
