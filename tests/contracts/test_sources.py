"""Every form of data obeys the contract of sources."""

import pickle

import pytest

from limbeck.data.open import FORMS, open_source
from limbeck.data.options import DataOptions
from limbeck.data.source import BadImage, RawImage, Subset
from tests.data.images import MemorySource, encode, photo, write_photos, write_shard

IMAGES = [encode(photo(seed=seed)) for seed in range(6)]
LABELS = [0, 1, 2, 0, 1, 2]


def make_folder(tmp_path, monkeypatch):
    write_photos(tmp_path, [f"class {label}/{i}.jpg" for i, label in enumerate(LABELS)])
    return str(tmp_path)


def make_shards(tmp_path, monkeypatch):
    for shard in range(2):
        members = []
        for index in range(3 * shard, 3 * shard + 3):
            members.append((f"{index}.jpg", IMAGES[index]))
            members.append((f"{index}.cls", str(LABELS[index]).encode()))
        write_shard(tmp_path / f"{shard}.tar", members)
    return str(tmp_path / "{0..1}.tar")


def make_table(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = [{"bytes": data, "path": None} for data in IMAGES]
    table = datasets.Dataset.from_dict({"image": images, "label": LABELS})
    table.to_parquet(tmp_path / "a.parquet")
    return str(tmp_path / "a.parquet")


def make_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    make_table(tmp_path, monkeypatch)
    table = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: table)
    return "hf:somebody/something"


MAKERS = {"folder": make_folder, "shards": make_shards, "table": make_table, "hub": make_hub}


@pytest.fixture(params=FORMS)
def source(request, tmp_path, monkeypatch):
    return open_source(MAKERS[request.param](tmp_path, monkeypatch), DataOptions(), "train")


def test_keys_are_unique_text(source):
    keys = [source.key(index) for index in range(len(source))]
    assert len(source) == len(IMAGES) == len(set(keys))
    assert all(isinstance(key, str) and key for key in keys)


def test_labels_are_class_indices_and_agree_with_reading(source):
    assert len(source.classes) == 3 and all(isinstance(name, str) for name in source.classes)
    labels = [source.label(index) for index in range(len(source))]
    assert sorted(labels) == sorted(LABELS) and all(type(label) is int for label in labels)
    assert labels == [source.read(index).label for index in range(len(source))]


def test_reads_in_any_order_and_again(source):
    first = [source.read(index) for index in range(len(source))]
    again = [source.read(index) for index in reversed(range(len(source)))]
    assert first == again[::-1]
    assert all(isinstance(raw, RawImage) and isinstance(raw.data, bytes) for raw in first)
    assert sorted(raw.data for raw in first) == sorted(IMAGES)


def test_travels_to_another_process(source):
    copy = pickle.loads(pickle.dumps(source))
    assert [copy.key(i) for i in range(len(copy))] == [source.key(i) for i in range(len(source))]
    assert copy.read(3) == source.read(3) and copy.classes == source.classes
    # Cheap to send: the images stay where they are.
    assert len(pickle.dumps(source)) < sum(map(len, IMAGES)) / 2 + 5000


def test_a_part_is_a_source(source):
    part = Subset(source, [4, 1])
    assert [part.read(0), part.read(1)] == [source.read(4), source.read(1)]


def test_unreadable_is_a_bad_image():
    with pytest.raises(BadImage):
        MemorySource([None]).read(0)
