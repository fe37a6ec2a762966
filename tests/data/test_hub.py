import logging
import os
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler

import pytest

from limbeck.data import hub
from limbeck.data.hub import TableSource, open_hub, open_table
from limbeck.data.options import DataOptions
from limbeck.data.source import BadImage
from limbeck.errors import UserError
from tests.data.images import encode, photo

datasets = pytest.importorskip("datasets")

IMAGES = [encode(photo(seed=seed)) for seed in range(3)]


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens


def records(paths):
    return [{"bytes": data, "path": path} for data, path in zip(IMAGES, paths, strict=False)]


def write(file, columns, features=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(file)
    return table


def open_file(file, **options):
    return open_table(str(file), DataOptions(**options), "train")


def test_image_and_class_label_columns_by_type(tmp_path):
    features = datasets.Features(
        {"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )
    write(tmp_path / "a.parquet", {"photo": records("xyz"), "kind": [1, 0, 1]}, features)
    source = open_file(tmp_path / "a.parquet")
    assert isinstance(source, TableSource)
    assert source.classes == ("cat", "dog")
    assert [source.label(index) for index in range(3)] == [1, 0, 1]
    assert [source.read(index).data for index in range(3)] == IMAGES
    assert source.read(0).label == 1
    assert [source.key(index) for index in range(3)] == ["x", "y", "z"]


@pytest.mark.parametrize("paths", [["x", "x", "y"], [None, "x", "y"], [None] * 3])
def test_keys_are_records_where_paths_do_not_tell(tmp_path, paths):
    write(tmp_path / "a.parquet", {"image": records(paths), "label": [0, 4, 2]})
    source = open_file(tmp_path / "a.parquet")
    assert [source.key(index) for index in range(3)] == [f"a.parquet#{row}" for row in range(3)]
    assert source.classes == ("0", "1", "2", "3", "4")


def test_folder_of_tables(tmp_path):
    write(tmp_path / "t" / "b.parquet", {"image": records([None, None])[:2]})
    write(tmp_path / "t" / "a" / "a.parquet", {"image": records([None])})
    source = open_table(str(tmp_path / "t"), DataOptions(), "train")
    keys = [source.key(index) for index in range(3)]
    assert keys == ["a/a.parquet#0", "b.parquet#0", "b.parquet#1"]
    assert [source.read(index).data for index in range(3)] == [IMAGES[0], *IMAGES[:2]]
    assert source.classes == () and source.label(0) is None


def test_arrow_files(tmp_path):
    table = datasets.Dataset.from_dict({"image": records("xyz"), "label": [0, 1, 1]})
    table.save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    assert open_file(file).read(1).data == IMAGES[1]


@pytest.mark.parametrize("name", ["id", "width"])
def test_integers_are_labels_by_name_only(tmp_path, name):
    write(tmp_path / "a.parquet", {"image": records("xyz"), name: [0, 1, 1]})
    source = open_file(tmp_path / "a.parquet")
    assert source.classes == () and source.label(1) is None
    assert open_file(tmp_path / "a.parquet", label_column=name).label(1) == 1
    write(tmp_path / "b.parquet", {"image": records("xyz"), name: [7, 8, 9], "label": [0, 1, 1]})
    assert open_file(tmp_path / "b.parquet").label(2) == 1


def test_a_named_column_must_be_full(tmp_path):
    write(tmp_path / "a.parquet", {"image": records("xyz"), "label": [0, None, 1]})
    assert open_file(tmp_path / "a.parquet").classes == ()
    with pytest.raises(UserError, match="1 of 3 rows of the column 'label'"):
        open_file(tmp_path / "a.parquet", label_column="label")


def test_several_label_columns_need_a_name(tmp_path):
    columns = {"image": records("xyz"), "fine": [0, 1, 1], "coarse": [0, 0, 0]}
    kinds = datasets.ClassLabel(names=["a", "b"])
    features = {"image": datasets.Image(), "fine": kinds, "coarse": kinds}
    write(tmp_path / "a.parquet", columns, datasets.Features(features))
    with pytest.raises(UserError, match=r"fine, coarse.*--data\.label-column"):
        open_file(tmp_path / "a.parquet")
    assert open_file(tmp_path / "a.parquet", label_column="fine").label(1) == 1
    with pytest.raises(UserError, match="Did you mean 'coarse'"):
        open_file(tmp_path / "a.parquet", label_column="coarze")
    with pytest.raises(UserError, match="not labels"):
        open_file(tmp_path / "a.parquet", label_column="image")


def test_image_columns(tmp_path):
    columns = {"left": records("xyz"), "right": records("xyz"), "raw": IMAGES}
    write(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=r"left, right.*--data\.image-column"):
        open_file(tmp_path / "a.parquet")
    assert open_file(tmp_path / "a.parquet", image_column="right").read(1).data == IMAGES[1]
    raw = open_file(tmp_path / "a.parquet", image_column="raw")
    assert raw.read(1).data == IMAGES[1] and raw.key(1) == "a.parquet#1"
    with pytest.raises(UserError, match="no image column 'rigth'.*'right'"):
        open_file(tmp_path / "a.parquet", image_column="rigth")
    write(tmp_path / "b.parquet", {"text": ["a"], "n": [1]})
    with pytest.raises(UserError, match="No column of the table holds images"):
        open_file(tmp_path / "b.parquet")
    with pytest.raises(UserError, match="not encoded images"):
        open_file(tmp_path / "b.parquet", image_column="text")


def test_records_without_bytes(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("x.jpg", "sub/y.jpg"):
        (tmp_path / name).write_bytes(IMAGES[2])
    paths = [str(tmp_path / "x.jpg"), "sub/y.jpg", str(tmp_path / "gone.jpg"), None, "a\0b"]
    write(tmp_path / "a.parquet", {"image": [{"bytes": None, "path": path} for path in paths]})
    source = open_file(tmp_path / "a.parquet")
    assert source.read(0).data == source.read(1).data == IMAGES[2]
    for row, reason in ((2, "No such file"), (3, "no image"), (4, "null byte")):
        with pytest.raises(BadImage, match=reason):
            source.read(row)


@pytest.mark.parametrize("path", ["../x.jpg", "{outside}/x.jpg", "sub/../../x.jpg", "/etc/passwd"])
def test_a_table_names_no_files_outside_its_folder(tmp_path, path):
    (tmp_path / "x.jpg").write_bytes(IMAGES[2])
    path = path.format(outside=tmp_path)
    write(tmp_path / "t" / "a.parquet", {"image": [{"bytes": None, "path": path}]})
    for root in (tmp_path / "t", tmp_path / "t" / "a.parquet"):
        with pytest.raises(BadImage, match="not in the table's own folder"):
            open_file(root).read(0)
    # The folder is the one that was named.
    if path == "../x.jpg":
        assert open_file(tmp_path).read(0).data == IMAGES[2]


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet as a table: it is a named pipe"):
        open_file(tmp_path / "a.parquet")
    os.mkfifo(tmp_path / "x.jpg")
    write(tmp_path / "b.parquet", {"image": [{"bytes": None, "path": "x.jpg"}]})
    with pytest.raises(BadImage, match="a named pipe"):
        open_file(tmp_path / "b.parquet").read(0)


def test_columns_of_lists_are_nobodys_business(tmp_path):
    columns = {"image": records("xyz"), "label": [0, 1, 1], "box": [[1, 2], [], [3]]}
    write(tmp_path / "a.parquet", columns | {"objects": [[{"id": [1]}]] * 3})
    source = open_file(tmp_path / "a.parquet")
    assert [source.read(row).data for row in range(3)] == IMAGES and source.label(1) == 1


def test_splits_of_one_folder_are_kept_apart(tmp_path, caplog):
    for split in ("train", "validation", "test"):
        file = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        write(file, {"image": records([f"{split}.jpg"])})
    for split in ("train", "test"):
        source = open_table(str(tmp_path), DataOptions(), split)
        assert [source.key(row) for row in range(len(source))] == [f"{split}.jpg"]
    assert "train is taken (1 of 3 files), left out are test 1, validation 1" in caplog.text
    assert sum("test is taken (1 of 3 files)" in note for note in source.notes) == 1
    pattern = f"{tmp_path}/data/t*.parquet"
    assert len(open_table(pattern, DataOptions(), "train")) == 1
    assert len(open_table(pattern, DataOptions(), "train+test")) == 2
    with pytest.raises(UserError, match="no files of a split 'validation', but of test, train"):
        open_table(pattern, DataOptions(), "validation")


def test_what_is_left_out_is_noted_once_for_many_tables(tmp_path, caplog):
    for name in "abc":
        write(tmp_path / "t" / f"{name}.parquet", {"image": records("x"), "label": [[1, 2]]})
    (tmp_path / "t" / "README.md").touch()
    caplog.set_level(logging.INFO, logger="limbeck")
    source = open_table(str(tmp_path / "t"), DataOptions(), "train")
    files, column = source.notes
    assert files == "1 other file (.md 1) left out."
    assert "The column 'label' holds list" in column
    assert [caplog.text.count(note) for note in source.notes] == [1, 1]


def test_bad_tables_are_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"a\.parquet as a table"):
        open_file(tmp_path / "a.parquet")
    write(tmp_path / "t" / "a.parquet", {"image": records("x")})
    write(tmp_path / "t" / "b.parquet", {"image": ["words"]})
    with pytest.raises(UserError, match="different columns"):
        open_table(str(tmp_path / "t"), DataOptions(), "train")


@pytest.mark.parametrize("names", [["cat", "dog"], None])
def test_tables_of_other_labels_are_refused(tmp_path, names):
    kind = datasets.ClassLabel(names=["dog", "cat"])
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    write(tmp_path / "t" / "a.parquet", {"image": records("x"), "label": [0]}, features)
    if names:
        features["label"] = datasets.ClassLabel(names=names)
        write(tmp_path / "t" / "b.parquet", {"image": records("y"), "label": [0]}, features)
    else:
        write(tmp_path / "t" / "b.parquet", {"image": records("y"), "label": [0]})
    with pytest.raises(UserError, match=r"b\.parquet and .*a\.parquet have different columns"):
        open_table(str(tmp_path / "t"), DataOptions(), "train")


def test_image_files_of_a_hub_data_set_are_read_in_its_cache_alone(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    for name in ("cache/x.jpg", "y.jpg"):
        (tmp_path / name).write_bytes(IMAGES[1])
    images = [{"bytes": None, "path": str(tmp_path / name)} for name in ("cache/x.jpg", "y.jpg")]
    table = datasets.Dataset.from_dict({"image": images})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: table)
    source = open_hub("hf:a/b", DataOptions(), "train")
    assert source.read(0).data == IMAGES[1]
    with pytest.raises(BadImage, match="not in the table's own folder"):
        source.read(1)


def test_hub_failure_says_how_to_pass_local_files(monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("Unknown split\nmany lines")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"'a/b' .*Unknown split; .*--data\.root"):
        open_hub("hf:a/b", DataOptions(), "train")


def test_no_network_fails_at_once(monkeypatch):
    asked, urlopen = [], hub.urlopen

    def counted(request, timeout):
        asked.append(timeout)
        return urlopen(request, timeout=timeout)

    monkeypatch.setattr(hub, "urlopen", counted)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9 can't be reached .*; .*--data\.root"):
        open_hub("hf:a/b", DataOptions(), "train")
    assert asked == [hub.REACH_SECONDS]  # and the hub's own client, which tries for long, is not
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("answers", [True, False])
def test_the_cache_alone_is_asked_where_nothing_answers(monkeypatch, answers):
    is_offline = []

    def load(*args, **kwargs):
        is_offline.append(datasets.config.HF_HUB_OFFLINE)
        return datasets.Dataset.from_dict({"image": records([None])})

    monkeypatch.setattr(datasets, "load_dataset", load)
    if not answers:
        assert len(open_hub("hf:a/b", DataOptions(), "train")) == 1
    else:
        with socketserver.TCPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
            address = f"http://127.0.0.1:{server.server_address[1]}"
            monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
            # It says that it can't do HEAD, which is an answer.
            thread = threading.Thread(target=server.handle_request, daemon=True)
            thread.start()
            assert len(open_hub("hf:a/b", DataOptions(), "train")) == 1
            thread.join(5)
    assert is_offline == [not answers] and not datasets.config.HF_HUB_OFFLINE


def test_hub_name_config_and_split(monkeypatch):
    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_dict({"image": records([None] * 3), "label": [0, 1, 1]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_hub("hf:a/b:small", DataOptions(), "validation")
    assert asked == [(("a/b", "small"), {"split": "validation"})]
    assert source.key(2) == "validation#2" and source.read(2).data == IMAGES[2]


def test_missing_package_names_the_extra(monkeypatch, tmp_path):
    (tmp_path / "a.parquet").touch()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(UserError, match=r"limbeck\[datasets\]"):
            open_file(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"limbeck\[datasets\]"):
        open_hub("hf:a/b", DataOptions(), "train")
