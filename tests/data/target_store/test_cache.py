"""Copies of a store that is not local."""

import os
import re

import fsspec
import pytest

from limbeck.data.target_store import TargetReader, place
from limbeck.errors import RunError, UserError
from tests.data.target_store.processes import end, start
from tests.data.target_store.stores import KEYS, MANIFEST, assert_holds, write_store


@pytest.fixture
def address(tmp_path):
    return write_store(f"memory://{tmp_path}/store")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "copies"


def copies_in(folder):
    return sorted(file.name for file in (folder / MANIFEST.store_id).iterdir())


def test_parts_are_copied_once_and_that_is_said(address, folder, caplog):
    caplog.set_level("INFO")
    assert_holds(TargetReader(address, cache=folder), KEYS)
    said = f"4 of 4 parts (0.00 GB) are copied to {folder}/{MANIFEST.store_id}."
    assert said in caplog.text
    names = copies_in(folder)
    assert [re.sub("-[0-9a-f]{16}", "", name) for name in names] == [
        f"part-0000{part}.safetensors" for part in range(4)
    ]
    times = [(folder / MANIFEST.store_id / name).stat().st_mtime_ns for name in names]
    assert_holds(TargetReader(address, cache=folder), KEYS)
    assert "0 of 4 parts" in caplog.text
    assert times == [(folder / MANIFEST.store_id / name).stat().st_mtime_ns for name in names]


def test_the_usual_folder_is_the_user_s(monkeypatch, tmp_path, address):
    monkeypatch.setenv("HOME", str(tmp_path))
    TargetReader(address)
    assert len(copies_in(tmp_path / ".cache" / "limbeck" / "targets")) == 4


def test_a_part_damaged_at_its_origin_is_not_kept(address, folder):
    store, root = fsspec.core.url_to_fs(address)
    content = bytearray(store.cat_file(f"{root}/part-00002.safetensors"))
    content[-1] ^= 1
    store.pipe_file(f"{root}/part-00002.safetensors", bytes(content))
    with pytest.raises(RunError, match="memory:.*part-00002.safetensors is not what was written"):
        TargetReader(address, cache=folder)
    assert not any("part-00002" in name for name in copies_in(folder))


def test_a_damaged_copy_is_told_and_a_short_one_made_anew(address, folder):
    TargetReader(address, cache=folder)
    first, second = (folder / MANIFEST.store_id / name for name in copies_in(folder)[:2])
    first.write_bytes(first.read_bytes()[:-1])
    assert_holds(TargetReader(address, cache=folder), KEYS)
    content = bytearray(second.read_bytes())
    content[-1] ^= 1
    second.write_bytes(content)
    with pytest.raises(RunError, match=r"a copy of memory.*is not what was copied; delete it and"):
        TargetReader(address, cache=folder)
    second.unlink()
    assert_holds(TargetReader(address, cache=folder), KEYS)


def test_processes_of_a_machine_share_the_copies(address, folder):
    def work(rank):
        assert_holds(TargetReader(address, cache=folder, rank=rank, world_size=2), KEYS)

    children = [start(lambda rank=rank: work(rank)) for rank in range(2)]
    assert [end(child) for child in children] == [0, 0]
    assert len(copies_in(folder)) == 4
    assert not [name for name in os.listdir(folder / MANIFEST.store_id) if name.startswith(".")]


def test_no_room_is_told_beforehand(address, folder, monkeypatch):
    monkeypatch.setattr(place.shutil, "disk_usage", lambda path: type("Free", (), {"free": 10}))
    with pytest.raises(UserError, match="need 0.00 GB and .*copies.* has 0.00 GB free; free some"):
        TargetReader(address, cache=folder)


def test_a_store_at_s3_is_copied_and_read(bucket, folder):
    address = write_store(f"{bucket}/store")
    assert_holds(TargetReader(address, cache=folder), KEYS)
