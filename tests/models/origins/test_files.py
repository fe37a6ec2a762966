"""Packings of weights files: containers, prefixes, what is no weights file and what is damaged."""

import datetime

import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import UserError
from limbeck.models.origins.files import read_weights
from limbeck.models.origins.load import load_encoder
from tests.models.origins import writers


@pytest.mark.parametrize("container", ["model", "state_dict", "module", "teacher", "student"])
def test_containers_are_opened(tmp_path, container):
    weights = writers.mae_encoder()
    torch.save({container: weights, "epoch": 1}, tmp_path / "a.pth")
    read, info = read_weights(tmp_path / "a.pth")
    assert read.keys() == weights.keys()
    assert info.containers == (container,)
    assert info.other_entries == ("epoch",)


def test_a_choice_among_containers_is_said(tmp_path):
    weights = writers.mae_encoder(192)
    torch.save({"model_ema": weights, "model": weights}, tmp_path / "a.pth")
    notes = load_encoder(tmp_path / "a.pth").facts.origin["notes"]
    assert "Weights of 'model'; the file also has model_ema." in notes


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module.encoder.", "backbone."])
def test_shared_prefixes_are_removed(tmp_path, prefix):
    weights = writers.mae_encoder()
    save_file({prefix + n: value for n, value in weights.items()}, tmp_path / "a.safetensors")
    read, info = read_weights(tmp_path / "a.safetensors")
    assert read.keys() == weights.keys()
    assert info.prefix == prefix


def test_a_published_file_with_its_namespace_is_read(tmp_path):
    weights = writers.mae_encoder()
    read, info = read_weights(writers.save_published(tmp_path / "mae.pth", weights))
    assert all(torch.equal(read[name], value) for name, value in weights.items())
    assert info.other_entries == ("optimizer", "epoch", "args")


def test_other_pickled_objects_are_refused_with_the_remedy(tmp_path):
    file = writers.save_published(tmp_path / "a.pth", {}, date=datetime.date(2023, 1, 1))
    with pytest.raises(UserError, match=r"datetime\.date.*could run code.*torch\.save"):
        read_weights(file)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"no weights at all", b"\x00" * 100, b"jkl", b"hello\n", b"version https://x\n"],
)
def test_damaged_files_are_said_to_be(tmp_path, suffix, content):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"Can't read .*a\..*get it again"):
        load_encoder(file)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files_are_said_to_be(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    weights = writers.mae_encoder()
    save_file(weights, whole) if suffix == ".safetensors" else torch.save(weights, whole)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"Can't read .*cut"):
        load_encoder(cut)


@pytest.mark.parametrize("content", [{"epoch": 1}, [1, 2], {}, {"model": {"epoch": 1}}])
def test_files_without_tensors_say_what_they_hold(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match="holds no tensors by name"):
        read_weights(tmp_path / "a.pth")


def test_an_average_is_taken_only_alone(tmp_path):
    last = writers.mae_encoder()
    average = {name: value + 1 for name, value in last.items()}
    for main, other in (("model", "model_ema"), ("state_dict", "state_dict_ema")):
        torch.save({main: last, other: average, "epoch": 3}, tmp_path / "a.pth")
        read, info = read_weights(tmp_path / "a.pth")
        assert torch.equal(read["cls_token"], last["cls_token"])
        assert info.notes == [f"Weights of '{main}'; the file also has {other}."]
        torch.save({other: average}, tmp_path / "b.pth")
        assert torch.equal(read_weights(tmp_path / "b.pth")[0]["cls_token"], average["cls_token"])


def test_a_dictionary_may_hold_itself(tmp_path):
    content = {}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match="holds no tensors by name"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("told", ["0", "-1", "9" * 5000, "three", ""])
def test_head_counts_that_are_none_are_refused(tmp_path, told):
    save_file(writers.mae_encoder(), tmp_path / "a.safetensors", {"num_heads": told})
    with pytest.raises(UserError, match="num_heads = .*no head count"):
        read_weights(tmp_path / "a.safetensors")
