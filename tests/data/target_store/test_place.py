"""Folders, memory and S3 behave alike."""

import builtins
import os
import shutil
import threading
import time

import pytest

from limbeck.data.target_store import TargetReader, open_writer
from limbeck.data.target_store.place import LocalPlace, RemotePlace, Taken, open_place
from limbeck.errors import RunError, UserError
from tests.data.target_store.processes import end, start
from tests.data.target_store.stores import KEYS, MANIFEST, fill, other


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request, tmp_path):
    if request.param == "folder":
        return open_place(f"file://{tmp_path}/some/where")
    if request.param == "memory":
        return open_place(f"memory://{tmp_path}")
    return open_place(request.getfixturevalue("bucket") + "/some/where/")


def test_the_class_follows_from_the_address(tmp_path):
    assert isinstance(open_place("~/x"), LocalPlace)
    assert "~" not in open_place("~/x").address
    assert isinstance(open_place("memory://x"), RemotePlace)


def test_files_are_written_and_read(place):
    assert place.sizes() == {}
    assert place.size("a") is None
    place.begin()
    place.write("b", b"0123456789")
    place.write("a", b"old")
    place.write("a", b"new")
    assert place.sizes() == {"a": 3, "b": 10}
    assert place.read_all(["b", "a"]) == [b"0123456789", b"new"]
    assert place.read_all([]) == []
    assert place.read_range("b", 2, 5) == b"234"
    assert place.read_range("b", 8, 99) == b"89"
    assert place.size("b") == 10
    with pytest.raises(RunError, match=r"Can't read .*/?c?.*; correct the address"):
        place.read_all(["c"])


def test_a_claimed_file_is_made_once(place):
    place.begin()
    with place.claim("a") as publish:
        assert place.sizes() == {}
        publish(b"mine")
    with pytest.raises(Taken), place.claim("a"):
        pytest.fail("It is there already.")
    with pytest.raises(KeyError), place.claim("b"):
        raise KeyError
    assert list(place.sizes()) == ["a"]
    assert place.read_all(["a"]) == [b"mine"]


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path):
    place = open_place(str(tmp_path))
    (tmp_path / ".part-00000.json.partial").write_bytes(b"half")
    (tmp_path / ".part-00000.safetensors.partial").write_bytes(b"half")
    (tmp_path / ".own").touch()
    with place.claim("part-00001.json") as publish:
        place.sweep()
        assert sorted(os.listdir(tmp_path)) == [".own", ".part-00001.json.partial"]
        publish(b"mine")
    place.sweep()
    assert sorted(os.listdir(tmp_path)) == [".own", "part-00001.json"]


def test_a_folder_that_goes_is_not_made_again(tmp_path):
    place = open_place(str(tmp_path / "store"))
    place.begin()
    place.write("a", b"x")
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(RunError, match="Can't write .*store/b: the store's folder is gone; finish"):
        place.write("b", b"x")
    with pytest.raises(RunError, match="the store's folder is gone"), place.claim("c"):
        pytest.fail("It is gone.")
    assert not (tmp_path / "store").exists()


def test_a_link_in_the_way_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    store = tmp_path / "store"
    store.mkdir()
    (store / ".a.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="Can't write .*store/a: "):
        open_place(str(store)).write("a", b"x")
    assert (tmp_path / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize("address", ["", "file://", "a\0b"])
def test_what_is_no_path_is_told(address):
    with pytest.raises(UserError, match="The store .* can't be: that is no path"):
        open_place(address)
    assert open_place("/").address == "/"


def test_a_link_to_nothing_is_no_file(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "gone")
    (tmp_path / "b").touch()
    assert open_place(str(tmp_path)).sizes() == {"b": 0}


def test_without_locks_the_later_of_two_is_refused(bucket):
    place = open_place(bucket)
    with pytest.raises(Taken), place.claim("a") as later:
        with place.claim("a") as earlier:
            earlier(b"first")
        later(b"second")
    assert place.read_all(["a"]) == [b"first"]


def test_a_store_at_s3(bucket, tmp_path):
    address = f"{bucket}/stores/mine"
    writer = open_writer(address, MANIFEST)
    fill(writer, KEYS[:40], parts=(1, 2))
    with pytest.raises(UserError, match="2 of the 4 parts of s3.* are not written yet"):
        TargetReader(address, cache=tmp_path)
    fill(open_writer(address, MANIFEST), KEYS[:40])
    fill(open_writer(address, MANIFEST), KEYS)
    assert open_writer(address, MANIFEST).missing(KEYS) == {}
    assert len(TargetReader(address, cache=tmp_path)) == len(KEYS)
    with pytest.raises(UserError, match="s3://.* holds another store: num_views is 2 there and 3"):
        open_writer(address, other(num_views=3))


def test_errors_of_s3_are_one_sentence(bucket):
    place = open_place("s3://no-such-bucket/x")
    with pytest.raises(RunError, match="Can't write s3://no-such-bucket/x/a: .*; finished parts"):
        place.write("a", b"x")
    with (
        pytest.raises(RunError, match="Can't write s3://no-such-bucket/x/a: "),
        place.claim("a") as publish,
    ):
        publish(b"x")
    with pytest.raises(UserError, match="x: there is no store"):
        TargetReader(f"{bucket}/x")


def test_what_is_not_installed_is_said(monkeypatch):
    with pytest.raises(UserError, match="The store nosuch://x can't be opened: Protocol not known"):
        open_place("nosuch://x")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "s3fs":
            raise ImportError("Install s3fs to access S3")
        return real(name, *args, **kwargs)

    monkeypatch.setattr("fsspec.core.url_to_fs", lambda address: __import__("s3fs"))
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"A store at s3:// needs the package 's3fs'.*\[remote\]"):
        open_place("s3://bucket/x")


def test_processes_that_wait_for_each_other_s_files_get_them_when_they_are_made(tmp_path):
    """Crosswise, as threads of two processes do: no deadlock, since other threads go on."""
    folder = tmp_path / "store"
    folder.mkdir()

    def work(own, other):
        place, found = open_place(str(folder)), []

        def wait_for_other():
            try:
                with place.claim(other, wait=True):
                    found.append("nothing")
            except Taken:
                found.append(place.read_all([other]))

        waiting = threading.Thread(target=wait_for_other)
        with place.claim(own) as publish:
            (tmp_path / f"{own}.held").touch()
            while not (tmp_path / f"{other}.held").exists():
                time.sleep(0.01)
            waiting.start()
            time.sleep(0.2)  # both wait now
            publish(own.encode())
        waiting.join()
        assert found == [[other.encode()]]

    children = [start(lambda own=own: work(own, "ab".replace(own, ""))) for own in "ab"]
    assert [end(child) for child in children] == [0, 0]
