import json

import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import UserError
from limbeck.models.origins.hub import AbsentError
from limbeck.models.origins.repository import (
    WEIGHT_FILES,
    UnaskedError,
    find_file,
    find_optional,
    read_all,
    read_hub_config,
    read_licence,
    read_processor,
)


def test_shards_are_read_as_one(tmp_path):
    for number in (1, 2):
        save_file({f"t{number}": torch.zeros(number)}, tmp_path / f"s{number}.safetensors")
    names = {f"t{number}": f"s{number}.safetensors" for number in (1, 2)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    file = find_file(tmp_path, WEIGHT_FILES, "here")
    assert read_all(file, tmp_path, "here").keys() == {"t1", "t2"}


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="has none of the files config.json; complete the folder"):
        find_file(tmp_path, ("config.json",), "here")


@pytest.mark.parametrize(
    ("text", "is_hub"),
    [
        ('{"model_type": "vit"}', True),
        ('{"architecture": "x"}', True),
        ("{}", False),
    ],
)
def test_what_is_a_config_of_a_model(tmp_path, text, is_hub):
    (tmp_path / "config.json").write_text(text)
    assert (read_hub_config(tmp_path / "config.json") is not None) == is_hub


def test_the_licence_is_read_off_the_card_s_head(tmp_path):
    assert read_licence(tmp_path, "here") is None
    (tmp_path / "README.md").write_text("---\ntags: a\nlicense: mit\n---\nlicense: other\n")
    assert read_licence(tmp_path, "here") == "mit"


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "..\\x", "C:\\x", ""])
def test_shards_lie_in_the_folder(tmp_path, shard):
    save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
    (tmp_path / "model").mkdir()
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(UserError, match="which is no file of its folder"):
        read_all(index, tmp_path / "model", "here")


@pytest.mark.parametrize("content", ["no", "[]", '{"model_type": 3}', '{"model_type": '])
def test_a_config_that_is_damaged_is_said_to_be(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json"):
        read_hub_config(tmp_path / "config.json")


def test_null_is_not_said(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit", "image_size": null}')
    assert read_hub_config(tmp_path / "config.json") == {"model_type": "vit"}
    assert read_hub_config(tmp_path / "gone.json") is None


@pytest.fixture
def hub(monkeypatch):
    """What it says of each file: a path, or an error."""
    files = {}

    def fetch(place, names, source):
        said = files.get(names[0], UserError("Can't get it."))
        if isinstance(said, Exception):
            raise said
        return said

    monkeypatch.setattr("limbeck.models.origins.repository.fetch", fetch)
    return files


def test_a_file_that_is_not_there_and_one_that_nobody_could_ask_for(hub, tmp_path):
    hub["gone"] = AbsentError("It has none.")
    assert find_optional("a/b", "gone", "hf:a/b") is None
    assert find_optional(tmp_path, "gone", "hf:a/b") is None
    with pytest.raises(UnaskedError, match="Can't get it"):
        find_optional("a/b", "README.md", "hf:a/b")
    assert read_licence("a/b", "hf:a/b") is None


def test_an_image_processor_that_is_at_hand_though_the_hub_is_not(hub, tmp_path):
    with pytest.raises(UnaskedError):
        read_processor("a/b", "hf:a/b")
    hub["processor_config.json"] = AbsentError("It has none.")
    with pytest.raises(UnaskedError):
        read_processor("a/b", "hf:a/b")
    hub["preprocessor_config.json"] = AbsentError("It has none.")
    assert read_processor("a/b", "hf:a/b") is None
    file = tmp_path / "preprocessor_config.json"
    file.write_text('{"image_mean": 0.25}')
    del hub["processor_config.json"]
    hub["preprocessor_config.json"] = file
    assert read_processor("a/b", "hf:a/b") == {"image_mean": [0.25] * 3}
