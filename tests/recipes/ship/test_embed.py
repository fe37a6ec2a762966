"""``limbeck embed``: a vector for each image, read by others, going on where it stopped."""

import shutil
from dataclasses import replace

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import limbeck
from limbeck.data.open import open_source
from limbeck.data.options import DataOptions
from limbeck.data.skipped import SkippedLog
from limbeck.errors import UserError
from limbeck.recipes.run.options import EmbedOptions
from limbeck.recipes.run.probes import embed_source
from limbeck.recipes.ship import embed as verb
from limbeck.recipes.ship.embed import EmbedConfig, embed, report

SHOWN = EmbedOptions(batch_size=4)


@pytest.fixture
def config(images, student, tmp_path):
    return EmbedConfig(images=str(images), model=str(student), out=tmp_path / "said", embed=SHOWN)


def read(folder):
    table = pq.read_table(folder / "vectors")
    column = table["embedding"].combine_chunks()
    width = column.type.list_size
    return table, column.flatten().to_numpy().reshape(-1, width)


def test_vectors_are_those_of_the_encoder_and_others_read_them(config, images, student):
    found = embed(config)
    table, vectors = read(found.out)
    data = DataOptions(root=str(images))
    source = open_source(str(images), data, "train")
    own = embed_source(
        limbeck.load(student), source, SHOWN, data, torch.device("cpu"),
        SkippedLog(None, len(source), 0.0),
    )  # fmt: skip
    assert table["key"].to_pylist() == list(own.keys)
    assert table["label"].to_pylist() == [key.partition("/")[0] for key in own.keys]
    assert vectors.dtype == np.float32 and np.array_equal(vectors, own.features.numpy())
    rows = datasets.load_dataset("parquet", data_dir=str(found.out / "vectors"), split="train")
    assert np.array_equal(rows.with_format("numpy")[0]["embedding"], vectors[0])
    assert found.num_images == found.num_new == len(source)
    assert f"{len(source)} vectors of {vectors.shape[1]} numbers" in report(found)


def test_it_goes_on_where_it_stopped_and_with_new_images(config, images, tmp_path, monkeypatch):
    photos = shutil.copytree(images, tmp_path / "photos")
    config = replace(config, images=str(photos))
    whole = embed(replace(config, out=tmp_path / "whole"))
    monkeypatch.setattr(verb, "PART_ROWS", 4)
    real, count = verb._write, []

    def stops(*given):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        real(*given)

    monkeypatch.setattr(verb, "_write", stops)
    with pytest.raises(KeyboardInterrupt):
        embed(config)
    (config.out / "vectors" / "part-00000.parquet").unlink()
    first = sorted(photos.rglob("*.png"))[0]
    shutil.copy(first, first.with_name("new.png"))
    (first.parent / "broken.png").write_bytes(b"no image")
    found = embed(replace(config, data=DataOptions(max_bad_ratio=0.5)))
    assert found.num_images == whole.num_images + 1 and found.num_new == found.num_images - 4
    assert found.num_skipped == 1 and "1 could not be read" in report(found)
    (table, vectors), (old, old_vectors) = read(found.out), read(whole.out)
    by_key = dict(zip(table["key"].to_pylist(), vectors, strict=True))
    assert len(by_key) == found.num_images
    for key, vector in zip(old["key"].to_pylist(), old_vectors, strict=True):
        assert np.allclose(by_key[key], vector, atol=1e-5)
    assert embed(replace(config, data=DataOptions(max_bad_ratio=0.5))).num_new == 0


def test_half_the_bytes_and_images_without_labels(config, unlabelled):
    found = embed(
        replace(config, images="", data=DataOptions(root=str(unlabelled)), dtype="float16")
    )
    table, vectors = read(found.out)
    assert table.column_names == ["key", "embedding"] and vectors.dtype == np.float16


def test_a_damaged_file_is_named(config):
    found = embed(config)
    (found.out / "vectors" / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="part-00000.parquet is damaged; delete it"):
        embed(config)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": ""}, "run: limbeck embed FOLDER --model RUN"),
        ({"model": "nowhere/run"}, "nowhere/run"),
        ({"images": "nowhere/images"}, "nowhere does not exist"),
        ({"data": DataOptions(root="elsewhere")}, "name the images twice"),
        ({"data": DataOptions(holdout_ratio=0.5)}, "data.holdout-ratio has no effect here"),
    ],
)
def test_what_is_wrong_is_said(config, changed, message):
    with pytest.raises(UserError, match=message):
        embed(replace(config, **changed))
    assert not config.out.exists()


def test_another_encoder_is_not_taken_for_this_one(config, teacher, segmenter):
    embed(config)
    with pytest.raises(UserError, match="another run"):
        embed(replace(config, model=str(teacher)))
    with pytest.raises(UserError, match="has no vector of an image"):
        embed(replace(config, model=str(segmenter), overwrite=True))
