"""TinyViT's files: published and timm's names, strict both ways, larger windows, refusals."""

from argparse import Namespace
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import save_file

from limbeck.errors import UserError
from limbeck.models.finished import load_student, save_student
from limbeck.models.heads import with_classifier
from limbeck.models.origins.inspection import inspect_file
from limbeck.models.origins.load import load_encoder
from limbeck.models.origins.tiny_vit import published_name, timm_name, to_published
from limbeck.ops.pos_embed import resize_offsets
from limbeck.recipes.ship.convert import ConvertConfig, convert, report
from limbeck.records import Tap
from tests.models.families import small_encoder

SHAPE = {
    "embed_dims": [8, 16, 24, 32],
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 4, 4],
    "window_sizes": [8, 8, 4, 2],
    "mlp_ratio": 2.0,
    "mbconv_expand_ratio": 3.0,
}


def own_model(num_classes=5):
    model = timm.create_model("tiny_vit_5m_224", **SHAPE, num_classes=num_classes).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return model


def as_published(model):
    """The released code's names, with the tables of indices of its early files."""
    weights = {published_name(name): value for name, value in model.state_dict().items()}
    index = model.stages[1].blocks[0].attn.attention_bias_idxs
    return weights | {"layers.1.blocks.0.attn.attention_bias_idxs": index}


def saved(tmp_path, content):
    file = tmp_path / "tiny_vit.pth"
    torch.save(content, file)
    return file


def assert_same(encoder, model):
    images, tap = torch.rand(2, 3, 64, 64), Tap("logits")
    with torch.no_grad():
        own = model((images - encoder.mean) / encoder.std)
        found = encoder(images, taps=(tap,)).taps[tap]
    torch.testing.assert_close(found, own, atol=1e-5, rtol=0)


PAIRS = {
    "patch_embed.seq.0.c.weight": "patch_embed.conv1.conv.weight",
    "patch_embed.seq.2.bn.running_var": "patch_embed.conv2.bn.running_var",
    "layers.0.blocks.1.conv3.c.weight": "stages.0.blocks.1.conv3.conv.weight",
    "layers.0.downsample.conv1.c.weight": "stages.1.downsample.conv1.conv.weight",
    "layers.2.downsample.conv3.bn.bias": "stages.3.downsample.conv3.bn.bias",
    "layers.3.blocks.1.attn.attention_biases": "stages.3.blocks.1.attn.attention_biases",
    "layers.1.blocks.0.attn.norm.weight": "stages.1.blocks.0.attn.norm.weight",
    "layers.1.blocks.0.local_conv.c.weight": "stages.1.blocks.0.local_conv.conv.weight",
    "layers.1.blocks.0.mlp.fc2.bias": "stages.1.blocks.0.mlp.fc2.bias",
    "norm_head.weight": "head.norm.weight",
    "head.bias": "head.fc.bias",
}


def test_names_in_both_directions():
    for published, own in PAIRS.items():
        assert timm_name(published) == own and published_name(own) == published
    names = own_model().state_dict()
    assert [timm_name(published_name(name)) for name in names] == list(names)


@pytest.mark.parametrize("names", ["timm", "published", "in a checkpoint"])
def test_a_file_is_loaded_whole(tmp_path, names):
    model = own_model()
    content = model.state_dict() if names == "timm" else as_published(model)
    if names == "in a checkpoint":
        content = {"model": content, "max_accuracy": 80.7, "epoch": 89, "config": Namespace(a=1)}
    file = saved(tmp_path, content)
    encoder = load_encoder(file)
    assert_same(encoder, model)
    assert encoder.facts.img_size == (64, 64) and encoder.facts.num_heads == (0, 2, 4, 4, 4)
    assert encoder.facts.origin["layout"] == ("timm_tiny_vit" if names == "timm" else "tiny_vit")
    found = inspect_file(file)
    assert found.unmatched == () and found.num_classes == 5 and found.depth == 5
    assert found.description.startswith("a TinyViT" if names == "timm" else "TinyViT as published")
    if names != "timm":
        assert "tables that are computed (1 tensors) would be left out" in found.notes
    bare = load_encoder(file, num_classes=0)
    assert bare.facts.num_classes == 0 and "logits" not in bare.offered_taps()


def test_no_tensor_is_missing_or_left(tmp_path):
    weights = as_published(own_model())
    for name in ("layers.2.blocks.1.mlp.fc1.bias", "layers.1.downsample.conv2.bn.running_mean"):
        file = saved(tmp_path, {k: v for k, v in weights.items() if k != name})
        with pytest.raises(UserError, match=f"1 missing .{timm_name(name)}.*Nothing is loaded"):
            load_encoder(file)
    file = saved(tmp_path, weights | {"neck.0.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"1 unexpected \(neck.0.weight\)"):
        load_encoder(file)
    assert inspect_file(file).unmatched == ("unexpected: neck.0.weight",)
    file = saved(tmp_path, weights | {"layers.1.blocks.0.attn.attention_biases": torch.zeros(3)})
    with pytest.raises(UserError, match="no weights of a whole TinyViT .stages.1.blocks.0.attn"):
        load_encoder(file)
    with pytest.raises(UserError, match="leave num_heads away"):
        load_encoder(saved(tmp_path, weights), num_heads=4)


def test_a_checkpoint_with_foreign_objects_is_refused_with_the_remedy(tmp_path):
    file = saved(tmp_path, {"model": as_published(own_model()), "config": SimpleNamespace(a=1)})
    with pytest.raises(UserError, match="holds Python objects .*convert it once: python -c"):
        load_encoder(file)


def test_published_names_are_those_of_the_published_shapes(tmp_path):
    with torch.device("meta"):
        model = timm.create_model("tiny_vit_11m_224")
    weights = {published_name(n): torch.zeros(v.shape) for n, v in model.state_dict().items()}
    save_file(weights, tmp_path / "a.safetensors")
    found = inspect_file(tmp_path / "a.safetensors")
    assert found.unmatched == () and found.num_tensors == 296 and found.img_size == (224, 224)


def test_larger_images_have_larger_windows_resized_as_published(tmp_path):
    model = own_model()
    file = saved(tmp_path, as_published(model))
    encoder = load_encoder(file, img_size=128)
    assert [block.window_size for block in encoder.blocks[1:]] == [8, 8, 8, 4]
    old = model.stages[2].blocks[0].attn.attention_biases
    found = encoder.blocks[2].attn.attention_biases
    assert torch.equal(found, resize_offsets(old, 64)) and found.shape == (4, 64)
    assert torch.equal(
        encoder.blocks[1].attn.attention_biases, model.stages[1].blocks[0].attn.attention_biases
    )


def test_timms_own_reading_is_only_used_at_its_own_size(tmp_path):
    """A folder in timm's form, read for other images: not timm's antialiased tables."""
    model = timm.create_model("tiny_vit_5m_224", num_classes=3)
    with torch.no_grad():
        model.stages[3].blocks[0].attn.attention_biases.normal_()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"architecture": "tiny_vit_5m_224", "num_classes": 3, "pretrained_cfg": {}}'
    )
    encoder = load_encoder(tmp_path, img_size=96)
    old = model.stages[3].blocks[0].attn.attention_biases
    own = encoder.blocks[10].attn.attention_biases
    torch.testing.assert_close(own, resize_offsets(old, 9))
    with pytest.raises(UserError, match="choose img_size instead of window_sizes"):
        load_encoder("timm:tiny_vit_5m_224.in1k", window_sizes=[7, 7, 7, 7])


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_convert_writes_the_published_file(tmp_path, name):
    model = own_model()
    source = saved(tmp_path, model.state_dict())
    config = ConvertConfig(source=str(source), out=str(tmp_path / name), layout="tiny-vit")
    done = convert(config)
    assert "a TinyViT in its authors' layout" in report(done)
    encoder = load_encoder(tmp_path / name)
    assert encoder.facts.origin["layout"] == "tiny_vit"
    assert_same(encoder, model)
    assert done.num_tensors == len(model.state_dict())
    with pytest.raises(UserError, match="num_heads has no effect with --layout tiny-vit"):
        convert(ConvertConfig(source=str(source), out=str(tmp_path / "b.pth"), layout="tiny-vit",
                              num_heads=3))  # fmt: skip


def test_what_the_published_file_can_not_hold():
    with pytest.raises(UserError, match="is no TinyViT"):
        to_published(small_encoder("swin"))
    with pytest.raises(UserError, match="not normalised with ImageNet's mean and std"):
        to_published(small_encoder("tiny-vit"))


def test_a_finished_student_comes_back_and_grows(tmp_path):
    encoder = load_encoder(saved(tmp_path, as_published(own_model())))
    save_student(with_classifier(encoder, 3, None, seed=0), tmp_path / "run", {})
    again = load_student(tmp_path / "run")
    assert again.facts.num_classes == 3 and again.facts.img_size == (64, 64)
    larger = load_encoder(tmp_path / "run", img_size=128)
    assert [block.window_size for block in larger.blocks[1:]] == [8, 8, 8, 4]
    assert again.facts.identity == larger.facts.identity | {
        "weights": again.facts.identity["weights"]
    }
