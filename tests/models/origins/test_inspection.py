import json

import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import UserError
from limbeck.models.finished import save_student
from limbeck.models.origins.inspection import inspect_file
from limbeck.models.origins.load import load_encoder
from tests.models.origins import writers


def test_a_published_file_is_described(tmp_path):
    file = writers.save_published(tmp_path / "TinyMIM-PT-T.pth", writers.tinymim(192))
    found = inspect_file(file)
    assert (found.kind, found.layout) == ("weights file", "tinymim")
    assert found.num_tensors == 12 * 2 + 6
    assert found.num_parameters == sum(v.numel() for v in writers.tinymim(192).values())
    assert found.dtypes == {"float32": 30}
    assert found.shapes["norm.weight"] == (192,)
    assert (found.embed_dim, found.depth, found.patch_size) == (192, 2, 8)
    assert (found.img_size, found.num_prefix_tokens) == ((32, 32), 1)
    assert found.num_heads == (6, 12)
    assert "TinyMIM" in found.heads_known_from
    assert found.metadata["other entries"] == "optimizer, epoch, args"
    assert found.unmatched == ()


def test_a_student_of_g2sd_s_first_stage_is_described_whole(tmp_path):
    torch.save(writers.in_g2sd(writers.g2sd(384, 256, depth=12)), tmp_path / "checkpoint-299.pth")
    found = inspect_file(tmp_path / "checkpoint-299.pth")
    assert (found.layout, found.num_tensors, found.unmatched) == ("g2sd", 214, ())
    assert found.num_heads == (6,) * 12
    assert found.decoder == ("4 blocks, width 256, 8 heads; predicts a teacher's features (G2SD)")
    assert found.metadata["other entries"] == "epoch, args, optimizer, scaler"
    assert [note.partition(" (")[0] for note in found.notes] == [
        "the decoder's mask token", "the decoder",
        "the projection of the decoder's tokens", "the projection of the encoder's tokens",
    ]  # fmt: skip


def test_a_decoder_that_is_not_whole_is_told(tmp_path):
    weights = writers.mae_full(192, 96)
    save_file(weights, tmp_path / "a.safetensors")
    found = inspect_file(tmp_path / "a.safetensors")
    assert found.decoder == "1 blocks, width 96, 3 heads; predicts pixels"
    del weights["decoder_norm.bias"]
    save_file(weights, tmp_path / "a.safetensors")
    found = inspect_file(tmp_path / "a.safetensors")
    assert found.decoder == "not whole, 1 tensors missing: decoder_norm.bias"
    save_file(writers.mae_encoder(192), tmp_path / "b.safetensors")
    assert inspect_file(tmp_path / "b.safetensors").decoder == ""


def test_every_tensor_that_does_not_match_is_told(tmp_path):
    weights = writers.mae_full(32)
    del weights["blocks.1.norm1.bias"]
    weights["extra"] = torch.zeros(1)
    weights["norm.weight"] = torch.zeros(3)
    save_file(weights, tmp_path / "a.safetensors", metadata={"made by": "hand"})
    found = inspect_file(tmp_path / "a.safetensors")
    assert set(found.unmatched) == {
        "missing: blocks.1.norm1.bias",
        "unexpected: extra",
        "misshapen: norm.weight is [3] instead of [32]",
    }
    assert found.metadata["made by"] == "hand"
    assert found.num_heads is None
    assert any("width of 32" in note for note in found.notes)
    assert any("the decoder (19 tensors) would be left out" in note for note in found.notes)


@pytest.mark.parametrize(
    "weights",
    [
        {"a": torch.zeros(2, dtype=torch.int8), "b": torch.zeros(())},
        {"patch_embed.proj.weight": torch.zeros(2), "blocks.0.norm1.weight": torch.zeros(1),
         "blocks.0.attn.qkv.weight": torch.zeros(1)},
        {"patch_embed.proj.weight": torch.zeros(2), "blocks.0.norm1.weight": torch.zeros(1),
         "blocks.0.attn.qkv.weight": torch.zeros(1), "cls_token": torch.zeros(()),
         "pos_embed": torch.zeros(3), "norm.weight": torch.zeros(1),
         "blocks.0.mlp.fc1.weight": torch.zeros(1), "blocks.0.mlp.fc2.weight": torch.zeros(1)},
    ],
    ids=["foreign", "cut", "flat"],
)  # fmt: skip
def test_weird_but_readable_files_do_not_fail(tmp_path, weights):
    torch.save(weights, tmp_path / "a.pth")
    found = inspect_file(tmp_path / "a.pth")
    assert found.num_tensors == len(weights)
    assert found.unmatched


@pytest.mark.parametrize("content", [{"epoch": 1}, [torch.zeros(2)], 3])
def test_files_without_named_tensors_are_described(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    assert inspect_file(tmp_path / "a.pth").kind == "file without weights"


def test_a_checkpoint_of_limbeck_is_described(tmp_path):
    state = {"limbeck_checkpoint": 1, "step": 7, "module": {"w": torch.zeros(2, 3)},
             "optimizer": {"state": [torch.zeros(4)]}}  # fmt: skip
    torch.save(state, tmp_path / "checkpoint.pt")
    found = inspect_file(tmp_path / "checkpoint.pt")
    assert found.kind == "limbeck checkpoint"
    assert found.metadata["step"] == 7
    assert found.shapes == {"w": (2, 3)}  # of what is trained


def test_a_finished_student_is_described(tmp_path):
    small = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8}
    encoder = load_encoder("timm:vit_tiny", pretrained=False, num_classes=0, **small)
    save_student(encoder, tmp_path, {"teacher": {"source": "x"}})
    for path in (tmp_path, tmp_path / "student.safetensors"):
        found = inspect_file(path)
        assert (found.kind, found.num_heads) == ("finished student", (4, 4))
        assert found.metadata["teacher"] == {"source": "x"}
        assert found.unmatched == ()


def test_a_folder_that_can_not_be_loaded_says_why(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    found = inspect_file(tmp_path)
    assert (found.kind, found.layout) == ("Hugging Face folder", "swin")
    assert "not supported" in found.notes[0]


def test_what_is_not_there_or_no_weights_is_an_error(tmp_path):
    save_file(writers.mae_encoder(), tmp_path / "mae.safetensors")
    with pytest.raises(UserError, match="Did you mean 'mae.safetensors'"):
        inspect_file(tmp_path / "mea.safetensors")
    with pytest.raises(UserError, match="inspect one of its files: .*mae.safetensors"):
        inspect_file(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match="no weights file"):
        inspect_file(tmp_path / "a.txt")
