import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.mae import MaeDecoder
from limbeck.models.origins.load import load_encoder
from limbeck.models.origins.published import to_mae
from tests.fakes import FakeEncoder
from tests.models.families import small_encoder
from tests.models.origins import writers

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def mae(tmp_path, **heads):
    torch.save(writers.mae_full(192, 96), tmp_path / "mae.pth")
    return load_encoder(tmp_path / "mae.pth", **heads)


def test_the_tensors_are_copies_in_the_published_names(tmp_path):
    encoder = mae(tmp_path)
    weights, told, left = to_mae(encoder)
    assert weights.keys() == writers.mae_encoder(192).keys() and left == []
    assert told["num_heads"] == "12" and "decoder_num_heads" not in told
    with torch.no_grad():
        encoder.model.cls_token.zero_()
    assert weights["cls_token"].any()


def test_a_classifier_is_left_out_and_named(tmp_path):
    shapes = writers.encoder_shapes(192) | {"head.weight": (5, 192), "head.bias": (5,)}
    torch.save(writers.draw(shapes), tmp_path / "a.pth")
    weights, _, left = to_mae(load_encoder(tmp_path / "a.pth"))
    assert left == ["head.weight", "head.bias"] and "head.weight" not in weights


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mean-pooled", "no place for fc_norm.bias, fc_norm.weight; it lacks norm.bias"),
        ("qk-norm", "no place for blocks.0.attn.k_norm"),
        ("dinov2", "no place for blocks.0.ls1.gamma"),
        ("dinov2-registers-swiglu", "its 16 positions are not those of CLS and patches"),
        ("clip", "no place for norm_pre.bias"),
        ("post-norm", "its blocks are not pre-norm with GELU"),
        ("siglip-gap", "it lacks cls_token"),
        ("deit-distilled", "is no plain ViT"),
        ("beit", "is no plain ViT"),
        ("dinov3", "is no plain ViT"),
        ("mae", "its images are not normalised with ImageNet's mean and std"),
    ],
)
def test_what_the_layout_can_not_hold_is_said(family, reason):
    with pytest.raises(UserError, match=f"MAE's layout can't hold .*{reason}"):
        to_mae(small_encoder(family))


def test_one_head_count_and_square_images(tmp_path):
    with pytest.raises(UserError, match=r"its blocks differ in heads \(3, 12\)"):
        to_mae(mae(tmp_path, num_heads=(3, 12)))
    file = tmp_path / "mae.pth"
    with pytest.raises(UserError, match="its images of 32 x 48 are not square"):
        to_mae(load_encoder(file, img_size=(32, 48)))


def test_a_class_of_one_s_own_is_no_plain_vit():
    with pytest.raises(UserError, match="can't hold fake: FakeEncoder is no plain ViT"):
        to_mae(FakeEncoder())


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((32, (4, 4), 8), "width of the encoder 192 and 32"),
        ((192, (2, 2), 8), r"patches \(4, 4\) and \(2, 2\)"),
        ((192, (4, 4), 4), "values per patch 192 and 48"),
    ],
)
def test_a_decoder_of_another_encoder_is_refused(tmp_path, shape, reason):
    with pytest.raises(UserError, match=reason):
        to_mae(mae(tmp_path), MaeDecoder(*shape, 16, 1, 2, True))
    with pytest.raises(UserError, match="CLS token 1 and 0"):
        to_mae(mae(tmp_path), MaeDecoder(192, (4, 4), 8, 16, 1, 2, False))
