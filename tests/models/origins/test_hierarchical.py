"""Files of Hiera and Swin: every layout, strict, against timm's own reading of the same weights."""

import pytest
import timm
import torch

from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions
from limbeck.models.origins.decoder import load_keepsakes
from limbeck.models.origins.hierarchical import read_staged
from limbeck.models.origins.inspection import inspect_file
from limbeck.models.origins.load import load_encoder
from tests.models.families import small_encoder

HIERA = {"embed_dim": 96, "stages": (1, 1, 1, 1), "img_size": 64, "mlp_ratio": 1.0}
SWIN = {
    "embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4, "img_size": 32,
}  # fmt: skip


def own_model(kind, **changes):
    name, shape = {
        "hiera": ("hiera_tiny_224", HIERA),
        "swin": ("swin_tiny_patch4_window7_224", SWIN),
    }[kind]
    model = timm.create_model(name, **shape | {"num_classes": 5} | changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def published_hiera(weights, norm):
    """Its authors' names: the norm is outside of the head, the classifier is a projection."""
    names = {"head.norm.": f"{norm}.", "head.fc.": "head.projection."}
    return {renamed(name, names): value for name, value in weights.items()}


def published_swin(weights):
    """Its authors' names: merging at the end of a stage, and tables of indices."""
    names = {"layers.1.downsample.": "layers.0.downsample.", "head.fc.": "head."}
    named = {renamed(name, names): value for name, value in weights.items()}
    named["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    named["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    return named


def renamed(name, names):
    for old, new in names.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def prefixed(weights, prefix):
    return {prefix + name: value for name, value in weights.items()}


def decoder():
    names = ("decoder_embed.weight", "decoder_pos_embed", "mask_token",
             "multi_scale_fusion_heads.0.weight")  # fmt: skip
    return {name: torch.ones(1, 1, 4) for name in names}


def saved(tmp_path, content):
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    return file


def assert_same(encoder, model, size):
    images = torch.rand(2, 3, size, size)
    logits = model((images - encoder.mean) / encoder.std)
    if encoder.facts.num_classes:
        from limbeck.records import Tap

        tap = Tap("logits")
        torch.testing.assert_close(encoder(images, taps=(tap,)).taps[tap], logits)
    for name, value in model.state_dict().items():
        assert torch.equal(encoder.model.state_dict()[name], value), name


@pytest.mark.parametrize("names", ["timm", "published", "in a container"])
def test_a_fine_tuned_hiera(tmp_path, names):
    model = own_model("hiera")
    weights = model.state_dict()
    if names != "timm":
        weights = published_hiera(weights, "norm")
    file = saved(tmp_path, {"model_state": weights} if names == "in a container" else weights)
    encoder = load_encoder(file)
    assert encoder.facts.num_heads == (1, 2, 4, 8)
    assert encoder.facts.architecture["kwargs"]["q_pool"] == 3
    assert_same(encoder, model, 64)
    assert load_encoder(file, num_classes=0).facts.grid == (4, 4)  # as in pre-training
    found = inspect_file(file)
    assert found.layout == ("timm_hiera" if names == "timm" else "hiera")
    assert found.unmatched == () and found.num_heads == (1, 2, 4, 8)


def test_a_pre_trained_hiera_with_its_decoder(tmp_path):
    model = own_model("hiera", num_classes=0, q_pool=2)
    weights = published_hiera(model.state_dict(), "encoder_norm") | decoder()
    file = saved(tmp_path, {"model_state": weights})
    encoder = load_encoder(file)
    assert encoder.facts.grid == (4, 4) and encoder.facts.num_classes == 0
    assert_same(encoder, model, 64)
    assert any("the decoder (2 tensors)" in note for note in encoder.facts.origin["notes"])
    assert load_keepsakes(str(file)) == {}  # it would be read without its fusion of stages
    larger = load_encoder(file, img_size=96)
    assert larger.facts.grid == (6, 6)
    assert any("interpolated from 16 x 16 to 24 x 24" in n for n in larger.facts.origin["notes"])


def test_a_checkpoint_of_the_study_with_its_teacher_and_mixer(tmp_path):
    model, teacher = own_model("hiera", num_classes=0, q_pool=2), own_model("hiera")
    weights = {
        **prefixed(
            published_hiera(model.state_dict(), "encoder_norm") | decoder(), "module.model."
        ),
        **prefixed(published_hiera(teacher.state_dict(), "norm"), "module.tch_model."),
        "module.attn_adapter.adapter11.weight": torch.ones(8, 8, 1, 1),
    }
    file = saved(tmp_path, {"model": weights, "start_epoch": 400})
    encoder = load_encoder(file)
    assert_same(encoder, model, 64)
    found = inspect_file(file)
    for what in ("the teacher that was saved with it, 4 blocks", "the head mixer"):
        assert any(what in note for note in encoder.facts.origin["notes"])
        assert any(what in note for note in found.notes)
    assert found.unmatched == ()


def test_a_swin_of_the_study_with_its_teacher_its_mixer_and_the_spare_block(tmp_path):
    model, teacher = own_model("swin", num_classes=0), own_model("swin")
    own = published_swin(model.state_dict()) | spare_block()
    own |= {"norm.weight": torch.ones(16), "norm.bias": torch.ones(16)}  # of the stage decoded
    own["mask_token"] = torch.full((1, 1, 16), 0.5)
    weights = {
        **prefixed(own, "module.model.encoder."),
        "module.model.decoder.0.weight": torch.ones(4, 4, 1, 1),
        **prefixed(published_swin(teacher.state_dict()), "module.tch_model.encoder."),
        "module.attn_adapter.adapter11.weight": torch.ones(2, 2, 1, 1),
    }
    file = saved(tmp_path, {"model": weights, "start_epoch": 400})
    encoder = load_encoder(file)
    with torch.no_grad():
        model.norm.weight.fill_(1.0), model.norm.bias.zero_()
    assert_same(encoder, model, 32)
    assert torch.equal(encoder.mask_token, own["mask_token"])
    found = inspect_file(file)
    assert found.unmatched == () and found.depth == 3
    for what in ("the teacher", "the head mixer", "queries and keys alone", "the decoder",
                 "norm starts fresh"):  # fmt: skip
        assert any(what in note for note in encoder.facts.origin["notes"])
        assert any(what in note for note in found.notes)


@pytest.mark.parametrize("names", ["timm", "published"])
def test_a_fine_tuned_swin(tmp_path, names):
    model = own_model("swin")
    weights = model.state_dict()
    file = saved(tmp_path, weights if names == "timm" else {"model": published_swin(weights)})
    encoder = load_encoder(file)
    assert encoder.facts.num_heads == (1, 2, 2) and encoder.facts.img_size == (32, 32)
    assert encoder.facts.origin["layout"] == ("timm_swin" if names == "timm" else "swin")
    assert_same(encoder, model, 32)
    assert inspect_file(file).unmatched == ()


def test_a_pre_trained_swin_of_simmim_keeps_its_mask_token(tmp_path):
    model = own_model("swin", num_classes=0)
    weights = published_swin(model.state_dict())
    weights["mask_token"] = torch.full((1, 1, 16), 0.5)
    content = prefixed(weights, "encoder.") | {"decoder.0.weight": torch.ones(4, 4, 1, 1)}
    encoder = load_encoder(saved(tmp_path, {"state_dict": content}))
    assert_same(encoder, model, 32)
    assert torch.equal(encoder.mask_token, weights["mask_token"])
    assert (
        "model.mask_token" not in encoder.state_dict() and "mask_token" not in encoder.state_dict()
    )


def spare_block():
    """What D2-MAE's Swin has at its end."""
    start = "layers.1.blocks.2."
    return {
        f"{start}norm1.weight": torch.ones(32), f"{start}norm1.bias": torch.ones(32),
        f"{start}attn.qkv.weight": torch.ones(96, 32), f"{start}attn.qkv.bias": torch.ones(96),
        f"{start}attn.relative_position_bias_table": torch.ones(49, 2),
        f"{start}attn.relative_position_index": torch.zeros(16, 16),
    }  # fmt: skip


def test_a_decoupled_swin_without_any_final_norm_gets_one(tmp_path):
    model = own_model("swin", num_classes=0)
    with torch.no_grad():
        model.norm.weight.fill_(1.0), model.norm.bias.zero_()
    weights = published_swin(model.state_dict())
    del weights["norm.weight"], weights["norm.bias"]
    assert_same(load_encoder(saved(tmp_path, weights | spare_block())), model, 32)
    with pytest.raises(UserError, match="2 missing .norm.bias, norm.weight"):
        load_encoder(saved(tmp_path, weights))


@pytest.mark.parametrize("kind", ["hiera", "swin"])
def test_a_tensor_too_many_or_too_few_is_refused(tmp_path, kind):
    weights = own_model(kind).state_dict()
    name = next(name for name in weights if name.endswith("mlp.fc2.bias"))
    fewer = {key: value for key, value in weights.items() if key != name}
    with pytest.raises(UserError, match=f"1 missing .{name}"):
        load_encoder(saved(tmp_path, fewer))
    assert inspect_file(tmp_path / "weights.pth").unmatched == (f"missing: {name}",)
    with pytest.raises(UserError, match="1 unexpected .extra"):
        load_encoder(saved(tmp_path, weights | {"extra": torch.ones(1)}))


def test_what_tensors_do_not_tell_is_asked_for(tmp_path):
    model = own_model("hiera", embed_dim=24)
    file = saved(tmp_path, model.state_dict())
    with pytest.raises(UserError, match="of a Hiera 24 wide they are not known"):
        load_encoder(file)
    assert "24 wide" in inspect_file(file).notes[0]
    encoder = load_encoder(file, num_heads=(1, 2, 4, 8))
    assert_same(encoder, model, 64)
    with pytest.raises(UserError, match="of stages; leave patch_size away"):
        load_encoder(file, num_heads=(1, 2, 4, 8), patch_size=4)
    with pytest.raises(UserError, match="for no square grid"):
        read_staged(own_model("hiera", img_size=(64, 96)).state_dict())
    assert read_staged(own_model("hiera", img_size=(64, 96)).state_dict(), (64, 96)).grid == (
        16,
        24,
    )
    square = own_model("hiera", img_size=(32, 128)).state_dict()  # 256 places, also 16 x 16
    assert read_staged(square, (32, 128)).grid == (8, 32)
    assert read_staged(square).grid == read_staged(square, (96, 96)).grid == (16, 16)
    with pytest.raises(UserError, match="are for 1, 2, 2 heads"):
        read_staged(own_model("swin").state_dict(), num_heads=4)


def test_the_published_width_has_its_heads_and_plain_vits_are_left_alone():
    student = build_student(StudentOptions(name="hiera_46"), seed=0)
    staged = read_staged(student.model.state_dict())
    assert staged.num_heads == student.facts.num_heads == (1, 2, 2, *[4] * 7, 8, 8)
    assert read_staged({"blocks.0.attn.qkv.weight": torch.ones(1)}) is None


TELLING = {
    "hiera": ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "head.fc.weight"),
    "swin": (
        *("patch_embed.proj.weight", "layers.0.blocks.0.mlp.fc1.weight", "head.fc.weight"),
        *(f"layers.{k}.blocks.0.attn.relative_position_bias_table" for k in (0, 1)),
    ),
    "tiny-vit": (
        *("stages.0.blocks.0.conv1.conv.weight", "stages.1.blocks.0.attn.attention_biases"),
        *("stages.1.blocks.0.mlp.fc1.weight", "head.fc.weight", "head.norm.weight"),
    ),
}


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, names in TELLING.items() for name in names]
)
def test_what_tells_the_shape_has_one(tmp_path, family, name):
    weights = small_encoder(family).model.state_dict()
    own = weights[name]
    others = () if name.endswith("_table") else (own[:1],)  # a window of one token can be
    for wrong in (torch.tensor(1.0), torch.zeros([0] * own.ndim), own.unsqueeze(0), *others):
        file = saved(tmp_path, weights | {name: wrong.clone()})
        with pytest.raises(UserError):
            load_encoder(file)
    if name.rpartition(".")[0] != "head.fc":
        with pytest.raises(UserError):
            load_encoder(saved(tmp_path, {n: v for n, v in weights.items() if n != name}))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("hiera", "blocks.1000000000.norm1.weight"),
        ("swin", "layers.1000000000.blocks.0.norm1.weight"),
        ("tiny-vit", "stages.1000000000.blocks.0.mlp.fc1.weight"),
    ],
)
def test_a_number_in_a_name_is_no_number_of_blocks(tmp_path, family, name):
    weights = small_encoder(family).model.state_dict() | {name: torch.zeros(3)}
    with pytest.raises(UserError, match="no weights of a whole"):
        load_encoder(saved(tmp_path, weights))
