import os
import socket

import pytest

from limbeck.errors import RunError
from limbeck.files import (
    NotRegular,
    check_regular,
    is_inside,
    open_file,
    printable,
    read_file,
    utf8_name,
    write_text,
    write_whole,
)


def test_a_regular_file_is_read_up_to_its_limit(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    assert read_file(file, 5) == b"12345"
    with open_file(file) as stream:
        assert stream.read() == b"12345"
    with pytest.raises(NotRegular, match="5 bytes, over the limit of 4"):
        read_file(file, 4)


def test_what_is_no_regular_file_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
        for name, kind in [("pipe", "a named pipe"), (".", "a folder")]:
            with pytest.raises(NotRegular, match=f"it is {kind}, not a regular file"):
                check_regular(tmp_path / name)
        with pytest.raises(OSError):
            check_regular(tmp_path / "s")
    with pytest.raises(NotRegular, match="a device"):
        check_regular("/dev/zero")


def test_a_sparse_giant_is_not_begun(tmp_path):
    with open(tmp_path / "giant", "wb") as stream:
        stream.truncate(2**41)
    with pytest.raises(NotRegular, match="over the limit"):
        check_regular(tmp_path / "giant")


def test_a_file_that_says_less_than_it_holds(tmp_path):
    with pytest.raises(NotRegular, match="more bytes than the limit of 3"):
        read_file("/proc/self/status", 3)


@pytest.mark.parametrize("name", ["a", "a/b.bin", "..a", "a..b"])
def test_names_that_stay_inside(name):
    assert is_inside(name)


@pytest.mark.parametrize(
    "name", ["", "/a", "../a", "a/../../b", "C:\\a", "C:a", "..\\a", "\\\\host\\a", "a\0b"]
)
def test_names_that_lead_out(name):
    assert not is_inside(name)


def test_text_that_is_no_utf_8_is_written(tmp_path):
    assert printable("caf\udce9") == "caf\\udce9"
    assert printable("a\x1b[31m\r\u202egpj.b\0") == "a\\x1b[31m\\r\\u202egpj.b\\x00"
    assert printable("ü 水 😀\n\tx") == "ü 水 😀\n\tx"
    write_text(tmp_path / "a.md", "caf\udce9 ü")
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "caf\\udce9 ü"


def test_a_name_for_libraries_that_take_utf_8_alone(tmp_path):
    for name in ("plain \u00fc", "caf\udce9"):
        (tmp_path / name).write_bytes(b"content")
        with utf8_name(tmp_path / name) as other:
            other.encode()
            with open(other, "rb") as stream:
                assert stream.read() == b"content"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "table.json"
    file.write_text("old")

    def write(stream):
        stream.write(b"new")
        raise ValueError

    with pytest.raises(ValueError):
        write_whole(file, write)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.json"]


def test_a_folder_that_is_gone_is_said(tmp_path):
    with pytest.raises(RunError, match="Can't write .*: No such file or directory"):
        write_text(tmp_path / "gone" / "a", "")
