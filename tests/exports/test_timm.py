"""Weights for timm: whole, half as large, and with a last block whose heads were re-split."""

import pytest
import torch
from safetensors.torch import load_file

from tests.exports.kinds import compared
from tests.models.families import small_encoder


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_the_bits(precision, tmp_path):
    compared(small_encoder("augreg"), "timm", precision, tmp_path)
    weights = load_file(tmp_path / "network.safetensors")
    assert {each.element_size() for each in weights.values()} == {2}


def test_an_adapted_last_block_is_told(tmp_path):
    encoder = small_encoder("mae")
    encoder.set_num_heads(-1, 4)
    _, said = compared(encoder, "timm", "fp32", tmp_path)
    assert said["timm"]["heads"]["blocks.2.attn"]["num_heads"] == 4


@pytest.mark.parametrize("family", ["hiera", "swin", "tiny-vit", "dinov3"])
def test_tokens_of_a_backbone_lie_as_ours(family, tmp_path):
    from limbeck.models.vit import build_encoder
    from tests.models.families import architecture_of

    architecture = architecture_of(family)
    architecture["kwargs"]["num_classes"] = 0
    torch.manual_seed(0)
    found, _ = compared(build_encoder(architecture).eval(), "timm", "fp32", tmp_path)
    assert list(found.relative) == ["tokens"]
