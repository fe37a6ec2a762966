from types import SimpleNamespace
from typing import ClassVar

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from limbeck.errors import UserError
from limbeck.models.origins.hub import AbsentError, fetch
from limbeck.models.origins.load import load_encoder


class Unreachable:
    waits: ClassVar[list[float]] = []

    def head(self, url, timeout):
        self.waits.append(timeout)
        raise ConnectionError("Name or service not known")


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.utils.get_session", Unreachable)
    monkeypatch.setattr(Unreachable, "waits", [])


@pytest.mark.parametrize("source", ["timm:vit_tiny_patch16_224", "hf:facebook/dinov2-base"])
def test_without_network_the_error_is_quick_and_says_how_to_pass_a_file(no_network, source):
    with pytest.raises(UserError) as error:
        load_encoder(source)
    assert Unreachable.waits == [5.0]  # seconds at most, and nobody is asked again
    message = str(error.value)
    assert source in message
    assert "--teacher path/to/weights.safetensors" in message
    assert "\n" not in message


def test_what_is_in_the_cache_needs_no_network(no_network, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "cache" / "models--a--b" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "second.json").write_text("{}")
    refs = tmp_path / "cache" / "models--a--b" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    assert fetch("a/b", ("first.json", "second.json"), "hf:a/b") == snapshot / "second.json"


def test_what_the_hub_has_said_before_not_to_have_is_not_asked_again(no_network, tmp_path):
    folder = tmp_path / "cache" / "models--a--b"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / ".no_exist" / commit).mkdir(parents=True)
    (folder / ".no_exist" / commit / "gone.json").touch()
    with pytest.raises(AbsentError, match=r"has none of the files gone\.json"):
        fetch("a/b", ("gone.json",), "hf:a/b")
    with pytest.raises(UserError, match="Can't get") as error:
        fetch("a/b", ("gone.json", "other.json"), "hf:a/b")
    assert not isinstance(error.value, AbsentError)


def _response():
    return SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: errors.RepositoryNotFoundError("x", response=_response()), "has no 'a/b'"),
        (lambda: errors.GatedRepoError("x", response=_response()), "accept its terms"),
        (lambda: errors.HfHubHTTPError("busy", response=_response()), r"\(busy\)"),
        (
            lambda: errors.RemoteEntryNotFoundError("x", response=_response()),
            "none of the files",
        ),
    ],
    ids=["no repository", "gated", "server error", "no file"],
)
def test_what_the_hub_refuses_is_said_in_one_sentence(monkeypatch, error, message):
    def download(local_files_only=False, **where):
        raise errors.LocalEntryNotFoundError("not cached") if local_files_only else error()

    class Reachable:
        def head(self, url, timeout):
            return None

    monkeypatch.setattr("huggingface_hub.utils.get_session", Reachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=message):
        fetch("a/b", ("config.json",), "hf:a/b")
