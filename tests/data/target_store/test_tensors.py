"""The arrays of a part's file, found without reading it."""

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
