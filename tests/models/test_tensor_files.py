"""The door for files of tensors: what is refused before memory is taken, what becomes float32."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import UserError
from limbeck.models.tensor_files import (
    NotFiniteWeights,
    as_float32,
    check_file,
    check_finite,
    check_plain,
    find_not_finite,
    read_safetensors,
)

VALUES = torch.tensor([[0.5, -2.0], [1.0, 0.25]])


def test_tensors_and_metadata_come_back(tmp_path):
    save_file({"a": VALUES}, tmp_path / "a.safetensors", {"num_heads": "3"})
    weights, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert torch.equal(weights["a"], VALUES)
    assert metadata == {"num_heads": "3"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(UserError, match="named pipe, not a regular file"):
        read_safetensors(tmp_path / "pipe.safetensors")
    (tmp_path / "self.pth").symlink_to(tmp_path / "self.pth")
    with pytest.raises(UserError, match=r"Can't read .*self\.pth.*get it again"):
        check_file(tmp_path / "self.pth")


@pytest.mark.skipif(not hasattr(os, "SEEK_HOLE"), reason="holes can't be told")
def test_a_file_of_holes_is_a_download_that_has_not_finished(tmp_path):
    size = 10**10
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(tmp_path / "a.safetensors", "wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(stream.tell() + size)
    with pytest.raises(UserError, match="bytes were never written, as of a download"):
        read_safetensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("entry", "size"),
    [
        ({"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}, 4),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, 4),
        ({"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}, 4),
        ([1], 4),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, entry, size):
    text = json.dumps({"a": entry}).encode()
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * size)
    with pytest.raises(UserError, match="as safetensors: .*get it again"):
        read_safetensors(file)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_refused(tmp_path):
    value = torch.quantize_per_tensor(VALUES, 0.1, 0, torch.qint8)
    with pytest.raises(UserError, match="'a' is quantised"):
        check_plain({"a": value}, tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (VALUES.to_sparse(), "'a' is sparse"),
        (VALUES.to("meta"), "'a' is on the device 'meta'"),
        (torch.zeros(1).expand(10**6, 10**6), "claims tensors of 4,000,000,000,000"),
    ],
)
def test_what_is_no_tensor_of_the_file_itself_is_refused(tmp_path, value, message):
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(UserError, match=message):
        check_plain({"a": value}, tmp_path / "a.pth")
    check_plain({"a": VALUES, "tied": VALUES}, tmp_path / "a.pth")


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float32]
)
def test_floats_become_float32_and_lose_nothing(dtype):
    read = as_float32({"a": VALUES.to(dtype)}, "here")["a"]
    assert read.dtype == torch.float32
    assert torch.equal(read, VALUES)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64]
)
def test_other_types_are_no_weights(dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=f"here: the tensor 'a' is of {name}"):
        as_float32({"a": VALUES.to(dtype)}, "here")


def test_tables_of_indices_and_counters_stay():
    tables = {"attn.relative_position_index": torch.arange(4), "n": torch.tensor(3)}
    read = as_float32(tables, "here")
    assert all(read[name] is value for name, value in tables.items())


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_named(wrong):
    bad = VALUES.clone()
    bad[1, 0] = wrong
    weights = {"a": VALUES, "empty": torch.zeros(0), "ids": torch.arange(3), "b": bad}
    with pytest.raises(NotFiniteWeights, match=r"of here .*'b' holds NaN or infinity \(1 of 4 val"):
        check_finite(weights, "here")
    assert find_not_finite({"a": VALUES}) == ""


def test_of_a_network_the_parameters_are_looked_at():
    network = torch.nn.Linear(2, 2)
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))  # as of a causal attention
    check_finite(network, "here")
    torch.nn.init.constant_(network.bias, torch.nan)
    with pytest.raises(NotFiniteWeights, match="'bias'"):
        check_finite(network, "here")
