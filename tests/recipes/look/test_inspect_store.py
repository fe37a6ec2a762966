"""``inspect`` of a store says what is in it."""

import pytest

from limbeck.errors import UserError
from limbeck.recipes.look.inspect import InspectConfig, inspect, report
from tests.data.target_store.stores import KEYS, other, write_store

MANIFEST = other(
    params={"k": 3, "num_classes": 1000},
    teacher={
        "facts": {
            "num_classes": 1000,
            "mean": [0.5, 0.5, 0.5],
            "origin": {"source": "timm:some_vit", "weight_hash": "abc123"},
        },
        "precision": "bf16",
    },
)


def said_of(address):
    return report(inspect(InspectConfig(file=str(address))))


def test_a_finished_store(tmp_path):
    said = said_of(write_store(tmp_path, KEYS, MANIFEST, skipped=KEYS[:2]))
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    for expected in (
        "kind      target store: probs; k 3, num_classes 1000",
        "record    codes 8 uint8, scales 2 x 3 float16: 20 bytes",
        "teacher   timm:some_vit, 1,000 classes, weights abc123, bf16",
        "pixels    teacher's mean 0.5 0.5 0.5, std None",
        "views     2 views, which a longer training uses again",
        "recipe    seed 1, views scale 0.2 1.0",
        "images    58 with records, 2 could not be read; begun with 60 of photos",
        "parts     4 of 4 finished, 0 fill-ins",
        f"bytes     {size:,} ({size / 58 / 2:.2f} per view, all counted)",
        "versions  numpy 2.4",
        f"format    1, store {MANIFEST.store_id}",
    ):
        assert expected in said
    assert "PROBLEM" not in said


def test_an_unfinished_or_damaged_store_is_described_too(tmp_path):
    write_store(tmp_path, KEYS, MANIFEST, parts=(0, 2))
    assert "parts     2 of 4 finished" in said_of(tmp_path)
    assert "PROBLEM   2 of the 4 parts of " in said_of(tmp_path)
    (tmp_path / "part-00000.safetensors").unlink()
    assert "part-00000.safetensors is missing" in said_of(tmp_path)
    write_store(tmp_path / "empty", KEYS, MANIFEST, parts=())
    assert "bytes     0\n" in said_of(tmp_path / "empty")


def test_a_store_at_an_address(tmp_path):
    address = write_store(f"memory://{tmp_path}/store", KEYS, MANIFEST)
    assert "58 with" not in (said := said_of(address))
    assert "images    60 with records" in said
    with pytest.raises(UserError, match="there is no store .*or write one with"):
        said_of("memory://nowhere")
