"""Writing: what is left, killed processes, several at once, full disks."""

import os
import resource
import signal
from hashlib import sha256

import numpy as np
import pytest
import torch

from limbeck.data.target_store import TargetReader, key_hashes, open_writer, part_of
from limbeck.data.target_store.place import open_place
from limbeck.data.target_store.writer import read_weights
from limbeck.errors import RunError, UserError
from tests.data.target_store.processes import end, killed_at, small_disk, start
from tests.data.target_store.stores import (
    KEYS,
    MANIFEST,
    arrays_of,
    assert_holds,
    fill,
    other,
    write_store,
)

PARTS = part_of(key_hashes(KEYS), 4)


def keys_of(part):
    return [key for key, of in zip(KEYS, PARTS, strict=True) if of == part]


def write_part(writer, part, keys, **options):
    writer.write_part(part, key_hashes(keys), arrays_of(keys), **options)


def test_what_is_left(tmp_path):
    writer = open_writer(str(tmp_path / "new" / "store"), MANIFEST)
    left = writer.missing(KEYS)
    assert {part: places.tolist() for part, places in left.items()} == {
        part: np.flatnonzero(part == PARTS).tolist() for part in range(4)
    }
    fill(writer, KEYS, parts=(0, 2))
    assert list(writer.missing(KEYS)) == [1, 3]
    assert list(writer.missing(KEYS[:0])) == [1, 3]  # no key, but never written
    fill(writer, KEYS)
    assert writer.missing(KEYS) == {}
    assert writer.missing(list(reversed(KEYS[10:]))) == {}


def test_added_images_are_filled_in_and_nothing_else_moves(tmp_path):
    write_store(tmp_path, KEYS[:40])
    rows = TargetReader(str(tmp_path)).locate(KEYS[:40])
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    writer = open_writer(str(tmp_path), other(data={"root": "elsewhere"}, num_parts=1))
    assert writer.manifest.num_parts == 4  # as it was begun
    left = writer.missing(KEYS)
    assert sorted(np.concatenate(list(left.values())).tolist()) == list(range(40, 60))
    fill(writer, KEYS)
    assert (tmp_path / "part-00000.1.safetensors").exists()
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    reader = TargetReader(str(tmp_path))
    np.testing.assert_array_equal(reader.locate(KEYS[:40]), rows)
    assert_holds(reader, KEYS)
    assert len(reader) == len(KEYS)


def test_skipped_images_count_as_done_until_they_are_tried_again(tmp_path):
    write_store(tmp_path, skipped=KEYS[:2])
    writer = open_writer(str(tmp_path), MANIFEST)
    assert writer.missing(KEYS) == {}
    left = writer.missing(KEYS, retry_skipped=True)
    assert sorted(np.concatenate(list(left.values())).tolist()) == [0, 1]
    before = sorted(os.listdir(tmp_path))
    part = int(PARTS[0])
    write_part(writer, part, [], skipped={KEYS[0]: "still cut short"})
    assert sorted(os.listdir(tmp_path)) == before  # nothing new, so no file
    write_part(writer, part, KEYS[:1])
    assert TargetReader(str(tmp_path)).locate(KEYS[:2]).tolist() == [part << 42 | 1 << 32, -2]


def test_writing_a_part_reads_no_other(tmp_path, monkeypatch):
    """Of thousands of parts each would else be read thousands of times."""
    writer = open_writer(str(tmp_path), MANIFEST)
    fill(writer, KEYS, parts=(0, 1, 2))
    seen = []
    monkeypatch.setattr(writer.place, "read_all", lambda names: seen.extend(names))
    monkeypatch.setattr(writer.place, "sizes", lambda: seen.append("all"))
    write_part(writer, 3, keys_of(3))
    assert seen == []


def test_order_within_a_part_does_not_matter(tmp_path):
    keys = keys_of(1)
    for name, order in (("a", keys), ("b", keys[::-1])):
        write_part(open_writer(str(tmp_path / name), MANIFEST), 1, order)
    file = "part-00001.safetensors"
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_same_image_twice_is_refused(tmp_path):
    writer = open_writer(str(tmp_path), MANIFEST)
    with pytest.raises(UserError, match="Two images have the same name, 'a'"):
        writer.missing(["a", "b", "a"])
    keys = keys_of(0)
    with pytest.raises(RunError, match="or are named twice"):
        write_part(writer, 0, [*keys, keys[0]])
    write_part(writer, 0, keys[:3])
    with pytest.raises(RunError, match="Some images of part 0 have records"):
        write_part(writer, 0, keys[2:])
    assert sorted(os.listdir(tmp_path)) == [
        "manifest.json",
        "part-00000.json",
        "part-00000.safetensors",
    ]


def test_two_names_with_one_hash_are_refused(tmp_path, monkeypatch):
    # No such pair of 64 bits is known; two of 0 bits are.
    monkeypatch.setattr(
        "limbeck.data.target_store.writer.key_hashes", lambda keys: np.zeros(len(list(keys)), "u8")
    )
    with pytest.raises(UserError, match="'a' and 'b' have the same 64-bit hash; rename one"):
        open_writer(str(tmp_path), MANIFEST).missing(["a", "b"])


def test_records_of_another_part_or_number_are_refused(tmp_path):
    writer = open_writer(str(tmp_path), MANIFEST)
    with pytest.raises(ValueError, match="do not belong to part 1"):
        write_part(writer, 1, keys_of(0))
    with pytest.raises(ValueError, match="3 hashes are not one for each image"):
        writer.write_part(0, key_hashes(KEYS[:3]), arrays_of(KEYS[:2]))


def test_another_store_or_other_files_are_refused(tmp_path, caplog):
    write_store(tmp_path)
    with pytest.raises(UserError, match=r"holds another store: params.k is 3 there and 5 here\. "):
        open_writer(str(tmp_path), other(params={"k": 5}))
    with pytest.raises(UserError, match="holds weights of another teacher; choose another place"):
        open_writer(str(tmp_path), MANIFEST, {"norm": torch.ones(2)})
    open_writer(str(tmp_path), other(versions={"numpy": "2.5"}))
    assert "was begun with numpy 2.4; this is 2.5" in caplog.text
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"not empty and holds no store \(a.jpg\); choose another"):
        open_writer(str(tmp_path / "photos"), MANIFEST)


def test_the_weights_written_first_count(tmp_path):
    weights = {"norm": torch.arange(3.0)}
    writer = open_writer(str(tmp_path), MANIFEST, weights)
    again = open_writer(str(tmp_path), MANIFEST, {"norm": weights["norm"] + 1e-6})
    torch.testing.assert_close(again.weights(), weights, rtol=0, atol=0)
    with pytest.raises(UserError, match="holds weights of another teacher"):
        open_writer(str(tmp_path), MANIFEST, {"norm": -weights["norm"]})
    fill(writer, KEYS)
    torch.testing.assert_close(TargetReader(str(tmp_path)).weights(), weights, rtol=0, atol=0)
    assert TargetReader(str(write_store(tmp_path / "without"))).weights() == {}


def test_weights_that_are_lost_or_damaged_are_told_and_written_again(tmp_path):
    weights, file = {"norm": torch.arange(3.0)}, tmp_path / "weights.safetensors"
    fill(open_writer(str(tmp_path), MANIFEST, weights), KEYS)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\1")
    with pytest.raises(RunError, match="weights.safetensors is not what was written; delete it"):
        TargetReader(str(tmp_path)).weights()
    file.unlink()
    with pytest.raises(RunError, match="weights.safetensors is missing; run the same limbeck"):
        TargetReader(str(tmp_path)).weights()
    open_writer(str(tmp_path), MANIFEST, weights)
    assert file.read_bytes() == content


def test_killed_after_the_weights(tmp_path):
    weights = {"norm": torch.arange(3.0)}

    def work():
        killed_at("before", 2)
        open_writer(str(tmp_path), MANIFEST, weights)

    assert end(start(work)) == -signal.SIGKILL
    assert "weights.safetensors" in os.listdir(tmp_path)
    assert open_writer(str(tmp_path), MANIFEST, weights).weights().keys() == weights.keys()


# Files in the order they are written: the manifest, then of each part its data and its json.
@pytest.mark.parametrize(("number", "num_finished"), [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1)])
@pytest.mark.parametrize("moment", ["before", "half", "written", "renamed"])
def test_killed_at_any_moment_and_resumed(tmp_path, number, moment, num_finished):
    """kill -9 of a process loses the part that it was writing, and no other."""

    def work():
        killed_at(moment, number)
        write_store(tmp_path)

    assert end(start(work)) == -signal.SIGKILL
    finished = {file.name: file.read_bytes() for file in tmp_path.glob("part-*.json")}
    is_json = number > 1 and number % 2
    assert len(finished) == num_finished + (moment == "renamed" and is_json)
    if number > 1:
        with pytest.raises(UserError, match=r"parts of .* are not written yet; run the same"):
            TargetReader(str(tmp_path))
    write_store(tmp_path)
    for name, content in finished.items():
        assert (tmp_path / name).read_bytes() == content
    assert_holds(TargetReader(str(tmp_path)), KEYS)
    assert not list(tmp_path.glob(".*"))  # nothing half-written stays


def test_several_processes_at_once(tmp_path):
    def work(rank):
        writer = open_writer(str(tmp_path / "store"), MANIFEST)
        fill(writer, KEYS, parts=range(rank, 4, 3))

    children = [start(lambda rank=rank: work(rank)) for rank in range(3)]
    assert [end(child) for child in children] == [0, 0, 0]
    assert_holds(TargetReader(str(tmp_path / "store")), KEYS)


def test_of_two_different_stores_at_once_one_is_refused(tmp_path, capfd):
    def work(seed):
        open_writer(str(tmp_path / "store"), other(recipe={"seed": seed}))

    children = [start(lambda seed=seed: work(seed)) for seed in (1, 2)]
    assert sorted(end(child) for child in children) == [0, 1]
    assert "holds another store: recipe.seed is" in capfd.readouterr().err


def test_two_writers_of_one_part(tmp_path):
    writer = open_writer(str(tmp_path), MANIFEST)
    is_claimed, may_end = os.pipe(), os.pipe()

    def work():
        with writer.place.claim("part-00000.json"):
            os.write(is_claimed[1], b"x")
            os.read(may_end[0], 1)
        write_part(writer, 0, keys_of(0))

    child = start(work)
    os.read(is_claimed[0], 1)
    with pytest.raises(RunError, match="Another process is writing the same part of the store"):
        write_part(writer, 0, keys_of(0))
    os.write(may_end[1], b"x")
    assert end(child) == 0
    with pytest.raises(RunError, match="Some images of part 0 have records"):
        write_part(writer, 0, keys_of(0))
    for descriptor in (*is_claimed, *may_end):
        os.close(descriptor)


def test_a_full_disk_is_told_and_resumed(tmp_path):
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        ballast = disk / ".ballast"
        writer = open_writer(str(disk / "store"), MANIFEST)
        fill(writer, KEYS, parts=(0,))
        ballast.write_bytes(bytes(48 * 1024))  # of 16 blocks one is left
        with pytest.raises(RunError, match=r"Can't write .*: the disk is full; finished parts are"):
            fill(writer, KEYS)
        ballast.unlink()
        assert "3 of the 4 parts" in TargetReader(str(disk / "store"), tolerant=True).problems[0]
        fill(writer, KEYS)
        assert_holds(TargetReader(str(disk / "store")), KEYS)


def test_a_file_that_may_not_grow_is_told(tmp_path):
    writer = open_writer(str(tmp_path), MANIFEST)

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        with pytest.raises(RunError, match="part-00000.safetensors: the disk is full; finished"):
            fill(writer, KEYS)

    assert end(start(work)) == 0
    assert os.listdir(tmp_path) == ["manifest.json"]  # what was begun does not fill the disk


def test_a_store_that_goes_while_it_is_written_is_told(tmp_path):
    store = tmp_path / "store"
    writer = open_writer(str(store), MANIFEST)
    fill(writer, KEYS, parts=(0, 1))
    writer.check_there((0, 1))
    store.rename(tmp_path / "moved")
    with pytest.raises(RunError, match="the store's folder is gone; finished parts are kept"):
        fill(writer, KEYS, parts=(2,))
    store.mkdir()  # by somebody else
    write_part(writer, 2, keys_of(2))
    with pytest.raises(RunError, match=r"has lost manifest.json \(and 0 more files\) while it was"):
        writer.check_there((2,))


def test_what_a_killed_writer_left_is_swept_when_it_goes_on(tmp_path):
    write_store(tmp_path)
    (tmp_path / ".part-00002.safetensors.partial").write_bytes(b"half")
    open_writer(str(tmp_path), MANIFEST)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("content", [b"", b"no weights", b"\xff" * 100])
def test_weights_that_are_none_are_told(tmp_path, content):
    open_writer(str(tmp_path), MANIFEST, {"norm": torch.ones(2)})
    (tmp_path / "weights.safetensors").write_bytes(content)
    manifest = other(weights=sha256(content).hexdigest())
    with pytest.raises(RunError, match="weights.safetensors holds no weights .*; write the store"):
        read_weights(open_place(str(tmp_path)), manifest)


def test_a_read_only_folder_is_told(tmp_path):
    said = "Can't write .*: Read-only file system; finished parts"
    with small_disk(tmp_path / "disk", "ro") as disk, pytest.raises(RunError, match=said):
        open_writer(str(disk), MANIFEST)
