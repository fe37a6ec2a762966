"""Reading: rows, views, workers, and every kind of damage."""

import os
import pickle
import re

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from limbeck.data.target_store import MISSING, SKIPPED, TargetReader
from limbeck.data.target_store.parts import PartKey
from limbeck.errors import RunError, UserError
from tests.data.target_store.stores import KEYS, MANIFEST, arrays_of, assert_holds, write_store


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "store", KEYS, skipped=KEYS[:2])


def test_it_says_what_was_written(store):
    reader = TargetReader(str(store))
    assert reader.manifest.identity == MANIFEST.identity
    assert (reader.num_views, len(reader), reader.problems) == (2, 58, [])
    assert_holds(reader, KEYS[2:])
    assert [each["pixels"] for each in reader.fingerprints()] == ["00"] * 4


def test_keys_without_records(store):
    rows = TargetReader(str(store)).locate([KEYS[0], "no such.jpg", KEYS[2]])
    assert rows[:2].tolist() == [SKIPPED, MISSING]
    assert rows[2] >= 0
    with pytest.raises(ValueError, match="Some rows have no records"):
        TargetReader(str(store)).read(rows, 0)
    assert TargetReader(str(store)).locate([]).shape == (0,)


def test_a_view_for_each_row(store):
    reader = TargetReader(str(store))
    views = np.array([0, 1, 1])
    found = reader.read(reader.locate(KEYS[5:8]), views)
    expected = arrays_of(KEYS[5:8])["scales"][np.arange(3), views]
    np.testing.assert_array_equal(found["scales"], expected)
    for view in (2, -1, np.array([0, 1, 2])):
        with pytest.raises(ValueError, match=r"There are views 0\.\.1, and"):
            reader.read(reader.locate(KEYS[5:8]), view)
    found["scales"][:] = 0  # its own copy, which may be changed
    assert reader.read(reader.locate(KEYS[5:8]), 0)["codes"].flags.writeable
    assert reader.read(np.empty(0, np.int64), 0)["codes"].shape == (0, 8)


def test_repeated_rows_of_any_order(store):
    reader = TargetReader(str(store))
    keys = [KEYS[9], KEYS[3], KEYS[9], KEYS[40]]
    assert_holds(reader, keys)


def test_no_file_stays_open_and_sending_it_is_cheap(store):
    reader = TargetReader(str(store))
    before = len(os.listdir("/proc/self/fd"))
    assert_holds(reader, KEYS[2:])
    assert len(os.listdir("/proc/self/fd")) == before
    sent = pickle.dumps(reader)
    assert len(sent) < 10_000
    assert_holds(pickle.loads(sent), KEYS[2:])


class Records(Dataset):
    def __init__(self, reader, rows):
        self.reader, self.rows = reader, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return self.reader.read(self.rows[place : place + 1], 1)["codes"][0]


def test_workers_read_what_the_main_process_reads(store):
    reader = TargetReader(str(store))
    rows = reader.locate(KEYS[2:])
    loader = DataLoader(
        Records(reader, rows), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    found = np.stack([np.asarray(record) for record in loader])
    np.testing.assert_array_equal(found, arrays_of(KEYS[2:])["codes"][:, 1])


def damage_of(change):
    """A change of the bytes of part 1."""

    def act(folder):
        file = folder / "part-00001.safetensors"
        content = bytearray(file.read_bytes())
        change(content)
        file.write_bytes(content)

    return act


def flip(content):
    content[-5] ^= 4


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_of(flip), "part-00001.safetensors is not what was written (its checksum differs)"),
        (damage_of(lambda c: c.__delitem__(slice(-9, None))), "bytes, and "),
        (damage_of(lambda c: c.clear()), "part-00001.safetensors has 0 bytes, and "),
        (damage_of(lambda c: c.append(0)), "bytes, and "),
        (lambda d: (d / "part-00001.safetensors").unlink(), "part-00001.safetensors is missing"),
        (lambda d: (d / "part-00001.json").write_bytes(b"{"), "part-00001.json is damaged"),
    ],
)
def test_a_damaged_part_is_named_with_its_remedy(store, damage, said):
    damage(store)
    with pytest.raises(RunError, match=re.escape(said)) as error:
        TargetReader(str(store))
    assert "restore it from a copy, or delete part-00001.* and run the same" in str(error.value)


def test_the_remedy_works(store):
    damage_of(flip)(store)
    for file in store.glob("part-00001.*"):
        file.unlink()
    with pytest.raises(UserError, match="1 of the 4 parts of .* are not written yet"):
        TargetReader(str(store))
    write_store(store, skipped=KEYS[:2])
    assert_holds(TargetReader(str(store)), KEYS[2:])


def test_checksums_may_be_left_out_or_shared(store, caplog):
    damage_of(flip)(store)
    TargetReader(str(store), verify=False)
    TargetReader(str(store), rank=0, world_size=2)  # parts 0 and 2
    with pytest.raises(RunError, match="part-00001"):
        TargetReader(str(store), rank=1, world_size=2)
    reader = TargetReader(str(store), verify=False)
    assert reader.damage(PartKey(0, 0)) is None
    assert "checksum" in str(reader.damage(PartKey(1, 0)))
    caplog.set_level("INFO")
    reader.verify(rank=0, world_size=2)
    assert re.search(r"Checksums of 2 parts \(0.00 GB\) were compared in \d+\.\d s", caplog.text)


def test_a_part_with_other_arrays_is_refused(store, monkeypatch):
    reader = TargetReader(str(store))
    reader.manifest.arrays.pop("scales")
    with pytest.raises(RunError, match="part-00000.safetensors has other arrays than the manifest"):
        reader.read(np.zeros(1, np.int64), 0)


def test_no_store(store, tmp_path):
    with pytest.raises(UserError, match="nowhere: there is no store .*or write one with limbeck"):
        TargetReader(str(tmp_path / "nowhere"))
    (store / "manifest.json").unlink()
    with pytest.raises(UserError, match="manifest.json is missing; restore it from a copy"):
        TargetReader(str(store))


def test_a_foreign_file_is_left_alone(store):
    (store / "notes.txt").write_text("mine")
    assert_holds(TargetReader(str(store)), KEYS[2:])
    (store / "part-00001.1.safetensors").write_bytes(b"copied here without its json")
    assert_holds(TargetReader(str(store)), KEYS[2:])


def test_a_cache_without_effect_is_refused(store, tmp_path):
    with pytest.raises(UserError, match="A cache has no effect on .*, which is local"):
        TargetReader(str(store), cache=tmp_path)


def test_with_tolerance_all_problems_are_listed(store):
    damage_of(flip)(store)
    (store / "part-00002.safetensors").unlink()
    (store / "part-00003.json").write_bytes(b"{")
    reader = TargetReader(str(store), tolerant=True)
    assert list(reader.records) == [PartKey(0, 0)]
    said = ["00002.safetensors is missing", "00003.json is damaged", "checksum differs"]
    assert len(reader.problems) == 3
    for problem, expected in zip(reader.problems, said, strict=True):
        assert expected in problem
