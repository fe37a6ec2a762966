import logging
from collections import Counter

import pytest

from limbeck.data.folder import FolderSource
from limbeck.data.open import (
    MAX_STRAYS,
    data_fingerprint,
    keep_labels,
    open_source,
    split_holdout,
)
from limbeck.data.options import DataOptions
from limbeck.data.shards import TarSource
from limbeck.data.source import Subset
from limbeck.errors import UserError
from tests.data.images import MemorySource, encode, memory_photos, photo, write_photos, write_shard


def opened(place, **options):
    return open_source(str(place), DataOptions(**options), "train")


def test_the_form_is_seen_by_the_content(tmp_path):
    write_photos(tmp_path, ["photos/a.jpg", "photos/b.jpg"])
    (tmp_path / "photos" / "metadata.parquet").write_text("about the images")
    (tmp_path / "photos" / "all.tar.gz").write_text("can't be read")
    assert isinstance(opened(tmp_path / "photos"), FolderSource)
    image = (tmp_path / "photos" / "a.jpg").read_bytes()
    (tmp_path / "shards" / "sub").mkdir(parents=True)
    for name in ("shards/0.tar", "shards/sub/1.tar"):
        write_shard(tmp_path / name, [("x.jpg", image)])
    assert isinstance(opened(tmp_path / "shards"), TarSource)
    assert isinstance(opened(tmp_path / "shards" / "0.tar"), TarSource)
    assert isinstance(opened(tmp_path / "shards" / "{0..0}.tar"), TarSource)
    assert isinstance(opened(f"file://{tmp_path}/shards/0.tar"), TarSource)


def test_a_few_images_beside_shards_are_left_out_by_name(tmp_path):
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "data" / "train-0.tar", [("x.jpg", encode(photo()))])
    write_photos(tmp_path, ["preview.png", "assets/logo.png"])
    source = opened(tmp_path)
    assert isinstance(source, TarSource) and source.key(0) == "train-0.tar/x.jpg"
    assert source.notes == (
        "2 images (assets/logo.png, preview.png) beside tables or shards left out.",
    )


def test_a_preview_beside_tables_is_left_out_by_name(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_photos(tmp_path, ["preview.png"])
    images = [{"bytes": encode(photo()), "path": None}]
    datasets.Dataset.from_dict({"image": images}).to_parquet(tmp_path / "train-0.parquet")
    source = opened(tmp_path)
    assert source.key(0) == "train-0.parquet#0"
    assert source.notes == ("1 image (preview.png) beside tables or shards left out.",)


@pytest.mark.parametrize("name", ["all.tar", "more/rows.arrow", "rows.parquet"])
def test_many_images_beside_tables_or_shards_are_refused(tmp_path, name):
    write_photos(tmp_path, [f"{number:02}.jpg" for number in range(MAX_STRAYS + 1)])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    both = rf"holds both 21 images \(00\.jpg, .* and 1 file \({name}\) of (tables|shards); pass "
    with pytest.raises(UserError, match=rf"{both}.*\*{name[name.index('.') :]} as --data .* move"):
        opened(tmp_path)


def test_hidden_files_and_case_do_not_decide_the_form(tmp_path):
    write_shard(tmp_path / "0.TAR", [("x.jpg", encode(photo()))])
    write_photos(tmp_path, ["._0.jpg", ".thumbs/1.jpg"])
    (tmp_path / "._0.tar").write_text("no shard")
    for root in (tmp_path, tmp_path / "0.TAR"):
        source = opened(root)
        assert isinstance(source, TarSource) and source.key(0) == "0.TAR/x.jpg"


def test_tables_with_upper_case_suffix(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": encode(photo()), "path": None}]
    datasets.Dataset.from_dict({"image": images}).to_parquet(tmp_path / "a.PARQUET")
    (tmp_path / "._a.parquet").write_text("no table")
    for root in (tmp_path, tmp_path / "a.PARQUET"):
        assert opened(root).key(0) == "a.PARQUET#0"


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_photos(tmp_path, ["photos/a.jpg"])
    write_shard(tmp_path / "0.tar", [("x.jpg", encode(photo()))])
    for root in ("~/photos", "~/0.tar", "~/{0..0}.tar"):
        assert len(opened(root).read(0).data) > 100


@pytest.mark.parametrize(
    ("name", "value"),
    [("label_column", "x"), ("image_column", "x"), ("split", "test"), ("eval_split", "train")],
)
def test_options_without_effect_are_refused(tmp_path, name, value):
    write_photos(tmp_path, ["photos/a.jpg"])
    write_shard(tmp_path / "0.tar", [("x.jpg", encode(photo()))])
    for root in (str(tmp_path / "photos"), str(tmp_path / "0.tar")):
        asked = rf"--data\.{name.replace('_', '-')} has no effect with {root}: it is for"
        with pytest.raises(UserError, match=asked):
            opened(root, root=root, eval_root=root, **{name: value})


@pytest.mark.parametrize("options", [{"split": "x"}, {"label_column": "x"}])
def test_options_of_the_other_root_are_none_of_its_business(tmp_path, options):
    write_photos(tmp_path, ["a.jpg"])
    assert len(opened(tmp_path, root="hf:a/b", eval_root=str(tmp_path), **options)) == 1


def test_splits_of_files_can_be_chosen(tmp_path):
    for name in ("train.tar", "test.tar"):
        write_shard(tmp_path / name, [(f"{name}.jpg", encode(photo()))])
    root = str(tmp_path)
    options = DataOptions(root=root, eval_root=root, split="test", eval_split="train")
    assert open_source(root, options, "test").key(0) == "test.tar/test.tar.jpg"
    with pytest.raises(UserError, match=r"--data\.split has no effect .* several splits"):
        opened(tmp_path / "test.tar", root=str(tmp_path / "test.tar"), split="test")


def test_patterns_stand_for_files_of_one_kind(tmp_path):
    for name in ("a-0.tar", "a-1.tar", "b.tar"):
        write_shard(tmp_path / name, [("x.jpg", encode(photo()))])
    (tmp_path / "a.txt").touch()
    assert len(opened(tmp_path / "a-*.tar")) == 2
    for wrong in ("a*", "{a-0.tar,a.parquet}"):
        with pytest.raises(UserError, match=r"must stand for \.tar shards alone"):
            opened(tmp_path / wrong)
    with pytest.raises(UserError, match="No file is called"):
        opened(tmp_path / "*.jpg")


def test_compressed_shards_are_named(tmp_path):
    (tmp_path / "a.tar.gz").touch()
    for root in (tmp_path, tmp_path / "a.tar.gz"):
        with pytest.raises(UserError, match=r"unpack them to \.tar first"):
            opened(root)


def test_missing_folder_names_the_nearest(tmp_path):
    (tmp_path / "photos" / "summer").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no 'fotos'. Did you mean 'photos'\?"):
        opened(tmp_path / "fotos" / "summer")
    with pytest.raises(UserError, match=r"Did you mean 'summer'\?"):
        opened(tmp_path / "photos" / "sumer")


def test_what_can_not_be_opened_is_said(tmp_path):
    with pytest.raises(UserError, match=r"--data\.root"):
        opened("")
    with pytest.raises(UserError, match="no images"):
        opened(tmp_path)
    write_photos(tmp_path, ["a.jpg"])
    with pytest.raises(UserError, match="one image"):
        opened(tmp_path / "a.jpg")
    (tmp_path / "a.zip").write_text("")
    with pytest.raises(UserError, match="no form of data"):
        opened(tmp_path / "a.zip")
    with pytest.raises(UserError, match=r"\.tar shards"):
        opened("s3://bucket/photos")


def held_out_keys(source, **options):
    train, holdout = split_holdout(source, DataOptions(**options))
    keys = [{part.key(index) for index in range(len(part))} for part in (train, holdout)]
    assert not keys[0] & keys[1] and len(keys[0] | keys[1]) == len(source)
    return keys[1]


def test_holdout_has_its_share_and_does_not_move():
    few, many = MemorySource([b""] * 1000), MemorySource([b""] * 1500)
    held_out = held_out_keys(few, holdout_ratio=0.1)
    assert 60 < len(held_out) < 140  # four standard deviations
    old = {few.key(index) for index in range(len(few))}
    assert held_out_keys(many, holdout_ratio=0.1) & old == held_out
    assert held_out <= held_out_keys(few, holdout_ratio=0.2)


def test_holdout_is_capped():
    source = MemorySource([b""] * 100)
    assert len(held_out_keys(source, holdout_ratio=0.9)) == 50
    few = held_out_keys(source, holdout_ratio=0.5, max_holdout=7)
    assert len(few) == 7 and few <= held_out_keys(source, holdout_ratio=0.5, max_holdout=20)
    assert held_out_keys(source, holdout_ratio=0.0) == set()
    assert held_out_keys(MemorySource([b""]), holdout_ratio=0.9) == set()


def test_of_few_images_at_least_one_is_held_out(caplog):
    caplog.set_level(logging.INFO, logger="limbeck")
    # All of their hashes are above the ratio.
    few = MemorySource([b""] * 6)
    assert len(held_out_keys(few, holdout_ratio=0.05)) == 1
    (record,) = caplog.records
    assert "none of 6 images would be held out (--data.holdout-ratio 0.05)" in record.message
    assert "so 1 is." in record.message
    assert held_out_keys(few, holdout_ratio=0.05) <= held_out_keys(few, holdout_ratio=0.5)
    caplog.clear()
    assert not held_out_keys(few, holdout_ratio=0.05, max_holdout=0) and not caplog.records


def test_holdout_is_the_same_in_any_order():
    source = MemorySource([b""] * 50)
    backwards = Subset(source, range(49, -1, -1))
    options = {"holdout_ratio": 0.5, "max_holdout": 5}
    assert held_out_keys(source, **options) == held_out_keys(backwards, **options)


def kept_keys(source, fraction, seed=0):
    kept = keep_labels(source, fraction, seed)
    return {kept.key(index) for index in range(len(kept))}


def test_a_part_of_the_labels_has_its_share_of_every_class():
    labels = [0] * 100 + [1] * 60 + [2] * 3
    source = MemorySource([b""] * 163, labels)
    kept = keep_labels(source, 0.1, 0)
    assert Counter(kept.label(index) for index in range(len(kept))) == {0: 10, 1: 6, 2: 1}
    assert kept_keys(source, 0.1) < kept_keys(source, 0.2) < kept_keys(source, 1)
    assert kept_keys(source, 0.1) != kept_keys(source, 0.1, seed=1)
    backwards = Subset(source, range(162, -1, -1))
    assert kept_keys(backwards, 0.1) == kept_keys(source, 0.1)
    with pytest.raises(UserError, match="these have no labels; use class sub-folders or a label"):
        keep_labels(MemorySource([b""]), 0.1, 0)


def test_fingerprint_knows_keys_and_labels_but_no_order():
    source = memory_photos(6, num_classes=2)
    fingerprint = data_fingerprint(source)
    assert len(fingerprint) == 32 and int(fingerprint, 16)
    assert data_fingerprint(Subset(source, [5, 4, 3, 2, 1, 0])) == fingerprint
    others = [
        Subset(source, range(5)),
        memory_photos(6),
        memory_photos(6, num_classes=3),
        Subset(source, [0, 1, 2, 3, 4, 4]),
    ]
    assert len({fingerprint, *map(data_fingerprint, others)}) == 5
