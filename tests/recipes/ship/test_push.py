"""``push``: the files and the card; a repository of a stand-in, which timm and limbeck read."""

import json

import pytest
import timm
import torch
from huggingface_hub import constants, file_download

import limbeck
from limbeck.cli import run as command
from limbeck.errors import UserError
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.ship.push import PushConfig, check, push, report
from tests.recipes.runs import snapshot
from tests.recipes.ship.hub import TOKEN, Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub() as stand_in:
        template = stand_in.address + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, file_download):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        for name, value in {
            "ENDPOINT": stand_in.address,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield stand_in


def config_of(student, tmp_path, **changes):
    return PushConfig(**{"run": str(student), "to": "me/net", "out": tmp_path / "net"} | changes)


def test_without_upload_nothing_is_sent(hub, classifier, tmp_path):
    before = snapshot(classifier)
    done = push(config_of(classifier, tmp_path, licence="apache-2.0"))
    names = ["README.md", "config.json", "limbeck.json", "model.safetensors"]
    assert [file.name for file in done.files] == names
    assert hub.private == hub.files == {} and done.address is None
    assert "Nothing was sent." in report(done) and "the same command with --upload" in report(done)
    assert snapshot(classifier) == before


def test_the_card_tells_what_it_is_and_no_place(classifier, images, tmp_path):
    done = push(config_of(classifier, tmp_path, licence="apache-2.0"))
    text = (done.folder / "README.md").read_text()
    head = text.split("---")[1]
    assert 'license: "apache-2.0"' in head and 'pipeline_tag: "image-classification"' in head
    assert "# net" in text and "A classifier of 3 classes: vit_tiny_patch16_224" in text
    assert "blue, green, red" in text and "Nobody's: it began with drawn weights" in text
    assert "| top1 " in text and "fingerprint of the images" in text
    for file in ("README.md", "config.json", "limbeck.json"):
        assert str(images.parent) not in (done.folder / file).read_text()
    told = json.loads((done.folder / "limbeck.json").read_text())
    assert told["data"]["root"] == images.name and told["made_by"] == "limbeck finetune"


def test_timm_and_limbeck_read_it_from_the_hub(hub, classifier, tmp_path):
    done = push(config_of(classifier, tmp_path, upload=True))
    assert hub.private == {"me/net": True} and done.address == f"{hub.address}/me/net"
    assert hub.files["me/net"].keys() == {file.name for file in done.files}
    own, pixels = limbeck.load(classifier), torch.rand(2, 3, 32, 32)
    theirs = timm.create_model("hf-hub:me/net", pretrained=True).eval()
    again = load_encoder("hf:me/net")
    with torch.inference_mode():
        for model in (theirs, again.model):
            torch.testing.assert_close(model(pixels), own.model(pixels))
    config = timm.data.resolve_model_data_config(theirs)
    assert config["input_size"] == (3, 32, 32) and tuple(config["mean"]) == own.facts.mean
    assert again.facts.origin["classes"] == ["blue", "green", "red"]


def test_heads_that_timm_cant_be_told_are_for_limbeck(hub, student, tmp_path):
    done = push(config_of(student, tmp_path, upload=True, public=True))
    assert [each.name for each in done.files] == [
        "README.md",
        "student.json",
        "student.safetensors",
    ]
    assert hub.private == {"me/net": False}
    assert limbeck.load(done.folder).facts.num_heads == (3, 4)
    assert "it is for limbeck.load alone" in report(done)
    assert 'limbeck.load("student")' in (done.folder / "README.md").read_text()


def test_a_second_time(classifier, teacher, tmp_path):
    push(config_of(classifier, tmp_path))
    push(config_of(classifier, tmp_path, licence="mit"))
    with pytest.raises(UserError, match="holds another student's files; choose another --out"):
        push(config_of(teacher, tmp_path))
    done = push(config_of(teacher, tmp_path, overwrite=True))
    assert json.loads((done.folder / "config.json").read_text())["num_classes"] == 0


def test_a_hub_that_refuses_or_is_not_there(hub, classifier, tmp_path, monkeypatch):
    hub.refuses = "You may not write there"
    with pytest.raises(UserError, match=r"does not take me/net: .*You may not write there"):
        push(config_of(classifier, tmp_path, upload=True))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="log in with 'hf auth login'"):
        push(config_of(classifier, tmp_path, upload=True))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"Can't send 'me/net' to the Hugging .*sent again"):
        push(config_of(classifier, tmp_path, upload=True))
    assert hub.files == {}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"run": ""}, "A run and a repository are needed"),
        ({"to": "net"}, "--to net is no name of a repository; say OWNER/NAME"),
        ({"to": "a b/c"}, "is no name of a repository"),
        ({"licence": "Apache 2"}, "the hub's names are like apache-2.0"),
        ({"out": "here"}, "holds other files, which stay"),
    ],
)
def test_what_is_refused_at_once(classifier, tmp_path, changes, told):
    if changes.get("out"):
        changes = {"out": tmp_path}
        (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=told):
        check(config_of(classifier, tmp_path, **changes))


def test_on_the_command_line(classifier, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command(["push", str(classifier), "--to", "me/net"])
    assert (tmp_path / "net" / "README.md").is_file()
    assert "Nothing was sent" in capsys.readouterr().out
