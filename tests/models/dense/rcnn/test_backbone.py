"""A plain ViT becomes ViTDet's backbone with its weights, whatever its prefix tokens."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.dense.rcnn.backbone import encoder_of
from limbeck.models.vit import build_encoder
from limbeck.models.vit_det import VitDet
from limbeck.records import Tap
from tests.models.families import small_encoder

LAST = Tap("tokens", -1)
IMAGES = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "family", ["augreg", "mae", "mean-pooled", "deit-distilled", "cls-distilled", "tinymim-star"]
)
def test_a_plain_vit_gets_windows(family):
    plain = small_encoder(family)
    made = encoder_of(plain, None)
    assert isinstance(made.model, VitDet) and made.facts.num_prefix_tokens == 0
    assert made.facts.num_heads == plain.facts.num_heads and not made.training
    own, old = made.model.state_dict(), plain.model.state_dict()
    assert torch.equal(own["blocks.1.attn.qkv.weight"], old["blocks.1.attn.qkv.weight"])
    assert torch.equal(own["pos_embed"][:, 1:], old["pos_embed"][:, -16:])
    assert not own["blocks.0.attn.rel_pos_h"].any()
    again = build_encoder(made.facts.architecture)
    again.model.load_state_dict(own)
    for size in (None, (64, 64)):
        assert encoder_of(made, size).facts.img_size == (size or (32, 32))


def test_without_class_token_nothing_changes_where_all_is_global():
    shape = {"class_token": False, "global_pool": "avg", "num_classes": 0, "img_size": [32, 32],
             "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}  # fmt: skip
    plain = build_encoder({
        "kind": "timm", "name": "vit_tiny_patch16_224", "kwargs": shape,
        "mean": [0.5] * 3, "std": [0.5] * 3,
    })  # fmt: skip
    made = encoder_of(plain.eval(), None)
    assert made.facts.global_blocks == (0, 1, 2) and not made.model.pos_embed[:, 0].any()
    expected = plain(IMAGES, None, (LAST,)).taps[LAST]
    torch.testing.assert_close(made(IMAGES, None, (LAST,)).taps[LAST], expected)


def test_head_counts_of_blocks_may_differ():
    plain = small_encoder("mae")
    plain.set_num_heads(2, 8)  # as TinyMIM's adapted last block
    made = encoder_of(plain, None)
    assert made.facts.num_heads == (2, 2, 8)
    assert made.model.blocks[2].attn.rel_pos_h.shape == (7, 4)
    again = build_encoder(made.facts.architecture)
    again.model.load_state_dict(made.model.state_dict())
    found, expected = (each.eval()(IMAGES, None, (LAST,)).taps[LAST] for each in (again, made))
    assert torch.equal(found, expected)
    values = Tap("values", 2)
    assert torch.equal(*(e(IMAGES, None, (values,)).taps[values][:, 7] for e in (again, made)))
    with pytest.raises(UserError, match="it has tables of relative positions"):
        made.set_num_heads(0, 8)


def test_larger_images():
    made = encoder_of(small_encoder("mae"), (64, 64))
    assert made.model.pos_embed.shape == (1, 17, 32)  # as it was pre-trained
    assert made.model.blocks[0].attn.rel_pos_h.shape == (15, 16)
    images = torch.rand(1, 3, 64, 64)
    for parameter in made.model.parameters():
        if parameter.shape == (15, 16):
            parameter.data = torch.arange(15.0)[:, None].repeat(1, 16)
    again = encoder_of(made, (32, 32))
    found = again.model.blocks[0].attn.rel_pos_w[:, 0]
    torch.testing.assert_close(found, (torch.arange(7) + 0.5) * 15 / 7 - 0.5)
    assert torch.equal(again.model.pos_embed, made.model.pos_embed)
    assert made(images, None, (LAST,)).taps[LAST].shape == (1, 64, 32)


@pytest.mark.parametrize("family", ["dinov2", "qk-norm", "beit", "dinov3", "hiera", "tiny-vit"])
def test_others_stay_as_they_are(family, caplog):
    with caplog.at_level("WARNING"):
        made = encoder_of(small_encoder(family), None)
    assert type(made.model) is type(small_encoder(family).model)
    told = "can't have ViTDet's windows" in caplog.text
    assert told == (family not in ("hiera", "tiny-vit")) and not made.facts.num_classes
