"""Keys to hashes to parts, and what is said of a finished part."""

import json
import os

import numpy as np
import pytest

from limbeck.data.target_store import key_hashes, num_parts_for, part_of
from limbeck.data.target_store.parts import (
    MAX_PARTS,
    PartKey,
    check_arrays,
    choose_views,
    parse_name,
    read_records,
    records_of_part,
    survey,
)
from limbeck.data.target_store.place import open_place
from limbeck.errors import RunError
from tests.data.target_store.stores import KEYS, MANIFEST, arrays_of, other, write_store


def test_the_hash_of_a_key_is_fixed():
    # BLAKE2b of 8 bytes, big-endian; a store of today must be found tomorrow.
    assert [hex(h) for h in key_hashes(["a", "n01440764/x.JPEG"])] == [
        "0x40f89e395b66422f",
        "0x5cb32e43004df114",
    ]
    assert key_hashes(["\udcff"]).dtype == np.uint64  # a file name that is no valid UTF-8
    assert key_hashes([]).shape == (0,)


def test_parts_are_powers_of_two_of_a_fair_size():
    assert num_parts_for(1, 100) == 1
    assert num_parts_for(10_000, 354) == 2
    assert num_parts_for(1_281_167, 39 * 300) == 512
    assert num_parts_for(14_197_122, 354 * 90) == MAX_PARTS
    assert num_parts_for(10**9, 10**6) == MAX_PARTS


def test_the_part_is_the_hash_s_leading_bits():
    hashes = np.array([0, 2**62, 2**63, 2**64 - 1], dtype=np.uint64)
    assert part_of(hashes, 1).tolist() == [0, 0, 0, 0]
    assert part_of(hashes, 4).tolist() == [0, 1, 2, 3]
    assert part_of(hashes, 2**14).tolist() == [0, 2**12, 2**13, 2**14 - 1]


def test_names():
    assert PartKey(12, 0).data_name == "part-00012.safetensors"
    assert PartKey(12, 3).json_name == "part-00012.3.json"
    assert parse_name("part-00012.3.json", "json") == PartKey(12, 3)
    assert parse_name("part-00012.safetensors", "safetensors") == PartKey(12, 0)
    for name in ("part-12.json", "part-00012.0.json", "manifest.json", "part-00012.safetensors"):
        assert parse_name(name, "json") is None


def test_what_is_said_of_parts(tmp_path):
    write_store(tmp_path, skipped=KEYS[:1])
    place = open_place(str(tmp_path))
    records = read_records(place, MANIFEST)
    assert list(records) == [PartKey(part, 0) for part in range(4)]
    assert sum(record.num_images for record in records.values()) == len(KEYS) - 1
    assert [r.skipped for r in records.values() if r.skipped] == [{KEYS[0]: "it is cut short"}]
    for key, record in records.items():
        assert record.size == (tmp_path / key.data_name).stat().st_size
        assert record.versions == {"numpy": "2.4"}
    assert records_of_part(place, MANIFEST, 2) == {PartKey(2, 0): records[PartKey(2, 0)]}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: (d / "part-00001.json").write_bytes(b'{"num_ima'), "part-00001.json is damaged"),
        (lambda d: (d / "part-00001.json").write_bytes(b"[1]"), "part-00001.json is damaged"),
        (lambda d: (d / "part-00002.safetensors").unlink(), "part-00002.safetensors is missing"),
        (
            lambda d: (d / "part-00099.json").write_bytes((d / "part-00001.json").read_bytes()),
            "part-00099.json is not of this store, which has 4 parts",
        ),
        (
            lambda d: (d / "part-00001.2.json").write_bytes((d / "part-00001.json").read_bytes()),
            "part-00001.1.json is missing, though there is part-00001.2.json",
        ),
    ],
)
def test_what_does_not_fit_together_is_named(tmp_path, damage, said):
    write_store(tmp_path)
    damage(tmp_path)
    with pytest.raises(RunError, match=said) as error:
        read_records(open_place(str(tmp_path)), MANIFEST)
    assert "restore" in str(error.value) or "move it" in str(error.value)


def test_a_part_of_another_store_is_refused(tmp_path):
    write_store(tmp_path / "a")
    write_store(tmp_path / "b", manifest=other(recipe={"seed": 2}))
    for name in ("part-00003.json", "part-00003.safetensors"):
        (tmp_path / "b" / name).replace(tmp_path / "a" / name)
    with pytest.raises(RunError, match="part-00003.json belongs to another store"):
        read_records(open_place(str(tmp_path / "a")), MANIFEST)


def test_arrays_of_another_shape_are_refused():
    good = arrays_of(KEYS[:3])
    assert check_arrays(good, MANIFEST.arrays, 2) == 3
    bad = [
        {"codes": good["codes"]},
        good | {"codes": good["codes"][:2]},
        good | {"codes": good["codes"].astype(np.int8)},
        {name: array[:, :1] for name, array in good.items()},
    ]
    for arrays in bad:
        with pytest.raises(ValueError, match="The arrays are not"):
            check_arrays(arrays, MANIFEST.arrays, 2)


def test_the_file_beside_a_part_is_readable(tmp_path):
    write_store(tmp_path)
    plain = json.loads((tmp_path / "part-00000.json").read_text())
    assert plain["store_id"] == MANIFEST.store_id
    assert len(plain["sha256"]) == 64


def test_views_with_fingerprints_go_from_first_to_last():
    assert choose_views(0, 3, 1) == []
    assert choose_views(1, 3, 1) == [(0, 0), (0, 1), (0, 2)]
    assert choose_views(100, 5, 2**14) == [(0, 0), (99, 4)]  # two in each of many parts
    chosen = choose_views(1000, 5, 1)
    assert len(chosen) == 32 and chosen[0] == (0, 0) and chosen[-1] == (999, 4)
    assert {view for _, view in chosen} == set(range(5))


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("size", -1, "'size' is -1"),
        ("size", 2**62, "'size' is 4611686018427387904"),
        ("size", 10, "is damaged; restore"),  # less than its records need
        ("num_images", 2**31, "is damaged; restore"),  # more than its bytes hold
        ("num_images", "many", "'num_images' is 'many'"),
        ("sha256", 12, "'sha256' is 12"),
        ("skipped", ["a"], "'skipped' is ['a']"),
        ("fingerprints", "all", "'fingerprints' is 'all'"),
        ("fingerprints", [{"key": "a", "view": 0}], "no entry 'fingerprints.0.pixels'"),
        ("fingerprints", [{"key": "a", "view": 2, "pixels": ""}], "is damaged; restore"),
    ],
)
def test_an_entry_that_can_not_be_is_named(tmp_path, entry, value, said):
    write_store(tmp_path)
    file = tmp_path / "part-00001.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), entry: value}))
    records, problems = survey(open_place(str(tmp_path)), MANIFEST)
    assert sorted(records) == [PartKey(part, 0) for part in (0, 2, 3)]
    (problem,) = map(str, problems)
    assert f"{file} is damaged" in problem and said in problem
    assert "delete part-00001.* and run the same limbeck store-targets again" in problem


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (os.mkfifo, "it is a named pipe"),
        (os.mkdir, "it is a folder"),
        (lambda file: file.symlink_to("/dev/zero"), "it is a device"),
        (lambda file: (file.touch(), os.truncate(file, 2**40)), "over the limit of 1,073,741,824"),
    ],
)
def test_no_regular_file_is_opened_and_the_other_parts_are_told(tmp_path, put, said):
    write_store(tmp_path)
    file = tmp_path / "part-00001.json"
    file.unlink()
    put(file)
    records, problems = survey(open_place(str(tmp_path)), MANIFEST)
    assert len(records) == 3
    (problem,) = map(str, problems)
    assert said in problem and "delete part-00001.* and run the same" in problem


def test_a_name_in_other_digits_is_no_part_s():
    assert parse_name("part-" + "\u0660" * 5 + ".json", "json") is None


def test_more_fill_ins_than_an_address_holds_are_refused(tmp_path):
    write_store(tmp_path)
    for fill in (1023, 1024):
        for name in (PartKey(0, fill).json_name, PartKey(0, fill).data_name):
            (tmp_path / name).write_bytes(
                (tmp_path / f"part-00000{name[-5:]}").read_bytes()
                if name.endswith("json")
                else (tmp_path / "part-00000.safetensors").read_bytes()
            )
    _, problems = survey(open_place(str(tmp_path)), MANIFEST)
    assert "part-00000.1022.json is missing" in str(problems[0])
    assert "a part has at most 1023 fill-ins; write the store again" in str(problems[1])
