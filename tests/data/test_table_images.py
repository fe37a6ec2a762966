import os
import random
import stat

import numpy as np
import pytest

from limbeck.data.table_images import BadTable, TableFile, cache_folder
from limbeck.errors import UserError

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

IMAGES = [b"first", None, b"", b"a longer one" * 50, b"last"]


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def table(arrow_type=None, images=IMAGES):
    arrow_type = arrow_type or pa.binary()
    images = pa.array(images, arrow_type)
    paths = pa.array([f"{row}.jpg" for row in range(len(images))])
    structs = pa.StructArray.from_arrays([images, paths], ["bytes", "path"])
    return pa.table({"image": structs, "plain": images, "label": list(range(len(images)))})


def write_arrow(file, content, new=pa.ipc.new_stream, **options):
    with new(str(file), content.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(content, max_chunksize=2)


def read(file, column="image", field="bytes"):
    place, offsets, sizes = TableFile(file).places(column, field)
    data = place.read_bytes()
    return place, [
        None if size < 0 else data[offset : offset + size]
        for offset, size in zip(offsets, sizes, strict=True)
    ]


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
@pytest.mark.parametrize("arrow_type", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize(("column", "field"), [("image", "bytes"), ("plain", None)])
def test_images_of_an_arrow_file_are_read_where_they_are(tmp_path, new, arrow_type, column, field):
    file = tmp_path / "a.arrow"
    write_arrow(file, table(arrow_type), new)
    place, images = read(file, column, field)
    assert place == file and images == IMAGES
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("arrow_type", [pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())])
def test_other_arrow_files_are_unpacked(tmp_path, arrow_type):
    write_arrow(tmp_path / "a.arrow", table(arrow_type))
    place, images = read(tmp_path / "a.arrow")
    assert place.is_relative_to(tmp_path / "cache") and images == IMAGES


def test_a_compressed_arrow_file_is_unpacked(tmp_path):
    write_arrow(tmp_path / "a.arrow", table(), compression="zstd")
    assert read(tmp_path / "a.arrow")[1] == IMAGES


@pytest.mark.parametrize("options", [{}, {"row_group_size": 2}, {"use_dictionary": False}])
def test_parquet_is_unpacked_once(tmp_path, options):
    pq.write_table(table(), tmp_path / "a.parquet", **options)
    place, images = read(tmp_path / "a.parquet")
    assert images == IMAGES
    before = place.stat().st_mtime_ns
    assert read(tmp_path / "a.parquet") == (place, IMAGES)
    assert place.stat().st_mtime_ns == before
    assert TableFile(tmp_path / "a.parquet").values("image", "path")[3] == "3.jpg"
    assert TableFile(tmp_path / "a.parquet").values("label") == [0, 1, 2, 3, 4]


def test_two_columns_are_two_files(tmp_path):
    content = pa.table({"image": IMAGES, "mask": IMAGES[::-1]}, pa.schema([
        ("image", pa.binary()), ("mask", pa.binary()),
    ]))  # fmt: skip
    pq.write_table(content, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "image", None)[1] == IMAGES
    assert read(tmp_path / "a.parquet", "mask", None)[1] == IMAGES[::-1]


def test_a_table_that_was_replaced_is_another_whatever_its_time(tmp_path):
    file, other = tmp_path / "a.parquet", tmp_path / "b.parquet"
    for place, images in ((file, IMAGES), (other, [*IMAGES[:-1], b"lost"])):
        pq.write_table(table(images=images), place, compression="none")
        os.utime(place, (1_700_000_000, 1_700_000_000))
    assert file.stat().st_size == other.stat().st_size
    assert read(file)[1][-1] == b"last"
    os.replace(other, file)
    assert read(file)[1][-1] == b"lost"


def test_a_cache_that_is_damaged_is_named(tmp_path):
    pq.write_table(table(), tmp_path / "a.parquet")
    place, _ = read(tmp_path / "a.parquet")
    place.write_bytes(place.read_bytes()[:-3])
    with pytest.raises(UserError, match=rf"{place} are damaged; delete"):
        read(tmp_path / "a.parquet")


def test_without_a_cache_a_temporary_folder_serves(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pq.write_table(table(), tmp_path / "a.parquet")
    place, images = read(tmp_path / "a.parquet")
    assert images == IMAGES and place.is_relative_to(tmp_path)
    assert f"The cache {cache_folder()} can't be written (Not a directory)" in caplog.text
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"nor a temporary folder .*HF_DATASETS_CACHE"):
        read(tmp_path / "a.parquet")


def test_the_cache_is_that_of_datasets(monkeypatch):
    monkeypatch.delenv("HF_DATASETS_CACHE")
    monkeypatch.setenv("HF_HOME", "/x")
    assert str(cache_folder()) == "/x/datasets/limbeck"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/y")
    assert str(cache_folder()) == "/y/huggingface/datasets/limbeck"


def test_flipped_bytes_of_an_arrow_file_end_no_process(tmp_path):
    """Unchecked, one in seventy of these flips ends the process by a signal."""
    content = table(images=[bytes(20)] * 40)
    write_arrow(tmp_path / "a.arrow", content)
    sound, draw = (tmp_path / "a.arrow").read_bytes(), random.Random(0)
    refused = 0
    for _ in range(100):
        data = bytearray(sound)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (tmp_path / "a.arrow").write_bytes(data)
        try:
            file = TableFile(tmp_path / "a.arrow")
            _, offsets, sizes = file.places("image", "bytes")
            assert (offsets[sizes >= 0] + sizes[sizes >= 0] <= len(data)).all()
            file.values("label")
            file.values("image", "path")
        except (BadTable, KeyError):
            refused += 1
    assert 0 < refused < 100


def test_an_offset_beyond_the_values_is_refused(tmp_path):
    write_arrow(tmp_path / "a.arrow", table(images=[b"12345678"] * 2))
    data = (tmp_path / "a.arrow").read_bytes()
    wrong = data.replace(np.array([0, 8, 16], np.int32).tobytes(), b"\0\0\0\0\x08\0\0\0\0\0\0\x40")
    assert wrong != data
    (tmp_path / "a.arrow").write_bytes(wrong)
    with pytest.raises(BadTable):
        TableFile(tmp_path / "a.arrow").places("image", "bytes")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_what_is_no_table(tmp_path, name):
    for content in (b"", b"no table", bytes(5000), b"PAR1" + bytes(100) + b"PAR1"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadTable):
            TableFile(tmp_path / name)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / name).stat().st_mode)
    with pytest.raises(OSError, match="a named pipe, not a regular file"):
        TableFile(tmp_path / name)
