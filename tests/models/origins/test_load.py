import json

import pytest
import torch
from safetensors.torch import save_file

import limbeck
from limbeck.errors import UserError
from limbeck.models.finished import save_student, weight_hash
from limbeck.models.origins.load import load_encoder
from limbeck.models.tensor_files import NotFiniteWeights
from limbeck.models.vit import build_encoder
from limbeck.records import Features, Tap
from tests.fakes import FakeEncoder
from tests.models.origins import writers


@pytest.fixture
def student():
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2,
              "num_classes": 3}  # fmt: skip
    architecture = {"kind": "timm", "name": "vit_tiny_patch16_224", "kwargs": kwargs,
                    "num_heads": [2, 4], "mean": [0.1] * 3, "std": [0.2] * 3}  # fmt: skip
    return build_encoder(architecture).eval()


def test_it_is_the_public_function():
    assert limbeck.load_encoder is load_encoder


@pytest.mark.parametrize("file", [".", "student.safetensors", "student.json"])
def test_a_finished_student_is_loaded_as_it_was(tmp_path, student, file):
    save_student(student, tmp_path, {"teacher": {"source": "timm:x"}})
    encoder = load_encoder(tmp_path / file)
    assert encoder.facts.num_heads == (2, 4)
    assert encoder.facts.origin["teacher"] == {"source": "timm:x"}
    assert encoder.facts.origin["layout"] == "finished student"
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(encoder(images).tokens, student(images).tokens)


def test_a_finished_student_at_another_size_and_without_classifier(tmp_path, student):
    save_student(student, tmp_path, {})
    encoder = load_encoder(tmp_path, img_size=48, num_classes=0, num_heads=(4, 4))
    assert encoder.facts.grid == (6, 6)
    assert encoder.facts.num_heads == (4, 4)
    assert "logits" not in encoder.offered_taps()
    notes = encoder.facts.origin["notes"]
    assert "Positions interpolated from 4 x 4 to 6 x 6 patches." in notes
    assert encoder(torch.rand(1, 3, 48, 48)).tokens.shape == (1, 37, 32)
    same_size = load_encoder(tmp_path, num_classes=0)
    assert same_size.facts.num_classes == 0
    assert encoder.facts.origin["weight_hash"] == same_size.facts.origin["weight_hash"]
    record_hash = weight_hash(student.model.state_dict())
    assert load_encoder(tmp_path, img_size=48).facts.origin["weight_hash"] == record_hash
    assert load_encoder(tmp_path, img_size=32)(
        torch.rand(1, 3, 32, 32), taps=(Tap("logits"),)
    ).taps[Tap("logits")].shape == (1, 3)


def test_a_run_that_has_not_finished_is_said_to_be_so(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"method": "relation"}))
    (tmp_path / "fingerprint.json").write_text("{}")
    torch.save({"limbeck_checkpoint": 1, "step": 3, "module": {}}, tmp_path / "checkpoint.pt")
    for path in (tmp_path, tmp_path / "checkpoint.pt"):
        with pytest.raises(UserError, match="has not finished.*run the same command"):
            load_encoder(path)


def test_other_folders_and_files_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="holds no finished run"):
        load_encoder(tmp_path)
    save_file(writers.mae_encoder(), tmp_path / "mae.safetensors")
    with pytest.raises(UserError, match="pass one of its files: mae.safetensors"):
        load_encoder(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="no weights file"):
        load_encoder(tmp_path / "notes.txt")


def test_overrides_that_would_have_no_effect_are_refused(tmp_path):
    save_file(writers.mae_encoder(192), tmp_path / "mae.safetensors")
    with pytest.raises(UserError, match="takes no 'img_sise'. Did you mean 'img_size'"):
        load_encoder(tmp_path / "mae.safetensors", img_sise=32)
    with pytest.raises(UserError, match="takes no 'pretrained'"):
        load_encoder("hf:a/b", pretrained=False)


@pytest.mark.parametrize("wrong", [{"img_size": 0}, {"num_heads": -1}, {"num_heads": (3, 0)}])
def test_sizes_and_counts_are_above_zero(tmp_path, wrong):
    save_file(writers.mae_encoder(192), tmp_path / "mae.safetensors")
    with pytest.raises(UserError, match="is refused"):
        load_encoder(tmp_path / "mae.safetensors", **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"img_size": 50}, "multiple of the patch"), ({"num_heads": 5}, "heads")]
)
def test_what_does_not_divide_is_refused(tmp_path, wrong, message):
    save_file(writers.mae_encoder(192), tmp_path / "mae.safetensors")
    with pytest.raises(UserError, match=message):
        load_encoder(tmp_path / "mae.safetensors", **wrong)


@pytest.mark.parametrize("how", ["file", "student", "module"])
def test_weights_that_are_not_finite_are_named(tmp_path, student, how, monkeypatch):
    torch.nn.init.constant_(student.model.blocks[0].mlp.fc1.bias, torch.nan)
    source = str(tmp_path)
    if how == "file":
        source = str(tmp_path / "a.safetensors")
        save_file(student.model.state_dict(), source, {"num_heads": "2"})
    elif how == "student":
        save_student(student, tmp_path, {})
    else:
        (tmp_path / "own_nan_teacher.py").write_text("def load():\n    return ENCODER\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        import own_nan_teacher

        own_nan_teacher.ENCODER, source = student, "own_nan_teacher:load"
    with pytest.raises(NotFiniteWeights, match=r"'(model\.)?blocks\.0\.mlp\.fc1\.bias' holds NaN"):
        load_encoder(source)


def of_other_taps():
    return _saying(lambda tokens, tap: Features(tokens, 1, (2, 2), {}))


def of_tensors():
    return _saying(lambda tokens, tap: tokens)


def of_other_width():
    return _saying(lambda tokens, tap: Features(None, 1, (2, 2), {tap: tokens[..., 1:]}))


def _saying(answer):
    encoder = FakeEncoder()
    usual = encoder.forward

    def forward(images, ids_keep=None, taps=(), mask_token=None):
        return answer(usual(images, ids_keep, taps, mask_token).taps[taps[0]], taps[0])

    encoder.forward = forward
    return encoder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("of_other_taps", r"asked for Tap\('output'\), its encoder returned a Features without"),
        (
            "of_tensors",
            r"its encoder returned a Tensor in their place; it is to return limbeck.Feat",
        ),
        ("of_other_width", r"of two images has the shape \(2, 5, 7\), and by .* be \(2, 5, 8\)"),
    ],
)
def test_an_own_encoder_that_speaks_nonsense_is_told_at_once(name, words):
    with pytest.raises(UserError, match=f"'tests.models.origins.test_load:{name}'.*{words}"):
        load_encoder(f"tests.models.origins.test_load:{name}")
