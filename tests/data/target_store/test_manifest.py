"""What a store says of itself."""

import json

import pytest

from limbeck.data.target_store import ArraySpec
from limbeck.data.target_store.manifest import differences, read_manifest
from limbeck.errors import RunError, UserError
from tests.data.target_store.stores import MANIFEST, other


def test_it_is_plain_data_and_comes_back():
    written = MANIFEST.to_json()
    assert json.loads(written)["arrays"]["codes"] == [[8], "uint8"]
    again = read_manifest(written, "here")
    assert again.arrays == MANIFEST.arrays
    assert again.identity == MANIFEST.identity
    assert again.store_id == MANIFEST.store_id
    assert again.to_json() == written


def test_a_teacher_is_what_it_computes_wherever_it_lies():
    def of(facts=(), **origin):
        plain = {"embed_dim": 24, "mean": [0.5] * 3, "origin": origin, **dict(facts)}
        return other(teacher={"facts": plain, "precision": "fp32"})

    here = of(source="a/run", weight_hash="12")
    assert differences(here, of(source="moved/run", weight_hash="12", notes="more")) == []
    assert differences(of(source="a/run", weight_hash="34"), here) == [
        'teacher.weights is "34" there and "12" here'
    ]
    assert differences(of({"mean": [0.4] * 3}, source="a/run", weight_hash="12"), here)
    # One that states no hash of its own is told by the one that the store has of it.
    own = [other(teacher={"facts": {"origin": {}}, "weights": weights}) for weights in "ab"]
    assert differences(*own) == ['teacher.weights is "a" there and "b" here']
    assert differences(of(source="own:Teacher"), of(source="own:Other"))


def test_bytes_of_a_record():
    assert ArraySpec((2, 3), "float16").num_bytes == 12
    assert ArraySpec((), "uint8").num_bytes == 1
    assert MANIFEST.bytes_per_record == 8 + 12


@pytest.mark.parametrize("how", ["cut", "changed", "no object", "field more"])
def test_a_damaged_one_is_refused(how):
    written = MANIFEST.to_json()
    values = json.loads(written)
    damaged = {
        "cut": written[:100],
        "changed": written.replace(b'"seed": 1', b'"seed": 3'),
        "no object": b"[]",
        "field more": json.dumps({**values, "more": 1}).encode(),
    }[how]
    assert damaged != written
    with pytest.raises(RunError, match="store/manifest.json is damaged.*; restore it from a copy"):
        read_manifest(damaged, "store")


def test_another_format_is_refused():
    written = MANIFEST.to_json().replace(b'"format_version": 1', b'"format_version": 9')
    with pytest.raises(UserError, match="has format 9, and this version of limbeck reads 1"):
        read_manifest(written, "store")


def test_differences_say_this_and_that_value():
    changed = other(params={"k": 5}, recipe={"seed": 1, "views": {"scale": (0.1, 1.0)}})
    assert differences(MANIFEST, changed) == [
        "params.k is 3 there and 5 here",
        "recipe.views.scale is [0.2, 1.0] there and [0.1, 1.0] here",
    ]
    assert differences(MANIFEST, other(data={}, versions={}, num_parts=1)) == []
