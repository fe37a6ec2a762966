import json
import os

import pytest
from typing_extensions import TypedDict

from limbeck.documents import (
    MAX_DEPTH,
    as_read,
    differing,
    fit,
    flat,
    parse_json,
    parse_toml,
    read_json,
    read_toml,
    read_yaml,
    to_json,
    write_json,
)
from limbeck.errors import UserError


class Shape(TypedDict, total=False):
    side: int
    names: list[str]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "Can't read .* as JSON: "),
        (b"[1]", "not an object"),
        (b"\xff", "it is not UTF-8 text"),
        (b'{"a": NaN}', "it holds NaN"),
        (b'{"a": %s1%s}' % (b"[" * 500, b"]" * 500), "nested deeper than 64"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": %s}' % (b"1" * 5000), "Can't read"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_json_object(tmp_path, content, words):
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_json(file)


def test_a_large_file_is_not_begun(tmp_path):
    with open(tmp_path / "a.json", "wb") as stream:
        stream.truncate(2**30)
    with pytest.raises(UserError, match="over the limit"):
        read_json(tmp_path / "a.json")


def test_a_json_object_is_read(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert parse_json(b"\xef\xbb\xbf[1]", list[int]) == [1]


def test_another_kind_is_named_with_its_place():
    assert parse_json('{"side": 3, "names": ["a"]}', Shape) == {"side": 3, "names": ["a"]}
    with pytest.raises(UserError, match="x.json: the entry 'side' is 'wide': input should be"):
        parse_json('{"side": "wide"}', Shape, "x.json")
    with pytest.raises(UserError, match="the entry 'names.1' is None"):
        parse_json('{"names": ["a", null]}', Shape, "x.json")
    with pytest.raises(UserError, match="x.json holds .*, not an object"):
        parse_json("3", Shape, "x.json")


def test_depth_is_counted_without_recursion():
    deep: list = []
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    assert fit(deep, list, "it") == deep
    with pytest.raises(UserError, match="deeper"):
        fit([[deep]], list, "it")


@pytest.mark.parametrize("content", ["a =", "a = " + "[" * 5000, "a = 1\na = 2"])
def test_text_that_is_no_toml(content):
    with pytest.raises(UserError, match="Can't read the text as TOML"):
        parse_toml(content)


def test_a_toml_file_is_read(tmp_path):
    (tmp_path / "a.toml").write_text("[a]\nb = 1\n")
    assert read_toml(tmp_path / "a.toml") == {"a": {"b": 1}}


def test_names_that_are_no_utf_8_read_back(tmp_path):
    values = {"caf\udce9": "ü"}
    write_json(tmp_path / "a.json", values)
    assert read_json(tmp_path / "a.json") == values
    assert to_json({"ü": 1}, indent=None) == '{"ü": 1}'
    with pytest.raises(ValueError):
        to_json({"a": float("nan")})
    assert json.loads(to_json(values)) == values


def test_plain_data_as_it_is_read_back():
    name = os.fsdecode(b"\xff")
    assert as_read({"a": (1, 2), 3: name, "b": 0.1}) == {"a": [1, 2], "3": name, "b": 0.1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_read({"a": float("nan")})


def test_nested_data_by_dotted_name():
    nested = {"a": {"b": 1, "c": {"d": [2]}}, "e": {}, "f": None}
    assert flat(nested) == {"a.b": 1, "a.c.d": [2], "e": {}, "f": None}


def test_what_differs_in_flat_data_is_told_as_json():
    there, here = {"a": 1, "b": "x", "c": [1]}, {"a": 1, "b": "y", "d": None}
    assert differing(there, here) == [
        ("b", '"x"', '"y"'), ("d", "absent", "null"), ("c", "[1]", "absent")
    ]  # fmt: skip


def test_every_value_of_yaml_is_text(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("names: [yes, no, 1.0]\n2: {a: ~}  # so\n")
    assert read_yaml(file) == {"names": ["yes", "no", "1.0"], "2": {"a": "~"}}


@pytest.mark.parametrize("text", ["a: [", "a: &x 1\nb: *x", "a: &x [*x]", "a", "[" * 9000, "\x00"])
def test_text_that_is_no_yaml(text, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="x.yaml"):
        read_yaml(file)
