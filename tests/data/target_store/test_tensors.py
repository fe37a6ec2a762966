"""The arrays of a part's file, found without reading it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from limbeck.data.target_store import key_hashes
from limbeck.data.target_store.parts import PartKey, PartRecord, read_records
from limbeck.data.target_store.place import open_place
from limbeck.data.target_store.tensors import find_arrays, header_bytes, read_hashes
from limbeck.errors import RunError
from tests.data.target_store.stores import KEYS, MANIFEST, write_store

PART = PartKey(3, 0)


@pytest.fixture
def place(tmp_path):
    return open_place(str(write_store(tmp_path)))


def test_they_are_where_safetensors_finds_them(place):
    file = place.folder / PART.data_name
    record = read_records(place, MANIFEST)[PART]
    content = file.read_bytes()
    found = find_arrays(content, place, PART, record, MANIFEST)
    arrays = load_file(file)
    assert found.keys() == arrays.keys() == {"hashes", "codes", "scales"}
    for name, (start, end) in found.items():
        assert content[start:end] == arrays[name].tobytes()
    assert found["hashes"][0] == 8 + header_bytes(content)


def test_hashes_are_read_alone_and_ascend(place):
    record = read_records(place, MANIFEST)[PART]
    hashes = read_hashes(place, PART, record, MANIFEST)
    assert len(hashes) == record.num_images
    assert (np.diff(hashes.astype(object)) > 0).all()
    assert np.isin(hashes, key_hashes(KEYS)).all()


@pytest.mark.parametrize("how", ["no header", "cut", "zeros", "other length"])
def test_what_is_no_such_file_is_refused(place, how):
    record = read_records(place, MANIFEST)[PART]
    file = place.folder / PART.data_name
    content = file.read_bytes()
    if how == "other length":
        record = PartRecord(**{**vars(record), "num_images": record.num_images + 1})
    else:
        changed = {"no header": content[:3], "cut": content[:100], "zeros": bytes(len(content))}
        file.write_bytes(changed[how])
    with pytest.raises(RunError, match=r"part-00003.safetensors (is|has).*restore it from a copy"):
        read_hashes(place, PART, record, MANIFEST)


def with_header(content, **changes):
    """A file whose header says something else."""
    length = header_bytes(content)
    header = json.loads(content[8 : 8 + length])
    for name, change in changes.items():
        header[name] = {**header.get(name, {}), **change} if isinstance(change, dict) else change
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codes": {"data_offsets": [2**50, 2**50 + 8]}}, "has other arrays"),
        ({"hashes": {"data_offsets": [-800, -704]}}, "has other arrays"),
        ({"codes": {"dtype": "I8"}}, "has other arrays"),
        ({"codes": {"dtype": 3}}, "'codes.dtype' is 3"),
        ({"codes": {"data_offsets": [0]}}, "'codes.data_offsets' is"),
        ({"codes": {"shape": "8"}}, "'codes.shape' is '8'"),
        ({"more": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}, "has other arrays"),
        ({"codes": [1]}, "'codes' is"),
    ],
)
def test_a_header_that_can_not_be_is_refused(place, changes, said):
    content = (place.folder / PART.data_name).read_bytes()
    changed = with_header(content, **changes)
    record = replace(read_records(place, MANIFEST)[PART], size=len(changed))
    with pytest.raises(RunError, match="part-00003.safetensors") as error:
        find_arrays(changed, place, PART, record, MANIFEST)
    assert said in str(error.value)


def test_a_header_of_all_there_is_is_not_taken_into_memory(place):
    record = read_records(place, MANIFEST)[PART]
    file = place.folder / PART.data_name
    content = (2**40).to_bytes(8, "little") + file.read_bytes()[8:]
    with pytest.raises(RunError, match="part-00003.safetensors is damaged; restore it"):
        find_arrays(content, place, PART, record, MANIFEST)
