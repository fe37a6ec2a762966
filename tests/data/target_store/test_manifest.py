"""What a store says of itself."""

import json
from hashlib import sha256

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


def signed(values):
    """A manifest's file that says this, with the checksum of it."""
    plain = json.dumps(values, sort_keys=True)
    return json.dumps({**values, "store_id": sha256(plain.encode()).hexdigest()[:32]}).encode()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": {"precision": "auto"}}, "'teacher.precision' is 'auto'"),
        ({"teacher": {"facts": {"depth": 10**9}}}, "'teacher.facts.depth' is 1000000000"),
        ({"teacher": {"facts": {"patch_size": 0}}}, "'teacher.facts.patch_size' is 0"),
        ({"teacher": {"facts": {"mean": [0.5]}}}, "'teacher.facts.mean' is"),
        ({"teacher": {"facts": {"origin": "x"}}}, "'teacher.facts.origin' is 'x'"),
        ({"teacher": []}, "'teacher' is"),
        ({"recipe": {}}, "no entry 'recipe.seed'"),
        ({"recipe": {"seed": 10**40}}, "'recipe.seed' is 1000"),
        ({"recipe": {"seed": 0, "img_size": 10**9}}, "'recipe.img_size' is 1000000000"),
        ({"arrays": {"x": [[8], "object"]}}, "'arrays.x.1' is 'object'"),
        ({"arrays": {"x": [[-8], "uint8"]}}, "'arrays.x.0.0' is -8"),
        ({"arrays": {}}, "'arrays' is {}"),
        ({"num_views": True}, "'num_views' is True"),
        ({"num_views": "2"}, "'num_views' is '2'"),
        ({"num_parts": 2**30}, "'num_parts' is 1073741824"),
        ({"num_parts": 3}, "is damaged; restore"),
        ({"versions": {"torch": 2.15}}, "'versions.torch' is 2.15"),
        ({"data": {"num_images": -1}}, "'data.num_images' is -1"),
        ({"weights": 3}, "'weights' is 3"),
    ],
)
def test_what_can_not_be_is_named_though_its_checksum_is_right(changes, said):
    values = json.loads(MANIFEST.to_json())
    del values["store_id"]
    assert read_manifest(signed(values), "store").store_id == MANIFEST.store_id
    with pytest.raises(RunError, match="store/manifest.json is damaged") as error:
        read_manifest(signed(values | changes), "store")
    assert said in str(error.value)
    assert "or write the store again in another place" in str(error.value)


def test_of_a_teacher_without_a_precision_it_is_read_all_the_same():
    older = other(teacher={"facts": {"embed_dim": 24, "more": [1]}})
    assert read_manifest(older.to_json(), "store").identity == older.identity
